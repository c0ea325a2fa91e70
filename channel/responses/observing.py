"""Observers: what becomes of a turn's stream events. SSE is one; here are the contract and nobody."""

from collections.abc import Callable, Sequence
from typing import Protocol

from channel.responses.protocol.events import StreamEvent


class Observer(Protocol):
    """What becomes of the stream events."""

    on_gone: Callable[[], None] | None
    """Called once where nobody reads any more."""

    @property
    def ready(self) -> Sequence[object]:
        """What is to be flushed."""
        ...

    def take(self, events: Sequence[StreamEvent], /) -> bool:
        """Add events; return whether they should be flushed now."""
        ...

    async def flush(self) -> None:
        """Bring out what was taken."""
        ...

    async def written(self) -> None:
        """Wait until nothing is on its way out."""
        ...

    async def close(self) -> None:
        """Bring out what was taken; nothing follows, and a second call does nothing."""
        ...

    def abandon(self) -> None:
        """Stop where it is, if it was not closed: no timer and no task is left behind."""
        ...


class Unobserved:
    """A stream that nobody watches: its response is all that counts."""

    ready = ()

    def __init__(self) -> None:
        """Watch nothing."""
        self.on_gone: Callable[[], None] | None = None

    def take(self, _events: Sequence[StreamEvent], /) -> bool:
        """Drop the events."""
        return False

    async def flush(self) -> None:
        """Do nothing."""

    async def written(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Do nothing."""
