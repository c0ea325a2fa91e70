"""What only the DynamoDB store of conversations does: what it costs, and what it leaves when it is cut off."""

from typing import Any, NamedTuple, Protocol

import pytest

from channel import room
from channel.conversations import ConversationLockedError, ConversationStore
from channel.isolation import IsolationKeys
from channel.ports import Branch, HistoryTooLargeError, StoreError
from channel.responses.protocol.items import message, text_of
from channel.responses.protocol.response import Status
from infra.dynamodb import conversations as module, keys, turns
from infra.dynamodb.client import Client, Table
from infra.dynamodb.conversations import DynamoDBConversationStore
from infra.dynamodb.store import DynamoDBResponseStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import KINDS, Died, Fault, Meter
from tests.infra.prose import question_and_answer
from tests.infra.turns import noise, own_secret, turn


pytestmark = pytest.mark.anyio

HELLO = message("user", "Hello!")


class Stores(NamedTuple):
    conversations: DynamoDBConversationStore
    responses: DynamoDBResponseStore


class Open(Protocol):
    """Makes the stores of another process on the same rows."""

    def __call__(self, client: Client | None = None) -> Stores: ...


@pytest.fixture
def open_stores(dynalite_client: Client, clock: MovableClock) -> Open:
    secret = own_secret()

    def open_them(client: Client | None = None) -> Stores:
        used = client or dynalite_client
        return Stores(
            DynamoDBConversationStore(used, engines.TABLE, secret=secret, clock=clock),
            DynamoDBResponseStore(used, engines.TABLE, secret=secret, clock=clock),
        )

    return open_them


@pytest.fixture
def stores(metered: tuple[Any, Meter], open_stores: Open) -> Stores:
    client, _ = metered
    return open_stores(client)


@pytest.fixture
def meter(metered: tuple[Any, Meter]) -> Meter:
    _, meter = metered
    meter.take()
    return meter


async def speak(stores: Stores, isolation: IsolationKeys, name: str, number: int = 0) -> str:
    """Add a turn of 1 KB of text, and return the id of its response."""
    branch = await stores.conversations.enter(isolation, name, "me", 2e9)
    assert branch is not None
    question, said = question_and_answer(number)
    kept = turn(branch, said, question=question, previous_response_id=None)
    await stores.responses.save(isolation, branch, kept)
    await stores.conversations.leave(isolation, name, "me")
    return kept.response.id


async def shown(store: ConversationStore, isolation: IsolationKeys, name: str) -> list[str] | None:
    """Return the texts of a conversation's items, oldest first, or None where it is gone."""
    page = await store.page(isolation, name, limit=100, order="asc", after=None)
    return [text_of(item) for item in page.items] if page else None


# What it costs


async def test_a_conversation_costs_one_unit_to_make_to_read_and_to_change(
    stores: Stores, meter: Meter, ann: IsolationKeys
) -> None:
    made = await stores.conversations.create(ann, {"topic": "units"}, [])
    assert meter.take() == {"PutItem": [1.0]}

    await stores.conversations.get(ann, made.id)
    assert meter.take() == {"GetItem": [1.0]}

    await stores.conversations.update(ann, made.id, {"topic": "prices"})
    assert meter.take() == {"UpdateItem": [1.0]}

    await stores.conversations.add(ann, made.id, [HELLO])
    assert meter.take() == {"UpdateItem": [1.0], "PutItem": [1.0], "GetItem": [1.0]}

    await stores.conversations.create(ann, {}, [HELLO] * 20)
    assert meter.take() == {"PutItem": [1.0, 1.0], "UpdateItem": [1.0]}


