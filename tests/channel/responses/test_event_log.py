"""The event log: when it writes, what it writes, and what it leaves behind. Its time is moved by hand."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from channel.ports import EventBatch, StoreError
from channel.responses.background.event_log import BATCH_S, FIRST_BATCH_S, MAX_BATCH_BYTES, EventLog
from channel.responses.protocol.events import OutputTextDelta, StreamEvent
from tests.channel.responses.still import StillLoop, passed, settled, timers


pytestmark = pytest.mark.anyio

A_LITTLE = 0.001


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Callable[[], StillLoop]]]:
    return "asyncio", {"loop_factory": StillLoop}


class Events:
    """Makes events, and takes batches of them as a store does: slowly or in vain where a test says so."""

    def __init__(self) -> None:
        self.batches: list[EventBatch] = []
        self.attempts: list[EventBatch] = []
        self.failures: list[BaseException] = []
        self.gate: asyncio.Event | None = None
        self._number = 0

    async def append(self, batch: EventBatch) -> None:
        self.attempts.append(batch)
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(batch)

    def close_gate(self) -> asyncio.Event:
        self.gate = asyncio.Event()
        return self.gate

    def make(self, count: int = 1, size: int = 0) -> list[StreamEvent]:
        """Return the next events, each with a text of that size."""
        first, self._number = self._number, self._number + count
        return [OutputTextDelta(n, "msg_1", 0, 0, "x" * size) for n in range(first, self._number)]

    @property
    def written(self) -> list[list[int]]:
        """The numbers of the events that were kept, by batch."""
        return [numbers(batch) for batch in self.batches]


def numbers(batch: EventBatch) -> list[int]:
    """Return the numbers of a batch's events, which are those that the batch says."""
    found = [json.loads(event)["sequence_number"] for event in batch.events]
    assert found == [*range(batch.first, batch.last + 1)]
    return found


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def log(events: Events) -> EventLog:
    return EventLog(events.append)


async def nothing_is_left() -> None:
    """Hold that neither a timer nor a task is left, and that no time brings one back."""
    await settled()
    assert timers() == []
    await passed(60)
    ours = {each for each in asyncio.all_tasks() if "EventLog" in repr(each.get_coro())}
    assert ours == set()


# When it writes


async def test_nothing_is_written_before_anything_was_taken(log: EventLog, events: Events) -> None:
    assert log.take([]) is False
    await log.flush()
    await log.written()

    await passed(60)

    assert events.attempts == []
    assert timers() == []
    assert log.ready == ()


async def test_the_first_batch_is_written_soon_and_later_ones_at_leisure(
    log: EventLog, events: Events
) -> None:
    assert log.take(events.make(2)) is False
    await passed(FIRST_BATCH_S - A_LITTLE)
    assert events.written == []
    await passed(2 * A_LITTLE)
    assert events.written == [[0, 1]]

    log.take(events.make())
    await passed(BATCH_S - 2 * A_LITTLE)
    assert events.written == [[0, 1]]
    await passed(2 * A_LITTLE)
    assert events.written == [[0, 1], [2]]
    await log.close()


async def test_what_comes_before_a_batch_is_due_is_part_of_it(
    log: EventLog, events: Events
) -> None:
    for _ in range(5):
        log.take(events.make())
        await passed(FIRST_BATCH_S / 5 + A_LITTLE)
    log.take(events.make(3))
    await passed(BATCH_S)

    assert events.written == [[0, 1, 2, 3, 4], [5, 6, 7]]
    await log.close()


async def test_after_a_pause_the_next_batch_is_written_at_once(
    log: EventLog, events: Events
) -> None:
    log.take(events.make())
    await passed(FIRST_BATCH_S)
    await passed(60)
    log.take(events.make())
    await settled()

    assert events.written == [[0], [1]]
    await log.close()


async def test_a_whole_batch_is_to_be_flushed_and_has_no_need_of_the_time(
    log: EventLog, events: Events
) -> None:
    piece = MAX_BATCH_BYTES // 4
    assert [log.take(events.make(size=piece)) for _ in range(4)] == [False, False, False, True]
    await log.flush()

    assert events.written == [[0, 1, 2, 3]]
    assert timers() == []
    assert log.take(events.make()) is False
    await log.close()


async def test_a_batch_is_as_large_as_its_events_are_on_the_wire(
    log: EventLog, events: Events
) -> None:
    (empty,) = events.make()
    log.take([empty])
    await log.flush()
    overhead = len(events.batches[0].events[0])

    assert log.take(events.make(size=MAX_BATCH_BYTES - overhead - 1)) is False
    await log.flush()
    assert log.take(events.make(size=MAX_BATCH_BYTES - overhead)) is True
    await log.close()


