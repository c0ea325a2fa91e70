"""The contract of `RunStore`, held against every store; and what it costs in DynamoDB."""

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from channel.isolation import IsolationKeys
from channel.memory_runs import InMemoryRunStore
from channel.ports import EventBatch, Run, RunStore, StoreError
from infra.dynamodb.client import Client, Table
from infra.dynamodb.runs import PART_BYTES, DynamoDBRunStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Fault, Meter
from tests.infra.turns import noise, own_secret


pytestmark = pytest.mark.anyio

BOB = IsolationKeys("bob")
MINTED = "resp_" + "01" + "0" * 50
LARGE = [f'"{noise(400_000, seed)}"'.encode() for seed in range(2)]
"""Two events that make three rows together, however well they are compressed."""


@pytest.fixture(params=["memory", "moto", "dynalite"])
def store(request: pytest.FixtureRequest, clock: MovableClock) -> RunStore:
    if request.param == "memory":
        return InMemoryRunStore(clock=clock)
    client = request.getfixturevalue(f"{request.param}_client")
    return DynamoDBRunStore(client, engines.TABLE, secret=own_secret(), clock=clock)


@pytest.fixture(params=["moto", "dynalite"])
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.getfixturevalue(f"{request.param}_client")
    return found


@pytest.fixture
def in_table(client: Client, clock: MovableClock) -> DynamoDBRunStore:
    return DynamoDBRunStore(client, engines.TABLE, secret=own_secret(), clock=clock)


@pytest.fixture
def begun(clock: MovableClock) -> Run:
    return Run(clock.now + 60, events_until=clock.now + 1000)


@pytest.fixture
def until(begun: Run) -> float:
    return begun.events_until


def batch(first: int, count: int) -> EventBatch:
    """Return a batch of events that say their numbers."""
    numbers = range(first, first + count)
    return EventBatch(first, [json.dumps({"sequence_number": n}).encode() for n in numbers])


def numbers(batches: Sequence[EventBatch]) -> list[int]:
    """Return the numbers of the events in batches, as the events themselves say."""
    return [json.loads(event)["sequence_number"] for each in batches for event in each.events]


async def rows_of(
    store: DynamoDBRunStore, client: Client, keys: IsolationKeys, response_id: str = MINTED
) -> dict[str, Any]:
    """Return what is in the partition of a run, by sort key."""
    partition = await store._partition(keys, response_id)
    items = await Table(client, engines.TABLE).query(partition, is_strong=True)
    return {item["sk"]["S"]: item for item in items}


# Begun, claimed, renewed, cancelled


async def test_a_run_that_was_begun_waits_for_an_owner(
    store: RunStore, ann: IsolationKeys, begun: Run
) -> None:
    await store.begin(ann, MINTED, begun)

    assert await store.look(ann, MINTED) == begun
    assert await store.look(ann, MINTED, is_strong=False) == begun


async def test_a_run_may_have_an_owner_and_no_events_from_the_start(
    store: RunStore, ann: IsolationKeys, clock: MovableClock
) -> None:
    own = Run(clock.now + 60, "me")

    await store.begin(ann, MINTED, own)

    assert await store.look(ann, MINTED) == own
    assert await store.claim(ann, MINTED, "another", clock.now + 60) is None
    assert await store.events(ann, MINTED, -1) == []


