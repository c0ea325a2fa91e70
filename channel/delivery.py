"""Delivery as values: what is delivered, to which destinations (pure), what came of it; and the ports.

Who is linked is known by the isolation keys of the caller, and so is all that a target can mean: a
name of another tenant's is unknown here.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias, runtime_checkable

import msgspec
from msgspec import Struct, field

from channel.auth import Caller
from channel.isolation import IsolationKeys
from channel.ports import Clock, Jobs
from channel.responses.protocol.errors import RequestError
from channel.responses.webhooks import ATTEMPTS
from channel.targets import (
    FIELD,
    ChannelIdentity,
    Destination,
    ResponseTarget,
    ResponseTargetKind,
    is_native_id,
)


MAX_ATTRIBUTES_BYTES: Final = 2048
"""Size of an identity's attributes as JSON."""

ATTEMPT_S: Final = 5.0
"""Seconds that a destination is given while the originator waits."""

_ID_DIGITS: Final = 32
_CHANCE: Final = random.SystemRandom().random


class Delivery(Struct, frozen=True, kw_only=True):
    """What is pushed: the text of a turn, and which turn it was.

    `id` is the same for every attempt at the same destination, so that a receiver can tell. `status`
    is that of the response (`completed`, `incomplete`, or `failed` with the text until then).
    `channel` is the one that the request came through. `created_at` in Unix seconds.
    """

    id: str
    response_id: str
    status: str
    text: str
    channel: str
    principal: str
    keys: IsolationKeys
    created_at: int


class DeliveryReport(Struct, frozen=True):
    """What came of a delivery; each destination by its token (`channel:native_id`, or the name alone).

    `failed` has the type of what went wrong and its text beside each token, for the host and its
    logs: it may name what a client should not read. Of these, `again` are tried again by a job.
    """

    include_originating: bool
    pushed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    again: tuple[str, ...] = ()


@runtime_checkable
class ChannelPush(Protocol):
    """A channel that can say something by itself: what a `Channel` may also be."""

    name: str

    async def push(self, identity: ChannelIdentity, payload: Delivery, /) -> None:
        """Deliver it; to be given up and tried again later where it raises.

        Raises `PushRefusedError` where trying again is of no use.
        """
        ...


@runtime_checkable
class LinkableChannel(Protocol):
    """A channel to whose identities callers may link themselves, and may name them in a target."""

    name: str

    def may_link(self, caller: Caller, native_id: str, /) -> bool | Awaitable[bool]:
        """Return whether the identity is the caller's to name; raises `StoreError`."""
        ...


class PushRefusedError(Exception):
    """A destination does not take what is pushed, now or later; the text is ours and may be logged."""


class PushFailedError(OSError):
    """A destination did not take what is pushed, but may later; the text is ours and may be logged."""


class Linked(Struct, frozen=True):
    """What is known of the caller behind some isolation keys: identities by channel, and the last channel."""

    identities: Mapping[str, ChannelIdentity] = field(default_factory=dict)
    active: str | None = None


class IdentityStore(Protocol):
    """Linked identities, below the isolation keys; every method raises `StoreError`."""

    async def record(self, keys: IsolationKeys, identity: ChannelIdentity, /) -> Linked:
        """Link an identity in place of its channel's, as the active one; return what was known before."""
        ...

    async def linked(self, keys: IsolationKeys, /) -> Linked:
        """Return what is known."""
        ...

    async def unlink(self, keys: IsolationKeys, channel: str, /) -> bool:
        """Forget the identity of a channel; False where there is none."""
        ...


class Undelivered(Struct, frozen=True, kw_only=True):
    """A delivery that did not arrive: to whom, why not, and after how many attempts.

    It is a dead letter once nobody tries it any more (`is_dead`); `at` is the Unix time of the last
    attempt. `reason` is the type of what went wrong, with its text where that is ours.
    """

    delivery: Delivery
    identity: ChannelIdentity
    reason: str
    attempts: int
    at: float
    is_dead: bool = False


class UndeliveredStore(Protocol):
    """Deliveries that did not arrive, by principal; kept for a week. Every method raises `StoreError`."""

    async def keep(self, undelivered: Undelivered, /) -> None:
        """Keep it, in place of what is kept of the same delivery id."""
        ...

    async def get(self, principal: str, delivery_id: str, /) -> Undelivered | None:
        """Return one."""
        ...

    async def drop(self, principal: str, delivery_id: str, /) -> None:
        """Forget one that has arrived."""
        ...

    async def all_of(self, principal: str, /) -> Sequence[Undelivered]:
        """Return those of a principal, oldest first."""
        ...


TargetAuthorizer: TypeAlias = Callable[[Caller, Destination], bool | Awaitable[bool]]
"""Returns whether a caller may have a reply sent to a destination of their choice; all but True is no.

`active` and `all_linked`, which stand for the caller's own identities, are asked for by their names.
"""


