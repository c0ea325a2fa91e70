"""What of a conversation a memory beside the host's holds, as a mark that is kept with it: pure.

A history whose mark is another has lost some of it (items were deleted, or gave way to a summary or to a
window): what remembers the rest must not be gone on with.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from channel.agent import AgentEvent, OutputItem, RefusalDelta, TextDelta, Turn
from channel.agents.reading import parts_of
from channel.responses.protocol.items import Item


_ANSWERS = frozenset({"function_call_output", "mcp_approval_response"})


def mark_of(turn: Turn, said: str) -> dict[str, Any]:
    """Return the mark of a turn that has said this, as JSON.

    The items that the turn was given are in it by their ids; those that it says have none yet, and are
    there by their text.
    """
    return {
        "items": _ids_digest(turn.items),
        "count": len(turn.items),
        "said": _digest(said),
        "length": len(said),
    }


def news(turn: Turn, mark: Mapping[str, Any]) -> list[Item] | None:
    """Return the items that came after the mark: this turn's input, as a rule; None where some are gone.

    Before it in the history may be what was added to a conversation, or was given in a turn that the
    agent had no part in. What the turn of the mark itself said is no news.
    """
    count = mark.get("count")
    if not isinstance(count, int) or count > len(turn.history):
        return None
    before, since = turn.history[:count], turn.history[count:]
    end = next((index for index, item in enumerate(since) if _is_given(item)), len(since))
    said = _text(since[:end])[: mark["length"]]
    if (_ids_digest(before), _digest(said)) != (mark["items"], mark["said"]):
        return None
    return [*since[end:], *turn.input]


def text_in(event: AgentEvent) -> str:
    """Return the text of an answer that an event adds to it."""
    match event:
        case str():
            return event
        case TextDelta(text) | RefusalDelta(text):
            return text
        case OutputItem(item):
            return _text([{**item}])
        case _:
            return ""


def _text(items: Iterable[Item]) -> str:
    parts = (part for item in items if item.get("type") == "message" for part in parts_of(item))
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)


def _is_given(item: Item) -> bool:
    if item.get("type") == "message":
        return item.get("role") != "assistant"
    return item.get("type") in _ANSWERS


def _ids_digest(items: Sequence[Item]) -> str:
    return _digest("\n".join(str(item.get("id")) for item in items))


def _digest(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()[:32]
