"""What one model call says, piece by piece, as agent events."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk
from msgspec import Struct

from channel.agent import (
    AgentEvent,
    Annotation,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    ToolStarted,
    Usage,
)
from channel.agents.langgraph.reasoning import TYPES, Thought


class Names(Struct, frozen=True):
    """How the tools of a turn are told apart: the client's, and the one whose arguments are the answer."""

    client: frozenset[str] = frozenset()
    answer: str | None = None

    @property
    def ending(self) -> frozenset[str]:
        """The names of the tools whose call ends the turn."""
        return self.client | ({self.answer} if self.answer else set())


class _Call(Struct):
    """One call of a tool, as it grows."""

    call_id: str | None = None
    name: str = ""
    arguments: str = ""
    told: int = 0
    """How many characters of the arguments were told."""
    is_streaming: bool = False


class Speech:
    """From the pieces of one model call to agent events.

    The first call of a tool of the client's streams, the others are told whole at the end: a model
    may write several at a time. A call of one of the agent's own tools is told as its beginning.
    """

    def __init__(self, names: Names) -> None:
        """Begin a model call; nothing is said yet."""
        self.limit: str | None = None
        """Which limit ended it (`Finish`), where it was one."""
        self.ids: set[str] = set()
        """The ids of its message, which may be another one while it streams."""
        self._names = names
        self._texts: list[str] = []
        self.length = 0
        """The length of the text so far, which the places of annotations count from the beginning of."""
        self._text_start = 0
        self._text_index: Any = None
        self._thought: Thought | None = None
        self._has_pieces = False
        self._calls: dict[Any, _Call] = {}
        self._last_key: Any = None
        self._streaming: _Call | None = None

    @property
    def text(self) -> str:
        """The text that was said so far."""
        return "".join(self._texts)

    def add(self, message: AIMessage) -> Iterator[AgentEvent]:
        """Take a piece of the message, or all of it."""
        self._identify(message)
        self._has_pieces = True
        metadata = message.response_metadata
        self.limit = limit_of(metadata) or self.limit
        kwargs = message.additional_kwargs
        for name in ("reasoning_content", "reasoning"):
            reasoning = kwargs.get(name)
            if isinstance(reasoning, str) and reasoning:
                yield from self._think({"type": "reasoning", "reasoning": reasoning}, metadata)
            elif isinstance(reasoning, Mapping):
                yield from self._think({**reasoning, "type": "reasoning"}, metadata)
        content = message.content
        for block in [content] if isinstance(content, str) else content:
            yield from self._block(block, metadata)
        if isinstance(kwargs.get("refusal"), str):
            yield from self._refuse(kwargs["refusal"])
        for piece in message.tool_call_chunks if isinstance(message, AIMessageChunk) else ():
            yield from self._grow(piece)

    def end(self, message: AIMessage, *, only_calls: bool = False) -> Iterator[AgentEvent]:
        """End the model call; `message` is all of what it said, of which some may be new.

        With `only_calls`, nothing of it is told but the calls that end the turn.
        """
        self._identify(message)
        if not (self._has_pieces or only_calls):
            yield from self.add(message)
        self.limit = limit_of(message.response_metadata) or self.limit
        for whole in message.tool_calls:
            arguments = json.dumps(whole["args"], ensure_ascii=False)
            self._complete(whole["id"], whole["name"], arguments)
        for broken in message.invalid_tool_calls:
            self._complete(broken["id"], broken["name"] or "", broken["args"] or "")
        calls = [*self._calls.values()]
        is_over = any(call.name in self._names.ending for call in calls)
        yield from self._close_thought(is_wanted=is_over or not calls)
        for call in calls:
            if is_over or not only_calls:
                yield from self._tell_call(call, is_over=is_over)

    def _identify(self, message: AIMessage) -> None:
        if message.id is not None:
            self.ids.add(message.id)

    def _complete(self, call_id: str | None, name: str, arguments: str) -> None:
        """Note a call of the whole message, unless its pieces were told."""
        for call in self._calls.values():
            if call.name == name and call.call_id in (None, call_id):
                call.call_id = call_id
                return
        self._calls["whole", len(self._calls)] = _Call(call_id, name, arguments)

    def _tell_call(self, call: _Call, *, is_over: bool) -> Iterator[AgentEvent]:
        if call.name not in self._names.ending:
            if not is_over and call.call_id:  # beside a call that ends the turn it never runs
                yield ToolStarted(call.call_id, call.name, call.arguments or "{}")
        elif call.is_streaming:
            if not call.arguments:
                yield from self._tell_arguments(call, "{}")
        elif not self.limit or _is_json(call.arguments or "{}"):  # else it was cut off
            if call.name == self._names.answer:
                yield from self._say(call.arguments)
            else:
                yield FunctionCall(call.name, call.arguments or "{}", call.call_id)

    def _grow(self, piece: Mapping[str, Any]) -> Iterator[AgentEvent]:
        call = self._call_of(piece)
        call.call_id = call.call_id or piece.get("id")
        call.name = call.name or piece.get("name") or ""
        call.arguments += piece.get("args") or ""
        if call.name not in self._names.ending:
            return
        if self._streaming is None and call.call_id:
            yield from self._close_thought()
            call.is_streaming = True
            self._streaming = call
        if call is self._streaming:
            yield from self._tell_arguments(call, call.arguments[call.told :])
            call.told = len(call.arguments)

    def _call_of(self, piece: Mapping[str, Any]) -> _Call:
        """Return the call that the piece belongs to: by its index; without one, by its id."""
        key: Any = piece.get("index")
        if key is None:
            key = ("id", piece["id"]) if piece.get("id") else self._last_key
        self._last_key = key
        return self._calls.setdefault(key, _Call())

    def _tell_arguments(self, call: _Call, arguments: str) -> Iterator[AgentEvent]:
        if call.name == self._names.answer:
            yield from self._say(arguments)
        else:
            name = call.name if not call.told else None
            yield FunctionCallDelta(call.call_id or "", arguments, name)

    def _block(self, block: Any, metadata: Mapping[str, Any]) -> Iterator[AgentEvent]:
        if isinstance(block, str):
            yield from self._say(block)
            return
        kind = block.get("type")
        if kind in TYPES:
            yield from self._think(block, metadata)
        elif kind == "text":
            if self._text_index is None or self._text_index != block.get("index"):
                self._text_index, self._text_start = block.get("index"), self.length
            yield from self._say(block.get("text") or "")
            yield from self._annotate(block)
        elif kind == "refusal":
            yield from self._refuse(block.get("refusal") or "")
        elif kind == "non_standard" and isinstance(block.get("value"), dict):
            yield from self._block(block["value"], metadata)
        elif image := _image_of(block):
            yield from self._close_thought()
            item = {"type": "image_generation_call", "status": "completed", "result": image}
            yield OutputItem(item)

    def _say(self, text: str) -> Iterator[AgentEvent]:
        if text:
            yield from self._close_thought()
            self._texts.append(text)
            self.length += len(text)
            yield text

    def _refuse(self, text: str) -> Iterator[AgentEvent]:
        if text:
            yield from self._close_thought()
            self._texts.append(text)
            yield RefusalDelta(text)

    def _annotate(self, block: Mapping[str, Any]) -> Iterator[AgentEvent]:
        start, end = self._text_start, self.length
        for citation in [*(block.get("annotations") or ()), *(block.get("citations") or ())]:
            if isinstance(citation, Mapping) and isinstance(citation.get("url"), str):
                if isinstance(citation.get("end_index"), int):
                    start, end = citation.get("start_index") or 0, citation["end_index"]
                about = {"url": citation["url"], "title": citation.get("title") or ""}
                place = {"start_index": start, "end_index": end}
                yield Annotation({"type": "url_citation", **about, **place})

    def _think(self, block: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[AgentEvent]:
        thought = self._thought
        if thought is None or not thought.goes_on_with(block):
            yield from self._close_thought()
            thought = self._thought = Thought(block, metadata)
        yield from thought.add(block)

    def _close_thought(self, *, is_wanted: bool = True) -> Iterator[AgentEvent]:
        """End a block of reasoning with what the model wants back.

        Nothing is, before a call of a tool of the agent's own: the history will not have that call,
        and models refuse reasoning that nothing follows.
        """
        thought, self._thought = self._thought, None
        if thought is not None and is_wanted and (wanted := thought.wanted_back()):
            yield ReasoningDelta(encrypted_content=wanted)


_LENGTH: Final = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_CONTEXT: Final = "model_context_window_exceeded"
_FILTERS: Final = frozenset(
    {
        "content_filter", "content_filtered", "guardrail_intervened", "refusal", "safety",
        "recitation", "blocklist", "prohibited_content", "spii", "image_safety",
    }
)  # fmt: skip


_ENDS: Final = (
    "finish_reason", "stop_reason", "stopReason", "done_reason", "status", "incomplete_details"
)  # fmt: skip
_TELL_ENDS: Final = frozenset(
    {
        "anthropic", "azure", "bedrock_converse", "deepseek", "fireworks", "google_genai",
        "google_vertexai", "groq", "mistralai", "ollama", "openai", "openrouter", "xai",
    }
)  # fmt: skip
"""The providers (`model_provider`) whose models end each answer with a reason."""


def is_cut_off(message: AIMessage) -> bool:
    """Return whether the stream of a model ended before its answer did.

    LangChain takes one that simply stops for the end. A model that names no provider, or one that
    is not known to give reasons, is believed.
    """
    metadata = message.response_metadata
    has_end = any(metadata.get(name) for name in _ENDS)
    return metadata.get("model_provider") in _TELL_ENDS and not has_end


def limit_of(metadata: Mapping[str, Any]) -> str | None:
    """Return which limit ended a model call (`Finish`), by what its provider calls it, or None."""
    details = metadata.get("incomplete_details")
    reasons = [
        *(metadata.get(name) for name in ("finish_reason", "stop_reason", "stopReason")),
        metadata.get("done_reason"),
        details.get("reason") if isinstance(details, Mapping) else None,
    ]
    found = {str(reason).lower() for reason in reasons if reason}
    if found & (_LENGTH | {_CONTEXT}):
        return "max_output_tokens"
    return "content_filter" if found & _FILTERS else None


def usage_of(message: AIMessage) -> Usage | None:
    """Return what a model call used, or None of one that did not tell."""
    usage = message.usage_metadata
    if usage is None:
        return None
    read: Mapping[str, Any] = usage.get("input_token_details") or {}
    written: Mapping[str, Any] = usage.get("output_token_details") or {}
    return Usage(
        usage["input_tokens"],
        usage["output_tokens"],
        cached_tokens=read.get("cache_read") or 0,
        cache_write_tokens=read.get("cache_creation") or 0,
        reasoning_tokens=written.get("reasoning") or 0,
    )


def _image_of(block: Mapping[str, Any]) -> str | None:
    """Return the base64 of an image that the model made."""
    match block:
        case {"type": "image", "base64": str(image)}:
            return image
        case {"type": "image_generation_call", "result": str(image)}:
            return image
        case {"type": "image_url", "image_url": {"url": str(url)}} if url.startswith("data:"):
            return url.partition(",")[2]
        case _:
            return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
