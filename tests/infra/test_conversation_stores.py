"""The contract of `ConversationStore`, held against every store: memory, and DynamoDB on two engines."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from channel import room
from channel.conversations import (
    LOCK_GRACE_S,
    ConversationLockedError,
    ConversationStore,
    ItemPage,
    LockLostError,
    UnknownCursorError,
)
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.memory_conversations import InMemoryConversationStore
from channel.ports import (
    Branch,
    ConcludedError,
    HistoryTooLargeError,
    ResponseStore,
    StoredTurn,
    UnfinishedError,
)
from channel.responses.protocol import ids
from channel.responses.protocol.items import Item, message, text_of
from channel.responses.protocol.response import Status
from infra.dynamodb import keys
from infra.dynamodb.client import Table
from infra.dynamodb.conversations import DynamoDBConversationStore
from infra.dynamodb.store import MONTH_S, DynamoDBResponseStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.turns import add as add_response, noise, own_secret, texts, turn


pytestmark = pytest.mark.anyio

BOB = IsolationKeys("bob")
UNKNOWN = "conv_" + "0" * 20


class Stores(NamedTuple):
    conversations: ConversationStore
    responses: ResponseStore


@pytest.fixture(params=["memory", "moto", "dynalite"])
def stores(request: pytest.FixtureRequest, clock: MovableClock) -> Stores:
    if request.param == "memory":
        kept = InMemoryResponseStore(clock=clock)
        return Stores(InMemoryConversationStore(kept, clock=clock), kept)
    client, secret = request.getfixturevalue(f"{request.param}_client"), own_secret()
    return Stores(
        DynamoDBConversationStore(client, engines.TABLE, secret=secret, clock=clock),
        DynamoDBResponseStore(client, engines.TABLE, secret=secret, clock=clock),
    )


@pytest.fixture
def conversations(stores: Stores) -> ConversationStore:
    return stores.conversations


def user(text: str, **fields: str) -> Item:
    return {**message("user", text), **fields}


async def begin(stores: Stores, keys: IsolationKeys, *said: str) -> str:
    """Begin a conversation with one item for each text."""
    made = await stores.conversations.create(keys, {}, [user(text) for text in said])
    return made.id


async def enter(
    stores: Stores, keys: IsolationKeys, name: str, owner: str = "me", *, until: float = 2e9
) -> Branch:
    branch = await stores.conversations.enter(keys, name, owner, until)
    assert branch is not None
    return branch


async def say(
    stores: Stores, keys: IsolationKeys, name: str, text: str = "Hello!", **fields: object
) -> str:
    """Add one turn to a conversation, and return the id of its response."""
    branch = await enter(stores, keys, name)
    kept = turn(branch, text, question=f"{text}?", previous_response_id=None, **fields)
    await stores.responses.save(keys, branch, kept)
    await stores.conversations.leave(keys, name, "me")
    return kept.response.id


async def page(
    stores: Stores,
    keys: IsolationKeys,
    name: str,
    *,
    limit: int = 100,
    order: str = "asc",
    after: str | None = None,
) -> ItemPage:
    found = await stores.conversations.page(keys, name, limit=limit, order=order, after=after)
    assert found is not None
    return found


async def listed(stores: Stores, keys: IsolationKeys, name: str) -> list[str]:
    """Return the texts of a conversation's items, oldest first."""
    return [text_of(item) for item in (await page(stores, keys, name)).items]


async def remembered(stores: Stores, keys: IsolationKeys, name: str) -> list[str]:
    """Return the texts that a turn would go on with."""
    branch = await enter(stores, keys, name)
    await stores.conversations.leave(keys, name, "me")
    return texts_of(branch)


def texts_of(branch: Branch) -> list[str]:
    items = (item for each in branch.turns for item in (*each.input, *each.response.output))
    return [text_of(item) for item in items]


# Create, read, update, delete


