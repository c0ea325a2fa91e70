"""Watching a run of one's own: its lease is renewed, and the turn is told when it was cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.types import Message, Receive

from channel.isolation import IsolationKeys
from channel.ports import Clock, RunStore, StoreError
from channel.responses.companion import CANCELLED


LEASE_S: Final = 45.0
"""Seconds after which a run counts as over whose owner did not renew it."""
RENEWAL_S: Final = 15.0
LOOK_S: Final = 1.5
"""Seconds between two looks at whether the turn shall stop: it notices within two."""

Pause = Callable[[float], Awaitable[Any]]


class Watch:
    """Looks at one run as its owner; `receive` is what a `TurnRun` takes."""

    def __init__(
        self,
        runs: RunStore,
        keys: IsolationKeys,
        response_id: str,
        owner: str,
        clock: Clock,
        *,
        renews: bool = True,
        pause: Pause = asyncio.sleep,
    ) -> None:
        """Watch the run of a response; without `renews`, its lease is for good from the start."""
        self._runs = runs
        self._keys = keys
        self._response_id = response_id
        self._owner = owner
        self._clock = clock
        self._renews = renews
        self._pause = pause
        self._renewed_at = _loop_time()

    async def receive(self) -> Message:
        """Return when the turn was cancelled, or is another's."""
        while True:
            await self._pause(LOOK_S)
            try:
                if await self._must_stop():
                    return CANCELLED
            except StoreError:
                continue  # the next look may tell; the lease outlasts a renewal that fails

    async def _must_stop(self) -> bool:
        now = _loop_time()
        if self._renews and now - self._renewed_at >= RENEWAL_S:
            until = self._clock() + LEASE_S
            run = await self._runs.renew(self._keys, self._response_id, self._owner, until)
            self._renewed_at = now  # a lease counts from before it was asked for
        else:
            run = await self._runs.look(self._keys, self._response_id)
        return run is None or run.is_cancelled or run.owner != self._owner


def first_of(receive: Receive, other: Receive) -> Receive:
    """Return a `receive` that returns, or raises, whatever either of the two does first."""

    async def either() -> Message:
        tasks = [asyncio.ensure_future(receive()), asyncio.ensure_future(other())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            first = next(task for task in tasks if task.done())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return first.result()

    return either


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
