"""Ports: what a cloud (or memory) supplies to the channel, each as small as its use."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from os import urandom
from typing import Any, Protocol, TypeAlias

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


class StoredTurn(Struct, frozen=True, gc=False, omit_defaults=True):
    """One turn as it is kept: its own new input items (normalised, with ids) and its response.

    `job` is what a worker needs to run a turn that was only begun: a finished one has none. `state` is
    what the agent wants back in the next turn (`KeptState`), where it wants anything. One that
    `resets` is the end of what was remembered (`SessionReset`): it can be continued, but of it and of
    the turns before it a later one is given nothing.
    """

    input: list[Item]
    response: Response
    job: dict[str, Any] | None = None
    state: dict[str, Any] | None = None
    resets: bool = False


class ConcludedError(Exception):
    """A turn that was begun has been concluded by another meanwhile, which counts; `turn` is that."""

    def __init__(self, turn: StoredTurn) -> None:
        """Take the turn as it is stored."""
        super().__init__()
        self.turn = turn


class UnfinishedError(Exception):
    """A turn that was begun is not finished yet, and so it cannot be deleted."""


class Branch(Struct, frozen=True):
    """Where a new turn goes: its minted id, and the turns before it, oldest first.

    They begin with the newest that resets, if one does: older ones are not remembered.
    `body` is the 52 hex digits from which the response id and the ids of the turn's items are made
    (`channel.responses.protocol.ids`). `place` is the store's own note of the position.
    """

    body: str
    turns: tuple[StoredTurn, ...] = ()
    place: object = None


class ResponseStore(Protocol):
    """History, partitioned by the isolation keys that every call takes.

    Ids locate below that partition and authorise nothing: another tenant's id is an unknown one.
    Every method raises `StoreError` when the storage fails, and those that return a history raise
    `HistoryTooLargeError` where all of it together is larger than `channel.room` allows.
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
        """Keep a turn, whole or not at all; saving the same turn again changes nothing.

        One that is only begun (queued) is replaced when it is saved as finished, and a finished one
        never: raises `ConcludedError` where a reopened branch was finished by another meanwhile.
        The turn is the store's from then on: the caller changes nothing of it any more.
        `turn.response.id` may be an id of the caller's own making (an alias). Raises
        `TurnTooLargeError` where the turn exceeds what the store can hold.
        """
        ...

    async def reopen(
        self, keys: IsolationKeys, response_id: str, /, *, with_history: bool = True
    ) -> tuple[StoredTurn, Branch] | None:
        """Return a turn that was begun and is not finished yet, with its branch, to finish it.

        None where there is no such turn, or where its history is not whole any more, unless it is
        not asked for.
        """
        ...

    async def get(self, keys: IsolationKeys, response_id: str, /) -> StoredTurn | None:
        """Return one turn, or None where `branch` would not see it; it may have any status."""
        ...

    async def turns(self, keys: IsolationKeys, response_id: str, /) -> Sequence[StoredTurn] | None:
        """Return the turn and all before it, oldest first, or None where any of them is missing.

        They begin with the newest before it that resets, if one does.
        """
        ...

    async def item(self, keys: IsolationKeys, item_id: str, /) -> Item | None:
        """Return one item of a completed or incomplete turn by an item id that the store's body is in.

        None where it is of a conversation that was deleted.
        """
        ...

    async def delete(self, keys: IsolationKeys, response_id: str, /) -> bool:
        """Delete a response; False where there was none. Its descendants cannot be continued any more.

        Raises `UnfinishedError` for one that was begun and is not finished.
        """
        ...


class Run(Struct, frozen=True):
    """What is known of a turn that was begun: who runs it, and until when that counts.

    `lease_until` is in Unix seconds: a run that is not renewed until then is over, and so is one
    that nobody has claimed. `owner` is empty until it is claimed. `events_until` says until when
    its stream events can be read; 0 where it keeps none.
    """

    lease_until: float
    owner: str = ""
    is_cancelled: bool = False
    events_until: float = 0.0


class EventBatch(Struct, frozen=True):
    """Stream events that were kept together: each as JSON, numbered without gaps from `first` on."""

    first: int
    events: list[bytes]

    @property
    def last(self) -> int:
        """The sequence number of the last event."""
        return self.first + len(self.events) - 1


class RunStore(Protocol):
    """Turns that were begun, and the events of those that can be resumed, below the isolation keys.

    The outcome of a turn is its record in the `ResponseStore`, and nothing here. No call but
    `begin` makes a run. Every method raises `StoreError` when the storage fails.
    """

    async def begin(self, keys: IsolationKeys, response_id: str, run: Run, /) -> None:
        """Note that a turn was begun; it has no owner yet, or is the owner's from the start."""
        ...

    async def claim(
        self, keys: IsolationKeys, response_id: str, owner: str, lease_until: float, /
    ) -> Run | None:
        """Become the owner of a run; None where it has one, is cancelled, or over, or never begun."""
        ...

    async def renew(
        self, keys: IsolationKeys, response_id: str, owner: str, lease_until: float, /
    ) -> Run | None:
        """Extend the lease of a run of one's own, even if it has run out; None where it is not."""
        ...

    async def look(
        self, keys: IsolationKeys, response_id: str, /, *, is_strong: bool = True
    ) -> Run | None:
        """Return a run; without `is_strong`, as it was a moment ago, at half the price."""
        ...

    async def request_cancel(self, keys: IsolationKeys, response_id: str, /) -> Run | None:
        """Ask for a run to be cancelled, and return it; None where there is none."""
        ...

    async def append(
        self, keys: IsolationKeys, response_id: str, batch: EventBatch, until: float, /
    ) -> None:
        """Keep events until then; the same batch again changes nothing."""
        ...

    async def events(
        self, keys: IsolationKeys, response_id: str, after: int, /, *, is_strong: bool = False
    ) -> Sequence[EventBatch]:
        """Return the batches that hold events after that number, in order and without gaps.

        Without `is_strong`, the last ones may be missing that came just now, at half the price.
        """
        ...

    async def last_events(self, keys: IsolationKeys, response_id: str, /) -> EventBatch | None:
        """Return the batch that was kept last, or None where none can be read."""
        ...

    async def forget(self, keys: IsolationKeys, response_id: str, /) -> None:
        """Delete a run and its events."""
        ...


class Job(Struct, frozen=True):
    """Work for another invocation: what kind of work, and what names it, as JSON values."""

    kind: str
    payload: dict[str, Any]


class Jobs(Protocol):
    """Starts work that goes on after the reply, in another invocation or another task."""

    async def start(self, job: Job, /) -> None:
        """Have the job run at least once; raises `StoreError` where that cannot be promised."""
        ...


class Sealer(Protocol):
    """Makes text that a client keeps and gives back: what was changed, or is another's, does not open.

    Every method raises `StoreError` where the secret behind it cannot be read.
    """

    async def seal(self, keys: IsolationKeys, data: bytes, /) -> str:
        """Return the data as text that opens for these keys only; it need not hide it from them."""
        ...

    async def open(self, keys: IsolationKeys, text: str, /) -> bytes | None:
        """Return the data of a seal, or None for anything else, whatever is wrong with it."""
        ...


class TurnTooLargeError(StoreError):
    """The turn is larger than the store can hold (6 MB with the DynamoDB store)."""


class HistoryTooLargeError(StoreError):
    """What a turn would go on with is larger than what is decoded at once (`channel.room`)."""

    is_passing = False


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
