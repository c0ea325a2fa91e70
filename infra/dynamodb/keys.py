"""The key schema: which rows hold what, from the caller's isolation keys and the body of an id. Pure.

Every partition key of a tenant's data begins with the tenant tag, which only the authenticated keys
make; the parts of an id merely point below it. A body is 52 hex digits:

    version 2 │ thread 20 │ lane 8 │ seq 6 │ nonce 16

`seq` is the depth of the turn in its chain, from 1. The first child of a turn stays in its lane and
later ones open lanes of their own, so a chain is one contiguous range of sort keys per lane.

The body of an entry of a conversation is another version, whose rows are in a partition of their own:

    version 2 │ conversation 20 │ number 12 │ nonce 18

`number` counts what was begun in the conversation, from 1, so its entries sort in that order. It is a
count and no time, since the clocks of environments differ.
"""

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import ClassVar, Final, TypeAlias
from urllib.parse import quote

from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.ports import NewToken
from channel.responses.protocol.ids import response_body


VERSION: Final = "01"
ENTRY_VERSION: Final = "02"
ROOT_LANE: Final = "00000000"
ONLY_ROW: Final = "!"
"""The sort key of a partition that has a single row."""
META_ROW: Final = "META"
"""The sort key of a conversation's own row, beside its entries."""

TENANT_PARTITION: Final = "cfg#tenant"
API_KEYS_PARTITION: Final = "cfg#keys"

_TAG_BYTES: Final = 16
_THREAD_BYTES: Final = 10
_LANE_BYTES: Final = 4
_NONCE_BYTES: Final = 8
_ENTRY_NONCE_BYTES: Final = 9
_KEY_DIGITS: Final = 32
_TURN_SEPARATORS: Final = 3
_AFTER_ALL: Final = "~"  # sorts after hex digits and '#'
_ENTRIES: Final = "I#"
_ENTRY_CHUNKS: Final = "C#"

SortKeys: TypeAlias = tuple[str, str]
"""The first and the last sort key of a range, both inclusive."""


class Node(Struct, frozen=True):
    """Where a turn is below its tenant."""

    thread: str
    lane: str
    seq: int
    nonce: str

    @property
    def body(self) -> str:
        """The body of the turn's ids."""
        return f"{VERSION}{self.thread}{self.lane}{self.seq:06x}{self.nonce}"

    @property
    def sort_key(self) -> str:
        """The sort key of the turn's row."""
        return slot_prefix(self.lane, self.seq) + self.nonce

    @property
    def cut(self) -> str:
        """The entry that a lane leaving here notes in its lineage: `lane:seq`."""
        return f"{self.lane}:{self.seq}"


class Entry(Struct, frozen=True):
    """Where an entry of a conversation is below its tenant: `thread` is the conversation's own."""

    thread: str
    number: int
    nonce: str

    @property
    def body(self) -> str:
        """The body of the ids of the entry's response and items."""
        return f"{ENTRY_VERSION}{self.thread}{self.number:012x}{self.nonce}"

    @property
    def sort_key(self) -> str:
        """The sort key of the entry's row."""
        return f"{_ENTRIES}{self.number:012x}{self.nonce}"


class Place(Struct, frozen=True):
    """Where a new turn goes: what `Branch.place` is. `origin` is the entry that a fork begins after."""

    node: Node
    parent: Node | None = None
    lineage: tuple[str, ...] = ()
    origin: Entry | None = None

    @property
    def before(self) -> Node | Entry | None:
        """Where the turn before this one is."""
        return self.parent or self.origin


class EntryPlace(Struct, frozen=True):
    """Where a new turn of a conversation goes, and who holds its lock until when (Unix seconds)."""

    node: Entry
    owner: str
    until: float

    before: ClassVar[None] = None


def require_user(keys: IsolationKeys) -> None:
    """Raise `ValueError` where no user is named: nothing is ever stored for everybody."""
    if not keys.user_key:
        raise ValueError("Storage is partitioned by user: the isolation keys name none.")


