"""`DynamoDBRunStore`: one small row for each turn that was begun, and its events in the same partition.

What changes while a turn runs is in these rows, so that the turn's own row is written only twice.
"""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from channel.isolation import IsolationKeys
from channel.ports import Clock, EventBatch, Run, StoreError
from infra.dynamodb import keys
from infra.dynamodb.client import Client, ConditionFailedError, Table, together
from infra.dynamodb.rows import AttributeValues
from infra.dynamodb.secret import TenantSecret


PART_BYTES: Final = 240 * 1024
_RUN_KEPT_S: Final = 24 * 3600
_DEFLATE_LEVEL: Final = 6
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
_MAX_INFLATED: Final = 128 * 1024 * 1024  # of one event that is larger than that alone


class CorruptEventsError(StoreError):
    """Stored events are not what was written."""

    is_passing = False


class DynamoDBRunStore:
    """The `RunStore` in one table; it works in any number of threads, loops and processes."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
    ) -> None:
        """Take a client of `make_client`; without a `secret`, the table's own is used."""
        self._table = Table(client, table)
        self._secret = secret or TenantSecret(self._table)
        self._clock = clock

    async def begin(self, isolation: IsolationKeys, response_id: str, run: Run, /) -> None:
        """Note that a turn was begun (1 WRU)."""
        item: AttributeValues = {
            "pk": {"S": await self._partition(isolation, response_id)},
            "sk": {"S": keys.ONLY_ROW},
            "lease": _number(run.lease_until),
            "evx": _number(run.events_until),
            "ttl": _number(max(run.lease_until, run.events_until) + _RUN_KEPT_S),
        }
        if run.owner:
            item["own"] = {"S": run.owner}
        await self._table.put(item)

    async def claim(
        self, isolation: IsolationKeys, response_id: str, owner: str, lease_until: float, /
    ) -> Run | None:
        """Become the owner of a run (1 WRU); None where that cannot be."""
        return await self._update(
            isolation,
            response_id,
            "SET own = :own, lease = :lease",
            # One's own name is there where an attempt before this one seemed to fail.
            "(attribute_not_exists(own) OR own = :own) AND attribute_not_exists(cancel)"
            " AND lease >= :now",
            {
                ":own": {"S": owner},
                ":lease": _number(lease_until),
                ":now": _number(self._clock()),
            },
        )

    async def renew(
        self, isolation: IsolationKeys, response_id: str, owner: str, lease_until: float, /
    ) -> Run | None:
        """Extend the lease of a run of one's own (1 WRU); None where it is not."""
        return await self._update(
            isolation,
            response_id,
            "SET lease = :lease",
            "own = :own",
            {":own": {"S": owner}, ":lease": _number(lease_until)},
        )

    async def look(
        self, isolation: IsolationKeys, response_id: str, /, *, is_strong: bool = True
    ) -> Run | None:
        """Return a run: 1 RRU, or half of that for one that may be a moment old."""
        partition = await self._partition(isolation, response_id)
        item = await self._table.get(partition, keys.ONLY_ROW, is_strong=is_strong)
        return _run(item) if item else None

    async def request_cancel(self, isolation: IsolationKeys, response_id: str, /) -> Run | None:
        """Ask for a run to be cancelled (1 WRU), and return it; None where there is none."""
        return await self._update(
            isolation, response_id, "SET cancel = :yes", "", {":yes": {"BOOL": True}}
        )

    async def append(
        self, isolation: IsolationKeys, response_id: str, batch: EventBatch, until: float, /
    ) -> None:
        """Keep events until then: 1 WRU for each KB of their compressed text."""
        partition = await self._partition(isolation, response_id)
        for some in _readable(batch):
            await self._append(partition, some, until)

    async def _append(self, partition: str, batch: EventBatch, until: float) -> None:
        data = await asyncio.to_thread(_deflated, batch.events)
        parts = [data[i : i + PART_BYTES] for i in range(0, len(data), PART_BYTES)]
        sort_key = keys.events_key(batch.last)
        expiry = _number(until)
        # The first part says how many there are, and comes last: then all of them are there.
        await together(
            [
                self._table.put(
                    {
                        "pk": {"S": partition},
                        "sk": {"S": keys.part_key(sort_key, index)},
                        "ttl": expiry,
                        "d": {"B": part},
                    }
                )
                for index, part in enumerate(parts[1:], 1)
            ]
        )
        head: AttributeValues = {
            "pk": {"S": partition},
            "sk": {"S": sort_key},
            "ttl": expiry,
            "f": {"N": str(batch.first)},
            "d": {"B": parts[0]},
        }
        if len(parts) > 1:
            head["nx"] = {"N": str(len(parts))}
        await self._table.put(head)

    async def events(
        self, isolation: IsolationKeys, response_id: str, after: int, /, *, is_strong: bool = False
    ) -> Sequence[EventBatch]:
        """Return the batches that hold events after that number: 0.5 RRU for each 4 KB of them."""
        partition = await self._partition(isolation, response_id)
        batches, is_whole = await self._read(partition, after, is_strong=is_strong)
        if not is_whole:
            batches, _ = await self._read(partition, after, is_strong=True)
        return batches

    async def last_events(self, isolation: IsolationKeys, response_id: str, /) -> EventBatch | None:
        """Return the batch that was kept last."""
        partition = await self._partition(isolation, response_id)
        items = await self._table.query(partition, keys.events_after(-1), is_strong=True, last=1)
        if not items:
            return None
        last = int(items[0]["sk"]["S"].split("#")[1])
        # Where that row is a part of events that were never wholly kept, others are the last.
        for after in (last - 1, -1):
            batches, _ = await self._read(partition, after, is_strong=True)
            if batches:
                return batches[-1]
        return None

    async def forget(self, isolation: IsolationKeys, response_id: str, /) -> None:
        """Delete a run and its events."""
        partition = await self._partition(isolation, response_id)
        items = await self._table.query(partition, is_strong=True)
        await together([self._table.delete(partition, item["sk"]["S"]) for item in items])

    async def _read(
        self, partition: str, after: int, *, is_strong: bool
    ) -> tuple[list[EventBatch], bool]:
        items = await self._table.query(partition, keys.events_after(after), is_strong=is_strong)
        return await asyncio.to_thread(_batches, items, after, self._clock())

    async def _partition(self, isolation: IsolationKeys, response_id: str) -> str:
        tenant = keys.tenant_tag(await self._secret(), isolation)
        return keys.run_partition(tenant, response_id)

    async def _update(
        self,
        isolation: IsolationKeys,
        response_id: str,
        expression: str,
        condition: str,
        values: AttributeValues,
    ) -> Run | None:
        partition = await self._partition(isolation, response_id)
        try:
            item = await self._table.update(
                partition,
                keys.ONLY_ROW,
                expression,
                values=values,
                condition=condition,
                returns=True,
            )
        except ConditionFailedError:
            return None
        return _run(item)


