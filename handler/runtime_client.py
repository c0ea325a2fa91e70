"""Connections to the Runtime API: HTTP/1.1 on asyncio transports, with back-pressure."""

import asyncio
from collections.abc import Callable
from typing import Final

from handler.runtime_api import Reply, ReplyReader, RuntimeApiError


_LOST: Final = "The connection to the Runtime API was closed"


class Connection(asyncio.Protocol):
    """Writes requests and reads their replies, one at a time; made by `Connection.open`.

    It is closed by an error, by a reply that says so, and by `close`.
    """

    def __init__(self) -> None:
        """Await the transport."""
        self._reader = ReplyReader()
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[Reply] | None = None
        self._room: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._is_unasked = False

    @classmethod
    async def open(cls, address: str) -> "Connection":
        """Connect to `host:port`; raises `OSError`."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, host, int(port))
        return connection

    @property
    def is_usable(self) -> bool:
        """Whether a request can be written to it."""
        return self._transport is not None and not self._is_unasked

    @property
    def is_answered(self) -> bool:
        """Whether the reply is there already, or never will be."""
        return self._reply is None or self._reply.done()

    async def ask(self, request: bytes) -> Reply:
        """Write a request and read its reply; raises `OSError` and `RuntimeApiError`."""
        self.begin(request)
        return await self.reply()

    def begin(self, request: bytes) -> None:
        """Write a request, or the beginning of one; raises `OSError`."""
        self._reply = self._loop.create_future()
        if self._transport is None:
            raise ConnectionResetError(_LOST)
        self._transport.write(request)

    def write(self, data: bytes) -> None:
        """Write more of the request that was begun."""
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until there is room for more.

        Raises `OSError` where the reply came before the request was complete: it was refused.
        """
        if self._room is not None and not self.is_answered:
            await self._room
        if self.is_answered:
            raise ConnectionResetError(_LOST)

    def on_answered(self, callback: Callable[[], None]) -> None:
        """Call back when the reply is there, or never will be."""
        if self._reply is not None:
            self._reply.add_done_callback(lambda _: callback())

    async def reply(self) -> Reply:
        """Read the reply; raises `OSError` and `RuntimeApiError`."""
        if self._reply is None:
            raise ConnectionResetError(_LOST)
        reply = await self._reply
        if reply.is_last:
            self.close()
        return reply

    def close(self) -> None:
        """Close it at once; what was not written never is."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read on; a reply also ends the wait for room."""
        try:
            reply = self._reader.feed(data)
        except RuntimeApiError as error:
            self._fail(error)
            self.close()
            return
        if self._reply is None or self._reply.done():
            self._is_unasked = True  # whatever it is, nothing can be matched to it any more
        elif reply is not None:
            self._reply.set_result(reply)
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is awaited."""
        self._transport = None
        self._fail(exc if isinstance(exc, OSError) else ConnectionResetError(_LOST))

    def pause_writing(self) -> None:
        """Let `drain` wait."""
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let `drain` go on."""
        self._make_room()

    def _fail(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
            self._reply.exception()  # it may never be awaited, which is no fault
        self._make_room()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)


class Line:
    """A connection that is kept from request to request, and made again where it was lost."""

    def __init__(self, address: str) -> None:
        """Connect at the first request."""
        self._address = address
        self._connection: Connection | None = None

    async def ask(self, request: bytes) -> Reply:
        """Write a request and read its reply; raises `OSError` and `RuntimeApiError`."""
        if self._connection is None or not self._connection.is_usable:
            self._connection = await Connection.open(self._address)
        return await self._connection.ask(request)

    def drop(self) -> None:
        """Close the connection; the next request makes another."""
        if self._connection is not None:
            self._connection.close()
