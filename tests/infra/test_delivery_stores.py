"""The contracts of `IdentityStore` and `UndeliveredStore`, held against every store; and what they cost."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import pytest
from msgspec.structs import replace

from channel.delivery import (
    NOTHING_LINKED,
    Delivery,
    IdentityStore,
    Linked,
    Undelivered,
    UndeliveredStore,
)
from channel.isolation import IsolationKeys
from channel.memory_delivery import InMemoryIdentityStore, InMemoryUndeliveredStore
from channel.ports import StoreError, TurnTooLargeError, random_hex
from channel.targets import ChannelIdentity
from infra.dynamodb import blobs, keys
from infra.dynamodb.client import Client, Table
from infra.dynamodb.identities import CorruptIdentityError, DynamoDBIdentityStore
from infra.dynamodb.undelivered import DynamoDBUndeliveredStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import KINDS, Died, Fault, Meter
from tests.infra.turns import noise, own_secret


pytestmark = pytest.mark.anyio

RETENTION_S = 1000.0
WEEK_S = 7 * 24 * 3600
TELEGRAM = ChannelIdentity("telegram", "123", {"name": "Ann"})
SLACK = ChannelIdentity("slack", "U1")
LARGE = noise(5_000_000)
"""A text that takes many rows, however well it is compressed."""


@pytest.fixture(params=["moto", "dynalite"])
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.getfixturevalue(f"{request.param}_client")
    return found


async def fails(operation: Awaitable[object]) -> bool:
    try:
        await operation
    except (StoreError, Died):
        return True
    return False


# Identities

OpenIdentities = Callable[[Any], DynamoDBIdentityStore]


@pytest.fixture
def open_identities(clock: MovableClock) -> OpenIdentities:
    """Make the store of another process on the same rows."""
    secret = own_secret()

    def open_it(client: Any) -> DynamoDBIdentityStore:
        return DynamoDBIdentityStore(
            client, engines.TABLE, secret=secret, retention_s=RETENTION_S, clock=clock
        )

    return open_it


@pytest.fixture(params=["memory", "moto", "dynalite"])
def identities(
    request: pytest.FixtureRequest, clock: MovableClock, open_identities: OpenIdentities
) -> IdentityStore:
    if request.param == "memory":
        return InMemoryIdentityStore(clock=clock, retention_s=RETENTION_S)
    return open_identities(request.getfixturevalue(f"{request.param}_client"))


def linked(*each: ChannelIdentity, active: ChannelIdentity | None = None) -> Linked:
    """Return what is known of somebody with these identities, the last of them active if no other."""
    return Linked({one.channel: one for one in each}, (active or each[-1]).channel)


async def row_of(store: DynamoDBIdentityStore, isolation: IsolationKeys) -> dict[str, Any]:
    row = await store._table.get(await store._partition(isolation), keys.ONLY_ROW)
    assert row is not None
    return row


async def test_nothing_is_known_of_somebody_new(
    identities: IdentityStore, ann: IsolationKeys
) -> None:
    assert await identities.linked(ann) == NOTHING_LINKED


async def test_recording_returns_what_was_known_before_and_makes_the_channel_active(
    identities: IdentityStore, ann: IsolationKeys
) -> None:
    moved = ChannelIdentity("telegram", "456")

    before = [await identities.record(ann, each) for each in (TELEGRAM, SLACK, moved)]

    assert before == [NOTHING_LINKED, linked(TELEGRAM), linked(TELEGRAM, SLACK)]
    assert await identities.linked(ann) == linked(SLACK, moved)


async def test_the_same_identity_again_becomes_the_active_one(
    identities: IdentityStore, ann: IsolationKeys
) -> None:
    for each in (TELEGRAM, SLACK, TELEGRAM):
        await identities.record(ann, each)

    assert await identities.linked(ann) == linked(TELEGRAM, SLACK, active=TELEGRAM)


@pytest.mark.parametrize(
    "identity",
    [
        ChannelIdentity("chat", "42:7", {"näme": "Zoë 🌍", "deep": {"a": [1, 2.5, None, {"b": True}]}}),
        ChannelIdentity("chat", "x" * 512, MappingProxyType({"text": 'a"\\\n\x00'})),
        ChannelIdentity("my.channel-2 #ü", "id", {}),
        ChannelIdentity("ttl", "pk", {"act": ":now"}),
        ChannelIdentity("x" * 64, "id", {"long": "y" * 2000}),
    ],
    ids=["nested", "escapes", "odd-name", "names-of-ours", "long"],
)  # fmt: skip
async def test_an_identity_is_read_as_it_was_recorded(
    identities: IdentityStore, ann: IsolationKeys, identity: ChannelIdentity
) -> None:
    await identities.record(ann, identity)

    assert await identities.linked(ann) == linked(identity)


@pytest.mark.parametrize(
    "other",
    [
        IsolationKeys("bob"),
        IsolationKeys("ann", "chat"),
        IsolationKeys("ann", ""),
        IsolationKeys("ann/user"),
        IsolationKeys("ann/user", "chat"),
    ],
)
async def test_identities_are_their_tenants_users_and_chats_own(
    identities: IdentityStore, ann: IsolationKeys, other: IsolationKeys
) -> None:
    await identities.record(ann, TELEGRAM)

    assert await identities.linked(other) == NOTHING_LINKED
    assert not await identities.unlink(other, "telegram")
    assert await identities.record(other, TELEGRAM) == NOTHING_LINKED
    await identities.record(other, SLACK)
    assert await identities.unlink(other, "telegram")
    assert await identities.linked(ann) == linked(TELEGRAM)
    assert await identities.linked(other) == linked(SLACK)


async def test_nothing_is_linked_for_nobody(identities: IdentityStore) -> None:
    for call in (
        identities.record(IsolationKeys(), TELEGRAM),
        identities.linked(IsolationKeys()),
        identities.unlink(IsolationKeys(), "telegram"),
    ):
        with pytest.raises(ValueError, match="name none"):
            await call


async def test_an_unlinked_identity_is_gone_and_no_longer_active(
    identities: IdentityStore, ann: IsolationKeys
) -> None:
    for each in (TELEGRAM, SLACK):
        await identities.record(ann, each)

    assert await identities.unlink(ann, "slack")

    assert await identities.linked(ann) == Linked({"telegram": TELEGRAM}, None)
    assert not await identities.unlink(ann, "slack")
    assert await identities.unlink(ann, "telegram")
    assert await identities.linked(ann) == NOTHING_LINKED
    assert await identities.record(ann, SLACK) == NOTHING_LINKED


async def test_unlinking_another_channel_leaves_the_active_one(
    identities: IdentityStore, ann: IsolationKeys
) -> None:
    for each in (TELEGRAM, SLACK):
        await identities.record(ann, each)

    assert await identities.unlink(ann, "telegram")

    assert await identities.linked(ann) == linked(SLACK)
    assert not await identities.unlink(ann, "unknown")


async def test_what_is_linked_is_kept_until_nothing_was_recorded_for_a_time(
    identities: IdentityStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    await identities.record(ann, TELEGRAM)
    clock.now += RETENTION_S
    assert await identities.record(ann, SLACK) == linked(TELEGRAM)
    clock.now += RETENTION_S
    assert await identities.linked(ann) == linked(TELEGRAM, SLACK)

    clock.now += 1.5

    assert await identities.linked(ann) == NOTHING_LINKED
    assert not await identities.unlink(ann, "slack")


async def test_what_has_expired_does_not_come_back_with_the_next_identity(
    identities: IdentityStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    for each in (TELEGRAM, SLACK):
        await identities.record(ann, each)
    clock.now += RETENTION_S + 1

    email = ChannelIdentity("email", "ann@example.com")
    assert await identities.record(ann, email) == NOTHING_LINKED

    assert await identities.linked(ann) == linked(email)
    assert await identities.record(ann, SLACK) == linked(email)


async def test_unlinking_does_not_keep_the_rest_for_longer(
    identities: IdentityStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    for each in (TELEGRAM, SLACK):
        await identities.record(ann, each)
    clock.now += RETENTION_S

    assert await identities.unlink(ann, "slack")

    clock.now += 1
    assert await identities.linked(ann) == NOTHING_LINKED


@pytest.mark.parametrize("has_expired", [False, True])
async def test_of_identities_that_are_recorded_at_once_none_is_lost(
    identities: IdentityStore, clock: MovableClock, ann: IsolationKeys, *, has_expired: bool
) -> None:
    if has_expired:
        await identities.record(ann, TELEGRAM)
        clock.now += RETENTION_S + 1
    named = [ChannelIdentity(f"channel-{number}", str(number)) for number in range(8)]

    befores = await asyncio.to_thread(recorded_at_once, identities, ann, named)

    found = await identities.linked(ann)
    assert found.identities == {each.channel: each for each in named}
    # As if one after the other: each knew what those before it had recorded, and which was the last.
    befores.sort(key=lambda before: len(before.identities))
    assert [len(before.identities) for before in befores] == [*range(8)]
    for before, after in zip(befores, [*befores[1:], found], strict=True):
        assert {*after.identities} == {*before.identities, after.active}


def recorded_at_once(
    store: IdentityStore, isolation: IsolationKeys, named: list[ChannelIdentity]
) -> list[Linked]:
    def record(identity: ChannelIdentity) -> Linked:
        async def recording() -> Linked:
            return await store.record(isolation, identity)

        return asyncio.run(recording())

    with ThreadPoolExecutor(len(named)) as threads:
        return [*threads.map(record, named)]


async def test_what_one_process_records_another_reads(
    client: Client, open_identities: OpenIdentities, ann: IsolationKeys
) -> None:
    await open_identities(client).record(ann, TELEGRAM)

    other = open_identities(client)

    assert await other.linked(ann) == linked(TELEGRAM)
    assert await other.unlink(ann, "telegram")
    assert await open_identities(client).linked(ann) == NOTHING_LINKED


class Instead:
    """Does something else just before the first calls of one operation."""

    def __init__(
        self, client: Any, operation: str, do: Callable[[], Awaitable[object]], *, times: int = 1
    ) -> None:
        self._event = f"before-call.dynamodb.{operation}"
        self._events = client.meta.events
        self._left = [do] * times

    def __enter__(self) -> None:
        self._events.register(self._event, self._strike)

    def __exit__(self, *_: object) -> None:
        self._events.unregister(self._event, self._strike)

    def _strike(self, **_: Any) -> None:
        if self._left:
            asyncio.run(awaited(self._left.pop()()))


async def awaited(operation: Awaitable[object]) -> None:
    await operation


async def test_what_another_records_in_place_of_expired_identities_is_not_replaced(
    client: Any, open_identities: OpenIdentities, clock: MovableClock, ann: IsolationKeys
) -> None:
    store = open_identities(client)
    await store.record(ann, TELEGRAM)
    clock.now += RETENTION_S + 1

    with Instead(client, "PutItem", lambda: store.record(ann, SLACK)):
        before = await store.record(ann, TELEGRAM)

    assert before == linked(SLACK)
    assert await store.linked(ann) == linked(SLACK, TELEGRAM)


async def test_a_channel_that_becomes_active_while_it_is_unlinked_is_not_active_afterwards(
    client: Any, open_identities: OpenIdentities, ann: IsolationKeys
) -> None:
    store = open_identities(client)
    await store.record(ann, TELEGRAM)
    await store.record(ann, SLACK)

    with Instead(client, "UpdateItem", lambda: store.record(ann, TELEGRAM)):
        assert await store.unlink(ann, "telegram")

    assert await store.linked(ann) == Linked({"slack": SLACK}, None)


async def test_an_identity_that_another_unlinks_first_is_unlinked(
    client: Any, open_identities: OpenIdentities, ann: IsolationKeys
) -> None:
    store = open_identities(client)
    await store.record(ann, TELEGRAM)

    with Instead(client, "UpdateItem", lambda: store.unlink(ann, "telegram")):
        assert await store.unlink(ann, "telegram")

    assert await store.linked(ann) == NOTHING_LINKED


async def test_a_record_or_an_unlinking_that_others_always_overtake_is_a_store_error(
    fragile_client: Any, dynalite_client: Any, open_identities: OpenIdentities, ann: IsolationKeys
) -> None:
    store, other = open_identities(fragile_client), open_identities(dynalite_client)
    for each in (SLACK, TELEGRAM):
        await other.record(ann, each)
    row = await row_of(other, ann)

    async def expire() -> None:
        await other._table.put({**row, "ttl": {"N": "1"}})

    async def renew() -> None:
        await other._table.put(row)

    async def switch() -> None:
        is_slack = (await other.linked(ann)).active == "slack"
        await other.record(ann, TELEGRAM if is_slack else SLACK)

    with (
        Instead(fragile_client, "UpdateItem", expire, times=99),
        Instead(fragile_client, "PutItem", renew, times=99),
        pytest.raises(StoreError, match="at the same time"),
    ):
        await store.record(ann, SLACK)
    with (
        Instead(fragile_client, "UpdateItem", switch, times=99),
        pytest.raises(StoreError, match="again and again"),
    ):
        await store.unlink(ann, "slack")


async def test_an_identity_of_a_caller_costs_one_write_and_one_read(
    metered: tuple[Any, Meter],
    open_identities: OpenIdentities,
    clock: MovableClock,
    ann: IsolationKeys,
) -> None:
    client, meter = metered
    store = open_identities(client)
    meter.take()

    for each in (TELEGRAM, SLACK, TELEGRAM):
        await store.record(ann, each)
        assert meter.take() == {"UpdateItem": [1.0]}

    await store.linked(ann)
    assert meter.take() == {"GetItem": [1.0]}

    await store.unlink(ann, "slack")
    assert meter.take() == {"GetItem": [1.0], "UpdateItem": [1.0]}

    clock.now += RETENTION_S + 1
    await store.record(ann, SLACK)
    assert meter.take() == {
        "PutItem": [1.0]
    }  # and the refused update, which the meter does not see


async def test_the_row_is_one_that_names_nobody(
    client: Client, open_identities: OpenIdentities, clock: MovableClock, ann: IsolationKeys
) -> None:
    store = open_identities(client)
    await store.record(ann, TELEGRAM)
    await store.record(ann, SLACK)

    row = await row_of(store, ann)

    assert {*row} == {"pk", "sk", "c#telegram", "c#slack", "act", "ttl"}
    assert row["pk"]["S"] == keys.identities_partition(keys.tenant_tag(await store._secret(), ann))
    assert (row["act"], row["sk"]) == ({"S": "slack"}, {"S": "!"})
    assert row["ttl"] == {"N": str(int(clock.now + RETENTION_S))}
    assert "ann" not in row["pk"]["S"]


async def test_a_damaged_identity_is_a_store_error(
    client: Client, open_identities: OpenIdentities, ann: IsolationKeys
) -> None:
    store = open_identities(client)
    await store.record(ann, TELEGRAM)
    row = await row_of(store, ann)
    await store._table.put({**row, "c#telegram": {"B": b'{"channel":1}'}})

    with pytest.raises(CorruptIdentityError):
        await store.linked(ann)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_record_that_is_cut_off_was_made_or_not_and_may_be_repeated(
    fragile_client: Any,
    dynalite_client: Any,
    open_identities: OpenIdentities,
    ann: IsolationKeys,
    kind: str,
) -> None:
    fragile, healthy = open_identities(fragile_client), open_identities(dynalite_client)
    await healthy.record(ann, TELEGRAM)

    with Fault(fragile_client, kind, 0):
        assert await fails(fragile.record(ann, SLACK))

    is_made = kind.endswith("after_success")
    assert await healthy.linked(ann) == (linked(TELEGRAM, SLACK) if is_made else linked(TELEGRAM))
    await healthy.record(ann, SLACK)
    assert await healthy.linked(ann) == linked(TELEGRAM, SLACK)


@pytest.mark.parametrize("at", [0, 1])
async def test_an_unlinking_that_fails_is_a_store_error_and_may_be_repeated(
    fragile_client: Any,
    dynalite_client: Any,
    open_identities: OpenIdentities,
    ann: IsolationKeys,
    at: int,
) -> None:
    fragile, healthy = open_identities(fragile_client), open_identities(dynalite_client)
    await healthy.record(ann, TELEGRAM)

    with Fault(fragile_client, "throttle", at), pytest.raises(StoreError):
        await fragile.unlink(ann, "telegram")

    assert await healthy.unlink(ann, "telegram")


async def test_a_table_of_identities_that_is_not_there_is_a_store_error(
    moto_client: Any, ann: IsolationKeys
) -> None:
    missing = DynamoDBIdentityStore(moto_client, "no-such-table", secret=own_secret())

    for call in (missing.record(ann, SLACK), missing.linked(ann), missing.unlink(ann, "slack")):
        with pytest.raises(StoreError):
            await call


async def test_memory_forgets_whom_it_heard_of_least_recently(
    clock: MovableClock, ann: IsolationKeys
) -> None:
    store = InMemoryIdentityStore(clock=clock, max_keys=2)
    bob, cid = IsolationKeys("bob"), IsolationKeys("cid")
    await store.record(ann, SLACK)
    await store.record(bob, SLACK)
    await store.linked(ann)

    await store.record(cid, SLACK)

    assert await store.linked(bob) == NOTHING_LINKED
    assert await store.linked(ann) == await store.linked(cid) == linked(SLACK)


# What did not arrive

OpenUndelivered = Callable[[Any], DynamoDBUndeliveredStore]


@pytest.fixture
def open_undelivered(clock: MovableClock) -> OpenUndelivered:
    """Make the store of another process on the same rows."""

    def open_it(client: Any) -> DynamoDBUndeliveredStore:
        return DynamoDBUndeliveredStore(client, engines.TABLE, clock=clock)

    return open_it


@pytest.fixture(params=["memory", "moto", "dynalite"])
def undelivered(
    request: pytest.FixtureRequest, clock: MovableClock, open_undelivered: OpenUndelivered
) -> UndeliveredStore:
    if request.param == "memory":
        return InMemoryUndeliveredStore(clock=clock)
    return open_undelivered(request.getfixturevalue(f"{request.param}_client"))


@pytest.fixture
def acme() -> str:
    """Return a principal of this test's own."""
    return f"acme-{random_hex(8)}"


