"""What a turn has said, from its stored events: for a turn that was cut off and is ended by others."""

from collections.abc import Iterable
from itertools import count
from typing import Any, Final

import msgspec

from channel.responses.protocol.items import Item
from channel.responses.protocol.open_items import Message, Next


_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def salvaged(events: Iterable[bytes]) -> list[Item]:
    """Return the output items of the events (each as JSON): done ones, and an open message so far.

    Events may come again, as those of batches do that overlap; they must be in order.
    """
    items: dict[int, Item] = {}
    messages: dict[int, Message] = {}
    number, last = count().__next__, -1
    for data in events:
        event = _decode(data)
        if event["sequence_number"] <= last:
            continue
        last = event["sequence_number"]
        index = event.get("output_index", -1)
        match event["type"]:
            case "response.output_item.added" if event["item"]["type"] == "message":
                messages[index] = Message(index, event["item"]["id"])
            case "response.output_item.done":
                messages.pop(index, None)
                items[index] = event["item"]
            case _ if index in messages:
                _grow(messages[index], event, number)
    for index, message in messages.items():
        if message.kind:
            message.done(number, finished=False)
            items[index] = message.item
    return [item for _, item in sorted(items.items())]


def _grow(message: Message, event: dict[str, Any], number: Next) -> None:
    match event["type"]:
        case "response.content_part.added":
            if message.kind:
                message.part_done(number)
            message.part_added(number, event["part"]["type"])
        case "response.output_text.delta" | "response.refusal.delta":
            message.delta(number(), event["delta"])
        case "response.output_text.annotation.added":
            message.annotate(number, event["annotation"])
