"""Turns that run in one task of their own: frameworks keep cancel scopes and tracing contexts by task."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import cast

from channel.agent import Agent, AgentEvent, Turn


_END = object()


class AgentExitError(Exception):
    """The agent, or a tool of it, wanted to end the process; it ends its turn only."""


def in_own_task(run: Callable[[Turn], AsyncGenerator[AgentEvent, None]]) -> Agent:
    """Return an agent each of whose turns is one task from beginning to end.

    A host steps an agent from wherever it is itself; what a framework opens in one step (an anyio
    cancel scope, the token of a ContextVar) it must close in the same task. The task is at most one
    event ahead of whom it tells, and is cancelled and awaited when that one goes.
    """

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        said: asyncio.Queue[AgentEvent | object] = asyncio.Queue()
        room = asyncio.Semaphore(1)
        task = asyncio.create_task(_tell(run(turn), said, room))
        task.add_done_callback(lambda _: said.put_nowait(_END))
        try:
            while (event := await said.get()) is not _END:
                room.release()
                yield cast("AgentEvent", event)
            await task
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # seen: it was raised above, or nobody is there to see it

    return agent


async def _tell(
    events: AsyncGenerator[AgentEvent, None],
    said: asyncio.Queue[AgentEvent | object],
    room: asyncio.Semaphore,
) -> None:
    try:
        async with aclosing(events):
            async for event in events:
                await room.acquire()
                said.put_nowait(event)
    except SystemExit as error:
        # asyncio would let it end the process, and with it everybody else's turn.
        raise AgentExitError from error
