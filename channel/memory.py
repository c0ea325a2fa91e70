"""Ports kept in memory: for tests, first light, and a local server that forgets."""

import time
from collections.abc import Sequence
from math import inf
from typing import Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from channel import entries
from channel.conversations import Conversation, LockLostError
from channel.isolation import IsolationKeys
from channel.ports import (
    Branch,
    Clock,
    ConcludedError,
    NewToken,
    StoredTurn,
    StoreError,
    UnfinishedError,
    random_hex,
)
from channel.responses.protocol import ids
from channel.responses.protocol.items import Item
from channel.responses.protocol.response import Status
from channel.room import HistoryRoom, newest_reset


MONTH_S: Final = 30 * 24 * 3600.0

_CONTINUABLE: Final = frozenset({Status.COMPLETED, Status.INCOMPLETE})
_BODY_BYTES: Final = ids.BODY_DIGITS // 2

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredTurn).decode


class _Node(Struct, gc=False):
    """A kept turn, and the turn before it: bytes, since a collector has no work with them."""

    data: bytes
    status: Status
    parent: "_Node | None"
    expires_at: float
    body: str
    is_deleted: bool = False
    entry: "EntryPlace | None" = None
    is_hidden: bool = False
    deleted: frozenset[int] = frozenset()
    resets: bool = False

    @property
    def size(self) -> int:
        return len(self.data)

    def turn(self) -> StoredTurn:
        return _decode(self.data)

    def remaining(self) -> StoredTurn:
        return entries.remaining(self.body, self.turn(), self.deleted)


class KeptConversation(Struct, gc=False):
    """A conversation, its lock, and its entries by number."""

    conversation: Conversation
    count: int = 0
    owner: str = ""
    until: float = 0.0
    entries: dict[int, _Node] = field(default_factory=dict)
    is_deleted: bool = False

    def before(self, number: float) -> list[_Node]:
        """Return the entries before that number whose items are in the conversation."""
        found = (node for key, node in sorted(self.entries.items()) if key < number)
        return [node for node in found if node.status in _CONTINUABLE]

    def turns(self) -> tuple[StoredTurn, ...]:
        """Return what a turn would go on with; raises `HistoryTooLargeError`."""
        return _history(_remembered(self.before(inf)))

    def all_turns(self) -> tuple[StoredTurn, ...]:
        """Return also what was said before the newest reset; raises `HistoryTooLargeError`."""
        return _history(self.before(inf))


class EntryPlace(Struct, frozen=True):
    """Where an entry of a conversation goes, and who holds the lock until when (Unix seconds)."""

    kept: KeptConversation
    number: int
    owner: str = ""
    until: float = 0.0


class _Begun(Struct, frozen=True):
    """The place of a turn that was reopened."""

    parent: _Node | EntryPlace | None


