"""Stream events as chunks, and a response that is over as the completion that its chunks add up to."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from channel.responses.protocol.events import (
    ContentPartAdded,
    FunctionCallArgumentsDelta,
    KeptEvent,
    OutputItemAdded,
    OutputItemDone,
    OutputTextAnnotationAdded,
    OutputTextDelta,
    ReasoningSummaryPartAdded,
    ReasoningSummaryTextDelta,
    RefusalDelta,
    ResponseCompleted,
    ResponseCreated,
    ResponseIncomplete,
    StreamEvent,
)
from channel.responses.protocol.ids import RESPONSE_PREFIX
from channel.responses.protocol.items import Item
from channel.responses.protocol.replay import replayed
from channel.responses.protocol.response import Response, ResponseUsage


_BETWEEN: Final = "\n\n"
"""What is put between two messages, and two parts of a reasoning: a completion has one text of each."""

_LIMITS: Final = {"max_output_tokens": "length", "content_filter": "content_filter"}


class CallDelta(Struct, frozen=True, gc=False):
    """A piece of a call; the first one names it."""

    index: int
    function: dict[str, str]
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Delta(Struct, frozen=True, gc=False):
    """What a chunk adds to the message; reasoning is where clients of other servers look for it."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[CallDelta, ...] | UnsetType = UNSET
    annotations: tuple[dict[str, Any], ...] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, gc=False):
    """The one choice."""

    delta: Delta
    index: int = 0
    logprobs: None = None
    finish_reason: str | None = None


