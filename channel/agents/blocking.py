"""Blocking streams, read off the event loop: each in a thread of its own, which ends when its reader goes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from threading import Lock, Semaphore, Thread
from typing import Any, Final, Generic, Protocol, TypeVar


AHEAD: Final = 16
"""Items that a thread reads before its reader has taken them."""
MOST_LEFT: Final = 32
"""Threads that may still wait for a stream to open, or for its next item, after their readers went."""

_Item = TypeVar("_Item")
_Given_co = TypeVar("_Given_co", covariant=True)


class TooManyLeftError(Exception):
    """So many threads wait for streams that nobody reads that there is no other one."""

    status_code: Final = 503  # as of an upstream that is not available


class BlockingStream(Protocol[_Given_co]):
    """A stream that blocks where it is read.

    It may have a method `shutdown()`, which another thread calls to end a read that waits. Without
    it, a thread that is not wanted any more ends as soon as its stream gives something.
    """

    def __iter__(self) -> Iterator[_Given_co]:
        """Read the items, blocking."""
        ...

    def close(self) -> Any:
        """Let go of the stream; only the thread that reads it calls this."""
        ...


async def off_loop(
    open_stream: Callable[[], BlockingStream[_Item]], *, ahead: int = AHEAD
) -> AsyncGenerator[_Item, None]:
    """Yield what a stream gives that is opened, read and closed in a thread of its own.

    The thread is not one of asyncio's few, which a store may need meanwhile to make room for more.
    It is at most `ahead` items before its reader. When the reader goes, the stream is shut down and
    the thread awaited, unless it is still opening the stream: then it closes what it gets and ends.
    Raises `TooManyLeftError` while `MOST_LEFT` threads are left that way.
    """
    _left[:] = [thread for thread in _left if thread.is_alive()]
    if len(_left) >= MOST_LEFT:
        raise TooManyLeftError
    reading = _Reading(open_stream, asyncio.get_running_loop(), ahead)
    context = copy_context()
    thread = Thread(target=context.run, args=(reading.run,), name="blocking-stream", daemon=True)
    thread.start()
    try:
        while True:
            item = await reading.take()
            if item is _END:
                break
            yield item
    finally:
        if reading.stop():
            await reading.ended.wait()
            thread.join()  # it has nothing left to do
        else:
            _left.append(thread)
    if reading.error is not None:
        raise reading.error


_END: Final[Any] = object()
_left: Final[list[Thread]] = []


class _Reading(Generic[_Item]):
    """One stream between its thread, which runs `run`, and the loop, which calls all else."""

    def __init__(
        self,
        open_stream: Callable[[], BlockingStream[_Item]],
        loop: asyncio.AbstractEventLoop,
        ahead: int,
    ) -> None:
        self._open_stream = open_stream
        self._loop = loop
        self._items: asyncio.Queue[_Item] = asyncio.Queue()
        self._room = Semaphore(ahead)
        self._lock = Lock()
        self._stream: BlockingStream[_Item] | None = None
        self._is_stopped = False
        self.ended = asyncio.Event()
        self.error: BaseException | None = None

    async def take(self) -> _Item:
        item = await self._items.get()
        self._room.release()
        return item

    def stop(self) -> bool:
        """Have the thread end; return whether it does so at once."""
        with self._lock:
            self._is_stopped = True
            stream = self._stream
        self._room.release()
        if self.ended.is_set():
            return True
        shutdown = getattr(stream, "shutdown", None)
        if shutdown is None:
            return False
        shutdown()
        return True

    def run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001 - raised where the items are read
            self.error = error
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._end)

    def _read(self) -> None:
        stream = self._open_stream()
        try:
            with self._lock:
                self._stream = stream
            for item in stream if not self._is_stopped else ():
                self._room.acquire()
                if self._is_stopped:
                    break
                self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        finally:
            stream.close()

    def _end(self) -> None:
        self.ended.set()
        self._items.put_nowait(_END)
