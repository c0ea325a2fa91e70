"""What is remembered of stored turns: the items that the next one is given, and what the agent kept."""

from collections.abc import Iterable, Sequence
from typing import Any

from channel.ports import StoredTurn
from channel.responses.protocol.items import Item, finished


def history_of(turns: Iterable[StoredTurn]) -> list[Item]:
    """Return the items of the turns in order, without the calls that a turn left unfinished.

    They begin after the newest turn that ends what was remembered.
    """
    history: list[Item] = []
    for turn in turns:
        if turn.resets:
            history.clear()
            continue
        history += turn.input
        history += finished(turn.response.output)
    return history


def state_after(turns: Sequence[StoredTurn]) -> dict[str, Any] | None:
    """Return what the agent kept in the newest of the turns that has it kept anything."""
    for turn in reversed(turns):
        if turn.resets:
            return None
        if turn.state is not None:
            return turn.state
    return None
