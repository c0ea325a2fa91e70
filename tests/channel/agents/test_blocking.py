"""Blocking streams off the loop: in order, never far ahead, and no thread left behind."""

import asyncio
import gc
from collections.abc import Iterator
from contextvars import ContextVar
from threading import Event, enumerate as threads

import pytest

from channel.agents.blocking import MOST_LEFT, TooManyLeftError, off_loop
from channel.agents.provider_errors import turn_error_of


pytestmark = pytest.mark.anyio
WHO: ContextVar[str] = ContextVar("who", default="nobody")
PATIENCE_S = 10


class Stream:
    """Gives numbers, then fails or waits; notes what becomes of it."""

    def __init__(self, count: int, *, error: Exception | None = None, waits: bool = False) -> None:
        self.given = 0
        self.closed = Event()
        self.is_waiting = Event()
        self._shut = Event()
        self._count = count
        self._error = error
        self._waits = waits

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            self.given += 1
            yield number
        if self._waits:
            self.is_waiting.set()
            self._shut.wait(PATIENCE_S)
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed.set()

    def let_go(self) -> None:
        self._shut.set()


class Interruptible(Stream):
    def shutdown(self) -> None:
        self.let_go()


def reading_threads() -> list[str]:
    return [thread.name for thread in threads() if thread.name == "blocking-stream"]


async def happened(event: Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


async def test_items_come_in_their_order_and_the_stream_is_closed() -> None:
    stream = Stream(100)

    assert [item async for item in off_loop(lambda: stream)] == [*range(100)]
    assert stream.closed.is_set()


async def test_what_the_stream_raises_is_raised_after_its_items() -> None:
    stream = Stream(2, error=LookupError())
    items = off_loop(lambda: stream)

    assert [await anext(items), await anext(items)] == [0, 1]
    with pytest.raises(LookupError):
        await anext(items)
    assert stream.closed.is_set()


async def test_what_the_opening_raises_is_raised() -> None:
    def fail() -> Stream:
        raise LookupError

    with pytest.raises(LookupError):
        await anext(off_loop(fail))


async def test_the_thread_is_only_so_far_ahead_of_its_reader() -> None:
    stream = Interruptible(100)
    items = off_loop(lambda: stream, ahead=3)

    for number in range(20):
        assert await anext(items) == number
        # Those that the reader has, those ahead, and one that waits for room.
        assert stream.given <= number + 1 + 3 + 1
    await items.aclose()

    assert stream.given <= 20 + 3 + 1


async def test_a_reader_that_goes_ends_a_read_that_waits() -> None:
    stream = Interruptible(1, waits=True)
    items = off_loop(lambda: stream)
    await anext(items)
    await happened(stream.is_waiting)

    await items.aclose()

    assert stream.closed.is_set()


async def test_a_reader_that_is_cancelled_ends_a_read_that_waits() -> None:
    stream = Interruptible(1, waits=True)

    async def read() -> None:
        async for _ in off_loop(lambda: stream):
            pass

    task = asyncio.create_task(read())
    await happened(stream.is_waiting)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert stream.closed.is_set()


async def test_a_stream_that_is_being_opened_is_closed_unread_when_its_reader_has_gone() -> None:
    stream, is_opening, may_open = Stream(5), Event(), Event()

    def open_slowly() -> Stream:
        is_opening.set()
        may_open.wait(PATIENCE_S)
        return stream

    task = asyncio.create_task(anext(off_loop(open_slowly)))
    await happened(is_opening)
    task.cancel()
    await asyncio.wait({task})
    assert not stream.closed.is_set()  # nobody waits for an answer that may take minutes
    may_open.set()
    await happened(stream.closed)

    assert stream.given == 0


async def test_only_so_many_threads_are_left_behind_that_open_streams() -> None:
    streams, may_open = [Stream(1) for _ in range(MOST_LEFT)], Event()
    for stream in streams:
        is_opening = Event()

        def open_slowly(stream: Stream = stream, is_opening: Event = is_opening) -> Stream:
            is_opening.set()
            may_open.wait(PATIENCE_S)
            return stream

        task = asyncio.create_task(anext(off_loop(open_slowly)))
        await happened(is_opening)
        task.cancel()
        await asyncio.wait({task})

    with pytest.raises(TooManyLeftError) as raised:
        await anext(off_loop(lambda: Stream(1)))

    error = turn_error_of(raised.value)
    assert error is not None
    assert error.status == 503
    left = [thread for thread in threads() if thread.name == "blocking-stream"]
    may_open.set()
    for thread in left:
        await asyncio.to_thread(thread.join, PATIENCE_S)
    assert [item async for item in off_loop(lambda: Stream(1))] == [0]


async def test_a_stream_that_cannot_be_shut_down_ends_at_its_next_item() -> None:
    stream = Stream(1, waits=True)
    items = off_loop(lambda: stream)
    await anext(items)
    await happened(stream.is_waiting)

    await items.aclose()
    assert not stream.closed.is_set()
    stream.let_go()

    await happened(stream.closed)


async def test_the_thread_sees_the_variables_of_its_reader() -> None:
    class Named(Stream):
        def __iter__(self) -> Iterator[int]:
            yield len(WHO.get())

    WHO.set("somebody")

    assert [item async for item in off_loop(lambda: Named(0))] == [len("somebody")]


def test_a_loop_that_is_gone_leaves_no_thread_behind() -> None:
    stream = Stream(1, waits=True)

    async def begin() -> None:
        items = off_loop(lambda: stream)
        await anext(items)
        await happened(stream.is_waiting)

    asyncio.run(begin())
    stream.let_go()
    assert stream.closed.wait(PATIENCE_S)
    gc.collect()

    for thread in threads():
        if thread.name == "blocking-stream":
            thread.join(PATIENCE_S)
    assert reading_threads() == []
