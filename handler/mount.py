"""The buffered mount: one app behind Mangum, on one event loop with one lifespan per environment."""

import asyncio
from functools import cached_property
from typing import Any, Final

import msgspec
from mangum import Mangum
from mangum.handlers.alb import ALB
from mangum.handlers.api_gateway import APIGateway, HTTPGateway
from mangum.handlers.lambda_at_edge import LambdaAtEdge
from mangum.types import LambdaEvent
from starlette.types import ASGIApp

from channel.responses.protocol.errors import error_body
from handler.lifespan import Lifespan


_encode = msgspec.json.Encoder().encode

MAX_REPLY_BYTES: Final = 6 * 1024 * 1024
"""What Lambda carries of a buffered reply, with its JSON around it."""


def _with_one_scope(handler: type[Any]) -> type[Any]:
    """Return Mangum's handler class with its ASGI scope made once an event, not at each reading."""
    return type(handler.__name__, (handler,), {"scope": cached_property(handler.scope.fget)})


_HANDLERS: Final = [
    _with_one_scope(handler) for handler in (ALB, HTTPGateway, APIGateway, LambdaAtEdge)
]


class BufferedMount:
    """A Lambda handler for function URLs, HTTP APIs, REST APIs and load balancers.

    The start-up of the app runs at construction, so its failure is the failure of the init. There
    is no shutdown on Lambda: an environment is frozen and dropped. `close` is for everybody else.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Start the app; raises what its start-up raised."""
        self._loop = asyncio.new_event_loop()
        self._lifespan = Lifespan(app)
        asyncio.set_event_loop(self._loop)  # or else Mangum makes one of its own
        self._mangum = Mangum(self._lifespan.app, lifespan="off", custom_handlers=[*_HANDLERS])
        try:
            self._loop.run_until_complete(self._lifespan.startup())
        except BaseException:
            self._loop.close()
            raise

    def __call__(self, event: LambdaEvent, context: Any) -> dict[str, Any]:
        """Answer one event."""
        # Mangum runs on the current loop of the calling thread.
        asyncio.set_event_loop(self._loop)
        return _within_limit(self._mangum(event, context))

    def close(self) -> None:
        """Run the shutdown of the app and close the loop."""
        self._loop.run_until_complete(self._lifespan.shutdown())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def _within_limit(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the reply, or where Lambda would refuse it an error that a client can read."""
    # An escape is at most six characters, so the exact measure is taken of large replies only.
    if len(reply["body"]) < MAX_REPLY_BYTES // 6 or len(_encode(reply)) <= MAX_REPLY_BYTES:
        return reply
    said = (
        "The reply is larger than Lambda can carry (6 MB). A stored response is kept under its id."
    )
    body = _encode(error_body(said, status=500, code="reply_too_large"))
    changed = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-should-retry": "false",
    }
    error = {**reply, "statusCode": 500, "body": body.decode(), "isBase64Encoded": False}
    if reply.get("headers"):
        error["headers"] = {**reply["headers"], **changed}
    else:  # a load balancer with multi-value headers
        many = {name: [value] for name, value in changed.items()}
        error["multiValueHeaders"] = {**reply["multiValueHeaders"], **many}
    return error