def missed(
    principal: str, clock: MovableClock, number: int = 0, *, text: str = "Hello!", **fields: Any
) -> Undelivered:
    """Return a delivery of that number which did not arrive now."""
    delivery = Delivery(
        id=f"dlv_{number:032x}",
        response_id="resp_1",
        status="completed",
        text=text,
        channel="responses",
        principal=principal,
        keys=IsolationKeys(f"{principal}/ann", "chat"),
        created_at=int(clock.now),
    )
    given = {"reason": "HTTP 500", "attempts": 1, "at": clock.now, **fields}
    return Undelivered(delivery=delivery, identity=TELEGRAM, **given)


async def rows_of(client: Client, principal: str) -> list[str]:
    """Return the sort keys of all that is in the table of a principal's deliveries."""
    partition = keys.principal_partition("undelivered", principal)
    rows = await Table(client, engines.TABLE).query(partition, is_strong=True)
    return [row["sk"]["S"] for row in rows]


async def test_nothing_is_undelivered_of_somebody_new(
    undelivered: UndeliveredStore, acme: str
) -> None:
    assert await undelivered.get(acme, "dlv_1") is None
    assert [*await undelivered.all_of(acme)] == []
    await undelivered.drop(acme, "dlv_1")


async def test_what_did_not_arrive_is_kept_as_it_is(
    undelivered: UndeliveredStore, clock: MovableClock, acme: str
) -> None:
    clock.now += 0.25
    kept = missed(acme, clock, text='Zoë 🌍 "\\\n\x00', is_dead=True, attempts=5)

    await undelivered.keep(kept)

    assert await undelivered.get(acme, kept.delivery.id) == kept
    assert [*await undelivered.all_of(acme)] == [kept]


