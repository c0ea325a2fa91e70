"""The event log observer: stream events kept in batches, so that any instance can read them again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from channel.faults import log_fault
from channel.ports import EventBatch
from channel.responses.protocol.events import StreamEvent


MAX_BATCH_BYTES: Final = 16 * 1024
BATCH_S: Final = 0.5
FIRST_BATCH_S: Final = 0.1

_LAST_ATTEMPTS: Final = 3
_LOG: Final = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode

Append = Callable[[EventBatch], Awaitable[None]]


class EventLog:
    """Appends what it takes after at most `BATCH_S` seconds, or as soon as it is `MAX_BATCH_BYTES`.

    The first batch is due sooner. A batch that could not be stored is part of the next one.
    """

    def __init__(self, append: Append) -> None:
        """Give every batch to `append`, one at a time."""
        self._append = append
        self._lock = asyncio.Lock()
        self._events: list[bytes] = []
        self._first = 0
        self._size = 0
        self._written_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write: asyncio.Task[None] | None = None
        self._is_closed = False
        self.on_gone: Callable[[], None] | None = None

    @property
    def ready(self) -> Sequence[object]:
        """Nothing: it is written when it is due, and not whenever an agent waits."""
        return ()

    def take(self, events: Sequence[StreamEvent], /) -> bool:
        """Add events; return whether there is a whole batch of them."""
        for event in events:
            if not self._events:
                self._first = event.sequence_number
            data = _encode(event)
            self._events.append(data)
            self._size += len(data)
        if not self._lock.locked():  # or else whoever writes sets the timer, when it has
            self._set_timer()
        return self._size >= MAX_BATCH_BYTES

    async def flush(self) -> None:
        """Store what was taken; where that fails, a later batch holds it, too."""
        async with self._lock:
            self._stop_timer()
            events, first = self._events, self._first
            if not events:
                return
            self._events, self._size = [], 0
            try:
                await self._append(EventBatch(first, events))
            except BaseException as error:
                self._events = [*events, *self._events]
                self._first = first
                self._size = sum(map(len, self._events))
                if not isinstance(error, Exception):
                    raise
                log_fault(_LOG, "events not stored", error)
            finally:
                self._written_at = asyncio.get_running_loop().time()
                self._set_timer()  # for those that could not be stored, or came meanwhile

    async def written(self) -> None:
        """Wait until nothing is on its way to the store."""
        async with self._lock:
            pass

    async def close(self) -> None:
        """Store what was taken; nothing follows, and a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for _ in range(_LAST_ATTEMPTS):
            await self.flush()
            if not self._events:
                break
        self.abandon()

    def abandon(self) -> None:
        """Leave no timer and no task behind."""
        self._is_closed = True
        self._stop_timer()
        if self._write is not None:
            self._write.cancel()

    def _set_timer(self) -> None:
        if not self._events or self._timer is not None or self._is_closed:
            return
        loop = asyncio.get_running_loop()
        due_at = loop.time() + FIRST_BATCH_S
        if self._written_at is not None:
            due_at = self._written_at + BATCH_S
        self._timer = loop.call_at(due_at, self._begin_write)

    def _begin_write(self) -> None:
        self._timer = None
        self._write = asyncio.create_task(self.flush())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
