"""API Gateway's WebSocket events: a connection opens, says something, closes. Each is one invocation."""

import base64
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from channel.auth import Authenticator, authenticated
from channel.contract import Sockets
from channel.http import reply_to, request_id


_OK: Final = {"statusCode": 200}
_KINDS: Final = frozenset({"CONNECT", "MESSAGE", "DISCONNECT"})


def is_websocket_event(event: Any) -> bool:
    """Return whether a Lambda event is of a WebSocket API."""
    context = event.get("requestContext") if isinstance(event, dict) else None
    if not isinstance(context, dict) or not isinstance(context.get("connectionId"), str):
        return False
    kind = context.get("eventType")
    return isinstance(kind, str) and kind in _KINDS


class WebSocketEvents:
    """A worker (`handler.mount`) for the events of a WebSocket API; what its clients read is pushed."""

    def __init__(
        self,
        sockets: Sockets,
        authenticator: Authenticator,
        otherwise: Callable[..., Awaitable[Any]],
    ) -> None:
        """Take who serves the connections, who knows the keys, and the worker for all other events."""
        self._sockets = sockets
        self._authenticator = authenticator
        self._otherwise = otherwise

    async def __call__(self, event: Any, context: Any) -> Any:
        """Return what API Gateway is told: another status than 200 refuses a connection."""
        if not is_websocket_event(event):
            return await self._otherwise(event, context)
        token = request_id.set(getattr(context, "aws_request_id", ""))
        about = event["requestContext"]
        try:
            return await self._answer(event, about["eventType"], about["connectionId"])
        except Exception as error:  # noqa: BLE001 - told, as it would be over HTTP
            reply = reply_to(error)
            headers = {"content-type": "application/json"}
            return {
                "statusCode": reply.status,
                "headers": headers,
                "body": reply.body.decode(),
            }
        finally:
            request_id.reset(token)

    async def _answer(
        self, event: Mapping[str, Any], kind: str, connection_id: str
    ) -> dict[str, Any]:
        if kind == "CONNECT":
            caller = await authenticated(_headers(event), self._authenticator)
            await self._sockets.open(connection_id, caller)
        elif kind == "MESSAGE":
            await self._sockets.receive(connection_id, _said(event))
        else:
            await self._sockets.close(connection_id)
        return _OK


def _headers(event: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers of an upgrade, each as often as it was sent."""
    several = event.get("multiValueHeaders") or {
        name: [value] for name, value in (event.get("headers") or {}).items()
    }
    for name, values in several.items():
        for value in values:
            yield name.lower().encode("latin-1"), value.encode("latin-1", "replace")


def _said(event: Mapping[str, Any]) -> str | bytes:
    body: str = event.get("body") or ""
    return base64.b64decode(body) if event.get("isBase64Encoded") else body