async def test_a_text_of_5_mb_is_kept_replaced_and_dropped(
    undelivered: UndeliveredStore, clock: MovableClock, acme: str
) -> None:
    kept = missed(acme, clock, text=LARGE)
    await undelivered.keep(kept)
    assert await undelivered.get(acme, kept.delivery.id) == kept

    again = replace(kept, attempts=2, is_dead=True)
    await undelivered.keep(again)
    assert [*await undelivered.all_of(acme)] == [again]

    await undelivered.drop(acme, kept.delivery.id)
    assert await undelivered.get(acme, kept.delivery.id) is None
    assert [*await undelivered.all_of(acme)] == []


async def test_the_chunks_of_what_was_replaced_or_dropped_are_erased(
    client: Client, open_undelivered: OpenUndelivered, clock: MovableClock, acme: str
) -> None:
    store = open_undelivered(client)
    large = missed(acme, clock, text=noise(700_000))

    await store.keep(large)
    chunked = await rows_of(client, acme)
    await store.keep(large)
    assert await rows_of(client, acme) == chunked
    await store.keep(replace(large, attempts=2))
    replaced = await rows_of(client, acme)
    assert len(replaced) == len(chunked) > 2
    assert {*replaced} & {*chunked} == {f"D#{large.delivery.id}"}
    await store.keep(missed(acme, clock))
    assert await rows_of(client, acme) == [f"D#{large.delivery.id}"]
    await store.keep(large)
    await store.drop(acme, large.delivery.id)

    assert await rows_of(client, acme) == []


