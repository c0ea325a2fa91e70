"""Ports kept in memory: for tests, first light, and a local server that forgets."""

import time
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

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

    def turn(self) -> StoredTurn:
        return _decode(self.data)


class _Begun(Struct, frozen=True):
    """The place of a turn that was reopened."""

    parent: _Node | None


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
        _require_user(keys)
        body = self._new_token(_BODY_BYTES)
        if previous_response_id is None:
            return Branch(body)
        parent = self._find(keys, previous_response_id)
        if parent is None or parent.status not in _CONTINUABLE:
            return None
        chain = self._chain(parent)
        if chain is None:
            return None
        self._renew(chain)
        return Branch(body, tuple([node.turn() for node in chain]), parent)

    async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        """Keep a finished turn; saving it again changes nothing."""
        _require_user(keys)
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
        self._nodes[keys, body] = _Node(_encode(turn), response.status, parent, expires_at, body)

    async def reopen(
        self, keys: IsolationKeys, response_id: str, /, *, with_history: bool = True
    ) -> tuple[StoredTurn, Branch] | None:
        """Return a turn that was begun and is not finished yet, with its branch."""
        node = self._find(keys, response_id)
        if node is None or node.status.is_terminal:
            return None
        before = self._chain(node.parent) if node.parent and with_history else []
        if before is None:
            return None
        turns = tuple([each.turn() for each in before])
        return node.turn(), Branch(node.body, turns, _Begun(node.parent))

    async def get(self, keys: IsolationKeys, response_id: str, /) -> StoredTurn | None:
        """Return one turn of any status, or None."""
        node = self._find(keys, response_id)
        return None if node is None else node.turn()

    async def turns(self, keys: IsolationKeys, response_id: str, /) -> Sequence[StoredTurn] | None:
        """Return the turn and all before it, oldest first, or None where any of them is missing."""
        node = self._find(keys, response_id)
        chain = None if node is None else self._chain(node)
        return None if chain is None else [node.turn() for node in chain]

    async def item(self, keys: IsolationKeys, item_id: str, /) -> Item | None:
        """Return one item of a completed or incomplete turn."""
        _require_user(keys)
        place = ids.item_place(item_id)
        node = None if place is None else self._alive(self._nodes.get((keys, place.body)))
        if node is None or node.status not in _CONTINUABLE:
            return None
        turn = node.turn()
        items = (*turn.input, *turn.response.output)
        return next((item for item in items if item.get("id") == item_id), None)

    async def delete(self, keys: IsolationKeys, response_id: str, /) -> bool:
        """Delete a response; what is left of it makes its descendants impossible to continue."""
        node = self._find(keys, response_id)
        if node is None:
            return False
        if not node.status.is_terminal:
            raise UnfinishedError
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
        _require_user(keys)
        body = ids.response_body(response_id) or self._bodies.get((keys, response_id))
        return None if body is None else self._alive(self._nodes.get((keys, body)))

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
            node = node.parent
        chain.reverse()
        return chain


def _require_same(stored: StoredTurn, turn: StoredTurn) -> None:
    if _encode(stored) != _encode(turn):
        raise ConcludedError(stored)


def _require_user(keys: IsolationKeys) -> None:
    if not keys.user_key:
        raise ValueError("Storage is partitioned by user: the isolation keys name none.")
