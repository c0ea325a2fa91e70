"""A model's server on 127.0.0.1 that speaks OpenAI's wire, over real sockets, and says what a script says.

    with OpenAIServer([[Say(("Hello.",)), Spend(7, 3)]]) as server:
        client = OpenAI(base_url=server.url, api_key="any")
        ...
    server.seen     # what each model call was given, in the words of all frameworks
    server.bodies   # the same as the bodies of the requests
    server.headers  # and their headers
    server.play([…])  # another script, for a server that several tests share

It serves `POST /v1/responses` and `POST /v1/chat/completions`, each as a stream or as JSON, and
`GET /v1/models`. Each model call takes the next steps of the script (`tests.channel.agents.scripts`,
`tests.models.steps`), whichever route it comes by; without a script the server repeats what the user
said. It runs in a thread of its own, so it serves synchronous clients and other processes, too.

`python -m tests.models.openai_server --port 0` serves until it is interrupted, and prints its URL.
"""

import argparse
import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self, TypeAlias

from tests.channel.agents.scripts import Fail, Meet, Say, Seen, Spend, Wait
from tests.models import openai_chat_wire as chat, openai_responses_wire as responses
from tests.models.steps import NO_SUCH_ROUTE, Break, Cut, Reply, ServerStep, Truncate, error_body


ServerScript: TypeAlias = Sequence[Sequence[ServerStep]]

MODEL = "scripted"
START_S = 10.0
STALLED_S = 0.2
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests"}
_EXHAUSTED = Reply(500, error_body("The script is over."), {"x-should-retry": "false"})


class OpenAIServer:
    """Serves from `start` (or `with`) until `close`.

    `has_responses` says whether there is a Responses API. Without `keeps_alive` a connection serves
    one request: a client that is not closed leaves none behind. Steps that wait for the test
    (`Wait`, `Meet`) belong to the event loop in which the server was made.
    """

    def __init__(
        self,
        script: ServerScript | None = None,
        *,
        has_responses: bool = True,
        keeps_alive: bool = False,
        reasoning_field: str = "reasoning_content",
        port: int = 0,
    ) -> None:
        self.seen: list[Seen] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        """The path of each request that was a model call, also of those that were refused."""
        self.connections = 0
        self.stalled = threading.Event()
        """Set when the client does not take what is written."""
        self.lost = threading.Event()
        """Set when a client went before its reply was complete."""
        self._script: Iterator[Sequence[ServerStep]] | None = None
        if script is not None:
            self._script = iter(script)
        self._has_responses = has_responses
        self._keeps_alive = keeps_alive
        self._reasoning_field = reasoning_field
        self._tests_loop = _running_loop()
        self._socket = socket.create_server(("127.0.0.1", port))
        # Small, so that a client that does not read is soon noticed.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._is_ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Serve; a second time it does nothing."""
        if not self._thread.is_alive():
            self._thread.start()
            assert self._is_ready.wait(START_S)
        return self

    def play(self, script: ServerScript) -> None:
        """Say another script from now on, and forget what was seen."""
        self._script = iter(script)
        for seen in (self.seen, self.bodies, self.headers, self.paths):
            seen.clear()

    def close(self) -> None:
        """Stop, also in the middle of replies; a second time it does nothing."""
        if self._loop and self._closing and self._thread.is_alive():
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(START_S)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            try:
                await self._talk(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                tasks.discard(task)
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

        server = await asyncio.start_server(connected, sock=self._socket, limit=1 << 26)
        self._is_ready.set()
        await self._closing.wait()
        server.close()
        for task in [*tasks]:
            task.cancel()
        if tasks:
            await asyncio.wait([*tasks])

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer, self)
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head[:-4].split("\r\n")
            headers = {
                name.lower(): value for name, _, value in (each.partition(": ") for each in lines)
            }
            raw = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = line.split(" ")
            if not await self._answer(connection, f"{method} {path}", headers, raw):
                return

    async def _answer(
        self, connection: "_Connection", route: str, headers: dict[str, str], raw: bytes
    ) -> bool:
        """Answer one request; return whether the connection may serve another one."""
        if route == "GET /v1/models":
            return await connection.reply(Reply(200, _models()))
        wire = _WIRES.get(route)
        if wire is None:
            return await connection.reply(Reply(404, error_body(f"Invalid URL ({route})")))
        self.paths.append(route.partition(" ")[2])
        if wire is responses and not self._has_responses:
            return await connection.reply(NO_SUCH_ROUTE)
        body: dict[str, Any] = json.loads(raw)
        self.bodies.append(body)
        self.headers.append(headers)
        self.seen.append(wire.seen_of(body))
        steps = self._next_steps(self.seen[-1])
        number = len(self.seen)
        writer: _Writer = (
            responses.Writer(body, number)
            if wire is responses
            else chat.Writer(body, number, self._reasoning_field)
        )
        if (refusal := _refusal(steps, is_stream=bool(body.get("stream")))) is not None:
            return await connection.reply(refusal)
        if body.get("stream"):
            return await self._stream(connection, writer, steps, has_done=wire is chat)
        return await self._whole(connection, writer, steps)

    def _next_steps(self, seen: Seen) -> Sequence[ServerStep]:
        if self._script is None:
            asked = next((text for role, text in reversed(seen.texts) if role == "user"), "nothing")
            return (Say(("You said: ", asked)), Spend(7, 3))
        return next(self._script, (_EXHAUSTED,))

    async def _stream(
        self,
        connection: "_Connection",
        writer: "_Writer",
        steps: Sequence[ServerStep],
        *,
        has_done: bool,
    ) -> bool:
        await connection.begin()
        await connection.say(writer.start())
        for step in steps:
            match step:
                case Truncate():
                    return await connection.end()
                case Cut():
                    connection.cut()
                    return False
                case Fail(text):
                    await connection.say(writer.fail(text))
                case _:
                    await self._wait(step, connection)
                    await connection.say(writer.say(step))
            if writer.is_broken:
                return await connection.end()
        await connection.say(writer.end())
        if has_done:
            await connection.say(["[DONE]"])
        return await connection.end()

    async def _whole(
        self, connection: "_Connection", writer: "_Writer", steps: Sequence[ServerStep]
    ) -> bool:
        said = [*writer.start()]
        for step in steps:
            await self._wait(step, connection)
            said += writer.say(step)
        said += writer.end()
        return await connection.reply(Reply(200, writer.whole()))

    async def _wait(self, step: ServerStep, connection: "_Connection") -> None:
        match step:
            case Wait(begun, ended):
                self._in_test(begun.set)
                await connection.until_gone()
                self._in_test(ended.set)
                raise ConnectionResetError
            case Meet(barrier):
                assert self._tests_loop is not None, "Meet needs a server made in a running loop"
                met = asyncio.run_coroutine_threadsafe(barrier.wait(), self._tests_loop)
                await asyncio.wrap_future(met)

    def _in_test(self, call: Callable[[], object]) -> None:
        if self._tests_loop is None:
            call()
            return
        with suppress(RuntimeError):  # the test is over
            self._tests_loop.call_soon_threadsafe(call)


