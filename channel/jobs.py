"""Jobs as tasks of this process: for a local server, which is there when the reply is over."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from channel.deadline import Deadline
from channel.faults import log_fault
from channel.ports import Job


_DRAIN_S: Final = 5.0
_LOG: Final = logging.getLogger(__name__)

JobHandler: TypeAlias = Callable[[dict[str, Any], Deadline | None], Awaitable[None]]
"""Takes the payload of a job, and when it must be over."""


class TaskJobs:
    """The `Jobs` of one process: each is a task, which a server that stops cancels."""

    def __init__(self) -> None:
        """Have no handlers yet; they are added by kind."""
        self.handlers: dict[str, JobHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, job: Job, /) -> None:
        """Run the job in a task."""
        task = asyncio.create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Cancel what runs, and let it store what it is."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_DRAIN_S)

    async def _run(self, job: Job) -> None:
        try:
            await self.handlers[job.kind](job.payload, None)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            log_fault(_LOG, f"job {job.kind} failed", error)