async def test_a_turn_costs_three_writes_and_one_query(
    stores: Stores, meter: Meter, ann: IsolationKeys
) -> None:
    made = await stores.conversations.create(ann, {"topic": "units"}, [])
    costs = []
    for number in range(100):
        meter.take()
        await speak(stores, ann, made.id, number)
        costs.append(meter.take())

    assert all(cost["UpdateItem"] == [1.0, 1.0] for cost in costs)
    assert all(cost["PutItem"] == [1.0] for cost in costs)
    assert all(len(cost["Query"]) == 1 and len(cost) == 3 for cost in costs)
    # Twice the table of the design for a chain, since a conversation is read strongly consistent.
    for length, designed in ((10, 3.0), (99, 24.0)):
        (units,) = costs[length]["Query"]
        assert designed * 0.5 <= units <= designed * 1.1


async def test_a_page_costs_what_is_on_it_and_not_the_whole_conversation(
    stores: Stores, meter: Meter, ann: IsolationKeys
) -> None:
    made = await stores.conversations.create(ann, {}, [])
    for number in range(60):
        await speak(stores, ann, made.id, number)

    after: str | None = None
    for _ in range(3):
        meter.take()
        page = await stores.conversations.page(ann, made.id, limit=20, order="desc", after=after)
        cost = meter.take()
        assert page is not None
        assert len(page.items) == 20
        assert cost["GetItem"] == [1.0]
        # Twelve entries of a good KB, strongly consistent.
        assert len(cost["Query"]) == 1
        assert sum(cost["Query"]) <= 4.0
        after = page.items[-1]["id"]


async def test_one_item_costs_its_entry_and_not_the_conversation(
    stores: Stores, meter: Meter, ann: IsolationKeys
) -> None:
    made = await stores.conversations.create(ann, {}, [])
    for number in range(20):
        await speak(stores, ann, made.id, number)
    page = await stores.conversations.page(ann, made.id, limit=1, order="asc", after=None)
    assert page is not None
    item_id = page.items[0]["id"]
    meter.take()

    await stores.conversations.item(ann, made.id, item_id)
    assert meter.take() == {"GetItem": [1.0, 1.0]}

    await stores.conversations.delete_item(ann, made.id, item_id)
    assert meter.take() == {"GetItem": [1.0, 1.0], "UpdateItem": [1.0]}


async def test_a_response_of_a_conversation_costs_its_own_size(
    stores: Stores, meter: Meter, ann: IsolationKeys
) -> None:
    made = await stores.conversations.create(ann, {}, [HELLO])
    response_id = [await speak(stores, ann, made.id, number) for number in range(20)][-1]
    meter.take()

    await stores.responses.get(ann, response_id)
    assert meter.take() == {"GetItem": [1.0]}

    await stores.responses.delete(ann, response_id)
    assert meter.take() == {"GetItem": [1.0], "UpdateItem": [1.0]}


async def test_a_name_that_nobody_can_have_costs_no_read(
    stores: Stores, meter: Meter, ann: IsolationKeys
) -> None:
    made = await stores.conversations.create(ann, {}, [HELLO])
    meter.take()

    assert await stores.conversations.get(ann, "conv_x") is None
    assert await stores.conversations.item(ann, made.id, "msg_x") is None

    assert meter.take() == {}


async def test_a_refusal_costs_the_condition_and_a_look(
    stores: Stores, meter: Meter, ann: IsolationKeys
) -> None:
    made = await stores.conversations.create(ann, {}, [])
    await stores.conversations.enter(ann, made.id, "first", 2e9)
    meter.take()

    with pytest.raises(ConversationLockedError):
        await stores.conversations.enter(ann, made.id, "second", 2e9)

    # A failed condition is billed, though this engine does not say so of a failed call.
    assert meter.take() == {"GetItem": [1.0]}


# What is left


async def rows_of(
    stores: Stores, isolation: IsolationKeys, client: Any, name: str
) -> dict[str, dict[str, Any]]:
    tenant = await stores.conversations._tenant(isolation)
    partition = keys.conversation_partition(tenant, name.removeprefix("conv_"))
    found = await Table(client, engines.TABLE).query(partition, is_strong=True)
    return {item["sk"]["S"]: item for item in found}


