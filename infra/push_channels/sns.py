"""Pushes to an SNS topic: one message a delivery, with attributes that subscriptions filter by."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final, Protocol

import msgspec

from channel.auth import Caller
from channel.delivery import Delivery, PushRefusedError
from channel.targets import ChannelIdentity, is_native_id
from infra.push_channels.aws import Calls, message_of, region_of


MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""What a message may have with its attributes, where its topic allows that much.

That is the topic's `MaximumMessageSize`, 256 KiB by default: SNS refuses what is larger than that.
"""

_TEXT: Final = "String"


class SNSClient(Protocol):
    """What is used of a boto3 SNS client."""

    def publish(self, **arguments: Any) -> dict[str, Any]: ...


class SNSPush:
    """The `ChannelPush` of a topic. Its native ids are labels of the callers' own, below their principals.

    A FIFO topic keeps the order of what goes to one identity, and takes a repeated delivery once.
    """

    def __init__(
        self, make_client: Callable[[], SNSClient], topic_arn: str, *, name: str = "sns"
    ) -> None:
        """Take what makes a client, at the first push."""
        self.name = name
        self._calls = Calls(make_client)
        self._topic_arn = topic_arn
        self._is_fifo = topic_arn.endswith(".fifo")

    async def push(self, identity: ChannelIdentity, payload: Delivery, /) -> None:
        """Publish once; raises `PushFailedError` and `PushRefusedError`."""
        message = message_of(identity, payload)
        attributes = {
            "principal": payload.principal,
            "native_id": identity.native_id,
            "status": payload.status,
        }
        if len(message.encode()) + _size(attributes) > MAX_MESSAGE_BYTES:
            raise PushRefusedError("The message is too large for a topic.")
        await self._calls(
            "publish",
            TopicArn=self._topic_arn,
            Message=message,
            MessageAttributes={
                name: {"DataType": _TEXT, "StringValue": value}
                for name, value in attributes.items()
            },
            **(_in_order(identity, payload) if self._is_fifo else {}),
        )

    async def may_link(self, _caller: Caller, native_id: str, /) -> bool:
        """Return True: the topic is the owner's, and each message says whose it is."""
        return is_native_id(native_id)


def make_sns_client(topic_arn: str) -> Any:
    """Return an SNS client in the region of a topic."""
    from infra.dynamodb.client import make_aws_client  # noqa: PLC0415 - botocore comes with it

    return make_aws_client("sns", region_of(topic_arn), attempts=1)


def _size(attributes: Mapping[str, str]) -> int:
    return sum(len(f"{name}{_TEXT}{value}".encode()) for name, value in attributes.items())


def _in_order(identity: ChannelIdentity, payload: Delivery) -> dict[str, str]:
    group = [payload.keys.user_key, payload.keys.chat_key, identity.native_id]
    return {
        "MessageGroupId": sha256(msgspec.json.encode(group)).hexdigest(),
        "MessageDeduplicationId": payload.id,
    }
