"""Turns that only one connection knows: those with `store: false`, as long as it lasts.

A chain of them may follow a stored response. What a connection can continue is the latest response
of each of its lanes; a chain is whole or not there.
"""

from typing import Final, Protocol

from msgspec import Struct

from channel.ports import StoredTurn
from channel.responses.protocol.response import Status


CONTINUABLE: Final = frozenset({Status.COMPLETED, Status.INCOMPLETE})


class LocalChain(Struct, frozen=True):
    """Turns that one connection knows, oldest first, and the stored response that they follow, if any."""

    turns: tuple[StoredTurn, ...] = ()
    after: str | None = None


class LocalTurns(Protocol):
    """What one turn sees of its connection's turns, and where it is kept itself."""

    async def chain(self, previous_response_id: str, /) -> LocalChain | None:
        """Return what the turn continues, or None where no lane has that as its latest.

        It is asked once. Raises `StoreError`.
        """
        ...

    async def keep(self, turn: StoredTurn, /) -> None:
        """Keep the finished turn as its lane's latest, unless it cannot be continued anyway.

        Raises `StoreError`.
        """
        ...
