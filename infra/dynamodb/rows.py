"""Rows as values: a turn's row to and from attribute values, and the walk along a chain of them. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from math import ceil
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from channel.ports import StoredTurn
from channel.responses.protocol.response import Status
from channel.room import HistoryRoom
from infra.dynamodb import codec, keys


AttributeValues: TypeAlias = dict[str, Any]
"""An item as the client takes and gives it, such as `{"pk": {"S": "…"}}`."""

DELETED: Final = "D"
STATUS_LETTERS: Final[Mapping[Status, str]] = MappingProxyType(
    {
        Status.QUEUED: "q",
        Status.IN_PROGRESS: "i",
        Status.COMPLETED: "c",
        Status.INCOMPLETE: "n",
        Status.FAILED: "f",
        Status.CANCELLED: "x",
    }
)
CONTINUABLE: Final = frozenset("cn")
UNFINISHED: Final = frozenset("qi")
NEVER: Final = 1 << 53
"""The expiry of a row that has none."""


class TurnRow(Struct, frozen=True):
    """The row of one turn: its payload in `data`, or in `chunks` rows beside it with a checksum.

    Nothing of it changes but its expiry, and its deletion into a tombstone. `origin` is the entry
    of a conversation that the first turn of a fork continues. One that `resets` says so also when it
    is deleted. The rest is of such entries only: who held the conversation's lock (of a turn that was
    only begun), whether the response cannot be had though its items can, how many those are, and
    which of them are deleted.
    """

    sort_key: str
    status: str
    expires_at: int
    data: bytes = b""
    chunks: int = 0
    checksum: bytes = b""
    parent: str | None = None
    lineage: tuple[str, ...] = ()
    origin: str | None = None
    owner: str = ""
    is_hidden: bool = False
    items: int = 0
    deleted: frozenset[int] = frozenset()
    resets: bool = False

    def is_readable(self, now: float) -> bool:
        """Whether it is neither deleted nor expired, which DynamoDB itself notices days later."""
        return self.status != DELETED and self.expires_at >= now

    def chunk_keys(self) -> list[str]:
        """Return the sort keys of the chunks."""
        return [keys.chunk_key(self.sort_key, self.checksum, index) for index in range(self.chunks)]

    def decode(self, thread: str, data: bytes, room: HistoryRoom | None = None) -> StoredTurn:
        """Return the turn of the row's whole payload; raises as `codec.decode` does."""
        before = self.parent or self.origin
        parent = keys.located(thread, before).body if before else None
        return codec.decode(data, keys.located(thread, self.sort_key).body, parent, room)


class Rows(Struct, frozen=True):
    """What was read of one thread, by sort key."""

    turns: dict[str, TurnRow]
    chunks: dict[str, bytes]

    @classmethod
    def parse(cls, items: Iterable[AttributeValues]) -> "Rows":
        """Sort the items of a thread into turns and chunks."""
        rows = cls({}, {})
        for item in items:
            sort_key = item["sk"]["S"]
            if keys.is_chunk_key(sort_key):
                rows.chunks[sort_key] = item["d"]["B"]
            else:
                rows.turns[sort_key] = parse_turn(item)
        return rows

    def payload(self, row: TurnRow) -> bytes | None:
        """Return a row's whole payload, or None where a chunk is missing."""
        if not row.chunks:
            return row.data
        chunks = [self.chunks[key] for key in row.chunk_keys() if key in self.chunks]
        return codec.join(chunks, row.checksum) if len(chunks) == row.chunks else None

    def is_taken(self, node: keys.Node) -> bool:
        """Whether another turn follows the node in its own lane."""
        following = keys.slot_prefix(node.lane, node.seq + 1)
        return any(key.startswith(following) for key in self.turns)


def new_row(place: keys.Place | keys.EntryPlace, turn: StoredTurn, expires_at: int) -> TurnRow:
    """Return the row of a turn, still without its payload.

    One whose items are in a conversation does not expire.
    """
    status = STATUS_LETTERS[turn.response.status]
    resets = turn.resets and status in CONTINUABLE
    if isinstance(place, keys.EntryPlace):
        return TurnRow(
            place.node.sort_key,
            status,
            NEVER if status in CONTINUABLE else expires_at,
            owner=place.owner if status in UNFINISHED else "",
            is_hidden=not turn.response.store,
            items=len(turn.input) + len(turn.response.output),
            resets=resets,
        )
    return TurnRow(
        place.node.sort_key,
        status,
        expires_at,
        parent=place.parent.sort_key if place.parent else None,
        lineage=place.lineage,
        origin=place.origin.sort_key if place.origin else None,
        resets=resets,
    )


