"""Watching a run of one's own: what stops a turn, what renews its lease, and which of two is first."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from threading import Event

import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive

from channel.isolation import IsolationKeys
from channel.memory_runs import InMemoryRunStore
from channel.ports import Run, StoreError
from channel.responses.background.watching import (
    LEASE_S,
    LOOK_S,
    RENEWAL_S,
    Heartbeat,
    Watch,
    first_of,
)
from channel.responses.companion import CANCELLED
from tests.channel.responses.still import StillLoop, still_loop


pytestmark = pytest.mark.anyio

ANN = IsolationKeys("ann")
RESPONSE_ID = "resp_1"
START = 1_800_000_000.0
GONE: Message = {"type": "http.disconnect"}


class EnoughError(Exception):
    """A watch has paused as often as a test lets it."""


class Runs(InMemoryRunStore):
    """Notes what is asked of the runs it has, and fails where a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.kept = InMemoryRunStore(clock=lambda: self.now)
        self.asked: list[str] = []
        self.failures = 0
        self.failing = {"look", "renew"}

    async def look(
        self, keys: IsolationKeys, response_id: str, /, *, is_strong: bool = True
    ) -> Run | None:
        self._note("look" if is_strong else "weak look")
        return await self.kept.look(keys, response_id)

    async def renew(
        self, keys: IsolationKeys, response_id: str, owner: str, lease_until: float, /
    ) -> Run | None:
        self._note("renew")
        return await self.kept.renew(keys, response_id, owner, lease_until)

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if self.failures and what in self.failing:
            self.failures -= 1
            raise StoreError


Change = Callable[[], Awaitable[object]]


class Time:
    """Passes by pauses, none of which takes any time."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._changes: dict[int, Change] = {}
        self._limit = 100
        self.pauses = 0

    def lets(self, pauses: int) -> None:
        self._limit = self.pauses + pauses

    def then(self, pause: int, change: Change) -> None:
        """Have something happen in the pause of that number, from 1."""
        self._changes[pause] = change

    async def pause(self, seconds: float) -> None:
        assert seconds == LOOK_S
        if self.pauses == self._limit:
            raise EnoughError
        self.pauses += 1
        self._runs.now += seconds
        still_loop().now += seconds
        if self.pauses in self._changes:
            await self._changes[self.pauses]()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Callable[[], StillLoop]]]:
    return "asyncio", {"loop_factory": StillLoop}


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def time(runs: Runs) -> Time:
    return Time(runs)


async def watching(runs: Runs, time: Time) -> Watch:
    """Return a watch of a run that was claimed by `me` just now."""
    await runs.kept.begin(ANN, RESPONSE_ID, Run(START + LEASE_S))
    await runs.kept.claim(ANN, RESPONSE_ID, "me", START + LEASE_S)
    return Watch(runs, ANN, RESPONSE_ID, "me", pause=time.pause)


async def lease(runs: Runs) -> float:
    run = await runs.kept.look(ANN, RESPONSE_ID)
    assert run is not None
    return run.lease_until


async def test_a_cancellation_is_seen_at_the_next_look(runs: Runs, time: Time) -> None:
    watch = await watching(runs, time)
    time.then(3, lambda: runs.kept.request_cancel(ANN, RESPONSE_ID))

    assert await watch.receive() == CANCELLED

    assert runs.asked == ["look"] * 3
    assert LOOK_S < 2


async def test_a_run_that_was_cancelled_before_is_stopped_at_the_first_look(
    runs: Runs, time: Time
) -> None:
    watch = await watching(runs, time)
    await runs.kept.request_cancel(ANN, RESPONSE_ID)

    assert await watch.receive() == CANCELLED
    assert await watch.receive() == CANCELLED

    assert runs.asked == ["look", "look"]


@pytest.mark.parametrize("pause", [1, 2, 10])
async def test_a_run_that_is_anothers_meanwhile_is_stopped(
    runs: Runs, time: Time, pause: int
) -> None:
    watch = await watching(runs, time)
    taken = Run(START + 99, "another")
    time.then(pause, lambda: runs.kept.begin(ANN, RESPONSE_ID, taken))

    assert await watch.receive() == CANCELLED

    assert time.pauses == pause
    assert await lease(runs) == START + 99


@pytest.mark.parametrize("pause", [1, 2, 10])
async def test_a_run_that_was_forgotten_is_stopped(runs: Runs, time: Time, pause: int) -> None:
    watch = await watching(runs, time)
    time.then(pause, lambda: runs.kept.forget(ANN, RESPONSE_ID))

    assert await watch.receive() == CANCELLED

    assert time.pauses == pause


async def test_looks_that_fail_stop_nothing(runs: Runs, time: Time) -> None:
    watch = await watching(runs, time)
    runs.failures = 4
    time.then(6, lambda: runs.kept.request_cancel(ANN, RESPONSE_ID))

    assert await watch.receive() == CANCELLED

    assert runs.asked == ["look"] * 6


async def test_a_lease_outlasts_a_renewal_that_fails_with_all_its_attempts() -> None:
    """A client makes four attempts of 1 s to connect and 3 s to read, and waits 1, 2 and 4 s."""
    call_s = 4 * (1 + 3) + 1 + 2 + 4

    next_attempt_s = RENEWAL_S + LOOK_S + call_s + LOOK_S

    assert next_attempt_s < LEASE_S


async def test_an_error_that_is_not_the_stores_is_raised(runs: Runs, time: Time) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    watch = await watching(runs, time)
    time.then(1, fail)

    with pytest.raises(ZeroDivisionError):
        await watch.receive()


# The heartbeat


class Renewals:
    """Counts renewals, of which some fail."""

    def __init__(self, failures: int = 0) -> None:
        self.count = 0
        self.reached = Event()
        self._failures = failures

    async def __call__(self) -> None:
        self.count += 1
        if self.count > 3:
            self.reached.set()
        if self.count <= self._failures:
            msg = "secret"
            raise StoreError(msg)


def test_a_lease_is_renewed_also_while_an_agent_blocks_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("channel.responses.background.watching.RENEWAL_S", 0.001)
    renewals = Renewals()

    async def block() -> None:
        with Heartbeat(renewals):
            assert renewals.reached.wait(5)  # as an agent would that never awaits

    asyncio.run(block())


def test_a_renewal_that_fails_is_logged_by_its_kind_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("channel.responses.background.watching.RENEWAL_S", 0.001)
    renewals = Renewals(failures=2)

    with Heartbeat(renewals):
        assert renewals.reached.wait(5)

    assert "lease not renewed" in caplog.text
    assert "secret" not in caplog.text


def test_a_heartbeat_ends_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channel.responses.background.watching.RENEWAL_S", 0.001)
    renewals = Renewals()
    with Heartbeat(renewals):
        assert renewals.reached.wait(5)

    for thread in threading.enumerate():
        if thread.name == "heartbeat":
            thread.join(5)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


# The first of two


class Source:
    """A `receive` that a test lets return or raise, and which notes that it was cancelled."""

    def __init__(self) -> None:
        self.told: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.is_cancelled = False
        self.calls = 0

    async def __call__(self) -> Message:
        self.calls += 1
        try:
            return await self.told
        except asyncio.CancelledError:
            await checkpoint()  # ends a step later than it was told to
            self.is_cancelled = True
            raise


async def at_once() -> Message:
    return GONE


async def pending() -> set["asyncio.Task[object]"]:
    """Return the tasks besides this one and the runner's that are not done."""
    return {
        task for task in asyncio.all_tasks() if "either" in repr(task) or "Source" in repr(task)
    }


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("message", [GONE, CANCELLED])
async def test_whatever_comes_first_is_returned_and_the_other_is_cancelled(
    is_first: bool, message: Message
) -> None:
    one, other = Source(), Source()
    receive: Receive = first_of(one, other)
    waiting = asyncio.ensure_future(receive())
    await checkpoint()
    (one if is_first else other).told.set_result(message)

    assert await waiting == message

    assert (one.is_cancelled, other.is_cancelled) == (not is_first, is_first)
    assert await pending() == set()


