"""Connections to the Runtime API: HTTP/1.1 on non-blocking sockets, so that no byte waits in this process."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from errno import EISCONN
from socket import IPPROTO_TCP, MSG_PEEK, SOCK_STREAM, TCP_NODELAY, socket
from typing import Any, Final

from handler.runtime_api import Reply, ReplyReader, RuntimeApiError


_LOST: Final = "The connection to the Runtime API was closed"
_YIELD_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 64 * 1024  # more are taken from the system anew each time, which is slow


class Connection:
    """Writes requests and reads their replies, one at a time, once it is `open`."""

    def __init__(self, address: str) -> None:
        """Begin to connect to `host:port`; raises `OSError`."""
        host, _, port = address.rpartition(":")
        self._where = host, int(port)
        self._socket = socket(type=SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        try:
            self._socket.connect_ex(self._where)
        except OSError:
            self._socket.close()
            raise
        self._number = self._socket.fileno()
        self._loop = asyncio.get_running_loop()
        self._reader = ReplyReader()
        self._reply: asyncio.Future[Reply] | None = None
        self._rest: asyncio.Task[None] | None = None  # of what is being written
        self._unyielded = 0
        self.is_closed = False

    async def open(self) -> "Connection":
        """Connect; raises `OSError`."""
        try:
            # On one machine that is done by now, and the system says so when it is asked again.
            if self._socket.connect_ex(self._where) not in (0, EISCONN):
                await self._loop.sock_connect(self._socket, self._where)
            # Once for all replies: to listen anew for each would take longer than it takes to read it.
            self._loop.add_reader(self._number, self._read)
        except BaseException:
            self.close()
            raise
        return self

    @property
    def is_stale(self) -> bool:
        """Whether the other side has ended it, of which a process that was frozen knows nothing yet."""
        try:
            return not self._socket.recv(1, MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

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
        self._unyielded += len(data)
        with suppress(BlockingIOError):
            data = data[self._socket.send(data) :]
        if self._unyielded > _YIELD_BYTES and not data:
            # Whoever reads as fast as this is written must not keep everybody else waiting.
            await asyncio.sleep(0)
            self._unyielded = 0
        if data:
            self._unyielded = 0
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


class Line:
    """A poller's connections: one is kept from request to request, and made again where it was lost.

    A reply that streams has one of its own, which is ended with it.
    """

    def __init__(self, address: str) -> None:
        """Connect at the first request."""
        self._address = address
        self._connection: Connection | None = None
        self._spare: Connection | None = None
        self._wants_spare = False

    async def ask(self, request: bytes) -> Reply:
        """Write a request and read its reply; raises `OSError` and `RuntimeApiError`."""
        if self._connection is None or self._connection.is_closed:
            self._connection = await Connection(self._address).open()
        reply = await self._connection.ask(request)
        if reply.is_last:
            self._connection.close()
        return reply

    async def another(self) -> Connection:
        """Return another connection, which is the caller's to close; raises `OSError`."""
        self._wants_spare = True
        spare, self._spare = self._spare, None
        if spare is not None:
            if not spare.is_stale:
                return await spare.open()
            spare.close()
        return await Connection(self._address).open()

    def prepare(self) -> None:
        """Begin to connect already, while nobody waits for it, where another was wanted before."""
        if self._wants_spare and self._spare is None:
            with suppress(OSError):
                self._spare = Connection(self._address)

    def drop(self) -> None:
        """Close the connections; the next request makes another."""
        self._wants_spare = False
        for connection in (self._connection, self._spare):
            if connection is not None:
                connection.close()
        self._connection = self._spare = None
