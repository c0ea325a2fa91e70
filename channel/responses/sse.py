"""The SSE observer: stream events as bytes, written together when they are ready together."""

import asyncio
from collections.abc import Iterable
from typing import Final

import msgspec
from starlette.types import Message, Send

from channel.responses.protocol.events import OutputTextDelta, StreamEvent


MAX_BATCH_BYTES: Final = 16 * 1024

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_DONE: Final = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def frame(event: StreamEvent) -> bytes:
    r"""Return `event: <type>\ndata: <json>\n\n`: one line of data, LF only."""
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), _encode(event))


class SSEWriter:
    """Writes stream events to an ASGI `send`; nothing is sent before the first `flush`.

    Events that `take` got since the last flush go out in as few writes as hold whole events in at
    most `MAX_BATCH_BYTES`; the first text delta goes out at once. After `keepalive_s` seconds
    without a write (0: never) a `keepalive` event repeats the last sequence number.
    """

    def __init__(self, send: Send, *, keepalive_s: float = 0.0) -> None:
        """Write to this `send`."""
        self._send = send
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._ready: list[bytes] = []
        self._size = 0
        self._has_head = False
        self._has_delta = False
        self._taken = self._told = -1  # sequence numbers
        self._written_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None
        self.is_gone = False

    @property
    def has_ready(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._ready)

    def take(self, events: Iterable[StreamEvent]) -> bool:
        """Add events to what is ready; return whether it should be flushed now."""
        is_due = False
        for event in events:
            if type(event) is OutputTextDelta:
                # `frame` with its constant part written out: nearly all events are text deltas.
                data = b"event: response.output_text.delta\ndata: %b\n\n" % _encode(event)
                if not self._has_delta:
                    self._has_delta = is_due = True
            else:
                data = frame(event)
            self._ready.append(data)
            self._size += len(data)
            self._taken = event.sequence_number
        return is_due or self._size >= MAX_BATCH_BYTES

    async def flush(self) -> None:
        """Write what is ready."""
        async with self._lock:
            for batch in await self._begin():
                await self._write({"type": "http.response.body", "body": batch, "more_body": True})

    async def close(self) -> None:
        """Write what is ready and end the stream; nothing follows."""
        if self._timer is not None:
            self._timer.cancel()
        self._ready.append(_DONE)
        async with self._lock:
            *batches, last = await self._begin()
            for batch in batches:
                await self._write({"type": "http.response.body", "body": batch, "more_body": True})
            await self._write({"type": "http.response.body", "body": last, "more_body": False})

    async def _begin(self) -> list[bytes]:
        """Take what is ready, in batches, after the head of the reply is out."""
        ready, self._ready, self._size = self._ready, [], 0
        self._told = self._taken
        if not self._has_head:
            self._has_head = True
            head = {"type": "http.response.start", "status": 200, "headers": [*_HEADERS]}
            await self._write(head)
            if self._keepalive_s:
                self._timer = self._loop.call_later(self._keepalive_s, self._keep_alive)
        return _batches(ready)

    async def _write(self, message: Message) -> None:
        if self.is_gone:
            return
        self._written_at = self._loop.time()
        try:
            await self._send(message)
        except OSError:
            # The client went away: what the run does about it is not the writer's business.
            self.is_gone = True

    def _keep_alive(self) -> None:
        idle_s = self._loop.time() - self._written_at
        if idle_s >= self._keepalive_s:
            self._beat = self._loop.create_task(self._write_beat())
            idle_s = 0.0
        self._timer = self._loop.call_later(self._keepalive_s - idle_s, self._keep_alive)

    async def _write_beat(self) -> None:
        beat = b'event: keepalive\ndata: {"type":"keepalive","sequence_number":%d}\n\n' % self._told
        async with self._lock:
            await self._write({"type": "http.response.body", "body": beat, "more_body": True})


def _batches(frames: list[bytes]) -> list[bytes]:
    batches: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for data in frames:
        if batch and size + len(data) > MAX_BATCH_BYTES:
            batches.append(b"".join(batch))
            batch, size = [], 0
        batch.append(data)
        size += len(data)
    if batch:
        batches.append(b"".join(batch))
    return batches
