"""A small reply without anything around it, as an ASGI app and as a Lambda handler; and streams of bytes."""

import asyncio
from typing import Any, Final

from starlette.types import Receive, Scope, Send


REPLY: Final = b'{"ok":true}'
CHUNK: Final = b"x" * (64 * 1024)
_TENTHS: Final = 10


def handler(_event: Any, _context: Any) -> dict[str, Any]:
    """Answer as Lambda's doors take it."""
    headers = {"content-type": "application/json"}
    return {"statusCode": 200, "headers": headers, "body": REPLY.decode()}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream as many chunks as the path's number says, or for `/second`; else say the small reply."""
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    path = scope["path"].removeprefix("/")
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if path == "second":
        return await _second(send)
    if not path.isdecimal():
        return await send({"type": "http.response.body", "body": REPLY})
    for _ in range(int(path)):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    return await send({"type": "http.response.body"})


async def _second(send: Send) -> None:
    for _ in range(_TENTHS):
        await send({"type": "http.response.body", "body": REPLY, "more_body": True})
        await asyncio.sleep(1 / _TENTHS)
    await send({"type": "http.response.body"})


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