def tenant_tag(secret: bytes, keys: IsolationKeys) -> str:
    """Return the 22 characters that stand for both isolation keys; a missing chat is its own value."""
    require_user(keys)
    named = json.dumps([keys.user_key, keys.chat_key], separators=(",", ":")).encode()
    tag = hmac.digest(secret, named, "sha256")[:_TAG_BYTES]
    return urlsafe_b64encode(tag).rstrip(b"=").decode()


def thread_partition(tenant: str, thread: str) -> str:
    """Return the partition of a thread: a root turn and everything that continues it."""
    return f"t#{tenant}#{thread}"


def conversation_partition(tenant: str, thread: str) -> str:
    """Return the partition of a conversation: its own row and its entries."""
    return f"t#{tenant}#c{thread}"


def partition_of(tenant: str, located: Node | Entry) -> str:
    """Return the partition of a turn's row."""
    if isinstance(located, Entry):
        return conversation_partition(tenant, located.thread)
    return thread_partition(tenant, located.thread)


def conversation_beside(partition: str) -> str:
    """Return the partition of the conversation whose name a thread has: the thread holds its forks."""
    tenant, _, thread = partition.rpartition("#")
    return f"{tenant}#c{thread}"


def alias_partition(tenant: str, response_id: str) -> str:
    """Return the partition of the row that leads from a response id of the caller's making to a body."""
    return f"t#{tenant}#a#{sha256(response_id.encode(errors='surrogatepass')).hexdigest()}"


def run_partition(tenant: str, response_id: str) -> str:
    """Return the partition of a turn that was begun: its run, and its events."""
    name = response_body(response_id)
    if name is None:  # of the caller's making: any text
        name = sha256(response_id.encode(errors="surrogatepass")).hexdigest()
    return f"t#{tenant}#e#{name}"


def history_partition(tenant: str, session_id: str) -> str:
    """Return the partition of what an agent's own history provider keeps of a session."""
    return f"t#{tenant}#h#{_hashed(session_id)}"


def messages_key(number: int) -> str:
    """Return the sort key of the messages of one run of a session, by the number of the run, from 1."""
    return f"M#{number:012d}"


def messages_range() -> SortKeys:
    """Return the range of the messages of all runs of a session; no chunks."""
    return "M#", f"M#{_AFTER_ALL}"


def checkpoints_partition(tenant: str, scope: str) -> str:
    """Return the partition of the checkpoints that a workflow keeps by itself in a scope."""
    return f"t#{tenant}#w#{_hashed(scope)}"


def checkpoint_key(workflow: str, number: int) -> str:
    """Return the sort key of a checkpoint of a workflow of that name; its checkpoints count from 1."""
    return f"N#{_hashed(workflow)}#{number:012d}"


def checkpoint_range(workflow: str) -> SortKeys:
    """Return the range of all checkpoints of a workflow of that name; no chunks."""
    first = f"N#{_hashed(workflow)}#"
    return first, first + _AFTER_ALL


def checkpoint_id_key(checkpoint_id: str) -> str:
    """Return the sort key of the row that leads from a checkpoint's id to its sort key."""
    return f"L#{_hashed(checkpoint_id)}"


def number_in(sort_key: str) -> int:
    """Return the number of a run's messages, or of a checkpoint, by its sort key."""
    return int(sort_key.rpartition("#")[2])


def idempotency_partition(tenant: str, key: str) -> str:
    """Return the partition of an idempotency key's row; the key itself is not stored."""
    return f"t#{tenant}#k#{sha256(key.encode()).hexdigest()[:_KEY_DIGITS]}"


def session_partition(tenant: str, session_key: str) -> str:
    """Return the partition of a session's row; the key itself, which is any text, is not stored."""
    return f"t#{tenant}#s#{_hashed(session_key)}"


