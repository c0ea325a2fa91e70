"""Pushes to an EventBridge bus: one event a delivery, which the owner's rules route on."""

from collections.abc import Callable
from typing import Any, Final, Protocol

from channel.auth import Caller
from channel.delivery import Delivery, PushRefusedError
from channel.targets import ChannelIdentity, is_native_id
from infra.push_channels.aws import Calls, failure_of, message_of, region_of


DETAIL_TYPE: Final = "response.delivery"
MAX_ENTRY_BYTES: Final = 1024 * 1024
"""What one event has less than (AWS's page on `PutEvents`; 256 KB until January 2026)."""

_ENVELOPE_BYTES: Final = 1024  # what EventBridge writes around it counts, too


class EventsClient(Protocol):
    """What is used of a boto3 EventBridge client."""

    def put_events(self, **arguments: Any) -> dict[str, Any]: ...


class EventBridgePush:
    """The `ChannelPush` of a bus. Its native ids are labels of the callers' own, below their principals.

    A consumer goes by `principal` and `native_id`, since two principals may use the same label.
    """

    def __init__(
        self,
        make_client: Callable[[], EventsClient],
        bus: str,
        *,
        name: str = "eventbridge",
        source: str = "lambda-responses",
    ) -> None:
        """Take what makes a client, at the first push; and the name or the ARN of the bus."""
        self.name = name
        self._calls = Calls(make_client)
        self._bus = bus
        self._source = source

    async def push(self, identity: ChannelIdentity, payload: Delivery, /) -> None:
        """Put one event; raises `PushFailedError` and `PushRefusedError`."""
        detail = message_of(identity, payload)
        size = sum(len(part.encode()) for part in (self._source, DETAIL_TYPE, detail))
        if size + _ENVELOPE_BYTES > MAX_ENTRY_BYTES:
            raise PushRefusedError("The message is too large for an event.")
        entry = {
            "EventBusName": self._bus,
            "Source": self._source,
            "DetailType": DETAIL_TYPE,
            "Detail": detail,
        }
        told = await self._calls("put_events", Entries=[entry])
        if told["FailedEntryCount"]:
            raise failure_of(told["Entries"][0].get("ErrorCode", "FailedEntry"))

    async def may_link(self, _caller: Caller, native_id: str, /) -> bool:
        """Return True: the bus is the owner's, and each event says whose it is."""
        return is_native_id(native_id)


def make_events_client(bus: str, region: str | None) -> Any:
    """Return an EventBridge client for a bus: in the region that its ARN names, if it is one."""
    from infra.dynamodb.client import make_aws_client  # noqa: PLC0415 - botocore comes with it

    return make_aws_client("events", region_of(bus) or region, attempts=1)