async def test_a_whole_batch_that_nobody_flushes_is_written_when_it_is_due(
    log: EventLog, events: Events
) -> None:
    assert log.take(events.make(size=2 * MAX_BATCH_BYTES)) is True

    await passed(FIRST_BATCH_S)

    assert events.written == [[0]]
    await log.close()


# A store that is slow


async def test_flushing_waits_for_the_store(log: EventLog, events: Events) -> None:
    gate = events.close_gate()
    log.take(events.make(size=MAX_BATCH_BYTES))
    flushing = asyncio.create_task(log.flush())
    await settled()
    assert not flushing.done()

    gate.set()
    await flushing

    assert events.written == [[0]]
    await log.close()


async def test_what_is_taken_while_the_store_is_slow_is_one_batch_after_that(
    log: EventLog, events: Events
) -> None:
    gate = events.close_gate()
    log.take(events.make())
    await passed(FIRST_BATCH_S)
    for _ in range(10):
        log.take(events.make())
        await passed(BATCH_S)
    assert len(events.attempts) == 1
    assert timers() == []

    gate.set()
    await settled()
    assert events.written == [[0]]
    await passed(BATCH_S)

    assert events.written == [[0], [*range(1, 11)]]
    await log.close()


async def test_two_batches_are_never_on_their_way_at_once(log: EventLog, events: Events) -> None:
    gate = events.close_gate()
    log.take(events.make())
    await passed(FIRST_BATCH_S)
    log.take(events.make(size=MAX_BATCH_BYTES))
    flushing = [asyncio.create_task(log.flush()) for _ in range(3)]
    await passed(BATCH_S)
    assert len(events.attempts) == 1

    gate.set()
    await asyncio.gather(*flushing)

    assert events.written == [[0], [1]]
    await log.close()


async def test_a_timer_that_meets_a_flush_writes_nothing_twice(
    log: EventLog, events: Events
) -> None:
    gate = events.close_gate()
    log.take(events.make())
    flushing = asyncio.create_task(log.flush())
    await passed(FIRST_BATCH_S)

    gate.set()
    await flushing
    await passed(BATCH_S)

    assert events.written == [[0]]
    await log.close()


async def test_waiting_until_all_is_written_begins_no_write(log: EventLog, events: Events) -> None:
    gate = events.close_gate()
    log.take(events.make())
    await passed(FIRST_BATCH_S)
    log.take(events.make())
    waiting = asyncio.create_task(log.written())
    await settled()
    assert not waiting.done()

    gate.set()
    await waiting

    assert events.written == [[0]]
    await log.close()


# A store that fails