async def tenant_rows(
    store: DynamoDBConversationStore, isolation: IsolationKeys, client: Any
) -> list[dict[str, Any]]:
    """Return all rows of a tenant, of which nobody may know the names."""
    tenant = await store._tenant(isolation)
    found: list[dict[str, Any]] = (
        client.get_paginator("scan")
        .paginate(
            TableName=engines.TABLE,
            FilterExpression="begins_with(pk, :tenant)",
            ExpressionAttributeValues={":tenant": {"S": f"t#{tenant}#"}},
        )
        .build_full_result()["Items"]
    )
    return found


async def test_a_turn_is_one_row_that_names_nobody_and_shows_no_text(
    open_stores: Open, dynalite_client: Any, ann: IsolationKeys
) -> None:
    stores = open_stores()
    made = await stores.conversations.create(ann, {}, [message("user", "my secret question")])
    await speak(stores, ann, made.id)

    found = await rows_of(stores, ann, dynalite_client, made.id)

    assert [key[:2] for key in found] == ["I#", "I#", "ME"]
    assert all("ttl" not in item for item in found.values())
    assert "secret" not in str(found)
    assert "'ann'" not in str(found)


async def test_what_is_deleted_both_ways_is_erased(
    open_stores: Open, dynalite_client: Any, ann: IsolationKeys
) -> None:
    stores = open_stores()
    large = message("user", noise(330_000))
    made = await stores.conversations.create(ann, {}, [large, HELLO])
    response_id = await speak(stores, ann, made.id)
    page = await stores.conversations.page(ann, made.id, limit=9, order="asc", after=None)
    assert page is not None
    for item in page.items:
        await stores.conversations.delete_item(ann, made.id, item["id"])
    assert await stores.responses.get(ann, response_id) is not None
    await stores.responses.delete(ann, response_id)

    found = await rows_of(stores, ann, dynalite_client, made.id)

    assert {key[:2] for key in found} == {"I#", "ME"}
    entries = [item for key, item in found.items() if key != keys.META_ROW]
    assert [(item["st"]["S"], "d" in item) for item in entries] == [("D", False)] * 2


async def test_a_failed_turn_expires_like_any_response(
    open_stores: Open, dynalite_client: Any, ann: IsolationKeys
) -> None:
    stores = open_stores()
    made = await stores.conversations.create(ann, {}, [])
    branch = await stores.conversations.enter(ann, made.id, "me", 2e9)
    assert branch is not None
    await stores.responses.save(ann, branch, turn(branch, status=Status.FAILED))

    found = await rows_of(stores, ann, dynalite_client, made.id)

    assert ["ttl" in item for item in found.values()] == [True, False]


async def test_everything_of_a_deleted_conversation_gets_an_expiry(
    open_stores: Open, dynalite_client: Any, ann: IsolationKeys
) -> None:
    stores = open_stores()
    made = await stores.conversations.create(ann, {}, [message("user", noise(330_000))])
    for number in range(30):
        await speak(stores, ann, made.id, number)

    await stores.conversations.delete(ann, made.id)

    found = await rows_of(stores, ann, dynalite_client, made.id)
    assert len(found) == 33
    assert all("ttl" in item for item in found.values())


