"""Pushes to the webhook endpoints that the owner has registered, signed as the webhooks are."""

import time
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from channel.auth import Caller
from channel.delivery import Delivery, PushFailedError, PushRefusedError
from channel.ports import Clock
from channel.responses.webhooks import Endpoint, Verdict, judge, signed_headers
from channel.targets import ChannelIdentity
from infra.webhook_deliveries import Sender
from infra.webhook_targets import TargetRefusedError


EVENT_TYPE: Final = "response.delivery"


class Endpoints(Protocol):
    """Where endpoints are looked up; raises `StoreError`."""

    async def endpoints(self, principal: str, /) -> Sequence[Endpoint]: ...


class WebhookPush:
    """The `ChannelPush` whose native ids are the ids of endpoints (`we_…`), so that no request names a URL.

    A delivery goes to an endpoint because it is linked, whatever the events are that it is
    registered for. All of a principal's users share its endpoints.
    """

    def __init__(
        self,
        rows: Endpoints,
        sender: Sender,
        *,
        name: str = "webhook",
        clock: Clock = time.time,
    ) -> None:
        """Take where the endpoints are, and what posts once."""
        self.name = name
        self._rows = rows
        self._sender = sender
        self._clock = clock

    async def push(self, identity: ChannelIdentity, payload: Delivery, /) -> None:
        """Post once; raises `PushFailedError`, `PushRefusedError` and `StoreError`."""
        endpoint = await self._endpoint(payload.principal, identity.native_id)
        if endpoint is None:
            raise PushRefusedError("There is no such webhook endpoint.")
        body = _body(payload)
        headers = signed_headers(endpoint.secret, payload.id, int(self._clock()), body)
        try:
            status = await self._sender.post(endpoint.url, headers, body)
        except TargetRefusedError as error:
            raise PushRefusedError(str(error)) from error
        except OSError as error:
            raise PushFailedError(type(error).__name__) from error
        match judge(status):
            case Verdict.AGAIN:
                raise PushFailedError(f"HTTP {status}")
            case Verdict.OVER:
                raise PushRefusedError(f"HTTP {status}")
            case Verdict.DELIVERED:
                return

    async def may_link(self, caller: Caller, native_id: str, /) -> bool:
        """Return whether it is an enabled endpoint of the caller's principal; raises `StoreError`."""
        return await self._endpoint(caller.principal.name, native_id) is not None

    async def _endpoint(self, principal: str, endpoint_id: str) -> Endpoint | None:
        for endpoint in await self._rows.endpoints(principal):
            if endpoint.id == endpoint_id and not endpoint.is_disabled:
                return endpoint
        return None


def _body(payload: Delivery) -> bytes:
    event = {
        "id": payload.id,
        "object": "event",
        "type": EVENT_TYPE,
        "created_at": payload.created_at,
        "data": {
            "id": payload.response_id,
            "status": payload.status,
            "text": payload.text,
            "channel": payload.channel,
        },
    }
    return msgspec.json.encode(event)
