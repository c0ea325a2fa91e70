"""The rows of turns with their chunks: written, read whole, and erased. What is shared by responses and conversations."""

import asyncio
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from channel.ports import StoredTurn, StoreError
from channel.room import HistoryRoom
from infra.dynamodb import codec, keys, rows
from infra.dynamodb.client import Table, together
from infra.dynamodb.rows import AttributeValues, Rows, TurnRow


# A turn that was begun but not finished may be finished; any other row of that name is this very
# turn, since its key holds the nonce.
_IS_NEW: Final = "attribute_not_exists(pk) OR st IN (:queued, :running)"
_IS_NEW_VALUES: Final[AttributeValues] = {":queued": {"S": "q"}, ":running": {"S": "i"}}


def room_for_rows() -> HistoryRoom:
    """Return the room for the compressed rows of one history, and for those between that are not of it.

    Decoded they are larger; the others were forked off, or have failed.
    """
    return HistoryRoom(times=2)


async def write(table: Table, partition: str, row: TurnRow, data: bytes) -> TurnRow:
    """Write a turn, its own row last, and return that.

    Raises `ConditionFailedError` where the turn is there and finished.
    """
    row, chunks = holding(row, data)
    await together(map(table.put, rows.chunk_items(partition, row, chunks)))
    await table.put(rows.turn_item(partition, row), _IS_NEW, values=_IS_NEW_VALUES)
    return row


def holding(row: TurnRow, data: bytes) -> tuple[TurnRow, list[bytes]]:
    """Return the row with its payload, or with the names of the chunks beside it, and those."""
    chunks = codec.split(data)
    if not chunks:
        return replace(row, data=data), []
    return replace(row, chunks=len(chunks), checksum=codec.checksum(data)), chunks


async def read(
    table: Table, partition: str, located: keys.Node | keys.Entry, now: float
) -> tuple[TurnRow, StoredTurn] | None:
    """Return a turn that is neither deleted nor expired, as it is now."""
    for _ in range(2):
        item = await table.get(partition, located.sort_key)
        row = rows.parse_turn(item) if item else None
        if not row or not row.is_readable(now):
            return None
        data = await _payload(table, partition, row)
        if data is not None:
            return row, await asyncio.to_thread(row.decode, located.thread, data)
        # The chunks of one that was only begun go when it is finished: the row is another by then.
    return None


async def read_all(
    table: Table, partition: str, thread: str, found: Iterable[TurnRow], room: HistoryRoom
) -> list[StoredTurn]:
    """Return the turns of rows that were just read; raises `StoreError` where one is not whole.

    Raises `HistoryTooLargeError` before chunks are read for which there can be no room.
    """
    found = [*found]
    room.require(sum(codec.least_size(row.data, row.chunks) for row in found))
    payloads = await together([_payload(table, partition, row) for row in found])

    def decode() -> list[StoredTurn]:
        return [row.decode(thread, data, room) for row, data in zip(found, whole, strict=True)]

    whole = [data for data in payloads if data is not None]
    if len(whole) < len(found):
        raise StoreError("A turn was erased while it was read.")
    return await asyncio.to_thread(decode)


async def erase(table: Table, partition: str, row: TurnRow) -> None:
    """Leave a tombstone of a turn: it keeps the names of the chunks, so that who finds them finishes."""
    await table.update(
        partition,
        row.sort_key,
        "SET st = :deleted REMOVE d",
        values={":deleted": {"S": rows.DELETED}},
    )
    await erase_chunks(table, partition, row)


async def erase_chunks(table: Table, partition: str, row: TurnRow) -> None:
    """Delete the chunks of a turn that is a tombstone."""
    await together([table.delete(partition, key) for key in row.chunk_keys()])


async def _payload(table: Table, partition: str, row: TurnRow) -> bytes | None:
    if not row.chunks:
        return row.data
    between = keys.chunk_range(row.sort_key, row.checksum)
    items = await table.query(partition, between, is_strong=True)
    return Rows.parse(items).payload(row)
