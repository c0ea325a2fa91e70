"""Output items while they are written, each with the events it causes in the order the API gives them."""

from collections.abc import Callable
from typing import Any

from channel.responses.protocol import events as ev
from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.items import Item, output_text


Next = Callable[[], int]
"""Takes the next sequence number."""


class Message:
    """A message while it is written: one content part after another."""

    __slots__ = ("_annotations", "_done", "_text", "index", "item", "item_id", "kind")

    def __init__(self, index: int, item_id: str) -> None:
        self.index = index
        self.item_id = item_id
        self.kind = ""  # of the open part: output_text or refusal
        self._text: list[str] = []
        self._annotations: list[dict[str, Any]] = []
        self._done: list[dict[str, Any]] = []
        self.item = self._as_item("in_progress")

    def added(self, number: Next) -> list[StreamEvent]:
        return [ev.OutputItemAdded(number(), self.index, self.item)]

    def part_added(self, number: Next, kind: str) -> list[StreamEvent]:
        self.kind = kind
        return [ev.ContentPartAdded(number(), *self._at(), self._part(""))]

    def delta(self, number: int, text: str) -> StreamEvent:
        if self.kind == "output_text":
            return self.text_delta(number, text)
        self._text.append(text)
        return ev.RefusalDelta(number, self.item_id, self.index, len(self._done), text)

    def text_delta(self, number: int, text: str) -> StreamEvent:
        self._text.append(text)
        return ev.OutputTextDelta(number, self.item_id, self.index, len(self._done), text)

    def annotate(self, number: Next, annotation: dict[str, Any]) -> StreamEvent:
        self._annotations.append(annotation)
        position = len(self._annotations) - 1
        return ev.OutputTextAnnotationAdded(number(), *self._at(), position, annotation)

    def part_done(self, number: Next) -> list[StreamEvent]:
        text, at = "".join(self._text), self._at()
        part = self._part(text)
        done = ev.OutputTextDone if self.kind == "output_text" else ev.RefusalDone
        caused: list[StreamEvent] = [
            done(number(), *at, text),
            ev.ContentPartDone(number(), *at, part),
        ]
        self._done.append(part)
        self._text, self._annotations = [], []
        return caused

    def done(self, number: Next, *, finished: bool) -> list[StreamEvent]:
        caused = self.part_done(number)
        self.item = self._as_item("completed" if finished else "incomplete")
        return caused

    def _at(self) -> tuple[str, int, int]:
        return self.item_id, self.index, len(self._done)

    def _part(self, text: str) -> dict[str, Any]:
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return output_text(text, self._annotations)

    def _as_item(self, status: str) -> Item:
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [*self._done],
        }


class Reasoning:
    """A reasoning item while it is written: one summary part after another."""

    __slots__ = ("_done", "_is_part_open", "_text", "encrypted_content", "index", "item", "item_id")

    def __init__(self, index: int, item_id: str) -> None:
        self.index = index
        self.item_id = item_id
        self.encrypted_content = ""
        self._text: list[str] = []
        self._done: list[dict[str, Any]] = []
        self._is_part_open = False
        self.item = self._as_item()

    def added(self, number: Next) -> list[StreamEvent]:
        return [ev.OutputItemAdded(number(), self.index, self.item)]

    def delta(self, number: Next, text: str) -> list[StreamEvent]:
        caused: list[StreamEvent] = []
        if not self._is_part_open:
            self._is_part_open = True
            empty = {"type": "summary_text", "text": ""}
            caused.append(ev.ReasoningSummaryPartAdded(number(), *self._at(), empty))
        self._text.append(text)
        return [*caused, ev.ReasoningSummaryTextDelta(number(), *self._at(), text)]

    def part_done(self, number: Next) -> list[StreamEvent]:
        if not self._is_part_open:
            return []
        text, at = "".join(self._text), self._at()
        part = {"type": "summary_text", "text": text}
        caused: list[StreamEvent] = [
            ev.ReasoningSummaryTextDone(number(), *at, text),
            ev.ReasoningSummaryPartDone(number(), *at, part),
        ]
        self._done.append(part)
        self._text, self._is_part_open = [], False
        return caused

    def done(self, number: Next, *, finished: bool) -> list[StreamEvent]:  # noqa: ARG002
        caused = self.part_done(number)
        self.item = self._as_item()
        return caused

    def _at(self) -> tuple[str, int, int]:
        return self.item_id, self.index, len(self._done)

    def _as_item(self) -> Item:
        item = {"id": self.item_id, "type": "reasoning", "summary": [*self._done]}
        return (
            {**item, "encrypted_content": self.encrypted_content}
            if self.encrypted_content
            else item
        )


class Call:
    """A function call while its arguments are written."""

    __slots__ = ("_arguments", "_name", "call_id", "index", "item", "item_id")

    def __init__(self, index: int, item_id: str, call_id: str, name: str) -> None:
        self.index = index
        self.item_id = item_id
        self.call_id = call_id
        self._name = name
        self._arguments: list[str] = []
        self.item = self._as_item("in_progress")

    def added(self, number: Next) -> list[StreamEvent]:
        return [ev.OutputItemAdded(number(), self.index, self.item)]

    def delta(self, number: int, arguments: str) -> StreamEvent:
        self._arguments.append(arguments)
        return ev.FunctionCallArgumentsDelta(number, self.item_id, self.index, arguments)

    def done(self, number: Next, *, finished: bool) -> list[StreamEvent]:
        self.item = self._as_item("completed" if finished else "incomplete")
        arguments = self.item["arguments"]
        return [
            ev.FunctionCallArgumentsDone(number(), self.item_id, self.index, self._name, arguments)
        ]

    def _as_item(self, status: str) -> Item:
        return {
            "id": self.item_id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }


class Activity:
    """A tool of the agent's own while it runs, shown as an `mcp_call` item."""

    __slots__ = ("_arguments", "_name", "_server_label", "index", "item", "item_id")

    def __init__(
        self, index: int, item_id: str, name: str, arguments: str, server_label: str
    ) -> None:
        self.index = index
        self.item_id = item_id
        self._name = name
        self._arguments = arguments
        self._server_label = server_label
        self.item = self._as_item("in_progress", "")

    def added(self, number: Next) -> list[StreamEvent]:
        at = (self.item_id, self.index)
        return [
            ev.OutputItemAdded(number(), self.index, self.item),
            ev.McpCallInProgress(number(), *at),
            ev.McpCallArgumentsDelta(number(), *at, self._arguments),
            ev.McpCallArgumentsDone(number(), *at, self._arguments),
        ]

    def done(self, number: Next, output: str | None, error: str | None) -> list[StreamEvent]:
        """End the tool; with neither output nor error it was cut off."""
        at = (self.item_id, self.index)
        if error is None and output is not None:
            self.item = self._as_item("completed", self._arguments, output)
            return [ev.McpCallCompleted(number(), *at)]
        status = "incomplete" if error is None else "failed"
        self.item = self._as_item(status, self._arguments, output, error)
        return [ev.McpCallFailed(number(), *at)]

    def _as_item(
        self, status: str, arguments: str, output: str | None = None, error: str | None = None
    ) -> Item:
        return {
            "id": self.item_id,
            "type": "mcp_call",
            "status": status,
            "server_label": self._server_label,
            "name": self._name,
            "arguments": arguments,
            "output": output,
            "error": _tool_error(error) if error is not None else None,
        }


def _tool_error(text: str) -> dict[str, Any]:
    """Return an `mcp_call`'s error: OpenAI's clients read an object, with content as MCP has it."""
    return {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}
