"""What history costs, as dynalite counts it: one write unit per turn, one Query per continuation."""

from typing import Any

import pytest

from channel.isolation import IsolationKeys
from channel.ports import Branch, TurnTooLargeError
from channel.responses.protocol import ids
from infra.dynamodb import codec, keys
from infra.dynamodb.store import MONTH_S, DynamoDBResponseStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Meter
from tests.infra.prose import question_and_answer
from tests.infra.turns import add, answer, chain, noise, own_secret, texts, turn


pytestmark = pytest.mark.anyio


@pytest.fixture
def store(metered: tuple[Any, Meter], clock: MovableClock) -> DynamoDBResponseStore:
    client, _ = metered
    return DynamoDBResponseStore(
        client, engines.TABLE, secret=own_secret(), clock=clock, aliases=True
    )


@pytest.fixture
def meter(metered: tuple[Any, Meter]) -> Meter:
    _, meter = metered
    meter.take()
    return meter


async def test_a_thousand_turns_cost_one_write_each_and_one_query_to_continue(
    store: DynamoDBResponseStore, meter: Meter, ann: IsolationKeys
) -> None:
    places = await write_chain(store, ann, 1000)

    written = meter.take()["PutItem"]
    assert written == [1.0] * 1000

    # The table of the design, for turns of 1 KB of text; to be cheaper is welcome.
    for length, designed in ((10, 1.5), (100, 12.0), (1000, 115.5)):
        branch = await store.branch(ann, ids.response_id(places[length - 1].node.body))
        consumed = meter.take()
        assert branch is not None
        assert len(branch.turns) == length
        assert [*consumed] == ["Query"]
        (units,) = consumed["Query"]
        assert designed * 0.5 <= units <= designed * 1.1


async def write_chain(
    store: DynamoDBResponseStore, isolation: IsolationKeys, length: int
) -> list[keys.Place]:
    """Write a chain of turns of 1 KB of text, without reading it again before each."""
    places: list[keys.Place] = []
    place = keys.root_place(store._new_token)
    for number in range(length):
        question, said = question_and_answer(number)
        assert len(question) + len(said) == 1024
        previous = ids.response_id(place.parent.body) if place.parent else None
        branch = Branch(place.node.body, (), place)
        kept = turn(branch, said, question=question, previous_response_id=previous)
        await store.save(isolation, branch, kept)
        places.append(place)
        place = keys.child_place(place.node, (), store._new_token, is_lane_taken=False)
    return places


async def test_a_fork_costs_one_query_more(
    store: DynamoDBResponseStore, meter: Meter, ann: IsolationKeys
) -> None:
    places = await write_chain(store, ann, 51)
    last = ids.response_id(places[49].node.body)
    for number in range(3):
        last = await add(store, ann, last, str(number))
    meter.take()

    branch = await store.branch(ann, last)

    consumed = meter.take()
    assert branch is not None
    assert len(branch.turns) == 53
    assert len(consumed["Query"]) == 2
    assert [*consumed] == ["Query"]
    assert sum(consumed["Query"]) <= 6.5 * 1.1


@pytest.mark.parametrize("letters", [1, 512, 1024, 1200])
async def test_a_short_turn_is_one_write_also_in_a_fork_of_forks(
    store: DynamoDBResponseStore, meter: Meter, ann: IsolationKeys, letters: int
) -> None:
    last = await add(store, ann)
    for _ in range(3):
        await add(store, ann, last)
        last = await add(store, ann, last)
    branch = await store.branch(ann, last)
    assert branch is not None
    question, said = question_and_answer(1, letters + 200)
    meter.take()

    await store.save(ann, branch, turn(branch, said, question=question[:letters]))

    assert meter.take() == {"PutItem": [1.0]}


async def test_reading_one_response_costs_its_size_not_its_history(
    store: DynamoDBResponseStore, meter: Meter, ann: IsolationKeys
) -> None:
    last = (await chain(store, ann, 20))[-1]
    meter.take()

    await store.get(ann, last)
    await store.get(ann, "resp_" + "01" + "0" * 50)

    assert meter.take() == {"GetItem": [1.0, 1.0]}


async def test_renewing_costs_a_write_for_each_turn_once_in_half_a_lifetime(
    store: DynamoDBResponseStore, meter: Meter, clock: MovableClock, ann: IsolationKeys
) -> None:
    last = (await chain(store, ann, 5))[-1]
    clock.now += MONTH_S * 0.6
    meter.take()

    await store.branch(ann, last)
    assert meter.take()["UpdateItem"] == [1.0] * 5

    await store.branch(ann, last)
    assert "UpdateItem" not in meter.take()


async def test_a_row_is_filled_to_its_edge(
    store: DynamoDBResponseStore, meter: Meter, ann: IsolationKeys
) -> None:
    branch = await store.branch(ann, None)
    other = await store.branch(ann, None)
    assert branch is not None
    assert other is not None
    length = fitting(branch)
    full, beyond = turn(branch, noise(length)), turn(other, noise(length + 99))
    meter.take()

    await store.save(ann, branch, full)
    assert len(meter.take()["PutItem"]) == 1
    await store.save(ann, other, beyond)
    assert len(meter.take()["PutItem"]) == 3

    assert await store.get(ann, full.response.id) == full
    assert await store.get(ann, beyond.response.id) == beyond


def fitting(branch: Branch) -> int:
    """Return about how many letters of noise fill a row: 64 more no longer fit."""
    low, high = codec.CHUNK_BYTES, 2 * codec.CHUNK_BYTES
    while high - low > 32:
        middle = (low + high) // 2
        kept = turn(branch, noise(middle))
        fits = len(codec.encode(kept, branch.body, None)) <= codec.CHUNK_BYTES
        low, high = (middle, high) if fits else (low, middle)
    return low


async def test_the_largest_turn_is_kept_and_a_larger_one_leaves_nothing(
    store: DynamoDBResponseStore, ann: IsolationKeys
) -> None:
    kept = await add(store, ann, None, noise(8_100_000))
    branch = await store.branch(ann, kept)
    assert branch is not None
    assert [len(answer(each)) for each in branch.turns] == [8_100_000]

    with pytest.raises(TurnTooLargeError):
        await store.save(ann, branch, turn(branch, noise(8_200_000)))

    assert await store.get(ann, ids.response_id(branch.body)) is None
    assert await texts(store, ann, await add(store, ann, None, "next")) == ["next"]
