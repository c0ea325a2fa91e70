"""What only the DynamoDB store does: which reads and writes it makes, and how it takes a stale read."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
from msgspec.structs import replace

from channel.isolation import IsolationKeys
from channel.ports import Branch, StoredTurn, StoreError
from channel.responses.protocol import ids
from channel.responses.protocol.response import Status
from infra.dynamodb import codec, keys
from infra.dynamodb.client import Table
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


# Turns that were begun


async def begin(
    store: DynamoDBResponseStore, isolation: IsolationKeys, after: str | None = None, size: int = 0
) -> StoredTurn:
    """Store a turn that was only begun, with a question of that size and a job."""
    branch = await store.branch(isolation, after)
    assert branch is not None
    begun = turn(branch, question=noise(size), status=Status.QUEUED, output=[])
    begun = replace(begun, job={"marker": noise(600, 1)})
    await store.save(isolation, branch, begun)
    return begun


def finished(begun: StoredTurn) -> StoredTurn:
    """Return the small end of a turn that was begun."""
    return replace(
        begun, input=[], response=replace(begun.response, status=Status.FAILED), job=None
    )


async def rows_of(
    store: DynamoDBResponseStore, client: Any, isolation: IsolationKeys, begun: StoredTurn
) -> dict[str, Any]:
    """Return the rows of a turn, by sort key: its own and its chunks."""
    node = keys.parse_body(begun.response.id.removeprefix("resp_"))
    assert isinstance(node, keys.Node)
    partition = keys.thread_partition(await store._tenant(isolation), node.thread)
    between = (node.sort_key, node.sort_key + "~")
    items = await Table(client, engines.TABLE).query(partition, between, is_strong=True)
    return {item["sk"]["S"]: item for item in items}


async def test_a_turn_is_reopened_by_one_read_and_one_query_of_its_history(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann, (await chain(store, ann, 5))[-1])
    watched.take()

    assert await store.reopen(ann, begun.response.id) is not None
    assert watched.take() == {"get": 1, "query": 1}

    assert await store.reopen(ann, begun.response.id, with_history=False) is not None
    assert watched.take() == {"get": 1}


async def test_finishing_a_small_turn_is_one_write(
    store: DynamoDBResponseStore, watched: Watched, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)
    opened = await store.reopen(ann, begun.response.id)
    assert opened is not None
    watched.take()

    await store.save(ann, opened[1], finished(begun))

    assert watched.take() == {"put": 1}


async def test_the_chunks_of_a_large_turn_are_gone_when_it_is_finished_small(
    store: DynamoDBResponseStore, moto_client: Any, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann, size=500_000)
    opened = await store.reopen(ann, begun.response.id)
    assert opened is not None
    assert len(await rows_of(store, moto_client, ann, begun)) == 3

    await store.save(ann, opened[1], finished(begun))

    ((sort_key, row),) = (await rows_of(store, moto_client, ann, begun)).items()
    assert not keys.is_chunk_key(sort_key)
    assert row["st"] == {"S": "f"}
    assert await store.get(ann, begun.response.id) == finished(begun)


async def test_the_payload_of_a_finished_turn_does_not_hold_its_job(
    store: DynamoDBResponseStore, moto_client: Any, ann: IsolationKeys
) -> None:
    begun = await begin(store, ann)
    opened = await store.reopen(ann, begun.response.id)
    assert opened is not None
    (before,) = (await rows_of(store, moto_client, ann, begun)).values()

    await store.save(ann, opened[1], finished(begun))

    (after,) = (await rows_of(store, moto_client, ann, begun)).values()
    kept = codec.decode(after["d"]["B"], opened[1].body, None)
    assert (kept, kept.job) == (finished(begun), None)
    assert len(before["d"]["B"]) > len(after["d"]["B"]) + 400


async def test_chunks_that_cannot_be_deleted_do_not_fail_the_turn_that_is_kept(
    moto_client: Any, clock: MovableClock, ann: IsolationKeys, caplog: pytest.LogCaptureFixture
) -> None:
    store = DynamoDBResponseStore(
        Undeletable(moto_client), engines.TABLE, secret=own_secret(), clock=clock
    )
    begun = await begin(store, ann, size=500_000)
    opened = await store.reopen(ann, begun.response.id)
    assert opened is not None

    await store.save(ann, opened[1], finished(begun))

    assert await store.get(ann, begun.response.id) == finished(begun)
    (record,) = caplog.records
    assert record.getMessage() == "chunks were not deleted"
    left = await rows_of(store, moto_client, ann, begun)
    assert len(left) == 3
    assert all("ttl" in row for row in left.values())


class Undeletable(Watched):
    """A client that can delete nothing."""

    def delete_item(self, **arguments: Any) -> dict[str, Any]:
        raise ReadTimeoutError(endpoint_url="http://127.0.0.1")


async def test_a_large_turn_that_is_finished_while_it_is_read_is_not_missed(
    moto_client: Any, clock: MovableClock, ann: IsolationKeys
) -> None:
    reading, secret = Interrupted(moto_client), own_secret()
    reader = DynamoDBResponseStore(reading, engines.TABLE, secret=secret, clock=clock)
    worker = DynamoDBResponseStore(moto_client, engines.TABLE, secret=secret, clock=clock)
    begun = await begin(worker, ann, size=500_000)
    opened = await worker.reopen(ann, begun.response.id)
    assert opened is not None
    branch = opened[1]

    reading.then = lambda: asyncio.run(worker.save(ann, branch, finished(begun)))

    assert await reader.get(ann, begun.response.id) == finished(begun)
    assert reading.then is None


class Interrupted(Watched):
    """A client before whose next query something happens."""

    then: Callable[[], None] | None = None

    def query(self, **arguments: Any) -> dict[str, Any]:
        if self.then is not None:
            then, self.then = self.then, None
            then()
        return super().query(**arguments)
