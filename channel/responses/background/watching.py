"""Watching a run of one's own: its lease is renewed, and the turn is told when it was cancelled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from threading import Event, Thread
from typing import Any, Final, Self

from starlette.types import Message, Receive

from channel.faults import log_fault
from channel.isolation import IsolationKeys
from channel.ports import RunStore, StoreError
from channel.responses.companion import CANCELLED


LEASE_S: Final = 45.0
"""Seconds after which a run counts as over whose owner did not renew it."""
RENEWAL_S: Final = 15.0
LOOK_S: Final = 1.5
"""Seconds between two looks at whether the turn shall stop: it notices within two."""

_LOG: Final = logging.getLogger(__name__)

Pause = Callable[[float], Awaitable[Any]]


class Watch:
    """Looks at one run as its owner; `receive` is what a `TurnRun` takes."""

    def __init__(
        self,
        runs: RunStore,
        keys: IsolationKeys,
        response_id: str,
        owner: str,
        *,
        pause: Pause = asyncio.sleep,
    ) -> None:
        """Watch the run of a response."""
        self._runs = runs
        self._keys = keys
        self._response_id = response_id
        self._owner = owner
        self._pause = pause

    async def receive(self) -> Message:
        """Return when the turn was cancelled, or is another's."""
        while True:
            await self._pause(LOOK_S)
            try:
                run = await self._runs.look(self._keys, self._response_id)
            except StoreError:
                continue  # the next look may tell
            if run is None or run.is_cancelled or run.owner != self._owner:
                return CANCELLED


class Heartbeat:
    """Renews a lease from a thread while its context lasts, also where an agent blocks the loop."""

    def __init__(self, renew: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """`renew` is run in a loop of its own, `RENEWAL_S` after it was run before."""
        self._renew = renew
        self._is_over = Event()

    def __enter__(self) -> Self:
        """Begin; the lease was taken just now."""
        Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; a renewal that has begun is left to itself."""
        self._is_over.set()

    def _beat(self) -> None:
        while not self._is_over.wait(RENEWAL_S):
            try:
                asyncio.run(self._renew())
            except Exception as error:  # noqa: BLE001 - the next one may succeed; the lease outlasts two
                log_fault(_LOG, "lease not renewed", error)


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
