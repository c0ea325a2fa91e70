"""Asynchronous invocations: events that wait for an environment, and are tried again where they fail.

As AWS's page "How Lambda handles errors and retries with asynchronous invocation" says, but without
an age at which an event that finds no room is given up.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count

from msgspec import Struct

from handler.emulator.environments import KEPT, Environments
from handler.emulator.invocation import BrokenOffError, Record, new_trace_id, report
from handler.runtime_api import Failure


class FailedJob(Struct, frozen=True):
    """An event that was given up, and why its last attempt failed."""

    request_id: str
    event: bytes
    failure: Failure


class EventQueue:
    """Delivers each event at least once; `failed` holds those that were given up, the oldest first."""

    def __init__(
        self,
        environments: Environments,
        retry_after_s: Sequence[float],
        log: Callable[[str], None],
    ) -> None:
        """Try a failed event again after each of these pauses, in seconds."""
        self.failed: deque[FailedJob] = deque(maxlen=KEPT)
        self._environments = environments
        self._retry_after_s = retry_after_s
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    def put(self, request_id: str, event: bytes) -> None:
        """Take an event; it is delivered in its own time."""
        numbers = count(1)
        for _ in range(2 if self._environments.faults.delivers_twice else 1):
            if self._is_stopping:
                return
            task = asyncio.create_task(self._deliver(request_id, event, numbers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Forget what is here."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self, request_id: str, event: bytes, numbers: Iterator[int]) -> None:
        trace_id, pauses_s = new_trace_id(time.time()), iter(self._retry_after_s)
        while True:
            record = Record(request_id=request_id, kind="Event", delivery=next(numbers))
            failure = await self._attempt(record, event, trace_id)
            if failure is None:
                return
            pause_s = next(pauses_s, None)
            if pause_s is None:
                self.failed.append(FailedJob(request_id, event, failure))
                self._log(f"DROPPED {request_id} {failure.type}: {failure.message}")
                return
            await asyncio.sleep(pause_s)

    async def _attempt(self, record: Record, event: bytes, trace_id: str) -> Failure | None:
        invocation = await self._environments.invoke_in_turn(record, event, trace_id)
        begun = time.monotonic()
        try:
            with suppress(BrokenOffError):
                await invocation.whole()
        finally:
            invocation.close()
        told = ["Event", f"delivery {record.delivery}"]
        self._log(report(record, told, time.monotonic() - begun))
        return record.error
