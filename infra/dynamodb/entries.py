"""Entries of conversations as rows: read in order, always strongly consistent, and hidden or erased.

An entry serves both as the record of a response and as a piece of its conversation: a response that
is deleted is hidden, an item that is deleted is marked, and what is neither shown as the one nor as
the other any more is erased. Of one that resets it stays known that it did.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from channel import entries
from channel.conversations import ItemPage, LockLostError
from channel.ports import Clock, HistoryTooLargeError, StoredTurn, UnfinishedError
from channel.responses.protocol.items import Item
from channel.room import HistoryRoom, newest_reset
from infra.dynamodb import keys, rows, turns
from infra.dynamodb.client import ConditionFailedError, Table
from infra.dynamodb.rows import TurnRow


_SAVE_S: Final = 10.0
_MAX_READ: Final = 100


class EntryAt(Struct, frozen=True):
    """Where an entry is: the partition of its conversation, and which of that."""

    partition: str
    entry: keys.Entry


class History(Struct, frozen=True):
    """What a turn goes on with: the turns without what was deleted of them, and their rows."""

    turns: tuple[StoredTurn, ...] = ()
    rows: tuple[TurnRow, ...] = ()


class Cursor(Struct, frozen=True):
    """An item of an entry: a page begins behind it."""

    entry: keys.Entry
    item_id: str
    index: int


class Entries:
    """The entries of all conversations of a table."""

    def __init__(self, table: Table, clock: Clock) -> None:
        """Read nothing yet."""
        self._table = table
        self._clock = clock

    async def all(self, partition: str, thread: str) -> History:
        """Return the history that is the whole conversation, from its first turn on."""
        read = await self._rows(partition, keys.entry_range())
        return await self._history(partition, thread, read, HistoryRoom(), is_whole=True)

    async def to_go_on(self, partition: str, thread: str) -> History:
        """Return the history that the conversation goes on with."""
        read = await self._rows(partition, keys.entry_range())
        return await self._history(partition, thread, read, HistoryRoom())

    async def to_continue(self, at: EntryAt) -> History | None:
        """Return the history up to an entry whose response can be continued."""
        read = await self._read_to(at)
        if not read or not self._is_response(read[-1]) or read[-1].status not in rows.CONTINUABLE:
            return None
        return await self._history(at.partition, at.entry.thread, read, HistoryRoom())

    async def through(self, at: EntryAt, room: HistoryRoom) -> History | None:
        """Return the history up to an entry that is there, whatever became of its response."""
        read = await self._read_to(at)
        return await self._history(at.partition, at.entry.thread, read, room) if read else None

    async def before(self, at: EntryAt) -> History | None:
        """Return the history before an entry that is there."""
        read = await self._read_to(at)
        if not read:
            return None
        return await self._history(at.partition, at.entry.thread, read[:-1], HistoryRoom())

    async def up_to(self, at: EntryAt) -> History | None:
        """Return the history before an entry, and the entry itself, whole and of any status."""
        read = await self._read_to(at)
        if not read or not self._is_response(read[-1]):
            return None
        room = HistoryRoom()
        history = await self._history(at.partition, at.entry.thread, read[:-1], room)
        own = await turns.read_all(self._table, at.partition, at.entry.thread, read[-1:], room)
        return History((*history.turns, *own), (*history.rows, read[-1]))

    async def page(
        self, partition: str, thread: str, limit: int, order: str, cursor: Cursor | None
    ) -> ItemPage | None:
        """Return items in order; None where the entry of the cursor is missing, or never had its item.

        Entries are decoded one by one, as many as the page needs and as there is room for.
        """
        is_forward = order == "asc"
        key = cursor.entry.sort_key if cursor else ""
        between = keys.entry_range(first=key) if is_forward else keys.entry_range(last=key)
        items: list[Item] = []
        room = HistoryRoom()
        behind: str | None = None
        # Most entries have two items or more; one more than the page has tells that there are more.
        wanted = limit // 2 + 2
        while True:
            read, behind = await self._table.page(
                partition, between, wanted, after=behind, is_forward=is_forward
            )
            found = [*map(rows.parse_turn, read)]
            if cursor and not (found and found[0].sort_key == key and _was_listed(found[0])):
                return None
            for row in rows.counted(found):
                if not items:
                    room = HistoryRoom(takes_first=True)
                try:
                    (turn,) = await turns.read_all(self._table, partition, thread, [row], room)
                except HistoryTooLargeError:
                    return ItemPage(items[:limit], has_more=True)
                body = keys.entry_in(thread, row.sort_key).body
                after = cursor.item_id if cursor and row.sort_key == key else None
                shown = entries.visible(body, turn, row.deleted, order=order, after=after)
                if shown is None:
                    return None
                items += shown
                if len(items) > limit:
                    return ItemPage(items[:limit], has_more=True)
            cursor, wanted = None, min(2 * wanted, _MAX_READ)
            if behind is None:
                return ItemPage(items, has_more=False)

    async def hide(self, at: EntryAt) -> bool:
        """Delete the response of an entry, but not its items; False where there is none."""
        item = await self._table.get(at.partition, at.entry.sort_key)
        row = rows.parse_turn(item) if item else None
        if row is None or not self._is_response(row):
            if row is not None:  # a deletion that was cut off is finished
                await self._erase_if_unseen(at.partition, row)
            return False
        if row.status in rows.UNFINISHED:
            raise UnfinishedError
        changed = await self._table.update(
            at.partition,
            row.sort_key,
            "SET hid = :yes",
            values={":yes": {"BOOL": True}},
            returns=True,
        )
        await self._erase_if_unseen(at.partition, rows.parse_turn(changed))
        return True

    async def mark_deleted(self, at: EntryAt, index: int) -> None:
        """Delete an item of an entry, but not of its response."""
        changed = await self._table.update(
            at.partition,
            at.entry.sort_key,
            "ADD #del :index",
            values={":index": {"NS": [str(index)]}},
            names={"#del": "del"},
            returns=True,
        )
        await self._erase_if_unseen(at.partition, rows.parse_turn(changed))

    async def require_lock(self, partition: str, place: keys.EntryPlace) -> None:
        """Raise `LockLostError` unless the turn's lock holds for as long as a save takes.

        Where its time is over, or was extended since, it counts as long as nobody else has taken it.
        """
        now = self._clock()
        if place.until >= now:
            return
        if not await extend(self._table, partition, place.owner, now + _SAVE_S):
            raise LockLostError("The lock of a conversation ran out, and another has it.")

    async def _read_to(self, at: EntryAt) -> list[TurnRow]:
        """Return the rows up to that of an entry, or none where that is missing, or any has expired."""
        between = keys.entry_range(last=at.entry.sort_key)
        read = await self._rows(at.partition, between)
        if not read or read[-1].sort_key != at.entry.sort_key:
            return []
        now = self._clock()
        is_whole = all(row.expires_at >= now for row in (*rows.remembered(read), read[-1]))
        return read if is_whole else []

    async def _rows(self, partition: str, between: keys.SortKeys) -> list[TurnRow]:
        room = turns.room_for_rows()
        items = await self._table.query(partition, between, is_strong=True, room=room)
        return [*map(rows.parse_turn, items)]

    async def _history(
        self,
        partition: str,
        thread: str,
        read: Sequence[TurnRow],
        room: HistoryRoom,
        *,
        is_whole: bool = False,
    ) -> History:
        """Return the history of those of the rows whose items are in the conversation.

        It begins with the newest of them that resets, unless it `is_whole`.
        """
        remembered = kept = rows.remembered(read)
        if not is_whole:
            kept = kept[newest_reset([row.resets for row in kept]) :]
        whole = iter(await turns.read_all(self._table, partition, thread, rows.counted(kept), room))
        left: list[StoredTurn] = []
        for row in kept:
            body = keys.entry_in(thread, row.sort_key).body
            if row.status == rows.DELETED:
                left.append(replace(entries.added(body, [], 0), resets=True))
            else:
                left.append(entries.remaining(body, next(whole), row.deleted))
        return History(tuple(left), tuple(remembered))

    def _is_response(self, row: TurnRow) -> bool:
        return row.is_readable(self._clock()) and not row.is_hidden

    async def _erase_if_unseen(self, partition: str, row: TurnRow) -> None:
        is_in_conversation = row.status in rows.CONTINUABLE and len(row.deleted) < row.items
        if row.is_hidden and not is_in_conversation:
            await turns.erase(self._table, partition, row)


def _was_listed(row: TurnRow) -> bool:
    return row.status in rows.CONTINUABLE or row.status == rows.DELETED


async def extend(table: Table, partition: str, owner: str, until: float) -> bool:
    """Let the owner's lock hold until then; False where it is not the owner's."""
    try:
        await table.update(
            partition,
            keys.META_ROW,
            "SET lockexp = :until",
            values={":until": rows.seconds(until), ":owner": {"S": owner}},
            condition="own = :owner",
        )
    except ConditionFailedError:
        return False
    return True
