"""Blobs: bytes that are whole or not there, in one row or in chunks beside it."""

from random import Random
from typing import Any

import pytest

from channel.ports import StoreError, TurnTooLargeError
from infra.dynamodb import blobs, codec, keys
from infra.dynamodb.client import Client, Table
from infra.dynamodb.store import MONTH_S
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Fault
from tests.infra.turns import own_secret


pytestmark = pytest.mark.anyio

LARGE = blobs.pack(Random(0).randbytes(600_000))
"""What takes three chunks."""


@pytest.fixture(params=["moto", "dynalite"])
def table(request: pytest.FixtureRequest) -> Table:
    client: Client = request.getfixturevalue(f"{request.param}_client")
    return Table(client, engines.TABLE)


@pytest.fixture
async def partition() -> str:
    return f"t#{(await own_secret()()).hex()}"


async def read(table: Table, partition: str, sort_key: str = "K") -> bytes | None:
    item = await table.get(partition, sort_key)
    return None if item is None else await blobs.payload(table, item)


@pytest.mark.parametrize("data", [b"", b"small", LARGE])
async def test_a_blob_comes_back_with_what_its_row_says(
    table: Table, partition: str, data: bytes
) -> None:
    await blobs.write(table, partition, "K", data, 1_900_000_000, attributes={"a": {"S": "b"}})

    item = await table.get(partition, "K")
    assert item is not None
    assert item["a"] == {"S": "b"}
    assert await blobs.payload(table, item) == data
    rows = await table.query(partition)
    assert {row["ttl"]["N"] for row in rows} == {"1900000000"}
    assert len(rows) == (4 if data == LARGE else 1)


async def test_the_chunks_of_a_partition_lie_apart_from_its_rows(
    table: Table, partition: str
) -> None:
    for number in (1, 2):
        await blobs.write(table, partition, keys.messages_key(number), LARGE, 1_900_000_000)

    rows = await table.query(partition, keys.messages_range())

    assert [keys.number_in(row["sk"]["S"]) for row in rows] == [1, 2]


async def test_a_chunk_that_is_gone_is_noticed(table: Table, partition: str) -> None:
    await blobs.write(table, partition, "K", LARGE, 1_900_000_000)

    await table.delete(partition, keys.blob_chunk_key("K", codec.checksum(LARGE), 1))

    assert await read(table, partition) is None


async def test_a_blob_that_is_written_again_is_the_new_one(table: Table, partition: str) -> None:
    for data in (LARGE, b"small", LARGE[:-1]):
        await blobs.write(table, partition, "K", data, 1_900_000_000)
        assert await read(table, partition) == data


async def test_an_erased_blob_leaves_nothing(table: Table, partition: str) -> None:
    await blobs.write(table, partition, "K", LARGE, 1_900_000_000)
    item = await table.get(partition, "K")
    assert item is not None

    await blobs.erase(table, item)

    assert await table.query(partition) == []


async def test_what_has_less_than_half_of_its_time_is_renewed_oldest_first_and_not_all_at_once(
    table: Table, partition: str, clock: MovableClock
) -> None:
    # 26 of these are 104 rows.
    for number in range(26):
        await blobs.write(
            table, partition, keys.messages_key(number), LARGE, int(clock.now + MONTH_S)
        )
    items = await table.query(partition, keys.messages_range())

    await blobs.renew(table, items, clock.now, MONTH_S)
    assert await table.query(partition, keys.messages_range()) == items
    clock.now += MONTH_S * 0.6
    await blobs.renew(table, items, clock.now, MONTH_S)

    renewed = {
        key: blobs.is_alive(row, clock.now + MONTH_S - 1)
        for row in await table.query(partition)
        if not (key := row["sk"]["S"]).startswith("C")
    }
    assert [*renewed.values()] == [True] * 25 + [False]


async def test_a_renewal_brings_nothing_back(
    table: Table, partition: str, clock: MovableClock
) -> None:
    await blobs.write(table, partition, "K", LARGE, int(clock.now + 1))
    item = await table.get(partition, "K")
    assert item is not None
    await blobs.erase(table, item)

    await blobs.renew(table, [item], clock.now, MONTH_S)

    assert await table.query(partition) == []


async def test_a_renewal_that_fails_is_only_logged(
    dynalite_client: Any,
    fragile_client: Any,
    partition: str,
    clock: MovableClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = Table(dynalite_client, engines.TABLE)
    await blobs.write(table, partition, "K", b"small", int(clock.now + 1))
    item = await table.get(partition, "K")
    assert item is not None

    with Fault(fragile_client, "throttle", at=0):
        await blobs.renew(Table(fragile_client, engines.TABLE), [item], clock.now, MONTH_S)

    (record,) = caplog.records
    assert record.getMessage() == "blobs were not renewed"
    assert await table.get(partition, "K") == item


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(TurnTooLargeError, match="compressed bytes"):
        blobs.pack(Random(1).randbytes(codec.MAX_BYTES))
    with pytest.raises(TurnTooLargeError, match="bytes"):
        blobs.pack(bytes(codec.MAX_DECODED_BYTES + 1))


@pytest.mark.parametrize(
    "data", [b"", b"\x02" + blobs.pack(b"x")[1:], blobs.pack(b"x")[:-1], blobs.pack(b"x") + b"y"]
)
def test_bytes_that_were_not_packed_do_not_unpack(data: bytes) -> None:
    with pytest.raises(blobs.CorruptBlobError) as error:
        blobs.unpack(data)
    assert isinstance(error.value, StoreError)
