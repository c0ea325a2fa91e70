"""Whatever fails at whichever call: afterwards a turn is there as a whole, or not at all."""

from collections.abc import Awaitable
from typing import Any, Protocol

import pytest

from channel.isolation import IsolationKeys
from channel.ports import Branch, StoredTurn, StoreError
from channel.responses.protocol import ids
from infra.dynamodb import keys, rows
from infra.dynamodb.client import Client, Table, create_table
from infra.dynamodb.store import MONTH_S, DynamoDBResponseStore
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import KINDS, Died, Fault, retry_at_once
from tests.infra.turns import add, chain, noise, own_secret, texts, turn


pytestmark = pytest.mark.anyio

LARGE = noise(330_000)
"""An answer that takes two chunks."""


class Open(Protocol):
    """Makes the store of another process on the same rows."""

    def __call__(self, client: Client | None = None) -> DynamoDBResponseStore: ...


@pytest.fixture
def open_store(dynalite_client: Client, clock: MovableClock) -> Open:
    secret = own_secret()

    def open_it(client: Client | None = None) -> DynamoDBResponseStore:
        return DynamoDBResponseStore(
            client or dynalite_client, engines.TABLE, secret=secret, clock=clock, aliases=True
        )

    return open_it


async def fails(operation: Awaitable[object]) -> bool:
    try:
        await operation
    except (StoreError, Died):
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
async def test_a_save_that_is_cut_off_anywhere_leaves_the_whole_turn_or_nothing(
    fragile_client: Any, ann: IsolationKeys, open_store: Open, kind: str
) -> None:
    healthy = open_store()
    root = await add(healthy, ann, None, "root")
    outcomes: list[tuple[bool, bool]] = []
    at = 0
    while True:
        branch = await healthy.branch(ann, root)
        assert branch is not None
        kept = turn(branch, LARGE, id=f"custom-{kind}-{at}")
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(open_store(fragile_client).save(ann, branch, kept))
        if not fault.has_struck:
            break
        visible = await is_whole_or_nothing(healthy, ann, branch, kept)
        outcomes.append((failed, visible))
        await healthy.save(ann, branch, kept)
        assert await texts(healthy, ann, kept.response.id) == ["root", LARGE]
        at += 1

    # The alias, two chunks, the turn's own row: only once the last is written is there anything.
    is_after = kind.endswith("after_success")
    assert outcomes == [(True, False)] * 3 + [(True, is_after)]
    assert await texts(healthy, ann, root) == ["root"]


async def is_whole_or_nothing(
    store: DynamoDBResponseStore, keys: IsolationKeys, branch: Branch, kept: StoredTurn
) -> bool:
    found = await store.get(keys, kept.response.id)
    by_body = await store.get(keys, ids.response_id(branch.body))
    continued = await store.branch(keys, kept.response.id)
    chain = await store.turns(keys, kept.response.id)
    item = await store.item(keys, kept.response.output[0]["id"])
    if found is None:
        assert [by_body, continued, chain, item] == [None] * 4
        return False
    assert continued is not None
    assert continued.turns == chain == (*branch.turns, kept)
    assert (found, by_body, item) == (kept, kept, kept.response.output[0])
    return True


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deletion_that_is_cut_off_anywhere_can_be_repeated(
    fragile_client: Any, ann: IsolationKeys, open_store: Open, kind: str
) -> None:
    healthy = open_store()
    root = await add(healthy, ann, None, "root")
    at = 0
    while True:
        branch = await healthy.branch(ann, root)
        assert branch is not None
        kept = turn(branch, LARGE)
        await healthy.save(ann, branch, kept)
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(open_store(fragile_client).delete(ann, kept.response.id))
        if not fault.has_struck:
            break
        assert failed
        visible = await is_whole_or_nothing(healthy, ann, branch, kept)
        assert await healthy.delete(ann, kept.response.id) is visible
        assert not await is_whole_or_nothing(healthy, ann, branch, kept)
        assert await rows_of(healthy, ann, branch) == [True]
        at += 1

    assert at == 4  # a read, the tombstone, two chunks
    assert await texts(healthy, ann, root) == ["root"]


