"""What EventBridge and SNS share: the message, one call of a client, and what an error's code means."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from channel.delivery import Delivery, PushFailedError, PushRefusedError
from channel.targets import ChannelIdentity


_FINAL: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthorizationError",
        "InvalidAccountIdException",
        "InvalidArgument",
        "InvalidParameter",
        "InvalidSecurity",
        "KMSAccessDenied",
        "KMSDisabled",
        "KMSInvalidState",
        "KMSNotFound",
        "KMSOptInRequired",
        "MalformedDetail",
        "NotAuthorizedForDetailTypeException",
        "NotAuthorizedForSourceException",
        "NotFound",
        "ParameterValueInvalid",
        "RedactionFailure",
        "ResourceNotFoundException",
        "ValidationError",
        "ValidationException",
    }
)
"""Codes of SNS's `Publish`, and of EventBridge's `PutEvents` and its entries, that no retry mends."""


class Calls:
    """Calls of a client that is made at the first of them, each in a thread."""

    def __init__(self, make_client: Callable[[], Any]) -> None:
        """Take what makes a client: one that tries a call once."""
        self._make_client = make_client
        self._client: Any = None

    async def __call__(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Return what the service says; raises `PushFailedError` and `PushRefusedError`."""
        return await asyncio.to_thread(self._call, operation, arguments)

    def _call(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        # Imported here, since it takes longer than everything else together.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            if self._client is None:
                self._client = self._make_client()
            told: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            raise failure_of(error.response["Error"]["Code"]) from error
        except BotoCoreError as error:
            raise PushFailedError(type(error).__name__) from error
        return told


def failure_of(code: str) -> PushFailedError | PushRefusedError:
    """Return the error that an AWS error code stands for; one that is not known may pass."""
    return PushRefusedError(code) if code in _FINAL else PushFailedError(code)


def message_of(identity: ChannelIdentity, payload: Delivery) -> str:
    """Return the JSON that consumers get: what is delivered, and whose it is and for whom."""
    message = {
        "id": payload.id,
        "response_id": payload.response_id,
        "status": payload.status,
        "text": payload.text,
        "channel": payload.channel,
        "principal": payload.principal,
        "user_key": payload.keys.user_key,
        "chat_key": payload.keys.chat_key,
        "native_id": identity.native_id,
        "attributes": dict(identity.attributes),
        "created_at": payload.created_at,
    }
    encoded = msgspec.json.encode(message).decode()
    # SNS and SQS take the characters of XML only; of those that JSON leaves as they are, not these two.
    return encoded.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def region_of(arn: str) -> str | None:
    """Return the region that an ARN names; None where it is none."""
    parts = arn.split(":")
    return parts[3] if parts[0] == "arn" else None
