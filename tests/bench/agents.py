"""The agents that both sides serve: 200 deltas of five characters, much text, or a long wait."""

import asyncio
from collections.abc import AsyncIterator

from channel.agent import Turn


DELTAS = [f"{i:04d} " for i in range(200)]
KILOBYTES = 4096  # of much text
IDLE_S = 5


async def burst() -> AsyncIterator[str]:
    """Never give way."""
    for delta in DELTAS:
        yield delta


async def yielding() -> AsyncIterator[str]:
    """Give way to the loop before every delta, as a model client does."""
    for delta in DELTAS:
        await asyncio.sleep(0)
        yield delta


async def large() -> AsyncIterator[str]:
    """Say much, a kilobyte at a time."""
    for i in range(KILOBYTES):
        await asyncio.sleep(0)
        yield f"{i:08d}" * 128


async def waiting() -> AsyncIterator[str]:
    """Begin, and have nothing to say for a while."""
    yield "…"
    await asyncio.sleep(IDLE_S)


SOURCES = {"burst": burst, "yielding": yielding, "large": large, "waiting": waiting}


def echo(turn: Turn) -> AsyncIterator[str]:
    """Answer with the input, or with the deltas that the model's name asks for."""
    source = SOURCES.get(turn.model)
    return source() if source else _once(turn.text)


async def _once(text: str) -> AsyncIterator[str]:
    yield text
