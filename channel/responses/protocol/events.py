"""Stream events: what a client reads, one Struct for each wire `type` that an agent can cause."""

from typing import Any, Final

from msgspec import Struct

from channel.responses.protocol.items import Item
from channel.responses.protocol.response import Response


class StreamEvent(Struct, frozen=True, tag_field="type", gc=False):
    """The common part: numbers start at 0 and rise by one within a response.

    Events are values and never part of a cycle, so the garbage collector need not look at them.
    """

    sequence_number: int

    @property
    def type(self) -> str:
        """The wire `type`, which is the SSE event name too."""
        return str(self.__struct_config__.tag)


class Lifecycle(StreamEvent, frozen=True, gc=False):
    """An event that carries the whole resource as it is then."""

    response: Response


class ResponseCreated(Lifecycle, frozen=True, gc=False, tag="response.created"):
    """Always the first."""


class ResponseQueued(Lifecycle, frozen=True, gc=False, tag="response.queued"):
    """The second of a background response."""


class ResponseInProgress(Lifecycle, frozen=True, gc=False, tag="response.in_progress"):
    """The second, or the third of a background response."""


class ResponseCompleted(Lifecycle, frozen=True, gc=False, tag="response.completed"):
    """Terminal: all went well, and the record is durable."""


class ResponseIncomplete(Lifecycle, frozen=True, gc=False, tag="response.incomplete"):
    """Terminal: cut short by a limit or a filter."""


class ResponseFailed(Lifecycle, frozen=True, gc=False, tag="response.failed"):
    """Terminal: failed, or cancelled (OpenAI has no cancelled event)."""


class OutputItemAdded(StreamEvent, frozen=True, gc=False, tag="response.output_item.added"):
    """An output item began."""

    output_index: int
    item: Item


class OutputItemDone(StreamEvent, frozen=True, gc=False, tag="response.output_item.done"):
    """An output item is as it will be in the response."""

    output_index: int
    item: Item


class InItem(StreamEvent, frozen=True, gc=False):
    """An event inside an item."""

    item_id: str
    output_index: int


class InPart(InItem, frozen=True, gc=False):
    """An event inside a content part of a message."""

    content_index: int


class ContentPartAdded(InPart, frozen=True, gc=False, tag="response.content_part.added"):
    """A content part began."""

    part: dict[str, Any]


class ContentPartDone(InPart, frozen=True, gc=False, tag="response.content_part.done"):
    """A content part is complete."""

    part: dict[str, Any]


class OutputTextDelta(InPart, frozen=True, gc=False, tag="response.output_text.delta"):
    """A piece of text."""

    delta: str
    logprobs: tuple[()] = ()


class OutputTextDone(InPart, frozen=True, gc=False, tag="response.output_text.done"):
    """The whole text of a part: its deltas joined."""

    text: str
    logprobs: tuple[()] = ()


class OutputTextAnnotationAdded(
    InPart, frozen=True, gc=False, tag="response.output_text.annotation.added"
):
    """An annotation of a text part."""

    annotation_index: int
    annotation: dict[str, Any]


class RefusalDelta(InPart, frozen=True, gc=False, tag="response.refusal.delta"):
    """A piece of a refusal."""

    delta: str


class RefusalDone(InPart, frozen=True, gc=False, tag="response.refusal.done"):
    """The whole refusal: its deltas joined."""

    refusal: str


class FunctionCallArgumentsDelta(
    InItem, frozen=True, gc=False, tag="response.function_call_arguments.delta"
):
    """A piece of a call's arguments."""

    delta: str


class FunctionCallArgumentsDone(
    InItem, frozen=True, gc=False, tag="response.function_call_arguments.done"
):
    """The whole arguments: their deltas joined."""

    name: str
    arguments: str


class InSummary(InItem, frozen=True, gc=False):
    """An event inside a reasoning summary part."""

    summary_index: int


class ReasoningSummaryPartAdded(
    InSummary, frozen=True, gc=False, tag="response.reasoning_summary_part.added"
):
    """A summary part began."""

    part: dict[str, Any]


class ReasoningSummaryTextDelta(
    InSummary, frozen=True, gc=False, tag="response.reasoning_summary_text.delta"
):
    """A piece of a reasoning summary."""

    delta: str


class ReasoningSummaryTextDone(
    InSummary, frozen=True, gc=False, tag="response.reasoning_summary_text.done"
):
    """The whole text of a summary part: its deltas joined."""

    text: str


class ReasoningSummaryPartDone(
    InSummary, frozen=True, gc=False, tag="response.reasoning_summary_part.done"
):
    """A summary part is complete."""

    part: dict[str, Any]


class McpCallInProgress(InItem, frozen=True, gc=False, tag="response.mcp_call.in_progress"):
    """A tool that the agent runs itself began."""


class McpCallArgumentsDelta(InItem, frozen=True, gc=False, tag="response.mcp_call_arguments.delta"):
    """The arguments of such a tool, as one piece."""

    delta: str


class McpCallArgumentsDone(InItem, frozen=True, gc=False, tag="response.mcp_call_arguments.done"):
    """The whole arguments of such a tool."""

    arguments: str


class McpCallCompleted(InItem, frozen=True, gc=False, tag="response.mcp_call.completed"):
    """Such a tool gave an output."""


class McpCallFailed(InItem, frozen=True, gc=False, tag="response.mcp_call.failed"):
    """Such a tool failed, or was cut off by the end of the turn."""


class KeptEvent(Struct, frozen=True, gc=False):
    """An event that was kept as JSON, whatever it is."""

    type: str
    sequence_number: int
    data: bytes

    @property
    def is_terminal(self) -> bool:
        """Whether it is the last of its response."""
        return self.type in _TERMINAL_TYPES


_TERMINAL_TYPES: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
