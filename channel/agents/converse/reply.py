"""What a Converse stream says, as agent events: a machine of one reply, without I/O.

Order of the stream: messageStart, then the blocks one by one (contentBlockStart, of some kinds only,
contentBlockDelta …, contentBlockStop), then messageStop, and only then metadata with the usage.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from channel.agents.converse.messages import redacted, signed


class ReplyError(Exception):
    """A reply that is none: it was cut off, or the model made something that is not valid."""


_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "stop",
    "max_tokens": "max_output_tokens",
    "model_context_window_exceeded": "max_output_tokens",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}


class _Block(Struct):
    """One block while it is told."""

    begins_at: int = 0
    """Characters of the message before it."""
    follows_thought: bool = False
    call_id: str = ""
    has_arguments: bool = False
    is_servers: bool = False
    """A call of a tool that Bedrock runs itself."""
    signature: str = ""
    redacted: bytes = b""
    image: bytes = b""
    image_format: str = ""


class Reply:
    """One reply: `take` each event of the stream, then `end` it."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._stop_reason: str | None = None
        self._characters = 0  # of the message that is open
        self._is_reasoning = False  # an item of it is open
        self._block = _Block()

    def take(self, event: Mapping[str, Any]) -> Iterator[AgentEvent]:
        """Yield what an event of the stream says; unknown ones say nothing."""
        match event:
            case {"contentBlockStart": {"start": start}}:
                yield from self._started(start)
            case {"contentBlockDelta": {"delta": delta}}:
                yield from self._went_on(delta)
            case {"contentBlockStop": _}:
                yield from self._stopped()
                self._block = _Block(self._characters, self._is_reasoning)
            case {"messageStop": {"stopReason": reason}}:
                self._stop_reason = reason
            case {"metadata": {"usage": usage}}:
                yield usage_of(usage)

    def end(self) -> Iterator[AgentEvent]:
        """Yield how the reply ended; raises `ReplyError` where it did not, or is not valid."""
        if self._stop_reason is None:
            raise ReplyError("the stream ended before the reply")
        finish = _FINISH.get(self._stop_reason)
        if finish is None:
            raise ReplyError(f"the reply stopped with {self._stop_reason}")
        if finish != "stop":
            yield Finish(finish)

    def _started(self, start: Mapping[str, Any]) -> Iterator[AgentEvent]:
        match start:
            case {"toolUse": {"type": "server_tool_use"}}:
                self._block.is_servers = True
            case {"toolUse": {"toolUseId": call_id, "name": name}}:
                self._leave_message()
                self._block.call_id = call_id
                yield FunctionCallDelta(call_id, name=name)
            case {"image": {"format": kind}}:
                self._block.image_format = kind

    def _went_on(self, delta: Mapping[str, Any]) -> Iterator[AgentEvent]:
        block = self._block
        match delta:
            case {"text": text}:
                self._is_reasoning = False
                self._characters += len(text)
                yield TextDelta(text)
            case {"toolUse": {"input": arguments}} if not block.is_servers:
                block.has_arguments = block.has_arguments or bool(arguments)
                yield FunctionCallDelta(block.call_id, arguments)
            case {"reasoningContent": reasoning}:
                yield from self._reasoned(reasoning)
            case {"citation": citation}:
                yield Annotation(annotation_of(citation, block.begins_at, self._characters))
            case {"image": {"source": {"bytes": content}}}:
                block.image += content

    def _reasoned(self, reasoning: Mapping[str, Any]) -> Iterator[AgentEvent]:
        block = self._block
        block.signature += reasoning.get("signature") or ""
        block.redacted += reasoning.get("redactedContent") or b""
        if text := reasoning.get("text"):
            new_part, block.follows_thought = block.follows_thought, False
            self._leave_message()
            self._is_reasoning = True
            yield ReasoningDelta(text, new_part=new_part)

    def _stopped(self) -> Iterator[AgentEvent]:
        block = self._block
        if block.call_id and not block.has_arguments:
            yield FunctionCallDelta(block.call_id, "{}")
        if block.redacted or block.signature:
            self._leave_message()
            yield ReasoningDelta(
                encrypted_content=redacted(block.redacted)
                if block.redacted
                else signed(block.signature)
            )
        if block.image:
            self._leave_message()
            yield OutputItem(
                {
                    "type": "image_generation_call",
                    "status": "completed",
                    "output_format": block.image_format or "png",
                    "result": b64encode(block.image).decode(),
                }
            )

    def _leave_message(self) -> None:
        self._characters, self._is_reasoning = 0, False


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """Return the tokens of a call: Converse counts those of the cache beside the input tokens."""
    read = usage.get("cacheReadInputTokens") or 0
    written = usage.get("cacheWriteInputTokens") or 0
    return Usage(
        input_tokens=usage["inputTokens"] + read + written,
        output_tokens=usage["outputTokens"],
        cached_tokens=read,
        cache_write_tokens=written,
    )


def annotation_of(citation: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """Return a citation of the characters `start` to `end` as an annotation of the text."""
    location = citation.get("location") or {}
    title, source = citation.get("title") or "", citation.get("source") or ""
    url = (location.get("web") or {}).get("url") or source
    if url.startswith(("http://", "https://")):
        return {
            "type": "url_citation",
            "url": url,
            "title": title,
            "start_index": start,
            "end_index": end,
        }
    where: Mapping[str, Any] = next(iter(location.values()), {})
    index = where.get("documentIndex", where.get("searchResultIndex", 0))
    return {
        "type": "file_citation",
        "file_id": source or title,
        "filename": title or source,
        "index": index,
    }