class InMemoryResponseStore:
    """The `ResponseStore` of one process; it forgets with its process."""

    def __init__(
        self,
        *,
        new_token: NewToken = random_hex,
        clock: Clock = time.time,
        retention_s: float = MONTH_S,
    ) -> None:
        """Keep turns for `retention_s`; a continuation renews those before it."""
        self._new_token = new_token
        self._clock = clock
        self._retention_s = retention_s
        self._nodes: dict[tuple[IsolationKeys, str], _Node] = {}
        self._bodies: dict[tuple[IsolationKeys, str], str] = {}

    async def branch(
        self, keys: IsolationKeys, previous_response_id: str | None, /
    ) -> Branch | None:
        """Mint the place of a new turn; None where the history is not whole."""
        require_user(keys)
        body = self.mint()
        if previous_response_id is None:
            return Branch(body)
        parent = self._find(keys, previous_response_id)
        if parent is None or parent.status not in _CONTINUABLE:
            return None
        chain = self._chain(parent)
        if chain is None:
            return None
        turns = _history(_remembered(chain))
        self._renew(chain)
        return Branch(body, turns, parent)

    async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        """Keep a finished turn; saving it again changes nothing."""
        require_user(keys)
        response, body = turn.response, branch.body
        known = self._nodes.get((keys, body))
        if known is not None and (known.is_deleted or known.status.is_terminal):
            if isinstance(branch.place, _Begun) and not known.is_deleted:
                _require_same(known.turn(), turn)
            return
        if response.id != ids.response_id(body):
            self._name(keys, response.id, body)
        place = branch.place.parent if isinstance(branch.place, _Begun) else branch.place
        parent = place if isinstance(place, _Node) else None
        expires_at = self._clock() + self._retention_s
        node = _Node(_encode(turn), response.status, parent, expires_at, body)
        node.resets = turn.resets
        if isinstance(place, EntryPlace):
            self._enter(node, place)
            node.is_hidden = not response.store
        self._nodes[keys, body] = node

    def add_entry(self, keys: IsolationKeys, place: EntryPlace, items: Sequence[Item]) -> _Node:
        """Keep items as an entry of a conversation, which is no response."""
        body = self.mint()
        turn = entries.added(body, items, int(self._clock()))
        node = _Node(_encode(turn), Status.COMPLETED, None, inf, body, entry=place, is_hidden=True)
        place.kept.entries[place.number] = node
        self._nodes[keys, body] = node
        return node

    def mint(self) -> str:
        """Return a new body."""
        return self._new_token(_BODY_BYTES)

    def entry(self, keys: IsolationKeys, body: str) -> _Node | None:
        """Return the entry of a conversation that has this body."""
        node = self._nodes.get((keys, body))
        return node if node and node.entry else None

    def _enter(self, node: _Node, place: EntryPlace) -> None:
        if node.status in _CONTINUABLE:
            if place.until < self._clock() and place.kept.owner != place.owner:
                raise LockLostError("The lock of a conversation ran out, and another has it.")
            node.expires_at = inf
        node.entry = place
        place.kept.entries[place.number] = node

    async def reopen(
        self, keys: IsolationKeys, response_id: str, /, *, with_history: bool = True
    ) -> tuple[StoredTurn, Branch] | None:
        """Return a turn that was begun and is not finished yet, with its branch."""
        node = self._find(keys, response_id)
        if node is None or node.status.is_terminal:
            return None
        before: list[_Node] | None = []
        if with_history and node.entry:
            before = node.entry.kept.before(node.entry.number)
        elif with_history and node.parent:
            before = self._chain(node.parent)
        if before is None:
            return None
        turns = _history(_remembered(before))
        place = replace(node.entry, until=0.0) if node.entry else node.parent
        return node.turn(), Branch(node.body, turns, _Begun(place))

    async def get(self, keys: IsolationKeys, response_id: str, /) -> StoredTurn | None:
        """Return one turn of any status, or None."""
        node = self._find(keys, response_id)
        return None if node is None else node.turn()

    async def turns(self, keys: IsolationKeys, response_id: str, /) -> Sequence[StoredTurn] | None:
        """Return the turn and all before it, oldest first, or None where any of them is missing."""
        node = self._find(keys, response_id)
        chain = None if node is None else self._chain(node)
        if node is None or chain is None:
            return None
        before = _remembered(chain[:-1])
        return [*_history([*before, node])[:-1], node.turn()]

    async def item(self, keys: IsolationKeys, item_id: str, /) -> Item | None:
        """Return one item of a completed or incomplete turn."""
        require_user(keys)
        place = ids.item_place(item_id)
        node = None if place is None else self._alive(self._nodes.get((keys, place.body)))
        if node is None or node.status not in _CONTINUABLE:
            return None
        if node.entry and node.entry.kept.is_deleted:
            return None
        turn = node.turn()
        if node.entry:
            return entries.find(node.body, turn, node.deleted, item_id)
        items = (*turn.input, *turn.response.output)
        return next((item for item in items if item.get("id") == item_id), None)

    async def delete(self, keys: IsolationKeys, response_id: str, /) -> bool:
        """Delete a response; what is left of it makes its descendants impossible to continue."""
        node = self._find(keys, response_id)
        if node is None:
            return False
        if not node.status.is_terminal:
            raise UnfinishedError
        if node.entry:
            node.is_hidden = True
        else:
            node.is_deleted = True
        return True

    def _name(self, keys: IsolationKeys, response_id: str, body: str) -> None:
        if ids.response_body(response_id):
            raise StoreError("A custom response id must not look like a minted one.")
        named = self._bodies.get((keys, response_id), body)
        if named != body and self._nodes[keys, named].expires_at >= self._clock():
            raise StoreError("The custom response id is taken.")
        self._bodies[keys, response_id] = body

    def _find(self, keys: IsolationKeys, response_id: str) -> _Node | None:
        require_user(keys)
        body = ids.response_body(response_id) or self._bodies.get((keys, response_id))
        node = None if body is None else self._alive(self._nodes.get((keys, body)))
        return None if node is None or node.is_hidden else node

    def _renew(self, chain: list[_Node]) -> None:
        now = self._clock()
        for node in chain:
            if node.expires_at < now + self._retention_s / 2:
                node.expires_at = now + self._retention_s

    def _alive(self, node: _Node | None) -> _Node | None:
        if node is None or node.is_deleted or node.expires_at < self._clock():
            return None
        return node

    def _chain(self, last: _Node) -> list[_Node] | None:
        chain: list[_Node] = []
        node: _Node | None = last
        while node is not None:
            if self._alive(node) is None:
                return None
            chain.append(node)
            if node.entry:
                before = node.entry.kept.before(node.entry.number)
                if any(self._alive(each) is None for each in before):
                    return None
                chain += reversed(before)
            node = node.parent
        chain.reverse()
        return chain


def _remembered(nodes: Sequence[_Node]) -> Sequence[_Node]:
    return nodes[newest_reset([node.resets for node in nodes]) :]


def _history(nodes: Sequence[_Node]) -> tuple[StoredTurn, ...]:
    room = HistoryRoom()
    for node in nodes:
        room.take(node.size)
    return tuple([node.remaining() for node in nodes])


def _require_same(stored: StoredTurn, turn: StoredTurn) -> None:
    if _encode(stored) != _encode(turn):
        raise ConcludedError(stored)


def require_user(keys: IsolationKeys) -> None:
    """Raise `ValueError` where no user is named: nothing is ever stored for everybody."""
    if not keys.user_key:
        raise ValueError("Storage is partitioned by user: the isolation keys name none.")
