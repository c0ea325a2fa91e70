"""The contract of `IdempotencyStore`, held against every store; and what it costs in DynamoDB."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest
from msgspec.structs import replace

from channel.isolation import IsolationKeys
from channel.memory_idempotency import InMemoryIdempotencyStore
from channel.ports import StoreError
from channel.responses.idempotency import Claim, Entry, IdempotencyStore, Verdict
from channel.sessions import BeganAt, Forgotten, Head
from infra.dynamodb import keys
from infra.dynamodb.client import Client, Table
from infra.dynamodb.idempotency import DynamoDBIdempotencyStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Fault, Meter, retry_at_once
from tests.infra.turns import own_secret


pytestmark = pytest.mark.anyio

FIRST = Claim(Verdict.FIRST)
IN_PROGRESS = Claim(Verdict.IN_PROGRESS)
MISMATCH = Claim(Verdict.MISMATCH)
BOB = IsolationKeys("bob")
KEY = "a key"
BODY, OTHER_BODY = b"\x01" * 32, b"\x02" * 32
RESPONSE_ID = "resp_" + "01" + "0" * 50


@pytest.fixture(params=["memory", "moto", "dynalite"])
def store(request: pytest.FixtureRequest, clock: MovableClock) -> IdempotencyStore:
    if request.param == "memory":
        return InMemoryIdempotencyStore(clock=clock)
    client = request.getfixturevalue(f"{request.param}_client")
    return DynamoDBIdempotencyStore(client, engines.TABLE, secret=own_secret(), clock=clock)


@pytest.fixture
def entry(clock: MovableClock) -> Callable[..., Entry]:
    def make(token: str, body_hash: bytes = BODY, lasting_s: float = 900.0) -> Entry:
        return Entry(body_hash, token, clock.now + lasting_s)

    return make


MakeEntry = Callable[..., Entry]


async def test_the_first_claim_of_a_key_is_told_from_all_later_ones(
    store: IdempotencyStore, ann: IsolationKeys, entry: MakeEntry
) -> None:
    assert await store.claim(ann, KEY, entry("one")) == FIRST
    assert await store.claim(ann, KEY, entry("two")) == IN_PROGRESS
    assert await store.claim(ann, KEY, entry("three", OTHER_BODY)) == MISMATCH
    assert await store.claim(ann, "another key", entry("two")) == FIRST


async def test_a_finished_claim_gives_its_result_to_the_same_body_only(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.claim(ann, KEY, entry("one"))
    await store.finish(ann, KEY, "one", RESPONSE_ID, clock.now + 1000)

    for token in ("two", "three"):
        assert await store.claim(ann, KEY, entry(token)) == Claim(Verdict.REPLAY, RESPONSE_ID)
    assert await store.claim(ann, KEY, entry("four", OTHER_BODY)) == MISMATCH


async def test_a_result_is_kept_until_its_time_is_over(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.claim(ann, KEY, entry("one"))
    await store.finish(ann, KEY, "one", RESPONSE_ID, clock.now + 1000)
    clock.now += 1000
    assert (await store.claim(ann, KEY, entry("two"))).verdict is Verdict.REPLAY

    clock.now += 1

    assert await store.claim(ann, KEY, entry("three", OTHER_BODY)) == FIRST
    assert await store.claim(ann, KEY, entry("four", OTHER_BODY)) == IN_PROGRESS


async def test_a_claim_that_nobody_finished_in_time_can_be_made_again(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.claim(ann, KEY, entry("crashed", lasting_s=60))
    clock.now += 60
    assert await store.claim(ann, KEY, entry("two")) == IN_PROGRESS

    clock.now += 1

    assert await store.claim(ann, KEY, entry("three", OTHER_BODY)) == FIRST
    assert await store.claim(ann, KEY, entry("four", OTHER_BODY)) == IN_PROGRESS


async def test_times_between_seconds_are_as_good(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    clock.now += 0.7
    await store.claim(ann, KEY, entry("one", lasting_s=60))
    clock.now += 59.9
    assert await store.claim(ann, KEY, entry("two")) == IN_PROGRESS

    clock.now += 1.9

    assert await store.claim(ann, KEY, entry("three")) == FIRST


async def test_who_lost_a_claim_neither_finishes_nor_releases_it(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.claim(ann, KEY, entry("slow", lasting_s=60))
    clock.now += 61
    await store.claim(ann, KEY, entry("second"))

    await store.finish(ann, KEY, "slow", RESPONSE_ID, clock.now + 1000)
    await store.release(ann, KEY, "slow")

    assert await store.claim(ann, KEY, entry("third")) == IN_PROGRESS


async def test_a_released_key_can_be_used_again_with_any_body(
    store: IdempotencyStore, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.claim(ann, KEY, entry("one"))

    await store.release(ann, KEY, "one")
    await store.release(ann, KEY, "one")

    assert await store.claim(ann, KEY, entry("two", OTHER_BODY)) == FIRST


async def test_a_noted_claim_counts_until_its_time_is_over_and_then_tells_what_it_noted(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    claim = entry("crashed", lasting_s=60)
    await store.claim(ann, KEY, claim)
    await store.note(ann, KEY, noted(claim))
    clock.now += 60
    assert await store.claim(ann, KEY, entry("two")) == IN_PROGRESS

    clock.now += 1

    ran_out = Claim(Verdict.RAN_OUT, RESPONSE_ID, "crashed")
    for _ in range(2):
        assert await store.claim(ann, KEY, entry("three")) == ran_out
    assert await store.claim(ann, KEY, entry("four", OTHER_BODY)) == MISMATCH


async def test_a_noted_claim_can_be_finished_and_is_not_released_any_more_then(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    claim = entry("one", lasting_s=60)
    await store.claim(ann, KEY, claim)
    await store.note(ann, KEY, noted(claim))
    clock.now += 61
    await store.finish(ann, KEY, "one", RESPONSE_ID, clock.now + 1000)
    await store.release(ann, KEY, "one")

    assert await store.claim(ann, KEY, entry("two")) == Claim(Verdict.REPLAY, RESPONSE_ID)


@pytest.mark.parametrize("head", [None, RESPONSE_ID, Forgotten("0123456789abcdef")])
async def test_where_in_a_session_a_turn_began_is_kept_with_its_claim_and_its_result(
    store: IdempotencyStore,
    clock: MovableClock,
    ann: IsolationKeys,
    entry: MakeEntry,
    head: Head,
) -> None:
    claim = entry("one", lasting_s=60)
    await store.claim(ann, KEY, claim)
    await store.note(ann, KEY, replace(noted(claim), began_at=BeganAt(head)))
    clock.now += 61
    ran_out = await store.claim(ann, KEY, entry("two"))
    await store.finish(ann, KEY, "one", RESPONSE_ID, clock.now + 1000)

    assert ran_out == Claim(Verdict.RAN_OUT, RESPONSE_ID, "one", BeganAt(head))
    replay = Claim(Verdict.REPLAY, RESPONSE_ID, began_at=BeganAt(head))
    assert await store.claim(ann, KEY, entry("three")) == replay


async def test_a_noted_claim_can_be_released(
    store: IdempotencyStore, ann: IsolationKeys, entry: MakeEntry
) -> None:
    claim = entry("one")
    await store.claim(ann, KEY, claim)
    await store.note(ann, KEY, noted(claim))

    await store.release(ann, KEY, "one")

    assert await store.claim(ann, KEY, entry("two", OTHER_BODY)) == FIRST


async def test_nothing_is_noted_in_place_of_another_claim_or_of_none(
    store: IdempotencyStore, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.note(ann, KEY, noted(entry("lost")))
    assert await store.claim(ann, KEY, entry("one")) == FIRST

    await store.note(ann, KEY, noted(entry("lost", OTHER_BODY)))

    assert await store.claim(ann, KEY, entry("two")) == IN_PROGRESS


def noted(claim: Entry) -> Entry:
    """Return the entry of a claim that names its response, kept for a day."""
    until = claim.until + 86400
    return replace(claim, until=until, response_id=RESPONSE_ID, held_until=claim.until)


async def test_a_finished_key_is_not_released(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.claim(ann, KEY, entry("one"))
    await store.finish(ann, KEY, "one", RESPONSE_ID, clock.now + 1000)

    await store.release(ann, KEY, "one")

    assert (await store.claim(ann, KEY, entry("two"))).verdict is Verdict.REPLAY


async def test_what_was_never_claimed_is_neither_finished_nor_released(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.finish(ann, KEY, "one", RESPONSE_ID, clock.now + 1000)
    await store.release(ann, KEY, "one")

    assert await store.claim(ann, KEY, entry("two")) == FIRST


async def test_the_same_claim_and_the_same_end_may_be_made_twice(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    claim = entry("one")
    assert [await store.claim(ann, KEY, claim) for _ in range(2)] == [FIRST] * 2

    for _ in range(2):
        await store.finish(ann, KEY, "one", RESPONSE_ID, clock.now + 1000)

    assert await store.claim(ann, KEY, entry("two")) == Claim(Verdict.REPLAY, RESPONSE_ID)


@pytest.mark.parametrize("other", [BOB, IsolationKeys("ann", "chat"), IsolationKeys("ann", "")])
async def test_a_key_is_its_tenants_own(
    store: IdempotencyStore,
    clock: MovableClock,
    ann: IsolationKeys,
    other: IsolationKeys,
    entry: MakeEntry,
) -> None:
    await store.claim(ann, KEY, entry("one"))
    await store.finish(other, KEY, "one", RESPONSE_ID, clock.now + 1000)
    await store.release(other, KEY, "one")

    assert await store.claim(other, KEY, entry("two", OTHER_BODY)) == FIRST
    assert await store.claim(ann, KEY, entry("three")) == IN_PROGRESS


async def test_nothing_is_claimed_for_nobody(store: IdempotencyStore, entry: MakeEntry) -> None:
    with pytest.raises(ValueError, match="name none"):
        await store.claim(IsolationKeys(), KEY, entry("one"))


async def test_of_eight_threads_one_is_the_first(
    store: IdempotencyStore, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await asyncio.to_thread(race, store, ann, entry, FIRST)


async def test_of_eight_threads_one_gets_a_key_whose_time_is_over(
    store: IdempotencyStore, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    await store.claim(ann, KEY, entry("crashed", lasting_s=60))
    clock.now += 61

    await asyncio.to_thread(race, store, ann, entry, FIRST)


def race(store: IdempotencyStore, owner: IsolationKeys, entry: MakeEntry, first: Claim) -> None:
    def contend(number: int) -> Claim:
        async def claim() -> Claim:
            return await store.claim(owner, KEY, entry(str(number)))

        return asyncio.run(claim())

    with ThreadPoolExecutor(8) as threads:
        claims = [*threads.map(contend, range(8))]

    assert claims.count(first) == 1
    assert claims.count(IN_PROGRESS) == 7


OpenStore = Callable[[Any], DynamoDBIdempotencyStore]


@pytest.fixture
def open_store(clock: MovableClock) -> OpenStore:
    """Make the store of another process on the same rows."""
    secret = own_secret()

    def open_it(client: Any) -> DynamoDBIdempotencyStore:
        return DynamoDBIdempotencyStore(client, engines.TABLE, secret=secret, clock=clock)

    return open_it


async def test_a_first_claim_is_one_write_and_every_other_step_is_one_too(
    metered: tuple[Any, Meter],
    open_store: OpenStore,
    clock: MovableClock,
    ann: IsolationKeys,
    entry: MakeEntry,
) -> None:
    client, meter = metered
    store = open_store(client)
    key = "~" * 255
    meter.take()

    claim = entry("0" * 16)
    await store.claim(ann, key, claim)
    assert meter.take() == {"PutItem": [1.0]}

    await store.note(ann, key, noted(claim))
    assert meter.take() == {"PutItem": [1.0]}

    await store.finish(ann, key, "0" * 16, RESPONSE_ID, clock.now + 1000)
    assert meter.take() == {"UpdateItem": [1.0]}

    # The meter does not see the write that was refused; dynalite does not say what was in the way.
    await store.claim(ann, key, entry("1" * 16))
    assert meter.take() == {"GetItem": [1.0]}

    await store.claim(ann, "another", entry("2" * 16))
    meter.take()
    await store.release(ann, "another", "2" * 16)
    assert meter.take() == {"DeleteItem": [1.0]}


async def test_an_engine_that_tells_what_is_in_the_way_is_not_asked_again(
    moto_client: Any, open_store: OpenStore, ann: IsolationKeys, entry: MakeEntry
) -> None:
    store = open_store(moto_client)
    await store.claim(ann, KEY, entry("one"))

    with Calls(moto_client) as calls:
        assert await store.claim(ann, KEY, entry("two")) == IN_PROGRESS

    assert calls.names == ["PutItem"]


class Calls:
    """Notes the operations that a client calls, and does something `before` one of them, once."""

    def __init__(self, client: Any, before: dict[str, Callable[[], object]] | None = None) -> None:
        self.names: list[str] = []
        self._before = before or {}
        self._events = client.meta.events

    def __enter__(self) -> Self:
        self._events.register("before-call.dynamodb", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._events.unregister("before-call.dynamodb", self._note)

    def _note(self, model: Any, **_: Any) -> None:
        self.names.append(model.name)
        self._before.pop(model.name, lambda: None)()


async def test_a_key_that_is_released_while_it_is_looked_at_is_claimed(
    dynalite_client: Any, open_store: OpenStore, ann: IsolationKeys, entry: MakeEntry
) -> None:
    store = open_store(dynalite_client)
    await store.claim(ann, KEY, entry("one"))

    def release() -> None:
        asyncio.run(store.release(ann, KEY, "one"))

    with Calls(dynalite_client, {"GetItem": release}) as calls:
        assert await store.claim(ann, KEY, entry("two")) == FIRST

    assert calls.names == ["PutItem", "GetItem", "DeleteItem", "PutItem"]


async def test_a_claim_whose_write_was_made_but_timed_out_is_no_conflict_with_itself(
    dynalite_endpoint: str,
    dynalite_client: Any,
    open_store: OpenStore,
    ann: IsolationKeys,
    entry: MakeEntry,
) -> None:
    with engines.connected(None, dynalite_endpoint, attempts=2) as client:
        retry_at_once(client)

        with Fault(client, "timeout_after_success", 0) as fault:
            claim = await open_store(client).claim(ann, KEY, entry("one"))

    assert fault.calls == 2
    assert claim == FIRST
    assert await open_store(dynalite_client).claim(ann, KEY, entry("two")) == IN_PROGRESS


@pytest.mark.parametrize("kind", ["throttle", "timeout", "timeout_after_success"])
async def test_an_end_whose_write_failed_is_an_error_or_was_made_and_may_be_repeated(
    fragile_client: Any,
    dynalite_client: Any,
    open_store: OpenStore,
    ann: IsolationKeys,
    kind: str,
) -> None:
    fragile, healthy = open_store(fragile_client), open_store(dynalite_client)
    await healthy.claim(ann, KEY, Entry(BODY, "one", 1_800_000_900.0))
    end = (ann, KEY, "one", RESPONSE_ID, 1_800_001_000.0)

    with Fault(fragile_client, kind, 0), pytest.raises(StoreError):
        await fragile.finish(*end)
    await healthy.finish(*end)

    claim = await healthy.claim(ann, KEY, Entry(BODY, "two", 1_800_000_900.0))
    assert claim.verdict is Verdict.REPLAY


async def test_neither_the_key_nor_whose_it_is_stands_in_the_table(
    dynalite_client: Client, clock: MovableClock, ann: IsolationKeys, entry: MakeEntry
) -> None:
    secret = own_secret()
    store = DynamoDBIdempotencyStore(dynalite_client, engines.TABLE, secret=secret, clock=clock)
    await store.claim(ann, "order of ann", entry("one"))

    partition = keys.idempotency_partition(keys.tenant_tag(await secret(), ann), "order of ann")
    (row,) = await Table(dynalite_client, engines.TABLE).query(partition, is_strong=True)

    assert row == {
        "pk": {"S": partition},
        "sk": {"S": "!"},
        "h": {"B": BODY},
        "tok": {"S": "one"},
        "ttl": {"N": "1800000900"},
    }
    assert "ann" not in partition
    assert partition.startswith("t#")
    assert len(partition) == len("t#") + 22 + len("#k#") + 32
