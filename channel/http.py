"""HTTP around the channels: request ids, bodies with a limit, and every error in OpenAI's shape."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response as HTTPResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from channel.faults import log_fault
from channel.ports import NewToken, StoreError
from channel.responses.protocol.errors import RequestError, error_body


MAX_BODY_BYTES: Final = 6 * 1024 * 1024
"""What a Lambda invocation can carry; larger bodies are a 413 through every door."""

_LOG: Final = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being served, as the client sees it in `x-request-id`."""


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class JSONReply(HTTPResponse):
    """A JSON body, encoded by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return _encode(content)


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
    return JSONReply(body, status_code=status, headers=headers)


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return the whole body; raises `RequestError` (413) as soon as it is known to be too large."""
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
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


async def http_exception_reply(_request: Request, error: Exception) -> HTTPResponse:
    """Return Starlette's own errors (no such route, wrong method) in OpenAI's shape."""
    if not isinstance(error, HTTPException):
        raise error
    said = {
        404: "Unknown request URL. Please check the URL for typos.",
        405: "Method not allowed on this URL.",
    }.get(error.status_code, "The request cannot be served.")
    code = "unknown_url" if error.status_code == 404 else None  # noqa: PLR2004 - not found
    return error_reply(said, status=error.status_code, code=code, headers=error.headers)


class RequestIds:
    """ASGI middleware: an `x-request-id` on every reply; on Lambda it is the invocation's id."""

    def __init__(self, app: ASGIApp, new_token: NewToken) -> None:
        """Name the requests of the app."""
        self._app = app
        self._new_token = new_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        invocation = getattr(scope.get("aws.context"), "aws_request_id", None)
        identifier = invocation or f"req_{self._new_token(16)}"
        header = (b"x-request-id", identifier.encode("latin-1", "replace"))

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

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
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def send_noted(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except ClientGoneError:
            return
        except Exception as error:
            reply = _reply_to(error)
            if has_started:
                raise
            await reply(scope, receive, send)


def _reply_to(error: Exception) -> JSONReply:
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
    if isinstance(error, StoreError):
        # Nothing ran yet: the same request may well succeed in a moment.
        said = f"The server's storage is unavailable; please retry. Request id: {request_id.get()}"
        return error_reply(said, status=503, headers={"x-should-retry": "true"})
    said = f"The server had an error while processing your request. Request id: {request_id.get()}"
    return error_reply(said, status=500)


def _too_large() -> RequestError:
    limit = MAX_BODY_BYTES // (1024 * 1024)
    said = f"The request is too large: its body may have at most {limit} MB."
    return RequestError(said, code="request_too_large", status=413)


def _body_of(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    body: bytes = message.get("body", b"")
    return body
