"""What runs beside a turn while its agent waits: the end of the grace, and the client's going away."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Final, TypeVar

from starlette.types import Receive

from channel.responses.stepping import Before, resumed


PATIENCE_S: Final = 5.0
"""Seconds that an agent has to end after its client went away, before its turn is told without it."""

_Event = TypeVar("_Event")


class Companion:
    """Begins with the agent's first wait, so that an agent that never waits pays nothing for it."""

    def __init__(
        self,
        receive: Receive,
        end_grace: Callable[[], Coroutine[Any, Any, None] | None],
        grace_s: float,
        abandon: Callable[[], Coroutine[Any, Any, None]],
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`end_grace` is called once, `grace_s` seconds after the first wait; what it returns is run.

        `abandon` is run where the agent waits on, `patience_s` seconds after the client has gone.
        """
        self._receive = receive
        self._end_grace = end_grace
        self._grace_s = grace_s
        self._abandon = abandon
        self._patience_s = patience_s
        self._turn: asyncio.Task[Any] | None = None
        self._is_waiting = False
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asides: list[asyncio.Task[None]] = []
        self.is_client_gone = False

    @property
    def has_begun(self) -> bool:
        """Whether the agent ever waited."""
        return self._watch is not None

    @coroutine
    def wait(
        self, step: Generator[Any, Any, _Event], parked: Any, before: Before | None
    ) -> Generator[Any, Any, _Event | None]:
        """Wait for the agent's next event (`resumed`); None where the client went away instead."""
        if self._turn is None:
            self._begin()
        self._is_waiting = True
        try:
            return (yield from resumed(step, parked, before))
        except asyncio.CancelledError:
            if not self.is_client_gone:
                raise
            return None
        finally:
            self._is_waiting = False
            if self.is_client_gone and self._turn is not None:
                # The cancellation was ours, whatever the agent made of it.
                self._turn.uncancel()

    def lose_client(self) -> None:
        """Note that the client is gone, and end the agent's wait."""
        if self.is_client_gone:
            return
        self.is_client_gone = True
        if self._is_waiting and self._turn is not None:
            self._turn.cancel()
            self._drop_timer()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._patience_s, self._on_patience_end)

    async def dismiss(self) -> None:
        """End what runs beside the turn; a write that has begun is finished."""
        self._drop_timer()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        for aside in self._asides:
            await aside

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._turn = asyncio.current_task()
        self._watch = loop.create_task(self._watch_client())
        self._timer = loop.call_later(self._grace_s, self._on_grace_end)

    def _on_grace_end(self) -> None:
        write = self._end_grace()
        if write is not None:
            self._asides.append(asyncio.create_task(write))

    def _on_patience_end(self) -> None:
        self._asides.append(asyncio.create_task(self._abandon()))

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.lose_client()
