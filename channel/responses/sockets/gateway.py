"""WebSocket mode behind a gateway that holds the connections: each frame is an invocation, and events are pushed.

What a connection knows is kept by a `ConnectionStore` and changed by one invocation at a time. A
frame whose turn it is runs as a job of its own; when it has ended, its job starts those after it.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.types import Message

from channel.auth import Caller
from channel.deadline import Deadline
from channel.faults import log_fault
from channel.http import request_id
from channel.jobs import JobHandler
from channel.ports import (
    Clock,
    Job,
    Jobs,
    NewToken,
    StoredTurn,
    StoreError,
    Telemetry,
    random_hex,
)
from channel.responses.background.watching import LEASE_S, LOOK_S, RENEWAL_S, Pause
from channel.responses.operations import ResponseOperations
from channel.responses.sockets.connection import (
    Called,
    Claim,
    ConnectionState,
    Ending,
    Latest,
    farewell,
)
from channel.responses.sockets.connections import Connection, ConnectionStore, Push
from channel.responses.sockets.endpoint import Limits
from channel.responses.sockets.frame_turns import FrameTurns
from channel.responses.sockets.frames import Frame, error_message, fault_message, read
from channel.responses.sockets.local_turns import CONTINUABLE, LocalChain


FRAME: Final = "responses.frame"
"""The kind of the job that runs the turn of a frame."""
CALL_S: Final = 5.0
"""Seconds after which the job of a frame is started again, if it has not begun: whoever called it may
have died before it started that. A job that was only late finds the frame claimed, and does nothing."""

_CRASHED: Final = "The server that ran this request is gone."
_NOT_STARTED: Final = "The request could not be started."
_LOG: Final = logging.getLogger(__name__)


class Gateway(Struct, frozen=True):
    """Where the connections of a gateway are kept, and how they are reached.

    `pause` waits that many seconds between two looks at whether a client is still there.
    """

    connections: ConnectionStore
    push: Push
    pause: Pause = asyncio.sleep

    def __call__(
        self,
        operations: ResponseOperations,
        jobs: Jobs,
        clock: Clock,
        limits: Limits,
        telemetry: Telemetry | None,
    ) -> "GatewayConnections":
        """Return what serves them (`channel.responses.sockets.endpoint.MakeSockets`)."""
        turns = FrameTurns(operations, telemetry, max_message_bytes=self.push.max_bytes)
        return GatewayConnections(turns, self, jobs, clock, limits=limits)


class GatewayConnections:
    """Serves the connections of one gateway, from any invocation."""

    def __init__(
        self,
        turns: FrameTurns,
        gateway: Gateway,
        jobs: Jobs,
        clock: Clock,
        *,
        limits: Limits,
        new_token: NewToken = random_hex,
    ) -> None:
        """Start `FRAME` jobs, which `run` is for."""
        self._turns = turns
        self._connections = gateway.connections
        self._push = gateway.push
        self._jobs = jobs
        self._clock = clock
        # More than one message is not a frame there.
        self._limits = replace(limits, frame_bytes=min(limits.frame_bytes, self._push.max_bytes))
        self._new_token = new_token
        self._pause = gateway.pause
        self.jobs: Mapping[str, JobHandler] = {FRAME: self.run}

    async def open(self, connection_id: str, caller: Caller, /) -> None:
        """Take a new connection of an authenticated caller; raises `StoreError`."""
        state = ConnectionState.opened(self._clock(), self._limits)
        await self._connections.open(connection_id, Connection(caller, state))

    async def receive(self, connection_id: str, data: str | bytes, /) -> None:
        """Take what a client has sent; whatever is wrong with it is told to the client."""
        try:
            await self._receive(connection_id, data)
        except StoreError as error:
            given = read(data, self._limits.frame_bytes)
            await self._tell(connection_id, error_message(error, given.lane))

    async def close(self, connection_id: str, /) -> None:
        """Forget a connection that was closed: its turns in flight notice it."""
        await self._connections.close(connection_id)

    async def run(self, payload: dict[str, Any], deadline: Deadline | None) -> None:
        """Run the turn of a job, unless that was done before; raises `StoreError`."""
        job = msgspec.convert(payload, _Job)
        called, owner = Called(job.lane, job.name), self._new_token(8)
        if job.ending is not None:
            await self._settle(job.connection_id, called, job.ending)
            return

        async def claim(state: ConnectionState) -> tuple[Claim, list[Called]]:
            now = self._clock()
            granted = state.claim(called, owner, now, now + LEASE_S)
            if granted is not Claim.REFUSED:
                return granted, []
            # Where its first run died at its end, nobody has started those after it.
            return granted, state.call(now, now + CALL_S, self._limits)

        changed = await self._connections.change(job.connection_id, claim)
        if changed is None:
            return
        connection, (granted, due) = changed
        if granted is Claim.REFUSED:
            await self._start(job.connection_id, due)
            return
        frame = await self._connections.frame(job.connection_id, job.name)
        if granted is Claim.CRASHED or frame is None:
            said = _NOT_STARTED if granted is Claim.GRANTED else _CRASHED
            _LOG.error("a frame was given up: %s", said)
            await self._tell(job.connection_id, fault_message(said, job.lane))
            previous = frame.previous_response_id if frame else None
            ending = Ending(has_failed=True, previous_response_id=previous)
        else:
            try:
                ending = await self._run(job, frame, connection, owner, deadline)
            except asyncio.CancelledError:
                # Its time is over, and it was told so: those after it need not wait for its lease.
                await self._settle_told(job.connection_id, called, Ending(has_failed=True))
                raise
        if connection.state.place_of(ending.previous_response_id or "") is None:
            ending = replace(ending, previous_response_id=None)  # any text: it evicts nothing
        await self._settle_told(job.connection_id, called, ending)

    async def _receive(self, connection_id: str, data: str | bytes) -> None:
        given, name = read(data, self._limits.frame_bytes), self._new_token(8)
        is_kept = is_taken = False

        async def arrive(state: ConnectionState) -> tuple[bytes | None, list[Called], bool]:
            nonlocal is_kept, is_taken
            now = self._clock()
            arrived = state.arrive(given, name, now, self._limits)
            called = state.call(now, now + CALL_S, self._limits)
            is_taken = arrived.is_taken
            if is_taken and not is_kept and isinstance(given, Frame):
                # Before the state says so: whoever runs it then must find it. It is not in the
                # job, since what Lambda gives up of those is kept elsewhere. It is written once,
                # however often this is tried; and what is refused at once costs nothing.
                is_kept = True
                await self._connections.put_frame(connection_id, name, given)
            return arrived.told, called, state.is_idle and state.is_over(now, self._limits)

        changed = None
        try:
            changed = await self._connections.change(connection_id, arrive)
        finally:
            if is_kept and (changed is None or not is_taken):
                await self._drop(connection_id, name)
        if changed is None:
            await self._push.close(connection_id)
            return
        told, called, is_over = changed[1]
        if told is not None:
            await self._tell(connection_id, told)
        await self._start(connection_id, called)
        if is_over:
            await self._push.close(connection_id)

    async def _start(self, connection_id: str, called: Sequence[Called]) -> None:
        for each in called:
            job = _Job(connection_id, each.lane, each.name)
            try:
                await self._jobs.start(Job(FRAME, msgspec.to_builtins(job)))
            except StoreError as error:
                await self._tell(connection_id, error_message(error, each.lane))
                await self._settle_told(connection_id, each, Ending(has_failed=True))

    async def _run(
        self,
        job: "_Job",
        frame: Frame,
        connection: Connection,
        owner: str,
        deadline: Deadline | None,
    ) -> Ending:
        connection_id = job.connection_id
        watch = _Watch(self._connections, job, owner, self._clock, self._pause)
        line = _Line(self._push, connection_id)
        ending = await self._turns.run(
            connection.caller,
            frame,
            _LaneTurns(self._connections, connection_id, job.lane, connection.state),
            line.send,
            watch.receive,
            deadline=deadline,
            identifier=request_id.get() or None,
        )
        if line.is_lost:  # which the gateway may not tell
            await self._connections.close(connection_id)
        return ending

    async def _settle_told(self, connection_id: str, called: Called, ending: Ending) -> None:
        """End a frame whose end was told; where the store fails, that is a job of its own.

        If this one were tried again instead, it would find its frame claimed and not over, and tell
        its client another end.
        """
        try:
            await self._settle(connection_id, called, ending)
        except StoreError as error:
            log_fault(_LOG, "the end of a frame not noted", error)
            job = _Job(connection_id, called.lane, called.name, ending)
            try:
                await self._jobs.start(Job(FRAME, msgspec.to_builtins(job)))
            except StoreError as failure:
                log_fault(_LOG, "the end of a frame not noted later", failure)

    async def _settle(self, connection_id: str, called: Called, ending: Ending) -> None:
        async def settle(state: ConnectionState) -> tuple[list[bytes], list[Called], bool]:
            now = self._clock()
            if told := state.settle(called, ending):
                return told, [], False
            following = state.call(now, now + CALL_S, self._limits)
            return [], following, state.is_idle and state.is_over(now, self._limits)

        while (changed := await self._connections.change(connection_id, settle)) is not None:
            told, following, is_over = changed[1]
            for message in told:
                await self._tell(connection_id, message)
            if not told:
                await self._start(connection_id, following)
                await self._drop(connection_id, called.name)
                if is_over:
                    await self._tell(connection_id, farewell(self._limits))
                    await self._push.close(connection_id)
                return

    async def _drop(self, connection_id: str, name: str) -> None:
        try:
            await self._connections.drop_frame(connection_id, name)
        except StoreError as error:  # it goes with its connection
            log_fault(_LOG, "a frame not dropped", error)

    async def _tell(self, connection_id: str, message: bytes) -> None:
        with suppress(OSError):
            await self._push.send(connection_id, message)


class _Job(Struct, frozen=True, omit_defaults=True):
    """The payload of a job: which frame, by its name; and how it ended, where only that is to be noted."""

    connection_id: str
    lane: str
    name: str
    ending: Ending | None = None


class _LaneTurns:
    """The turns that only a connection knows, as the next turn of a lane sees them (`LocalTurns`)."""

    def __init__(
        self, connections: ConnectionStore, connection_id: str, lane: str, state: ConnectionState
    ) -> None:
        self._connections = connections
        self._connection_id = connection_id
        self._lane = lane
        self._state = state
        self._before: str | None = None
        self._after: str | None = None

    async def chain(self, previous_response_id: str, /) -> LocalChain | None:
        place = self._state.place_of(previous_response_id)
        chain = place and await self._connections.turns(self._connection_id, place)
        if not place or not chain:
            self._after = previous_response_id
            return None
        self._before = place
        return chain

    async def keep(self, turn: StoredTurn, /) -> None:
        if turn.response.status not in CONTINUABLE:
            return
        place = await self._connections.put_turn(
            self._connection_id, turn, self._before, self._after
        )
        latest = Latest(turn.response.id, place)

        async def remember(state: ConnectionState) -> None:
            state.remember(self._lane, latest)

        await self._connections.change(self._connection_id, remember)


class _Line:
    """The way to one client, as long as it is there."""

    def __init__(self, push: Push, connection_id: str) -> None:
        self._push = push
        self._connection_id = connection_id
        self.is_lost = False

    async def send(self, message: bytes) -> None:
        try:
            await self._push.send(self._connection_id, message)
        except OSError:
            self.is_lost = True
            raise


class _Watch:
    """Looks whether the connection of a turn is still open, and renews the lease; `receive` tells."""

    def __init__(
        self,
        connections: ConnectionStore,
        job: _Job,
        owner: str,
        clock: Clock,
        pause: Pause,
    ) -> None:
        self._connections = connections
        self._job = job
        self._owner = owner
        self._clock = clock
        self._pause = pause
        self._renewed_at = clock()

    async def receive(self) -> Message:
        """Return when nobody is there, or when the frame is another's."""
        while True:
            await self._pause(LOOK_S)
            try:
                if not await self._is_wanted():
                    return {"type": "http.disconnect"}
            except StoreError as error:
                log_fault(_LOG, "connection not looked at", error)

    async def _is_wanted(self) -> bool:
        connection_id = self._job.connection_id
        if self._clock() - self._renewed_at < RENEWAL_S:
            if await self._connections.load(connection_id, is_strong=False) is not None:
                return True
            return await self._connections.load(connection_id) is not None

        async def renew(state: ConnectionState) -> bool:
            called = Called(self._job.lane, self._job.name)
            return state.renew(called, self._owner, self._clock() + LEASE_S)

        changed = await self._connections.change(connection_id, renew)
        self._renewed_at = self._clock()
        return changed is not None and changed[1]
