"""The contract of `ResponseStore`, held against every store: memory, and DynamoDB on two engines."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from random import Random
from secrets import token_hex
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from channel import room
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.ports import (
    Branch,
    ConcludedError,
    HistoryTooLargeError,
    ResponseStore,
    StoredTurn,
    StoreError,
    TurnTooLargeError,
    UnfinishedError,
)
from channel.responses.protocol import ids
from channel.responses.protocol.response import Status
from infra.dynamodb.store import MONTH_S, DynamoDBResponseStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.turns import add, answer, chain, noise, own_secret, texts, turn


pytestmark = pytest.mark.anyio

BOB = IsolationKeys("bob")


@pytest.fixture(params=["memory", "moto", "dynalite"])
def store(request: pytest.FixtureRequest, clock: MovableClock) -> ResponseStore:
    if request.param == "memory":
        return InMemoryResponseStore(clock=clock)
    client = request.getfixturevalue(f"{request.param}_client")
    return DynamoDBResponseStore(
        client, engines.TABLE, secret=own_secret(), clock=clock, aliases=True
    )


async def test_a_root_has_a_body_of_52_hex_digits_and_no_history(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    branch = await store.branch(ann, None)

    assert branch is not None
    assert ids.response_body(ids.response_id(branch.body)) == branch.body
    assert branch.turns == ()


async def test_no_two_branches_have_the_same_body(store: ResponseStore, ann: IsolationKeys) -> None:
    root = await add(store, ann)

    bodies = {
        branch.body
        for _ in range(5)
        for at in (None, root)
        if (branch := await store.branch(ann, at))
    }

    assert len(bodies) == 10


async def test_a_kept_turn_comes_back_as_it_was(store: ResponseStore, ann: IsolationKeys) -> None:
    branch = await store.branch(ann, None)
    assert branch is not None
    kept = turn(branch, "Grüße, 🌍!\n\x00\u2028", metadata={"a": "b"}, temperature=0.2)

    await store.save(ann, branch, kept)

    assert await store.get(ann, kept.response.id) == kept
    assert await store.turns(ann, kept.response.id) in ([kept], (kept,))


async def test_nothing_is_kept_before_it_is_saved(store: ResponseStore, ann: IsolationKeys) -> None:
    branch = await store.branch(ann, None)
    assert branch is not None

    response_id = ids.response_id(branch.body)

    assert await store.get(ann, response_id) is None
    assert await store.turns(ann, response_id) is None
    assert await store.branch(ann, response_id) is None
    assert await store.delete(ann, response_id) is False


async def test_a_branch_holds_the_turns_before_it_oldest_first(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    added = await chain(store, ann, 5)

    branch = await store.branch(ann, added[-1])

    assert branch is not None
    assert branch.turns == tuple([await store.get(ann, each) for each in added])
    assert await texts(store, ann, added[2]) == ["0", "1", "2"]


async def test_every_branch_of_a_tree_has_its_own_history(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    trunk = await chain(store, ann, 3)
    fork = await chain(store, ann, 2, after=trunk[1])
    fork_of_root = await chain(store, ann, 1, after=trunk[0])
    fork_of_fork = await chain(store, ann, 2, after=fork[0])
    again = await add(store, ann, fork[0], "again")

    assert await texts(store, ann, trunk[2]) == ["0", "1", "2"]
    assert await texts(store, ann, fork[1]) == ["0", "1", "0", "1"]
    assert await texts(store, ann, fork_of_root[0]) == ["0", "0"]
    assert await texts(store, ann, fork_of_fork[1]) == ["0", "1", "0", "0", "1"]
    assert await texts(store, ann, again) == ["0", "1", "0", "again"]


async def test_a_chain_through_more_lanes_than_are_read_one_by_one_is_whole(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    last: str | None = None
    for number in range(12):
        await add(store, ann, last, "regenerated")
        if last is None:
            last = await add(store, ann, None, "0")
            await add(store, ann, last, "regenerated")
        else:
            last = await add(store, ann, last, str(number))

    assert last is not None
    branch = await store.branch(ann, last)
    assert branch is not None
    assert [answer(each) for each in branch.turns] == [str(number) for number in range(12)]


async def test_races_make_branches_and_each_is_right(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    root = await add(store, ann, None, "root")

    first = race(store, ann, [root] * 8)
    second = race(store, ann, first)

    assert len({*first, *second}) == 16
    for number, (middle, leaf) in enumerate(zip(first, second, strict=True)):
        assert await texts(store, ann, middle) == ["root", str(number)]
        assert await texts(store, ann, leaf) == ["root", str(number), str(number)]


def race(store: ResponseStore, keys: IsolationKeys, after: list[str]) -> list[str]:
    def contend(number: int) -> str:
        return asyncio.run(add(store, keys, after[number], str(number)))

    with ThreadPoolExecutor(len(after)) as threads:
        return list(threads.map(contend, range(len(after))))


@pytest.mark.parametrize(
    ("owner", "other"),
    [
        (IsolationKeys("ann"), IsolationKeys("bob")),
        (IsolationKeys("ann"), IsolationKeys("ann", "chat")),
        (IsolationKeys("ann", "chat"), IsolationKeys("ann")),
        (IsolationKeys("ann", "one"), IsolationKeys("ann", "two")),
        (IsolationKeys("ann"), IsolationKeys("ann", "")),
        (IsolationKeys("ann", "null"), IsolationKeys("ann")),
        (IsolationKeys('ann","chat'), IsolationKeys("ann", "chat")),
        (IsolationKeys("ann/b"), IsolationKeys("ann", "b")),
    ],
)
async def test_a_tenant_sees_nothing_of_another(
    store: ResponseStore, owner: IsolationKeys, other: IsolationKeys
) -> None:
    root = await add(store, owner)
    item_id = ids.item_id("message", root.removeprefix("resp_"), 1)
    named = await add(store, owner, id="my-own-id")

    for response_id in (root, named):
        assert await store.branch(other, response_id) is None
        assert await store.get(other, response_id) is None
        assert await store.turns(other, response_id) is None
        assert await store.delete(other, response_id) is False
        assert await store.get(owner, response_id) is not None
    assert await store.item(other, item_id) is None
    assert await store.item(owner, item_id) is not None


async def test_two_tenants_may_use_the_same_id_of_their_own_making(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    await add(store, ann, None, "hers", id="my-own-id")
    await add(store, BOB, None, "his", id="my-own-id")

    assert await texts(store, ann, "my-own-id") == ["hers"]
    assert await texts(store, BOB, "my-own-id") == ["his"]


@pytest.mark.parametrize("keys", [IsolationKeys(), IsolationKeys(None, "chat"), IsolationKeys("")])
async def test_nothing_is_stored_for_nobody(store: ResponseStore, keys: IsolationKeys) -> None:
    with pytest.raises(ValueError, match="name none"):
        await store.branch(keys, None)
    with pytest.raises(ValueError, match="name none"):
        await store.get(keys, ids.response_id("01" + "0" * 50))


@pytest.mark.parametrize("status", list(Status))
async def test_a_turn_of_any_status_is_kept_and_only_some_can_be_continued(
    store: ResponseStore, ann: IsolationKeys, status: Status
) -> None:
    root = await add(store, ann, None, "root")
    response_id = await add(store, ann, root, status.value, status=status)

    kept = await store.get(ann, response_id)

    assert kept is not None
    assert kept.response.status is status
    assert await texts(store, ann, response_id) == ["root", status.value]
    can_continue = status in (Status.COMPLETED, Status.INCOMPLETE)
    assert (await store.branch(ann, response_id) is not None) == can_continue
    item_id = kept.response.output[0]["id"]
    assert (await store.item(ann, item_id) is not None) == can_continue


async def test_a_failed_attempt_does_not_disturb_the_next(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    root = await add(store, ann, None, "root")
    await add(store, ann, root, "failed", status=Status.FAILED)

    second = await add(store, ann, root, "second")

    assert await texts(store, ann, second) == ["root", "second"]


async def test_a_turn_that_was_only_begun_can_be_finished(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    branch = await store.branch(ann, None)
    assert branch is not None
    await store.save(ann, branch, turn(branch, "", status=Status.IN_PROGRESS))

    await store.save(ann, branch, turn(branch, "done"))

    assert await texts(store, ann, ids.response_id(branch.body)) == ["done"]


async def test_a_finished_turn_stays_as_it_was_first_saved(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    branch = await store.branch(ann, None)
    assert branch is not None
    first = turn(branch, "first")
    await store.save(ann, branch, first)

    await store.save(ann, branch, first)
    await store.save(ann, branch, turn(branch, noise(500_000), status=Status.FAILED))

    assert await store.get(ann, first.response.id) == first


async def test_saving_a_deleted_turn_again_does_not_bring_it_back(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    branch = await store.branch(ann, None)
    assert branch is not None
    kept = turn(branch)
    await store.save(ann, branch, kept)
    await store.delete(ann, kept.response.id)

    await store.save(ann, branch, kept)

    assert await store.get(ann, kept.response.id) is None


async def test_a_deleted_response_is_gone_with_all_that_followed_it(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    first, second, third = await chain(store, ann, 3)
    item_id = ids.item_id("message", second.removeprefix("resp_"), 1)

    assert await store.delete(ann, second) is True
    assert await store.delete(ann, second) is False

    assert await store.get(ann, second) is None
    assert await store.item(ann, item_id) is None
    for refused in (second, third):
        assert await store.branch(ann, refused) is None
        assert await store.turns(ann, refused) is None
    assert await texts(store, ann, first) == ["0"]
    assert await store.get(ann, third) is not None
    assert await texts(store, ann, await add(store, ann, first, "other")) == ["0", "other"]


async def test_a_turn_expires(
    store: ResponseStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    root = await add(store, ann)
    clock.now += MONTH_S - 1
    assert await store.get(ann, root) is not None

    clock.now += 2

    assert await store.get(ann, root) is None
    assert await store.turns(ann, root) is None
    assert await store.branch(ann, root) is None
    assert await store.item(ann, ids.item_id("message", root[5:], 1)) is None
    assert await store.delete(ann, root) is False


async def test_history_without_its_beginning_is_refused_not_shortened(
    store: ResponseStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    root = await add(store, ann)
    clock.now += MONTH_S / 4
    child = await add(store, ann, root)

    clock.now += MONTH_S - MONTH_S / 4 + 1

    assert await store.get(ann, child) is not None
    assert await store.turns(ann, child) is None
    assert await store.branch(ann, child) is None


async def test_going_on_renews_the_history_before(
    store: ResponseStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    last = await add(store, ann, None, "root")
    for _ in range(5):
        clock.now += MONTH_S * 0.6
        last = await add(store, ann, last, "later")

    assert await texts(store, ann, last) == ["root", *["later"] * 5]


async def test_a_custom_id_does_all_that_a_minted_one_does(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    named = await add(store, ann, None, "named", id="my id/../\x00🌍")
    child = await add(store, ann, named, "child", id="x" * 10_000)

    assert await texts(store, ann, child) == ["named", "child"]
    kept = await store.get(ann, child)
    assert kept is not None
    assert kept.response.previous_response_id == named
    item_id = kept.response.output[0]["id"]
    assert await store.item(ann, item_id) == kept.response.output[0]
    assert await store.delete(ann, named) is True
    assert await store.get(ann, named) is None
    assert await store.branch(ann, child) is None


async def test_a_custom_id_is_used_once(store: ResponseStore, ann: IsolationKeys) -> None:
    branch = await store.branch(ann, None)
    other = await store.branch(ann, None)
    assert branch is not None
    assert other is not None
    first = turn(branch, "first", id="my-own-id")
    await store.save(ann, branch, first)

    await store.save(ann, branch, first)
    with pytest.raises(StoreError, match="taken"):
        await store.save(ann, other, turn(other, "second", id="my-own-id"))

    assert await store.get(ann, "my-own-id") == first
    assert await store.get(ann, ids.response_id(other.body)) is None


async def test_a_custom_id_that_looks_minted_is_refused(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    branch = await store.branch(ann, None)
    assert branch is not None

    with pytest.raises(StoreError, match="minted"):
        await store.save(ann, branch, turn(branch, id=ids.response_id("01" + "a" * 50)))


async def test_a_custom_id_expires_with_its_response(
    store: ResponseStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    await add(store, ann, None, "first", id="my-own-id")

    clock.now += MONTH_S + 1

    assert await store.get(ann, "my-own-id") is None
    await add(store, ann, None, "second", id="my-own-id")
    assert await texts(store, ann, "my-own-id") == ["second"]


async def test_an_item_is_found_by_its_id_alone(store: ResponseStore, ann: IsolationKeys) -> None:
    response_id = await add(store, ann, await add(store, ann), "found")
    kept = await store.get(ann, response_id)
    assert kept is not None

    for item in (*kept.input, *kept.response.output):
        assert await store.item(ann, item["id"]) == item
    body = response_id.removeprefix("resp_")
    assert await store.item(ann, ids.item_id("message", body, 2)) is None
    assert await store.item(ann, ids.item_id("reasoning", body, 1)) is None


@pytest.mark.parametrize(
    "mutation",
    [
        "resp_",
        "",
        "{body}",
        "resp_{body}0",
        "resp_{body}\n",
        "resp_{upper}",
        "resp_../{body}",
        "resp_{body}/../../x",
        "RESP_{body}",
        "resp_resp_{body}",
        "resp_{other_version}",
        "resp_{other_nonce}",
        "resp_{other_thread}",
        "resp_{deep}",
        "\x00",
        "resp_%00",
        "t#x#y",
        "🌍",
        "{huge}",
    ],
)
async def test_an_id_that_nobody_minted_is_an_unknown_one(
    store: ResponseStore, ann: IsolationKeys, mutation: str
) -> None:
    body = (await add(store, ann)).removeprefix("resp_")
    hostile = mutation.format(
        body=body,
        upper=body[:-4] + "ABCD",
        other_version="ff" + body[2:],
        other_nonce=body[:36] + "0" * 16,
        other_thread="01" + "0" * 20 + body[22:],
        deep=body[:30] + "ffffff" + body[36:],
        huge="resp_" + "a" * 100_000,
    )

    assert await store.get(ann, hostile) is None
    assert await store.turns(ann, hostile) is None
    assert await store.branch(ann, hostile) is None
    assert await store.item(ann, hostile) is None
    assert await store.item(ann, f"msg_{hostile}") is None
    assert await store.delete(ann, hostile) is False


async def test_a_turn_of_several_megabytes_is_kept_whole(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    root = await add(store, ann, None, "root")
    large = noise(2_500_000)
    middle = await add(store, ann, root, large)
    last = await add(store, ann, middle, "last")

    assert await texts(store, ann, last) == ["root", large, "last"]
    kept = await store.get(ann, middle)
    assert kept is not None
    assert answer(kept) == large
    assert await store.delete(ann, middle) is True
    assert await store.branch(ann, last) is None


async def test_a_long_history_of_more_than_a_page_is_whole(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    large = [noise(290_000, seed) for seed in range(6)]
    last: str | None = None
    for text in large:
        last = await add(store, ann, last, text)

    assert last is not None
    assert await texts(store, ann, last) == large
    branch = await store.branch(ann, last)
    assert branch is not None
    assert [answer(each) for each in branch.turns] == large


async def test_what_a_caller_does_to_what_it_read_changes_nothing_that_is_kept(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    branch = await store.branch(ann, None)
    assert branch is not None
    kept = turn(branch, "kept", question="asked")
    await store.save(ann, branch, kept)
    read = await store.get(ann, kept.response.id)
    continued = await store.branch(ann, kept.response.id)
    assert read is not None
    assert continued is not None
    read.input.clear()
    read.response.output[0]["content"][0]["text"] = "changed"
    continued.turns[0].response.output.clear()

    again = await store.get(ann, kept.response.id)

    assert again == turn(branch, "kept", question="asked")


async def test_random_trees_are_kept_like_a_dictionary_of_paths(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    random = Random(7)
    paths: dict[str, list[str]] = {}
    deleted: set[str] = set()
    for number in range(30):
        after = random.choice([None, *paths]) if number else None
        path = paths.get(after or "", [])
        branch = await store.branch(ann, after)
        assert (branch is None) == bool(deleted & {*path, after})
        if branch is None:
            continue
        kept = turn(branch, token_hex(4))
        await store.save(ann, branch, kept)
        paths[kept.response.id] = [*path, kept.response.id]
        if random.random() < 0.1:
            assert await store.delete(ann, kept.response.id)
            deleted.add(kept.response.id)

    for response_id, path in paths.items():
        found = await store.turns(ann, response_id)
        if deleted & {*path}:
            assert found is None
        else:
            assert found is not None
            assert [each.response.id for each in found] == path


async def test_a_branch_of_another_store_is_refused_or_a_root(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    foreign = Branch("01" + "a" * 50, (), "elsewhere")

    try:
        await store.save(ann, foreign, StoredTurn([], turn(foreign).response))
    except StoreError:
        assert await store.get(ann, ids.response_id(foreign.body)) is None


# Turns that were begun, and are finished by whoever reopens them


JOB = {"request": {"options": {"temperature": 0.5}, "text": "Grüße"}, "n": [1, None, True]}


async def begin(
    store: ResponseStore, keys: IsolationKeys, after: str | None = None, **fields: Any
) -> StoredTurn:
    """Store a turn that was only begun, with its job, and return it."""
    branch = await store.branch(keys, after)
    assert branch is not None
    begun = replace(turn(branch, **{"status": Status.QUEUED, "output": [], **fields}), job=JOB)
    await store.save(keys, branch, begun)
    return begun


def finished(begun: StoredTurn, text: str, status: Status = Status.COMPLETED) -> StoredTurn:
    """Return what became of a turn that was begun."""
    said = turn(Branch(begun.response.id.removeprefix("resp_")), text).response.output
    return replace(begun, response=replace(begun.response, status=status, output=said), job=None)


async def reopened(
    store: ResponseStore, keys: IsolationKeys, response_id: str, **options: bool
) -> Branch:
    opened = await store.reopen(keys, response_id, **options)
    assert opened is not None
    return opened[1]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.IN_PROGRESS])
async def test_a_turn_that_was_begun_is_reopened_with_its_job_and_its_history(
    store: ResponseStore, ann: IsolationKeys, status: Status
) -> None:
    first, second = await chain(store, ann, 2)
    begun = await begin(store, ann, second, status=status)

    opened = await store.reopen(ann, begun.response.id)

    assert opened is not None
    assert opened[0] == begun
    assert opened[0].job == JOB
    assert ids.response_id(opened[1].body) == begun.response.id
    assert opened[1].turns == (await store.get(ann, first), await store.get(ann, second))
    assert await store.get(ann, begun.response.id) == begun


async def test_the_first_turn_of_a_thread_is_reopened_without_any_history(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)

    opened = await store.reopen(ann, begun.response.id)

    assert opened is not None
    assert (opened[0], opened[1].turns) == (begun, ())


async def test_history_that_is_not_asked_for_is_not_there(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann, await add(store, ann))

    opened = await store.reopen(ann, begun.response.id, with_history=False)

    assert opened is not None
    assert (opened[0], opened[1].turns) == (begun, ())
    await store.save(ann, opened[1], finished(begun, "done"))
    assert await texts(store, ann, begun.response.id) == ["Hello!", "done"]


@pytest.mark.parametrize("status", [each for each in Status if each.is_terminal])
async def test_saving_a_reopened_branch_finishes_its_turn(
    store: ResponseStore, ann: IsolationKeys, status: Status
) -> None:
    root = await add(store, ann, None, "root")
    begun = await begin(store, ann, root)
    branch = await reopened(store, ann, begun.response.id)
    done = finished(begun, "done", status)

    await store.save(ann, branch, done)

    assert await store.get(ann, begun.response.id) == done
    assert await store.reopen(ann, begun.response.id) is None
    assert await store.reopen(ann, begun.response.id, with_history=False) is None
    assert await texts(store, ann, begun.response.id) == ["root", "done"]
    can_continue = status in (Status.COMPLETED, Status.INCOMPLETE)
    assert (await store.branch(ann, begun.response.id) is not None) == can_continue


async def test_a_reopened_turn_of_a_fork_stays_in_its_fork(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    trunk = await chain(store, ann, 3)
    forked = await begin(store, ann, trunk[0])
    of_fork = await add(store, ann, trunk[0], "other")
    branch = await reopened(store, ann, forked.response.id)
    await store.save(ann, branch, finished(forked, "fork"))

    last = await add(store, ann, forked.response.id, "last")

    assert [answer(each) for each in branch.turns] == ["0"]
    assert await texts(store, ann, last) == ["0", "fork", "last"]
    assert await texts(store, ann, of_fork) == ["0", "other"]
    assert await texts(store, ann, trunk[2]) == ["0", "1", "2"]


async def test_a_turn_with_an_id_of_the_callers_making_is_reopened_by_it(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann, id="my-own-id")
    branch = await reopened(store, ann, "my-own-id")
    done = replace(begun, response=replace(begun.response, status=Status.FAILED), job=None)

    await store.save(ann, branch, done)

    assert ids.response_body(ids.response_id(branch.body)) == branch.body
    assert await store.get(ann, "my-own-id") == done


async def test_what_is_not_there_to_be_finished_is_not_reopened(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)
    body = begun.response.id.removeprefix("resp_")
    ends = [await add(store, ann, status=each) for each in Status if each.is_terminal]
    unknown = [ids.response_id("01" + "0" * 50), ids.response_id(body[:-1] + "x"), "", "custom"]

    for response_id in (*ends, *unknown):
        assert await store.reopen(ann, response_id) is None
    for keys in (BOB, IsolationKeys("ann", "chat")):
        assert await store.reopen(keys, begun.response.id) is None
        assert await store.reopen(keys, begun.response.id, with_history=False) is None


async def test_a_turn_whose_history_was_deleted_is_reopened_without_history_only(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    first, second = await chain(store, ann, 2)
    begun = await begin(store, ann, second)
    await store.delete(ann, first)

    assert await store.reopen(ann, begun.response.id) is None
    branch = await reopened(store, ann, begun.response.id, with_history=False)

    failed = finished(begun, "", Status.FAILED)
    await store.save(ann, branch, failed)
    assert await store.get(ann, begun.response.id) == failed


async def test_a_turn_that_was_begun_expires(
    store: ResponseStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)
    clock.now += MONTH_S + 1

    assert await store.reopen(ann, begun.response.id) is None
    assert await store.reopen(ann, begun.response.id, with_history=False) is None


async def test_whoever_is_second_is_told_what_the_first_has_stored(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)
    one = await reopened(store, ann, begun.response.id)
    other = await reopened(store, ann, begun.response.id, with_history=False)
    completed = finished(begun, "completed")
    await store.save(ann, one, completed)

    for branch in (one, other):
        with pytest.raises(ConcludedError) as told:
            await store.save(ann, branch, finished(begun, "so far", Status.CANCELLED))
        assert told.value.turn == completed

    assert await store.get(ann, begun.response.id) == completed


async def test_saving_the_same_end_again_is_no_conflict(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)
    one = await reopened(store, ann, begun.response.id)
    other = await reopened(store, ann, begun.response.id)
    done = finished(begun, noise(300_000))

    for branch in (one, one, other):
        await store.save(ann, branch, done)

    assert await store.get(ann, begun.response.id) == done


async def test_of_many_ends_at_once_one_counts_and_all_learn_it(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)

    def contend(number: int) -> StoredTurn:
        async def finish() -> StoredTurn:
            done = finished(begun, str(number))
            try:
                await store.save(ann, branches[number], done)
            except ConcludedError as concluded:
                return concluded.turn
            return done

        return asyncio.run(finish())

    branches = [await reopened(store, ann, begun.response.id) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        ends = [*threads.map(contend, range(8))]

    assert ends == [await store.get(ann, begun.response.id)] * 8


async def test_a_turn_that_was_begun_is_neither_continued_nor_deleted(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)

    assert await store.branch(ann, begun.response.id) is None
    with pytest.raises(UnfinishedError):
        await store.delete(ann, begun.response.id)

    assert await store.get(ann, begun.response.id) == begun
    assert await store.delete(BOB, begun.response.id) is False
    await store.save(ann, await reopened(store, ann, begun.response.id), finished(begun, "done"))
    assert await store.delete(ann, begun.response.id) is True
    assert await store.get(ann, begun.response.id) is None


async def test_finishing_what_was_deleted_meanwhile_does_not_bring_it_back(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)
    worker = await reopened(store, ann, begun.response.id)
    canceller = await reopened(store, ann, begun.response.id)
    await store.save(ann, canceller, finished(begun, "", Status.CANCELLED))
    await store.delete(ann, begun.response.id)

    await store.save(ann, worker, finished(begun, "done"))

    assert await store.get(ann, begun.response.id) is None


@pytest.mark.parametrize(("before", "after"), [(400_000, 10), (10, 400_000), (400_000, 400_000)])
async def test_a_turn_is_finished_at_another_size_than_it_was_begun_with(
    store: ResponseStore, ann: IsolationKeys, before: int, after: int
) -> None:
    begun = await begin(store, ann, question=noise(before, 1))
    branch = await reopened(store, ann, begun.response.id)
    assert await store.get(ann, begun.response.id) == begun
    done = replace(finished(begun, noise(after, 2)), input=[])

    await store.save(ann, branch, done)

    assert await store.get(ann, begun.response.id) == done


async def test_a_turn_that_is_stored_again_as_it_was_begun_stays_whole(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann, question=noise(400_000))
    branch = await reopened(store, ann, begun.response.id)

    await store.save(ann, branch, begun)

    assert await store.get(ann, begun.response.id) == begun


async def test_a_result_that_is_too_large_leaves_the_turn_to_be_finished_smaller(
    store: ResponseStore, ann: IsolationKeys
) -> None:
    if isinstance(store, InMemoryResponseStore):
        pytest.skip("memory holds turns of any size")
    begun = await begin(store, ann)
    branch = await reopened(store, ann, begun.response.id)

    with pytest.raises(TurnTooLargeError):
        await store.save(ann, branch, finished(begun, noise(9_000_000)))

    assert await store.get(ann, begun.response.id) == begun
    failed = finished(begun, "", Status.FAILED)
    await store.save(ann, branch, failed)
    assert await store.get(ann, begun.response.id) == failed


async def test_a_history_is_gone_on_with_up_to_its_bound_and_refused_beyond_it(
    store: ResponseStore, ann: IsolationKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = None
    for _ in range(3):
        last = await add(store, ann, last, "a" * 4_000)
    assert last is not None
    size = sum(len(msgspec.json.encode(each)) for each in await store.turns(ann, last) or ())

    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", size)
    assert await texts(store, ann, last) == ["a" * 4_000] * 3
    waiting = await add(store, ann, last, status=Status.QUEUED)
    assert await store.reopen(ann, waiting) is not None

    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", size - 1)
    for reading in (store.branch, store.turns):
        with pytest.raises(HistoryTooLargeError):
            await reading(ann, last)
    with pytest.raises(HistoryTooLargeError):
        await store.reopen(ann, waiting)
    assert await store.reopen(ann, waiting, with_history=False) is not None
    assert await store.get(ann, last) is not None
    assert await store.branch(BOB, last) is None


@pytest.mark.parametrize("size", [4_000, 400_000])
async def test_what_was_said_before_a_reset_takes_no_room(
    store: ResponseStore, ann: IsolationKeys, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", 3 * size + 5_000)
    made: list[str] = []
    for number in range(6):
        place = await store.branch(ann, made[-1] if made else None)
        assert place is not None
        kept = replace(turn(place, f"{number}" * size), resets=number in (2, 4))
        await store.save(ann, place, kept)
        made.append(kept.response.id)
    waiting = await add(store, ann, made[-1], status=Status.QUEUED)

    branch, opened = await store.branch(ann, made[-1]), await store.reopen(ann, waiting)

    assert branch is not None
    assert opened is not None
    for turns in (branch.turns, opened[1].turns, await store.turns(ann, made[-1])):
        assert [(answer(each)[0], each.resets) for each in turns or ()] == [
            ("4", True),
            ("5", False),
        ]
    given = await store.turns(ann, made[4]) or ()  # what a turn that resets was given itself
    assert [answer(each)[0] for each in given] == ["2", "3", "4"]
