"""Following the stream of a background response from any instance: what was kept, then what comes."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

import msgspec
from msgspec import Struct
from starlette.types import Receive

from channel.auth import Caller
from channel.deadline import Deadline
from channel.faults import log_fault
from channel.isolation import IsolationKeys
from channel.ports import Clock, EventBatch, RunStore, StoreError
from channel.responses.background.turns import BackgroundTurns
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.events import KeptEvent
from channel.responses.protocol.response import Response
from channel.responses.protocol.stream import ending
from channel.responses.sse import SSEWriter


POLL_S: Final = 0.25
"""Seconds until the next look, where there were events; `IDLE_POLL_S`, where there were none."""
IDLE_POLL_S: Final = 0.5
IDLE_LOOKS: Final = 10
"""Polls without an event after which it is asked whether anybody still runs the turn."""

_MAX_FAILURES: Final = 10
_LOG: Final = logging.getLogger(__name__)


class Position(Struct, frozen=True):
    """Where to go on in a stream: after which event of which response, and whether that has ended."""

    keys: IsolationKeys
    response_id: str
    after: int = -1
    is_over: bool = False


class _Typed(Struct, gc=False):
    type: str


_typed = msgspec.json.Decoder(_Typed).decode


class Follower:
    """Writes the events of background responses, from the table alone."""

    def __init__(self, background: BackgroundTurns, runs: RunStore, clock: Clock) -> None:
        """Take where the events are."""
        self._background = background
        self._runs = runs
        self._clock = clock

    async def opened(self, caller: Caller, response_id: str) -> Response:
        """Return a response whose events can be read.

        Raises `RequestError` where there are none: 404, or 400 with the reason.
        """
        response = await self._background.retrieve(caller, response_id)
        if not response.background:
            said = "it was not created with 'background' set to true."
        else:
            if await self.has_events(caller.keys, response_id):
                return response
            said = "it was not created with 'stream' set to true, or its events have expired."
        msg = f"Response with id '{response_id}' cannot be streamed: {said}"
        raise RequestError(msg, param="stream", code="invalid_value")

    async def has_events(self, keys: IsolationKeys, response_id: str) -> bool:
        """Whether a response has events that can be read."""
        run = await self._runs.look(keys, response_id)
        return run is not None and run.events_until >= self._clock()

    async def follow(
        self,
        position: Position,
        writer: SSEWriter,
        receive: Receive,
        deadline: Deadline | None,
    ) -> None:
        """Write the events from there until the last one, or until the client or the time is gone."""
        gone = asyncio.create_task(_gone(receive))
        following = asyncio.create_task(self._follow(position, writer))
        timeout_s = max(0.0, deadline.ends_at - monotonic()) if deadline else None
        try:
            await asyncio.wait(
                {gone, following}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if following.done():
                following.result()
            elif not gone.done():
                await writer.written()
                following.cancel()
                await asyncio.wait({following})
                await writer.cut()
        finally:
            gone.cancel()
            following.cancel()
            writer.abandon()

    async def _follow(self, position: Position, writer: SSEWriter) -> None:
        keys, response_id, after = position.keys, position.response_id, position.after
        await writer.flush()  # the reply has begun
        idle = failures = 0
        while True:
            try:
                events = _after(await self._runs.events(keys, response_id, after), after)
                if not events and (
                    position.is_over or await self._is_left(keys, response_id, idle)
                ):
                    rest = await self._rest(keys, response_id, after)
                    if rest is None:
                        await writer.close()
                        return
                    events = rest
                failures = 0
            except StoreError as error:
                failures += 1
                if failures == _MAX_FAILURES:
                    log_fault(_LOG, "events not read", error)
                    await writer.cut()  # the client may come back
                    return
                events = []
            if events:
                writer.take(events)
                if events[-1].is_terminal:
                    await writer.close()
                    return
                await writer.flush()
                after, idle = events[-1].sequence_number, 0
            idle += 1
            await asyncio.sleep(POLL_S if idle == 1 else IDLE_POLL_S)

    async def _is_left(self, keys: IsolationKeys, response_id: str, idle: int) -> bool:
        """Return whether nobody may be at work any more; asked for now and then."""
        if idle % IDLE_LOOKS:
            return False
        run = await self._runs.look(keys, response_id, is_strong=False)
        return run is None or run.is_cancelled or run.lease_until < self._clock()

    async def _rest(
        self, keys: IsolationKeys, response_id: str, after: int
    ) -> list[KeptEvent] | None:
        """Return what is left of a turn that nobody runs any more; None where that is nothing."""
        response = await self._background.look(keys, response_id)
        if response is None:
            return None  # it was deleted
        if not response.status.is_terminal:
            return []
        last = await self._runs.last_events(keys, response_id)
        # Strongly consistent, as the last ones were read: nothing of the tail may be missing.
        left = _after(await self._runs.events(keys, response_id, after, is_strong=True), after)
        if last is not None and _typed(last.events[-1]).type in _ENDINGS:
            return left or None
        # Whoever ended the turn was not the one who wrote its events.
        number = max(after, last.last if last else -1) + 1
        event = ending(number, response)
        return [*left, KeptEvent(event.type, number, msgspec.json.encode(event))]


_ENDINGS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


def _after(batches: Sequence[EventBatch], after: int) -> list[KeptEvent]:
    """Return the events of the batches that have a number after that one, each once."""
    events: list[KeptEvent] = []
    for batch in batches:
        for number, data in enumerate(batch.events, batch.first):
            if number > after:
                events.append(KeptEvent(_typed(data).type, number, data))
                after = number
    return events


async def _gone(receive: Receive) -> None:
    with suppress(OSError):
        while (await receive())["type"] != "http.disconnect":
            pass
