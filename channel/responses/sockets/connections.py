"""Ports of WebSocket connections that a gateway holds: where they are kept, and how they are reached."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from msgspec import Struct

from channel.auth import Caller
from channel.ports import StoredTurn
from channel.responses.sockets.connection import ConnectionState
from channel.responses.sockets.frames import Frame
from channel.responses.sockets.local_turns import LocalChain


_Result = TypeVar("_Result")

Change = Callable[[ConnectionState], Awaitable[_Result]]


class Connection(Struct, frozen=True):
    """An open connection: whose it is, and what it knows."""

    caller: Caller
    state: ConnectionState


class ConnectionStore(Protocol):
    """Connections by their ids, which the gateway makes and nobody else knows, with all that is theirs.

    Every method raises `StoreError` when the storage fails.
    """

    async def open(self, connection_id: str, connection: Connection, /) -> None:
        """Keep a new connection."""
        ...

    async def load(self, connection_id: str, /, *, is_strong: bool = True) -> Connection | None:
        """Return a connection, or None where it is closed; without `is_strong`, as it was a moment ago."""
        ...

    async def change(
        self, connection_id: str, change: Change[_Result], /
    ) -> tuple[Connection, _Result] | None:
        """Change the state; return the connection as it is then, and what `change` returned.

        `change` is called again where another invocation was faster. None where it is closed.
        """
        ...

    async def put_frame(self, connection_id: str, name: str, frame: Frame, /) -> None:
        """Keep a frame; the same one again changes nothing."""
        ...

    async def frame(self, connection_id: str, name: str, /) -> Frame | None:
        """Return a frame, or None where it is not kept."""
        ...

    async def drop_frame(self, connection_id: str, name: str, /) -> None:
        """Forget a frame, if it is there."""
        ...

    async def put_turn(
        self, connection_id: str, turn: StoredTurn, before: str | None, after: str | None, /
    ) -> str:
        """Keep a turn that only the connection knows, and return its place.

        It follows the turn at the place `before`, or the stored response `after`, or nothing.
        """
        ...

    async def turns(self, connection_id: str, place: str, /) -> LocalChain | None:
        """Return the chain that ends at a place, or None where it is not whole."""
        ...

    async def close(self, connection_id: str, /) -> None:
        """Forget a connection and all that is its own."""
        ...


class Push(Protocol):
    """The way from an invocation to who is at the other end of a connection."""

    max_bytes: int
    """The largest message that it carries."""

    async def send(self, connection_id: str, message: bytes, /) -> None:
        """Send one text message; raises `OSError` where nobody reads, or may not have got all of it."""
        ...

    async def close(self, connection_id: str, /) -> None:
        """Close a connection from this side; nothing happens where that fails."""
        ...
