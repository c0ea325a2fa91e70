"""Ports: what a cloud (or memory) supplies to the channel, each as small as its use."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from os import urandom
from typing import Protocol, TypeAlias

from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.responses.protocol.items import Item
from channel.responses.protocol.response import Response


Clock: TypeAlias = Callable[[], float]
"""Returns the Unix time in seconds."""

NewToken: TypeAlias = Callable[[int], str]
"""Returns that many random bytes as lower-case hex."""


call_limit_s: ContextVar[float | None] = ContextVar("call_limit_s", default=None)
"""Seconds that one call of a store may take where time is short; None leaves that to the store."""


def random_hex(size: int) -> str:
    """Return that many bytes of the operating system's randomness: the `NewToken` of production."""
    return urandom(size).hex()


class StoreError(Exception):
    """The store could not answer: ours, not the client's; the cause is chained, never shown.

    A write that raises it may have happened all the same (a time-out after success). `is_passing`
    says whether the same call may well succeed later.
    """

    is_passing = True


class StoredTurn(Struct, frozen=True, gc=False):
    """One turn as it is kept: its own new input items (normalised, with ids) and its response."""

    input: list[Item]
    response: Response


class Branch(Struct, frozen=True):
    """Where a new turn goes: its minted id, and the turns before it, oldest first.

    `body` is the 52 hex digits from which the response id and the ids of the turn's items are made
    (`channel.responses.protocol.ids`). `place` is the store's own note of the position.
    """

    body: str
    turns: tuple[StoredTurn, ...] = ()
    place: object = None


class ResponseStore(Protocol):
    """History, partitioned by the isolation keys that every call takes.

    Ids locate below that partition and authorise nothing: another tenant's id is an unknown one.
    Every method raises `StoreError` when the storage fails.
    """

    async def branch(
        self, keys: IsolationKeys, previous_response_id: str | None, /
    ) -> Branch | None:
        """Mint the place of a new turn after the given response, or at the start of a new thread.

        None where the previous response is unknown, foreign, malformed or expired, where it or
        an ancestor was deleted, or has another status than completed or incomplete: history is
        whole or refused, never silently shorter.
        """
        ...

    async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        """Keep a finished turn, whole or not at all; saving the same turn again changes nothing.

        The turn is the store's from then on: the caller changes nothing of it any more.
        `turn.response.id` may be an id of the caller's own making (an alias). Raises
        `TurnTooLargeError` where the turn exceeds what the store can hold.
        """
        ...

    async def get(self, keys: IsolationKeys, response_id: str, /) -> StoredTurn | None:
        """Return one turn, or None where `branch` would not see it; it may have any status."""
        ...

    async def turns(self, keys: IsolationKeys, response_id: str, /) -> Sequence[StoredTurn] | None:
        """Return the turn and all before it, oldest first, or None where any of them is missing."""
        ...

    async def item(self, keys: IsolationKeys, item_id: str, /) -> Item | None:
        """Return one item of a completed or incomplete turn by an item id that the store's body is in."""
        ...

    async def delete(self, keys: IsolationKeys, response_id: str, /) -> bool:
        """Delete a response; False where there was none. Its descendants cannot be continued any more."""
        ...


class TurnTooLargeError(StoreError):
    """The turn is larger than the store can hold (6 MB with the DynamoDB store)."""


class TurnFacts(Struct, frozen=True, gc=False):
    """What is measured of one turn; times in milliseconds since the request came in."""

    outcome: str
    duration_ms: float
    first_event_ms: float | None
    input_tokens: int
    output_tokens: int
    stream: bool


class Telemetry(Protocol):
    """Where measurements go; it never raises into a turn."""

    def turn_finished(self, facts: TurnFacts, /) -> None:
        """Record one finished turn."""
        ...
