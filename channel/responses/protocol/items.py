"""Items: the units of input, history and output; known types are checked, unknown ones carried through."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias


Item: TypeAlias = dict[str, Any]
"""One item in the Responses API's shape: open, since OpenAI adds item types and fields every month."""


def message(role: str, text: str) -> Item:
    """Return a message item whose content is one text part."""
    return {"type": "message", "role": role, "content": [text_part(role, text)]}


def text_part(role: str, text: str) -> Item:
    """Return the text part that a message of this role holds."""
    if role == "assistant":
        return output_text(text)
    return {"type": "input_text", "text": text}


def output_text(text: str, annotations: Iterable[Mapping[str, Any]] = ()) -> Item:
    """Return an `output_text` part with the fields that both specifications require."""
    return {
        "type": "output_text",
        "text": text,
        "annotations": [*annotations],
        "logprobs": [],
    }


def text_of(item: Mapping[str, Any]) -> str:
    """Return the text of a message, its parts joined; content may also be a plain string."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    parts = (part for part in content or () if isinstance(part, Mapping))
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def finished(items: Iterable[Item]) -> Iterator[Item]:
    """Return the items that later turns see: a call that was cut off is not among them."""
    return (
        item
        for item in items
        if item["type"] != "function_call" or item.get("status") != "incomplete"
    )
