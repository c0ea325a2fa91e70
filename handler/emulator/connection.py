"""The server's side of one HTTP connection, for the Runtime API: h11 over asyncio's streams."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import h11


_READ_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 1024 * 1024  # and of trailers, in which a whole error report may be
_FAREWELL_BYTES: Final = 256 * 1024
_FAREWELL_S: Final = 0.5
_LINGER_NOT: Final = struct.pack("ii", 1, 0)
_Result = TypeVar("_Result")


class Connection:
    """Reads requests and answers them; `OSError` is what its end raises."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connected socket's streams."""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._reader = reader
        self._writer = writer
        self.trailers: dict[str, str] = {}
        """Of the request whose body was read to its end."""

    async def request(self) -> h11.Request | None:
        """Read the next request's head; None where there is none."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        if self._http.our_state is not h11.IDLE:
            return None
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event if isinstance(event, h11.Request) else None

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the request's body as it comes, no further than it is asked for."""
        while True:
            pieces = []
            while isinstance(event := self._http.next_event(), h11.Data):
                pieces.append(bytes(event.data))
            if pieces:
                yield b"".join(pieces)  # boundaries of chunks mean nothing
            if event is not h11.NEED_DATA:
                break
            self._http.receive_data(await self._reader.read(_READ_BYTES))
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError
        self.trailers = fields(event)

    async def whole_body(self, limit: int = 0) -> bytes:
        """Read the request's body; one that is longer ends the connection."""
        body = bytearray()
        async for data in self.body():
            body += data
            if len(body) > limit:
                raise ConnectionResetError
        return bytes(body)

    async def answer(self, status: int, body: bytes, more: Mapping[str, str] | None = None) -> None:
        """Answer the request; one that was not read to its end is the last of this connection."""
        is_read = self._http.their_state in (h11.DONE, h11.MUST_CLOSE)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if not is_read:
            headers["connection"] = "close"
        head = h11.Response(status_code=status, headers=[*{**headers, **(more or {})}.items()])
        events: list[h11.Event] = [head, h11.Data(data=body), h11.EndOfMessage()]
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        await self._writer.drain()
        if not is_read:
            await self._see_off()

    async def while_open(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Await something as long as the client waits, too."""
        task, gone = asyncio.create_task(work), asyncio.create_task(self._reader.read(1))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ConnectionResetError
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    def reset(self) -> None:
        """End the connection as a network does that breaks down."""
        if self._writer.is_closing():
            return
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._writer.transport.abort()

    async def _see_off(self) -> None:
        # Closing at once would reset the connection, and the answer could get lost. Lambda's server
        # is written in Go, which reads so much more and waits so long.
        self._writer.write_eof()
        with suppress(TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._reader.readexactly(_FAREWELL_BYTES)
                await asyncio.Event().wait()


def fields(message: h11.Request | h11.EndOfMessage) -> dict[str, str]:
    """Return the headers of a request, or its trailers, by their lower-case names."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in message.headers}
