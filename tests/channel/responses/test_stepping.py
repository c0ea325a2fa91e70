import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from channel.responses.stepping import Before, begun, resumed


pytestmark = pytest.mark.anyio

_Value = TypeVar("_Value")


async def eagerly(awaitable: Awaitable[_Value], before: Before) -> _Value:
    """Take the first step, and resume what gave way; as a turn does with its agent."""
    step: Any = awaitable.__await__()
    try:
        parked = step.send(None)
    except StopIteration as done:
        value: _Value = done.value
        return value
    return await resumed(step, parked, before)


class Journal:
    """What happened, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def before(self) -> None:
        self.lines.append("before begins")
        await checkpoint()
        self.lines.append("before ends")


async def test_what_is_ready_at_once_is_not_preceded() -> None:
    journal = Journal()

    async def answer() -> int:
        return 1

    assert await eagerly(answer(), journal.before) == 1
    assert journal.lines == []


async def test_what_has_to_wait_has_begun_when_it_is_preceded() -> None:
    journal = Journal()

    async def answer() -> int:
        journal.lines.append("begins")
        await checkpoint()
        journal.lines.append("ends")
        return 1

    assert await eagerly(answer(), journal.before) == 1
    assert journal.lines == ["begins", "before begins", "before ends", "ends"]


async def test_a_future_that_is_done_meanwhile_is_taken() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def before() -> None:
        future.set_result(1)

    with anyio.fail_after(5):
        assert await eagerly(future, before) == 1


async def test_what_fails_at_once_fails() -> None:
    async def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await eagerly(fail(), Journal().before)


async def test_what_fails_later_fails() -> None:
    async def fail() -> None:
        await checkpoint()
        raise KeyError

    with pytest.raises(KeyError):
        await eagerly(fail(), Journal().before)


async def test_a_failure_before_arrives_where_the_step_waits() -> None:
    seen: list[str] = []

    async def before() -> None:
        raise KeyError

    async def answer() -> int:
        try:
            await asyncio.Event().wait()
        except KeyError:
            seen.append("KeyError")
        await checkpoint()
        return 1

    with anyio.fail_after(5):
        assert await eagerly(answer(), before) == 1
    assert seen == ["KeyError"]


async def test_a_failure_before_that_the_step_does_not_take_passes_through() -> None:
    async def before() -> None:
        raise KeyError

    with pytest.raises(KeyError), anyio.fail_after(5):
        await eagerly(asyncio.Event().wait(), before)


async def test_a_cancellation_while_it_waits_reaches_the_step() -> None:
    journal = Journal()
    waits = asyncio.Event()

    async def answer() -> None:
        try:
            waits.set()
            await asyncio.Event().wait()
        finally:
            journal.lines.append("cleaned up")

    task = asyncio.create_task(eagerly(answer(), journal.before))
    with anyio.fail_after(5):
        await waits.wait()
    for _ in range(3):
        await checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert journal.lines == ["before begins", "before ends", "cleaned up"]


async def test_a_cancellation_during_before_reaches_both() -> None:
    lines: list[str] = []
    began = asyncio.Event()

    async def before() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            lines.append("before")

    async def answer() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            lines.append("step")

    task = asyncio.create_task(eagerly(answer(), before))
    with anyio.fail_after(5):
        await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert lines == ["before", "step"]


async def test_a_timeout_inside_of_the_step_holds() -> None:
    async def answer() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "never"

    with anyio.fail_after(5):
        assert await eagerly(answer(), Journal().before) == "timed out"


async def test_a_step_of_an_agent_is_resumed_where_it_gave_way() -> None:
    gate = asyncio.Event()
    journal = Journal()

    async def agent() -> AsyncIterator[str]:
        await gate.wait()
        yield "a"

    step = agent().__anext__().__await__()
    parked = step.send(None)
    gate.set()

    with anyio.fail_after(5):
        assert await resumed(step, parked, journal.before) == "a"
    assert journal.lines == ["before begins", "before ends"]


async def test_a_step_may_be_resumed_with_nothing_before_it() -> None:
    async def answer() -> int:
        await checkpoint()
        return 1

    step = answer().__await__()
    parked = step.send(None)

    assert await resumed(step, parked, None) == 1


async def test_work_that_has_begun_is_a_task_of_its_own() -> None:
    tasks: list[object] = []

    async def work() -> None:
        tasks.append(asyncio.current_task())
        await checkpoint()
        tasks.append(asyncio.current_task())

    task = begun(work())
    await task

    assert tasks == [task, task]
