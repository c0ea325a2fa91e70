"""`Deliveries`: sends replies where their targets say, and tries again what did not arrive."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from channel.auth import Caller
from channel.contract import CALLERS_TARGET, ChannelRequest, settled
from channel.deadline import Deadline
from channel.delivery import (
    NOTHING_LINKED,
    ChannelPush,
    Delivery,
    DeliveryReport,
    IdentityStore,
    LinkableChannel,
    PushFailedError,
    PushRefusedError,
    Route,
    TargetAuthorizer,
    Undelivered,
    UndeliveredStore,
    delivery_id,
    not_offered,
    require_small,
    route,
    token_of,
)
from channel.faults import HookError, hook_name, log_fault
from channel.jobs import JobHandler, TaskJobs
from channel.ports import Clock, Job, Jobs, StoreError
from channel.responses.protocol.errors import RequestError
from channel.responses.webhooks import ATTEMPTS, WINDOW_S, pause_after
from channel.targets import (
    FIELD,
    MAX_NAME,
    ChannelIdentity,
    Destination,
    ResponseTarget,
    ResponseTargetKind,
    is_channel_name,
    is_native_id,
    parse_target,
)


RETRY: Final = "delivery.retry"
"""The kind of the job that tries a delivery again."""
ATTEMPT_S: Final = 5.0
"""Seconds that a destination is given while the originator waits."""

_LATER_ATTEMPT_S: Final = 15.0
_LEAST_S: Final = 0.5
_CHANCE: Final = random.SystemRandom().random
_LOG: Final = logging.getLogger(__name__)


class DeliveryOptions(Struct, frozen=True, kw_only=True):
    """What a host needs in order to deliver: who is linked, what did not arrive, and who decides.

    `push_channels` are destinations besides the host's own channels that can push. `jobs` starts
    what tries again (default: tasks of this process). Without `authorize`, callers may not choose a
    target; hooks always may. A destination has `attempt_s` seconds before the reply goes on without
    it. Below `path`, callers see and change who they are linked to (None: they cannot).
    """

    identities: IdentityStore
    undelivered: UndeliveredStore
    push_channels: Sequence[ChannelPush] = ()
    jobs: Jobs | None = None
    authorize: TargetAuthorizer | None = None
    path: str | None = "/v1"
    attempt_s: float = ATTEMPT_S
    attempts: int = ATTEMPTS
    clock: Clock = time.time
    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = _CHANCE


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


class Deliveries:
    """The deliveries of one host; `channels` are the names of all its channels, and those that push."""

    def __init__(self, channels: Sequence[Any], options: DeliveryOptions) -> None:
        """Take the host's channels; raises `ValueError` for two of one name, and for a name that is none."""
        self._options = options
        self._pushes: dict[str, ChannelPush] = {}
        everything = [*channels, *options.push_channels]
        for channel in everything:
            if not is_channel_name(channel.name):
                msg = f"A channel cannot be named {channel.name!r}: no keyword of targets, no colon, at most {MAX_NAME} characters."
                raise ValueError(msg)
        self.names = frozenset(channel.name for channel in everything)
        if len(self.names) < len(everything):
            msg = f"Two channels have one name: {sorted(channel.name for channel in everything)}"
            raise ValueError(msg)
        for channel in everything:
            if isinstance(channel, ChannelPush):
                self._pushes[channel.name] = channel
        self._attempts: set[asyncio.Task[BaseException | None]] = set()
        self._tasks = TaskJobs()
        self._tasks.handlers.update(self.jobs)
        self._starter = options.jobs or self._tasks

    @property
    def jobs(self) -> Mapping[str, JobHandler]:
        """What runs the jobs that deliveries start, by kind."""
        return {RETRY: self.retry}

    async def drain(self) -> None:
        """Stop what is tried again: it is kept, as what has not arrived."""
        await self._tasks.drain()

    async def chosen(self, caller: Caller, given: Any, *, origin: str) -> ResponseTarget:
        """Return the target that a caller's body asks for; raises `RequestError` (400), `StoreError`.

        A channel that the caller may not choose is an unknown one; the `origin` of a request always
        may.
        """
        authorize = self._options.authorize
        if authorize is None:
            raise not_offered()
        target = parse_target(given)
        is_named = target.kind is ResponseTargetKind.CHANNELS
        for destination in _asked(target, origin):
            is_known = not is_named or destination.channel in self.names
            if not is_known or not await _allowed(authorize, caller, destination):
                raise _unknown(destination)
        return target

    @property
    def path(self) -> str | None:
        """Below which callers see and change who they are linked to."""
        return self._options.path

    def linkable(self, channel: str) -> LinkableChannel | None:
        """Return the channel of that name where callers may link themselves to identities of it."""
        found = self._pushes.get(channel)
        return found if isinstance(found, LinkableChannel) else None

    @property
    def identities(self) -> IdentityStore:
        """Who is linked."""
        return self._options.identities

    async def opened(self, request: ChannelRequest) -> "OpenDelivery | None":
        """Note who is calling, and return where the reply goes; None where that is its origin alone.

        Raises `RequestError` for an identity that is too large, before anything is noted, and
        `StoreError`.
        """
        keys, identity, kind = request.caller.keys, request.identity, request.response_target.kind
        if identity is not None and await self._is_noted(request.caller, identity):
            linked = await self._options.identities.record(keys, identity)
        else:
            identity = None
            linked = NOTHING_LINKED
            if kind not in (ResponseTargetKind.ORIGINATING, ResponseTargetKind.NONE):
                linked = await self._options.identities.linked(keys)
        if kind == ResponseTargetKind.ORIGINATING:
            return None
        if identity is not None and kind == ResponseTargetKind.ALL_LINKED:
            known = {**linked.identities, identity.channel: identity}  # it is one of all of them
            linked = replace(linked, identities=known)
        decided = route(
            request.response_target,
            origin=request.channel,
            linked=linked,
            can_push=self._pushes.__contains__,
            is_callers=bool(request.attributes.get(CALLERS_TARGET)),
        )
        for token in decided.skipped:
            _LOG.warning("delivery to channel %s skipped", token.partition(":")[0])
        return OpenDelivery(self, request, decided)

    def reopened(self, request: ChannelRequest, decided: Route) -> "OpenDelivery":
        """Return what was opened before, by another process."""
        return OpenDelivery(self, request, decided)

    async def _is_noted(self, caller: Caller, identity: ChannelIdentity) -> bool:
        """Whether a request's identity is linked; raises `RequestError` where too much is said of it.

        Text that cannot be an id never is: `user` may be anything. Nor is an identity of a channel that
        asks who may link to it, and does not let the caller.
        """
        if not is_native_id(identity.native_id):
            return False
        require_small(identity)
        channel = self.linkable(identity.channel)
        return channel is None or await may_link(channel, caller, identity.native_id)

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

    def clock(self) -> float:
        """Return the Unix time in seconds."""
        return self._options.clock()


