"""A client at the ASGI interface: one request, its own `send` and `receive`, and what came back."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp, Message

from channel.auth import FixedKeys, Principal
from channel.host import AgentHost
from channel.ports import ResponseStore
from channel.responses.channel import ResponsesChannel


KEYS = FixedKeys(
    {
        "key-alpha": Principal("alpha"),
        "key-beta": Principal("beta"),
        "key-agency": Principal("agency", is_delegate=True),
    }
)


def hosted(agent: Any, store: ResponseStore | None = None, **options: Any) -> ASGIApp:
    """Return the app of a host with one Responses channel, which beats only where it is told to."""
    channel = ResponsesChannel(store=store, **{"keepalive_s": 0, **options})
    return AgentHost(agent, channels=[channel], authenticator=KEYS).app


class Wire:
    """One request on the wire; `gate`, where it is closed, holds back what the app sends."""

    def __init__(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Sequence[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        query: str = "",
    ) -> None:
        chunks = [body] if isinstance(body, bytes) else [*body]
        self._chunks = [
            {"type": "http.request", "body": chunk, "more_body": i < len(chunks) - 1}
            for i, chunk in enumerate(chunks)
        ]
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._news = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: OSError | None = None
        self.sent: list[Message] = []
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("utf-8", "surrogateescape"),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [
                (name.lower().encode(), value.encode("latin-1"))
                for name, value in (headers or {}).items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }

    async def run(self, app: ASGIApp) -> "Wire":
        await app(self.scope, self._receive, self._send)
        return self

    def start(self, app: ASGIApp) -> "asyncio.Task[Wire]":
        return asyncio.create_task(self.run(app))

    def hang_up(self) -> None:
        self._said.put_nowait({"type": "http.disconnect"})

    def say_more(self) -> None:
        self._said.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def until(self, text: str) -> None:
        """Wait until the client has read this text."""
        while text.encode() not in self.body:
            self._news.clear()
            await self._news.wait()

    async def _receive(self) -> Message:
        if self._chunks:
            return self._chunks.pop(0)
        return await self._said.get()

    async def _send(self, message: Message) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)
        self._news.set()

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode("latin-1") for name, value in self.sent[0]["headers"]}

    @property
    def writes(self) -> list[bytes]:
        bodies = [message.get("body", b"") for message in self.sent[1:]]
        return [body for body in bodies if body]

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_body(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of an SSE reply, as a strict reader takes them; `[DONE]` must end it."""
        *frames, done, rest = self.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [_event(frame) for frame in frames]

    @property
    def types(self) -> list[str]:
        return [event["type"].removeprefix("response.") for event in self.events]


def _event(frame: str) -> dict[str, Any]:
    name, data = frame.split("\n")
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event['type']}"
    return event


def request(
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str | None = "key-alpha",
    headers: Mapping[str, str] | None = None,
    query: str = "",
) -> Wire:
    """Return a request that is ready to run; `body` is bytes, or what JSON is made of."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    authorization = {"authorization": f"Bearer {key}"} if key else {}
    return Wire(method, path, body=raw, headers={**authorization, **(headers or {})}, query=query)


def creating(*, stream: bool = False, key: str = "key-alpha", **fields: Any) -> Wire:
    """Return a create request; its input is `hi` unless the fields say otherwise."""
    body: dict[str, Any] = {"input": "hi", **fields}
    if stream:
        body["stream"] = True
    return request("POST", "/v1/responses", body, key=key)


async def create(app: ASGIApp, **fields: Any) -> dict[str, Any]:
    """Create a response and return it."""
    reply = await creating(**fields).run(app)
    assert reply.status == 200, reply.body
    response: dict[str, Any] = reply.json
    return response


async def get(app: ASGIApp, path: str, *, key: str = "key-alpha", query: str = "") -> Wire:
    return await request("GET", path, key=key, query=query).run(app)