def parse_turn(item: AttributeValues) -> TurnRow:
    """Read the row of a turn."""
    return TurnRow(
        item["sk"]["S"],
        item["st"]["S"],
        int(item["ttl"]["N"]) if "ttl" in item else NEVER,
        item["d"]["B"] if "d" in item else b"",
        int(item["nx"]["N"]) if "nx" in item else 0,
        item["sum"]["B"] if "sum" in item else b"",
        item["par"]["S"] if "par" in item else None,
        lineage_of(item),
        item["cv"]["S"] if "cv" in item else None,
        item["own"]["S"] if "own" in item else "",
        "hid" in item,
        int(item["n"]["N"]) if "n" in item else 0,
        frozenset(map(int, item["del"]["NS"])) if "del" in item else frozenset(),
        "res" in item,
    )


def lineage_of(item: AttributeValues) -> tuple[str, ...]:
    """Return the lanes that the chain of a turn's item came through."""
    return tuple([cut["S"] for cut in item["lin"]["L"]]) if "lin" in item else ()


def turn_item(partition: str, row: TurnRow) -> AttributeValues:
    """Return the item of a turn's row; an absent attribute costs nothing."""
    item: AttributeValues = {
        "pk": {"S": partition},
        "sk": {"S": row.sort_key},
        "st": {"S": row.status},
        **_expiry(row),
    }
    if row.chunks:
        item |= {"nx": {"N": str(row.chunks)}, "sum": {"B": row.checksum}}
    else:
        item["d"] = {"B": row.data}
    if row.parent:
        item["par"] = {"S": row.parent}
    if row.lineage:
        item["lin"] = {"L": [{"S": cut} for cut in row.lineage]}
    if row.origin:
        item["cv"] = {"S": row.origin}
    if row.owner:
        item["own"] = {"S": row.owner}
    if row.is_hidden:
        item["hid"] = {"BOOL": True}
    if row.items:
        item["n"] = {"N": str(row.items)}
    if row.deleted:
        item["del"] = {"NS": sorted(map(str, row.deleted))}
    if row.resets:
        item["res"] = {"BOOL": True}
    return item


def chunk_items(partition: str, row: TurnRow, chunks: Iterable[bytes]) -> list[AttributeValues]:
    """Return the items of a turn's chunks."""
    return [
        {
            "pk": {"S": partition},
            "sk": {"S": sort_key},
            **_expiry(row),
            "d": {"B": chunk},
        }
        for sort_key, chunk in zip(row.chunk_keys(), chunks, strict=True)
    ]


def _expiry(row: TurnRow) -> AttributeValues:
    return {} if row.expires_at == NEVER else {"ttl": {"N": str(row.expires_at)}}


def seconds(time: float) -> AttributeValues:
    """Return a time in Unix seconds as an attribute value, rounded up."""
    return {"N": str(ceil(time))}


def counted(entries: Iterable[TurnRow]) -> list[TurnRow]:
    """Return the entries whose items are in their conversation."""
    return [row for row in entries if row.status in CONTINUABLE]


def remembered(entries: Iterable[TurnRow]) -> list[TurnRow]:
    """Return the entries that are counted, and what is left of those that reset and are deleted."""
    return [
        replace(row, chunks=0) if row.status == DELETED else row
        for row in entries
        if row.status in CONTINUABLE or (row.status == DELETED and row.resets)
    ]


class Refusal(Enum):
    """Why there is no chain."""

    MAYBE_STALE = "a row is missing or unfinished, and an eventually consistent read may lag"
    FINAL = "a row is there and says no"


def walk(
    turns: Mapping[str, TurnRow], last: str, now: float, *, any_last: bool
) -> list[TurnRow] | Refusal:
    """Return the chain that ends with the row `last`, oldest first, by the parent pointers alone.

    All of it must be completed or incomplete, undeleted and unexpired; with `any_last`, the last
    may have any status. Other rows that a range happens to hold drop out.
    """
    chain: list[TurnRow] = []
    for row in _upwards(turns, last):
        refusal = _refusal(row, now, any_status=any_last and not chain)
        if row is None or refusal:
            return refusal or Refusal.MAYBE_STALE
        chain.append(row)
    chain.reverse()
    return chain


def _refusal(row: TurnRow | None, now: float, *, any_status: bool) -> Refusal | None:
    if row is None:
        return Refusal.MAYBE_STALE
    if row.status == DELETED:
        return Refusal.FINAL
    if row.expires_at < now:
        return Refusal.MAYBE_STALE  # it may have been renewed
    if any_status or row.status in CONTINUABLE:
        return None
    return Refusal.MAYBE_STALE if row.status in UNFINISHED else Refusal.FINAL


def _upwards(turns: Mapping[str, TurnRow], last: str) -> Iterator[TurnRow | None]:
    sort_key: str | None = last
    while sort_key is not None:
        row = turns.get(sort_key)
        yield row
        sort_key = row.parent if row else None
