"""What runs beside a turn while its agent waits: the end of the grace, and what may cut the turn."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from enum import Enum, auto
from types import coroutine
from typing import Any, Final, TypeVar

from starlette.types import Message, Receive

from channel.deadline import Deadline
from channel.responses.observing import Observer
from channel.responses.stepping import Before, resumed


PATIENCE_S: Final = 5.0
"""Seconds that an agent has to end after its client went away, before its turn is told without it."""

CANCELLED: Final[Message] = {"type": "lambda_responses.cancelled"}
"""A message besides ASGI's own: the client, who may still read, has cancelled the turn."""

_Event = TypeVar("_Event")


class Cut(Enum):
    """Why a turn was ended that was not done."""

    CLIENT_GONE = auto()
    CANCELLED = auto()
    OUT_OF_TIME = auto()
    SERVER_STOPPED = auto()


class Companion:
    """Begins with the agent's first wait, so that an agent that never waits pays nothing for it."""

    def __init__(
        self,
        receive: Receive,
        observer: Observer,
        end_grace: Callable[[], Coroutine[Any, Any, None] | None],
        grace_s: float,
        abandon: Callable[[], Coroutine[Any, Any, None]],
        *,
        patience_s: float = PATIENCE_S,
        deadline: Deadline | None = None,
    ) -> None:
        """`end_grace` is called once, `grace_s` seconds after the first wait; what it returns is run.

        `abandon` is run where the turn goes on, `patience_s` seconds after the client has gone, or
        those of the deadline after that.
        """
        self._receive = receive
        self._observer = observer
        self._end_grace = end_grace
        self._grace_s = grace_s
        self._abandon = abandon
        self._patience_s = patience_s
        self._deadline = deadline
        self._turn: asyncio.Task[Any] | None = None
        self._is_waiting = False
        self._has_cancelled = False
        self._watch: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._asides: list[asyncio.Task[None]] = []
        self._is_dismissed = False
        self.cut: Cut | None = None
        self._cut_patience_s = patience_s  # counts where the turn waits first after it was cut

    @property
    def has_begun(self) -> bool:
        """Whether anything runs beside the turn."""
        return self._watch is not None or bool(self._asides)

    @coroutine
    def wait(
        self, step: Generator[Any, Any, _Event], parked: Any, before: Before | None
    ) -> Generator[Any, Any, _Event | None]:
        """Wait for the agent's next event (`resumed`); None where the turn was cut instead.

        A wait that begins after the cut is one for the agent's end, which has its time.
        """
        if self._turn is None:
            self._begin()
        self._is_waiting = self.cut is None
        try:
            return (yield from resumed(step, parked, before))
        except asyncio.CancelledError:
            if not self._has_cancelled:
                raise
            return None
        finally:
            self._is_waiting = False
            if self._has_cancelled and self._turn is not None:
                # The cancellation was ours, whatever the agent made of it.
                self._has_cancelled = False
                self._turn.uncancel()

    def lose_client(self) -> None:
        """Note that the client is gone, and end the agent's wait."""
        if self._cut(Cut.CLIENT_GONE, self._patience_s):
            self._interrupt()

    def cancel(self) -> None:
        """Note that the turn was cancelled, and end the agent's wait."""
        if self._cut(Cut.CANCELLED, self._patience_s):
            self._asides.append(asyncio.create_task(self._interrupt_when_written()))

    def look_at_the_time(self) -> None:
        """Note that the time is over, which nothing else does of an agent that never waits."""
        if self._deadline is not None and time.monotonic() >= self._deadline.ends_at:
            self._run_out()

    async def dismiss(self) -> None:
        """End what runs beside the turn; a write that has begun is finished, and nothing cuts it now."""
        self._is_dismissed = True
        self._drop_timers()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        for aside in self._asides:
            await aside

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._turn = asyncio.current_task()
        self._watch = loop.create_task(self._watch_client())
        if self.cut is not None:
            self._timers = [loop.call_later(self._cut_patience_s, self._on_patience_end)]
            return
        self._timers = [loop.call_later(self._grace_s, self._on_grace_end)]
        if self._deadline is not None:
            self._timers.append(loop.call_at(self._deadline.ends_at, self._run_out))

    def _cut(self, cut: Cut, patience_s: float) -> bool:
        """Note why the turn ends, and wait a while for it; False where that is known already."""
        if self.cut is not None or self._is_dismissed:
            return False
        self.cut, self._cut_patience_s = cut, patience_s
        if self._turn is not None:  # what never waits looks at `cut` by itself
            self._drop_timers()
            loop = asyncio.get_running_loop()
            self._timers = [loop.call_later(patience_s, self._on_patience_end)]
        return True

    def _interrupt(self) -> None:
        if self._is_waiting and self._turn is not None:
            self._has_cancelled = True
            self._turn.cancel()

    def _on_grace_end(self) -> None:
        write = self._end_grace()
        if write is not None:
            self._asides.append(asyncio.create_task(write))

    def _run_out(self) -> None:
        if self._deadline and self._cut(Cut.OUT_OF_TIME, self._deadline.patience_s):
            self._asides.append(asyncio.create_task(self._interrupt_when_written()))

    async def _interrupt_when_written(self) -> None:
        # The client still reads, so what is being written must go out whole.
        await self._observer.written()
        self._interrupt()

    def _on_patience_end(self) -> None:
        self._asides.append(asyncio.create_task(self._abandon()))

    def _drop_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    async def _watch_client(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == CANCELLED["type"]:
                self.cancel()
                return
            if message["type"] == "http.disconnect":
                self.lose_client()
                return
