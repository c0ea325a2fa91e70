"""`Idempotency-Key` on `POST /responses`, where an instance dies: no turn is run, or kept, twice."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from channel.agent import Turn, TurnError
from channel.isolation import IsolationKeys
from channel.memory_idempotency import InMemoryIdempotencyStore
from channel.ports import StoreError
from channel.responses.idempotency import LONGEST_S, MARGIN_S, Claim, Entry, IdempotencyStore
from infra.dynamodb.conversations import DynamoDBConversationStore
from infra.dynamodb.idempotency import DynamoDBIdempotencyStore
from infra.dynamodb.runs import DynamoDBRunStore
from infra.dynamodb.store import DynamoDBResponseStore
from tests.channel.asgi import Wire, request
from tests.channel.instances import Instance, Instances
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.turns import own_secret


pytestmark = pytest.mark.anyio

LEASE_S = LONGEST_S + MARGIN_S


class DeadError(BaseException):
    """The end of a process, in the middle of whatever it does."""


class Dying:
    """An `IdempotencyStore` that fails from the call of the named method on, until it is `revived`."""

    def __init__(self, kept: IdempotencyStore) -> None:
        self._kept = kept
        self._at, self._error = "", BaseException()
        self._is_dead = False

    def fail(self, at: str, error: BaseException) -> None:
        """Fail from there on; a `StoreError` is of that method alone."""
        self._at, self._error = at, error

    def revive(self) -> None:
        self._at, self._is_dead = "", False

    async def claim(self, keys: IsolationKeys, key: str, entry: Entry, /) -> Claim:
        self._live("claim")
        return await self._kept.claim(keys, key, entry)

    async def note(self, keys: IsolationKeys, key: str, entry: Entry, /) -> None:
        await self._kept.note(keys, key, entry)
        self._live("note")

    async def finish(
        self, keys: IsolationKeys, key: str, token: str, response_id: str, until: float, /
    ) -> None:
        self._live("finish")
        await self._kept.finish(keys, key, token, response_id, until)

    async def release(self, keys: IsolationKeys, key: str, token: str, /) -> None:
        self._live("release")
        await self._kept.release(keys, key, token)

    def _live(self, method: str) -> None:
        if method == self._at or self._is_dead:
            self._is_dead = not isinstance(self._error, StoreError)
            raise self._error


class Case:
    """Two instances, the keys that they share, and how often their agent ran."""

    def __init__(self, clock: MovableClock, client: Any = None) -> None:
        self.clock = clock
        self.runs = 0
        stores: dict[str, Any] = {}
        kept: IdempotencyStore = InMemoryIdempotencyStore(clock=clock)
        if client is not None:
            at: dict[str, Any] = {"client": client, "table": engines.TABLE, "clock": clock}
            at["secret"] = own_secret()
            stores["store"] = DynamoDBResponseStore(**at)
            stores["runs"] = DynamoDBRunStore(**at)
            stores["conversations"] = DynamoDBConversationStore(**at)
            kept = DynamoDBIdempotencyStore(**at)
        self.keys = Dying(kept)
        self.both = Instances(self._agent, clock=clock, idempotency=self.keys, **stores)

    async def _agent(self, turn: Turn) -> AsyncIterator[str]:
        self.runs += 1
        yield f"run {self.runs}"
        if turn.text == "fail" and self.runs == 1:
            raise TurnError("No.")

    async def post(self, on: Instance, **fields: Any) -> Wire:
        headers = {"idempotency-key": "k-1"}
        wire = request("POST", "/v1/responses", {"input": "pay", **fields}, headers=headers)
        return await wire.run(on.app)

    async def crash(self, at: str, **fields: Any) -> None:
        self.keys.fail(at, DeadError())
        with pytest.raises(DeadError):
            await self.post(self.both.a, **fields)
        self.keys.revive()

    async def work(self) -> None:
        while self.both.jobs.held:
            await self.both.b.work(self.both.jobs.held.pop(0))

    async def conversation(self) -> str:
        identifier: str = (await self.both.a.post("/v1/conversations", {})).json["id"]
        return identifier


@pytest.fixture(params=["memory", "moto"])
def case(request: pytest.FixtureRequest) -> Case:
    clock = MovableClock()
    if request.param == "memory":
        return Case(clock)
    return Case(clock, request.getfixturevalue("moto_client"))


KINDS: dict[str, dict[str, Any]] = {
    "JSON": {},
    "SSE": {"stream": True},
    "background": {"background": True},
}
each_kind = pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)


def ended(reply: Wire, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the response that a reply ends with."""
    assert reply.status == 200, reply.body
    response: dict[str, Any] = reply.events[-1]["response"] if "stream" in fields else reply.json
    return response


