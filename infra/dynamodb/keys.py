"""The key schema: which rows hold what, from the caller's isolation keys and the body of an id. Pure.

Every partition key of a tenant's data begins with the tenant tag, which only the authenticated keys
make; the parts of an id merely point below it. A body is 52 hex digits:

    version 2 │ thread 20 │ lane 8 │ seq 6 │ nonce 16

`seq` is the depth of the turn in its chain, from 1. The first child of a turn stays in its lane and
later ones open lanes of their own, so a chain is one contiguous range of sort keys per lane.
"""

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, TypeAlias

from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.ports import NewToken


VERSION: Final = "01"
ROOT_LANE: Final = "00000000"
ONLY_ROW: Final = "!"
"""The sort key of a partition that has a single row."""

TENANT_PARTITION: Final = "cfg#tenant"
API_KEYS_PARTITION: Final = "cfg#keys"

_TAG_BYTES: Final = 16
_THREAD_BYTES: Final = 10
_LANE_BYTES: Final = 4
_NONCE_BYTES: Final = 8
_TURN_SEPARATORS: Final = 3
_AFTER_ALL: Final = "~"  # sorts after hex digits and '#'

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


class Place(Struct, frozen=True):
    """Where a new turn goes: what `Branch.place` is."""

    node: Node
    parent: Node | None = None
    lineage: tuple[str, ...] = ()


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


def alias_partition(tenant: str, response_id: str) -> str:
    """Return the partition of the row that leads from a response id of the caller's making to a body."""
    return f"t#{tenant}#a#{sha256(response_id.encode(errors='surrogatepass')).hexdigest()}"


def api_key_partition(key_id: str) -> str:
    """Return the partition of an API key's row."""
    return f"key#{key_id}"


def parse_body(body: str) -> Node | None:
    """Return where the turn of a body is (52 hex digits), or None where another version minted it."""
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


def chunk_key(sort_key: str, checksum: bytes, index: int) -> str:
    """Return the sort key of one chunk of a turn's payload.

    The checksum in it keeps another attempt to save the turn from mixing its chunks with these.
    """
    return f"{sort_key}#c{checksum[:4].hex()}#{index:03d}"


def chunk_range(sort_key: str, checksum: bytes) -> SortKeys:
    """Return the range of the chunks of a turn's payload."""
    start = f"{sort_key}#c{checksum[:4].hex()}#"
    return start, start + _AFTER_ALL


def is_chunk_key(sort_key: str) -> bool:
    """Whether the row is a chunk of a turn."""
    return sort_key.count("#") > _TURN_SEPARATORS
