"""The stream of an upstream's Chat Completions, read as agent events."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
)
from channel.agents.openai_wire.errors import CUT_OFF, UpstreamError, upstream_error
from channel.agents.openai_wire.options import CHAT_REASONING, usage_of


_LIMITS: Final = {
    "length": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "model_length": "max_output_tokens",  # Mistral's word for a context window that is full
    "content_filter": "content_filter",
}


class ChatReader:
    """Reads one stream: `take` each chunk, then `end`.

    The first call is told as it is written. Pieces of later ones, which may come in between, and text
    after a call are told at the end.
    """

    is_done = False  # the chunk with the usage comes after the last one of the answer

    def __init__(self) -> None:
        """Read nothing yet."""
        self._calls: list[_Call] = []
        self._late: list[str] = []
        self._field: str | None = None  # in which the model is reasoning
        self._usage: Mapping[str, Any] | None = None
        self._reason: str | None = None

    def take(self, chunk: Mapping[str, Any]) -> Iterable[AgentEvent]:
        """Return what the chunk says; raises `UpstreamError` where it tells a failure."""
        if chunk.get("error"):
            raise upstream_error(chunk["error"])
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index") or 0:
                continue
            self._reason = choice.get("finish_reason") or self._reason
            yield from self._read(choice.get("delta") or {})

    def end(self) -> Iterable[AgentEvent]:
        """Return what is left to say; raises `UpstreamError` where the answer was cut off."""
        if self._reason is None:
            raise UpstreamError(CUT_OFF)
        if self._reason == "error":  # OpenRouter's, of a model that failed
            raise UpstreamError("the model failed", status=503)
        yield from self._end_thinking()
        yield from self._rest_of_calls()
        if (late := "".join(self._late)).strip():
            yield late
        yield from usage_of(self._usage, given="prompt_tokens", said="completion_tokens")
        if (limit := _LIMITS.get(self._reason)) is not None:
            yield Finish(limit)

    def _read(self, delta: Mapping[str, Any]) -> Iterator[AgentEvent]:
        for field in ("reasoning_content", "reasoning"):
            if (text := delta.get(field)) and isinstance(text, str):
                yield from self._think(text, field)
                break  # where there are both, they are the same
        if content := delta.get("content"):
            yield from self._say([{"text": content}] if isinstance(content, str) else content)
        if refusal := delta.get("refusal"):
            yield from self._end_thinking()
            yield RefusalDelta(refusal)
        yield from map(Annotation, map(_flat, delta.get("annotations") or ()))
        for image in delta.get("images") or ():
            yield from _image(image)
        for piece in delta.get("tool_calls") or ():
            yield from self._end_thinking()
            yield from self._argue(piece)

    def _say(self, parts: Iterable[Mapping[str, Any]]) -> Iterator[AgentEvent]:
        """Tell what is said: one text, or parts, as Mistral's models tell what they think."""
        for part in parts:
            for thought in part.get("thinking") or ():
                yield ReasoningDelta(thought.get("text") or "")
            if not (text := part.get("text")):
                continue
            yield from self._end_thinking()
            if self._calls:
                self._late.append(text)
            else:
                yield text

    def _think(self, text: str, field: str) -> Iterator[AgentEvent]:
        self._field = field
        yield ReasoningDelta(text)

    def _end_thinking(self) -> Iterator[AgentEvent]:
        if self._field is not None:
            yield ReasoningDelta(encrypted_content=CHAT_REASONING + self._field)
            self._field = None

    def _argue(self, piece: Mapping[str, Any]) -> Iterator[AgentEvent]:
        function = piece.get("function") or {}
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        call = self._call_of(piece.get("index"), piece.get("id") or "", name)
        call.name = call.name or name
        call.pieces.append(arguments)
        if call.is_live:
            is_first = len(call.pieces) == 1
            yield FunctionCallDelta(call.call_id, arguments, call.name if is_first else None)

    def _call_of(self, index: int | None, call_id: str, name: str) -> "_Call":
        """Return the call that a piece belongs to: of its index, unless it begins another one.

        Some upstreams give all calls the same index, or none, and to each an id of its own.
        """
        for call in reversed(self._calls):
            if index in (None, call.index) and call_id in ("", call.call_id):
                return call
        is_own = bool(call_id) and all(call_id != each.call_id for each in self._calls)
        is_live = is_own and bool(name) and not self._calls
        call = _Call(index, call_id if is_own else "", name, [], is_live)
        self._calls.append(call)
        return call

    def _rest_of_calls(self) -> Iterator[AgentEvent]:
        for call in self._calls:
            if call.is_live:
                continue
            arguments = "".join(call.pieces)
            if call.call_id:  # open to the end: one that a limit has cut off is not complete
                yield FunctionCallDelta(call.call_id, arguments, call.name)
            else:
                yield FunctionCall(call.name, arguments)


class _Call(Struct):
    """A call that is being written; without an id it gets one of ours."""

    index: int | None
    call_id: str
    name: str
    pieces: list[str]
    is_live: bool


def _flat(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an annotation in the Responses API's shape, which nests nothing."""
    kind = annotation.get("type") or "url_citation"
    nested = annotation.get(kind)
    fields = nested if isinstance(nested, Mapping) else annotation
    return {**fields, "type": kind}


def _image(image: Mapping[str, Any]) -> Iterator[AgentEvent]:
    """Tell an image that a gateway's model made, which comes as a data URL."""
    _, is_base64, result = str((image.get("image_url") or {}).get("url")).partition(";base64,")
    if is_base64:
        item = {"type": "image_generation_call", "status": "completed", "result": result}
        yield OutputItem(item)