async def test_all_are_listed_oldest_first(
    undelivered: UndeliveredStore, clock: MovableClock, acme: str
) -> None:
    later = missed(acme, clock, 1, at=clock.now + 0.5)
    latest = missed(acme, clock, 0, at=clock.now + 1)
    oldest = missed(acme, clock, 2)
    for each in (later, latest, oldest):
        await undelivered.keep(each)

    assert [*await undelivered.all_of(acme)] == [oldest, later, latest]

    tried = replace(oldest, attempts=2, at=clock.now + 2)
    await undelivered.keep(tried)
    assert [*await undelivered.all_of(acme)] == [later, latest, tried]


async def test_what_was_not_tried_for_a_week_is_not_there_any_more(
    undelivered: UndeliveredStore, clock: MovableClock, acme: str
) -> None:
    first = missed(acme, clock, 1)
    await undelivered.keep(first)
    clock.now += WEEK_S
    second = missed(acme, clock, 2)
    await undelivered.keep(second)
    assert [*await undelivered.all_of(acme)] == [first, second]

    clock.now += 1

    assert await undelivered.get(acme, first.delivery.id) is None
    assert [*await undelivered.all_of(acme)] == [second]
    await undelivered.keep(replace(first, at=clock.now))
    assert len(await undelivered.all_of(acme)) == 2


