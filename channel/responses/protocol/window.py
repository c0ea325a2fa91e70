"""The context window: which items an agent is given where a compaction, or a limit, leaves some out.

Everything that is stored, listed and sent stays as it is; a window is only what the agent sees of it.

A compaction item stands for all before it, in history and input alike. What still counts of that:
system and developer messages, the calls that are answered after the item, and the `kept` items
directly before it. The newest compaction item decides; older ones count nothing any more.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item, message


COMPACTION: Final = "compaction"
MAX_KEPT_TOKENS: Final = 20_000
"""Tokens (estimated) of the user's messages that a compacted window keeps word for word."""
MAX_KEPT_BYTES: Final = 1024 * 1024
"""Their size as JSON, which images may fill long before the tokens do."""

_HEADING: Final = "Summary of the conversation before this point:"

_encode = msgspec.json.Encoder().encode


class Compacted(Struct, frozen=True):
    """What a compaction item holds, under its seal.

    `covers_kept` says whether the summary tells of the kept items too: they come before it then,
    and after it otherwise.
    """

    summary: str
    kept: int = 0
    covers_kept: bool = False


class Window(Struct, frozen=True):
    """What an agent is given instead of the whole history and input."""

    history: list[Item]
    input: list[Item]


_decode = msgspec.json.Decoder(Compacted).decode


def packed(compacted: Compacted) -> bytes:
    """Return what is sealed into a compaction item."""
    return _encode(compacted)


def unpacked(data: bytes) -> Compacted:
    """Return what was sealed."""
    return _decode(data)


def windowed(
    history: Sequence[Item], given: Sequence[Item], position: int, compacted: Compacted
) -> Window:
    """Return what is seen of history and given input after their newest compaction.

    That is the item at `position` of both together; its summary becomes a developer message. What
    follows the summary stays history or input, as it was.
    """
    items = [*history, *given]
    first = max(0, position - compacted.kept)
    older, kept = items[:first], [item for item in items[first:position] if not _is_seal(item)]
    start = position if compacted.covers_kept else first
    following = [
        (index, item)
        for index, item in enumerate(items[start:], start)
        if index > position or not (index == position or _is_seal(item))
    ]
    asked = _call_ids(item for _, item in following if _is_output(item))
    calls = [item for item in older if _is_call(item) and item.get("call_id") in asked]
    before = [item for item in older if _is_standing(item)]
    if compacted.covers_kept:
        before += kept
    return Window(
        [
            *before,
            _summary(items[position], compacted.summary),
            *calls,
            *(item for index, item in following if index < len(history)),
        ],
        [item for index, item in following if index >= len(history)],
    )


def unanswered_from(items: Sequence[Item]) -> int:
    """Return the index from which on items are what the agent has not answered yet.

    That is what came after its last word: messages to it, and outputs together with the calls that
    they answer and the reasoning before those.
    """
    start = len(items)
    while start > 0 and _is_clients(items[start - 1]):
        start -= 1
    answered = _call_ids(item for item in items[start:] if _is_output(item))
    for index, item in enumerate(items[:start]):
        if _is_call(item) and item.get("call_id") in answered:
            start = index
            break
    while start > 0 and items[start - 1].get("type") == "reasoning":
        start -= 1
    return start


def kept_messages(items: Sequence[Item], tokens_of: Callable[[Item], int]) -> list[Item]:
    """Return the user's last messages, as many as a compacted window keeps word for word."""
    kept: list[Item] = []
    tokens = size = 0
    for item in reversed(items):
        if item.get("type") != "message" or item.get("role") != "user":
            continue
        tokens += tokens_of(item)
        size += len(_encode(item))
        if tokens > MAX_KEPT_TOKENS or size > MAX_KEPT_BYTES:
            break
        kept.insert(0, item)
    return kept


def without_oldest(window: Window, count: int) -> Window:
    """Return the window without the `count` oldest items of its history.

    System and developer messages stay, and so do calls that the input answers. An output goes with
    its call.
    """
    pinned = _call_ids(item for item in window.input if _is_output(item))
    gone: set[str] = set()
    left: list[Item] = []
    for index, item in enumerate(window.history):
        call_id = item.get("call_id")
        if _is_standing(item) or (_is_call(item) and call_id in pinned):
            left.append(item)
        elif index < count:
            if _is_call(item) and isinstance(call_id, str):
                gone.add(call_id)
        elif not (_is_output(item) and call_id in gone):
            left.append(item)
    return Window(left, window.input)


def not_ours(where: str) -> RequestError:
    """Return the 400 that a foreign, a damaged and an invented compaction item get alike."""
    where = f"{where}.encrypted_content"
    return RequestError(
        f"Invalid value for '{where}': the compaction item is not one that was given to you.",
        param=where,
        code="invalid_value",
    )


def _summary(item: Item, text: str) -> Item:
    _, _, own = str(item.get("id", "")).partition("_")
    summary = message("developer", f"{_HEADING}\n\n{text}")
    return {"id": f"msg_{own}", "status": "completed", **summary}


def _is_seal(item: Item) -> bool:
    return item.get("type") == COMPACTION


def _is_standing(item: Item) -> bool:
    return item.get("type") == "message" and item.get("role") in ("system", "developer")


def _is_clients(item: Item) -> bool:
    """Whether a client made the item, as far as its type tells."""
    if item.get("type") == "message":
        return item.get("role") != "assistant"
    return _is_output(item) or item.get("type") == "mcp_approval_response"


def _is_output(item: Item) -> bool:
    return str(item.get("type")).endswith("_output")


def _is_call(item: Item) -> bool:
    return str(item.get("type")).endswith("_call")


def _call_ids(items: Iterable[Item]) -> set[Any]:
    return {item["call_id"] for item in items if isinstance(item.get("call_id"), str)}
