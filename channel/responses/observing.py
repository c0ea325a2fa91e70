"""Observers: what becomes of a turn's stream events. SSE is one; here are the contract and nobody."""

from collections.abc import Sequence
from typing import Protocol

from channel.responses.protocol.events import StreamEvent


class Observer(Protocol):
    """What becomes of the stream events."""

    @property
    def has_ready(self) -> bool:
        """Whether there is something to flush."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether nobody reads any more."""
        ...

    def take(self, events: Sequence[StreamEvent], /) -> bool:
        """Add events; return whether they should be flushed now."""
        ...

    async def flush(self) -> None:
        """Bring out what was taken."""
        ...

    async def close(self) -> None:
        """Bring out what was taken; nothing follows."""
        ...


class Unobserved:
    """A stream that nobody watches: its response is all that counts."""

    has_ready = False
    is_gone = False

    def take(self, _events: Sequence[StreamEvent], /) -> bool:
        """Drop the events."""
        return False

    async def flush(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""