async def test_another_principals_are_not_there(
    undelivered: UndeliveredStore, clock: MovableClock, acme: str
) -> None:
    kept = missed(acme, clock)
    others = [f"{acme}#", f"{acme}%23", f"{acme} \ud800", f"{acme}é", acme.upper()]
    for each in [kept, *[missed(other, clock) for other in others[:2]]]:
        await undelivered.keep(each)

    for other in others:
        await undelivered.drop(other, kept.delivery.id)
        assert await undelivered.get(other, kept.delivery.id) is None
        assert [*await undelivered.all_of(other)] == []

    assert [*await undelivered.all_of(acme)] == [kept]


async def test_what_one_process_keeps_another_reads_and_drops(
    client: Client, open_undelivered: OpenUndelivered, clock: MovableClock, acme: str
) -> None:
    kept = missed(acme, clock)
    await open_undelivered(client).keep(kept)

    other = open_undelivered(client)

    assert await other.get(acme, kept.delivery.id) == kept
    await other.drop(acme, kept.delivery.id)
    assert await open_undelivered(client).get(acme, kept.delivery.id) is None


async def test_a_reader_that_a_replacement_overtakes_reads_the_replacement(
    client: Any, open_undelivered: OpenUndelivered, clock: MovableClock, acme: str
) -> None:
    store = open_undelivered(client)
    kept = missed(acme, clock, text=noise(700_000))
    again = replace(kept, attempts=2)
    await store.keep(kept)

    with Instead(client, "Query", lambda: store.keep(again)):  # after the row was read
        assert await store.get(acme, kept.delivery.id) == again
    with Instead(client, "Query", lambda: store.drop(acme, kept.delivery.id)):
        assert await store.get(acme, kept.delivery.id) is None