class OpenDelivery:
    """Where the reply of one request goes; `deliver` it once, when it is known."""

    def __init__(self, deliveries: Deliveries, request: ChannelRequest, decided: Route) -> None:
        """Take what was decided before the turn."""
        self._deliveries = deliveries
        self._request = request
        self._route = decided

    @property
    def route(self) -> Route:
        """What was decided."""
        return self._route

    @property
    def include_originating(self) -> bool:
        """Whether the originator reads the reply itself, rather than an acknowledgement."""
        return self._route.include_originating

    async def deliver(
        self, response_id: str, *, status: str, text: str, left_s: float | None = None
    ) -> DeliveryReport:
        """Push the text to each destination at the same time; none of them delays or stops another.

        Takes at most `left_s` seconds and what the calls of the store take. Never raises for what
        goes wrong with a destination: that is in the report.
        """
        request, decided = self._request, self._route
        caller = request.caller

        def made(identity: ChannelIdentity) -> Delivery:
            return Delivery(
                id=delivery_id(caller.keys, response_id, token_of(identity)),
                response_id=response_id,
                status=status,
                text=text,
                channel=request.channel,
                principal=caller.principal.name,
                keys=caller.keys,
                created_at=int(self._deliveries.clock()),
            )

        results = await asyncio.gather(
            *[
                self._deliveries.push(identity, made(identity), left_s=left_s)
                for identity in decided.pushes
            ]
        )
        outcomes = [*zip(map(token_of, decided.pushes), results, strict=True)]
        return DeliveryReport(
            include_originating=decided.include_originating,
            pushed=tuple([token for token, missed in outcomes if missed is None]),
            skipped=decided.skipped,
            failed=tuple([(token, missed.summary) for token, missed in outcomes if missed]),
            again=tuple([token for token, missed in outcomes if missed and missed.is_again]),
        )


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


def _unknown(destination: Destination) -> RequestError:
    msg = f"Invalid '{FIELD}': there is no channel {destination.token!r}."
    return RequestError(msg, param=FIELD, code="invalid_value")


def _asked(target: ResponseTarget, origin: str) -> Sequence[Destination]:
    """Return what a caller must be allowed to choose: keywords stand for themselves."""
    if target.kind in (ResponseTargetKind.ORIGINATING, ResponseTargetKind.NONE):
        return ()
    if target.kind is not ResponseTargetKind.CHANNELS:
        return [Destination(target.kind.value)]
    here = ("originating", origin)
    return [Destination.of(token) for token in target.targets if token not in here]


async def may_link(channel: LinkableChannel, caller: Caller, native_id: str) -> bool:
    """Return whether a channel lets a caller name an identity; anything but True does not."""
    return await _allowed(channel.may_link, caller, native_id)


async def _allowed(callback: Callable[..., Any], *given: Any) -> bool:
    """Return whether an owner's callback says True; what it raises ends nobody's process."""
    try:
        return await settled(callback(*given)) is True
    except SystemExit as error:
        msg = f"{hook_name(callback)} raised SystemExit"
        raise HookError(msg) from error


def _summary(error: BaseException) -> str:
    said = str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def own_destinations(push_channels: Sequence[Any]) -> TargetAuthorizer:
    """Return what allows callers their own linked identities, and those that they could link."""
    linkable = {each.name: each for each in push_channels if isinstance(each, LinkableChannel)}

    async def is_own(caller: Caller, destination: Destination) -> bool:
        if destination.native_id is None:
            return True
        channel = linkable.get(destination.channel)
        return channel is not None and await may_link(channel, caller, destination.native_id)

    return is_own
