"""Jobs as tasks of this process: run, logged when they fail, and ended with their server."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from channel.deadline import Deadline
from channel.jobs import TaskJobs
from channel.ports import Job
from tests.channel.responses.still import StillLoop, passed, settled


pytestmark = pytest.mark.anyio

SECRET = "the user's words"
PAYLOAD = {"response_id": "resp_1"}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Callable[[], StillLoop]]]:
    return "asyncio", {"loop_factory": StillLoop}


class Work:
    """A job that goes on until a test lets it end, and takes a step to end when it is cancelled."""

    def __init__(self, *, is_stubborn: bool = False) -> None:
        self.gate = asyncio.Event()
        self.farewell = asyncio.Event()
        self.given: list[tuple[dict[str, Any], Deadline | None]] = []
        self.ended: list[str] = []
        self.is_stubborn = is_stubborn

    async def __call__(self, payload: dict[str, Any], deadline: Deadline | None) -> None:
        self.given.append((payload, deadline))
        try:
            await self.gate.wait()
            self.ended.append("done")
        except asyncio.CancelledError:
            await self.farewell.wait()
            self.ended.append("cancelled")
            if not self.is_stubborn:
                raise


def jobs_of(**handlers: Any) -> TaskJobs:
    jobs = TaskJobs()
    jobs.handlers.update(handlers)
    return jobs


async def test_a_job_runs_beside_whoever_starts_it() -> None:
    work = Work()
    jobs = jobs_of(work=work)

    await jobs.start(Job("work", PAYLOAD))

    assert work.given == []  # the one who starts it goes on first
    await settled()
    assert (work.given, work.ended) == ([(PAYLOAD, None)], [])
    work.gate.set()
    await settled()
    assert work.ended == ["done"]


async def test_a_handler_may_be_added_after_the_jobs_were_given_away() -> None:
    jobs, work = TaskJobs(), Work()
    jobs.handlers["late"] = work

    await jobs.start(Job("late", {}))
    await settled()

    assert work.given == [({}, None)]
    work.gate.set()
    await settled()


async def test_jobs_run_at_once() -> None:
    work = Work()
    jobs = jobs_of(work=work)

    for number in range(3):
        await jobs.start(Job("work", {"n": number}))
    await settled()

    assert [payload["n"] for payload, _ in work.given] == [0, 1, 2]
    work.gate.set()
    await settled()
    assert work.ended == ["done"] * 3


async def test_a_job_that_fails_is_logged_by_type_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(payload: dict[str, Any], deadline: Deadline | None) -> None:
        raise ZeroDivisionError(SECRET)

    jobs = jobs_of(work=fail)

    await jobs.start(Job("work", {"text": SECRET}))
    await settled()
    await jobs.drain()

    (record,) = caplog.records
    assert record.getMessage() == "job work failed: ZeroDivisionError"
    assert record.exc_info is None
    assert SECRET not in str(vars(record))


async def test_a_kind_that_nobody_takes_is_logged_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = jobs_of()

    await jobs.start(Job("work", {"text": SECRET}))
    await settled()

    (record,) = caplog.records
    assert record.getMessage() == "job work failed: KeyError"
    assert SECRET not in str(vars(record))


async def test_draining_cancels_what_runs_and_waits_for_its_end() -> None:
    one, other = Work(), Work(is_stubborn=True)
    jobs = jobs_of(one=one, other=other)
    await jobs.start(Job("one", {}))
    await jobs.start(Job("other", {}))
    await settled()

    draining = asyncio.create_task(jobs.drain())
    await settled()
    assert not draining.done()
    one.farewell.set()
    await settled()
    assert not draining.done()
    other.farewell.set()
    await draining

    assert one.ended == other.ended == ["cancelled"]


async def test_draining_does_not_wait_for_ever() -> None:
    work = Work()
    jobs = jobs_of(work=work)
    await jobs.start(Job("work", {}))
    await settled()

    draining = asyncio.create_task(jobs.drain())
    await settled()
    await passed(4.9)
    assert not draining.done()
    await passed(0.2)

    assert draining.done()
    work.farewell.set()
    await settled()
    assert work.ended == ["cancelled"]


async def test_a_job_that_had_no_step_yet_is_cancelled_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work()
    jobs = jobs_of(work=work)
    await jobs.start(Job("work", {}))

    await jobs.drain()

    assert work.given == []
    assert caplog.records == []


async def test_draining_what_is_done_does_nothing() -> None:
    work = Work()
    work.gate.set()
    jobs = jobs_of(work=work)
    await jobs.drain()
    await jobs.start(Job("work", {}))
    await settled()

    await jobs.drain()
    await jobs.drain()

    assert work.ended == ["done"]