async def test_a_run_is_claimed_once(
    store: RunStore, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    await store.begin(ann, MINTED, begun)

    claimed = await store.claim(ann, MINTED, "first", clock.now + 45)

    assert claimed == Run(clock.now + 45, "first", events_until=begun.events_until)
    assert await store.claim(ann, MINTED, "second", clock.now + 99) is None
    assert await store.look(ann, MINTED) == claimed


async def test_an_owner_whose_claim_seemed_to_fail_claims_again(
    store: RunStore, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    await store.begin(ann, MINTED, begun)
    await store.claim(ann, MINTED, "me", clock.now + 45)

    again = await store.claim(ann, MINTED, "me", clock.now + 50)

    assert again == Run(clock.now + 50, "me", events_until=begun.events_until)


async def test_a_claim_that_happened_and_seemed_to_fail_is_not_lost(
    fragile_client: Any, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    store = DynamoDBRunStore(fragile_client, engines.TABLE, secret=own_secret(), clock=clock)
    await store.begin(ann, MINTED, begun)
    with Fault(fragile_client, "timeout_after_success", at=0), pytest.raises(StoreError):
        await store.claim(ann, MINTED, "me", clock.now + 45)

    assert await store.claim(ann, MINTED, "another", clock.now + 45) is None
    assert await store.claim(ann, MINTED, "me", clock.now + 45) is not None


async def test_of_claims_at_once_one_wins(
    in_table: DynamoDBRunStore, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    await in_table.begin(ann, MINTED, begun)

    def contend(number: int) -> Run | None:
        return asyncio.run(in_table.claim(ann, MINTED, f"owner {number}", clock.now + 45))

    with ThreadPoolExecutor(8) as threads:
        claims = [*threads.map(contend, range(8))]

    (won,) = [claimed for claimed in claims if claimed is not None]
    assert await in_table.look(ann, MINTED) == won
    assert claims.index(won) == int(won.owner.removeprefix("owner "))


async def test_a_run_is_claimed_until_its_lease_is_over_and_not_after(
    store: RunStore, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    await store.begin(ann, MINTED, begun)
    await store.begin(ann, "another", begun)
    clock.now = begun.lease_until

    assert await store.claim(ann, MINTED, "me", clock.now + 45) is not None
    clock.now += 1
    assert await store.claim(ann, "another", "me", clock.now + 45) is None


async def test_a_run_that_was_cancelled_is_not_claimed(
    store: RunStore, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    await store.begin(ann, MINTED, begun)
    await store.request_cancel(ann, MINTED)

    assert await store.claim(ann, MINTED, "me", clock.now + 45) is None


async def test_a_lease_is_renewed_by_its_owner_only(
    store: RunStore, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    await store.begin(ann, MINTED, begun)
    assert await store.renew(ann, MINTED, "me", clock.now + 70) is None
    await store.claim(ann, MINTED, "me", clock.now + 45)

    assert await store.renew(ann, MINTED, "another", clock.now + 99) is None
    renewed = await store.renew(ann, MINTED, "me", clock.now + 60)

    assert renewed == Run(clock.now + 60, "me", events_until=begun.events_until)
    assert await store.look(ann, MINTED) == renewed


async def test_a_lease_that_ran_out_is_renewed_by_its_owner_all_the_same(
    store: RunStore, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    await store.begin(ann, MINTED, begun)
    await store.claim(ann, MINTED, "me", clock.now + 45)
    clock.now += 46

    renewed = await store.renew(ann, MINTED, "me", clock.now + 45)

    assert renewed == Run(clock.now + 45, "me", events_until=begun.events_until)


async def test_a_cancellation_is_told_to_the_owner_by_every_look_and_renewal(
    store: RunStore, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    await store.begin(ann, MINTED, begun)
    await store.claim(ann, MINTED, "me", clock.now + 45)

    told = await store.request_cancel(ann, MINTED)

    cancelled = Run(clock.now + 45, "me", is_cancelled=True, events_until=begun.events_until)
    assert told == cancelled
    assert await store.request_cancel(ann, MINTED) == cancelled
    assert await store.look(ann, MINTED) == cancelled
    assert await store.renew(ann, MINTED, "me", clock.now + 45) == cancelled


async def test_what_was_never_begun_is_unknown_and_no_call_makes_it(
    store: RunStore, ann: IsolationKeys, clock: MovableClock
) -> None:
    for _ in range(2):
        assert await store.look(ann, MINTED) is None
        assert await store.look(ann, MINTED, is_strong=False) is None
        assert await store.claim(ann, MINTED, "me", clock.now + 45) is None
        assert await store.renew(ann, MINTED, "me", clock.now + 45) is None
        assert await store.request_cancel(ann, MINTED) is None
        assert await store.events(ann, MINTED, -1) == []
        assert await store.last_events(ann, MINTED) is None
        await store.forget(ann, MINTED)
    await store.append(ann, MINTED, batch(0, 1), clock.now + 60)
    assert await store.look(ann, MINTED) is None
    assert await store.claim(ann, MINTED, "me", clock.now + 45) is None


async def test_what_was_never_begun_leaves_no_row(
    in_table: DynamoDBRunStore, client: Client, ann: IsolationKeys, clock: MovableClock
) -> None:
    await in_table.request_cancel(ann, MINTED)
    await in_table.claim(ann, MINTED, "me", clock.now + 45)
    await in_table.renew(ann, MINTED, "me", clock.now + 45)

    assert await rows_of(in_table, client, ann) == {}


@pytest.mark.parametrize(
    "other", [BOB, IsolationKeys("ann", "chat"), IsolationKeys("ann", ""), IsolationKeys("ann ")]
)
async def test_the_run_of_another_tenant_is_an_unknown_one(
    store: RunStore,
    ann: IsolationKeys,
    other: IsolationKeys,
    clock: MovableClock,
    begun: Run,
) -> None:
    await store.begin(ann, MINTED, begun)
    await store.append(ann, MINTED, batch(0, 3), begun.events_until)

    assert await store.look(other, MINTED) is None
    assert await store.claim(other, MINTED, "me", clock.now + 45) is None
    assert await store.renew(other, MINTED, "", clock.now + 45) is None
    assert await store.request_cancel(other, MINTED) is None
    assert await store.events(other, MINTED, -1) == []
    assert await store.last_events(other, MINTED) is None
    await store.forget(other, MINTED)

    assert await store.look(ann, MINTED) == begun
    assert await store.events(ann, MINTED, -1) == [batch(0, 3)]


@pytest.mark.parametrize(
    "response_id", ["my own id", "a/../b\x00🌍", "E#1", "x" * 10_000, "resp_", "\ud800"]
)
async def test_an_id_of_the_callers_making_does_all_that_a_minted_one_does(
    store: RunStore,
    ann: IsolationKeys,
    clock: MovableClock,
    begun: Run,
    response_id: str,
) -> None:
    await store.begin(ann, response_id, begun)
    await store.append(ann, response_id, batch(0, 2), begun.events_until)

    assert await store.claim(ann, response_id, "me", clock.now + 45) is not None
    assert await store.events(ann, response_id, 0) == [batch(0, 2)]
    assert await store.look(ann, MINTED) is None
    assert await store.look(ann, response_id + "x") is None
    await store.forget(ann, response_id)
    assert await store.look(ann, response_id) is None


# Events


async def test_events_come_back_in_order_after_a_number(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    batches = [batch(0, 2), batch(2, 1), batch(3, 97), batch(100, 1), batch(101, 9000)]
    await store.begin(ann, MINTED, begun)
    for each in batches:
        await store.append(ann, MINTED, each, until)

    assert await store.events(ann, MINTED, -1) == batches
    assert await store.events(ann, MINTED, 0) == batches
    assert await store.events(ann, MINTED, 1) == batches[1:]
    assert await store.events(ann, MINTED, 2) == batches[2:]
    assert await store.events(ann, MINTED, 98) == batches[2:]
    assert await store.events(ann, MINTED, 100) == batches[4:]
    assert await store.events(ann, MINTED, 9099) == batches[4:]
    assert await store.events(ann, MINTED, 9100) == []
    assert await store.events(ann, MINTED, 10**12) == []
    assert await store.last_events(ann, MINTED) == batches[-1]


async def test_the_same_events_again_change_nothing(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    await store.begin(ann, MINTED, begun)

    for _ in range(3):
        await store.append(ann, MINTED, batch(0, 3), until)
        await store.append(ann, MINTED, batch(3, 3), until)

    assert await store.events(ann, MINTED, -1) == [batch(0, 3), batch(3, 3)]


async def test_events_that_only_seemed_to_fail_are_there_twice_and_in_order(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    """What could not be appended is appended with what follows: then batches overlap."""
    await store.begin(ann, MINTED, begun)
    for each in (batch(0, 3), batch(0, 5), batch(5, 1), batch(5, 4)):
        await store.append(ann, MINTED, each, until)

    found = await store.events(ann, MINTED, -1)

    assert numbers(found) == [0, 1, 2, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert sorted({*numbers(found)}) == [*range(9)]
    assert numbers(await store.events(ann, MINTED, 3)) == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert numbers(await store.events(ann, MINTED, 5)) == [5, 6, 7, 8]
    assert await store.last_events(ann, MINTED) == batch(5, 4)


async def test_a_gap_is_not_passed_over(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    await store.begin(ann, MINTED, begun)
    for each in (batch(0, 3), batch(5, 2), batch(7, 2)):
        await store.append(ann, MINTED, each, until)

    assert await store.events(ann, MINTED, -1) == [batch(0, 3)]
    assert await store.events(ann, MINTED, 2) == []
    assert await store.events(ann, MINTED, 4) == [batch(5, 2), batch(7, 2)]
    assert await store.last_events(ann, MINTED) == batch(7, 2)

    await store.append(ann, MINTED, batch(3, 2), until)
    assert numbers(await store.events(ann, MINTED, -1)) == [*range(9)]


async def test_events_that_are_larger_than_a_row_come_back_whole(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    large = EventBatch(2, LARGE)
    await store.begin(ann, MINTED, begun)
    await store.append(ann, MINTED, batch(0, 2), until)
    await store.append(ann, MINTED, large, until)
    await store.append(ann, MINTED, batch(4, 2), until)

    assert await store.events(ann, MINTED, -1) == [batch(0, 2), large, batch(4, 2)]
    assert await store.events(ann, MINTED, 2) == [large, batch(4, 2)]
    assert await store.events(ann, MINTED, 3) == [batch(4, 2)]
    assert await store.last_events(ann, MINTED) == batch(4, 2)


async def test_the_last_events_may_be_larger_than_a_row(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    await store.begin(ann, MINTED, begun)
    await store.append(ann, MINTED, EventBatch(0, LARGE), until)

    assert await store.last_events(ann, MINTED) == EventBatch(0, LARGE)


async def test_more_events_than_a_page_are_whole(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    batches = [EventBatch(number, [LARGE[number % 2]]) for number in range(6)]
    await store.begin(ann, MINTED, begun)
    for each in batches:
        await store.append(ann, MINTED, each, until)

    assert await store.events(ann, MINTED, -1) == batches


async def test_random_batches_give_back_what_was_appended(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    random = Random(3)
    await store.begin(ann, MINTED, begun)
    first, kept = 0, 0
    for _ in range(30):
        last = kept + random.randrange(1, 9)
        await store.append(ann, MINTED, batch(first, last - first), until)
        kept = last
        first = first if random.random() < 0.2 else last  # this one seemed to fail

    for after in range(-1, kept, 7):
        found = numbers(await store.events(ann, MINTED, after))
        assert sorted({n for n in found if n > after}) == [*range(after + 1, kept)]


async def test_events_expire_with_the_clock(
    store: RunStore, ann: IsolationKeys, clock: MovableClock, begun: Run, until: float
) -> None:
    await store.begin(ann, MINTED, begun)
    await store.append(ann, MINTED, batch(0, 3), until)
    clock.now = until
    assert await store.events(ann, MINTED, -1) == [batch(0, 3)]

    clock.now += 1

    assert await store.events(ann, MINTED, -1) == []
    assert await store.last_events(ann, MINTED) is None
    run = await store.look(ann, MINTED)
    assert run is not None
    assert run.events_until < clock.now


async def test_events_are_kept_for_longer_than_a_day_where_that_was_asked_for(
    store: RunStore, ann: IsolationKeys, clock: MovableClock
) -> None:
    two_days = clock.now + 48 * 3600
    await store.begin(ann, MINTED, Run(clock.now + 60, events_until=two_days))
    await store.append(ann, MINTED, batch(0, 3), two_days)
    clock.now += 47 * 3600

    await store.begin(ann, "another", Run(clock.now + 60))

    assert await store.events(ann, MINTED, -1) == [batch(0, 3)]


async def test_memory_lets_go_of_what_has_been_over_for_a_day(
    ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    store = InMemoryRunStore(clock=clock)
    await store.begin(ann, MINTED, begun)
    clock.now = begun.events_until + 24 * 3600 + 1

    await store.begin(ann, "another", begun)

    assert await store.look(ann, MINTED) is None


async def test_a_run_that_was_forgotten_is_unknown(
    store: RunStore, ann: IsolationKeys, begun: Run, until: float
) -> None:
    for response_id in (MINTED, "another"):
        await store.begin(ann, response_id, begun)
        await store.append(ann, response_id, batch(0, 3), until)

    await store.forget(ann, MINTED)
    await store.forget(ann, MINTED)

    assert await store.look(ann, MINTED) is None
    assert await store.events(ann, MINTED, -1) == []
    assert await store.last_events(ann, MINTED) is None
    assert await store.events(ann, "another", -1) == [batch(0, 3)]


async def test_forgetting_leaves_nothing_in_the_partition(
    in_table: DynamoDBRunStore, client: Client, ann: IsolationKeys, begun: Run, until: float
) -> None:
    await in_table.begin(ann, MINTED, begun)
    await in_table.append(ann, MINTED, batch(0, 3), until)
    await in_table.append(ann, MINTED, EventBatch(3, LARGE), until)
    assert [*await rows_of(in_table, client, ann)] == [
        "!",
        "E#00000002",
        "E#00000004",
        "E#00000004#001",
        "E#00000004#002",
    ]

    await in_table.forget(ann, MINTED)

    assert await rows_of(in_table, client, ann) == {}


async def test_every_row_expires_in_the_table_too(
    in_table: DynamoDBRunStore,
    client: Client,
    ann: IsolationKeys,
    clock: MovableClock,
    begun: Run,
) -> None:
    await in_table.begin(ann, MINTED, begun)
    await in_table.append(ann, MINTED, EventBatch(0, LARGE), begun.events_until)
    await in_table.claim(ann, MINTED, "me", clock.now + 45)
    await in_table.request_cancel(ann, MINTED)

    rows = await rows_of(in_table, client, ann)

    expiries = {key: int(row["ttl"]["N"]) for key, row in rows.items()}
    # The run outlasts its events: who asks for them is told that they have expired.
    assert expiries.pop("!") == begun.events_until + 24 * 3600
    assert set(expiries.values()) == {int(begun.events_until)}


async def test_what_is_kept_names_nobody_and_shows_no_text(
    in_table: DynamoDBRunStore, client: Client, ann: IsolationKeys, begun: Run, until: float
) -> None:
    said = EventBatch(0, [b'{"delta":"my secret answer"}'])
    await in_table.begin(ann, "my own id", begun)
    await in_table.append(ann, "my own id", said, until)

    shown = str(await rows_of(in_table, client, ann, "my own id"))

    assert "secret" not in shown
    assert "'ann'" not in shown
    assert "my own id" not in shown


# Writes that are cut off, rows that are damaged, reads that lag


@pytest.fixture
def open_store(dynalite_client: Client, clock: MovableClock) -> Callable[..., DynamoDBRunStore]:
    """Return what makes the store of another process on the same rows."""
    secret = own_secret()

    def open_it(client: Client = dynalite_client) -> DynamoDBRunStore:
        return DynamoDBRunStore(client, engines.TABLE, secret=secret, clock=clock)

    return open_it


@pytest.mark.parametrize("kind", ["throttle", "timeout", "timeout_after_success"])
async def test_large_events_that_are_cut_off_anywhere_are_whole_or_not_there(
    fragile_client: Any,
    open_store: Callable[..., DynamoDBRunStore],
    ann: IsolationKeys,
    begun: Run,
    kind: str,
) -> None:
    healthy, fragile, until = open_store(), open_store(fragile_client), begun.events_until
    large = EventBatch(2, LARGE)
    seen: list[Sequence[EventBatch]] = []
    for at in range(3):
        response_id = f"{kind} {at}"
        await healthy.begin(ann, response_id, begun)
        await healthy.append(ann, response_id, batch(0, 2), until)
        with Fault(fragile_client, kind, at), pytest.raises(StoreError):
            await fragile.append(ann, response_id, large, until)
        seen.append(await healthy.events(ann, response_id, -1))
        assert await healthy.last_events(ann, response_id) == seen[-1][-1]

        later = EventBatch(2, [*LARGE, *batch(4, 1).events])
        await healthy.append(ann, response_id, later, until)
        assert (await healthy.events(ann, response_id, 1))[-1] == later
        assert await healthy.last_events(ann, response_id) == later
        await healthy.forget(ann, response_id)
        assert await rows_of(healthy, fragile_client, ann, response_id) == {}

    # Two parts, then the row that says that they are all: only then is there anything.
    is_after = kind == "timeout_after_success"
    assert seen == [[batch(0, 2)]] * 2 + [[batch(0, 2), large] if is_after else [batch(0, 2)]]


Damage = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: {**row, "d": {"B": b"damaged"}},
        lambda row: {**row, "d": {"B": b""}},
        lambda row: {**row, "d": {"B": row["d"]["B"][:-4]}},
        lambda row: {**row, "d": {"B": zlib.compress(b"one event")}},
        lambda row: {**row, "f": {"N": "1"}},
    ],
    ids=["garbage", "empty", "cut off", "another count", "another number"],
)
async def test_damaged_events_are_an_error_and_never_half_told(
    in_table: DynamoDBRunStore,
    client: Client,
    ann: IsolationKeys,
    until: float,
    damage: Damage,
) -> None:
    await in_table.append(ann, MINTED, batch(0, 2), until)
    await in_table.append(ann, MINTED, batch(2, 2), until)
    rows = await rows_of(in_table, client, ann)
    client.put_item(TableName=engines.TABLE, Item=damage(rows["E#00000001"]))

    with pytest.raises(StoreError, match="events"):
        await in_table.events(ann, MINTED, 0)

    assert await in_table.events(ann, MINTED, 1) == [batch(2, 2)]
    assert await in_table.last_events(ann, MINTED) == batch(2, 2)


async def test_events_that_inflate_without_end_are_an_error(
    in_table: DynamoDBRunStore, client: Client, ann: IsolationKeys, begun: Run
) -> None:
    await in_table.begin(ann, MINTED, begun)
    await in_table.append(ann, MINTED, batch(0, 1), begun.events_until)
    row = (await rows_of(in_table, client, ann))["E#00000000"]
    bomb = zlib.compress(b"0" * (2 * 1024 * 1024), 9)
    client.put_item(TableName=engines.TABLE, Item={**row, "d": {"B": bomb}})

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("infra.dynamodb.runs._MAX_INFLATED", 1024 * 1024)
        with pytest.raises(StoreError, match="events"):
            await in_table.events(ann, MINTED, -1)


async def test_a_part_that_is_gone_is_a_gap(
    in_table: DynamoDBRunStore, client: Client, ann: IsolationKeys, begun: Run, until: float
) -> None:
    await in_table.begin(ann, MINTED, begun)
    await in_table.append(ann, MINTED, batch(0, 1), until)
    await in_table.append(ann, MINTED, EventBatch(1, LARGE), until)
    await in_table.append(ann, MINTED, batch(3, 1), until)
    partition = await in_table._partition(ann, MINTED)
    await Table(client, engines.TABLE).delete(partition, "E#00000002#001")

    assert await in_table.events(ann, MINTED, -1) == [batch(0, 1)]
    assert await in_table.events(ann, MINTED, 0) == []
    assert await in_table.last_events(ann, MINTED) == batch(3, 1)


async def test_rows_of_a_batch_have_the_size_that_was_meant(
    in_table: DynamoDBRunStore, client: Client, ann: IsolationKeys, begun: Run, until: float
) -> None:
    await in_table.begin(ann, MINTED, begun)
    await in_table.append(ann, MINTED, EventBatch(0, LARGE), until)

    sizes = [
        len(row["d"]["B"]) for row in (await rows_of(in_table, client, ann)).values() if "d" in row
    ]

    assert [size == PART_BYTES for size in sizes] == [True, True, False]


class Lagging:
    """A client whose eventually consistent reads lack some rows."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.put_item = client.put_item
        self.hidden: set[str] = set()
        self.reads: list[bool] = []

    def query(self, **arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._client.query(**arguments)
        self.reads.append(arguments["ConsistentRead"])
        if not arguments["ConsistentRead"]:
            found["Items"] = [each for each in found["Items"] if each["sk"]["S"] not in self.hidden]
        return found


@pytest.fixture
def lagging(moto_client: Any) -> Lagging:
    return Lagging(moto_client)


@pytest.fixture
def behind(lagging: Any, clock: MovableClock) -> DynamoDBRunStore:
    return DynamoDBRunStore(lagging, engines.TABLE, secret=own_secret(), clock=clock)


@pytest.mark.parametrize("hidden", ["E#00000001", "E#00000003", "E#00000003#001"])
async def test_events_that_a_stale_read_lacks_are_read_again_strongly(
    behind: DynamoDBRunStore, lagging: Lagging, ann: IsolationKeys, until: float, hidden: str
) -> None:
    batches = [batch(0, 2), EventBatch(2, LARGE), batch(4, 1)]
    for each in batches:
        await behind.append(ann, MINTED, each, until)
    lagging.hidden.add(hidden)

    assert await behind.events(ann, MINTED, -1) == batches
    assert lagging.reads == [False, True]


async def test_the_last_events_are_never_stale(
    behind: DynamoDBRunStore, lagging: Lagging, ann: IsolationKeys, until: float
) -> None:
    await behind.append(ann, MINTED, batch(0, 2), until)
    await behind.append(ann, MINTED, batch(2, 2), until)
    lagging.hidden.add("E#00000003")

    assert await behind.last_events(ann, MINTED) == batch(2, 2)
    assert await behind.events(ann, MINTED, -1) == [batch(0, 2)]  # the rest comes with a later look


# What it costs, as dynalite counts it


@pytest.fixture
def meter(metered: tuple[Any, Meter]) -> Meter:
    _, meter = metered
    meter.take()
    return meter


@pytest.fixture
def priced(metered: tuple[Any, Meter], clock: MovableClock) -> DynamoDBRunStore:
    client, _ = metered
    return DynamoDBRunStore(client, engines.TABLE, secret=own_secret(), clock=clock)


async def cost(meter: Meter, call: Awaitable[object]) -> dict[str, list[float]]:
    """Return what one call consumed."""
    meter.take()
    await call
    return meter.take()


async def test_every_change_of_a_run_is_one_small_write(
    priced: DynamoDBRunStore, meter: Meter, ann: IsolationKeys, clock: MovableClock, begun: Run
) -> None:
    owner, later = "0123456789abcdef", clock.now + 45

    assert await cost(meter, priced.begin(ann, MINTED, begun)) == {"PutItem": [1.0]}
    for change in (
        priced.claim(ann, MINTED, owner, later),
        priced.renew(ann, MINTED, owner, later),
        priced.request_cancel(ann, MINTED),
    ):
        assert await cost(meter, change) == {"UpdateItem": [1.0]}


async def test_a_look_at_a_run_is_half_a_unit_and_a_strong_one_is_one(
    priced: DynamoDBRunStore, meter: Meter, ann: IsolationKeys, begun: Run
) -> None:
    await priced.begin(ann, MINTED, begun)

    assert await cost(meter, priced.look(ann, MINTED, is_strong=False)) == {"GetItem": [0.5]}
    assert await cost(meter, priced.look(ann, MINTED)) == {"GetItem": [1.0]}
    assert await cost(meter, priced.look(BOB, MINTED, is_strong=False)) == {"GetItem": [0.5]}


async def test_an_idle_look_for_events_is_half_a_unit_however_many_there_are(
    priced: DynamoDBRunStore, meter: Meter, ann: IsolationKeys, begun: Run, until: float
) -> None:
    await priced.begin(ann, MINTED, begun)
    for after in (-1, 1):
        # Of nothing at all, dynalite says 0; AWS takes half a unit for any Query.
        (units,) = (await cost(meter, priced.events(ann, MINTED, after)))["Query"]
        assert units <= 0.5
        await priced.append(ann, MINTED, EventBatch(0, LARGE), until)


async def test_a_small_batch_of_a_real_stream_is_one_write(
    priced: DynamoDBRunStore, meter: Meter, ann: IsolationKeys, until: float
) -> None:
    assert await cost(meter, priced.append(ann, MINTED, deltas(0, 25), until)) == {"PutItem": [1.0]}


async def test_the_end_of_a_long_stream_costs_half_a_unit_to_read(
    priced: DynamoDBRunStore, meter: Meter, ann: IsolationKeys, until: float
) -> None:
    for first in range(0, 300, 10):
        await priced.append(ann, MINTED, deltas(first, 10), until)

    assert await cost(meter, priced.events(ann, MINTED, 289)) == {"Query": [0.5]}
    assert (await priced.events(ann, MINTED, 289)) == [deltas(290, 10)]
    whole = await cost(meter, priced.events(ann, MINTED, -1))
    assert [*whole] == ["Query"]
    assert sum(whole["Query"]) <= 2.0
    assert await cost(meter, priced.last_events(ann, MINTED)) == {"Query": [1.0, 1.0]}


def deltas(first: int, count: int) -> EventBatch:
    """Return text deltas as the stream makes them, each with a word of its own."""
    event = (
        '{{"type":"response.output_text.delta","sequence_number":{number},"item_id":"msg_{body}0001",'
        '"output_index":0,"content_index":0,"delta":"word{number} ","logprobs":[]}}'
    )
    body = "01" + "5e" * 25
    numbers = range(first, first + count)
    return EventBatch(first, [event.format(number=n, body=body).encode() for n in numbers])
