"""A server of Bedrock's runtime on loopback: its REST protocol, its rules, and a scripted model behind it.

It answers `POST /model/<id>/converse-stream` with frames of `application/vnd.amazon.eventstream`
(their layout is in AWS's page "Event stream encoding") and `POST /model/<id>/count-tokens` with a
number. Requests that the real service refuses are refused here, too.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from socket import create_server
from ssl import SSLContext
from threading import Thread
from typing import Any, TypeAlias
from urllib.parse import unquote

from msgspec import Struct, field

from tests.channel.agents.scripts import (
    Call,
    Fail,
    Meet,
    Say,
    Seen,
    Spend,
    Step,
    Stop,
    Think,
    Wait,
)
from tests.models.bedrock_wire import frame, seen_of, violation


class Event(Struct, frozen=True):
    """One event as it is, such as `Event("contentBlockDelta", {…})`."""

    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)


class Refuse(Struct, frozen=True):
    """An HTTP error in place of the stream; each attempt of a client takes one."""

    status: int
    code: str
    message: str = ""


class Throw(Struct, frozen=True):
    """An exception in the stream, such as `throttlingException`."""

    kind: str
    message: str = ""


class Cut(Struct, frozen=True):
    """The stream ends in the middle of a frame; `is_clean`: as if it had been all (a proxy does that)."""

    is_clean: bool = False


class Spoil(Struct, frozen=True):
    """A frame whose checksum is wrong."""


class Hold(Struct, frozen=True):
    """The server says nothing before this event is set, not even the status."""

    until: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)


ServerStep: TypeAlias = Step | Event | Refuse | Throw | Cut | Spoil | Hold
ServerScript: TypeAlias = Sequence[Sequence[ServerStep]]


class Asked(Struct, frozen=True):
    """One request, as it came."""

    model_id: str
    operation: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]


class BedrockServer:
    """One scripted server: `serve` it, or use it `in_thread`; it has an endpoint before that."""

    def __init__(self, script: ServerScript = (), *, tls: SSLContext | None = None) -> None:
        """Take the steps of each call of the model, in their order."""
        self._tls = tls
        self.asked: list[Asked] = []
        self.seen: list[Seen] = []
        self.counts: int | Refuse = 42
        self.connections = 0
        self.is_stalled = asyncio.Event()
        """A stream was not read as fast as it was written."""
        self._script = iter(script)
        self._socket = create_server(("127.0.0.1", 0))
        self._task: asyncio.Task[None] | None = None
        port = self._socket.getsockname()[1]
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{port}"

    def start(self, at_end: Callable[[], Any] = lambda: None) -> "BedrockServer":
        """Serve on the running loop, until it ends."""

        async def serve() -> None:
            try:
                await self.serve()
            finally:
                at_end()

        self._task = asyncio.get_running_loop().create_task(serve())
        return self

    async def serve(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self._talk, sock=self._socket, ssl=self._tls)
        async with server:
            await server.serve_forever()

    @contextmanager
    def in_thread(self) -> Iterator["BedrockServer"]:
        """Serve from a thread of its own, for tests that block."""
        loop = asyncio.new_event_loop()
        task = loop.create_task(self.serve())

        def run() -> None:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)

        thread = Thread(target=run)
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            others = asyncio.all_tasks(loop)
            for other in others:
                other.cancel()
            if others:
                loop.run_until_complete(asyncio.gather(*others, return_exceptions=True))
            loop.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (asked := await _request(reader)) is not None:
                self.asked.append(asked)
                answering = _Answering(reader, writer, self.is_stalled)
                if asked.operation == "count-tokens":
                    await answering.count(self.counts)
                elif wrong := violation(asked.body):
                    await answering.refuse(Refuse(400, "ValidationException", wrong))
                else:
                    self.seen.append(seen_of(asked.body))
                    await answering.run(next(self._script))
                if answering.is_over:
                    break
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")[:-2]
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(headers["content-length"]))
    method, path, _ = first.split(" ")
    _, model, model_id, operation = path.split("/")
    assert (method, model) == ("POST", "model")
    assert "/bedrock/aws4_request" in headers["authorization"]  # signed, for this service
    return Asked(unquote(model_id), operation, json.loads(body), headers)


class _Answering:
    """One answer: what a script says, as frames in chunks of HTTP."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_stalled: asyncio.Event,
    ) -> None:
        self._is_stalled = is_stalled
        self.is_over = False  # the connection is of no more use
        self._reader = reader
        self._writer = writer
        self._has_begun = False
        self._block = 0
        self._has_called = False
        self._stop = ""
        self._spent = Spend(0, 0)

    async def run(self, steps: Sequence[ServerStep]) -> None:
        for step in steps:
            await self._take(step)
            if self.is_over or self._stop == "refused":
                return
        reason = self._stop or ("tool_use" if self._has_called else "end_turn")
        await self._event("messageStop", {"stopReason": reason})
        await self._event("metadata", _metadata(self._spent))
        await self._end()

    async def count(self, tokens: int | Refuse) -> None:
        if isinstance(tokens, Refuse):
            await self.refuse(tokens)
        else:
            await self._json(200, {"inputTokens": tokens})

    async def refuse(self, error: Refuse) -> None:
        body = {"message": error.message}
        await self._json(error.status, body, f"x-amzn-errortype: {error.code}\r\n")
        self._stop = "refused"

    async def _json(self, status: int, body: Any, headers: str = "") -> None:
        data = json.dumps(body).encode()
        self._writer.write(
            f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\n{headers}"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        await self._writer.drain()

    async def _take(self, step: ServerStep) -> None:
        match step:
            case Say() | Think() | Call():
                await self._say(step)
            case Spend():
                self._spent = step
            case Stop(reason):
                self._stop = _STOPS.get(reason, reason)
            case Event(kind, body):
                await self._event(kind, body)
            case Wait() | Meet() | Hold():
                await self._pause(step)
            case _:
                await self._fail(step)

    async def _say(self, step: Say | Think | Call) -> None:
        match step:
            case Say(pieces):
                await self._deltas([{"text": piece} for piece in pieces])
            case Think(pieces, signature):
                deltas: list[dict[str, Any]] = [{"text": piece} for piece in pieces]
                deltas += [{"signature": signature}] if signature else []
                await self._deltas([{"reasoningContent": delta} for delta in deltas])
            case Call(name, arguments, call_id):
                self._has_called = True
                start = {"toolUse": {"toolUseId": call_id, "name": name}}
                text = json.dumps(arguments) if arguments else ""
                deltas = [{"toolUse": {"input": piece}} for piece in (text[:7], text[7:]) if piece]
                await self._deltas(deltas, start)

    async def _pause(self, step: Wait | Meet | Hold) -> None:
        match step:
            case Wait(begun, ended):
                await self._flush()
                begun.set()
                with suppress(OSError):  # as TLS may tell of the end
                    while await self._reader.read(1024):
                        pass
                ended.set()
                self.is_over = True
            case Meet(barrier):
                await barrier.wait()
            case Hold(until, begun):
                begun.set()
                await until.wait()

    async def _fail(self, step: ServerStep) -> None:
        match step:
            case Refuse():
                await self.refuse(step)
            case Fail(text) if not self._has_begun:
                await self.refuse(Refuse(500, "InternalServerException", text))
            case Fail(text):
                await self._throw(Throw("modelStreamErrorException", text))
            case Throw():
                await self._throw(step)
            case Spoil():
                whole = frame("contentBlockDelta", _delta(self._block, {"text": "changed"}))
                await self._chunk(whole.replace(b"changed", b"chanced"))
            case Cut(is_clean):
                whole = frame("contentBlockDelta", _delta(self._block, {"text": "never read"}))
                await self._chunk(whole[: len(whole) // 2])
                if is_clean:
                    await self._end()
                self.is_over = True

    async def _deltas(
        self, deltas: list[dict[str, Any]], start: Mapping[str, Any] | None = None
    ) -> None:
        index = self._block
        if start is not None:
            await self._event("contentBlockStart", {"start": start, "contentBlockIndex": index})
        for delta in deltas:
            await self._event("contentBlockDelta", _delta(index, delta))
        await self._event("contentBlockStop", {"contentBlockIndex": index})
        self._block += 1

    async def _event(self, kind: str, body: Mapping[str, Any]) -> None:
        if not self._has_begun and kind != "messageStart":
            await self._flush()
        await self._chunk(frame(kind, body))

    async def _flush(self) -> None:
        if not self._has_begun:
            await self._chunk(frame("messageStart", {"role": "assistant"}))

    async def _throw(self, step: Throw) -> None:
        await self._chunk(frame(step.kind, {"message": step.message}, is_exception=True))
        await self._end()
        self._stop = "refused"

    async def _chunk(self, data: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        if self._writer.transport.get_write_buffer_size():
            self._is_stalled.set()
        await self._writer.drain()

    async def _end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()


_STOPS = {"length": "max_tokens", "content_filter": "guardrail_intervened"}


def _delta(index: int, delta: Mapping[str, Any]) -> dict[str, Any]:
    return {"delta": delta, "contentBlockIndex": index}


def _metadata(spent: Spend) -> dict[str, Any]:
    read = spent.cached_tokens
    return {
        "usage": {
            "inputTokens": spent.input_tokens - read,  # those of the cache are not among them
            "outputTokens": spent.output_tokens,
            "totalTokens": spent.input_tokens + spent.output_tokens,
            **({"cacheReadInputTokens": read, "cacheWriteInputTokens": 0} if read else {}),
        },
        "metrics": {"latencyMs": 1},
    }
