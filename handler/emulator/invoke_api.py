"""Lambda's own API, as far as a function needs it that invokes itself: `Invoke`.

Paths, headers and errors are those of AWS's page "Invoke" (Lambda API reference).
"""

import re
import time
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from handler.emulator.client import read_body
from handler.emulator.environments import Environments
from handler.emulator.event_queue import EventQueue
from handler.emulator.invocation import (
    BrokenOffError,
    Record,
    new_request_id,
    new_trace_id,
    report,
)
from handler.emulator.options import Function
from handler.runtime_api import Failure


MAX_SYNCHRONOUS_BYTES: Final = 6 * 1024 * 1024
MAX_ASYNCHRONOUS_BYTES: Final = 1024 * 1024
_LIMITS: Final = {"RequestResponse": MAX_SYNCHRONOUS_BYTES, "Event": MAX_ASYNCHRONOUS_BYTES}
_PATH: Final = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")
_REFERENCE: Final = re.compile(
    r"(?:(?:arn:aws[a-z-]*:lambda:[a-z0-9-]+:)?[0-9]{12}:function:)?(?P<name>[A-Za-z0-9_-]+)"
    r"(?::[A-Za-z0-9$_-]+)?"
)
"""A name, a part of an ARN or an ARN, each with a version or an alias, or without."""
_SIGNED: Final = "AWS4-HMAC-SHA256 "


class InvokeApi:
    """An ASGI app: invocations of one function, which any alias or version leads to."""

    def __init__(
        self,
        function: Function,
        environments: Environments,
        queue: EventQueue,
        log: Callable[[str], None],
    ) -> None:
        """Take whom to ask at once, and who takes events for later."""
        self._function = function
        self._environments = environments
        self._queue = queue
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = await read_body(receive, MAX_SYNCHRONOUS_BYTES)
        if body is None:
            return
        response = await self._answer(scope, body)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, body: bytes) -> Response:
        headers, path = Headers(scope=scope), _PATH.fullmatch(scope["path"])
        if not headers.get("authorization", "").startswith(_SIGNED):
            # Whose signature it is does not matter here, but no page in a browser can send one.
            said = "Missing Authentication Token"
            return _refusal(403, "MissingAuthenticationTokenException", said)
        if scope["method"] != "POST" or path is None:
            return _refusal(404, "UnknownOperationException", "Only Invoke is emulated.")
        reference = _REFERENCE.fullmatch(path[1])
        if reference is None or reference["name"] != self._function.name:
            name = reference["name"] if reference else path[1]
            arn = f"arn:aws:lambda:{self._function.region}:000000000000:function:{name}"
            return _refusal(404, "ResourceNotFoundException", f"Function not found: {arn}")
        return await self._invoked(headers.get("x-amz-invocation-type", "RequestResponse"), body)

    async def _invoked(self, kind: str, body: bytes) -> Response:
        limit = _LIMITS.get(kind)
        if limit is None:
            said = f"The invocation type must be one of {', '.join(_LIMITS)} here."
            return _refusal(400, "InvalidParameterValueException", said)
        if len(body) > limit:
            said = f"The payload is too large for the {kind} invocation type (limit {limit} bytes)"
            return _refusal(413, "RequestTooLargeException", said)
        event = body or b"{}"
        try:
            msgspec.json.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = "Could not parse request body into json."
            return _refusal(400, "InvalidRequestContentException", said)
        if kind == "RequestResponse":
            return await self._answered(event)
        request_id = new_request_id()
        self._queue.put(request_id, event)
        return Response(status_code=202, headers={"x-amzn-requestid": request_id})

    async def _answered(self, event: bytes) -> Response:
        begun = time.monotonic()
        record = Record(request_id=new_request_id(), kind="RequestResponse")
        invocation = self._environments.invoke(record, event, new_trace_id(time.time()))
        if invocation is None:
            return _refusal(429, "TooManyRequestsException", "Rate Exceeded.")
        headers = {"x-amzn-requestid": record.request_id, "x-amz-executed-version": "$LATEST"}
        try:
            body = await invocation.whole()
        except BrokenOffError:
            headers["x-amz-function-error"] = "Unhandled"
            body = _error(record.error)
        finally:
            invocation.close()
        record.status = 200
        self._log(report(record, ["RequestResponse"], time.monotonic() - begun))
        return Response(body, headers=headers, media_type="application/json")


def _error(failure: Failure | None) -> bytes:
    told = {"errorMessage": failure.message, "errorType": failure.type} if failure else {}
    return msgspec.json.encode(told)


def _refusal(status: int, kind: str, message: str) -> Response:
    body = msgspec.json.encode({"Type": "User", "Message": message})
    headers = {"x-amzn-errortype": kind, "x-amzn-requestid": new_request_id()}
    return Response(body, status, headers, "application/json")
