"""An event loop whose time stands still until a test moves it: timers without waiting for any."""

import asyncio

from anyio.lowlevel import checkpoint


_STEPS = 20
"""Rounds of the loop in which whatever a timer began has come to its next wait."""


class StillLoop(asyncio.SelectorEventLoop):
    """Calls a timer when a test has moved the time to it."""

    now = 1000.0

    def time(self) -> float:
        return self.now


def timers() -> list[asyncio.TimerHandle]:
    """Return the timers that are set."""
    scheduled: list[asyncio.TimerHandle] = still_loop()._scheduled  # type: ignore[attr-defined] # no public way
    return [timer for timer in scheduled if not timer.cancelled()]


def still_loop() -> StillLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StillLoop)
    return loop


async def settled() -> None:
    """Let everything run that does not wait for the time, or for the test."""
    for _ in range(_STEPS):
        await checkpoint()


async def passed(seconds: float) -> None:
    """Let so much time pass, all at once, and what is due then run."""
    still_loop().now += seconds
    await settled()