async def test_what_could_not_be_stored_is_part_of_the_next_batch(
    log: EventLog, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    events.failures = [StoreError("the words of a user")]
    log.take(events.make(2))
    await passed(FIRST_BATCH_S)
    log.take(events.make())
    assert events.written == []

    await passed(BATCH_S)

    assert [numbers(each) for each in events.attempts] == [[0, 1], [0, 1, 2]]
    assert events.written == [[0, 1, 2]]
    (record,) = caplog.records
    assert record.getMessage() == "events not stored: StoreError"
    assert "words" not in caplog.text
    await log.close()


@pytest.mark.parametrize("size", [0, MAX_BATCH_BYTES])
@pytest.mark.parametrize("is_flushed", [True, False])
async def test_what_could_not_be_stored_is_tried_again_though_nothing_more_comes(
    log: EventLog, events: Events, size: int, is_flushed: bool
) -> None:
    events.failures = [StoreError(), StoreError()]
    log.take(events.make(size=size))
    if is_flushed:
        await log.flush()
    else:
        await passed(FIRST_BATCH_S)
    assert len(events.attempts) == 1

    await passed(BATCH_S)
    assert len(events.attempts) == 2
    await passed(BATCH_S)

    assert events.written == [[0]]
    assert timers() == []
    await log.close()


async def test_what_was_taken_during_a_write_that_fails_keeps_its_place(
    log: EventLog, events: Events
) -> None:
    events.failures = [StoreError()]
    gate = events.close_gate()
    log.take(events.make(2))
    await passed(FIRST_BATCH_S)
    log.take(events.make(2))
    gate.set()
    await settled()

    await log.flush()

    assert events.written == [[0, 1, 2, 3]]
    await log.close()


async def test_failures_add_up_to_a_batch_that_is_to_be_flushed(
    log: EventLog, events: Events
) -> None:
    events.failures = [StoreError()]
    log.take(events.make(size=MAX_BATCH_BYTES // 2))
    await log.flush()

    assert log.take(events.make(size=MAX_BATCH_BYTES // 2)) is True
    await log.flush()

    assert events.written == [[0, 1]]
    await log.close()


async def test_an_error_that_is_not_the_stores_loses_nothing_and_is_logged_by_its_kind(
    log: EventLog, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    events.failures = [ZeroDivisionError("secret")]
    log.take(events.make())

    await log.flush()
    assert "events not stored: ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text

    await log.flush()
    assert events.written == [[0]]
    await log.close()


async def test_a_flush_that_is_cancelled_loses_nothing(log: EventLog, events: Events) -> None:
    gate = events.close_gate()
    log.take(events.make())
    flushing = asyncio.create_task(log.flush())
    await settled()
    log.take(events.make())
    flushing.cancel()
    await asyncio.wait({flushing})
    gate.set()

    await log.close()

    assert events.written == [[0, 1]]


# Its end


async def test_closing_writes_what_is_left_at_once(log: EventLog, events: Events) -> None:
    log.take(events.make())
    await passed(FIRST_BATCH_S)
    log.take(events.make(3))

    await log.close()
    await log.close()

    assert events.written == [[0], [1, 2, 3]]
    await nothing_is_left()


async def test_closing_waits_for_the_batch_that_is_on_its_way(
    log: EventLog, events: Events
) -> None:
    gate = events.close_gate()
    log.take(events.make())
    await passed(FIRST_BATCH_S)
    log.take(events.make())
    closing = asyncio.create_task(log.close())
    await settled()
    assert not closing.done()

    gate.set()
    await closing

    assert events.written == [[0], [1]]
    await nothing_is_left()


@pytest.mark.parametrize("failures", [1, 2])
async def test_closing_tries_again(log: EventLog, events: Events, failures: int) -> None:
    events.failures = [StoreError() for _ in range(failures)]
    log.take(events.make(2))

    await log.close()

    assert events.written == [[0, 1]]
    assert len(events.attempts) == failures + 1
    await nothing_is_left()


async def test_closing_tries_three_times_and_then_gives_up(
    log: EventLog, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    events.failures = [StoreError() for _ in range(9)]
    log.take(events.make(2))

    await log.close()
    await log.close()

    assert len(events.attempts) == 3
    assert len(caplog.records) == 3
    await nothing_is_left()
    assert len(events.attempts) == 3


async def test_closing_an_empty_log_writes_nothing(log: EventLog, events: Events) -> None:
    await log.close()

    assert events.attempts == []


async def test_abandoning_leaves_neither_timer_nor_task(log: EventLog, events: Events) -> None:
    log.take(events.make())

    log.abandon()
    log.abandon()

    await nothing_is_left()
    assert events.attempts == []


async def test_abandoning_ends_the_write_that_has_begun(log: EventLog, events: Events) -> None:
    events.close_gate()
    log.take(events.make())
    await passed(FIRST_BATCH_S)
    log.take(events.make())
    await passed(BATCH_S)

    log.abandon()

    await nothing_is_left()
    assert len(events.attempts) == 1
    assert events.written == []


# Whatever happens


class Life:
    """What may happen to a log, as methods."""

    def __init__(self) -> None:
        self.events = Events()
        self.log = EventLog(self.events.append)
        self.count = 0

    async def take(self) -> None:
        self.count += 1
        self.log.take(self.events.make())

    async def take_much(self) -> None:
        self.count += 3
        is_whole = self.log.take(self.events.make(3, size=MAX_BATCH_BYTES // 5))
        if is_whole and self.events.gate is None:
            await self.log.flush()

    async def wait_a_little(self) -> None:
        await passed(FIRST_BATCH_S)

    async def wait(self) -> None:
        await passed(BATCH_S)

    async def fail(self) -> None:
        self.events.failures.append(StoreError())

    async def stall(self) -> None:
        if self.events.gate is None:
            self.events.close_gate()

    async def go_on(self) -> None:
        if self.events.gate is not None:
            self.events.gate.set()
            self.events.gate = None

    async def end(self) -> None:
        await self.go_on()
        del self.events.failures[2:]
        await self.log.close()


STEPS = st.sampled_from(
    [Life.take, Life.take_much, Life.wait_a_little, Life.wait, Life.fail, Life.stall, Life.go_on]
)


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=60, deadline=None)
def test_every_event_is_kept_once_and_in_order_whatever_the_store_does(
    steps: list[Callable[[Life], Coroutine[Any, Any, None]]],
) -> None:
    async def live() -> None:
        life = Life()
        for step in steps:
            await step(life)
        await life.end()

        written = [number for batch in life.events.written for number in batch]
        assert written == [*range(life.count)]
        await nothing_is_left()

    with asyncio.Runner(loop_factory=StillLoop) as runner:
        runner.run(live())
