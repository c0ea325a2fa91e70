"""Agents of another process that the test leads by a socket: they say where they are, and wait to go on.

`GATE` names the Unix socket on which the test listens (`tests.e2e.gate`).
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator

from channel import Turn


PIECES = 768
PIECE = "0123456789abcdef" * 2048
"""32 KB of an answer."""


class Gate:
    """The agent's end of the line to the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def reach(cls) -> "Gate":
        return cls(*await asyncio.open_unix_connection(os.getenv("GATE")))

    def say(self, what: str) -> None:
        self._writer.write(f"{what}\n".encode())

    async def wait(self) -> None:
        await self._reader.readexactly(1)

    def close(self) -> None:
        self._writer.close()


async def agent(turn: Turn) -> AsyncIterator[str]:
    """Do what the model's name says."""
    if turn.model == "waits":
        yield "so far"
        await asyncio.Event().wait()
    kinds = {"steps": _steps, "flood": _flood, "hangs": _hangs, "blocks": _blocks, "fails": _fails}
    chosen = kinds.get(turn.model)
    if chosen is None:
        yield f"{turn.text} and {len(turn.history)} before"
        return
    gate = await Gate.reach()
    try:
        async for text in chosen(gate):
            yield text
    except (asyncio.CancelledError, GeneratorExit):  # as it waits, or between two events
        gate.say("cancelled")
        raise
    finally:
        gate.close()


async def _steps(gate: Gate) -> AsyncIterator[str]:
    for text in ("one ", "two ", "three"):
        yield text
        gate.say(text.strip())
        await gate.wait()


async def _flood(gate: Gate) -> AsyncIterator[str]:
    for number in range(PIECES):
        yield PIECE
        gate.say(str(number))
        await asyncio.sleep(0)


async def _hangs(gate: Gate) -> AsyncIterator[str]:
    yield "so far"
    gate.say("waiting")
    await gate.wait()


async def _blocks(gate: Gate) -> AsyncIterator[str]:
    yield "so far"
    await asyncio.sleep(0)  # lets the event go out
    gate.say("blocking")
    await asyncio.sleep(0)
    time.sleep(3600)  # noqa: ASYNC251 - what an agent must not do


async def _fails(gate: Gate) -> AsyncIterator[str]:
    yield "so far"
    await asyncio.sleep(0)
    gate.say("failing")
    msg = "secret"
    raise LookupError(msg)
