"""The worker: an event that is a job of ours, and no HTTP request, runs here on either mount."""

from collections.abc import Mapping
from time import monotonic
from typing import Any

import msgspec

from channel.deadline import TimeLeft
from channel.jobs import JobHandler
from channel.ports import Job
from handler.events import UnknownEventError


class JobWorker:
    """Runs jobs by their kind; `margin_s` is what of an invocation's time is left for their end."""

    def __init__(self, jobs: Mapping[str, JobHandler], margin_s: float) -> None:
        """Take what runs the jobs."""
        self._jobs = jobs
        self._margin_s = margin_s

    async def __call__(self, event: Any, context: Any) -> None:
        """Run one job; raises `UnknownEventError` for what is none, and what the job raised."""
        try:
            job = msgspec.convert(event, Job)
        except msgspec.ValidationError:
            raise UnknownEventError(event, self._jobs) from None
        run = self._jobs.get(job.kind)
        if run is None:
            raise UnknownEventError(event, self._jobs)
        left_s = context.get_remaining_time_in_millis() / 1000
        await run(job.payload, TimeLeft.within(left_s, self._margin_s).since(monotonic()))
