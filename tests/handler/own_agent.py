"""An agent of somebody's own."""

from collections.abc import AsyncIterator

from channel.agent import AgentEvent, Turn


async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield f"You said: {turn.text}"
