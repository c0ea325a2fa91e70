"""What only the DynamoDB store does: which reads and writes it makes, and how it takes a stale read."""

from collections import Counter
from typing import Any

import pytest

from channel.isolation import IsolationKeys
from channel.ports import Branch, StoreError
from channel.responses.protocol import ids
from channel.responses.protocol.response import Status
from infra.dynamodb import keys
from infra.dynamodb.codec import CorruptTurnError
from infra.dynamodb.store import MAX_RENEWALS, MONTH_S, DynamoDBResponseStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.turns import add, chain, noise, own_secret, texts, turn


pytestmark = pytest.mark.anyio


class Watched:
    """A client that counts its calls, and whose eventually consistent reads may lag behind."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: Counter[str] = Counter()
        self.updated: list[str] = []
        self.hidden: set[str] = set()
        self.old: dict[str, dict[str, Any]] = {}

    def take(self) -> dict[str, int]:
        """Return the calls since the last time."""
        taken, self.calls = dict(self.calls), Counter()
        return taken

    def query(self, **arguments: Any) -> dict[str, Any]:
        is_strong = arguments["ConsistentRead"]
        self.calls["strong query" if is_strong else "query"] += 1
        found: dict[str, Any] = self._client.query(**arguments)
        if not is_strong:
            found["Items"] = [
                {**item, **self.old.get(item["sk"]["S"], {})}
                for item in found["Items"]
                if not any(part in item["sk"]["S"] for part in self.hidden)
            ]
        return found

    def get_item(self, **arguments: Any) -> dict[str, Any]:
        return self._counted("get", self._client.get_item, arguments)

    def put_item(self, **arguments: Any) -> dict[str, Any]:
        return self._counted("put", self._client.put_item, arguments)

    def update_item(self, **arguments: Any) -> dict[str, Any]:
        self.updated.append(arguments["Key"]["sk"]["S"])
        return self._counted("update", self._client.update_item, arguments)

    def delete_item(self, **arguments: Any) -> dict[str, Any]:
        return self._counted("delete", self._client.delete_item, arguments)

    def _counted(self, name: str, call: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        self.calls[name] += 1
        found: dict[str, Any] = call(**arguments)
        return found


@pytest.fixture
def watched(moto_client: Any) -> Watched:
    return Watched(moto_client)


@pytest.fixture
def store(watched: Watched, clock: MovableClock) -> DynamoDBResponseStore:
    return DynamoDBResponseStore(watched, engines.TABLE, secret=own_secret(), clock=clock)


async def test_a_continuation_is_one_query_and_one_write(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys
) -> None:
    last = (await chain(store, ann, 5))[-1]
    watched.take()

    await add(store, ann, last)

    assert watched.take() == {"query": 1, "put": 1}


async def test_a_new_thread_is_one_write(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys
) -> None:
    await add(store, ann)

    assert watched.take() == {"put": 1}


async def test_more_lanes_than_eight_are_read_at_once(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys
) -> None:
    last = await add(store, ann)
    queries: list[int] = []
    for _ in range(10):
        await add(store, ann, last)
        watched.take()
        last = await add(store, ann, last)
        queries.append(watched.take()["query"])

    assert queries == [1, 2, 3, 4, 5, 6, 7, 8, 9, 2]


@pytest.mark.parametrize("response_id", ["", "resp_", "resp_x", "custom", "resp_02" + "0" * 50])
async def test_an_id_that_nobody_minted_costs_no_read(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys, response_id: str
) -> None:
    assert await store.branch(ann, response_id) is None
    assert await store.get(ann, response_id) is None
    assert await store.turns(ann, response_id) is None
    assert await store.item(ann, response_id) is None
    assert await store.delete(ann, response_id) is False

    assert watched.take() == {}


async def test_a_custom_id_that_could_not_be_found_again_is_refused(
    store: DynamoDBResponseStore, ann: IsolationKeys
) -> None:
    with pytest.raises(StoreError, match="aliases"):
        await add(store, ann, id="custom")


async def test_a_branch_of_another_store_is_refused(
    store: DynamoDBResponseStore, ann: IsolationKeys
) -> None:
    foreign = Branch("01" + "a" * 50)

    with pytest.raises(StoreError, match="branch"):
        await store.save(ann, foreign, turn(foreign))


@pytest.mark.parametrize("hidden", ["#0000001#", "#0000002#", "#0000003#", "#000"])
async def test_a_row_that_a_stale_read_lacks_is_read_again_strongly(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys, hidden: str
) -> None:
    last = (await chain(store, ann, 3))[-1]
    watched.take()
    watched.hidden.add(hidden)

    branch = await store.branch(ann, last)

    assert branch is not None
    assert len(branch.turns) == 3
    assert watched.take() == {"query": 1, "strong query": 1}


async def test_a_turn_that_a_stale_read_shows_unfinished_is_read_again_strongly(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys
) -> None:
    root = await add(store, ann)
    node = keys.parse_body(root.removeprefix("resp_"))
    assert node is not None
    watched.old[node.sort_key] = {"st": {"S": "i"}}

    assert await store.branch(ann, root) is not None


async def test_an_unknown_id_is_looked_for_twice_and_a_refusal_once(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys
) -> None:
    failed = await add(store, ann, status=Status.FAILED)
    watched.take()

    assert await store.branch(ann, ids.response_id("01" + "0" * 50)) is None
    assert watched.take() == {"query": 1, "strong query": 1}

    assert await store.branch(ann, failed) is None
    assert watched.take() == {"query": 1}


async def test_strict_reads_are_strong_at_once(
    watched: Watched, clock: MovableClock, ann: IsolationKeys
) -> None:
    store = DynamoDBResponseStore(
        watched, engines.TABLE, secret=own_secret(), clock=clock, strict_reads=True
    )
    root = await add(store, ann)
    watched.take()

    assert await store.branch(ann, root) is not None
    assert await store.branch(ann, ids.response_id("01" + "0" * 50)) is None

    assert watched.take() == {"strong query": 2}


async def test_a_renewal_is_bounded_and_begins_with_the_oldest(
    store: DynamoDBResponseStore, watched: Watched, clock: MovableClock, ann: IsolationKeys
) -> None:
    place = keys.root_place(store._new_token)
    for _ in range(MAX_RENEWALS + 5):
        branch = Branch(place.node.body, (), place)
        await store.save(ann, branch, turn(branch))
        last = ids.response_id(place.node.body)
        place = keys.child_place(place.node, (), store._new_token, is_lane_taken=False)
    clock.now += MONTH_S * 0.6

    await store.branch(ann, last)
    first = sorted(key.split("#")[2] for key in watched.updated)
    watched.updated.clear()
    await store.branch(ann, last)

    assert first == [f"{depth:07d}" for depth in range(1, MAX_RENEWALS + 1)]
    assert len(watched.updated) == 5


async def test_a_renewal_counts_chunks_and_renews_them_before_their_turn(
    store: DynamoDBResponseStore, watched: Watched, clock: MovableClock, ann: IsolationKeys
) -> None:
    root = await add(store, ann, None, noise(330_000))
    clock.now += MONTH_S * 0.6

    await store.branch(ann, root)

    assert [keys.is_chunk_key(key) for key in watched.updated] == [True, True, False]
    clock.now += MONTH_S * 0.6
    assert await texts(store, ann, root) == [noise(330_000)]


async def test_a_chunk_that_is_gone_is_a_gap(
    store: DynamoDBResponseStore, moto_client: Any, ann: IsolationKeys
) -> None:
    root = await add(store, ann, None, noise(330_000))
    child = await add(store, ann, root)
    partition, chunk = await a_chunk_of(store, moto_client, ann, root)

    moto_client.delete_item(
        TableName=engines.TABLE, Key={"pk": {"S": partition}, "sk": {"S": chunk}}
    )

    assert await store.get(ann, root) is None
    assert await store.turns(ann, child) is None
    assert await store.branch(ann, child) is None


async def test_a_chunk_that_is_damaged_is_an_error(
    store: DynamoDBResponseStore, moto_client: Any, ann: IsolationKeys
) -> None:
    root = await add(store, ann, None, noise(330_000))
    partition, chunk = await a_chunk_of(store, moto_client, ann, root)

    moto_client.update_item(
        TableName=engines.TABLE,
        Key={"pk": {"S": partition}, "sk": {"S": chunk}},
        UpdateExpression="SET d = :d",
        ExpressionAttributeValues={":d": {"B": b"damaged"}},
    )

    for read in (store.get, store.turns, store.branch):
        with pytest.raises(CorruptTurnError):
            await read(ann, root)


async def a_chunk_of(
    store: DynamoDBResponseStore, client: Any, isolation: IsolationKeys, response_id: str
) -> tuple[str, str]:
    node = keys.parse_body(response_id.removeprefix("resp_"))
    assert node is not None
    partition = keys.thread_partition(await store._tenant(isolation), node.thread)
    rows = client.query(
        TableName=engines.TABLE,
        KeyConditionExpression="pk = :pk AND begins_with(sk, :sk)",
        ExpressionAttributeValues={
            ":pk": {"S": partition},
            ":sk": {"S": node.sort_key + "#"},
        },
    )["Items"]
    return partition, rows[-1]["sk"]["S"]


async def test_what_is_kept_names_nobody_and_shows_no_text(
    store: DynamoDBResponseStore, moto_client: Any, ann: IsolationKeys
) -> None:
    question = "my secret question"
    root = await add(store, ann, None, "my secret answer", metadata={"ann": question})

    kept = [row for row in moto_client.scan(TableName=engines.TABLE)["Items"] if "d" in row]

    shown = str([{**row, "pk": row["pk"]["S"]} for row in kept])
    assert await store.get(ann, root) is not None
    assert question not in shown
    assert "'ann'" not in shown