async def test_what_is_not_there_as_a_whole_is_a_store_error_and_hides_no_other(
    client: Any, open_undelivered: OpenUndelivered, clock: MovableClock, acme: str
) -> None:
    store = open_undelivered(client)
    kept = missed(acme, clock, text=noise(700_000))
    await store.keep(kept)
    chunk, *_ = [key for key in await rows_of(client, acme) if key.startswith("C")]
    await store._table.delete(keys.principal_partition("undelivered", acme), chunk)

    with pytest.raises(blobs.CorruptBlobError):
        await store.get(acme, kept.delivery.id)
    other = missed(acme, clock, text="short", number=2)
    await store.keep(other)
    assert await store.all_of(acme) == [other]


async def test_a_reply_that_is_too_large_to_keep_is_a_store_error(
    moto_client: Any, open_undelivered: OpenUndelivered, clock: MovableClock, acme: str
) -> None:
    with pytest.raises(TurnTooLargeError):
        await open_undelivered(moto_client).keep(missed(acme, clock, text=noise(9_000_000)))


async def test_a_small_one_costs_one_unit_to_keep_to_read_and_to_drop(
    metered: tuple[Any, Meter], open_undelivered: OpenUndelivered, clock: MovableClock, acme: str
) -> None:
    client, meter = metered
    store = open_undelivered(client)
    kept = missed(acme, clock)
    meter.take()

    for each in (kept, replace(kept, attempts=2)):
        await store.keep(each)
        assert meter.take() == {"PutItem": [1.0]}
    await store.get(acme, kept.delivery.id)
    assert meter.take() == {"GetItem": [1.0]}
    await store.all_of(acme)
    assert meter.take() == {"Query": [1.0]}
    await store.drop(acme, kept.delivery.id)
    assert meter.take() == {"DeleteItem": [1.0]}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_replacement_that_is_cut_off_anywhere_leaves_one_or_the_other(
    fragile_client: Any,
    dynalite_client: Any,
    open_undelivered: OpenUndelivered,
    clock: MovableClock,
    acme: str,
    *,
    kind: str,
) -> None:
    fragile, healthy = open_undelivered(fragile_client), open_undelivered(dynalite_client)
    kept = missed(acme, clock, text=noise(330_000))
    at = 0
    while True:
        await healthy.keep(kept)
        again = replace(kept, attempts=2 + at)
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(fragile.keep(again))
        found = await healthy.get(acme, kept.delivery.id)
        if not fault.has_struck:
            break
        assert failed
        assert found in (kept, again)
        await healthy.keep(again)
        assert [*await healthy.all_of(acme)] == [again]
        at += 1

    assert found == again
    assert at == 5  # two chunks, the row, two chunks of what it replaced


