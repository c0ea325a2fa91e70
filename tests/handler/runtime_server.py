"""Runtime APIs on 127.0.0.1 that tests script: what `next` hands out, and what came back, as it was written."""

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok"
PATH = "/2018-06-01/runtime"


@dataclass
class Request:
    """What a runtime wrote; `chunks` and `trailers` are those of a streamed reply."""

    target: str
    headers: dict[str, str]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    """A server whose every connection is served by this function, and then closed.

    What the function raises, the test raises, but not that the other side went away.
    """
    serving: list[asyncio.Task[None]] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.create_task(_served(serve, reader, writer)))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    try:
        async with asyncio.timeout(10):
            yield f"{host}:{port}"
    finally:
        listening.close()
        for task in serving:
            task.cancel()
        ends = await asyncio.gather(*serving, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _served(serve: Serve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await serve(reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def read_head(reader: asyncio.StreamReader) -> Request:
    """Read a request up to its body."""
    target, *lines = (await reader.readuntil(b"\r\n\r\n")).decode()[:-4].split("\r\n")
    return Request(target.removesuffix(" HTTP/1.1"), _fields(lines))


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    """Read one chunk; nothing is the last one, after which trailers and an empty line come."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    if size == 0:
        return b""
    data = await reader.readexactly(size)
    assert await reader.readexactly(2) == b"\r\n"
    return data


async def read_rest(reader: asyncio.StreamReader, request: Request) -> Request:
    """Read a request's body, however it is sent."""
    if request.headers.get("transfer-encoding") != "chunked":
        request.body = await reader.readexactly(int(request.headers.get("content-length", "0")))
        return request
    while data := await read_chunk(reader):
        request.chunks.append(data)
    lines = []
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        lines.append(line.decode().removesuffix("\r\n"))
    request.trailers = _fields(lines)
    request.body = b"".join(request.chunks)
    return request


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read a whole request."""
    return await read_rest(reader, await read_head(reader))


def reset(writer: asyncio.StreamWriter) -> None:
    """Cut a connection, so that the other side's next write fails."""
    peer: socket.socket = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def reply(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """Return a reply of the Runtime API's."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Lambda:
    """A Runtime API that hands out invocations in their order and keeps what it is told.

    Posts are answered 202, but for the statuses in `refusals`, which come first; 0 cuts the connection.
    """

    def __init__(self) -> None:
        self.told: asyncio.Queue[Request] = asyncio.Queue()
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.refusals: deque[int] = deque()
        self.connections = 0
        self._invocations: asyncio.Queue[bytes] = asyncio.Queue()

    def invoke(
        self, event: Any, request_id: str = "invocation-1", *, deadline_ms: int = 2**42, **more: str
    ) -> None:
        """Hand this event to whoever asks next; `more` is headers by their last words."""
        headers = {
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
            **{f"Lambda-Runtime-{name.replace('_', '-')}": value for name, value in more.items()},
        }
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        self._invocations.put_nowait(reply(200, body, headers))

    def answer_next(self, raw: bytes) -> None:
        """Answer whoever asks next with these bytes; with none, by closing the connection."""
        self._invocations.put_nowait(raw)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        while True:
            request = await read_request(reader)
            if request.target.endswith("/next"):
                self.asked.put_nowait(request.target)
                raw = await self._invocations.get()
            else:
                self.told.put_nowait(request)
                status = self.refusals.popleft() if self.refusals else 202
                raw = reply(status) if status else b""
            if not raw:
                reset(writer)
                return
            writer.write(raw)


def _fields(lines: list[str]) -> dict[str, str]:
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
