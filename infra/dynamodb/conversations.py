"""`DynamoDBConversationStore`: a conversation's own row with its lock, and its entries beside it.

A turn costs three writes: the lock, its record (which is the response too) and the unlock. The count
that names the entries goes up with each lock, so their order is that of their beginnings.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from logging import getLogger
from math import ceil
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from channel import entries
from channel.conversations import (
    LOCK_GRACE_S,
    Conversation,
    ConversationLockedError,
    ItemPage,
    UnknownCursorError,
)
from channel.isolation import IsolationKeys
from channel.ports import (
    Branch,
    Clock,
    HistoryTooLargeError,
    NewToken,
    StoredTurn,
    StoreError,
    random_hex,
)
from channel.responses.protocol import ids
from channel.responses.protocol.items import Item
from infra.dynamodb import codec, keys, rows, turns
from infra.dynamodb.client import Client, ConditionFailedError, Table, both, together
from infra.dynamodb.entries import Cursor, Entries, EntryAt, extend
from infra.dynamodb.rows import AttributeValues, TurnRow
from infra.dynamodb.secret import TenantSecret
from infra.dynamodb.store import MONTH_S


MAX_EXPIRED: Final = 1000
"""Rows that one deletion of a conversation lets expire, newest first; another goes on from there."""

_BATCH: Final = 25
_IS_FREE: Final = "(attribute_not_exists(own) OR lockexp < :free)"
_IS_FREE_OR_OWN: Final = "(attribute_not_exists(own) OR lockexp < :free OR own = :owner)"

_logger = getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode


class _At(Struct, frozen=True):
    """Where a conversation is, and its name of 20 hex digits."""

    partition: str
    name: str

    def cursor(self, item_id: str) -> Cursor | None:
        """Return where an item is by its id, or None where it is none of this conversation."""
        place = ids.item_place(item_id)
        entry = keys.parse_body(place.body) if place else None
        if place is None or not isinstance(entry, keys.Entry) or entry.thread != self.name:
            return None
        return Cursor(entry, item_id, place.position)


class _Added(Struct, frozen=True):
    """Items that were added by themselves, and the row of their entry."""

    row: TurnRow
    items: list[Item]


class DynamoDBConversationStore:
    """The `ConversationStore` in the table of the `DynamoDBResponseStore`, which needs the same secret."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
        new_token: NewToken = random_hex,
        retention_s: float = MONTH_S,
    ) -> None:
        """Take a client of `make_client`; without a `secret`, the table's own is used.

        What is left of a deleted conversation is kept for `retention_s`.
        """
        self._table = Table(client, table)
        self._secret = secret or TenantSecret(self._table, new_token=new_token)
        self._clock = clock
        self._new_token = new_token
        self._retention_s = retention_s
        self._entries = Entries(self._table, clock)

    async def create(
        self, isolation: IsolationKeys, metadata: dict[str, str], items: Sequence[Item], /
    ) -> Conversation:
        """Begin a conversation: 1 WRU, and two more for each KB of items."""
        tenant = await self._tenant(isolation)
        name = keys.new_conversation(self._new_token)
        at = _At(keys.conversation_partition(tenant, name), name)
        created_at = int(self._clock())
        first: _Added | None = None
        if items:
            # As long as it is not the conversation's, nobody can delete it.
            first = await self._write(at, 1, items, expires_at=self._expiry())
        # Its own row comes after its items: with it, the conversation is there as a whole.
        await self._table.put(
            {
                "pk": {"S": at.partition},
                "sk": {"S": keys.META_ROW},
                "d": {"B": _encode(metadata)},
                "ca": {"N": str(created_at)},
                "v": {"N": "1" if items else "0"},
            }
        )
        if first:
            await self._keep(at, first.row)
        return Conversation(ids.conversation_id(name), created_at, metadata)

    async def get(self, isolation: IsolationKeys, conversation_id: str, /) -> Conversation | None:
        """Return a conversation (1 RRU)."""
        at = await self._find(isolation, conversation_id)
        return await self._read(at) if at else None

    async def update(
        self, isolation: IsolationKeys, conversation_id: str, metadata: dict[str, str], /
    ) -> Conversation | None:
        """Replace the metadata (1 WRU)."""
        at = await self._find(isolation, conversation_id)
        if at is None:
            return None
        try:
            item = await self._table.update(
                at.partition,
                keys.META_ROW,
                "SET d = :d",
                values={":d": {"B": _encode(metadata)}},
                returns=True,
            )
        except ConditionFailedError:
            return None
        return _conversation(at.name, item)

    async def delete(self, isolation: IsolationKeys, conversation_id: str, /) -> bool:
        """Delete a conversation; at most `MAX_EXPIRED` rows of it expire with one call.

        A call that finds it deleted goes on where the one before it was cut off, or had enough.
        """
        at = await self._find(isolation, conversation_id)
        if at is None:
            return False
        existed = True
        try:
            await self._table.delete(
                at.partition,
                keys.META_ROW,
                condition=f"attribute_exists(pk) AND {_IS_FREE}",
                values=self._long_ago(),
            )
        except ConditionFailedError:
            existed = False
            if await self._read(at):
                raise ConversationLockedError from None
        await self._let_expire(at)
        return existed

    async def add(
        self, isolation: IsolationKeys, conversation_id: str, items: Sequence[Item], /
    ) -> list[Item] | None:
        """Append items: 1 WRU for their number, 1 for each KB of them, and 1 RRU to look back."""
        at = await self._find(isolation, conversation_id)
        if at is None:
            return None
        number = await self._count(at, "ADD v :one", _IS_FREE, self._long_ago())
        if number is None:
            return None
        added = await self._write(at, number, items)
        if await self._is_gone(at):
            # A deletion that came meanwhile has not seen what was written after it.
            await self._let_expire(at)
            return None
        return added.items

    async def page(
        self,
        isolation: IsolationKeys,
        conversation_id: str,
        /,
        *,
        limit: int,
        order: str,
        after: str | None,
    ) -> ItemPage | None:
        """Return items in order: 1 RRU for the conversation, and 1 for each 4 KB of what is read."""
        at = await self._find(isolation, conversation_id)
        if at is None:
            return None
        cursor = at.cursor(after) if after else None
        if after and cursor is None:
            if await self._read(at):
                raise UnknownCursorError
            return None
        conversation, found = await both(
            self._read(at), self._entries.page(at.partition, at.name, limit, order, cursor)
        )
        if conversation is None:
            return None
        if found is None:
            raise UnknownCursorError
        return found

    async def item(
        self, isolation: IsolationKeys, conversation_id: str, item_id: str, /
    ) -> Item | None:
        """Return one item: 1 RRU for the conversation, and 1 for each 4 KB of the item's entry."""
        found = await self._item(isolation, conversation_id, item_id)
        return found[3] if found else None

    async def delete_item(
        self, isolation: IsolationKeys, conversation_id: str, item_id: str, /
    ) -> Conversation | None:
        """Delete one item: the reads of `item`, and 1 WRU for each KB of the item's entry."""
        found = await self._item(isolation, conversation_id, item_id)
        if found is None:
            return None
        conversation, entry_at, index, _ = found
        await self._entries.mark_deleted(entry_at, index)
        return conversation

    async def turns(
        self, isolation: IsolationKeys, conversation_id: str, /
    ) -> Sequence[StoredTurn] | None:
        """Return all turns: 1 RRU, and 1 for each 4 KB of the conversation."""
        at = await self._find(isolation, conversation_id)
        if at is None:
            return None
        try:
            conversation, history = await both(
                self._read(at), self._entries.all(at.partition, at.name)
            )
        except HistoryTooLargeError:
            if await self._read(at):
                raise
            return None
        return history.turns if conversation else None

    async def enter(
        self, isolation: IsolationKeys, conversation_id: str, owner: str, until: float, /
    ) -> Branch | None:
        """Lock the conversation (1 WRU), and read all of it: 1 RRU for each 4 KB."""
        at = await self._find(isolation, conversation_id)
        if at is None:
            return None
        values = {":owner": {"S": owner}, ":until": rows.seconds(until), **self._long_ago()}
        try:
            number = await self._count(
                at, "SET own = :owner, lockexp = :until ADD v :one", _IS_FREE_OR_OWN, values
            )
            if number is None:
                return None
            history = await self._entries.to_go_on(at.partition, at.name)
        except ConversationLockedError:
            raise
        except BaseException:  # the lock may have been taken all the same
            with suppress(StoreError):
                await self._unlock(at, owner)
            raise
        place = keys.EntryPlace(keys.new_entry(at.name, number, self._new_token), owner, until)
        return Branch(place.node.body, history.turns, place)

    async def extend(
        self, isolation: IsolationKeys, conversation_id: str, owner: str, until: float, /
    ) -> bool:
        """Keep the lock until then (1 WRU)."""
        at = await self._find(isolation, conversation_id)
        return at is not None and await extend(self._table, at.partition, owner, until)

    async def leave(self, isolation: IsolationKeys, conversation_id: str, owner: str, /) -> None:
        """Unlock the conversation, where the lock is the owner's (1 WRU)."""
        at = await self._find(isolation, conversation_id)
        if at is not None:
            await self._unlock(at, owner)

    async def _tenant(self, isolation: IsolationKeys) -> str:
        return keys.tenant_tag(await self._secret(), isolation)

    async def _find(self, isolation: IsolationKeys, conversation_id: str) -> _At | None:
        keys.require_user(isolation)
        name = ids.conversation_name(conversation_id)
        if name is None:
            return None
        tenant = await self._tenant(isolation)
        return _At(keys.conversation_partition(tenant, name), name)

    async def _read(self, at: _At) -> Conversation | None:
        item = await self._table.get(at.partition, keys.META_ROW)
        return _conversation(at.name, item) if item else None

    async def _is_gone(self, at: _At) -> bool:
        try:
            return await self._read(at) is None
        except StoreError:
            return False  # what was written is there, which counts

    async def _count(
        self, at: _At, expression: str, condition: str, values: AttributeValues
    ) -> int | None:
        """Return the number of a new entry; None where there is no such conversation."""
        try:
            item = await self._table.update(
                at.partition,
                keys.META_ROW,
                expression,
                values={**values, ":one": {"N": "1"}},
                condition=condition,
                returns=True,
            )
        except ConditionFailedError:
            if await self._read(at):
                raise ConversationLockedError from None
            return None
        return int(item["v"]["N"])

    def _long_ago(self) -> AttributeValues:
        """Return the time before which a lock must have run out to be free."""
        return {":free": rows.seconds(self._clock() - LOCK_GRACE_S)}

    async def _unlock(self, at: _At, owner: str) -> None:
        with suppress(ConditionFailedError):
            await self._table.update(
                at.partition,
                keys.META_ROW,
                "REMOVE own, lockexp",
                values={":owner": {"S": owner}},
                condition="own = :owner",
            )

    async def _write(
        self, at: _At, number: int, items: Sequence[Item], *, expires_at: int = rows.NEVER
    ) -> _Added:
        entry = keys.new_entry(at.name, number, self._new_token)
        turn = entries.added(entry.body, items, int(self._clock()))
        row = rows.new_row(keys.EntryPlace(entry, "", 0.0), turn, rows.NEVER)
        row = replace(row, expires_at=expires_at)
        data = await asyncio.to_thread(codec.encode, turn, entry.body, None)
        # What fails on the condition is there: an attempt that seemed to fail has written it.
        with suppress(ConditionFailedError):
            await turns.write(self._table, at.partition, row, data)
        row, _ = turns.holding(row, data)
        return _Added(row, [*entries.items_of(entry.body, turn).values()])

    async def _keep(self, at: _At, row: TurnRow) -> None:
        """Let an entry that was written with an expiry have none; it must not outlive its chunks."""
        await together([self._remove_expiry(at, key, row) for key in row.chunk_keys()])
        await self._remove_expiry(at, row.sort_key, row)

    async def _remove_expiry(self, at: _At, sort_key: str, row: TurnRow) -> None:
        # What fails on the condition has none: an attempt that seemed to fail has removed it.
        with suppress(ConditionFailedError):
            await self._table.update(
                at.partition,
                sort_key,
                "REMOVE #ttl",
                values={":ttl": rows.seconds(row.expires_at)},
                names={"#ttl": "ttl"},
                condition="#ttl = :ttl",
            )

    async def _item(
        self, isolation: IsolationKeys, conversation_id: str, item_id: str
    ) -> tuple[Conversation, EntryAt, int, Item] | None:
        at = await self._find(isolation, conversation_id)
        cursor = at.cursor(item_id) if at else None
        if at is None or cursor is None:
            return None
        conversation, kept = await both(
            self._read(at),
            turns.read(self._table, at.partition, cursor.entry, self._clock()),
        )
        if conversation is None or kept is None:
            return None
        row, turn = kept
        item = entries.find(cursor.entry.body, turn, row.deleted, item_id)
        return (
            (conversation, EntryAt(at.partition, cursor.entry), cursor.index, item)
            if item
            else None
        )

    async def _let_expire(self, at: _At) -> None:
        """Give the rows that have no expiry one, newest first.

        Who continues from an entry reads all before it: those must not go before the entry does.
        """
        expired, behind = 0, None
        while expired < MAX_EXPIRED:
            read, behind = await self._table.page(
                at.partition, keys.entry_range(), _BATCH, after=behind, is_forward=False
            )
            due = [row for row in map(rows.parse_turn, read) if row.expires_at == rows.NEVER]
            names = [key for row in due for key in (*row.chunk_keys(), row.sort_key)]
            await together([self._set_expiry(at, key) for key in names])
            expired += len(names)
            if behind is None:
                return
        _logger.warning("a deleted conversation has more rows", extra={"expired": expired})

    async def _set_expiry(self, at: _At, sort_key: str) -> None:
        with suppress(ConditionFailedError):
            await self._table.update(
                at.partition,
                sort_key,
                "SET #ttl = :ttl",
                values={":ttl": rows.seconds(self._expiry())},
                names={"#ttl": "ttl"},
            )

    def _expiry(self) -> int:
        return ceil(self._clock() + self._retention_s)


def _conversation(name: str, item: AttributeValues) -> Conversation:
    metadata = _decode_metadata(item["d"]["B"])
    return Conversation(ids.conversation_id(name), int(item["ca"]["N"]), metadata)
