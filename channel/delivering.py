"""`Deliveries`: which targets callers may choose, who is linked, and where each reply goes."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec.structs import replace

from channel.auth import Caller
from channel.contract import CALLERS_TARGET, ChannelRequest, settled
from channel.delivery import (
    NOTHING_LINKED,
    ChannelPush,
    Delivery,
    DeliveryOptions,
    DeliveryReport,
    IdentityStore,
    LinkableChannel,
    Route,
    TargetAuthorizer,
    delivery_id,
    not_offered,
    require_small,
    route,
    token_of,
)
from channel.faults import HookError, hook_name
from channel.pushing import Pushing
from channel.responses.protocol.errors import RequestError
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


_LOG: Final = logging.getLogger(__name__)


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
        self.pushing = Pushing(self._pushes, options)

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
        return OpenDelivery(self.pushing, request, decided)

    def reopened(self, request: ChannelRequest, decided: Route) -> "OpenDelivery":
        """Return what was opened before, by another process."""
        return OpenDelivery(self.pushing, request, decided)

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


class OpenDelivery:
    """Where the reply of one request goes; `deliver` it once, when it is known."""

    def __init__(self, pushing: Pushing, request: ChannelRequest, decided: Route) -> None:
        """Take what was decided before the turn."""
        self._pushing = pushing
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
                created_at=int(self._pushing.clock()),
            )

        results = await asyncio.gather(
            *[
                self._pushing.push(identity, made(identity), left_s=left_s)
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


def own_destinations(push_channels: Sequence[Any]) -> TargetAuthorizer:
    """Return what allows callers their own linked identities, and those that they could link."""
    linkable = {each.name: each for each in push_channels if isinstance(each, LinkableChannel)}

    async def is_own(caller: Caller, destination: Destination) -> bool:
        if destination.native_id is None:
            return True
        channel = linkable.get(destination.channel)
        return channel is not None and await may_link(channel, caller, destination.native_id)

    return is_own