class Chunk(Struct, frozen=True, kw_only=True, gc=False):
    """OpenAI's `chat.completion.chunk`; it has a `usage` only where the client asked for that."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    service_tier: str
    choices: tuple[ChunkChoice, ...]
    usage: dict[str, Any] | UnsetType | None = UNSET


class _Citation(Struct, frozen=True, gc=False, tag_field="type", tag="url_citation"):
    """The one kind of annotation that a completion has."""

    url: str
    title: str = ""
    start_index: int = 0
    end_index: int = 0


class Chunks:
    """Makes the chunks of one response, of which `of` is given every event in order."""

    def __init__(self, *, includes_usage: bool) -> None:
        """Make nothing yet."""
        self._includes_usage = includes_usage
        self._frame: dict[str, Any] = {}
        self._told: int | None = None  # the item that the last piece of text was of
        self._gap = ""  # goes before the next piece of text
        self._end = self._part_start = 0  # in the text as a whole
        self._thought_gap = ""
        self._has_thought = False
        self._calls = 0

    def of(self, event: StreamEvent | KeptEvent) -> list[Chunk]:
        """Return the chunks of an event; there are none for what has no place in a completion."""
        match event:
            case OutputTextDelta(output_index=self._told, delta=text) if not self._gap:
                self._end += len(text)
                return [self._chunk(Delta(content=text))]
            case ResponseCreated(response=response):
                self._begin(response)
                return [self._chunk(Delta(role="assistant", content=""))]
            case ResponseCompleted(response=response) | ResponseIncomplete(response=response):
                return self._ending(response)
            case _:
                return [self._chunk(delta) for delta in self._deltas(event)]

    def _deltas(self, event: StreamEvent | KeptEvent) -> Iterable[Delta]:  # noqa: PLR0911 - one case for each event
        match event:
            case OutputTextDelta(output_index=index, delta=text):
                self._told = index
                return [self._say(text)]
            case RefusalDelta(output_index=index, delta=text):
                self._told = index
                return [Delta(refusal=text)]
            case ReasoningSummaryTextDelta(output_index=index, delta=text):
                self._told = index
                return [self._think(text)]
            case FunctionCallArgumentsDelta(delta=text):
                return [_call(CallDelta(self._calls - 1, {"arguments": text}))]
            case OutputTextAnnotationAdded(annotation=annotation):
                return self._cite(annotation)
            case OutputItemAdded(item=item):
                return self._open(item)
            case ContentPartAdded():
                self._open_part()
            case ReasoningSummaryPartAdded():
                self._open_thought()
            case OutputItemDone(output_index=index, item=item) if index != self._told:
                return self._whole(item)
        return ()

    def _open(self, item: Item) -> Iterable[Delta]:
        if item["type"] == "message":
            self._gap = _BETWEEN if self._end else ""
        if item["type"] != "function_call":
            return ()
        self._calls += 1
        function = {"name": item["name"], "arguments": item["arguments"]}
        return [_call(CallDelta(self._calls - 1, function, item["call_id"], "function"))]

    def _open_part(self) -> None:
        self._part_start = self._end + len(self._gap)

    def _open_thought(self) -> None:
        self._thought_gap = _BETWEEN if self._has_thought else ""

    def _say(self, text: str) -> Delta:
        said, self._gap = self._gap + text, ""
        self._end += len(said)
        return Delta(content=said)

    def _think(self, text: str) -> Delta:
        thought, self._thought_gap = self._thought_gap + text, ""
        self._has_thought = True
        return Delta(reasoning_content=thought)

    def _cite(self, annotation: Any) -> Iterable[Delta]:
        """Tell a citation by its place in the whole text, and no annotation of another kind."""
        try:
            citation = msgspec.structs.asdict(msgspec.convert(annotation, _Citation))
        except msgspec.ValidationError:
            return ()
        citation["start_index"] += self._part_start
        citation["end_index"] += self._part_start
        return [Delta(annotations=({"type": "url_citation", "url_citation": citation},))]

    def _whole(self, item: Item) -> Iterator[Delta]:
        """Tell what is in an item that did not come in pieces, whatever an agent has put there."""
        match item:
            case {"type": "message", "content": str(text)} if text:
                yield self._say(text)
            case {"type": "message", "content": list(parts)}:
                for part in parts:
                    yield from self._whole_part(part)
            case {"type": "reasoning", "summary": list(parts)}:
                for part in parts:
                    match part:
                        case {"text": str(text)} if text:
                            self._open_thought()
                            yield self._think(text)

    def _whole_part(self, part: Any) -> Iterator[Delta]:
        self._open_part()
        match part:
            case {"type": "output_text", "text": str(text)} if text:
                yield self._say(text)
            case {"type": "refusal", "refusal": str(text)} if text:
                yield Delta(refusal=text)
        match part:
            case {"type": "output_text", "annotations": list(annotations)}:
                for annotation in annotations:
                    yield from self._cite(annotation)

    def _begin(self, response: Response) -> None:
        self._frame = {
            "id": completion_id(response),
            "created": response.created_at,
            "model": response.model,
            "service_tier": response.service_tier,
        }

    def _chunk(self, delta: Delta, finish_reason: str | None = None) -> Chunk:
        usage = None if self._includes_usage else UNSET
        choice = ChunkChoice(delta, finish_reason=finish_reason)
        return Chunk(**self._frame, choices=(choice,), usage=usage)

    def _ending(self, response: Response) -> list[Chunk]:
        limit = response.incomplete_details
        reason = "tool_calls" if self._calls else "stop"
        last = self._chunk(Delta(), _LIMITS.get(limit.reason, "length") if limit else reason)
        if not self._includes_usage:
            return [last]
        return [last, Chunk(**self._frame, choices=(), usage=_usage(response.usage))]


def completion_id(response: Response) -> str:
    """Return the id of the completion that a response is told as."""
    return f"chatcmpl-{response.id.removeprefix(RESPONSE_PREFIX)}"


def completion(response: Response) -> dict[str, Any]:
    """Return a completed or incomplete response as OpenAI's `chat.completion`."""
    chunks = Chunks(includes_usage=True)
    *said, last, usage = [chunk for event in replayed(response) for chunk in chunks.of(event)]
    message = _message([chunk.choices[0].delta for chunk in said])
    finish_reason = last.choices[0].finish_reason
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": last.id,
        "object": "chat.completion",
        "created": last.created,
        "model": last.model,
        "choices": [choice],
        "usage": usage.usage,
        "service_tier": last.service_tier,
    }


def _message(deltas: Iterable[Delta]) -> dict[str, Any]:
    content = refusal = thought = ""
    annotations: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        content += delta.content or ""
        refusal += delta.refusal or ""
        thought += delta.reasoning_content or ""
        annotations += delta.annotations or ()
        for piece in delta.tool_calls or ():
            if piece.index == len(calls):
                calls.append({"id": piece.id, "type": piece.type, "function": {**piece.function}})
            else:
                calls[piece.index]["function"]["arguments"] += piece.function["arguments"]
    return {
        "role": "assistant",
        "content": content or (None if calls or refusal else ""),
        "refusal": refusal or None,
        "annotations": annotations,
        **({"reasoning_content": thought} if thought else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _call(piece: CallDelta) -> Delta:
    return Delta(tool_calls=(piece,))


def _usage(usage: ResponseUsage | None) -> dict[str, Any]:
    used = usage or ResponseUsage()
    return {
        "prompt_tokens": used.input_tokens,
        "completion_tokens": used.output_tokens,
        "total_tokens": used.total_tokens,
        "prompt_tokens_details": {
            "audio_tokens": 0,
            "cached_tokens": used.input_tokens_details.cached_tokens,
            "cache_write_tokens": used.input_tokens_details.cache_write_tokens,
        },
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": 0,
            "reasoning_tokens": used.output_tokens_details.reasoning_tokens,
            "rejected_prediction_tokens": 0,
        },
    }
