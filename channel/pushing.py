"""`Pushing`: one reply to one destination, written down before, tried again by a job, and a dead letter at last."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from channel.deadline import Deadline
from channel.delivery import (
    ChannelPush,
    Delivery,
    DeliveryOptions,
    PushFailedError,
    PushRefusedError,
    Undelivered,
)
from channel.faults import log_fault
from channel.jobs import JobHandler, TaskJobs
from channel.ports import Job, StoreError
from channel.responses.webhooks import WINDOW_S, pause_after
from channel.targets import ChannelIdentity


RETRY: Final = "delivery.retry"
"""The kind of the job that tries a delivery again."""

_LATER_ATTEMPT_S: Final = 15.0
_LEAST_S: Final = 0.5
_LOG: Final = logging.getLogger(__name__)


class _Named(Struct, frozen=True):
    """The payload of a job."""

    principal: str
    id: str


class Missed(NamedTuple):
    """A destination that did not take a reply, for its report; `is_again` where a job tries again."""

    summary: str
    is_again: bool


class _Attempt(Struct, frozen=True):
    """What went wrong: for the report, and (without a stranger's words) for the record."""

    summary: str
    reason: str
    is_final: bool = False


class Pushing:
    """Pushes to the destinations of one host, each by itself."""

    def __init__(self, pushes: Mapping[str, ChannelPush], options: DeliveryOptions) -> None:
        """Take the channels that push, by name."""
        self._pushes = pushes
        self._options = options
        self._attempts: set[asyncio.Task[BaseException | None]] = set()
        self._tasks = TaskJobs()
        self._tasks.handlers.update(self.jobs)
        self._starter = options.jobs or self._tasks

    @property
    def jobs(self) -> Mapping[str, JobHandler]:
        """What runs the jobs that are started here, by kind."""
        return {RETRY: self.retry}

    async def drain(self) -> None:
        """Stop what is tried again: it is kept, as what has not arrived."""
        await self._tasks.drain()

    def clock(self) -> float:
        """Return the Unix time in seconds."""
        return self._options.clock()

    async def retry(self, payload: dict[str, Any], deadline: Deadline | None) -> None:
        """Try again what did not arrive, as a job asks for; what still does not is a dead letter."""
        named = msgspec.convert(payload, _Named)
        kept = await self._options.undelivered.get(named.principal, named.id)
        if kept is None:
            return  # it has arrived meanwhile
        options = self._options
        until = options.now() + WINDOW_S
        if deadline is not None:
            until = min(until, deadline.ends_at)
        for attempt in range(1, options.attempts + 1):
            left_s = min(_LATER_ATTEMPT_S, until - options.now())
            failure = await self._attempt(kept.identity, kept.delivery, left_s)
            if failure is None:
                await options.undelivered.drop(named.principal, named.id)
                return
            kept = replace(
                kept, attempts=kept.attempts + 1, reason=failure.reason, at=options.clock()
            )
            pause_s = pause_after(attempt, options.chance())
            is_last = attempt == options.attempts or options.now() + pause_s >= until
            if failure.is_final or is_last:
                break
            await options.pause(pause_s)
        told = (kept.delivery.id, kept.identity.channel, kept.attempts, kept.reason)
        if await options.undelivered.get(named.principal, named.id) is None:
            return  # another attempt has succeeded, or its owner has dropped it
        _LOG.warning("delivery %s to channel %s given up after %d attempts: %s", *told)
        await options.undelivered.keep(replace(kept, is_dead=True))

    async def push(
        self, identity: ChannelIdentity, delivery: Delivery, *, left_s: float | None
    ) -> "Missed | None":
        """Push to one destination while its originator waits; return what went wrong, or None.

        It is kept as what has not arrived until it has: whatever becomes of this process, the owner
        can see it. Where there is no time, or where it fails, a job tries again.
        """
        options = self._options
        limit_s = options.attempt_s if left_s is None else min(options.attempt_s, left_s)
        pending = Undelivered(
            delivery=delivery,
            identity=identity,
            reason="NotTried",
            attempts=0,
            at=options.clock(),
        )
        try:
            await options.undelivered.keep(pending)
        except StoreError as error:  # it may well arrive all the same
            log_fault(_LOG, "delivery not kept before it was tried", error)
        if limit_s < _LEAST_S:
            failure = _Attempt("TimeoutError: no time was left", "TimeoutError")
        else:
            tried = await self._attempt(identity, delivery, limit_s)
            if tried is None:
                await self._dropped(delivery)
                return None
            failure, pending = tried, replace(pending, attempts=1)
        told = (delivery.id, identity.channel, failure.reason)
        _LOG.warning("delivery %s to channel %s failed: %s", *told)
        pending = replace(pending, reason=failure.reason, is_dead=failure.is_final)
        is_again = False
        try:
            is_again = await self._have_retried(pending)
        except StoreError as error:
            log_fault(_LOG, f"delivery {delivery.id} not kept, nor tried again", error)
        return Missed(failure.summary, is_again)

    async def _dropped(self, delivery: Delivery) -> None:
        try:
            await self._options.undelivered.drop(delivery.principal, delivery.id)
        except StoreError as error:  # it has arrived; what is kept of it runs out by itself
            log_fault(_LOG, "delivery not forgotten", error)

    async def _have_retried(self, pending: Undelivered) -> bool:
        """Keep what has not arrived, and have it tried again where that may help; return whether it is."""
        undelivered = self._options.undelivered
        await undelivered.keep(pending)
        if pending.is_dead:
            return False
        named = _Named(pending.delivery.principal, pending.delivery.id)
        try:
            await self._starter.start(Job(RETRY, msgspec.to_builtins(named)))
        except StoreError as error:
            log_fault(_LOG, "retry of a delivery not started", error)
            await undelivered.keep(replace(pending, is_dead=True))
            return False
        return True

    async def _attempt(
        self, identity: ChannelIdentity, delivery: Delivery, limit_s: float
    ) -> _Attempt | None:
        """Push once; whatever a channel raises concerns this destination alone."""
        push = self._pushes.get(identity.channel)
        if push is None:
            reason = "there is no such channel any more"
            return _Attempt(f"LookupError: {reason}", f"LookupError: {reason}", is_final=True)
        attempt = asyncio.create_task(_outcome(push, identity, delivery))
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempts.discard)
        try:
            await asyncio.wait({attempt}, timeout=limit_s)
        finally:
            attempt.cancel()  # one that takes no notice is not waited for
        error = TimeoutError() if not attempt.done() else attempt.result()
        if error is None:
            return None
        if isinstance(error, PushRefusedError | PushFailedError):  # their text is ours
            is_final = isinstance(error, PushRefusedError)
            return _Attempt(_summary(error), _summary(error), is_final=is_final)
        log_fault(_LOG, f"push of channel {identity.channel} failed", error)
        return _Attempt(_summary(error), type(error).__name__)


async def _outcome(
    push: ChannelPush, identity: ChannelIdentity, delivery: Delivery
) -> BaseException | None:
    """Push once; return what was raised: whatever it is, it concerns this destination alone."""
    try:
        await push.push(identity, delivery)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is in the report
        return error
    return None


def _summary(error: BaseException) -> str:
    said = str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
