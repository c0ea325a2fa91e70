"""The SSE observer: stream events as bytes, written together when they are ready together."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from time import monotonic
from types import MappingProxyType
from typing import Final

import msgspec
from starlette.types import Message, Send

from channel.responses.protocol.events import (
    ContentPartDone,
    KeptEvent,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    StreamEvent,
)


MAX_BATCH_BYTES: Final = 16 * 1024

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_DONE: Final = b"data: [DONE]\n\n"
_WHOLE: Final = frozenset(
    {
        *(OutputTextDone, ContentPartDone, OutputItemDone),
        *(ResponseCompleted, ResponseIncomplete, ResponseFailed),
    }
)
"""Events that each hold a text as a whole: they are encoded one by one, as they are written."""
_PIECE_BYTES: Final = 64 * 1024
"""One event larger than this is several writes: there is no other copy of a large text then."""
DUE_S: Final = 0.1
"""Seconds after which what is ready is written, of an agent that never lets anything be flushed."""
_WHOLE_BYTES: Final = 512  # as it is reckoned until then
_encode = msgspec.json.Encoder().encode
_decode_failed = msgspec.json.Decoder(ResponseFailed).decode


def frame(event: StreamEvent | KeptEvent) -> bytes:
    r"""Return `event: <type>\ndata: <json>\n\n`: one line of data, LF only."""
    data = event.data if isinstance(event, KeptEvent) else _encode(event)
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), data)


class SSEWriter:
    """Writes stream events to an ASGI `send`; nothing is sent before the first `flush`.

    Events that `take` got since the last flush go out in as few writes as hold whole events in at
    most `MAX_BATCH_BYTES`; the first text delta is due at once, others within a moment. After
    `keepalive_s` seconds without a write (0: never) a `keepalive` event repeats the last sequence
    number. With `has_trailers` (ASGI's extension) a response that failed is named there, too:
    `x-error-code`.
    """

    def __init__(
        self,
        send: Send,
        *,
        keepalive_s: float = 0.0,
        has_trailers: bool = False,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write to this `send`, with `headers` besides those of every stream."""
        self._send = send
        self._keepalive_s = keepalive_s
        self._has_trailers = has_trailers
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self.ready: list[bytes | StreamEvent] = []  # what is to be flushed
        self._size = 0
        self._is_plain = True  # whether all that is ready is bytes
        self._going: Iterator[bytes] | None = None  # what a flush has taken, and not written yet
        self._has_head = False
        self._has_delta = False
        self._taken: StreamEvent | KeptEvent | None = None
        self._told: StreamEvent | KeptEvent | None = None
        self._written_at = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None
        self._is_closing = False
        self.on_gone: Callable[[], None] | None = None

    def take(self, events: Sequence[StreamEvent | KeptEvent], /) -> bool:
        """Add events to what is ready; return whether it should be flushed now."""
        is_due, size = False, 0
        for event in events:
            kind = type(event)
            if kind is OutputTextDelta:
                # `frame` with its constant part written out: nearly all events are text deltas.
                data = b"event: response.output_text.delta\ndata: %b\n\n" % _encode(event)
                size = len(data)
                self.ready.append(data)
                if not self._has_delta:
                    self._has_delta = is_due = True
            elif kind in _WHOLE and not isinstance(event, KeptEvent):
                size = _WHOLE_BYTES
                self.ready.append(event)
                self._is_plain = False
            else:
                data = frame(event)
                size = len(data)
                self.ready.append(data)
            self._size += size
            self._taken = event
        # Due before it overflows: one event more like the last would take another write.
        if is_due or self._size + size > MAX_BATCH_BYTES:
            return True
        # Of an agent that blocks, say; with one that waits there is never more than one event here.
        return len(self.ready) > 1 and monotonic() - self._written_at > DUE_S

    async def flush(self) -> None:
        """Write what is ready."""
        await self._lock.acquire()
        try:
            if not self._has_head:
                await self._write_head()
            if self._going is None and self._is_plain and self._size <= MAX_BATCH_BYTES:
                ready, self.ready, self._size = self.ready, [], 0
                self._told = self._taken
                batch: bytes = b"".join(ready)  # type: ignore[arg-type]
                await self._send({"type": "http.response.body", "body": batch, "more_body": True})
            else:
                await self._write_batches()
            self._written_at = monotonic()
        except OSError:
            self._lose_client()
        finally:
            self._lock.release()

    async def written(self) -> None:
        """Wait until nothing is on its way out."""
        async with self._lock:
            pass

    async def close(self) -> None:
        """Write what is ready and end the stream; nothing follows, and a second call does nothing."""
        if self._is_closing:
            return
        self.ready.append(_DONE)
        self._size += len(_DONE)
        await self.cut()

    async def cut(self) -> None:
        """Write what is ready and end the reply, but not the stream: its client may resume it."""
        self.abandon()
        await self.flush()
        with suppress(OSError):
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            if self._has_trailers:
                await self._send({"type": "http.response.trailers", "headers": self._trailers()})

    def abandon(self) -> None:
        """Write no keep-alive any more."""
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()

    def _lose_client(self) -> None:
        """Write nothing any more; what the run does about it is not the writer's business."""
        self._send = _send_nowhere
        if self.on_gone is not None:
            self.on_gone()

    async def _write_batches(self) -> None:
        ready, self.ready, self._size, self._is_plain = self.ready, [], 0, True
        self._told = self._taken
        # A flush that was cancelled has left the rest of what it took, which goes first.
        self._going = chain(self._going or (), _batches(ready))
        for batch in self._going:
            await self._send({"type": "http.response.body", "body": batch, "more_body": True})
        self._going = None

    def _trailers(self) -> list[tuple[bytes, bytes]]:
        last = self._taken
        if isinstance(last, KeptEvent) and last.type == "response.failed":
            last = _decode_failed(last.data)
        if not isinstance(last, ResponseFailed) or last.response.error is None:
            return []
        code = last.response.error.code
        # An agent's own code may be anything.
        return [(b"x-error-code", ascii(code)[1:-1].encode())]

    async def _write_head(self) -> None:
        self._has_head = True
        more = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        head = {"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *more]}
        if self._has_trailers:
            head["trailers"] = True
        await self._send(head)
        if self._keepalive_s:
            self._timer = self._loop.call_later(self._keepalive_s, self._keep_alive)

    def _keep_alive(self) -> None:
        idle_s = monotonic() - self._written_at
        if idle_s >= self._keepalive_s:
            self._beat = self._loop.create_task(self._write_beat())
            idle_s = 0.0
        self._timer = self._loop.call_later(self._keepalive_s - idle_s, self._keep_alive)

    async def _write_beat(self) -> None:
        if self._told and not (self.ready or self._is_closing or self._lock.locked()):
            self.ready.append(self._keepalive(self._told.sequence_number))
            await self.flush()

    def _keepalive(self, last_number: int) -> bytes:
        data = b'{"type":"keepalive","sequence_number":%d}' % last_number
        return b"event: keepalive\ndata: %b\n\n" % data


def _batches(ready: Iterable[bytes | StreamEvent]) -> Iterator[bytes]:
    """Yield as few writes of whole events as there can be."""
    batch: list[bytes] = []
    size = 0
    for each in ready:
        for data in (each,) if isinstance(each, bytes) else _pieces(each):
            if batch and size + len(data) > MAX_BATCH_BYTES:
                yield b"".join(batch)
                batch, size = [], 0
            batch.append(data)
            size += len(data)
    yield b"".join(batch)


def _pieces(event: StreamEvent) -> Iterator[bytes]:
    """Yield `frame(event)`, whole or in pieces; the last line and the blank one are in one of them."""
    data = _encode(event)
    head = b"event: %b\ndata: " % event.type.encode()
    last = max(0, (len(data) - 1) // _PIECE_BYTES) * _PIECE_BYTES
    for begin in range(0, last, _PIECE_BYTES):
        yield head + data[begin : begin + _PIECE_BYTES]
        head = b""
    yield b"%b%b\n\n" % (head, data[last:])


async def _send_nowhere(_message: Message) -> None:
    """Stand in for the `send` of a client that is gone."""
