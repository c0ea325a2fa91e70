"""What a turn has said, from its stored events: for a turn that was cut off and is ended by others."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from channel.responses.protocol.items import Item, output_text


_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def salvaged(events: Iterable[bytes]) -> list[Item]:
    """Return the output items of the events (each as JSON): done ones, and an open message's text."""
    items: dict[int, Item] = {}
    texts: dict[int, dict[int, str]] = {}
    for data in events:
        event = _decode(data)
        index = event.get("output_index", -1)
        match event["type"]:
            case "response.output_item.added":
                if event["item"]["type"] == "message":
                    items[index] = {**event["item"], "status": "incomplete"}
                    texts[index] = {}
            case "response.output_text.delta":
                part = event["content_index"]
                said = texts.setdefault(index, {})
                said[part] = said.get(part, "") + event["delta"]
            case "response.output_item.done":
                items[index] = event["item"]
                texts.pop(index, None)
    for index, said in texts.items():
        parts = [output_text(text) for _, text in sorted(said.items())]
        if index in items and parts:
            items[index] = {**items[index], "content": parts}
        else:
            items.pop(index, None)
    return [item for _, item in sorted(items.items())]
