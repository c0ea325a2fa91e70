"""The app that the tests have AWS's emulator invoke: plain ASGI, one function a path."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.types import Receive, Scope, Send


MEGABYTES: Final = 4
PIECE: Final = bytes(range(256)) * 256
"""64 KB with every byte, so that no door can take it for text."""

_SIZE: Final = MEGABYTES * 1024 * 1024


class AppError(Exception):
    """What an app of these fails with."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve `PATHS`."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    else:
        await PATHS[scope["path"]](scope, receive, send)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell what was asked, as JSON."""
    body = (await receive())["body"]
    seen = {
        "method": scope["method"],
        "query": scope["query_string"].decode(),
        "body": base64.b64encode(body).decode(),
    }
    await _start(send, (b"content-type", b"application/json"))
    await _say(send, json.dumps(seen).encode(), more=False)


async def _large(_scope: Scope, _receive: Receive, send: Send) -> None:
    await _start(send)
    for _ in range(_SIZE // len(PIECE)):
        await _say(send, PIECE)
    await _say(send, more=False)


async def _empty(_scope: Scope, _receive: Receive, send: Send) -> None:
    await _start(send)
    await _say(send, more=False)


async def _missing(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer 404, with headers that may be told once and cookies that may not."""
    headers = [
        *((b"content-type", b"text/plain"), (b"vary", b"origin"), (b"vary", b"accept")),
        *((b"set-cookie", b"a=1; Path=/"), (b"set-cookie", b"b=2; HttpOnly")),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await _say(send, b"gone", more=False)


async def _fails(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AppError("nobody shall read this")


async def _fails_on_the_way(_scope: Scope, _receive: Receive, send: Send) -> None:
    await _start(send)
    await _say(send, b"half")
    raise AppError("nobody shall read this")


async def _gated(_scope: Scope, receive: Receive, send: Send) -> None:
    """Begin to reply, then wait for the peer at the address in the body; whatever it says is the end."""
    host, _, port = (await receive())["body"].decode().partition(":")
    await _start(send)
    await _say(send, b"in ")
    reader, writer = await asyncio.open_connection(host, int(port))
    said = await reader.read()
    writer.close()
    await _say(send, said, more=False)


async def _second(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Stream for a second."""
    await _start(send)
    for _ in range(10):
        await asyncio.sleep(0.1)
        await _say(send, b"x" * 100)
    await _say(send, more=False)


PATHS: Final[Mapping[str, Callable[[Scope, Receive, Send], Awaitable[Any]]]] = {
    "/echo": _echo,
    "/large": _large,
    "/empty": _empty,
    "/missing": _missing,
    "/fails": _fails,
    "/fails-on-the-way": _fails_on_the_way,
    "/gated": _gated,
    "/second": _second,
}


async def _start(send: Send, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [*headers]})


async def _say(send: Send, body: bytes = b"", *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
