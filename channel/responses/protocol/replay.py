"""The stream of a response that has ended, made from the response alone.

What an item's events add up to is known to `open_items` only: an item that those classes would make
is replayed in pieces, each text as one delta, and any other one as a whole. So the stream ends with
the very items that are stored, whatever they are.
"""

from itertools import count
from typing import Any

from msgspec.structs import replace

from channel.responses.protocol.events import (
    OutputItemAdded,
    OutputItemDone,
    ResponseCreated,
    ResponseInProgress,
    StreamEvent,
)
from channel.responses.protocol.items import Item
from channel.responses.protocol.open_items import Activity, Call, Message, Next, Reasoning
from channel.responses.protocol.response import Response, Status
from channel.responses.protocol.stream import ending, queue


def replayed(response: Response) -> list[StreamEvent]:
    """Return the events of a stored response, from `response.created` to the terminal one.

    Ids and indexes are those of the response, which the last event holds as it is. Items come one
    after another, also those that once grew side by side. Raises `ValueError` for a response that
    has not ended.
    """
    if not response.status.is_terminal:
        raise ValueError("Only a response that has ended can be replayed.")
    begun = replace(
        response,
        status=Status.IN_PROGRESS,
        output=[],
        completed_at=None,
        error=None,
        incomplete_details=None,
        usage=None,
    )
    events: list[StreamEvent] = [ResponseCreated(0, begun)]
    if response.background:
        events = queue(replace(begun, status=Status.QUEUED))
    events.append(ResponseInProgress(len(events), begun))
    events += said_again(response, len(events))
    return [*events, ending(len(events), response)]


def said_again(response: Response, first: int) -> list[StreamEvent]:
    """Return the events of the items alone, numbered from `first`."""
    events: list[StreamEvent] = []
    for index, item in enumerate(response.output):
        number = first + len(events)
        events += _in_pieces(number, index, item) or [
            OutputItemAdded(number, index, item),
            OutputItemDone(number + 1, index, item),
        ]
    return events


def _in_pieces(first: int, index: int, item: Item) -> list[StreamEvent]:
    """Return the item's events, numbered from `first`; none where they would not add up to it."""
    number = count(first).__next__
    finished = item.get("status") == "completed"
    opened: Message | Reasoning | Call | Activity
    match item:
        case {"type": "message", "id": str(item_id), "content": list(content)}:
            opened = Message(index, item_id)
            events = _message(opened, content, number)
            events += opened.done(number, finished=finished) if events else []
        case {"type": "reasoning", "id": str(item_id), "summary": list(summary)}:
            opened = Reasoning(index, item_id)
            opened.encrypted_content = item.get("encrypted_content") or ""
            events = _reasoning(opened, summary, number)
            events += opened.done(number, finished=finished) if events else []
        case {
            "type": "function_call",
            "id": str(item_id),
            "call_id": str(call_id),
            "name": str(name),
            "arguments": str(arguments),
        }:
            opened = Call(index, item_id, call_id, name)
            events = opened.added(number)
            events += [opened.delta(number(), arguments)] if arguments else []
            events += opened.done(number, finished=finished)
        case {
            "type": "mcp_call",
            "id": str(item_id),
            "name": str(name),
            "arguments": str(arguments),
            "server_label": str(label),
            "output": str() | None as output,
        }:
            opened = Activity(index, item_id, name, arguments, label)
            events = opened.added(number)
            events += opened.done(number, output, _tool_error(item))
        case _:
            return []
    if not events or opened.item != item:
        return []
    return [*events, OutputItemDone(number(), index, item)]


def _message(opened: Message, content: list[Any], number: Next) -> list[StreamEvent]:
    """Return the events of a message up to its last part, left open; none for parts of other kinds."""
    events = opened.added(number)
    for position, part in enumerate(content):
        annotations: list[Any] = []
        match part:
            case {"type": "output_text" as kind, "text": str(text), "annotations": list(found)}:
                annotations = found
            case {"type": "refusal" as kind, "refusal": str(text)}:
                pass
            case _:
                return []
        events += opened.part_done(number) if position else []
        events += opened.part_added(number, kind)
        events += [opened.delta(number(), text)] if text else []
        events += [opened.annotate(number, annotation) for annotation in annotations]
    return events if content else []


def _reasoning(opened: Reasoning, summary: list[Any], number: Next) -> list[StreamEvent]:
    """Return the events of a reasoning item up to its last part, left open; none for other parts."""
    events = opened.added(number)
    for position, part in enumerate(summary):
        match part:
            case {"type": "summary_text", "text": str(text)}:
                events += opened.part_done(number) if position else []
                events += opened.delta(number, text)
            case _:
                return []
    return events if summary else []


def _tool_error(item: Item) -> str | None:
    match item.get("error"):
        case {"content": [{"text": str(text)}]}:
            return text
        case _:
            return None
