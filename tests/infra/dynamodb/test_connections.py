"""The connections' rows, on both engines: what is kept, changed by one at a time, and forgotten."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from channel.auth import Caller, Principal
from channel.isolation import IsolationKeys
from channel.ports import Branch, StoredTurn, StoreError, random_hex
from channel.responses.sockets.connection import ConnectionState, Latest
from channel.responses.sockets.connections import Connection
from channel.responses.sockets.endpoint import Limits
from channel.responses.sockets.frames import Frame, Refusal
from channel.responses.sockets.local_turns import LocalChain
from infra.dynamodb import keys
from infra.dynamodb.client import Table
from infra.dynamodb.connections import KEPT_S, DynamoDBConnectionStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Fault, Meter, retry_at_once
from tests.infra.turns import noise, turn


pytestmark = pytest.mark.anyio

ANN = Caller(Principal("agency", is_delegate=True), IsolationKeys("agency/ann", "chat"))
LIMITS = Limits()


@pytest.fixture(params=["moto_client", "dynalite_client"])
def client(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


async def at_once(_seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
def store(client: Any, clock: MovableClock) -> DynamoDBConnectionStore:
    return DynamoDBConnectionStore(client, engines.TABLE, clock=clock, pause=at_once)


@pytest.fixture
def own_client(dynalite_endpoint: str, dynalite_client: Any) -> Iterator[Any]:
    """Return a client that no other test sees, of the engine that has the table."""
    with engines.connected(None, dynalite_endpoint) as client:
        yield client


@pytest.fixture
def me() -> str:
    return random_hex(8)


def opened() -> Connection:
    return Connection(ANN, ConnectionState.opened(1.0, LIMITS))


def arriving(name: str) -> Any:
    async def arrive(state: ConnectionState) -> str:
        state.arrive(Frame(b"{}"), name, 2.0, LIMITS)
        return name

    return arrive


async def rows(client: Any, connection_id: str) -> list[str]:
    items = await Table(client, engines.TABLE).query(
        keys.connection_partition(connection_id), is_strong=True
    )
    return [item["sk"]["S"] for item in items]


async def test_a_connection_is_kept_as_it_is(store: DynamoDBConnectionStore, me: str) -> None:
    await store.open(me, opened())

    assert await store.load(me) == opened()
    assert await store.load(me, is_strong=False) == opened()
    assert await store.load(f"{me}x") is None


async def test_a_change_is_kept_and_told(store: DynamoDBConnectionStore, me: str) -> None:
    await store.open(me, opened())

    changed = await store.change(me, arriving("1"))

    assert changed is not None
    assert changed[1] == "1"
    assert changed[0] == await store.load(me)
    assert changed[0].state.lanes[""].entries[0].name == "1"


async def test_changes_at_the_same_time_are_all_kept(
    store: DynamoDBConnectionStore, me: str
) -> None:
    await store.open(me, opened())

    await asyncio.gather(*[store.change(me, arriving(str(number))) for number in range(8)])

    kept = await store.load(me)
    assert kept is not None
    names = {entry.name for entry in kept.state.lanes[""].entries}
    assert names == {str(number) for number in range(8)}


async def test_a_connection_that_is_closed_cannot_be_changed(
    store: DynamoDBConnectionStore, me: str
) -> None:
    await store.open(me, opened())

    async def close(state: ConnectionState) -> None:
        await store.close(me)

    assert await store.change(me, close) is None
    assert await store.load(me) is None
    assert await store.change(me, arriving("1")) is None


async def test_a_change_that_always_comes_too_late_is_given_up(
    store: DynamoDBConnectionStore, me: str
) -> None:
    await store.open(me, opened())
    number = 0

    async def late(state: ConnectionState) -> None:
        nonlocal number
        number += 1
        await store.change(me, arriving(str(number)))

    with pytest.raises(StoreError):
        await store.change(me, late)


@pytest.mark.parametrize("chance", [1.0, 0.25])
async def test_a_change_that_comes_too_late_waits_longer_each_time(
    client: Any, me: str, chance: float
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    def always() -> float:
        return chance

    store = DynamoDBConnectionStore(client, engines.TABLE, pause=pause, chance=always)
    await store.open(me, opened())
    number = 0

    async def late(state: ConnectionState) -> int:
        nonlocal number
        number += 1
        if number < 8:
            await store.change(me, arriving(str(number)))
        return number

    changed = await store.change(me, late)

    assert changed is not None
    assert changed[1] == 8
    longest = [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]
    assert pauses == pytest.approx([seconds * chance for seconds in longest])


@pytest.mark.parametrize("kind", ["timeout", "timeout_after_success", "throttle"])
async def test_a_change_whose_write_seems_to_fail_happens_once(
    own_client: Any, me: str, kind: str
) -> None:
    store = DynamoDBConnectionStore(own_client, engines.TABLE)
    await store.open(me, opened())
    calls = 0

    async def count(state: ConnectionState) -> int:
        nonlocal calls
        calls += 1
        state.last_number += 1
        return calls

    retry_at_once(own_client)
    with Fault(own_client, kind, at=1):
        changed = await store.change(me, count)

    kept = await store.load(me)
    assert kept is not None
    assert (kept.state.last_number, changed and changed[1]) == (1, 1)


async def test_a_connection_expires(
    store: DynamoDBConnectionStore, clock: MovableClock, me: str
) -> None:
    await store.open(me, opened())
    clock.now += KEPT_S - 1
    await store.change(me, arriving("1"))
    clock.now += 2

    assert await store.load(me) is None
    assert await store.change(me, arriving("2")) is None


async def test_a_frame_is_kept_until_it_is_dropped(store: DynamoDBConnectionStore, me: str) -> None:
    frame = Frame(noise(100_000).encode(), "a", generates=False, previous_response_id="resp_1")
    await store.put_frame(me, "1", frame)
    await store.put_frame(me, "1", frame)

    assert await store.frame(me, "2") is None
    assert await store.frame(me, "1") == frame
    await store.drop_frame(me, "1")
    await store.drop_frame(me, "1")
    assert await store.frame(me, "1") is None


def local(number: int, text: str = "Hello!", **fields: Any) -> StoredTurn:
    return turn(Branch(f"{number:052x}"), text, **fields)


async def test_a_chain_of_local_turns_is_kept_and_forks(
    store: DynamoDBConnectionStore, me: str
) -> None:
    turns = [local(number) for number in range(4)]
    first = await store.put_turn(me, turns[0], None, "resp_stored")
    second = await store.put_turn(me, turns[1], first, None)
    third = await store.put_turn(me, turns[2], second, None)
    fork = await store.put_turn(me, turns[3], first, None)

    assert await store.turns(me, first) == LocalChain((turns[0],), "resp_stored")
    assert await store.turns(me, third) == LocalChain(tuple(turns[:3]), "resp_stored")
    assert await store.turns(me, fork) == LocalChain((turns[0], turns[3]), "resp_stored")


async def test_chains_lie_apart_and_one_follows_nothing(
    store: DynamoDBConnectionStore, me: str
) -> None:
    one = await store.put_turn(me, local(1), None, None)
    two = await store.put_turn(me, local(2), None, None)

    assert await store.turns(me, one) == LocalChain((local(1),))
    assert await store.turns(me, two) == LocalChain((local(2),))
    assert await store.turns(f"{me}x", one) is None


async def test_a_large_turn_is_kept_in_chunks(
    store: DynamoDBConnectionStore, client: Any, me: str
) -> None:
    large = local(1, noise(600_000))
    first = await store.put_turn(me, large, None, None)
    second = await store.put_turn(me, local(2), first, None)

    assert len(await rows(client, me)) > 3
    assert await store.turns(me, second) == LocalChain((large, local(2)))


async def test_a_response_id_may_be_any_text(store: DynamoDBConnectionStore, me: str) -> None:
    turns = [local(1, id="my#own#id"), local(2, id="\ud800")]
    first = await store.put_turn(me, turns[0], None, None)

    assert await store.turns(me, first) == LocalChain((turns[0],))
    assert keys.local_key("\ud800", first).startswith("T#")


async def test_a_chain_that_is_not_whole_is_none(
    store: DynamoDBConnectionStore, client: Any, clock: MovableClock, me: str
) -> None:
    first = await store.put_turn(me, local(1), None, None)
    second = await store.put_turn(me, local(2, noise(600_000)), first, None)
    third = await store.put_turn(me, local(3), second, None)
    table = Table(client, engines.TABLE)
    partition = keys.connection_partition(me)

    chunk = next(name for name in await rows(client, me) if keys.is_chunk_key(name))
    await table.delete(partition, chunk)
    assert await store.turns(me, third) is None
    assert await store.turns(me, first) is not None
    await table.delete(partition, first)
    assert await store.turns(me, first) is None
    again = await store.put_turn(me, local(4), None, None)
    clock.now += KEPT_S + 1
    assert await store.turns(me, again) is None


async def test_a_closed_connection_leaves_nothing_behind(
    store: DynamoDBConnectionStore, client: Any, me: str
) -> None:
    await store.open(me, opened())
    await store.put_frame(me, "1", Frame(b"{}"))
    await store.put_turn(me, local(1, noise(600_000)), None, None)
    other = f"{me}x"
    await store.open(other, opened())

    await store.close(me)
    await store.close(me)

    assert await rows(client, me) == []
    assert await rows(client, other) == [keys.ONLY_ROW]


async def test_every_row_expires(store: DynamoDBConnectionStore, client: Any, me: str) -> None:
    await store.open(me, opened())
    await store.put_frame(me, "1", Frame(b"{}"))
    await store.put_turn(me, local(1, noise(600_000)), None, None)

    items = await Table(client, engines.TABLE).query(keys.connection_partition(me), is_strong=True)
    assert len(items) > 4
    assert all("ttl" in item for item in items)


async def test_what_a_frame_costs(own_client: Any, me: str) -> None:
    store = DynamoDBConnectionStore(own_client, engines.TABLE)
    await store.open(me, opened())
    meter = Meter(own_client)

    await store.change(me, arriving("1"))
    await store.load(me, is_strong=False)
    await store.put_turn(me, local(1), None, None)

    assert meter.take() == {
        "GetItem": [1.0, 0.5],
        "PutItem": [1.0, 1.0],
    }


async def test_a_connection_that_is_full_of_everything_fits_its_row(
    store: DynamoDBConnectionStore, me: str
) -> None:
    limits = Limits(burst=1000, waiting=200)
    await store.open(me, opened())

    async def fill(state: ConnectionState) -> None:
        state.tokens = 1000.0
        for lane in range(limits.named_lanes):
            name = f"{lane:0256d}"
            for _ in range(3):
                assert state.arrive(Frame(b"{}", name), random_hex(8), 2.0, limits).is_taken
            state.arrive(Refusal(b"x" * 3000, name), random_hex(8), 2.0, limits)
            state.remember(name, Latest("resp_" + "0" * 52, "T#" + "0" * 120))

    assert await store.change(me, fill) is not None
