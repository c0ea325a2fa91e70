"""The stream of an upstream's Responses API, read as agent events."""

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
    ToolFinished,
    ToolStarted,
)
from channel.agents.openai_wire.errors import CUT_OFF, UpstreamError, upstream_error
from channel.agents.openai_wire.options import usage_of
from channel.responses.protocol.items import Item


_HIDDEN: Final = frozenset(
    {"compaction", "function_call_output", "item_reference", "mcp_list_tools"}
)
"""Items that are the upstream's own affair."""


class ResponsesReader:
    """Reads one stream: `take` each event until `is_done`, then `end`.

    An upstream that tells less than OpenAI does is understood as well: items that come whole, without
    deltas, and a response that comes whole, without items.
    """

    def __init__(self) -> None:
        """Read nothing yet."""
        self.is_done = False
        self._told: set[Any] = set()  # the output indexes of which something was said
        self._cited: set[Any] = set()
        self._thoughts: dict[Any, str] = {}  # which of its two texts is told of reasoning
        self._is_new_part = False
        self._calls: dict[Any, _Call] = {}
        self._waiting: list[AgentEvent] = []
        self._last: list[AgentEvent] = []

    def take(self, event: Mapping[str, Any]) -> Iterable[AgentEvent]:
        """Return what the event says; raises `UpstreamError` where it tells a failure."""
        kind = event.get("type")
        if kind == "response.output_text.delta":
            self._told.add(event.get("output_index"))
            return (event["delta"],)
        return self._read(str(kind), event, event.get("output_index"))

    def end(self) -> Iterable[AgentEvent]:
        """Return what comes last; raises `UpstreamError` where the answer was cut off."""
        if not self.is_done:
            raise UpstreamError(CUT_OFF)
        return self._last

    def _read(  # noqa: C901 - one case for each event
        self, kind: str, event: Mapping[str, Any], index: Any
    ) -> Iterator[AgentEvent]:
        match kind:
            case "response.refusal.delta":
                self._told.add(index)
                yield RefusalDelta(event["delta"])
            case "response.output_text.annotation.added":
                self._told.add(index)
                self._cited.add(index)
                yield Annotation(event["annotation"])
            case "response.reasoning_summary_part.added":
                self._is_new_part = self._is_new_part or bool(event.get("summary_index"))
            case "response.reasoning_summary_text.delta":
                yield from self._think(event["delta"], "summary", index)
            case "response.reasoning_text.delta" | "response.reasoning.delta":
                yield from self._think(event["delta"], "content", index)
            case "response.output_item.added":
                yield from self._begin(event["item"], index)
            case "response.function_call_arguments.delta":
                yield from self._argue(event["delta"], index)
            case "response.output_item.done":
                yield from self._finish(event["item"], index)
            case "response.completed" | "response.incomplete":
                yield from self._conclude(event["response"])
            case "response.failed":
                yield from _usage(event["response"])
                raise upstream_error(event["response"].get("error"))
            case "error":
                raise upstream_error(event.get("error") or event)

    def _think(self, text: str, source: str, index: Any) -> Iterator[AgentEvent]:
        """Tell reasoning by its summary or by its own text, whichever comes first."""
        if self._thoughts.setdefault(index, source) == source and text:
            is_new, self._is_new_part = self._is_new_part, False
            self._told.add(index)
            yield ReasoningDelta(text, new_part=is_new)

    def _begin(self, item: Item, index: Any) -> Iterator[AgentEvent]:
        if item.get("type") == "reasoning":
            # It may follow another one that was not ended by what its model wants back.
            self._is_new_part = True
        call_id, name = item.get("call_id"), item.get("name")
        if item.get("type") == "function_call" and call_id and name:
            is_live = not self._calls
            self._calls[index] = _Call(call_id, name, [], is_live)
            if is_live:
                yield FunctionCallDelta(call_id, "", name)

    def _argue(self, arguments: str, index: Any) -> Iterator[AgentEvent]:
        if (call := self._calls.get(index)) is not None:
            call.pieces.append(arguments)
            if call.is_live:
                yield FunctionCallDelta(call.call_id, arguments)

    def _finish(self, item: Item, index: Any) -> Iterator[AgentEvent]:
        is_told = index in self._told
        self._told.add(index)
        match item.get("type"):
            case "message":
                yield from _message(item, is_told=is_told, is_cited=index in self._cited)
            case "reasoning":
                yield from self._reasoning(item, is_told=is_told)
            case "function_call":
                yield from self._call(item, index)
            case "mcp_call":
                yield from _tool(item, index)
            case kind if kind not in _HIDDEN:
                yield OutputItem({key: value for key, value in item.items() if key != "id"})

    def _reasoning(self, item: Item, *, is_told: bool) -> Iterator[AgentEvent]:
        if not is_told:
            for part in item.get("summary") or item.get("content") or ():
                yield ReasoningDelta(part.get("text") or "", new_part=True)
        if encrypted := item.get("encrypted_content"):
            yield ReasoningDelta(encrypted_content=encrypted)

    def _call(self, item: Item, index: Any) -> Iterator[AgentEvent]:
        call = self._calls.pop(index, None)
        arguments = item.get("arguments") or "".join(call.pieces if call else ())
        if call is None or not call.is_live:
            whole = FunctionCall(item.get("name") or "", arguments, item.get("call_id") or None)
            self._waiting.append(whole)
        elif not call.pieces and arguments:
            yield FunctionCallDelta(call.call_id, arguments)
        if not any(each.is_live for each in self._calls.values()):
            yield from self._waiting
            self._waiting = []

    def _conclude(self, response: Mapping[str, Any]) -> Iterator[AgentEvent]:
        if not self._told and not self._calls:
            for index, item in enumerate(response.get("output") or ()):
                yield from self._finish(item, index)
        yield from self._waiting
        for call in self._calls.values():  # that were never ended
            if not call.is_live:
                yield FunctionCallDelta(call.call_id, "".join(call.pieces), call.name)
        self.is_done = True
        self._last += _usage(response)
        if response.get("status") == "incomplete":
            reason = (response.get("incomplete_details") or {}).get("reason")
            is_filter = reason == "content_filter"
            self._last.append(Finish("content_filter" if is_filter else "max_output_tokens"))


class _Call(Struct):
    """A function call that is being written. One at a time is live: its pieces are told as they come."""

    call_id: str
    name: str
    pieces: list[str]
    is_live: bool


def _message(item: Item, *, is_told: bool, is_cited: bool) -> Iterator[AgentEvent]:
    for part in item.get("content") or ():
        if not is_told:
            if part.get("text"):
                yield part["text"]
            if part.get("refusal"):
                yield RefusalDelta(part["refusal"])
        if not is_cited:
            yield from map(Annotation, part.get("annotations") or ())


def _tool(item: Item, index: Any) -> Iterator[AgentEvent]:
    """Tell a tool that the upstream ran by MCP like any that an agent runs itself."""
    call_id = str(item.get("id") or index)
    label = item.get("server_label") or "agent"
    yield ToolStarted(call_id, item.get("name") or "", item.get("arguments") or "{}", label)
    if item.get("error"):
        yield ToolFinished(call_id, error="The tool failed.")
    else:
        yield ToolFinished(call_id, item.get("output") or "")


def _usage(response: Mapping[str, Any]) -> Iterable[AgentEvent]:
    return usage_of(response.get("usage"), given="input_tokens", said="output_tokens")