@each_kind
async def test_what_an_instance_has_stored_before_it_died_is_the_result(
    case: Case, fields: dict[str, Any]
) -> None:
    conversation = await case.conversation()
    fields = {**fields, "conversation": conversation}
    await case.crash("finish", **fields)
    await case.work()
    items = await case.both.a.list_items(conversation)

    early = await case.post(case.both.b, **fields)
    case.clock.now += LEASE_S + 2
    late, later = [await case.post(case.both.b, **fields) for _ in range(2)]

    assert (early.status, early.error_body["code"]) == (409, "idempotency_key_in_progress")
    assert late.headers["idempotent-replayed"] == later.headers["idempotent-replayed"] == "true"
    assert ended(late, fields)["status"] == "completed"
    assert late.body == later.body
    assert case.runs == 1
    assert await case.both.a.list_items(conversation) == items
    assert len(items) == 2


@each_kind
async def test_an_instance_that_died_before_its_turn_leaves_the_key_for_another_run(
    case: Case, fields: dict[str, Any]
) -> None:
    await case.crash("note", **fields)
    assert (await case.post(case.both.b, **fields)).status == 409

    case.clock.now += LEASE_S + 2
    again = await case.post(case.both.b, **fields)
    await case.work()

    assert ended(again, fields)
    assert "idempotent-replayed" not in again.headers
    assert case.runs == 1


@each_kind
async def test_an_end_that_cannot_be_written_is_no_second_run(
    case: Case, fields: dict[str, Any]
) -> None:
    case.keys.fail("finish", StoreError("gone"))
    first = ended(await case.post(case.both.a, **fields), fields)
    await case.work()
    case.keys.revive()

    case.clock.now += LEASE_S + 2
    again = await case.post(case.both.b, **fields)

    assert ended(again, fields)["id"] == first["id"]
    assert case.runs == 1


@each_kind
async def test_a_note_that_fails_runs_nothing_and_locks_nothing(
    case: Case, fields: dict[str, Any]
) -> None:
    fields = {**fields, "conversation": await case.conversation()}
    case.keys.fail("note", StoreError("gone"))
    refused = await case.post(case.both.a, **fields)
    assert (refused.status, case.runs, case.both.jobs.held) == (503, 0, [])
    case.keys.revive()

    again = await case.post(case.both.b, **fields)

    assert ended(again, fields)
    assert "idempotent-replayed" not in again.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_only_its_conversation_keeps_is_not_added_twice(
    case: Case, stream: bool
) -> None:
    conversation = await case.conversation()
    fields = {"conversation": conversation, "store": False, "stream": stream}
    assert (await case.post(case.both.a, **fields)).status == 200

    again = await case.post(case.both.b, **fields)

    assert (again.status, again.error_body["code"]) == (404, "idempotency_result_not_stored")
    assert case.runs == 1
    assert len(await case.both.a.list_items(conversation)) == 2


async def test_a_turn_that_only_its_conversation_keeps_is_found_there_after_a_crash(
    case: Case,
) -> None:
    conversation = await case.conversation()
    fields = {"conversation": conversation, "store": False}
    await case.crash("finish", **fields)

    case.clock.now += LEASE_S + 2
    for _ in range(2):
        again = await case.post(case.both.b, **fields)
        assert (again.status, again.error_body["code"]) == (404, "idempotency_result_not_stored")

    assert case.runs == 1
    assert len(await case.both.a.list_items(conversation)) == 2


async def test_a_failed_turn_that_nothing_keeps_may_come_again(case: Case) -> None:
    conversation = await case.conversation()
    fields = {"input": "fail", "conversation": conversation, "store": False}
    first = await case.post(case.both.a, **fields)
    assert first.json["status"] == "failed"

    again = await case.post(case.both.b, **fields)

    assert (again.status, again.json["status"], case.runs) == (200, "completed", 2)
    assert len(await case.both.a.list_items(conversation)) == 2


async def test_nothing_is_noted_of_what_nothing_keeps(case: Case) -> None:
    case.keys.fail("note", StoreError("gone"))

    assert (await case.post(case.both.a, store=False)).status == 200
