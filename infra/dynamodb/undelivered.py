"""`DynamoDBUndeliveredStore`: replies that did not arrive, one blob each, by principal.

They are in `undelivered#<principal>`, beside the dead letters of webhooks and outside of the tenants:
who looks after a deployment lists and retries them, and has nobody's isolation keys.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from math import ceil
from typing import Final

import msgspec

from channel.delivery import Undelivered
from channel.faults import log_fault
from channel.ports import Clock
from infra.dynamodb import blobs, keys
from infra.dynamodb.client import Client, Table, together
from infra.dynamodb.rows import AttributeValues


WEEK_S: Final = 7 * 24 * 3600.0

_KIND: Final = "undelivered"
_READS: Final = 3
_LOG: Final = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Undelivered).decode


class DynamoDBUndeliveredStore:
    """The `UndeliveredStore` in one table; it works in any number of threads, loops and processes."""

    def __init__(self, client: Client, table: str, *, clock: Clock = time.time) -> None:
        """Take a client of `make_client`."""
        self._table = Table(client, table)
        self._clock = clock

    async def keep(self, undelivered: Undelivered, /) -> None:
        """Keep it for a week, in place of what is kept of the same delivery id.

        1 WRU for each KB, compressed. Raises `TurnTooLargeError` for more than 6 MB of that. What is
        replaced is there until the new one is.
        """
        data = await asyncio.to_thread(_packed, undelivered)
        await blobs.replace(
            self._table,
            _partition(undelivered.delivery.principal),
            keys.delivery_key(undelivered.delivery.id),
            data,
            expires_at=ceil(undelivered.at + WEEK_S),
        )

    async def get(self, principal: str, delivery_id: str, /) -> Undelivered | None:
        """Return one: 1 RRU for each 4 KB of it, compressed."""
        item = await self._table.get(_partition(principal), keys.delivery_key(delivery_id))
        return None if item is None else await self._read(item)

    async def drop(self, principal: str, delivery_id: str, /) -> None:
        """Forget one: 1 WRU for each KB of it."""
        row = await self._table.take(_partition(principal), keys.delivery_key(delivery_id))
        await blobs.erase_chunks(self._table, row)

    async def all_of(self, principal: str, /) -> Sequence[Undelivered]:
        """Return those of a principal, oldest first: 1 RRU for each 4 KB of them.

        One that cannot be read is left out, with a word in the log: it hides no other.
        """
        items = await self._table.query(
            _partition(principal), keys.deliveries_range(), is_strong=True
        )
        read = await together([self._listed(item) for item in items])
        found = [undelivered for undelivered in read if undelivered is not None]
        return sorted(found, key=lambda undelivered: undelivered.at)

    async def _listed(self, item: AttributeValues) -> Undelivered | None:
        try:
            return await self._read(item)
        except blobs.CorruptBlobError as error:
            log_fault(_LOG, f"undelivered reply {item['sk']['S']} not read", error)
            return None

    async def _read(self, item: AttributeValues) -> Undelivered | None:
        """Return what a row holds, or None where it has expired; raises `CorruptBlobError`."""
        found: AttributeValues | None = item
        for _ in range(_READS):
            if found is None or not blobs.is_alive(found, self._clock()):
                return None
            data = await blobs.payload(self._table, found)
            if data is not None:
                return await asyncio.to_thread(_unpacked, data)
            # It was replaced or dropped after the row was read.
            found = await self._table.get(item["pk"]["S"], item["sk"]["S"])
        raise blobs.CorruptBlobError("An undelivered reply is not there as a whole.")


def _partition(principal: str) -> str:
    return keys.principal_partition(_KIND, principal)


def _packed(undelivered: Undelivered) -> bytes:
    return blobs.pack(_encode(undelivered))


def _unpacked(data: bytes) -> Undelivered:
    try:
        return _decode(blobs.unpack(data))
    except msgspec.DecodeError as error:
        raise blobs.CorruptBlobError("An undelivered reply cannot be decoded.") from error