@pytest.mark.parametrize("is_first", [True, False])
async def test_what_either_raises_is_raised(is_first: bool) -> None:
    one, other = Source(), Source()
    (one if is_first else other).told.set_exception(ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        await first_of(one, other)()

    assert (one.is_cancelled, other.is_cancelled) == (not is_first, is_first)
    assert await pending() == set()


async def test_of_two_that_come_at_once_the_first_counts_and_no_error_is_left_over() -> None:
    for _ in range(20):
        one, other = Source(), Source()
        one.told.set_result(GONE)
        other.told.set_exception(ZeroDivisionError())

        assert await first_of(one, other)() == GONE

    assert await pending() == set()


async def test_what_is_there_already_is_returned() -> None:
    other = Source()

    assert await first_of(at_once, other)() == GONE
    assert await first_of(at_once, at_once)() == GONE

    assert await pending() == set()


async def test_whoever_cancels_it_cancels_both() -> None:
    one, other = Source(), Source()
    receive: Receive = first_of(one, other)
    waiting = asyncio.ensure_future(receive())
    await checkpoint()
    await checkpoint()

    waiting.cancel()
    await asyncio.wait({waiting})

    assert waiting.cancelled()
    assert one.is_cancelled
    assert other.is_cancelled
    assert await pending() == set()


async def test_it_can_be_asked_again() -> None:
    one, other = Source(), Source()
    receive = first_of(one, other)
    one.told.set_result({"type": "http.request"})
    assert await receive() == {"type": "http.request"}
    one.told = asyncio.get_running_loop().create_future()
    other.told = asyncio.get_running_loop().create_future()
    other.told.set_result(CANCELLED)

    assert await receive() == CANCELLED

    assert (one.calls, other.calls) == (2, 2)
