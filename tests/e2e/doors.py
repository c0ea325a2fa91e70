"""Doors: each takes a request to the app its own way, and brings the reply back in one form."""

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from starlette.types import ASGIApp

from handler.mount import LambdaHandler
from tests.channel.asgi import Wire
from tests.handler.events import Context


_LONGEST_S = 10.0


@dataclass(frozen=True)
class Reply:
    """What came back; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self.body
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        (name,) = self.json
        assert name == "error"
        error: dict[str, Any] = self.json[name]
        assert error.keys() == {"message", "type", "param", "code"}
        return error

    @property
    def is_stream(self) -> bool:
        return self.headers["content-type"] == "text/event-stream; charset=utf-8"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, as a strict reader takes them; `[DONE]` must end it."""
        assert self.is_stream, self.body
        *frames, done, rest = self.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [_event(frame) for frame in frames]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The data of a stream of Chat Completions; what follows its last line is nothing."""
        assert self.is_stream, self.body
        *frames, rest = self.body.decode().removesuffix("data: [DONE]\n\n").split("\n\n")
        assert rest == ""
        return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def _event(frame: str) -> dict[str, Any]:
    name, data = frame.split("\n")
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event['type']}"
    return event


class Door(Protocol):
    """A way to the app."""

    def __call__(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, /
    ) -> Reply: ...


@dataclass
class Client:
    """A caller at a door, with a key; `replies` holds all that the door brought back."""

    door: Door
    key: str | None = "dev-alpha"
    headers: Mapping[str, str] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)

    def ask(self, method: str, target: str, body: Any = None) -> Reply:
        """Send a request; `body` is bytes, or what JSON is made of."""
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        headers = {"content-type": "application/json"} if raw else {}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        reply = self.door(method, f"/v1{target}", {**headers, **self.headers}, raw)
        self.replies.append(reply)
        return reply

    def get(self, target: str) -> Reply:
        return self.ask("GET", target)

    def delete(self, target: str) -> Reply:
        return self.ask("DELETE", target)

    def post(self, **fields: Any) -> Reply:
        """Ask for a response; the reply may be an error."""
        return self.ask("POST", "/responses", fields)

    def chat(self, **fields: Any) -> Reply:
        """Ask for a chat completion; the reply may be an error."""
        return self.ask("POST", "/chat/completions", fields)

    def create(self, **fields: Any) -> dict[str, Any]:
        reply = self.post(**fields)
        assert reply.status == 200, reply.body
        response: dict[str, Any] = reply.json
        return response

    def stream(self, **fields: Any) -> list[dict[str, Any]]:
        reply = self.post(**fields, stream=True)
        assert reply.status == 200, reply.body
        return reply.events


@contextmanager
def direct(app: ASGIApp) -> Iterator[Door]:
    """Call the app through ASGI, without anything in between."""
    with asyncio.Runner() as runner:
        yield through(runner, app)


def through(runner: asyncio.Runner, app: ASGIApp) -> Door:
    """Return the door of `direct` in a loop of one's own."""

    def ask(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        path, _, query = target.partition("?")
        wire = Wire(method, path, body=body, headers=headers, query=query)
        runner.run(_in_time(wire, app))
        return Reply(wire.status, _lower(wire.headers), wire.body)

    return ask


async def _in_time(wire: Wire, app: ASGIApp) -> None:
    async with asyncio.timeout(_LONGEST_S):
        await wire.run(app)


LambdaEvent = dict[str, Any]
MakeEvent = Callable[[str, str, Mapping[str, str], bytes], LambdaEvent]


@contextmanager
def on_lambda(app: ASGIApp, make_event: MakeEvent) -> Iterator[Door]:
    """Call the buffered Lambda handler with the events of one kind of door."""
    handler = LambdaHandler(app)

    def ask(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        event = make_event(method, target, headers, body)
        # The event and the answer go through Lambda as JSON.
        answer = json.loads(json.dumps(handler(json.loads(json.dumps(event)), Context())))
        has_many = "multiValueHeaders" in event and "elb" in event["requestContext"]
        assert ("headers" in answer) is not has_many
        raw = answer["body"].encode()
        return Reply(
            answer["statusCode"],
            _lower(_single(answer["multiValueHeaders"]) if has_many else answer["headers"]),
            base64.b64decode(raw, validate=True) if answer["isBase64Encoded"] else raw,
        )

    try:
        yield ask
    finally:
        handler.close()
        asyncio.set_event_loop(None)


@contextmanager
def over_http(root: str) -> Iterator[Door]:
    """Call a server over a socket."""

    def ask(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        answer = client.request(method, root + target, headers=headers, content=body)
        return Reply(answer.status_code, _lower(answer.headers), answer.content)

    with httpx.Client(timeout=10) as client:
        yield ask


def _single(headers: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: ", ".join(values) for name, values in headers.items()}


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


# --- comparing what different doors and stores said ---------------------------------------------

_ID = re.compile(
    r"\b([a-z]{1,8})[_-]([0-9a-f]{52})([0-9a-f]{4})?\b|\bcall_[0-9a-f]{24}(?![0-9a-f])"
)
_TIME = re.compile(r'"(created_at|completed_at|created)":\d+')
_OF_A_REQUEST = frozenset(
    {
        *("x-request-id", "x-amzn-requestid", "date", "server"),
        *("content-length", "transfer-encoding"),
    }
)


def comparable(replies: list[Reply]) -> list[tuple[int, dict[str, str], str]]:
    """Return the replies with ids numbered as they come, and without times and request ids."""
    numbers: dict[str, int] = {}

    def numbered(found: re.Match[str]) -> str:
        unique = found[2] or found[0]
        number = numbers.setdefault(unique, len(numbers))
        return f"{found[1] or 'call'}_{number}_{found[3] or ''}"

    def plain(reply: Reply) -> tuple[int, dict[str, str], str]:
        headers = {k: v for k, v in reply.headers.items() if k not in _OF_A_REQUEST}
        body = request_ids.sub("req", reply.body.decode())
        return reply.status, headers, _ID.sub(numbered, _TIME.sub(r'"\1":0', body))

    # A failed response tells its request's id, also when it is read back.
    request_ids = re.compile("|".join({reply.headers["x-request-id"] for reply in replies}))
    return [plain(reply) for reply in replies]
