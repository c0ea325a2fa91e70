"""Input items: from what clients send to one normal form, with ids, references and calls resolved."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from channel.responses.protocol import ids
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item, message, output_text, text_part
from channel.responses.protocol.shapes import checked, missing


REFERENCE: Final = "item_reference"

_WITH_STATUS: Final = frozenset({"message", "function_call", "function_call_output"})

# OpenAI takes 64 characters; the ids of some models are longer, and come back as we gave them.
_CallId = Annotated[str, Meta(min_length=1, max_length=256)]


class _Identified(Struct, frozen=True, gc=False):
    id: Annotated[str, Meta(max_length=256)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class _Message(_Identified, frozen=True, kw_only=True, gc=False):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]


class _FunctionCall(_Identified, frozen=True, kw_only=True, gc=False):
    call_id: _CallId
    name: str
    arguments: str


class _FunctionCallOutput(_Identified, frozen=True, kw_only=True, gc=False):
    call_id: _CallId
    output: str | list[dict[str, Any]]


class _Reasoning(_Identified, frozen=True, kw_only=True, gc=False):
    summary: list[dict[str, Any]]
    encrypted_content: str | None = None


class _Compaction(_Identified, frozen=True, kw_only=True, gc=False):
    encrypted_content: str


class _Reference(Struct, frozen=True, gc=False):
    id: Annotated[str, Meta(min_length=1, max_length=256)]


class _Text(Struct, frozen=True, gc=False):
    text: str


class _Refusal(Struct, frozen=True, gc=False):
    refusal: str


class _Image(Struct, frozen=True, gc=False):
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


class _File(Struct, frozen=True, gc=False):
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None


_ITEM_SHAPES: Final[Mapping[str, type[Struct]]] = MappingProxyType(
    {
        "function_call": _FunctionCall,
        "function_call_output": _FunctionCallOutput,
        "reasoning": _Reasoning,
        "compaction": _Compaction,
        REFERENCE: _Reference,
    }
)
_PART_SHAPES: Final[Mapping[str, type[Struct]]] = MappingProxyType(
    {
        "input_text": _Text,
        "output_text": _Text,
        "text": _Text,
        "summary_text": _Text,
        "reasoning_text": _Text,
        "refusal": _Refusal,
        "input_image": _Image,
        "input_file": _File,
    }
)


def input_items(given: str | Sequence[dict[str, Any]] | None, where: str = "input") -> list[Item]:
    """Return `input` in normal form: typed items, content as parts; unknown items as they are."""
    if not given:
        return []
    if isinstance(given, str):
        return [message("user", given)]
    return [_item(item, f"{where}[{i}]") for i, item in enumerate(given)]


def with_ids(items: Iterable[Item], body: str, taken: set[str]) -> list[Item]:
    """Return the items each with an id that is not `taken`, and with a status where it belongs.

    A client's own id stays; a second use of it gets one of ours, so that every id is a cursor.
    """
    identified: list[Item] = []
    for position, item in enumerate(items):
        identifier = item.get("id")
        if not isinstance(identifier, str) or not identifier or identifier in taken:
            identifier = ids.item_id(item["type"], body, position)
        taken.add(identifier)
        if item["type"] in _WITH_STATUS:
            status = item.get("status") or "completed"
            identified.append({**item, "id": identifier, "status": status})
        else:
            identified.append({**item, "id": identifier})
    return identified


def require_paired_calls(history: Sequence[Item], given: Sequence[Item]) -> None:
    """Refuse an output without its call, and a call that is left without an output (400, `input`)."""
    pending, stray = unpaired_calls(chain(history, given))
    for call_id in stray:
        msg = f"No tool call found for function call output with call_id {call_id}."
        raise RequestError(msg, param="input")
    for call_id in pending:
        msg = f"No tool output found for function call {call_id}."
        raise RequestError(msg, param="input")


def unpaired_calls(items: Iterable[Item]) -> tuple[Collection[str], Collection[str]]:
    """Return the ids of calls without an output, and of outputs without a call before them, in order."""
    pending: dict[str, None] = {}
    stray: dict[str, None] = {}
    answered: set[str] = set()
    for item in items:
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            continue
        if item["type"] == "function_call":
            pending[call_id] = None
        elif item["type"] == "function_call_output":
            if call_id not in pending and call_id not in answered:
                stray[call_id] = None
            pending.pop(call_id, None)
            answered.add(call_id)
    return pending.keys(), stray.keys()


def _item(given: dict[str, Any], where: str) -> Item:
    item_type = given.get("type")
    if item_type is None:
        # Clients leave the type off messages, and off references.
        item_type = "message" if "role" in given else REFERENCE if "id" in given else None
    if item_type is None:
        raise missing(f"{where}.type")
    if not isinstance(item_type, str) or not item_type:
        msg = f"Invalid type for '{where}.type': expected a string."
        raise RequestError(msg, param=f"{where}.type", code="invalid_type")
    if item_type == "message":
        return _message(given, where)
    shape = _ITEM_SHAPES.get(item_type)
    if shape is not None:
        checked(given, shape, where)
    item = {**given, "type": item_type}
    if item_type == "function_call_output" and not isinstance(given["output"], str):
        item["output"] = _parts(given["output"], f"{where}.output")
    if item_type == "reasoning":
        _parts(given["summary"], f"{where}.summary")
    return item


def _message(given: dict[str, Any], where: str) -> Item:
    shape = checked(given, _Message, where)
    content = shape.content
    parts = (
        [text_part(shape.role, content)]
        if isinstance(content, str)
        else _parts(content, f"{where}.content")
    )
    # `text` is an older name, which the API's own types do not know.
    parts = [text_part(shape.role, p["text"]) if p["type"] == "text" else p for p in parts]
    known = {key: value for key, value in given.items() if value is not None}
    return {**known, "type": "message", "content": parts}


def _parts(given: Sequence[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(given)]


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    part_type = part.get("type")
    if not isinstance(part_type, str):
        raise missing(f"{where}.type")
    shape = _PART_SHAPES.get(part_type)
    if shape is None:
        return part
    checked(part, shape, where)
    if part_type == "output_text":
        return {**output_text(part["text"]), **{k: v for k, v in part.items() if v is not None}}
    if part_type == "input_image":
        return {**part, "detail": part.get("detail") or "auto"}
    return part