async def test_a_deletion_is_bounded_begins_with_the_newest_and_can_be_gone_on_with(
    open_stores: Open,
    dynalite_client: Any,
    ann: IsolationKeys,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_EXPIRED", 50)
    stores = open_stores()
    made = await stores.conversations.create(ann, {}, [])
    last = [await speak(stores, ann, made.id) for _ in range(60)][9]

    assert await stores.conversations.delete(ann, made.id) is True

    found = await rows_of(stores, ann, dynalite_client, made.id)
    assert ["ttl" in item for item in found.values()] == [False] * 10 + [True] * 50
    assert [record.getMessage() for record in caplog.records] == [
        "a deleted conversation has more rows"
    ]
    assert len(await stores.responses.turns(ann, last) or ()) == 10
    assert await stores.conversations.delete(ann, made.id) is False
    found = await rows_of(stores, ann, dynalite_client, made.id)
    assert all("ttl" in item for item in found.values())


# What a failure leaves


async def fails(operation: Any) -> bool:
    try:
        await operation
    except (StoreError, Died):
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
async def test_items_whose_writing_is_cut_off_are_there_as_a_whole_or_not_at_all(
    fragile_client: Any, ann: IsolationKeys, open_stores: Open, kind: str
) -> None:
    healthy = open_stores().conversations
    texts = [noise(330_000), "two"]
    items = [message("user", text) for text in texts]
    at, expected = 0, ["one"]
    made = await healthy.create(ann, {}, [message("user", "one")])
    while True:
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(open_stores(fragile_client).conversations.add(ann, made.id, items))
        found = await shown(healthy, ann, made.id)
        if found != expected:
            expected += texts
        assert found == expected
        if not fault.has_struck:
            break
        assert failed or at == 4
        at += 1

    assert at == 5  # the number, two chunks, the entry's own row; a look at the conversation
    assert len(expected) == (7 if kind.endswith("after_success") else 5)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_conversation_that_is_cut_off_as_it_is_made_leaves_nothing_for_good_that_is_not_its_own(
    fragile_client: Any, dynalite_client: Any, ann: IsolationKeys, clock: MovableClock, kind: str
) -> None:
    items = [message("user", noise(330_000))]
    at = 0
    while True:
        secret = own_secret()
        store, healthy = (
            DynamoDBConversationStore(client, engines.TABLE, secret=secret, clock=clock)
            for client in (fragile_client, dynalite_client)
        )
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(store.create(ann, {}, items))
        found = await tenant_rows(healthy, ann, dynalite_client)
        left = [item for item in found if "ttl" not in item]
        if not fault.has_struck:
            assert len(left) == 4
            break
        assert failed
        assert not left or any(item["sk"]["S"] == keys.META_ROW for item in left)
        at += 1

    assert at == 7  # two chunks, the entry's own row; the conversation's; as many expiries


async def test_items_whose_conversation_is_deleted_as_they_are_added_expire(
    open_stores: Open,
    dynalite_client: Any,
    ann: IsolationKeys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stores = open_stores()
    made = await stores.conversations.create(ann, {}, [])
    write = turns.write

    async def write_late(*given: Any) -> Any:
        assert await stores.conversations.delete(ann, made.id) is True
        return await write(*given)

    monkeypatch.setattr(turns, "write", write_late)

    assert await stores.conversations.add(ann, made.id, [message("user", noise(330_000))]) is None

    found = await rows_of(stores, ann, dynalite_client, made.id)
    assert len(found) == 3
    assert all("ttl" in item for item in found.values())


async def test_a_history_that_there_can_be_no_room_for_is_refused_before_its_chunks_are_read(
    stores: Stores, meter: Meter, ann: IsolationKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await stores.conversations.create(ann, {}, [message("user", noise(900_000))])
    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", 300_000)
    meter.take()

    with pytest.raises(HistoryTooLargeError):
        await stores.conversations.turns(ann, made.id)

    assert meter.take() == {"GetItem": [1.0, 1.0], "Query": [1.0]}


async def test_rows_are_read_only_as_long_as_there_can_be_room_for_them(
    stores: Stores, meter: Meter, ann: IsolationKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await stores.conversations.create(ann, {}, [])
    for seed in range(16):
        await stores.conversations.add(ann, made.id, [message("user", noise(300_000, seed))])
    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", 300_000)
    meter.take()

    with pytest.raises(HistoryTooLargeError):
        await stores.conversations.turns(ann, made.id)

    assert sum(meter.take()["Query"]) < 300


@pytest.mark.parametrize("kind", KINDS)
async def test_a_turn_that_is_cut_off_anywhere_is_in_the_conversation_or_not_and_unlocks_in_time(
    fragile_client: Any, ann: IsolationKeys, open_stores: Open, clock: MovableClock, kind: str
) -> None:
    healthy = open_stores()
    made = await healthy.conversations.create(ann, {}, [message("user", "0")])
    at, count = 0, 1
    while True:
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(speak_briefly(open_stores(fragile_client), ann, made.id, clock))
        found = await shown(healthy.conversations, ann, made.id)
        assert found is not None
        assert len(found) in (count, count + 2)
        count = len(found)
        if not fault.has_struck:
            break
        assert failed
        clock.now += 3600
        branch = await healthy.conversations.enter(ann, made.id, "next", clock.now + 1)
        assert branch is not None
        assert len(branch.turns) == 1 + (count - 1) // 2
        await healthy.conversations.leave(ann, made.id, "next")
        at += 1

    assert at == 4  # the lock, the query, the entry's own row, the unlock


async def speak_briefly(
    stores: Stores, isolation: IsolationKeys, name: str, clock: MovableClock
) -> None:
    branch = await stores.conversations.enter(isolation, name, f"{clock.now}", clock.now + 60)
    assert branch is not None
    await stores.responses.save(isolation, branch, turn(branch))
    await stores.conversations.leave(isolation, name, f"{clock.now}")


async def test_a_conversation_that_cannot_be_read_is_left_again(
    fragile_client: Any, ann: IsolationKeys, open_stores: Open
) -> None:
    healthy = open_stores().conversations
    made = await healthy.create(ann, {}, [])

    with Fault(fragile_client, "throttle", at=1):
        assert await fails(open_stores(fragile_client).conversations.enter(ann, made.id, "a", 2e9))

    assert isinstance(await healthy.enter(ann, made.id, "b", 2e9), Branch)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deletion_that_is_cut_off_anywhere_is_finished_by_the_next(
    fragile_client: Any, dynalite_client: Any, ann: IsolationKeys, open_stores: Open, kind: str
) -> None:
    stores = open_stores()
    at = 0
    while True:
        made = await stores.conversations.create(ann, {}, [HELLO])
        await speak(stores, ann, made.id)
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(open_stores(fragile_client).conversations.delete(ann, made.id))
        if not fault.has_struck:
            break
        assert failed
        is_there = await shown(stores.conversations, ann, made.id) is not None
        assert is_there is (at == 0 and not kind.endswith("after_success"))
        assert await stores.conversations.delete(ann, made.id) is is_there
        found = await rows_of(stores, ann, dynalite_client, made.id)
        assert len(found) == 2
        assert all("ttl" in item for item in found.values())
        at += 1

    assert at == 4  # its own row, the query, two expiries


@pytest.mark.parametrize("kind", KINDS)
async def test_an_erasure_that_is_cut_off_anywhere_can_be_repeated(
    fragile_client: Any, dynalite_client: Any, ann: IsolationKeys, open_stores: Open, kind: str
) -> None:
    stores = open_stores()
    at = 0
    while True:
        made = await stores.conversations.create(ann, {}, [])
        branch = await stores.conversations.enter(ann, made.id, "me", 2e9)
        assert branch is not None
        kept = turn(branch, noise(330_000), status=Status.FAILED)
        await stores.responses.save(ann, branch, kept)
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(
                open_stores(fragile_client).responses.delete(ann, kept.response.id)
            )
        if not fault.has_struck:
            break
        assert failed
        await stores.responses.delete(ann, kept.response.id)
        assert await stores.responses.get(ann, kept.response.id) is None
        found = await rows_of(stores, ann, dynalite_client, made.id)
        assert [item["st"]["S"] for key, item in found.items() if key != keys.META_ROW] == ["D"]
        at += 1

    assert at == 5  # a read, the mark, the tombstone, two chunks
