"""`GET /identities`, `PUT` and `DELETE /identities/{channel}`: where a caller can be reached, as they say themselves."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, field
from starlette.requests import Request

from channel.auth import caller_of
from channel.contract import PlainRoute
from channel.delivering import Deliveries, may_link
from channel.delivery import require_small
from channel.http import JSONReply, read_body
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.shapes import decoded
from channel.targets import MAX_NAME, ChannelIdentity


class _Body(Struct, frozen=True, gc=False):
    native_id: str
    attributes: dict[str, Any] = field(default_factory=dict)


_decode: Final = msgspec.json.Decoder(_Body).decode
_ONE: Final = "/identities/{channel}"


def identity_routes(deliveries: Deliveries) -> list[PlainRoute]:
    """Return the routes; what they show and change is the caller's own, below their isolation keys."""
    routes = _Identities(deliveries)
    return [
        PlainRoute("/identities", routes.all, ["GET"]),
        PlainRoute(_ONE, routes.link, ["PUT"]),
        PlainRoute(_ONE, routes.unlink, ["DELETE"]),
    ]


class _Identities:
    def __init__(self, deliveries: Deliveries) -> None:
        self._deliveries = deliveries

    async def all(self, request: Request) -> JSONReply:
        linked = await self._deliveries.identities.linked(caller_of(request.scope).keys)
        data = [
            _shown(identity, is_active=name == linked.active)
            for name, identity in sorted(linked.identities.items())
        ]
        return JSONReply({"object": "list", "data": data})

    async def link(self, request: Request) -> JSONReply:
        """Link an identity that is the caller's own: any other is an unknown one."""
        caller, name = caller_of(request.scope), _channel(request)
        given = decoded(await read_body(request.scope, request.receive), _decode)
        identity = ChannelIdentity(name, given.native_id, given.attributes)
        require_small(identity, "native_id")
        channel = self._deliveries.linkable(name)
        if channel is None or not await may_link(channel, caller, identity.native_id):
            raise _not_found(name)
        await self._deliveries.identities.record(caller.keys, identity)
        return JSONReply(_shown(identity, is_active=True))

    async def unlink(self, request: Request) -> JSONReply:
        caller, name = caller_of(request.scope), _channel(request)
        if not await self._deliveries.identities.unlink(caller.keys, name):
            raise _not_found(name)
        return JSONReply({"object": "identity", "channel": name, "deleted": True})


def _channel(request: Request) -> str:
    name: str = request.path_params["channel"]
    if len(name) > MAX_NAME:
        raise _not_found(name)
    return name


def _shown(identity: ChannelIdentity, *, is_active: bool) -> Mapping[str, Any]:
    return {
        "object": "identity",
        "channel": identity.channel,
        "native_id": identity.native_id,
        "attributes": identity.attributes,
        "is_active": is_active,
    }


def _not_found(channel: str) -> RequestError:
    return RequestError(f"No such identity of a channel '{channel}'.", status=404)
