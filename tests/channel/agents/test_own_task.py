"""A turn in a task of its own: one task throughout, no further ahead than one event, never left behind."""

import asyncio
from collections.abc import AsyncGenerator
from contextvars import ContextVar

import anyio
import pytest

from channel.agent import AgentEvent, Turn
from channel.agents.own_task import AgentExitError, in_own_task


pytestmark = pytest.mark.anyio
TURN = Turn(input=[])
BOUND: ContextVar[str] = ContextVar("bound", default="")


async def test_its_events_arrive_in_order() -> None:
    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        for word in "abc":
            yield word

    assert [event async for event in in_own_task(run)(TURN)] == ["a", "b", "c"]


async def test_scopes_and_variables_close_in_the_task_that_opened_them() -> None:
    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        token = BOUND.set("here")
        with anyio.CancelScope():
            yield "a"
            await asyncio.sleep(0)
            yield BOUND.get()
        BOUND.reset(token)

    events = in_own_task(run)(TURN).__aiter__()
    # Each step in a task, and so in a context, of its own.
    said = [await asyncio.ensure_future(step()) for step in [events.__anext__] * 2]
    with pytest.raises(StopAsyncIteration):
        await events.__anext__()

    assert said == ["a", "here"]


async def test_what_it_raises_is_raised_after_what_it_said() -> None:
    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        yield "a"
        raise LookupError

    events = in_own_task(run)(TURN).__aiter__()

    assert await events.__anext__() == "a"
    with pytest.raises(LookupError):
        await events.__anext__()


async def test_an_exit_ends_its_turn_and_not_the_process() -> None:
    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        yield "a"
        raise SystemExit(3)

    events = in_own_task(run)(TURN).__aiter__()
    await events.__anext__()

    with pytest.raises(AgentExitError):
        await events.__anext__()


async def test_a_cancellation_of_its_own_making_ends_it() -> None:
    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        yield "a"
        raise asyncio.CancelledError

    events = in_own_task(run)(TURN).__aiter__()
    await events.__anext__()

    with pytest.raises(asyncio.CancelledError):
        await events.__anext__()


async def test_it_is_no_more_than_one_event_ahead() -> None:
    made = []

    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        for word in "abcdef":
            made.append(word)
            yield word

    events = in_own_task(run)(TURN).__aiter__()
    await events.__anext__()
    for _ in range(20):
        await asyncio.sleep(0)

    assert made == ["a", "b", "c"]  # told, waiting in the queue, waiting for room
    await events.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("waits", [True, False])
async def test_it_is_cancelled_and_awaited_when_its_reader_goes(waits: bool) -> None:
    ended = []
    before = asyncio.all_tasks()

    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        try:
            while True:
                yield "a"
                if waits:
                    await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    events = in_own_task(run)(TURN).__aiter__()
    await events.__anext__()
    for _ in range(5):
        await asyncio.sleep(0)
    await events.aclose()  # type: ignore[attr-defined]

    assert ended == [True]
    assert asyncio.all_tasks() == before
