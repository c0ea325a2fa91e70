"""The room for one history: how many bytes of it may be decoded, counted as they are. Pure.

What is stored is compressed, and a small request may go on with a hundred megabytes. The bound is
on the JSON of all turns that a turn goes on with, before any of it becomes objects.
"""

from collections.abc import Sequence
from typing import Final

from channel.ports import HistoryTooLargeError


MAX_HISTORY_BYTES: Final = 64 * 1024 * 1024
"""The largest history of one turn, as JSON; no single turn is larger."""


def newest_reset(resets: Sequence[bool]) -> int:
    """Return the index of the newest turn that resets, or 0: what is before it need not be decoded."""
    return next((index for index in reversed(range(len(resets))) if resets[index]), 0)


class HistoryRoom:
    """The bytes that are left for one history. One that `takes_first` takes its first turn anyway."""

    def __init__(self, *, takes_first: bool = False, times: int = 1) -> None:
        """Begin with all of the room, or that many times of it."""
        self._left = times * MAX_HISTORY_BYTES
        self._takes_first = takes_first

    def limit(self, most: int) -> int:
        """Return how many bytes the next turn may have, which is never more than `most`."""
        return most if self._takes_first else min(most, self._left)

    def require(self, size: int) -> None:
        """Raise `HistoryTooLargeError` where there is no room for that many bytes."""
        if size > self.limit(size):
            raise HistoryTooLargeError("A history is larger than what is decoded at once.")

    def take(self, size: int) -> None:
        """Count the bytes of a turn; raises `HistoryTooLargeError` where there is no room for it."""
        self.require(size)
        self._left = max(0, self._left - size)
        self._takes_first = False