async def test_a_conversation_is_what_it_was_made_of(
    conversations: ConversationStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    made = await conversations.create(ann, {"topic": "Grüße 🌍"}, [])

    assert ids.conversation_name(made.id) is not None
    assert (made.created_at, made.metadata) == (int(clock.now), {"topic": "Grüße 🌍"})
    assert await conversations.get(ann, made.id) == made


async def test_metadata_is_replaced_as_a_whole(
    conversations: ConversationStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    made = await conversations.create(ann, {"a": "1", "b": "2"}, [])
    clock.now += 60

    updated = await conversations.update(ann, made.id, {"c": "3"})

    assert updated is not None
    assert (updated.created_at, updated.metadata) == (made.created_at, {"c": "3"})
    assert await conversations.get(ann, made.id) == updated


async def test_a_deleted_conversation_is_an_unknown_one(stores: Stores, ann: IsolationKeys) -> None:
    name = await begin(stores, ann, "one")
    item_id = (await page(stores, ann, name)).items[0]["id"]

    assert await stores.conversations.delete(ann, name) is True
    assert await stores.conversations.delete(ann, name) is False

    await assert_nothing_there(stores, ann, name, item_id)


async def assert_nothing_there(
    stores: Stores, keys: IsolationKeys, name: str, item_id: str
) -> None:
    store = stores.conversations
    assert await store.get(keys, name) is None
    assert await store.update(keys, name, {}) is None
    assert await store.delete(keys, name) is False
    assert await store.add(keys, name, [user("x")]) is None
    for after in (None, item_id, "msg_x"):
        assert await store.page(keys, name, limit=20, order="desc", after=after) is None
    assert await store.item(keys, name, item_id) is None
    assert await store.delete_item(keys, name, item_id) is None
    assert await store.turns(keys, name) is None
    assert await store.enter(keys, name, "me", 2e9) is None
    assert await store.extend(keys, name, "me", 2e9) is False
    await store.leave(keys, name, "me")


@pytest.mark.parametrize(
    "other",
    [BOB, IsolationKeys("ann", "chat"), IsolationKeys("ann", ""), IsolationKeys("annchat")],
)
async def test_a_tenant_sees_nothing_of_another(
    stores: Stores, ann: IsolationKeys, other: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    response_id = await say(stores, ann, name)
    item_id = (await page(stores, ann, name)).items[0]["id"]

    await assert_nothing_there(stores, other, name, item_id)

    assert await stores.responses.get(other, response_id) is None
    assert await stores.responses.item(other, item_id) is None
    assert await stores.responses.delete(other, response_id) is False
    assert await listed(stores, ann, name) == ["one", "Hello!?", "Hello!"]


@pytest.mark.parametrize(
    "hostile",
    ["", "conv_", "conv_x", UNKNOWN, "{name}0", "{name}\n", "{upper}", "resp_{hex}", "conv_{name}",
     "conv_../{hex}", "{hex}", "\x00", "🌍", "conv_" + "a" * 100_000],
)  # fmt: skip
async def test_a_name_that_nobody_has_is_an_unknown_one(
    stores: Stores, ann: IsolationKeys, hostile: str
) -> None:
    name = await begin(stores, ann, "one")
    digits = name.removeprefix("conv_")
    item_id = (await page(stores, ann, name)).items[0]["id"]

    asked = hostile.format(name=name, hex=digits, upper=f"conv_{digits[:-4]}ABCD")

    await assert_nothing_there(stores, ann, asked, item_id)


async def test_nothing_is_stored_for_nobody(conversations: ConversationStore) -> None:
    with pytest.raises(ValueError, match="name none"):
        await conversations.create(IsolationKeys(), {}, [])
    with pytest.raises(ValueError, match="name none"):
        await conversations.get(IsolationKeys(None, "chat"), UNKNOWN)


# Items


async def test_added_items_come_back_with_ids_of_their_own(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one", "two")

    added = await stores.conversations.add(ann, name, [user("three"), user("four")])

    assert added is not None
    found = (await page(stores, ann, name)).items
    assert [text_of(item) for item in found] == ["one", "two", "three", "four"]
    assert found[2:] == added
    assert len({item["id"] for item in found}) == 4
    for item in found:
        assert await stores.conversations.item(ann, name, item["id"]) == item
        assert await stores.responses.item(ann, item["id"]) == item


async def test_an_item_that_has_an_id_is_shown_with_one_of_ours_and_remembered_with_its_own(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann)
    for _ in range(2):
        await stores.conversations.add(ann, name, [user("x", id="mine"), user("y", id="mine")])

    found = (await page(stores, ann, name)).items
    branch = await enter(stores, ann, name)

    assert len({item["id"] for item in found}) == 4
    assert "mine" not in {item["id"] for item in found}
    assert [each.input[0]["id"] for each in branch.turns] == ["mine", "mine"]


async def test_entries_are_listed_in_the_order_of_their_beginnings(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "0")
    for number in range(1, 12, 2):
        await stores.conversations.add(ann, name, [user(str(number))])
        await say(stores, ann, name, str(number + 1))

    found = await listed(stores, ann, name)

    assert found == [
        "0",
        *(f"{n}{q}" for n in range(1, 13) for q in ("?", "") if n % 2 == 0 or not q),
    ]
    assert await remembered(stores, ann, name) == found


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_follow_each_other_without_gaps(
    stores: Stores, ann: IsolationKeys, order: str, limit: int
) -> None:
    name = await begin(stores, ann, *"abcde")
    await say(stores, ann, name, "failed", status=Status.FAILED)
    for number in range(3):
        await say(stores, ann, name, str(number))
    await stores.conversations.add(ann, name, [user("z")])
    whole = (await page(stores, ann, name, order=order)).items

    found: list[Item] = []
    while True:
        after = found[-1]["id"] if found else None
        part = await page(stores, ann, name, limit=limit, order=order, after=after)
        found += part.items
        assert len(part.items) == limit or not part.has_more
        if not part.has_more:
            break

    assert found == whole
    said = [*"abcde", "0?", "0", "1?", "1", "2?", "2", "z"]
    assert [text_of(item) for item in found] == (said if order == "asc" else said[::-1])


async def test_an_empty_conversation_has_an_empty_page(stores: Stores, ann: IsolationKeys) -> None:
    name = await begin(stores, ann)

    assert await page(stores, ann, name) == ItemPage([], has_more=False)


async def test_a_cursor_that_is_no_item_of_the_conversation_is_refused(
    stores: Stores, ann: IsolationKeys
) -> None:
    name, other = await begin(stores, ann, "one"), await begin(stores, ann, "two")
    own = (await page(stores, ann, name)).items[0]["id"]
    foreign = (await page(stores, ann, other)).items[0]["id"]
    failed = await say(stores, ann, name, status=Status.FAILED)
    unchained = await add_response(stores.responses, ann)

    for after in (
        foreign,
        own[:-1] + "9",
        own.replace("msg", "fc"),
        own[:40] + "0" * 16 + "0000",
        f"msg_{failed.removeprefix('resp_')}0000",
        f"msg_{unchained.removeprefix('resp_')}0000",
        "msg_x",
        name,
        "\x00",
    ):
        for order in ("asc", "desc"):
            with pytest.raises(UnknownCursorError):
                await page(stores, ann, name, order=order, after=after)


async def test_a_deleted_item_is_gone_and_still_says_where_it_was(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one", "two", "three")
    one, two, _ = (await page(stores, ann, name)).items

    deleted = await stores.conversations.delete_item(ann, name, two["id"])

    assert deleted == await stores.conversations.get(ann, name)
    assert await stores.conversations.delete_item(ann, name, two["id"]) is None
    assert await stores.conversations.item(ann, name, two["id"]) is None
    assert await stores.responses.item(ann, two["id"]) is None
    assert await listed(stores, ann, name) == ["one", "three"]
    assert await remembered(stores, ann, name) == ["one", "three"]
    after = await page(stores, ann, name, after=two["id"])
    assert [text_of(item) for item in after.items] == ["three"]
    assert await stores.conversations.item(ann, name, one["id"]) == one


async def test_an_entry_whose_items_are_all_deleted_is_passed_over(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    added = await stores.conversations.add(ann, name, [user("two"), user("three")])
    await stores.conversations.add(ann, name, [user("four")])
    assert added is not None
    for item in added:
        await stores.conversations.delete_item(ann, name, item["id"])

    assert await listed(stores, ann, name) == ["one", "four"]
    assert await remembered(stores, ann, name) == ["one", "four"]
    after = await page(stores, ann, name, after=added[0]["id"])
    assert [text_of(item) for item in after.items] == ["four"]


async def test_an_item_is_of_its_own_conversation_only(stores: Stores, ann: IsolationKeys) -> None:
    name, other = await begin(stores, ann, "one"), await begin(stores, ann, "two")
    (item,) = (await page(stores, ann, name)).items

    assert await stores.conversations.item(ann, other, item["id"]) is None
    assert await stores.conversations.delete_item(ann, other, item["id"]) is None
    assert await listed(stores, ann, name) == ["one"]


# Turns


async def test_a_turn_goes_on_with_everything_before_it(stores: Stores, ann: IsolationKeys) -> None:
    name = await begin(stores, ann, "one")
    first = await say(stores, ann, name, "two")
    await stores.conversations.add(ann, name, [user("three")])
    await say(stores, ann, name, "four", status=Status.INCOMPLETE)

    branch = await enter(stores, ann, name)

    assert texts_of(branch) == ["one", "two?", "two", "three", "four?", "four"]
    assert tuple(await stores.conversations.turns(ann, name) or ()) == branch.turns
    assert branch.turns[1] == await stores.responses.get(ann, first)


async def test_a_turn_is_a_response_and_an_entry_at_once(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    branch = await enter(stores, ann, name)
    kept = turn(branch, "Grüße, 🌍!\n\x00", metadata={"a": "b"})

    await stores.responses.save(ann, branch, kept)
    await stores.responses.save(ann, branch, kept)

    assert kept.response.id == ids.response_id(branch.body)
    assert await stores.responses.get(ann, kept.response.id) == kept
    items = [*kept.input, *kept.response.output]
    assert (await page(stores, ann, name)).items[1:] == items
    for item in items:
        assert await stores.conversations.item(ann, name, item["id"]) == item


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
async def test_a_turn_that_came_to_nothing_is_a_response_and_no_part_of_the_conversation(
    stores: Stores, ann: IsolationKeys, status: Status
) -> None:
    name = await begin(stores, ann, "one")

    response_id = await say(stores, ann, name, "two", status=status)

    kept = await stores.responses.get(ann, response_id)
    assert kept is not None
    assert kept.response.status is status
    assert await listed(stores, ann, name) == ["one"]
    assert await remembered(stores, ann, name) == ["one"]
    item_id = kept.response.output[0]["id"]
    assert await stores.conversations.item(ann, name, item_id) is None
    assert await stores.responses.item(ann, item_id) is None
    assert await stores.responses.branch(ann, response_id) is None


async def test_a_turn_that_is_not_to_be_stored_is_remembered_and_not_retrievable(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann)

    response_id = await say(stores, ann, name, "two", store=False)

    assert await stores.responses.get(ann, response_id) is None
    assert await stores.responses.turns(ann, response_id) is None
    assert await stores.responses.branch(ann, response_id) is None
    assert await stores.responses.delete(ann, response_id) is False
    assert await listed(stores, ann, name) == ["two?", "two"]
    assert await remembered(stores, ann, name) == ["two?", "two"]


async def test_added_items_are_no_response(stores: Stores, ann: IsolationKeys) -> None:
    name = await begin(stores, ann, "one")
    (item,) = (await page(stores, ann, name)).items
    response_id = f"resp_{item['id'].removeprefix('msg_')[:-4]}"

    assert await stores.responses.get(ann, response_id) is None
    assert await stores.responses.turns(ann, response_id) is None
    assert await stores.responses.branch(ann, response_id) is None
    assert await stores.responses.delete(ann, response_id) is False


async def test_a_deleted_response_leaves_its_items_in_the_conversation(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    response_id = await say(stores, ann, name, "two")

    assert await stores.responses.delete(ann, response_id) is True
    assert await stores.responses.delete(ann, response_id) is False

    assert await stores.responses.get(ann, response_id) is None
    assert await stores.responses.turns(ann, response_id) is None
    assert await stores.responses.branch(ann, response_id) is None
    assert await listed(stores, ann, name) == ["one", "two?", "two"]
    assert await remembered(stores, ann, name) == ["one", "two?", "two"]
    for item in (await page(stores, ann, name)).items[1:]:
        await stores.conversations.delete_item(ann, name, item["id"])
    assert await listed(stores, ann, name) == ["one"]


async def reset(stores: Stores, keys: IsolationKeys, name: str, text: str = "reset") -> str:
    """Add a turn that resets to a conversation, and return the id of its response."""
    branch = await enter(stores, keys, name)
    kept = turn(branch, text, question=f"{text}?", previous_response_id=None)
    await stores.responses.save(keys, branch, replace(kept, resets=True))
    await stores.conversations.leave(keys, name, "me")
    return kept.response.id


async def delete_items(
    stores: Stores, keys: IsolationKeys, name: str, between: slice = slice(None)
) -> None:
    for item in (await page(stores, keys, name)).items[between]:
        assert await stores.conversations.delete_item(keys, name, item["id"]) is not None


def after_reset(turns: Sequence[StoredTurn] | None) -> list[str]:
    """Return the texts behind the newest of the turns that resets; one of them must."""
    assert turns is not None
    newest = max(number for number, each in enumerate(turns) if each.resets)
    return texts_of(Branch("", tuple(turns[newest:])))


DELETIONS: dict[str, list[str]] = {
    "the items of an unstored turn": ["items"],
    "the response": ["response"],
    "the items": ["items"],
    "the items, then the response": ["items", "response"],
    "the response, then the items": ["response", "items"],
    "the response twice": ["response", "items", "response"],
}


@pytest.mark.parametrize(("case", "deletions"), DELETIONS.items(), ids=DELETIONS)
async def test_a_reset_counts_although_what_was_said_with_it_is_deleted(
    stores: Stores, clock: MovableClock, ann: IsolationKeys, case: str, deletions: list[str]
) -> None:
    name = await begin(stores, ann, "secret")
    response_id = await reset(stores, ann, name, noise(330_000))
    if "unstored" in case:
        await stores.responses.delete(ann, response_id)
    later = await say(stores, ann, name, "two")
    last = await add_response(stores.responses, ann, later, "fork", question="fork?")

    for what in deletions:
        if what == "items":
            await delete_items(stores, ann, name, slice(1, 3))
        else:
            await stores.responses.delete(ann, response_id)

    branch = await enter(stores, ann, name)
    await stores.conversations.leave(ann, name, "me")
    assert after_reset(branch.turns)[-2:] == ["two?", "two"]
    assert "secret" not in after_reset(branch.turns)
    assert after_reset(await stores.conversations.turns(ann, name))[-2:] == ["two?", "two"]
    assert "secret" not in after_reset(await stores.responses.turns(ann, later))
    if deletions == ["response"]:
        return
    assert await listed(stores, ann, name) == ["secret", "two?", "two"]
    await stores.conversations.delete(ann, name)
    for _ in range(3):
        clock.now += MONTH_S * 0.6
        last = await add_response(stores.responses, ann, last, "on", question="on?")
    turns = await stores.responses.turns(ann, last)
    assert after_reset(turns) == ["two?", "two", "fork?", "fork", *["on?", "on"] * 3]


async def test_what_was_said_with_a_reset_is_erased_as_it_would_be_without(
    moto_client: Any, clock: MovableClock, ann: IsolationKeys
) -> None:
    secret = own_secret()
    stores = Stores(
        DynamoDBConversationStore(moto_client, engines.TABLE, secret=secret, clock=clock),
        DynamoDBResponseStore(moto_client, engines.TABLE, secret=secret, clock=clock),
    )
    name = await begin(stores, ann)
    response_id = await reset(stores, ann, name, noise(330_000))
    await delete_items(stores, ann, name)
    await stores.responses.delete(ann, response_id)

    tenant = keys.tenant_tag(await secret(), ann)
    partition = keys.conversation_partition(tenant, name.removeprefix("conv_"))
    left = await Table(moto_client, engines.TABLE).query(partition, is_strong=True)

    entries = [row for row in left if row["sk"]["S"] != keys.META_ROW]
    assert len(entries) == 1
    assert (entries[0]["st"], entries[0]["res"]) == ({"S": "D"}, {"BOOL": True})
    assert "d" not in entries[0]


async def test_a_reset_of_a_turn_that_came_to_nothing_is_none(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    branch = await enter(stores, ann, name)
    failed = turn(branch, "two", status=Status.FAILED, previous_response_id=None)
    await stores.responses.save(ann, branch, replace(failed, resets=True))
    await stores.conversations.leave(ann, name, "me")
    await stores.responses.delete(ann, failed.response.id)

    turns = await stores.conversations.turns(ann, name)

    assert turns is not None
    assert not any(each.resets for each in turns)
    assert await remembered(stores, ann, name) == ["one"]


async def test_a_deleted_item_stays_in_its_response(stores: Stores, ann: IsolationKeys) -> None:
    name = await begin(stores, ann)
    response_id = await say(stores, ann, name, "two")
    kept = await stores.responses.get(ann, response_id)

    for item in (await page(stores, ann, name)).items:
        await stores.conversations.delete_item(ann, name, item["id"])

    assert await listed(stores, ann, name) == []
    assert await stores.responses.get(ann, response_id) == kept
    assert await stores.responses.turns(ann, response_id) in ([kept], (kept,))


async def test_what_a_response_was_given_is_the_conversation_up_to_it(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    await say(stores, ann, name, "failed", status=Status.FAILED)
    second = await say(stores, ann, name, "two")
    last = await say(stores, ann, name, "three", status=Status.FAILED)
    await stores.conversations.add(ann, name, [user("later")])
    (one, *_) = (await page(stores, ann, name)).items
    await stores.conversations.delete_item(ann, name, one["id"])

    turns = await stores.responses.turns(ann, last)

    assert turns is not None
    assert texts_of(Branch("", tuple(turns))) == ["two?", "two", "three?", "three"]
    assert turns[-2] == await stores.responses.get(ann, second)
    assert turns[-1] == await stores.responses.get(ann, last)


# Forks


async def test_a_response_of_a_conversation_can_be_continued_outside_of_it(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    second = await say(stores, ann, name, "two")
    third = await say(stores, ann, name, "three")

    fork = await add_response(stores.responses, ann, second, "fork", question="fork?")
    leaf = await add_response(stores.responses, ann, fork, "leaf", question="leaf?")
    again = await add_response(stores.responses, ann, second, "again", question="again?")

    history = ["one", "two?", "two"]
    for response_id, own in ((fork, ["fork"]), (leaf, ["fork", "leaf"]), (again, ["again"])):
        branch = await stores.responses.branch(ann, response_id)
        turns = await stores.responses.turns(ann, response_id)
        assert branch is not None
        assert turns is not None
        expected = [*history, *(text for each in own for text in (f"{each}?", each))]
        assert texts_of(branch) == texts_of(Branch("", tuple(turns))) == expected
    assert await listed(stores, ann, name) == [*history, "three?", "three"]
    branch = await stores.responses.branch(ann, third)
    assert branch is not None
    assert texts_of(branch) == [*history, "three?", "three"]


async def test_a_fork_goes_without_the_items_that_were_deleted(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one", "two")
    response_id = await say(stores, ann, name, "three")
    fork = await add_response(stores.responses, ann, response_id, "fork", question="fork?")
    one, _, asked, _ = (await page(stores, ann, name)).items
    for item in (one, asked):
        await stores.conversations.delete_item(ann, name, item["id"])
    await stores.responses.delete(ann, response_id)

    branch = await stores.responses.branch(ann, fork)

    assert branch is not None
    assert texts_of(branch) == ["two", "three", "fork?", "fork"]


async def test_a_fork_goes_on_although_nothing_is_left_of_where_it_began(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    response_id = await say(stores, ann, name, noise(330_000))
    last = await add_response(stores.responses, ann, response_id, "fork", question="fork?")
    for item in (await page(stores, ann, name)).items[1:]:
        await stores.conversations.delete_item(ann, name, item["id"])
    await stores.responses.delete(ann, response_id)

    for _ in range(3):
        clock.now += MONTH_S * 0.6
        last = await add_response(stores.responses, ann, last, "on", question="on?")

    turns = await stores.responses.turns(ann, last)
    assert turns is not None
    assert texts_of(Branch("", tuple(turns))) == ["one", "fork?", "fork", *["on?", "on"] * 3]


async def test_a_fork_that_was_only_begun_keeps_its_history(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    response_id = await say(stores, ann, name, "two")
    branch = await stores.responses.branch(ann, response_id)
    assert branch is not None
    await stores.responses.save(ann, branch, turn(branch, "", status=Status.QUEUED))

    opened = await stores.responses.reopen(ann, ids.response_id(branch.body))
    assert opened is not None
    assert texts_of(opened[1]) == ["one", "two?", "two"]
    await stores.responses.save(ann, opened[1], turn(branch, "done", question="done?"))

    turns = await stores.responses.turns(ann, ids.response_id(branch.body))
    assert turns is not None
    assert texts_of(Branch("", tuple(turns))) == ["one", "two?", "two", "done?", "done"]


# The lock


async def test_a_conversation_is_entered_by_one_at_a_time(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    await enter(stores, ann, name, "first")

    with pytest.raises(ConversationLockedError):
        await enter(stores, ann, name, "second")
    with pytest.raises(ConversationLockedError):
        await stores.conversations.add(ann, name, [user("two")])
    with pytest.raises(ConversationLockedError):
        await stores.conversations.delete(ann, name)
    await stores.conversations.leave(ann, name, "second")
    with pytest.raises(ConversationLockedError):
        await enter(stores, ann, name, "second")

    await stores.conversations.leave(ann, name, "first")
    await stores.conversations.leave(ann, name, "first")
    await enter(stores, ann, name, "second")


async def test_a_locked_conversation_can_be_read_renamed_and_lose_items(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one", "two")
    one, _ = (await page(stores, ann, name)).items
    await enter(stores, ann, name)

    assert await stores.conversations.update(ann, name, {"a": "b"}) is not None
    assert len(await stores.conversations.turns(ann, name) or ()) == 1
    assert await stores.conversations.delete_item(ann, name, one["id"]) is not None
    assert await listed(stores, ann, name) == ["two"]


async def test_an_owner_may_enter_again(stores: Stores, ann: IsolationKeys) -> None:
    name = await begin(stores, ann)

    first = await enter(stores, ann, name, "me")
    again = await enter(stores, ann, name, "me")

    assert first.body != again.body


async def test_a_lock_runs_out_and_after_a_grace_another_may_enter(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann)
    await enter(stores, ann, name, "first", until=clock.now + 60)

    clock.now += 60 + LOCK_GRACE_S - 1
    with pytest.raises(ConversationLockedError):
        await enter(stores, ann, name, "second")
    clock.now += 2
    await enter(stores, ann, name, "second", until=clock.now + 60)

    await stores.conversations.leave(ann, name, "first")
    with pytest.raises(ConversationLockedError):
        await enter(stores, ann, name, "third")


async def test_a_turn_whose_lock_another_has_taken_is_not_kept(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann)
    late = await enter(stores, ann, name, "late", until=clock.now + 60)
    clock.now += 60 + LOCK_GRACE_S + 1
    await enter(stores, ann, name, "next")

    with pytest.raises(LockLostError):
        await stores.responses.save(ann, late, turn(late))

    assert await stores.responses.get(ann, ids.response_id(late.body)) is None
    assert await listed(stores, ann, name) == []
    failed = turn(late, status=Status.FAILED)
    await stores.responses.save(ann, late, failed)
    assert await stores.responses.get(ann, failed.response.id) == failed


@pytest.mark.parametrize("is_left", [True, False])
async def test_a_turn_whose_lock_was_taken_and_given_back_is_not_kept_either(
    stores: Stores, clock: MovableClock, ann: IsolationKeys, is_left: bool
) -> None:
    name = await begin(stores, ann)
    late = await enter(stores, ann, name, "late", until=clock.now + 60)
    clock.now += 60 + LOCK_GRACE_S + 1
    await enter(stores, ann, name, "next")
    await stores.conversations.leave(ann, name, "next")
    if not is_left:
        await stores.conversations.delete(ann, name)

    with pytest.raises(LockLostError):
        await stores.responses.save(ann, late, turn(late))


async def test_a_turn_that_is_late_is_kept_where_nobody_has_taken_its_lock(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann)
    late = await enter(stores, ann, name, "late", until=clock.now + 60)
    clock.now += 3600

    await stores.responses.save(ann, late, turn(late, "late"))

    assert await listed(stores, ann, name) == ["Hi", "late"]
    await stores.conversations.leave(ann, name, "late")
    await enter(stores, ann, name, "next")


async def test_a_lock_is_extended_by_its_owner_only(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann)
    branch = await enter(stores, ann, name, "me", until=clock.now + 60)

    assert await stores.conversations.extend(ann, name, "other", clock.now + 600) is False
    assert await stores.conversations.extend(ann, name, "me", clock.now + 600) is True
    clock.now += 500

    with pytest.raises(ConversationLockedError):
        await enter(stores, ann, name, "other")
    await stores.responses.save(ann, branch, turn(branch, "kept"))
    assert await listed(stores, ann, name) == ["Hi", "kept"]
    await stores.conversations.leave(ann, name, "me")
    assert await stores.conversations.extend(ann, name, "me", clock.now + 600) is False


async def test_of_many_who_enter_at_once_one_does(stores: Stores, ann: IsolationKeys) -> None:
    name = await begin(stores, ann, "one")

    def contend(number: int) -> Branch | None:
        async def attempt() -> Branch | None:
            try:
                return await stores.conversations.enter(ann, name, str(number), 2e9)
            except ConversationLockedError:
                return None

        return asyncio.run(attempt())

    with ThreadPoolExecutor(8) as threads:
        winners = [branch for branch in threads.map(contend, range(8)) if branch]

    (branch,) = winners
    await stores.responses.save(ann, branch, turn(branch, "won"))
    assert await listed(stores, ann, name) == ["one", "Hi", "won"]


async def test_those_who_take_turns_lose_nothing_and_see_all_before_them(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "start")

    async def take_turns(owner: str) -> list[tuple[str, list[str]]]:
        taken: list[tuple[str, list[str]]] = []
        while len(taken) < 3:
            try:
                branch = await enter(stores, ann, name, owner)
            except ConversationLockedError:
                continue
            said = f"{owner}{len(taken)}"
            await stores.responses.save(ann, branch, turn(branch, said, question=""))
            await stores.conversations.leave(ann, name, owner)
            taken.append((said, texts_of(branch)))
        return taken

    def contend(owner: str) -> list[tuple[str, list[str]]]:
        return asyncio.run(take_turns(owner))

    with ThreadPoolExecutor(4) as threads:
        taken = [each for owner in threads.map(contend, "abcd") for each in owner]

    found = await listed(stores, ann, name)
    assert len(found) == 1 + 2 * len(taken)
    for said, seen in taken:
        assert seen == found[: found.index(said) - 1]


async def test_of_many_who_add_at_once_each_does(stores: Stores, ann: IsolationKeys) -> None:
    name = await begin(stores, ann)

    def contend(number: int) -> None:
        asyncio.run(stores.conversations.add(ann, name, [user(f"{number}a"), user(f"{number}b")]))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(contend, range(8)))

    found = await listed(stores, ann, name)
    assert sorted(found) == sorted(f"{number}{letter}" for number in range(8) for letter in "ab")
    assert all(a[0] == b[0] for a, b in zip(found[::2], found[1::2], strict=True))


# Turns that are begun, and finished by another


async def test_a_turn_that_was_begun_is_reopened_in_its_place(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    branch = await enter(stores, ann, name)
    queued = turn(branch, "", status=Status.QUEUED)
    await stores.responses.save(ann, branch, queued)

    opened = await stores.responses.reopen(ann, queued.response.id)

    assert opened is not None
    assert opened[0] == queued
    assert opened[1].body == branch.body
    assert texts_of(opened[1]) == ["one"]
    assert await listed(stores, ann, name) == ["one"]
    with pytest.raises(UnfinishedError):
        await stores.responses.delete(ann, queued.response.id)
    await stores.responses.save(ann, opened[1], turn(branch, "done"))
    assert await listed(stores, ann, name) == ["one", "Hi", "done"]
    assert await stores.responses.reopen(ann, queued.response.id) is None


async def test_a_reopened_turn_that_another_has_concluded_is_the_others(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann)
    branch = await enter(stores, ann, name)
    queued = turn(branch, "", status=Status.QUEUED)
    await stores.responses.save(ann, branch, queued)
    mine = await stores.responses.reopen(ann, queued.response.id)
    others = await stores.responses.reopen(ann, queued.response.id, with_history=False)
    assert mine is not None
    assert others is not None
    cancelled = turn(branch, "", status=Status.CANCELLED)

    await stores.responses.save(ann, others[1], cancelled)
    with pytest.raises(ConcludedError) as raised:
        await stores.responses.save(ann, mine[1], turn(branch, "done"))

    assert raised.value.turn == cancelled
    assert await listed(stores, ann, name) == []


async def test_a_reopened_turn_needs_the_lock_that_it_was_begun_with(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann)
    branch = await enter(stores, ann, name, "first", until=clock.now + 60)
    queued = turn(branch, "", status=Status.QUEUED)
    await stores.responses.save(ann, branch, queued)
    opened = await stores.responses.reopen(ann, queued.response.id)
    assert opened is not None
    clock.now += 60 + LOCK_GRACE_S + 1
    await enter(stores, ann, name, "second")

    with pytest.raises(LockLostError):
        await stores.responses.save(ann, opened[1], turn(branch, "done"))
    await stores.responses.save(ann, opened[1], turn(branch, "", status=Status.FAILED))

    kept = await stores.responses.get(ann, queued.response.id)
    assert kept is not None
    assert kept.response.status is Status.FAILED


# Expiry and size


async def test_a_conversation_does_not_expire(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    response_id = await say(stores, ann, name, "two")

    clock.now += 13 * MONTH_S

    branch = await stores.conversations.enter(ann, name, "me", clock.now + 60)
    assert branch is not None
    assert texts_of(branch) == ["one", "two?", "two"]
    assert await stores.responses.get(ann, response_id) is not None


async def test_the_responses_of_a_deleted_conversation_are_there_until_they_expire(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    response_id = await say(stores, ann, name, "two")
    clock.now += 3 * MONTH_S
    await stores.conversations.delete(ann, name)

    clock.now += MONTH_S - 2
    assert await stores.responses.get(ann, response_id) is not None
    branch = await stores.responses.branch(ann, response_id)
    assert branch is not None
    assert texts_of(branch) == ["one", "two?", "two"]


async def test_the_items_of_a_deleted_conversation_are_unknown(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    await say(stores, ann, name, "two")
    items = (await page(stores, ann, name)).items
    assert [await stores.responses.item(ann, item["id"]) for item in items] == items

    await stores.conversations.delete(ann, name)

    assert [await stores.responses.item(ann, item["id"]) for item in items] == [None] * 3


async def test_what_is_left_of_a_deleted_conversation_expires(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    response_id = await say(stores, ann, name, noise(330_000))
    (item, *_) = (await page(stores, ann, name)).items
    await stores.conversations.delete(ann, name)

    clock.now += MONTH_S + 2

    assert await stores.responses.get(ann, response_id) is None
    assert await stores.responses.turns(ann, response_id) is None
    assert await stores.responses.branch(ann, response_id) is None
    assert await stores.responses.item(ann, item["id"]) is None


async def test_going_on_with_a_fork_renews_what_is_left_of_its_conversation(
    stores: Stores, clock: MovableClock, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    last = await say(stores, ann, name, "two")
    await stores.conversations.delete(ann, name)

    for _ in range(4):
        clock.now += MONTH_S * 0.6
        last = await add_response(stores.responses, ann, last, "on")

    branch = await stores.responses.branch(ann, last)
    assert branch is not None
    assert texts_of(branch) == ["one", "two?", "two", *["Hi", "on"] * 4]


async def test_large_turns_are_whole_wherever_they_are_read(
    stores: Stores, ann: IsolationKeys
) -> None:
    large = [noise(330_000, seed) for seed in range(4)]
    name = await begin(stores, ann, "one", large[0])
    for text in large[1:]:
        branch = await enter(stores, ann, name)
        await stores.responses.save(ann, branch, turn(branch, text))
        await stores.conversations.leave(ann, name, "me")

    found = await listed(stores, ann, name)

    assert found == ["one", large[0], *(text for each in large[1:] for text in ("Hi", each))]
    assert await remembered(stores, ann, name) == found
    last = (await page(stores, ann, name, limit=3, order="desc")).items
    assert [text_of(item) for item in last] == found[:-4:-1]
    for item in last:
        assert await stores.conversations.delete_item(ann, name, item["id"]) is not None
    assert await remembered(stores, ann, name) == found[:-3]


async def test_what_a_caller_does_to_what_it_read_changes_nothing_that_is_kept(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, "one")
    response_id = await say(stores, ann, name, "two")
    branch = await enter(stores, ann, name)
    branch.turns[0].input.clear()
    branch.turns[1].response.output[0]["content"].clear()
    (await page(stores, ann, name)).items[0]["content"].clear()

    kept = await stores.responses.get(ann, response_id)

    assert isinstance(kept, StoredTurn)
    assert await listed(stores, ann, name) == ["one", "two?", "two"]


async def test_a_conversation_does_not_disturb_threads_nor_they_it(
    stores: Stores, ann: IsolationKeys
) -> None:
    first = await add_response(stores.responses, ann, None, "thread")
    name = await begin(stores, ann, "one")
    await say(stores, ann, name, "two")
    second = await add_response(stores.responses, ann, first, "on")

    assert await texts(stores.responses, ann, second) == ["thread", "on"]
    assert await listed(stores, ann, name) == ["one", "two?", "two"]


# What is too large to go on with


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be room for a history of 13 KB."""
    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", 13_000)


LARGE = "a" * 4_000
"""Text that two entries can have, and three cannot; compressed it is next to nothing."""


@pytest.mark.usefixtures("small_room")
async def test_a_conversation_that_is_too_large_cannot_be_gone_on_with_and_is_left_unlocked(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, LARGE)
    await stores.conversations.add(ann, name, [user(LARGE)])
    last = await say(stores, ann, name, "two")
    assert len(await remembered(stores, ann, name)) == 4
    await stores.conversations.add(ann, name, [user(LARGE)])

    with pytest.raises(HistoryTooLargeError):
        await stores.conversations.turns(ann, name)
    with pytest.raises(HistoryTooLargeError):
        await stores.conversations.enter(ann, name, "me", 2e9)

    assert await stores.responses.branch(ann, last) is not None
    assert await stores.conversations.delete(ann, name) is True
    assert await stores.conversations.turns(ann, name) is None


@pytest.mark.usefixtures("small_room")
async def test_what_was_said_before_a_reset_takes_no_room(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, LARGE)
    await stores.conversations.add(ann, name, [user(LARGE)])
    await reset(stores, ann, name)
    await stores.conversations.add(ann, name, [user(LARGE)])

    last = await say(stores, ann, name, "two")
    fork = await add_response(stores.responses, ann, last, LARGE)

    assert await remembered(stores, ann, name) == ["reset?", "reset", LARGE, "two?", "two"]
    branch = await stores.responses.branch(ann, fork)
    assert branch is not None
    assert after_reset(branch.turns)[-1] == LARGE
    assert after_reset(await stores.responses.turns(ann, last))[-2:] == ["two?", "two"]
    with pytest.raises(HistoryTooLargeError):  # which shows all of it
        await stores.conversations.turns(ann, name)


@pytest.mark.usefixtures("small_room")
async def test_a_fork_counts_what_it_goes_on_with_in_its_conversation(
    stores: Stores, ann: IsolationKeys
) -> None:
    name = await begin(stores, ann, LARGE)
    last = await say(stores, ann, name, "two")
    fork = await add_response(stores.responses, ann, last, LARGE)
    assert await stores.responses.branch(ann, fork) is not None

    fork = await add_response(stores.responses, ann, fork, LARGE)

    with pytest.raises(HistoryTooLargeError):
        await stores.responses.branch(ann, fork)
    with pytest.raises(HistoryTooLargeError):
        await stores.responses.turns(ann, fork)


@pytest.mark.usefixtures("small_room")
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("size", [4_000, 12_000, 400_000])
async def test_a_page_of_large_items_ends_early_and_all_of_them_can_be_listed(
    stores: Stores, ann: IsolationKeys, order: str, size: int
) -> None:
    name = await begin(stores, ann, *(letter * size for letter in "ab"))
    for letter in "cdefg":
        await stores.conversations.add(ann, name, [user(letter * size)])
    pages: list[str] = []
    after: str | None = None
    has_more = True

    while has_more:
        found = await page(stores, ann, name, order=order, after=after)
        assert found.items
        pages.append("".join(text_of(item)[0] for item in found.items))
        has_more, after = found.has_more, found.items[-1]["id"]

    assert "".join(pages) == ("abcdefg" if order == "asc" else "gfedcba")
    assert len(pages) >= 3
