"""Messages to the clients of an API Gateway WebSocket API, by its management API.

A message goes out once or not at all: one that may have arrived is never sent again, since a stream
with an event too many is as broken as one with an event too few.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol


MAX_MESSAGE_BYTES: Final = 128 * 1024
"""What API Gateway carries in one message (AWS's page "Quotas for a WebSocket API")."""

_ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.1
_THROTTLED: Final = frozenset({"LimitExceededException", "ThrottlingException"})
_LOG: Final = logging.getLogger(__name__)


class ManagementClient(Protocol):
    """What is used of a boto3 client of the management API."""

    def post_to_connection(self, **arguments: Any) -> Any: ...

    def delete_connection(self, **arguments: Any) -> Any: ...


class ConnectionLostError(OSError):
    """A client is gone, or a message may not have reached it: its stream is over."""


class ManagementPush:
    """The `Push` of one WebSocket API (`channel.responses.sockets.gateway`)."""

    max_bytes = MAX_MESSAGE_BYTES

    def __init__(
        self,
        make_client: Callable[[], ManagementClient],
        *,
        pause: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        """Take what makes a client, at the first message: one that tries a call once."""
        self._make_client = make_client
        self._pause = pause
        self._client: ManagementClient | None = None

    async def send(self, connection_id: str, message: bytes, /) -> None:
        """Send a message; raises `ConnectionLostError`, and closes then what may still be open."""
        for attempt in range(_ATTEMPTS):
            failure = await asyncio.to_thread(self._post, connection_id, message)
            if failure is None:
                return
            if failure not in _THROTTLED:
                break
            await self._pause(_FIRST_PAUSE_S * 2**attempt)
        if failure != _GONE:
            _LOG.warning("a message was not carried: %s", failure)
            # Or else its client would wait for the rest of a stream that has a hole.
            await self.close(connection_id)
        raise ConnectionLostError(failure)

    async def close(self, connection_id: str, /) -> None:
        """Close a connection; nothing happens where that fails."""
        await asyncio.to_thread(self._delete, connection_id)

    def _post(self, connection_id: str, message: bytes) -> str | None:
        """Return None, or the name of what went wrong."""
        return self._called("post_to_connection", ConnectionId=connection_id, Data=message)

    def _delete(self, connection_id: str) -> None:
        failure = self._called("delete_connection", ConnectionId=connection_id)
        if failure not in (None, _GONE):
            _LOG.warning("a connection was not closed: %s", failure)

    def _called(self, operation: str, **arguments: Any) -> str | None:
        # Imported here, since it takes longer than everything else together.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            if self._client is None:
                self._client = self._make_client()
            getattr(self._client, operation)(**arguments)
        except ClientError as error:
            code: str = error.response["Error"]["Code"]
            return _GONE if code == _GONE_STATUS else code
        except BotoCoreError as error:
            return type(error).__name__
        return None


_GONE: Final = "GoneException"
_GONE_STATUS: Final = "410"  # where the reply had no body


def make_management_client(region: str | None, endpoint: str) -> Any:
    """Return a client of the management API at `https://API.execute-api.REGION.amazonaws.com/STAGE`."""
    from infra.dynamodb.client import make_aws_client  # noqa: PLC0415 - botocore comes with it

    return make_aws_client("apigatewaymanagementapi", region, endpoint, attempts=1)
