"""Connections to the Runtime API: HTTP/1.1 on non-blocking sockets, so that no byte waits in this process."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from socket import IPPROTO_TCP, SOCK_STREAM, TCP_NODELAY, socket
from typing import Any, Final

from handler.runtime_api import Reply, ReplyReader, RuntimeApiError


_LOST: Final = "The connection to the Runtime API was closed"
_READ_BYTES: Final = 64 * 1024  # more are taken from the system anew each time, which is slow


class Connection:
    """Writes requests and reads their replies, one at a time; made by `Connection.open`."""

    def __init__(self, sock: socket) -> None:
        """Take a connected socket."""
        self._socket = sock
        self._number = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._reader = ReplyReader()
        self._reply: asyncio.Future[Reply] | None = None
        self._rest: asyncio.Task[None] | None = None  # of what is being written
        self.is_closed = False
        # Once for all replies: to listen anew for each would take longer than it takes to read it.
        self._loop.add_reader(self._number, self._read)

    @classmethod
    async def open(cls, address: str) -> "Connection":
        """Connect to `host:port`; raises `OSError`."""
        host, _, port = address.rpartition(":")
        where = host, int(port)
        sock = socket(type=SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            # On one machine that is all: asked a second time, the system says that it is done.
            if sock.connect_ex(where) and sock.connect_ex(where):
                await asyncio.get_running_loop().sock_connect(sock, where)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @property
    def is_answered(self) -> bool:
        """Whether the reply to the request that was begun is there, or never will be."""
        return self._reply is not None and self._reply.done()

    async def ask(self, request: bytes) -> Reply:
        """Write a request and read its reply; raises `OSError` and `RuntimeApiError`."""
        try:
            reply = self._awaited_reply()
            await self.write(request)
            return await reply
        except BaseException:
            self.close()
            raise

    async def begin(self, request: bytes, on_answered: Callable[[], None]) -> None:
        """Write the beginning of a request; call back when it is answered, or never will be."""
        self._awaited_reply().add_done_callback(lambda _: on_answered())
        await self.write(request)

    async def write(self, data: bytes) -> None:
        """Write more of a request that was begun, as fast as it is read.

        Raises `OSError` where it cannot be, or was answered before it was complete: it is refused.
        A write that is cancelled goes on all the same, before the next: half a chunk would make
        another out of whatever came after it.
        """
        await self._written()
        if self._reply is None or self._reply.done():
            raise ConnectionResetError(_LOST)
        with suppress(BlockingIOError):
            data = data[self._socket.send(data) :]
        if data:
            self._rest = self._loop.create_task(self._loop.sock_sendall(self._socket, data))
            self._rest.add_done_callback(_notice)
            await self._written()

    async def reply(self) -> Reply:
        """Read the reply to the request that was begun; raises `OSError` and `RuntimeApiError`."""
        if self._reply is None:
            raise ConnectionResetError(_LOST)
        return await self._reply

    def close(self) -> None:
        """Close it."""
        if self.is_closed:
            return
        self.is_closed = True
        self._break_off(ConnectionResetError(_LOST))
        if self._rest is not None:
            self._rest.cancel()
        # At once: its number may be the next socket's, which must not lose what it waits for.
        self._loop.remove_reader(self._number)
        self._loop.remove_writer(self._number)
        self._socket.close()

    def _awaited_reply(self) -> asyncio.Future[Reply]:
        self._reply = self._loop.create_future()
        self._reply.add_done_callback(_notice)
        return self._reply

    def _break_off(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)

    async def _written(self) -> None:
        while (rest := self._rest) is not None and self._reply is not None:
            either: set[asyncio.Future[Any]] = {rest, self._reply}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self.is_closed or not rest.done():
                raise ConnectionResetError(_LOST)
            if self._rest is rest:
                self._rest = None
            rest.result()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError(_LOST)
            reply = self._reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, RuntimeApiError) as error:
            self._break_off(error)
            self.close()
            return
        if reply is not None and self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)


def _notice(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()  # it may never be awaited, which is no fault


def _close(opened: asyncio.Task[Connection]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()


class Line:
    """A poller's connections: one is kept from request to request, and made again where it was lost.

    A reply that streams has one of its own, opened while nobody waits for it.
    """

    def __init__(self, address: str) -> None:
        """Connect at the first request."""
        self._address = address
        self._connection: Connection | None = None
        self._has_streamed = False
        self._opening: asyncio.Task[Connection] | None = None

    async def ask(self, request: bytes) -> Reply:
        """Write a request and read its reply; raises `OSError` and `RuntimeApiError`."""
        if self._connection is None or self._connection.is_closed:
            self._connection = await Connection.open(self._address)
        reply = await self._connection.ask(request)
        if reply.is_last:
            self._connection.close()
        return reply

    def open_ahead(self) -> None:
        """Open another connection soon, where one was wanted before."""
        if self._has_streamed and self._opening is None:
            self._opening = asyncio.create_task(Connection.open(self._address))
            self._opening.add_done_callback(_notice)

    async def another(self) -> Connection:
        """Return another connection, which is the caller's to close; raises `OSError`."""
        opening, self._opening, self._has_streamed = self._opening, None, True
        if opening is not None:
            with suppress(OSError):
                try:
                    connection = await opening
                except asyncio.CancelledError:
                    opening.add_done_callback(_close)  # it may be open by now
                    raise
                if not connection.is_closed:  # the process may have been frozen for hours
                    return connection
        return await Connection.open(self._address)

    def drop(self) -> None:
        """Close the connections; the next request makes another."""
        if self._connection is not None:
            self._connection.close()
        if self._opening is not None:
            self._opening.add_done_callback(_close)
            self._opening = None
