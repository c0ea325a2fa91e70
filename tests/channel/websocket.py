"""A client at the ASGI interface of a WebSocket: what it says, and what it has read."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Self

from starlette.types import ASGIApp, Message


TERMINAL = ("response.completed", "response.incomplete", "response.failed", "error")


class Socket:
    """One connection; `gate`, where it is closed, holds back what the app sends."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None = "key-alpha",
        headers: Mapping[str, str] | None = None,
        path: str = "/v1/responses",
        extensions: tuple[str, ...] = ("websocket.http.response",),
    ) -> None:
        self._app = app
        sent = {"authorization": f"Bearer {key}"} if key else {}
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (name.lower().encode(), value.encode())
                for name, value in {**sent, **(headers or {})}.items()
            ],
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "extensions": {name: {} for name in extensions},
        }
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._said.put_nowait({"type": "websocket.connect"})
        self._unread: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[Message] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: OSError | None = None
        self.task: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    def start(self) -> Self:
        self.task = asyncio.create_task(self._run())
        return self

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()
        await self.ended()

    async def ended(self) -> None:
        assert self.task is not None
        async with asyncio.timeout(10):
            await self.task

    def hang_up(self, code: int = 1000) -> None:
        self._said.put_nowait({"type": "websocket.disconnect", "code": code})

    def say(self, text: str | bytes) -> None:
        kind = "bytes" if isinstance(text, bytes) else "text"
        self._said.put_nowait({"type": "websocket.receive", kind: text})

    def create(self, **fields: Any) -> None:
        """Ask for a response; its input is `hi` unless the fields say otherwise."""
        self.say(json.dumps({"type": "response.create", "input": "hi", **fields}))

    async def read(self) -> dict[str, Any]:
        """Return the next message."""
        async with asyncio.timeout(10):
            return await self._unread.get()

    async def until_end(self, lane: str | None = None) -> list[dict[str, Any]]:
        """Return the messages of a lane up to the end of its turn; others' must not come meanwhile."""
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["type"] not in TERMINAL:
            messages.append(await self.read())
            assert messages[-1].get("stream_id") == lane, messages[-1]
        return messages

    async def turn(self, **fields: Any) -> dict[str, Any]:
        """Ask for a response, and return the message that ends its turn."""
        self.create(**fields)
        return (await self.until_end(fields.get("stream_id")))[-1]

    async def response(self, **fields: Any) -> dict[str, Any]:
        """Ask for a response, and return it as it was completed."""
        ending = await self.turn(**fields)
        assert ending["type"] == "response.completed", ending
        response: dict[str, Any] = ending["response"]
        return response

    async def text(self, **fields: Any) -> str:
        return text_of(await self.response(**fields))

    @property
    def is_quiet(self) -> bool:
        """Whether all that came was read."""
        return self._unread.empty()

    async def _run(self) -> None:
        await self._app(self.scope, self._said.get, self._send)

    async def _send(self, message: Message) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)
        if message["type"] == "websocket.send":
            self._unread.put_nowait(json.loads(message["text"]))
        if message["type"] == "websocket.close":
            self.closed.set()
            self.hang_up(message.get("code", 1000))


def text_of(response: Mapping[str, Any]) -> str:
    """Return the text of a response's messages."""
    return "".join(part["text"] for item in response["output"] for part in item["content"])
