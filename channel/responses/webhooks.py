"""Webhooks of background responses: the event, its signature, when it is tried again (pure), and the port.

The event and its signature are what `client.webhooks.unwrap()` of OpenAI's SDKs takes (Standard
Webhooks: HMAC-SHA256 over `id.timestamp.body`).
"""

import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from enum import Enum
from hashlib import sha256
from types import MappingProxyType
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.ports import NewToken
from channel.responses.protocol.response import Response, Status


EVENT_TYPES: Final[Mapping[Status, str]] = MappingProxyType(
    {
        Status.COMPLETED: "response.completed",
        Status.FAILED: "response.failed",
        Status.INCOMPLETE: "response.incomplete",
        Status.CANCELLED: "response.cancelled",
    }
)
ATTEMPTS: Final = 5
WINDOW_S: Final = 60.0
"""Seconds within which an event is delivered or given up."""

_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - how every secret begins
_SECRET_BYTES: Final = 32
_ID_DIGITS: Final = 32
_FIRST_PAUSE_S: Final = 1.0
_GROWTH: Final = 3.0
_PASSING: Final = frozenset({408, 425, 429})


class Webhooks(Protocol):
    """Tells a tenant's endpoints how a background response ended."""

    async def notify(
        self,
        keys: IsolationKeys,
        principal: str,
        response: Response,
        /,
        *,
        deadline_s: float | None = None,
    ) -> None:
        """Deliver the event to the endpoints of a principal, and return when that is over.

        Takes at most `deadline_s` seconds. Raises `StoreError` where the endpoints cannot be read;
        what could not be delivered is logged by type and kept as a dead letter. To be called when the response is stored; a
        second call for the same response delivers the same event, with the same id, again.
        """
        ...


class Subject(Struct, frozen=True, gc=False):
    """What an event is about: the id of a response."""

    id: str


class WebhookEvent(Struct, frozen=True, kw_only=True, gc=False):
    """The event as it is posted; `created_at` is the Unix second at which the response ended."""

    id: str
    object: str = "event"
    created_at: int
    type: str
    data: Subject

    def encode(self) -> bytes:
        """Return the body of the request."""
        return msgspec.json.encode(self)


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where a principal wants to be told of which events; `created_at` in Unix seconds."""

    id: str
    principal: str
    url: str
    secret: str
    event_types: tuple[str, ...]
    created_at: int
    is_disabled: bool = False

    def __repr__(self) -> str:
        """Return the id alone: the secret signs, and a URL may hold one too."""
        return f"Endpoint({self.id!r})"

    def wants(self, event: WebhookEvent) -> bool:
        """Whether the event is to be delivered here."""
        return not self.is_disabled and event.type in self.event_types


class DeadLetter(Struct, frozen=True, kw_only=True, gc=False):
    """An event that an endpoint did not take: its body, why not, and after how many attempts.

    `at` is the Unix time at which it was given up.
    """

    principal: str
    endpoint_id: str
    event_id: str
    event_type: str
    body: str
    reason: str
    attempts: int
    at: float


class Verdict(Enum):
    """What an attempt came to."""

    DELIVERED = "delivered"
    AGAIN = "it may well succeed later"
    OVER = "the endpoint refuses it"


def event_of(keys: IsolationKeys, response: Response, now: float) -> WebhookEvent | None:
    """Return the event that tells of a response's end; None for one of the foreground, or unfinished.

    The id is the response's own, so that whoever is told twice can tell.
    """
    event_type = EVENT_TYPES.get(response.status)
    if event_type is None or not response.background:
        return None
    ended = [keys.user_key, keys.chat_key, response.id, response.created_at, event_type]
    digest = sha256(json.dumps(ended).encode()).hexdigest()[:_ID_DIGITS]
    created_at = int(now) if response.completed_at is None else response.completed_at
    return WebhookEvent(
        id=f"evt_{digest}", created_at=created_at, type=event_type, data=Subject(response.id)
    )


def make_secret(new_token: NewToken) -> str:
    """Return a new signing secret: `whsec_` and 32 random bytes in base64."""
    return _SECRET_PREFIX + b64encode(bytes.fromhex(new_token(_SECRET_BYTES))).decode()


def signed_headers(secret: str, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that sign a body at a time (Unix seconds; receivers allow five minutes)."""
    key = b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    signed = hmac.digest(key, b"%s.%d.%s" % (event_id.encode(), timestamp, body), "sha256")
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{b64encode(signed).decode()}",
    }


def judge(status: int) -> Verdict:
    """Return what an endpoint's HTTP status means; a redirect is not followed, and so is a refusal."""
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's classes
        return Verdict.DELIVERED
    if status in _PASSING or 500 <= status < 600:  # noqa: PLR2004 - HTTP's classes
        return Verdict.AGAIN
    return Verdict.OVER


def pause_after(attempt: int, chance: float) -> float:
    """Return the seconds to wait after an attempt (from 1), by a chance from 0 to 1.

    1, 3, 9, 27 seconds, of which chance takes away up to half: endpoints that come back are not
    met by all of the waiting deliveries at once.
    """
    return _FIRST_PAUSE_S * _GROWTH ** (attempt - 1) * (1 + chance) / 2