def identities_partition(tenant: str) -> str:
    """Return the partition of the row of the identities that a tenant has in channels."""
    return f"t#{tenant}#i"


def principal_partition(kind: str, principal: str) -> str:
    """Return the partition of rows of a kind that are a principal's, outside of the tenants.

    The name may be any text; what begins with `kind#` is told apart by a policy (template.yaml).
    """
    return f"{kind}#{quote(principal, safe='', errors='surrogatepass')}"


def delivery_key(delivery_id: str) -> str:
    """Return the sort key of a delivery that did not arrive."""
    return f"D#{delivery_id}"


def deliveries_range() -> SortKeys:
    """Return the range of all deliveries of a principal that did not arrive; no chunks."""
    return "D#", f"D#{_AFTER_ALL}"


def events_key(last: int) -> str:
    """Return the sort key of events that were kept together, by the number of the last of them."""
    return f"E#{last:08d}"


def events_after(number: int) -> SortKeys:
    """Return the range of the events after that number, parts of them included."""
    return events_key(number + 1), f"E#{_AFTER_ALL}"


def part_key(sort_key: str, index: int) -> str:
    """Return the sort key of a part of events that are too large for one row."""
    return f"{sort_key}#{index:03d}"


def connection_partition(connection_id: str) -> str:
    """Return the partition of a WebSocket connection: what it knows, as long as it lasts."""
    return f"ws#{connection_id}"


def frame_key(name: str) -> str:
    """Return the sort key of a frame that is not over."""
    return f"F#{name}"


def local_key(response_id: str, before: str | None) -> str:
    """Return the sort key of a turn that only its connection knows; `before` is that of the turn before.

    A chain is one range: `T#first#depth#name`, with as many separators as a stored turn has.
    """
    name = response_body(response_id)
    if name is None:  # of the caller's making: any text
        name = sha256(response_id.encode(errors="surrogatepass")).hexdigest()
    if before is None:
        return f"T#{name}#{1:06d}#{name}"
    _, first, depth, _ = before.split("#")
    return f"T#{first}#{int(depth) + 1:06d}#{name}"


def local_range(last: str) -> SortKeys:
    """Return the range of the chain that ends with a turn, chunks included."""
    _, first, depth, _ = last.split("#")
    return f"T#{first}#", f"T#{first}#{depth}#{_AFTER_ALL}"


def api_key_partition(key_id: str) -> str:
    """Return the partition of an API key's row."""
    return f"key#{key_id}"


def parse_body(body: str) -> Node | Entry | None:
    """Return where the turn of a body is (52 hex digits), or None where another version minted it."""
    if body.startswith(ENTRY_VERSION):
        number = int(body[22:34], 16)
        return Entry(body[2:22], number, body[34:]) if number else None
    if not body.startswith(VERSION):
        return None
    return Node(body[2:22], body[22:30], int(body[30:36], 16), body[36:])


def root_place(new_token: NewToken) -> Place:
    """Return the place of the first turn of a new thread."""
    return Place(Node(new_token(_THREAD_BYTES), ROOT_LANE, 1, new_token(_NONCE_BYTES)))


def child_place(
    parent: Node, lineage: tuple[str, ...], new_token: NewToken, *, is_lane_taken: bool
) -> Place:
    """Return the place after `parent`: in its lane, or in a new one where another turn follows there."""
    lane = parent.lane
    if is_lane_taken:
        lane, lineage = new_token(_LANE_BYTES), (*lineage, parent.cut)
    node = Node(parent.thread, lane, parent.seq + 1, new_token(_NONCE_BYTES))
    return Place(node, parent, lineage)


def fork_place(origin: Entry, new_token: NewToken) -> Place:
    """Return the place after an entry of a conversation, outside of it: in the thread of its name."""
    node = Node(origin.thread, new_token(_LANE_BYTES), 1, new_token(_NONCE_BYTES))
    return Place(node, origin=origin)


