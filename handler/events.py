"""Lambda events as HTTP requests, by Mangum's handler classes: the door, the scope, the answer. No I/O.

Both mounts read events here, so that there is one mapping from an event to what the app sees.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from math import inf
from time import monotonic
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import msgspec
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES
from mangum.handlers.alb import ALB
from mangum.handlers.api_gateway import APIGateway, HTTPGateway
from mangum.types import LambdaConfig
from msgspec import Struct
from starlette.types import Scope

from channel.deadline import DEADLINE, TimeLeft
from channel.responses.protocol.errors import RequestError, error_body
from handler.runtime_api import header_texts


LambdaEvent: TypeAlias = dict[str, Any]
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
Streams: TypeAlias = Callable[[LambdaEvent], bool | None]
"""Says of an HTTP event whether its door takes a streamed reply; None leaves that to the settings."""

MAX_REPLY_BYTES: Final = 6 * 1024 * 1024
"""What Lambda carries of a buffered reply, with its JSON around it."""

_MAX_LOAD_BALANCER_REPLY_BYTES: Final = 1024 * 1024
_encode = msgspec.json.Encoder().encode


class Door(StrEnum):
    """What an HTTP request came through."""

    FUNCTION_URL = "function URL"
    HTTP_API = "HTTP API"
    REST_API = "REST API"
    LOAD_BALANCER = "load balancer"


class DoorSettings(Struct, frozen=True, kw_only=True):
    """Which doors take streamed replies, and how many seconds a turn may take behind each.

    `margin_s` is what is kept of that time for storing and telling a turn that ran out of it.
    """

    url_streams: bool = True
    rest_api_streams: bool = False
    streams: Streams | None = None
    margin_s: float = 5.0
    load_balancer_s: float = 60.0


class HTTPEvent(Protocol):
    """An event that is an HTTP request: a Mangum handler, completed."""

    door: Door
    streams: bool
    time_left: TimeLeft | None
    """The time until whoever waits behind the door is sent away; None where there is no such limit."""
    scope: Scope
    """The ASGI scope; raises `RequestError` where the event cannot be read."""
    body: bytes
    """The request's body; raises `RequestError` where it cannot be read."""

    def __call__(self, response: Any, /) -> dict[str, Any]: ...


_NO_WORKER: Final = "for other events a worker can be registered, and none is"


class UnknownEventError(Exception):
    """An event is no HTTP request, and no worker is there for other events."""

    def __init__(self, event: Any, kinds: Iterable[str] = ()) -> None:
        """Say what was received, by the names of its fields, and what is supported."""
        got = f"a value of type {type(event).__name__}"
        if isinstance(event, Mapping):
            names = sorted(map(str, event))
            more = ", …" if len(names) > _SHOWN else ""
            got = f"an object with the fields [{', '.join(names[:_SHOWN])}{more}]"
        supported = f"HTTP requests through a {', '.join(Door)}"
        others = f"and jobs of the kind {' or '.join(kinds)}" if kinds else _NO_WORKER
        super().__init__(f"The event is {got}. Supported are {supported}; {others}.")


class HTTPEvents:
    """Recognises the events that are HTTP requests; `handlers` are the classes, for Mangum."""

    def __init__(self, settings: DoorSettings, *, may_stream: bool) -> None:
        """Take the settings; without `may_stream` no door gets a streamed reply."""
        self.handlers = [
            type(
                plain.__name__,
                (_Completed, plain),
                {"plain": plain, "settings": settings, "may_stream": may_stream},
            )
            for plain in (ALB, HTTPGateway, APIGateway)
        ]

    def read(self, event: Any, context: Any) -> HTTPEvent | None:
        """Return the event as a request, or None where it is none."""
        if not isinstance(event, dict) or not isinstance(event.get("requestContext"), dict):
            return None
        for handler in self.handlers:
            completed: Any = handler
            if completed.infer(event, context, _CONFIG) and _is_request(event):
                found: HTTPEvent = completed(event, context, _CONFIG)
                return found
        return None


def _is_request(event: LambdaEvent) -> bool:
    """Tell requests from other events with a version and a context, such as those of destinations."""
    return "httpMethod" in event or "http" in event["requestContext"]


def answer(event: HTTPEvent, status: int, headers: Headers, body: bytes) -> dict[str, Any]:
    """Return a whole reply as the event's door takes it, or an error where it takes none so large."""
    reply = event({"status": status, "headers": headers, "body": body})
    return within_limit(event, reply)


def within_limit(event: HTTPEvent, reply: dict[str, Any]) -> dict[str, Any]:
    """Return the reply, or one that says so where the door would refuse it."""
    is_small = event.door is Door.LOAD_BALANCER
    limit = _MAX_LOAD_BALANCER_REPLY_BYTES if is_small else MAX_REPLY_BYTES
    # An escape is at most six characters, so the exact measure is taken of large replies only.
    if len(reply["body"]) < limit // 6 or len(_encode(reply)) <= limit:
        return reply
    said = f"The reply is larger than this {event.door} can carry ({limit // 1024 // 1024} MB)."
    text = reply["body"][:_HEAD]
    if reply["isBase64Encoded"]:
        text = base64.b64decode(text).decode("latin-1")
    if stored := _RESPONSE_ID.search(text):
        said += f" A stored response can be retrieved by its id, {stored[1]}, where replies are streamed."
    return error_answer(event, said, status=500, code="reply_too_large")


