"""Connections to the Runtime API: HTTP/1.1 on non-blocking sockets, so that no byte waits in this process."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from socket import IPPROTO_TCP, SOCK_STREAM, TCP_NODELAY, socket
from typing import Final

from handler.runtime_api import Reply, ReplyReader


_LOST: Final = "The connection to the Runtime API was closed"
_READ_BYTES: Final = 256 * 1024


class Connection:
    """Writes requests and reads their replies, one at a time; made by `Connection.open`."""

    def __init__(self, sock: socket) -> None:
        """Take a connected socket."""
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._reader = ReplyReader()
        self._reading: asyncio.Task[Reply] | None = None
        self.is_closed = False

    @classmethod
    async def open(cls, address: str) -> "Connection":
        """Connect to `host:port`; raises `OSError`."""
        host, _, port = address.rpartition(":")
        sock = socket(type=SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @property
    def is_answered(self) -> bool:
        """Whether the reply to the request that was begun is there, or never will be."""
        return self._reading is not None and self._reading.done()

    async def ask(self, request: bytes) -> Reply:
        """Write a request and read its reply; raises `OSError` and `RuntimeApiError`."""
        try:
            await self._loop.sock_sendall(self._socket, request)
            return await self._read()
        except BaseException:
            self.close()
            raise

    async def begin(self, request: bytes, on_answered: Callable[[], None]) -> None:
        """Write the beginning of a request; call back when it is answered, or never will be."""
        self._reading = self._loop.create_task(self._read())
        self._reading.add_done_callback(lambda done: _notice(done, on_answered))
        await self.write(request)

    async def write(self, data: bytes) -> None:
        """Write more of a request that was begun, as fast as it is read.

        Raises `OSError` where it cannot be, or was answered before it was complete: it is refused.
        """
        if self._reading is None or self._reading.done():
            raise ConnectionResetError(_LOST)
        with suppress(BlockingIOError):
            data = data[self._socket.send(data) :]
        if not data:
            return
        rest = self._loop.create_task(self._loop.sock_sendall(self._socket, data))
        try:
            await asyncio.wait({rest, self._reading}, return_when=asyncio.FIRST_COMPLETED)
            if not rest.done():
                raise ConnectionResetError(_LOST)
            rest.result()
        finally:
            rest.cancel()

    async def reply(self) -> Reply:
        """Read the reply to the request that was begun; raises `OSError` and `RuntimeApiError`."""
        if self._reading is None:
            raise ConnectionResetError(_LOST)
        return await self._reading

    def close(self) -> None:
        """Close it."""
        self.is_closed = True
        if self._reading is not None:
            self._reading.cancel()
        # At once: its number may be the next socket's, which must not lose what it waits for.
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        self._socket.close()

    async def _read(self) -> Reply:
        reply = None
        while reply is None:
            data = await self._loop.sock_recv(self._socket, _READ_BYTES)
            if not data:
                raise ConnectionResetError(_LOST)
            reply = self._reader.feed(data)
        return reply


def _notice(reading: asyncio.Task[Reply], on_answered: Callable[[], None]) -> None:
    if not reading.cancelled():
        reading.exception()  # it may never be awaited, which is no fault
    on_answered()


class Line:
    """A connection that is kept from request to request, and made again where it was lost."""

    def __init__(self, address: str) -> None:
        """Connect at the first request."""
        self._address = address
        self._connection: Connection | None = None

    async def ask(self, request: bytes) -> Reply:
        """Write a request and read its reply; raises `OSError` and `RuntimeApiError`."""
        if self._connection is None or self._connection.is_closed:
            self._connection = await Connection.open(self._address)
        reply = await self._connection.ask(request)
        if reply.is_last:
            self._connection.close()
        return reply

    def drop(self) -> None:
        """Close the connection; the next request makes another."""
        if self._connection is not None:
            self._connection.close()
