"""Blobs: bytes of any kind in one row, or in chunks beside it; the row itself is written last.

What the bytes are is the business of whoever wrote them. They are deflated, and the first of them is
the version of that.
"""

import logging
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from channel.ports import StoreError, TurnTooLargeError
from channel.room import HistoryRoom
from infra.dynamodb import codec, keys
from infra.dynamodb.client import ConditionFailedError, Table, together
from infra.dynamodb.rows import AttributeValues


MAX_RENEWALS: Final = 100
"""Rows and chunks whose expiry is renewed at once."""

_VERSION: Final = b"\x01"
_LEVEL: Final = 6
_TTL: Final = {"#ttl": "ttl"}

_logger = logging.getLogger(__name__)


class CorruptBlobError(StoreError):
    """Stored bytes are not what was written, or another version wrote them."""

    is_passing = False


async def write(
    table: Table,
    partition: str,
    sort_key: str,
    data: bytes,
    expires_at: int,
    *,
    attributes: AttributeValues | None = None,
    condition: str | None = None,
    values: AttributeValues | None = None,
) -> None:
    """Write packed data: 1 WRU for each KB. It is there with its row, which is the last.

    Raises `ConditionFailedError` where the condition of the row does not hold.
    """
    item = await _begun(table, partition, sort_key, data, expires_at, attributes=attributes or {})
    await table.put(item, condition, values=values)


async def replace(
    table: Table, partition: str, sort_key: str, data: bytes, expires_at: int
) -> None:
    """Write packed data in place of what is there, whose chunks are deleted then: 1 WRU for each KB."""
    item = await _begun(table, partition, sort_key, data, expires_at, attributes={})
    before = await table.replace(item)
    # The same data again is in these very chunks.
    if before.get("sum") != item.get("sum"):
        await erase_chunks(table, before)


async def _begun(
    table: Table,
    partition: str,
    sort_key: str,
    data: bytes,
    expires_at: int,
    *,
    attributes: AttributeValues,
) -> AttributeValues:
    """Write the chunks of packed data, where it takes any; return the row, which is still to be."""
    item: AttributeValues = {
        **attributes,
        "pk": {"S": partition},
        "sk": {"S": sort_key},
        "ttl": {"N": str(expires_at)},
    }
    chunks = codec.split(data)
    if chunks:
        checksum = codec.checksum(data)
        item |= {"nx": {"N": str(len(chunks))}, "sum": {"B": checksum}}
        await together(
            [
                table.put(
                    {
                        "pk": item["pk"],
                        "sk": {"S": keys.blob_chunk_key(sort_key, checksum, index)},
                        "ttl": item["ttl"],
                        "d": {"B": chunk},
                    }
                )
                for index, chunk in enumerate(chunks)
            ]
        )
    else:
        item["d"] = {"B": data}
    return item


async def payload(
    table: Table, item: AttributeValues, *, is_strong: bool = True, room: HistoryRoom | None = None
) -> bytes | None:
    """Return the packed data of a row, or None where a chunk of it is missing."""
    if "nx" not in item:
        data: bytes = item["d"]["B"]
        return data
    between = keys.blob_chunk_range(item["sk"]["S"], item["sum"]["B"])
    found = await table.query(item["pk"]["S"], between, is_strong=is_strong, room=room)
    if len(found) < int(item["nx"]["N"]):
        return None
    return codec.join([chunk["d"]["B"] for chunk in found], item["sum"]["B"])


async def renew(
    table: Table, items: Sequence[AttributeValues], now: float, retention_s: float
) -> None:
    """Renew what has less than half of its time left, the first ones first: 1 WRU for each KB.

    What fails is only logged: there is half of the time left to do it again.
    """
    due: list[AttributeValues] = []
    updates = 0
    for item in items:
        if int(item["ttl"]["N"]) < now + retention_s / 2:
            updates += 1 + _chunk_count(item)
            if updates > MAX_RENEWALS:
                break
            due.append(item)
    expires_at = int(now + retention_s)
    try:
        await together([_renew(table, item, expires_at) for item in due])
    except StoreError as error:
        cause = type(error.__cause__ or error).__name__
        _logger.warning("blobs were not renewed", extra={"error": cause, "rows": len(due)})


async def erase(table: Table, item: AttributeValues) -> None:
    """Delete a row, and then its chunks."""
    await table.delete(item["pk"]["S"], item["sk"]["S"])
    await erase_chunks(table, item)


async def erase_chunks(table: Table, item: AttributeValues) -> None:
    """Delete the chunks of a row that is gone, or that another has replaced."""
    if "nx" in item:
        partition: str = item["pk"]["S"]
        await together([table.delete(partition, key) for key in _chunk_keys(item)])


def is_alive(item: AttributeValues, now: float) -> bool:
    """Whether it is not expired, which DynamoDB itself notices days later."""
    return int(item["ttl"]["N"]) >= now


def pack(data: bytes) -> bytes:
    """Return the bytes as they are stored; raises `TurnTooLargeError`."""
    if len(data) > codec.MAX_DECODED_BYTES:
        raise TurnTooLargeError(f"What is to be stored has {len(data)} bytes.")
    packed = _VERSION + zlib.compress(data, _LEVEL)
    if len(packed) > codec.MAX_BYTES:
        raise TurnTooLargeError(f"What is to be stored has {len(packed)} compressed bytes.")
    return packed


def unpack(packed: bytes) -> bytes:
    """Return the bytes of `pack`; raises `CorruptBlobError`."""
    if packed[:1] != _VERSION:
        raise CorruptBlobError("Stored bytes have an unknown version.")
    inflate = zlib.decompressobj()
    try:
        # With one byte more, what is too large is told from what just fits.
        data = inflate.decompress(packed[1:], codec.MAX_DECODED_BYTES + 1)
    except zlib.error as error:
        raise CorruptBlobError("Stored bytes cannot be decoded.") from error
    if not inflate.eof or inflate.unused_data or len(data) > codec.MAX_DECODED_BYTES:
        raise CorruptBlobError("Stored bytes are cut off, or are more than what was stored.")
    return data


async def _renew(table: Table, item: AttributeValues, expires_at: int) -> None:
    partition: str = item["pk"]["S"]

    async def set_expiry(sort_key: str) -> None:
        await table.update(
            partition,
            sort_key,
            "SET #ttl = :ttl",
            values={":ttl": {"N": str(expires_at)}},
            names=_TTL,
        )

    # A row must not outlive its chunks, so it is the last. What is gone stays gone.
    with suppress(ConditionFailedError):
        await together([set_expiry(key) for key in _chunk_keys(item)])
        await set_expiry(item["sk"]["S"])


def _chunk_count(item: AttributeValues) -> int:
    return int(item["nx"]["N"]) if "nx" in item else 0


def _chunk_keys(item: AttributeValues) -> list[str]:
    sort_key, count = item["sk"]["S"], _chunk_count(item)
    return [keys.blob_chunk_key(sort_key, item["sum"]["B"], index) for index in range(count)]
