"""Background turns: begun by one invocation, run by another, looked at and cancelled from any.

What a turn came to is its record in the response store, and whoever finishes that first is right:
the worker, the one who cancels, or the one who notices that the worker is gone. Its run (lease,
owner, cancel flag) only says who may still be at work.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace as with_fields
from functools import partial
from time import monotonic
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.types import Receive

from channel.auth import Caller, Principal
from channel.contract import ChannelRequest
from channel.deadline import Deadline
from channel.delivery import Route
from channel.faults import log_fault
from channel.http import ClientGoneError, request_id
from channel.isolation import (
    IsolationKeys,
    reset_current_isolation_keys,
    set_current_isolation_keys,
)
from channel.ports import (
    Clock,
    ConcludedError,
    EventBatch,
    Job,
    Jobs,
    NewToken,
    ResponseStore,
    Run,
    RunStore,
    StoredTurn,
    StoreError,
    Telemetry,
    TurnTooLargeError,
    UnfinishedError,
    random_hex,
)
from channel.responses.background.event_log import EventLog
from channel.responses.background.watching import LEASE_S, Heartbeat, Pause, Watch, first_of
from channel.responses.conversations.turns import Hold
from channel.responses.history import history_of
from channel.responses.observing import Observer, Unobserved
from channel.responses.operations import (
    MAX_TURN_S,
    QUEUE_S,
    Prepared,
    ResponseOperations,
)
from channel.responses.protocol.errors import RequestError, response_not_found
from channel.responses.protocol.requests import CreateResponse
from channel.responses.protocol.response import Response, ResponseFailure, Status
from channel.responses.protocol.salvage import salvaged
from channel.responses.protocol.stream import queue
from channel.responses.run import TurnRun, facts_of
from channel.responses.webhooks import Webhooks
from channel.responses.windows.context import CREATE
from channel.sessions import FoundSession


BACKGROUND: Final = "responses.background"
"""The kind of the job that runs a background turn."""
ENDED: Final = "responses.ended"
"""The kind of the job that tells of the end of one, where that was not its worker."""
TELL_S: Final = 10.0
"""Seconds that a worker must have left to tell of the end of its turn itself."""
CANCEL_WAIT_S: Final = 4.0
"""Seconds that a worker is given to end a cancelled turn itself, with what it has said."""

_CANCEL_POLL_S: Final = 0.25
_GONE: Final = "The server that ran this response is gone."
_NOT_STARTED: Final = "The response could not be started."
_LOG: Final = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class _Routed(Struct, frozen=True):
    channel: str
    route: Route


class _Named(Struct, frozen=True, omit_defaults=True):
    """The payload of a job: which turn, of whom; `request_id` is that of the request that began it.

    `session` is the one whose head the turn becomes when it has ended, and `delivery` is where its
    reply goes then.
    """

    response_id: str
    keys: IsolationKeys
    request_id: str
    principal: str
    session: FoundSession | None = None
    delivery: _Routed | None = None


class BackgroundTurns:
    """Begins, runs, watches and cancels the background turns of one channel."""

    def __init__(
        self,
        operations: ResponseOperations,
        store: ResponseStore,
        runs: RunStore,
        jobs: Jobs,
        clock: Clock,
        *,
        event_retention_s: float,
        webhooks: Webhooks | None = None,
        telemetry: Telemetry | None = None,
        new_token: NewToken = random_hex,
        pause: Pause = asyncio.sleep,
    ) -> None:
        """Keep the events of a stream for `event_retention_s` after the longest that a turn can take."""
        self._operations = operations
        self._store = store
        self._runs = runs
        self._jobs = jobs
        self._clock = clock
        self._event_retention_s = event_retention_s
        self._webhooks = webhooks
        self._telemetry = telemetry
        self._new_token = new_token
        self._pause = pause

    async def begin(self, prepared: Prepared, identifier: str) -> Response:
        """Store a queued turn and start its job; `identifier` is that of the request.

        Raises `StoreError` where the job may not have been started: then the turn has failed.
        """
        keys, response = prepared.asked.caller.keys, prepared.response
        prepared = await self._routed(prepared)
        turn = StoredTurn([*prepared.asked.input], response, _job(prepared, identifier))
        now = self._clock()
        streams = bool(prepared.request.stream)
        events_until = now + MAX_TURN_S + self._event_retention_s if streams else 0.0
        run = Run(lease_until=now + QUEUE_S, events_until=events_until)
        writes = [
            self._store.save(keys, prepared.branch, turn),
            self._runs.begin(keys, response.id, run),
        ]
        if streams:
            batch = EventBatch(0, [_encode(event) for event in queue(response)])
            writes.append(self._runs.append(keys, response.id, batch, events_until))
        try:
            await _all(writes)
            if prepared.hold is not None:  # now there is a response by which it can be let go
                await _keep(prepared.hold, now + QUEUE_S + MAX_TURN_S)
            principal = prepared.asked.caller.principal.name
            route = prepared.route
            routed = None if route is None else _Routed(prepared.asked.channel, route)
            named = _Named(response.id, keys, identifier, principal, prepared.session, routed)
            await self._jobs.start(Job(BACKGROUND, msgspec.to_builtins(named)))
        except BaseException as error:
            with suppress(StoreError):
                await self._conclude(keys, response.id, Status.FAILED, _NOT_STARTED)
            if prepared.hold is not None:
                await prepared.hold.release()
            if isinstance(error, TurnTooLargeError):
                said = "The request is too large to be stored."
                raise RequestError(said, status=413, code="request_too_large") from error
            raise
        return response

    async def _routed(self, prepared: Prepared) -> Prepared:
        try:
            route = await self._operations.deliveries.routed(prepared.asked)
        except BaseException:
            if prepared.hold is not None:
                await prepared.hold.release()
            raise
        return prepared if route is None else replace(prepared, route=route)

    async def run(self, payload: dict[str, Any], deadline: Deadline | None) -> None:
        """Run the turn of a job, unless it was run, cancelled or given up before.

        Raises `StoreError` before the agent was started, and where the head of its session was not
        moved; the job may be tried again then.
        """
        named = msgspec.convert(payload, _Named)
        keys, response_id = named.keys, named.response_id
        owner = self._new_token(8)
        opened = await self._store.reopen(keys, response_id)  # a read that fails claims nothing
        run = await self._runs.claim(keys, response_id, owner, self._clock() + LEASE_S)
        if run is None:
            # A job that comes twice; or the first one crashed, which is told now at the latest.
            await self._look_again(named, deadline)
            return
        if opened is None:
            await self._conclude(keys, response_id, Status.FAILED, _NOT_STARTED)
            return
        prepared = self._reopened(*opened)
        turn = self._operations.turn(
            prepared, request_id=named.request_id, deadline=deadline, is_committed=True
        )
        if prepared.hold is not None:
            with suppress(StoreError):  # it is locked for longer then, until the heartbeat
                await prepared.hold.extend(self._clock() + LEASE_S)
        moving = _Moving(partial(self._move, named), turn)
        if named.session is not None:
            turn.on_kept(moving)
        observer: Observer = Unobserved()
        if run.events_until:
            append = partial(self._runs.append, keys, response_id)
            observer = EventLog(lambda batch: append(batch, run.events_until))
        watch = Watch(self._runs, keys, response_id, owner, pause=self._pause)
        renew = partial(self._renew, keys, response_id, owner, prepared.hold)
        heartbeat = Heartbeat(renew)
        started_at = monotonic()
        id_token, keys_token = request_id.set(named.request_id), set_current_isolation_keys(keys)
        try:
            with heartbeat, suppress(ClientGoneError):
                await turn.run(observer, watch.receive)
            if self._telemetry is not None:
                outcome = str(turn.response.status)
                self._telemetry.turn_finished(facts_of(turn, outcome, started_at, is_stream=False))
            if not turn.is_superseded:  # or else who has ended it tells of it
                await self._tell_in_time(named, turn.response, deadline)
            await moving.make_up()
            if turn.is_undelivered:
                raise StoreError("A reply was not delivered in time: its job does it again.")
        finally:
            reset_current_isolation_keys(keys_token)
            request_id.reset(id_token)

    async def _tell_in_time(
        self, named: _Named, response: Response, deadline: Deadline | None
    ) -> None:
        if deadline is not None and deadline.ends_at - monotonic() < TELL_S:
            await self._have_told(named)
            return
        try:
            await self._tell(named, response, deadline)
        except StoreError as error:
            log_fault(_LOG, "endpoints not read", error)
            await self._have_told(named)

    async def _look_again(self, named: _Named, deadline: Deadline | None) -> None:
        """Tell of a turn that has ended: who ended it may have had no time to; or end it now."""
        turn = await self._store.get(named.keys, named.response_id)
        if turn is not None and turn.response.status.is_terminal:
            await self._move(named, turn.response)
            await self._tell(named, turn.response, deadline)
            await self._deliver(named, turn.response)  # last: what is repeated is delivered again
        else:
            await self.look(named.keys, named.response_id)

    async def _deliver(self, named: _Named, response: Response) -> None:
        """Deliver a reply whose worker may have been lost before it did; it has the same ids again."""
        if named.delivery is None:
            return
        asked = ChannelRequest(
            channel=named.delivery.channel,
            operation=CREATE,
            caller=Caller(Principal(named.principal), named.keys),
            input=(),
        )
        delivery = self._operations.deliveries.reopened(asked, named.delivery.route)
        await delivery.hand_over(response)

    async def _move(self, named: _Named, response: Response, *, resets: bool = False) -> None:
        """Make the turn the head of its session, if it has one; a second time changes nothing."""
        sessions = self._operations.sessions
        if named.session is not None and sessions is not None:
            await sessions.advance(named.keys, named.session, response, resets=resets)

    async def tell(self, payload: dict[str, Any], deadline: Deadline | None) -> None:
        """Tell of a turn that was not ended by its worker, as a job asks for."""
        named = msgspec.convert(payload, _Named)
        response = await self.look(named.keys, named.response_id)
        if response is not None:
            await self._tell(named, response, deadline)

    async def retrieve(self, caller: Caller, response_id: str) -> Response:
        """Return a stored response as it is now; raises `RequestError` (404)."""
        response = await self.look(caller.keys, response_id)
        if response is None:
            raise response_not_found(response_id)
        return response

    async def delete(self, caller: Caller, response_id: str) -> None:
        """Delete a response, its run and its events; raises `RequestError` (404, or 400 while it runs)."""
        keys = caller.keys
        try:
            existed = await self._store.delete(keys, response_id)
        except UnfinishedError:
            response = await self.look(keys, response_id)
            if response is not None and not response.status.is_terminal:
                msg = f"Response with id '{response_id}' is in progress: cancel it, then delete it."
                raise RequestError(msg) from None
            existed = await self._store.delete(keys, response_id)
        if existed or not await self._is_at_work(keys, response_id):
            # Also of one that is gone: a deletion that was cut off is finished.
            await self._runs.forget(keys, response_id)
        if not existed:
            raise response_not_found(response_id)

    async def _is_at_work(self, keys: IsolationKeys, response_id: str) -> bool:
        run = await self._runs.look(keys, response_id)
        return run is not None and run.lease_until >= self._clock()

    async def cancel(self, caller: Caller, response_id: str) -> Response:
        """Cancel a background turn, or a stream that can be cancelled; return its response.

        Raises `RequestError`: 404, 400 where there is nothing to cancel, 409 where a stream was
        asked to stop and has not stopped yet.
        """
        keys = caller.keys
        run = await self._runs.request_cancel(keys, response_id)
        response = await self.look(keys, response_id)
        if run is not None and (response is None or not response.status.is_terminal):
            is_at_work = run.owner and run.lease_until >= self._clock()
            if is_at_work:
                response = await self._ended(keys, response_id)
            if response is None and is_at_work:
                msg = f"Response with id '{response_id}' is being cancelled. Please try again."
                raise RequestError(msg, status=409, headers={"retry-after": "2"})
            if response is not None and not response.status.is_terminal:
                response = await self._conclude(keys, response_id, Status.CANCELLED, None)
        if response is None:
            raise response_not_found(response_id)
        if response.status is not Status.CANCELLED:
            what = (
                f"a {response.status} response" if response.background else "a synchronous response"
            )
            msg = f"Cannot cancel {what}."
            raise RequestError(msg)
        return response

    async def cancellable(
        self, prepared: Prepared, deadline: Deadline | None, receive: Receive
    ) -> Receive:
        """Let a stream be cancelled from any instance; return the `receive` for its turn."""
        keys, response_id = prepared.asked.caller.keys, prepared.response.id
        owner, now = self._new_token(8), self._clock()
        limit_s = deadline.ends_at - monotonic() if deadline else MAX_TURN_S
        try:
            await self._runs.begin(keys, response_id, Run(now + limit_s, owner))
        except BaseException:
            if prepared.hold is not None:
                await prepared.hold.release()
            raise
        watch = Watch(self._runs, keys, response_id, owner, pause=self._pause)
        return first_of(receive, watch.receive)

    async def _renew(
        self, keys: IsolationKeys, response_id: str, owner: str, hold: Hold | None
    ) -> None:
        """Renew the lease, and with it the lock: a conversation is not longer locked than it is run."""
        until = self._clock() + LEASE_S
        if hold is not None:
            await hold.extend(until)
        await self._runs.renew(keys, response_id, owner, until)

    async def look(self, keys: IsolationKeys, response_id: str) -> Response | None:
        """Return the response as it is now; one whose worker is gone has failed."""
        turn = await self._store.get(keys, response_id)
        if turn is None or turn.response.status.is_terminal:
            return turn.response if turn else None
        for is_strong in (False, True):
            run = await self._runs.look(keys, response_id, is_strong=is_strong)
            if run is not None and run.lease_until >= self._clock():
                if run.is_cancelled and not run.owner:
                    break  # nobody can claim it any more: a cancellation was cut off here
                status = Status.IN_PROGRESS if run.owner else Status.QUEUED
                return replace(turn.response, status=status)
        if run is not None and run.is_cancelled:
            return await self._conclude(keys, response_id, Status.CANCELLED, None)
        return await self._conclude(keys, response_id, Status.FAILED, _GONE)

    async def _ended(self, keys: IsolationKeys, response_id: str) -> Response | None:
        """Return the response when it has ended, or as it is after a while."""
        waited_s = 0.0
        while True:
            turn = await self._store.get(keys, response_id)
            if turn is not None and turn.response.status.is_terminal:
                return turn.response
            if waited_s >= CANCEL_WAIT_S:
                return turn.response if turn else None
            await self._pause(_CANCEL_POLL_S)
            waited_s += _CANCEL_POLL_S

    async def _conclude(
        self, keys: IsolationKeys, response_id: str, status: Status, why: str | None
    ) -> Response | None:
        """End a turn that nobody runs, unless it has ended; return what it came to, or None."""
        opened = await self._store.reopen(keys, response_id, with_history=False)
        if opened is None:
            turn = await self._store.get(keys, response_id)
            return turn.response if turn else None
        turn, branch = opened
        said = f"{why} Request id: {(turn.job or {}).get('request_id', '')}"
        response = replace(
            turn.response,
            status=status,
            error=ResponseFailure("server_error", said) if why else None,
            output=salvaged(await self._said(keys, response_id)),
        )
        try:
            await self._store.save(keys, branch, StoredTurn(turn.input, response))
        except ConcludedError as concluded:
            return concluded.turn.response
        prepared = self._reopened(turn, branch)
        if prepared.hold is not None:
            with suppress(StoreError):  # it runs out by itself
                await prepared.hold.release()
        if why is not None:
            with suppress(StoreError):  # a worker that is only late has nothing more to do
                await self._runs.request_cancel(keys, response_id)
        if prepared.route is not None:
            delivery = self._operations.deliveries.reopened(prepared.asked, prepared.route)
            await delivery.hand_over(response)
        principal = prepared.asked.caller.principal.name
        await self._have_told(_Named(response_id, keys, request_id.get(), principal))
        return response

    async def _said(self, keys: IsolationKeys, response_id: str) -> Sequence[bytes]:
        try:
            batches = await self._runs.events(keys, response_id, -1)
        except StoreError as error:
            log_fault(_LOG, "events not read", error)
            if error.is_passing:
                raise
            return []  # they are damaged, and will be
        return [event for batch in batches for event in batch.events]

    def _reopened(self, turn: StoredTurn, branch: Any) -> Prepared:
        job = turn.job or {}
        asked = msgspec.convert(job["request"], ChannelRequest)
        own = job.get("history")
        history = history_of(branch.turns) if own is None else own
        hold = self._operations.hold(asked.caller.keys, job["hold"]) if "hold" in job else None
        asked = with_fields(asked, input=turn.input, history=history)
        route = msgspec.convert(job["route"], Route) if "route" in job else None
        return Prepared(CreateResponse(), asked, turn.response, branch, hold, route=route)

    async def _have_told(self, named: _Named) -> None:
        """Have a job tell of the end of a turn: there is no time here, or a client waits."""
        if self._webhooks is None:
            return
        try:
            await self._jobs.start(Job(ENDED, msgspec.to_builtins(named)))
        except StoreError as error:  # the turn has ended, whoever cannot be told
            log_fault(_LOG, "end of a background response not told", error)

    async def _tell(self, named: _Named, response: Response, deadline: Deadline | None) -> None:
        if self._webhooks is None or not response.status.is_terminal:
            return
        left_s = deadline.hook_until(monotonic()) - monotonic() if deadline else None
        try:
            await self._webhooks.notify(named.keys, named.principal, response, deadline_s=left_s)
        except StoreError:
            raise  # a job may be tried again
        except Exception as error:  # noqa: BLE001 - the turn has ended, whoever cannot be told
            log_fault(_LOG, "end of a background response not told", error)


class _Moving:
    """Moves the head of a turn's session before its end is told, or after that where it fails then."""

    def __init__(self, move: Callable[..., Awaitable[None]], turn: TurnRun) -> None:
        self._move = move
        self._turn = turn
        self._has_failed = False

    async def __call__(self) -> None:
        if not self._turn.is_kept or self._turn.is_superseded:
            return
        try:
            await self._move(self._turn.response, resets=self._turn.resets)
        except StoreError as error:  # the turn is stored, and is told as what it is
            log_fault(_LOG, "head of a session not moved", error)
            self._has_failed = True

    async def make_up(self) -> None:
        """Try again what has failed; raises `StoreError`."""
        if self._has_failed:
            await self._move(self._turn.response, resets=self._turn.resets)


def _job(prepared: Prepared, identifier: str) -> dict[str, Any]:
    """Return what a worker needs besides the turn's input, its response and its history."""
    bare = with_fields(prepared.asked, input=(), history=())
    job: dict[str, Any] = {"request": msgspec.to_builtins(bare), "request_id": identifier}
    if prepared.has_own_history:
        job["history"] = [*prepared.asked.history]
    if prepared.hold is not None:
        job["hold"] = prepared.hold.job
    if prepared.route is not None:
        job["route"] = msgspec.to_builtins(prepared.route)
    return job


async def _keep(hold: Hold, until: float) -> None:
    if not await hold.extend(until):
        msg = "The lock of a conversation ran out while its turn was begun."
        raise StoreError(msg)


async def _all(writes: Sequence[Awaitable[None]]) -> None:
    """Await all of the writes at once, to their ends, and only then raise the first error of any."""
    for result in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