def new_entry(thread: str, number: int, new_token: NewToken) -> Entry:
    """Return a new entry of a conversation."""
    return Entry(thread, number, new_token(_ENTRY_NONCE_BYTES))


def new_conversation(new_token: NewToken) -> str:
    """Return the 20 hex digits of a new conversation."""
    return new_token(_THREAD_BYTES)


def entry_range(*, first: str = "", last: str = "") -> SortKeys:
    """Return the range of a conversation's entries, from one sort key to another; no chunks."""
    return first or _ENTRIES, last or _ENTRIES + _AFTER_ALL


def lane_range(lane: str, last: int) -> SortKeys:
    """Return the range of a lane's rows up to a sequence number, chunks included."""
    return f"R#{lane}#", f"R#{lane}#{last:07d}#{_AFTER_ALL}"


def lineage_ranges(lineage: Sequence[str]) -> list[SortKeys]:
    """Return the ranges of the lanes that a chain came through, each up to where it was left."""
    cuts = [cut.partition(":") for cut in lineage]
    return [lane_range(lane, int(last)) for lane, _, last in cuts]


def slot_prefix(lane: str, seq: int) -> str:
    """Return how the sort keys of all turns begin that have this position of a lane."""
    return f"R#{lane}#{seq:07d}#"


def all_lanes_range() -> SortKeys:
    """Return the range of all turns of a thread."""
    return "R#", f"R#{_AFTER_ALL}"


def node_in(thread: str, sort_key: str) -> Node:
    """Return where a turn is by the sort key of its row."""
    _, lane, seq, nonce = sort_key.split("#")
    return Node(thread, lane, int(seq), nonce)


def entry_in(thread: str, sort_key: str) -> Entry:
    """Return where an entry is by the sort key of its row."""
    digits = sort_key.removeprefix(_ENTRIES)
    return Entry(thread, int(digits[:12], 16), digits[12:])


def located(thread: str, sort_key: str) -> Node | Entry:
    """Return where a turn is by the sort key of its row."""
    if sort_key.startswith(_ENTRIES):
        return entry_in(thread, sort_key)
    return node_in(thread, sort_key)


def chunk_key(sort_key: str, checksum: bytes, index: int) -> str:
    """Return the sort key of one chunk of a turn's payload.

    The checksum in it keeps another attempt to save the turn from mixing its chunks with these.
    """
    return f"{_chunks_of(sort_key, checksum)}{index:03d}"


def chunk_range(sort_key: str, checksum: bytes) -> SortKeys:
    """Return the range of the chunks of a turn's payload."""
    start = _chunks_of(sort_key, checksum)
    return start, start + _AFTER_ALL


def blob_chunk_key(sort_key: str, checksum: bytes, index: int) -> str:
    """Return the sort key of one chunk of a blob; those of a partition's blobs lie apart from its rows."""
    return chunk_key(f"C{sort_key}", checksum, index)


def blob_chunk_range(sort_key: str, checksum: bytes) -> SortKeys:
    """Return the range of the chunks of a blob."""
    return chunk_range(f"C{sort_key}", checksum)


def is_chunk_key(sort_key: str) -> bool:
    """Whether the row is a chunk of a turn."""
    return sort_key.startswith(_ENTRY_CHUNKS) or sort_key.count("#") > _TURN_SEPARATORS


def _chunks_of(sort_key: str, checksum: bytes) -> str:
    # Those of entries lie apart, so that who reads a page of entries reads no chunks.
    if sort_key.startswith(_ENTRIES):
        sort_key = _ENTRY_CHUNKS + sort_key.removeprefix(_ENTRIES)
    return f"{sort_key}#c{checksum[:4].hex()}#"


def _hashed(name: str) -> str:
    """Return what stands for a name of somebody else's making, which may be any text."""
    return sha256(name.encode(errors="surrogatepass")).hexdigest()[:_KEY_DIGITS]
