"""The one agent that both sides serve: 200 deltas of five characters, without any waiting of its own."""

import asyncio
from collections.abc import AsyncIterator

from channel.agent import Turn


DELTAS = [f"{i:04d} " for i in range(200)]


async def burst() -> AsyncIterator[str]:
    """Never give way."""
    for delta in DELTAS:
        yield delta


async def yielding() -> AsyncIterator[str]:
    """Give way to the loop before every delta, as a model client does."""
    for delta in DELTAS:
        await asyncio.sleep(0)
        yield delta


SOURCES = {"burst": burst, "yielding": yielding}


def echo(turn: Turn) -> AsyncIterator[str]:
    """Answer with the input, or with the deltas that the model's name asks for."""
    source = SOURCES.get(turn.model)
    return source() if source else _once(turn.text)


async def _once(text: str) -> AsyncIterator[str]:
    yield text
