"""`Serving`: turns run as the replies to requests; each is measured, and waited for where a server stops."""

import asyncio
from typing import Any, Final

from starlette.types import Receive

from channel.ports import Telemetry
from channel.responses.observing import Observer
from channel.responses.run import FailedBeforeReplyError, TurnRun, facts_of


_DRAIN_S: Final = 5.0


class Serving:
    """Runs the turns of one route; `telemetry` hears of each."""

    def __init__(self, telemetry: Telemetry | None) -> None:
        """Run nothing yet."""
        self._telemetry = telemetry
        self._running: set[asyncio.Task[Any]] = set()

    async def drain(self) -> None:
        """Let the turns that a stopping server has cancelled store what they are."""
        if self._running:
            await asyncio.wait(self._running, timeout=_DRAIN_S)

    async def run(
        self,
        turn: TurnRun,
        observer: Observer,
        receive: Receive,
        *,
        started_at: float,
        is_stream: bool,
    ) -> None:
        """Run a turn to its end; its request came in then (`time.monotonic`).

        Raises what `TurnRun.run` raises: the reply to that is the caller's.
        """
        outcome, task = "cancelled", asyncio.current_task()
        try:
            run = turn.run(observer, receive)
            if task is not None:
                self._running.add(task)
            # A stream waits often, and every wait costs by the depth of what is awaited: a task of
            # its own is not as deep as all the layers above.
            await (asyncio.create_task(run) if is_stream else run)
            outcome = str(turn.response.status)
        except FailedBeforeReplyError:
            outcome = "failed"
            raise
        finally:
            if task is not None:
                self._running.discard(task)
            if self._telemetry is not None:
                facts = facts_of(turn, outcome, started_at, is_stream=is_stream)
                self._telemetry.turn_finished(facts)