class Route(Struct, frozen=True):
    """Where one reply goes: decided before the turn runs, by what was known then."""

    include_originating: bool
    pushes: tuple[ChannelIdentity, ...] = ()
    skipped: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    """Tokens that neither the caller has named nor are linked to: they read the channel's name alone."""


def token_of(identity: ChannelIdentity) -> str:
    """Return the token of an identity in a report."""
    return Destination(identity.channel, identity.native_id).token


def delivery_id(keys: IsolationKeys, response_id: str, token: str) -> str:
    """Return the id of the delivery of one response to one destination."""
    named = msgspec.json.encode([keys.user_key, keys.chat_key, response_id, token])
    return f"dlv_{sha256(named).hexdigest()[:_ID_DIGITS]}"


def route(
    target: ResponseTarget,
    *,
    origin: str,
    linked: Linked,
    can_push: Callable[[str], bool],
    is_callers: bool = True,
) -> Route:
    """Return where a reply goes that is to go to a target, which is the caller's own choice, or not.

    `origin` is the channel of the request, and `linked` what was known before it. A channel that
    cannot push, or has no known identity, is skipped; where only such are named, or none, the reply
    goes to its origin after all, unless the target is `none`.
    """
    if target.kind == ResponseTargetKind.NONE:
        return Route(include_originating=False)
    include_originating, wanted = _wanted(target, origin, linked)
    pushes: dict[tuple[str, str], ChannelIdentity] = {}
    skipped: dict[str, None] = {}
    for destination in wanted:
        identity = _identity(destination, linked)
        if identity is None or not can_push(destination.channel):
            skipped[destination.token if identity is None else token_of(identity)] = None
        else:
            pushes.setdefault((identity.channel, identity.native_id), identity)
    return Route(
        include_originating=include_originating or not pushes,
        pushes=tuple(pushes.values()),
        skipped=tuple(skipped),
        untold=() if is_callers else _unknown_to_caller(pushes.values(), linked),
    )


def _unknown_to_caller(pushes: Iterable[ChannelIdentity], linked: Linked) -> tuple[str, ...]:
    own = {token_of(identity) for identity in linked.identities.values()}
    return tuple([token for token in map(token_of, pushes) if token not in own])


def _wanted(
    target: ResponseTarget, origin: str, linked: Linked
) -> tuple[bool, Sequence[Destination]]:
    match target.kind:
        case ResponseTargetKind.ACTIVE if linked.active not in (None, origin):
            return False, [Destination(linked.active or "")]
        case ResponseTargetKind.CHANNELS:
            named = [Destination.of(token) for token in target.targets]
            elsewhere = [each for each in named if not _is_origin(each, origin)]
            return len(elsewhere) < len(named), elsewhere
        case ResponseTargetKind.ALL_LINKED:
            others = [Destination(name) for name in linked.identities if name != origin]
            return len(others) < len(linked.identities), others
        case _:
            return True, ()


def _is_origin(destination: Destination, origin: str) -> bool:
    return destination.token in ("originating", origin)


def _identity(destination: Destination, linked: Linked) -> ChannelIdentity | None:
    if destination.native_id is None:
        return linked.identities.get(destination.channel)
    return ChannelIdentity(destination.channel, destination.native_id)


def not_offered() -> RequestError:
    """Return the 400 of a `response_target` where callers may not choose one."""
    msg = f"Unsupported parameter: '{FIELD}' is not offered by this server."
    return RequestError(msg, param=FIELD, code="unsupported_parameter")


def require_small(identity: ChannelIdentity, param: str = "native_id") -> None:
    """Raise `RequestError` (400) for an identity that is no id, or has too much about it."""
    if not is_native_id(identity.native_id):
        msg = f"Invalid '{param}': it has 1 to 512 characters, none of control."
        raise RequestError(msg, param=param, code="invalid_value")
    if len(msgspec.json.encode(identity.attributes)) > MAX_ATTRIBUTES_BYTES:
        msg = f"Invalid 'attributes': they have at most {MAX_ATTRIBUTES_BYTES} bytes as JSON."
        raise RequestError(msg, param="attributes", code="invalid_value")


def acknowledgement(report: DeliveryReport, *, untold: Sequence[str] = ()) -> str:
    """Return what the originator reads in place of a reply that went elsewhere.

    Of `untold` destinations it reads the channel only.
    """
    failed = [token for token, _ in report.failed if token not in report.again]

    def named(tokens: Iterable[str]) -> str:
        shown = [Destination.of(each).channel if each in untold else each for each in tokens]
        return ", ".join(dict.fromkeys(shown))

    told = [
        f"{said} {named(tokens)}{more}."
        for said, tokens, more in (
            ("Delivered to", report.pushed, ""),
            ("Not delivered yet to", report.again, ", but tried again"),
            ("Not delivered to", failed, ""),
        )
        if tokens
    ]
    return " ".join(told) or "The reply was not sent anywhere, as asked."


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


NOTHING_LINKED: Final = Linked(MappingProxyType({}))
