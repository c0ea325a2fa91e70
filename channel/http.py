"""HTTP around the channels: request ids, bodies with a limit, and every error in OpenAI's shape."""

import logging
from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from random import getrandbits  # names, no secrets: Lambda names its own
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channel.faults import log_fault
from channel.ports import StoreError
from channel.responses.protocol.errors import RequestError, error_body


MAX_BODY_BYTES: Final = 6 * 1024 * 1024
"""What a Lambda invocation can carry; larger bodies are a 413 through every door."""

_HAS_BEGUN: Final = "lambda_responses.has_begun"
_BEGINNINGS: Final = frozenset(
    {"http.response.start", "websocket.http.response.start", "websocket.accept"}
)
_LOG: Final = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being served, as the client sees it in `x-request-id`."""


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class JSONReply:
    """A JSON reply as an ASGI app: a route may return it, and `send_to` it without one."""

    def __init__(
        self, content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Encode the content."""
        self.status = status
        self.body = _encode(content)
        self.headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
            *((name.lower().encode(), value.encode()) for name, value in (headers or {}).items()),
        ]

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the reply."""
        await self.send_to(send)

    async def send_to(self, send: Send) -> None:
        """Send the reply."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def error_reply(
    message: str,
    *,
    status: int,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONReply:
    """Return an error in OpenAI's shape."""
    body = error_body(message, status=status, param=param, code=code)
    return JSONReply(body, status=status, headers=headers)


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return the whole body; raises `RequestError` (413) as soon as it is known to be too large."""
    for name, value in scope["headers"]:
        # Not more digits than `int` takes.
        if name == b"content-length" and value.isdigit() and int(value[:20]) > MAX_BODY_BYTES:
            raise _too_large()
    message = await receive()
    body: bytes = _body_of(message)
    if not message.get("more_body") and len(body) <= MAX_BODY_BYTES:
        return body
    read = bytearray(body)
    while message.get("more_body"):
        if len(read) > MAX_BODY_BYTES:
            break
        message = await receive()
        read += _body_of(message)
    if len(read) > MAX_BODY_BYTES:
        raise _too_large()
    return bytes(read)


def new_request_id() -> str:
    """Return a name for a request that has none."""
    return f"req_{getrandbits(128):032x}"


class RequestIds:
    """ASGI middleware: an `x-request-id` on every reply; on Lambda it is the invocation's id."""

    def __init__(self, app: ASGIApp) -> None:
        """Name the requests of the app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request under its id."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        invocation = getattr(scope.get("aws.context"), "aws_request_id", None)
        identifier = invocation or new_request_id()
        header = (b"x-request-id", identifier.encode("latin-1", "replace"))

        def send_named(message: Message) -> Awaitable[None]:
            if message["type"] in _BEGINNINGS:
                scope[_HAS_BEGUN] = True
                message = {**message, "headers": [*message.get("headers", ()), header]}
            return send(message)

        if scope.get("method") == "HEAD":
            send = _without_body(send)
        token = request_id.set(identifier)
        try:
            await self._app(scope, receive, send_named)
        finally:
            request_id.reset(token)


class ErrorReplies:
    """ASGI middleware: whatever is raised below becomes a reply; nothing internal gets out."""

    def __init__(self, app: ASGIApp) -> None:
        """Answer for the app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or answer with what went wrong."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        is_upgrade = scope["type"] == "websocket"
        try:
            await self._app(scope, receive, send)
        except ClientGoneError:
            return
        except Exception as error:
            reply = reply_to(error)
            if _HAS_BEGUN in scope:
                raise
            await reply.send_to(_upgrade_refusal(scope, send) if is_upgrade else send)


def _upgrade_refusal(scope: Scope, send: Send) -> Send:
    """Return a `send` for the reply to an upgrade that is refused; not every server has one but a 403."""
    has_reply = "websocket.http.response" in scope.get("extensions", ())

    async def send_refusal(message: Message) -> None:
        if has_reply:
            await send({**message, "type": f"websocket.{message['type']}"})
        elif not message.get("more_body", True):
            await send({"type": "websocket.close"})

    return send_refusal


def _without_body(send: Send) -> Send:
    """Return a `send` for a HEAD request: servers drop its body by themselves, Lambda's doors do not."""

    def send_head(message: Message) -> Awaitable[None]:
        return send({**message, "body": b""} if "body" in message else message)

    return send_head


def reply_to(error: Exception) -> JSONReply:
    """Return the reply that tells an error; one that is ours is logged, and shows nothing of itself."""
    if isinstance(error, HTTPException):
        return _routing_reply(error)
    if isinstance(error, RequestError):
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None  # noqa: PLR2004
        return error_reply(
            error.message,
            status=error.status,
            param=error.param,
            code=error.code,
            headers={**(headers or {}), **error.headers},
        )
    log_fault(_LOG, "request failed", error)
    if isinstance(error, StoreError) and error.is_passing:
        # Nothing ran yet: the same request may well succeed in a moment.
        said = f"The server's storage is unavailable; please retry. Request id: {request_id.get()}"
        return error_reply(said, status=503, headers={"x-should-retry": "true"})
    said = f"The server had an error while processing your request. Request id: {request_id.get()}"
    return error_reply(said, status=500)


def _routing_reply(error: HTTPException) -> JSONReply:
    """Return Starlette's own errors: no such route, wrong method."""
    said = {
        404: "Unknown request URL. Please check the URL for typos.",
        405: "Method not allowed on this URL.",
    }.get(error.status_code, "The request cannot be served.")
    code = "unknown_url" if error.status_code == 404 else None  # noqa: PLR2004 - not found
    return error_reply(said, status=error.status_code, code=code, headers=error.headers)


def _too_large() -> RequestError:
    limit = MAX_BODY_BYTES // (1024 * 1024)
    said = f"The request is too large: its body may have at most {limit} MB."
    return RequestError(said, code="request_too_large", status=413)


def _body_of(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    body: bytes = message.get("body", b"")
    return body