async def rows_of(
    store: DynamoDBResponseStore, isolation: IsolationKeys, branch: Branch
) -> list[bool]:
    """Return of each row that is left of a turn whether it is a tombstone."""
    node = keys.parse_body(branch.body)
    assert node is not None
    partition = keys.thread_partition(await store._tenant(isolation), node.thread)
    between = (node.sort_key, node.sort_key + "~")
    return [row["st"]["S"] == "D" for row in await store._table.query(partition, between)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_branch_that_is_cut_off_anywhere_is_right_or_an_error(
    fragile_client: Any,
    ann: IsolationKeys,
    open_store: Open,
    clock: MovableClock,
    kind: str,
) -> None:
    healthy = open_store()
    trunk = await chain(healthy, ann, 2)
    forked = await add(healthy, ann, trunk[0], LARGE, id=f"custom-{kind}")
    clock.now += MONTH_S * 0.6  # so that history is renewed, too
    at = 0
    while True:
        with Fault(fragile_client, kind, at) as fault:
            store = open_store(fragile_client)
            try:
                branch = await store.branch(ann, forked)
            except (StoreError, Died):
                branch = None
            else:
                assert branch is not None
        if branch is not None:
            assert branch.turns == await healthy.turns(ann, forked)
        if not fault.has_struck:
            break
        assert await texts(healthy, ann, forked) == ["0", LARGE]
        at += 1

    # The alias and two lanes; then a root, two chunks and a turn are renewed, until they all are.
    assert at >= 3
    assert branch is not None


async def test_a_repeat_by_the_client_itself_is_no_conflict(
    dynalite_endpoint: str, ann: IsolationKeys, open_store: Open
) -> None:
    with engines.connected(None, dynalite_endpoint, attempts=2) as client:
        store = open_store(client)
        branch = await store.branch(ann, None)
        assert branch is not None
        kept = turn(branch)
        retry_at_once(client)

        with Fault(client, "timeout_after_success", at=0) as fault:
            await store.save(ann, branch, kept)

        assert fault.calls == 2
        assert await store.get(ann, kept.response.id) == kept


async def test_a_secret_whose_creation_seemed_to_fail_is_kept(
    dynalite_client: Any, fragile_client: Any, ann: IsolationKeys
) -> None:
    create_table(dynalite_client, "secret")
    with Fault(fragile_client, "timeout_after_success", at=1):
        assert await fails(add(DynamoDBResponseStore(fragile_client, "secret"), ann))

    kept = await add(DynamoDBResponseStore(fragile_client, "secret"), ann)

    assert await texts(DynamoDBResponseStore(dynalite_client, "secret"), ann, kept) == ["Hello!"]


async def test_a_failing_renewal_does_not_fail_the_turn(
    fragile_client: Any,
    ann: IsolationKeys,
    open_store: Open,
    clock: MovableClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = await add(open_store(), ann, None, "root")
    clock.now += MONTH_S * 0.6

    with Fault(fragile_client, "throttle", at=1):
        branch = await open_store(fragile_client).branch(ann, root)

    assert branch is not None
    (record,) = caplog.records
    assert record.getMessage() == "history was not renewed"
    assert vars(record)["error"] == "ProvisionedThroughputExceededException"


async def test_a_renewal_does_not_bring_back_what_is_gone(
    dynalite_client: Any, ann: IsolationKeys, open_store: Open, clock: MovableClock
) -> None:
    store = open_store()
    branch = await store.branch(ann, None)
    assert branch is not None
    await store.save(ann, branch, turn(branch))
    node = keys.parse_body(branch.body)
    assert node is not None
    partition = keys.thread_partition(await store._tenant(ann), node.thread)
    table = Table(dynalite_client, engines.TABLE)
    item = await table.get(partition, node.sort_key)
    assert item is not None
    clock.now += MONTH_S * 0.6

    await table.delete(partition, node.sort_key)
    await store._renew(partition, [rows.parse_turn(item)])

    assert await table.get(partition, node.sort_key) is None