@pytest.mark.parametrize("kind", KINDS)
async def test_a_drop_that_is_cut_off_anywhere_can_be_repeated(
    fragile_client: Any,
    dynalite_client: Any,
    open_undelivered: OpenUndelivered,
    clock: MovableClock,
    acme: str,
    *,
    kind: str,
) -> None:
    fragile, healthy = open_undelivered(fragile_client), open_undelivered(dynalite_client)
    kept = missed(acme, clock, text=noise(330_000))
    for at in range(3):  # the row, two chunks
        await healthy.keep(kept)
        with Fault(fragile_client, kind, at):
            assert await fails(fragile.drop(acme, kept.delivery.id))
        assert await healthy.get(acme, kept.delivery.id) in (kept, None)
        await healthy.drop(acme, kept.delivery.id)
        assert await healthy.get(acme, kept.delivery.id) is None


async def test_a_damaged_one_is_a_store_error(
    client: Client, open_undelivered: OpenUndelivered, acme: str
) -> None:
    store = open_undelivered(client)
    partition = keys.principal_partition("undelivered", acme)
    await blobs.write(store._table, partition, "D#dlv_1", blobs.pack(b"[]"), 1 << 40)

    with pytest.raises(blobs.CorruptBlobError):
        await store.get(acme, "dlv_1")


async def test_a_table_of_deliveries_that_is_not_there_is_a_store_error(
    moto_client: Any, clock: MovableClock
) -> None:
    missing = DynamoDBUndeliveredStore(moto_client, "no-such-table")

    for call in (
        missing.keep(missed("acme", clock)),
        missing.get("acme", "dlv_1"),
        missing.drop("acme", "dlv_1"),
        missing.all_of("acme"),
    ):
        with pytest.raises(StoreError):
            await call


async def test_memory_drops_the_oldest_and_says_so(
    clock: MovableClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = InMemoryUndeliveredStore(clock=clock, limit=2)
    first, second, third = [
        missed("acme", clock, number, at=clock.now + number, text="a secret") for number in range(3)
    ]

    with caplog.at_level(logging.WARNING):
        for each in (second, first, third):
            await store.keep(each)

    assert [*await store.all_of("acme")] == [second, third]
    (record,) = caplog.records
    assert record.getMessage() == "an undelivered reply was dropped"
    assert vars(record)["delivery"] == first.delivery.id
    assert "a secret" not in str(vars(record))


def test_no_principals_name_leads_to_rows_of_another_kind() -> None:
    """A policy can tell rows apart by the beginning of their partition only."""
    for name in ("key#1", "../hook#1", "cfg#keys", "*"):
        partition = keys.principal_partition("undelivered", name)

        assert partition.startswith("undelivered#")
        assert partition.count("#") == 1
        assert not {*partition} & {*"*/"}
