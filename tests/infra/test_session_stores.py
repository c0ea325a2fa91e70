"""The contract of `SessionStore`, held against every store; what it costs in DynamoDB; and chats over one table."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from channel.agent import AgentEvent, SessionReset, Turn
from channel.commands import RESET
from channel.host import AgentHost
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.memory_runs import InMemoryRunStore
from channel.memory_sessions import InMemorySessionStore
from channel.ports import ResponseStore, StoredTurn, StoreError
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.items import text_of
from channel.sessions import Forgotten, SessionStore
from infra.dynamodb import keys
from infra.dynamodb.client import Table
from infra.dynamodb.sessions import DynamoDBSessionStore
from infra.dynamodb.store import DynamoDBResponseStore
from tests.channel.asgi import KEYS, Wire, request
from tests.channel.instances import HeldJobs
from tests.e2e.faulty import require_no_leak
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Died, Fault, Meter, retry_at_once
from tests.infra.turns import own_secret, turn


pytestmark = pytest.mark.anyio

CHAT = "a chat"
A, B, C = (f"resp_01{digit * 50}" for digit in "abc")
RETENTION_S = 1000.0


@pytest.fixture(params=["memory", "moto", "dynalite"])
def store(request: pytest.FixtureRequest, clock: MovableClock) -> SessionStore:
    if request.param == "memory":
        return InMemorySessionStore(clock=clock, retention_s=RETENTION_S)
    client = request.getfixturevalue(f"{request.param}_client")
    options: dict[str, Any] = {"clock": clock, "retention_s": RETENTION_S}
    return DynamoDBSessionStore(client, engines.TABLE, secret=own_secret(), **options)


async def test_a_session_has_no_head_until_it_is_moved(
    store: SessionStore, ann: IsolationKeys
) -> None:
    assert await store.head(ann, CHAT) is None
    assert await store.move(ann, CHAT, A, after=None)
    assert await store.head(ann, CHAT) == A
    assert await store.move(ann, CHAT, B, after=A)
    assert await store.head(ann, CHAT) == B


@pytest.mark.parametrize("after", [None, A, C])
async def test_a_head_that_is_another_is_not_moved(
    store: SessionStore, ann: IsolationKeys, after: str | None
) -> None:
    await store.move(ann, CHAT, A, after=None)
    await store.move(ann, CHAT, B, after=A)

    assert not await store.move(ann, CHAT, C.replace("c", "d"), after=after)
    assert await store.head(ann, CHAT) == B


@pytest.mark.parametrize("after", [None, A])
async def test_the_same_move_again_changes_nothing(
    store: SessionStore, ann: IsolationKeys, after: str | None
) -> None:
    if after:
        await store.move(ann, CHAT, after, after=None)
    assert [await store.move(ann, CHAT, B, after=after) for _ in range(2)] == [True, True]
    assert await store.head(ann, CHAT) == B
    await store.move(ann, CHAT, C, after=B)

    assert not await store.move(ann, CHAT, B, after=after)
    assert await store.head(ann, CHAT) == C


async def test_no_head_is_moved_from_where_there_is_none(
    store: SessionStore, ann: IsolationKeys
) -> None:
    assert not await store.move(ann, CHAT, B, after=A)
    assert await store.head(ann, CHAT) is None


async def test_a_forgotten_session_has_no_head_and_can_be_begun_again(
    store: SessionStore, ann: IsolationKeys
) -> None:
    await store.move(ann, CHAT, A, after=None)

    assert [await store.forget(ann, CHAT) for _ in range(2)] == [True, False]

    forgotten = await store.head(ann, CHAT)
    assert isinstance(forgotten, Forgotten)
    assert not await store.move(ann, CHAT, B, after=A)
    assert await store.move(ann, CHAT, B, after=forgotten)
    assert await store.head(ann, CHAT) == B


@pytest.mark.parametrize("after", [None, A])
async def test_what_began_before_a_session_was_forgotten_does_not_move_it(
    store: SessionStore, ann: IsolationKeys, after: str | None
) -> None:
    if after:
        await store.move(ann, CHAT, after, after=None)
    before = await store.head(ann, CHAT)
    await store.move(ann, CHAT, B, after=before)

    await store.forget(ann, CHAT)

    assert not await store.move(ann, CHAT, B, after=before)
    assert not await store.move(ann, CHAT, C, after=before)
    assert isinstance(await store.head(ann, CHAT), Forgotten)


async def test_each_time_that_a_session_is_forgotten_is_another(
    store: SessionStore, ann: IsolationKeys
) -> None:
    assert not await store.forget(ann, CHAT)
    first = await store.head(ann, CHAT)
    assert not await store.move(ann, CHAT, A, after=None)
    await store.forget(ann, CHAT)
    second = await store.head(ann, CHAT)

    assert first != second
    assert not await store.move(ann, CHAT, A, after=first)
    assert [await store.move(ann, CHAT, A, after=second) for _ in range(2)] == [True, True]
    assert await store.head(ann, CHAT) == A


async def test_that_a_session_was_forgotten_is_known_as_long_as_a_head_is(
    store: SessionStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    await store.forget(ann, CHAT)
    forgotten = await store.head(ann, CHAT)
    clock.now += RETENTION_S
    assert await store.head(ann, CHAT) == forgotten

    clock.now += 1

    assert await store.head(ann, CHAT) is None
    assert not await store.move(ann, CHAT, A, after=forgotten)
    assert await store.move(ann, CHAT, A, after=None)


async def test_a_head_is_kept_until_its_time_is_over_and_each_move_renews_that(
    store: SessionStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    await store.move(ann, CHAT, A, after=None)
    clock.now += RETENTION_S
    assert await store.head(ann, CHAT) == A
    await store.move(ann, CHAT, B, after=A)
    clock.now += RETENTION_S
    assert await store.head(ann, CHAT) == B
    await store.move(ann, CHAT, B, after=A)
    clock.now += RETENTION_S
    assert await store.head(ann, CHAT) == B

    clock.now += 1

    assert await store.head(ann, CHAT) is None


@pytest.mark.parametrize("response_id", [B, C])
async def test_an_expired_head_is_as_good_as_none(
    store: SessionStore, clock: MovableClock, ann: IsolationKeys, response_id: str
) -> None:
    await store.move(ann, CHAT, B, after=None)
    clock.now += RETENTION_S + 1

    assert not await store.move(ann, CHAT, A, after=B)
    assert await store.move(ann, CHAT, response_id, after=None)
    assert await store.head(ann, CHAT) == response_id


async def test_an_expired_head_is_not_forgotten(
    store: SessionStore, clock: MovableClock, ann: IsolationKeys
) -> None:
    await store.move(ann, CHAT, A, after=None)
    clock.now += RETENTION_S + 1

    assert not await store.forget(ann, CHAT)


@pytest.mark.parametrize("key", ["", "#", "ä\udc80/\x00", "x" * 10_000])
async def test_any_text_is_a_session_of_its_own(
    store: SessionStore, ann: IsolationKeys, key: str
) -> None:
    await store.move(ann, CHAT, A, after=None)

    assert await store.head(ann, key) is None
    assert await store.move(ann, key, B, after=None)
    assert (await store.head(ann, key), await store.head(ann, CHAT)) == (B, A)


@pytest.mark.parametrize(
    "other", [IsolationKeys("bob"), IsolationKeys("ann", "chat"), IsolationKeys("ann", "")]
)
async def test_a_session_is_its_tenants_own(
    store: SessionStore, ann: IsolationKeys, other: IsolationKeys
) -> None:
    await store.move(ann, CHAT, A, after=None)

    assert await store.head(other, CHAT) is None
    assert not await store.move(other, CHAT, B, after=A)
    assert await store.move(other, CHAT, B, after=None)
    assert await store.head(ann, CHAT) == A
    await store.forget(other, CHAT)
    assert await store.head(ann, CHAT) == A


async def test_nobody_has_a_session(store: SessionStore) -> None:
    nobody = IsolationKeys()
    for call in (
        store.head(nobody, CHAT),
        store.move(nobody, CHAT, A, after=None),
        store.forget(nobody, CHAT),
    ):
        with pytest.raises(ValueError, match="name none"):
            await call


@pytest.mark.parametrize("after", [None, A])
async def test_of_eight_threads_that_move_one_head_one_does(
    store: SessionStore, ann: IsolationKeys, after: str | None
) -> None:
    if after:
        await store.move(ann, CHAT, after, after=None)

    def contend(number: int) -> bool:
        return asyncio.run(store.move(ann, CHAT, f"resp_{number}", after=after))

    def race() -> list[bool]:
        with ThreadPoolExecutor(8) as threads:
            return [*threads.map(contend, range(8))]

    moved = await asyncio.to_thread(race)

    assert moved.count(True) == 1
    assert await store.head(ann, CHAT) == f"resp_{moved.index(True)}"


# DynamoDB

OpenStore = Callable[[Any], DynamoDBSessionStore]


@pytest.fixture
def open_store(clock: MovableClock) -> OpenStore:
    """Make the store of another process on the same rows."""
    secret = own_secret()

    def open_it(client: Any) -> DynamoDBSessionStore:
        return DynamoDBSessionStore(client, engines.TABLE, secret=secret, clock=clock)

    return open_it


async def test_what_a_session_costs(
    metered: tuple[Any, Meter], open_store: OpenStore, ann: IsolationKeys
) -> None:
    client, meter = metered
    store = open_store(client)
    meter.take()

    await store.move(ann, CHAT, A, after=None)
    assert meter.take() == {"PutItem": [1.0]}
    await store.head(ann, CHAT)
    assert meter.take() == {"GetItem": [1.0]}
    await store.move(ann, CHAT, B, after=A)
    assert meter.take() == {"PutItem": [1.0]}
    await store.forget(ann, CHAT)
    assert meter.take() == {"PutItem": [1.0]}
    await store.head(ann, CHAT)
    assert meter.take() == {"GetItem": [1.0]}


async def test_two_processes_see_one_head(
    moto_client: Any, open_store: OpenStore, ann: IsolationKeys
) -> None:
    one, other = open_store(moto_client), open_store(moto_client)
    await one.move(ann, CHAT, A, after=None)
    assert await other.head(ann, CHAT) == A
    await other.move(ann, CHAT, B, after=A)

    assert not await one.move(ann, CHAT, C, after=A)
    assert await one.head(ann, CHAT) == B


async def test_neither_the_key_nor_whose_it_is_stands_in_the_table(
    dynalite_client: Any, clock: MovableClock, ann: IsolationKeys
) -> None:
    secret = own_secret()
    store = DynamoDBSessionStore(
        dynalite_client, engines.TABLE, secret=secret, clock=clock, retention_s=60.5
    )
    await store.move(ann, "chat of ann", A, after=None)

    partition = keys.session_partition(keys.tenant_tag(await secret(), ann), "chat of ann")
    (row,) = await Table(dynalite_client, engines.TABLE).query(partition, is_strong=True)

    ttl = {"N": "1800000061"}
    assert row == {"pk": {"S": partition}, "sk": {"S": "!"}, "rid": {"S": A}, "ttl": ttl}
    assert "ann" not in partition
    assert partition.startswith("t#")
    assert len(partition) == len("t#") + 22 + len("#s#") + 32


async def test_a_move_whose_write_was_made_but_timed_out_is_no_conflict_with_itself(
    dynalite_endpoint: str, open_store: OpenStore, ann: IsolationKeys
) -> None:
    with engines.connected(None, dynalite_endpoint, attempts=2) as client:
        retry_at_once(client)
        store = open_store(client)

        for response_id, after in ((A, None), (B, A)):
            with Fault(client, "timeout_after_success", 0) as fault:
                assert await store.move(ann, CHAT, response_id, after=after)
            assert fault.calls == 2

        assert await store.head(ann, CHAT) == B


@pytest.mark.parametrize("kind", ["throttle", "timeout", "timeout_after_success"])
async def test_a_call_that_fails_is_an_error_and_may_be_repeated(
    fragile_client: Any,
    dynalite_client: Any,
    open_store: OpenStore,
    ann: IsolationKeys,
    kind: str,
) -> None:
    fragile, healthy = open_store(fragile_client), open_store(dynalite_client)

    with Fault(fragile_client, kind, 0), pytest.raises(StoreError):
        await fragile.move(ann, CHAT, A, after=None)
    assert await healthy.move(ann, CHAT, A, after=None)
    with Fault(fragile_client, kind, 0), pytest.raises(StoreError):
        await fragile.head(ann, CHAT)
    with Fault(fragile_client, kind, 0), pytest.raises(StoreError):
        await fragile.forget(ann, CHAT)
    await healthy.forget(ann, CHAT)

    assert isinstance(await healthy.head(ann, CHAT), Forgotten)


# Turns that reset


@pytest.fixture(params=["memory", "moto", "dynalite"])
def responses(request: pytest.FixtureRequest, clock: MovableClock) -> ResponseStore:
    if request.param == "memory":
        return InMemoryResponseStore(clock=clock)
    client = request.getfixturevalue(f"{request.param}_client")
    return DynamoDBResponseStore(client, engines.TABLE, secret=own_secret(), clock=clock)


async def test_that_a_turn_resets_is_kept_with_it(
    responses: ResponseStore, ann: IsolationKeys
) -> None:
    branch = await responses.branch(ann, None)
    assert branch is not None
    kept = replace(turn(branch), resets=True)
    await responses.save(ann, branch, kept)
    following = await responses.branch(ann, kept.response.id)
    assert following is not None
    await responses.save(ann, following, turn(following))

    after = await responses.branch(ann, turn(following).response.id)
    assert after is not None
    assert [each.resets for each in after.turns] == [True, False]
    assert await responses.get(ann, kept.response.id) == kept


async def test_a_turn_that_does_not_reset_is_stored_as_it_always_was(ann: IsolationKeys) -> None:
    branch = await InMemoryResponseStore().branch(ann, None)
    assert branch is not None
    stored = msgspec.json.encode(turn(branch))

    assert b"resets" not in stored
    assert not msgspec.json.decode(stored, type=StoredTurn).resets


# Chats over one table


@dataclass
class Site:
    """A table's rows of one secret, and the apps on them; `ran` tells the turns of their agents."""

    clock: MovableClock
    secret: Any = field(default_factory=own_secret)
    ran: list[Turn] = field(default_factory=list)

    async def agent(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.ran.append(turn)
        if turn.text == "reset":
            yield SessionReset()
        yield "ok"

    def app(self, client: Any) -> Any:
        """Return the app of a new process."""
        return self.host(client).app

    def host(self, client: Any, **options: Any) -> AgentHost:
        """Return the host of a new process."""
        at: dict[str, Any] = {"client": client, "table": engines.TABLE, "clock": self.clock}
        store = DynamoDBResponseStore(**at, secret=self.secret)
        sessions = DynamoDBSessionStore(**at, secret=self.secret)
        channel = ResponsesChannel(store=store, keepalive_s=0, clock=self.clock, **options)
        hosting: dict[str, Any] = {"channels": [channel], "authenticator": KEYS}
        return AgentHost(self.agent, **hosting, sessions=sessions)

    @property
    def history(self) -> list[str]:
        return [text_of(item) for item in self.ran[-1].history]


def asking(text: str, **fields: Any) -> Wire:
    headers = {"x-agent-chat-isolation-key": "chat"}
    body = {"input": text, **fields}
    return request("POST", "/v1/responses", body, key="key-agency", headers=headers)


@pytest.mark.parametrize("engine", ["moto", "dynalite"])
async def test_two_instances_go_on_with_one_chat(
    request: pytest.FixtureRequest, engine: str, clock: MovableClock
) -> None:
    client = request.getfixturevalue(f"{engine}_client")
    site = Site(clock)
    one, other = site.app(client), site.app(client)
    for app, text in ((one, "one"), (other, "two"), (one, "three")):
        reply = await asking(text).run(app)
        assert reply.status == 200, reply.body
    assert site.history == ["one", "ok", "two", "ok"]

    await asking("reset").run(other)
    await asking("four").run(one)
    assert site.history == []
    await asking("five").run(other)
    assert site.history == ["four", "ok"]


@pytest.mark.parametrize("has_reset_before", [False, True])
@pytest.mark.parametrize("engine", ["moto", "dynalite"])
async def test_a_job_of_a_first_turn_that_comes_twice_brings_back_nothing_that_was_reset(
    request: pytest.FixtureRequest, engine: str, clock: MovableClock, has_reset_before: bool
) -> None:
    client = request.getfixturevalue(f"{engine}_client")
    site, jobs = Site(clock), HeldJobs()
    runs = InMemoryRunStore(clock=clock)
    host = site.host(client, jobs=jobs, runs=runs, commands=(RESET,))
    if has_reset_before:
        await asking("/reset").run(host.app)
    await asking("one", background=True).run(host.app)
    job = jobs.held.pop()
    await host.jobs[job.kind](job.payload, None)
    await asking("/reset").run(host.app)

    await host.jobs[job.kind](job.payload, None)

    assert len(site.ran) == 1
    await asking("two").run(host.app)
    assert site.history == []
    await asking("three").run(host.app)
    assert site.history == ["two", "ok"]


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
@pytest.mark.parametrize(
    "kind", ["throttle", "timeout", "timeout_after_success", "death", "death_after_success"]
)
async def test_at_each_call_that_fails_the_client_is_told_and_the_chat_goes_on_with_what_it_knows(
    fragile_client: Any, dynalite_client: Any, clock: MovableClock, kind: str, stream: bool
) -> None:
    calls = ["head", "history", "turn", "move"]
    outcomes: dict[str, list[str]] = {}
    for at, call in enumerate(calls):
        site = Site(clock)
        healthy = site.app(dynalite_client)
        await asking("one").run(healthy)
        site.ran.clear()

        reply = asking("two", stream=stream)
        with Fault(fragile_client, kind, at) as fault:
            try:
                await reply.run(site.app(fragile_client))
            except Died:
                assert b"response.completed" not in reply.body
            else:
                require_no_leak(reply)
                require_told(reply, has_run=bool(site.ran), stream=stream)

        assert fault.has_struck
        assert len(site.ran) == (at >= calls.index("turn"))
        await asking("three").run(healthy)
        outcomes[call] = site.history
    both = ["one", "ok", "two", "ok"]
    moved = both if kind.endswith("after_success") else both[:2]
    assert outcomes == {**dict.fromkeys(calls[:3], both[:2]), "move": moved}


def require_told(reply: Wire, *, has_run: bool, stream: bool) -> None:
    if has_run and stream:
        assert reply.types[-1] == "failed"
        return
    expected = (500, "false") if has_run else (503, "true")
    assert (reply.status, reply.headers["x-should-retry"]) == expected


async def test_a_turn_of_a_chat_makes_two_calls_more_and_any_other_turn_none(
    fragile_client: Any, dynalite_client: Any, clock: MovableClock
) -> None:
    site = Site(clock)
    app = site.app(fragile_client)
    kept = await asking("one").run(site.app(dynalite_client))

    async def calls(asked: Wire) -> int:
        with Fault(fragile_client, "timeout", at=1_000) as fault:
            assert (await asked.run(app)).status == 200
        return fault.calls

    plain = request("POST", "/v1/responses", {"input": "hi"}, key="key-agency")
    named = {"previous_response_id": kept.json["id"]}
    assert await calls(asking("two", store=False)) == 2
    assert await calls(asking("two")) == 4
    assert await calls(asking("two", **named)) == 4
    assert await calls(asking("two", **named, store=False)) == 1
    assert await calls(plain) == 1
