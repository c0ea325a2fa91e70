"""Asynchronous invocations: accepted at once, delivered at least once, tried again, given up."""

import asyncio
from typing import Any

import pytest

from handler.emulator.options import Faults
from tests.handler.emulator.serving import WORKER, Gate, Served, serving, until_stopped


pytestmark = pytest.mark.anyio


async def put(served: Served, **event: Any) -> None:
    reply = await served.invoke(event, kind="Event")
    assert (reply.status_code, reply.content) == (202, b"")


async def test_an_event_is_accepted_before_it_is_worked_on(gate: Gate) -> None:
    async with serving(WORKER) as served:
        await put(served, name="a", **gate.header)
        await served.lines.until("working on a")
        was_over = served.lines.has("REPORT")
        gate.open()
        await served.lines.until("REPORT")

    (record,) = served.url.invocations
    assert not was_over
    assert (record.kind, record.delivery, record.status) == ("Event", 1, None)
    assert (record.mode, record.answered, record.error) == ("buffered", 202, None)
    assert not served.url.failed_jobs


async def test_an_event_that_fails_is_tried_again_twice_and_then_given_up() -> None:
    async with serving(WORKER, retry_after_s=(0, 0)) as served:
        reply = await served.invoke({"does": "fail", "name": "a"}, kind="Event")
        await served.lines.until("DROPPED")

    request_id = reply.headers["x-amzn-requestid"]
    told = [(one.request_id, one.delivery) for one in served.url.invocations]
    assert told == [(request_id, 1), (request_id, 2), (request_id, 3)]
    (failed,) = served.url.failed_jobs
    assert (failed.request_id, failed.event) == (request_id, b'{"does":"fail","name":"a"}')
    assert failed.failure == served.url.invocations[-1].error
    assert failed.failure.type == "LookupError"


async def test_an_event_that_works_in_the_end_is_not_tried_any_more() -> None:
    async with serving(WORKER, retry_after_s=(0, 0)) as served:
        await put(served, does="fail once", name="a")
        await served.lines.until("delivery 2")
        await put(served, name="b")
        await served.lines.until("working on b")

    first, second, _ = served.url.invocations
    assert first.error is not None
    assert (second.error, second.delivery, second.pid) == (None, 2, first.pid)
    assert not served.url.failed_jobs


async def test_an_event_whose_process_dies_is_tried_again_in_a_new_one() -> None:
    async with serving(WORKER, retry_after_s=(0,)) as served:
        await put(served, does="exit")
        await served.lines.until("DROPPED")

    kinds = [record.error.type for record in served.url.invocations if record.error]
    assert kinds == ["Runtime.ExitError"] * 2
    assert len({record.pid for record in served.url.invocations}) == 2


async def test_an_event_that_takes_too_long_is_given_up_with_its_process(gate: Gate) -> None:
    blocked = {"does": "block", "blocked by": gate.header["gate"]}
    async with serving(WORKER, timeout_s=1, retry_after_s=()) as served:
        await put(served, **blocked)
        await served.lines.until("DROPPED")
        after = await served.invoke({"name": "b"})

    (failed,) = served.url.failed_jobs
    assert failed.failure.type == "Sandbox.Timedout"
    assert after.json()["process"] != served.url.invocations[0].pid


async def test_the_end_forgets_an_event_that_waits_for_its_next_try() -> None:
    async with serving(WORKER, retry_after_s=(3600,)) as served:
        await put(served, does="fail", name="a")
        await served.lines.until("REPORT")

    assert len(served.url.invocations) == 1
    assert not served.url.failed_jobs


async def test_an_event_waits_where_a_request_is_throttled(gate: Gate) -> None:
    async with serving(WORKER) as served, asyncio.TaskGroup() as group:
        group.create_task(served.get("/gated?a", headers=gate.header))
        await served.lines.until("at the gate a")
        await put(served, name="b")
        await put(served, name="c")
        throttled = await served.get("/hello")
        was_working = served.lines.has("working on")
        gate.open()
        await served.lines.until("working on b")
        await served.lines.until("working on c")

    assert throttled.status_code == 429
    assert not was_working
    assert len({record.pid for record in served.url.invocations}) == 1


async def test_an_event_gets_an_environment_of_its_own_where_all_are_busy(gate: Gate) -> None:
    async with serving(WORKER, environments=2) as served, asyncio.TaskGroup() as group:
        group.create_task(served.get("/gated?a", headers=gate.header))
        await served.lines.until("at the gate a")
        await put(served, name="b")
        await served.lines.until("Event delivery 1")
        pids = served.url.pids
        gate.open()

    request, job = served.url.invocations
    assert [request.pid, job.pid] == pids
    assert request.pid != job.pid


async def test_an_event_wakes_a_frozen_environment_which_is_frozen_after_it(gate: Gate) -> None:
    async with serving(WORKER, freezes=True) as served:
        await served.url.warm_up()
        (pid,) = served.url.pids
        await until_stopped(pid)
        await put(served, name="a", **gate.header)
        await served.lines.until("working on a")
        gate.open()
        await served.lines.until("REPORT")
        await until_stopped(pid)

    (record,) = served.url.invocations
    assert (record.pid, record.error) == (pid, None)


async def test_an_environment_with_nothing_to_do_is_frozen_while_another_works(
    gate: Gate, other_gate: Gate
) -> None:
    async with serving(WORKER, environments=2, freezes=True) as served:
        async with asyncio.TaskGroup() as group:
            group.create_task(served.get("/gated?a", headers=gate.header))
            await served.lines.until("at the gate a")
            await put(served, name="b", **other_gate.header)
            await served.lines.until("working on b")
            gate.open()
        first, second = served.url.pids
        await until_stopped(first)
        is_over = served.lines.has("Event delivery 1")
        other_gate.open()
        await served.lines.until("Event delivery 1")
        await until_stopped(second)

    assert not is_over
    assert [record.pid for record in served.url.invocations] == [first, second]


async def test_an_event_is_delivered_twice_where_that_is_asked_for() -> None:
    faults = Faults(delivers_twice=True)
    async with serving(WORKER, faults, environments=2) as served:
        await put(served, name="a")
        await served.lines.until("delivery 1")
        await served.lines.until("delivery 2")

    first, second = served.url.invocations
    assert first.request_id == second.request_id
    assert first.pid != second.pid
    assert (first.error, second.error) == (None, None)


async def test_events_share_a_managed_instance(gate: Gate) -> None:
    faults = Faults(delivers_twice=True)
    async with serving(WORKER, faults, concurrency=2) as served:
        await put(served, name="a", **gate.header)
        gate.open()
        gate.open()
        await served.lines.until("delivery 1")
        await served.lines.until("delivery 2")

    first, second = served.url.invocations
    assert first.pid == second.pid
    assert (first.error, second.error) == (None, None)