def _number(value: float) -> dict[str, str]:
    return {"N": str(int(value))}


def _run(item: AttributeValues) -> Run:
    return Run(
        lease_until=float(item["lease"]["N"]),
        owner=item["own"]["S"] if "own" in item else "",
        is_cancelled="cancel" in item,
        events_until=float(item["evx"]["N"]),
    )


def _readable(batch: EventBatch) -> Iterator[EventBatch]:
    """Yield the events in batches that are not too large to be read again."""
    first, size, events = batch.first, 0, list[bytes]()
    for event in batch.events:
        if events and size + len(event) > MAX_BATCH_BYTES:
            yield EventBatch(first, events)
            first, size, events = first + len(events), 0, []
        events.append(event)
        size += len(event) + 1
    yield EventBatch(first, events)


def _deflated(events: Sequence[bytes]) -> bytes:
    return zlib.compress(b"\n".join(events), _DEFLATE_LEVEL)


def _inflated(data: bytes) -> list[bytes]:
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(data, _MAX_INFLATED)
    except zlib.error as error:
        raise CorruptEventsError("Stored events cannot be decoded.") from error
    if not inflate.eof:
        raise CorruptEventsError("Stored events are cut off.")
    return plain.split(b"\n")


def _batches(
    items: Sequence[AttributeValues], after: int, now: float
) -> tuple[list[EventBatch], bool]:
    """Return the batches up to the first gap, and whether there was none."""
    batches: list[EventBatch] = []
    for sort_key, item, data in _whole(items):
        if data is None:
            return batches, False
        if int(item["ttl"]["N"]) < now:
            return batches, True
        first, last = int(item["f"]["N"]), int(sort_key.split("#")[1])
        if first > after + 1:
            return batches, False
        events = _inflated(data)
        if first + len(events) - 1 != last:
            raise CorruptEventsError("Stored events are damaged.")
        batches.append(EventBatch(first, events))
        after = last
    return batches, True


def _whole(
    items: Sequence[AttributeValues],
) -> Iterator[tuple[str, AttributeValues, bytes | None]]:
    """Yield the rows that events begin in, each with all of its data, or None where parts are missing."""
    data = {item["sk"]["S"]: item["d"]["B"] for item in items}
    for item in items:
        if "f" not in item:
            continue
        sort_key = item["sk"]["S"]
        count = int(item["nx"]["N"]) if "nx" in item else 1
        names = [sort_key, *(keys.part_key(sort_key, index) for index in range(1, count))]
        parts = [data[name] for name in names if name in data]
        yield sort_key, item, b"".join(parts) if len(parts) == count else None