def error_answer(
    event: HTTPEvent, message: str, *, status: int, code: str | None = None
) -> dict[str, Any]:
    """Return an error in OpenAI's shape as the event's door takes it; no retry would end otherwise."""
    body = _encode(error_body(message, status=status, code=code))
    return event({"status": status, "headers": error_headers(body), "body": body})


def error_headers(body: bytes) -> Headers:
    """Return the headers of an error that no retry would mend."""
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-should-retry", b"false"),
    ]


_CONFIG: Final = LambdaConfig(
    api_gateway_base_path="/", text_mime_types=[*DEFAULT_TEXT_MIME_TYPES], exclude_headers=[]
)
_SHOWN: Final = 12
_HEAD: Final = 4096  # of a reply too large; its id is at the beginning, in JSON and SSE alike
_RESPONSE_ID: Final = re.compile(r'"id":\s?"(resp_\w+)"')
_REST_API_S: Final = 28.0  # of 29 that a buffered integration may take
_HTTP_API_S: Final = 29.0  # of 30


class _Completed:
    """Completes a handler class of Mangum's: each part is made once, and nothing is taken on trust."""

    plain: ClassVar[type[Any]]
    settings: ClassVar[DoorSettings]
    may_stream: ClassVar[bool]
    event: LambdaEvent
    context: Any

    def __call__(self, response: Any, /) -> dict[str, Any]:
        texts = header_texts(response["headers"])
        headers = [(name.encode(), value.encode()) for name, value in texts]
        reply: dict[str, Any] = self.plain.__call__(self, {**response, "headers": headers})
        return reply

    @cached_property
    def door(self) -> Door:
        if self.plain is ALB:
            return Door.LOAD_BALANCER
        if self.plain is APIGateway:
            return Door.REST_API
        domain = str(self.event["requestContext"].get("domainName"))
        return Door.FUNCTION_URL if ".lambda-url." in domain else Door.HTTP_API

    @cached_property
    def streams(self) -> bool:
        if not self.may_stream:
            return False
        ask = self.settings.streams
        if ask is not None and (said := ask(self.event)) is not None:
            return said
        if self.door is Door.FUNCTION_URL:
            return self.settings.url_streams
        return self.door is Door.REST_API and self.settings.rest_api_streams

    @cached_property
    def time_left(self) -> TimeLeft | None:
        remaining = getattr(self.context, "get_remaining_time_in_millis", None)
        limit_s = remaining() / 1000 if remaining else inf
        if not self.streams:
            limit_s = min(limit_s, self._door_limit_s)
        return None if limit_s == inf else TimeLeft.within(limit_s, self.settings.margin_s)

    @cached_property
    def scope(self) -> Scope:
        try:
            scope: Scope = self.plain.scope.fget(self)
            _complete(scope, self.event)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.__dict__["scope"] = {"aws.event": self.event}  # the answer's shape depends on it
            raise _unreadable("method, path and headers") from error
        if self.time_left is not None:
            scope[DEADLINE] = self.time_left.since(monotonic())
        return scope

    @cached_property
    def body(self) -> bytes:
        try:
            text: str = self.event.get("body") or ""
            if self.event.get("isBase64Encoded"):
                return base64.b64decode(text, validate=True)
            return text.encode()
        except (AttributeError, TypeError, ValueError) as error:
            raise _unreadable("body") from error

    @property
    def _door_limit_s(self) -> float:
        return {
            Door.FUNCTION_URL: inf,
            Door.HTTP_API: _HTTP_API_S,
            Door.REST_API: _REST_API_S,
            Door.LOAD_BALANCER: self.settings.load_balancer_s,
        }[self.door]


def _complete(scope: Scope, event: LambdaEvent) -> None:
    """Fill in what Mangum leaves out of a scope."""
    path = event.get("rawPath") or event.get("path") or scope["path"]
    stage = event["requestContext"].get("stage") or "$default"
    # The stage is in the path of an HTTP API that has one by name, and nowhere else.
    if stage != "$default" and "rawPath" in event and f"{scope['path']}/".startswith(f"/{stage}/"):
        path, scope["path"] = (
            each.removeprefix(f"/{stage}") or "/" for each in (path, scope["path"])
        )
    scope["method"] = scope["method"].upper()
    scope["raw_path"] = path.encode()
    scope["headers"] = [(name, value) for name, value in scope["headers"]]
    scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}  # where nobody reads, `send` raises
    scope["extensions"] = {}


def _unreadable(what: str) -> RequestError:
    return RequestError(f"The request could not be read: its {what}.", code="invalid_request")