class _Writer(Protocol):
    is_broken: bool

    def start(self) -> Iterator[dict[str, Any]]: ...

    def say(self, step: ServerStep) -> Iterator[dict[str, Any]]: ...

    def fail(self, message: str) -> Iterator[dict[str, Any]]: ...

    def end(self) -> Iterator[dict[str, Any]]: ...

    def whole(self) -> dict[str, Any]: ...


class _Connection:
    """One HTTP/1.1 connection: replies with a length, streams in chunks."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: OpenAIServer
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._server = server
        self._keeps_alive = server._keeps_alive

    async def reply(self, reply: Reply) -> bool:
        text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        kind = "text/plain" if isinstance(reply.body, str) else "application/json"
        body = text.encode()
        length = {"content-type": kind, "content-length": str(len(body))}
        self._write(_head(reply.status, {**length, **self._kept(), **reply.headers}) + body)
        await self._writer.drain()
        return self._keeps_alive

    async def begin(self) -> None:
        stream = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        self._write(_head(200, {**stream, **self._kept()}))
        await self._writer.drain()

    async def say(self, events: Iterable[Mapping[str, Any] | str]) -> None:
        for event in events:
            if isinstance(event, str):
                data = f"data: {event}\n\n"
            else:
                name = f"event: {event['type']}\n" if "sequence_number" in event else ""
                data = f"{name}data: {json.dumps(event)}\n\n"
            self._write(_chunk(data.encode()))
            await self._drained()

    async def end(self) -> bool:
        self._write(_chunk(b""))
        await self._writer.drain()
        return self._keeps_alive

    def cut(self) -> None:
        self._writer.transport.abort()

    async def until_gone(self) -> None:
        with suppress(ConnectionError):
            while await self._reader.read(1024):
                pass
        self._server.lost.set()

    def _write(self, data: bytes) -> None:
        if self._writer.is_closing():
            self._server.lost.set()
            raise ConnectionResetError
        self._writer.write(data)

    async def _drained(self) -> None:
        draining = asyncio.ensure_future(self._writer.drain())
        try:
            done, _ = await asyncio.wait({draining}, timeout=STALLED_S)
            if not done:
                self._server.stalled.set()
            await draining
        except ConnectionError:
            self._server.lost.set()
            raise
        finally:
            draining.cancel()

    def _kept(self) -> dict[str, str]:
        return {"connection": "keep-alive" if self._keeps_alive else "close"}


_WIRES: Mapping[str, Any] = {
    f"POST {responses.PATH}": responses,
    f"POST {chat.PATH}": chat,
}


def _refusal(steps: Sequence[ServerStep], *, is_stream: bool) -> Reply | None:
    """Return the reply in place of an answer: what a script says first, or what can only be told so."""
    first = steps[0] if steps else None
    if isinstance(first, Reply):
        return first
    failing = steps if not is_stream else steps[:1]
    for step in failing:
        if isinstance(step, Fail) or (isinstance(step, Break) and not is_stream):
            text = step.text if isinstance(step, Fail) else step.message
            return Reply(500, error_body(text), {"x-should-retry": "false"})
    return None


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _models() -> dict[str, Any]:
    model = {"id": MODEL, "object": "model", "created": 1_800_000_000, "owned_by": "tests"}
    return {"object": "list", "data": [model]}


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve OpenAI's wire on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0 = any free one")
    parser.add_argument("--chat-only", action="store_true", help="without the Responses API")
    chosen = parser.parse_args()
    with OpenAIServer(port=chosen.port, has_responses=not chosen.chat_only) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
