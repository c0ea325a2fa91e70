"""Faults at each call of conversations and of keyed creates: all is there or nothing, and nothing stays locked."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from channel.conversations import LOCK_GRACE_S
from channel.ports import random_hex
from channel.responses.idempotency import LONGEST_S, MARGIN_S
from channel.responses.operations import MAX_TURN_S
from tests.channel.asgi import Wire, request
from tests.channel.instances import Instance
from tests.e2e.faulty import STRIKES, Clients, Deployment, Struck, require_error, require_retry


pytestmark = pytest.mark.anyio

HELLO = {"type": "message", "role": "user", "content": "Hello!"}

each_strike = pytest.mark.parametrize("kind", STRIKES)


@pytest.fixture
def deployment(clients: Clients) -> Deployment:
    return Deployment(clients)


async def ask(process: Instance, method: str, target: str, body: Any = None) -> Wire:
    return await request(method, f"/v1/conversations{target}", body).run(process.app)


class Made(NamedTuple):
    """A conversation, and the ids of its items, oldest first."""

    id: str
    items: list[str]


async def made(deployment: Deployment, *, turns: int = 0) -> Made:
    """Make a conversation with one item, and some turns."""
    created = await ask(deployment.healthy, "POST", "", {"items": [HELLO], "metadata": {"a": "1"}})
    identifier: str = created.json["id"]
    for _ in range(turns):
        fields = {"input": "What is it?", "conversation": identifier}
        assert (await deployment.healthy.post("/v1/responses", fields)).status == 200
    deployment.ran.clear()
    deployment.saved.clear()
    return Made(
        identifier, [item["id"] for item in await deployment.healthy.list_items(identifier)]
    )


async def said(deployment: Deployment, conversation_id: str) -> list[str]:
    """Return the texts of a conversation, oldest first."""
    items = await deployment.healthy.list_items(conversation_id)
    return [item["content"][0]["text"] for item in items]


@each_strike
async def test_a_conversation_is_made_whole_or_not_at_all(
    deployment: Deployment, kind: str
) -> None:
    async def given() -> None: ...

    async def create(process: Instance, _: None) -> Wire:
        return await ask(process, "POST", "", {"items": [HELLO], "metadata": {"a": "1"}})

    # Its items, its own row; its items are kept for good.
    async for struck in deployment.strikes(kind, create, given, calls=3):
        if struck.has_reply:
            require_retry(struck.reply)
        again = await create(deployment.healthy, None)
        assert (again.status, again.json["metadata"]) == (200, {"a": "1"})

    whole = [row["pk"]["S"] for row in deployment.rows() if row["sk"]["S"] == "META"]
    for partition in whole:
        conversation_id = f"conv_{partition.rpartition('#c')[2]}"
        assert await said(deployment, conversation_id) == ["Hello!"]


@dataclass(frozen=True)
class Call:
    """A request to a conversation that has an item, how many calls it makes, and what of it may be seen."""

    calls: int
    ask: Callable[[Instance, Made], Awaitable[Wire]]
    is_gone: bool = False


CALLS = {
    "retrieve": Call(1, lambda at, of: ask(at, "GET", f"/{of.id}")),
    "update": Call(1, lambda at, of: ask(at, "POST", f"/{of.id}", {"metadata": {"a": "2"}})),
    "list items": Call(2, lambda at, of: ask(at, "GET", f"/{of.id}/items")),
    "retrieve an item": Call(2, lambda at, of: ask(at, "GET", f"/{of.id}/items/{of.items[0]}")),
    # That there is one, the entry; its mark, and the entry as it was the only one.
    "delete an item": Call(
        4, lambda at, of: ask(at, "DELETE", f"/{of.id}/items/{of.items[0]}"), is_gone=True
    ),
    # Its own row; what there is, and each of three entries.
    "delete": Call(5, lambda at, of: ask(at, "DELETE", f"/{of.id}"), is_gone=True),
}


@each_strike
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_request_to_a_conversation_that_fails_can_be_repeated(
    deployment: Deployment, call: Call, kind: str
) -> None:
    async def given() -> Made:
        return await made(deployment, turns=2)

    async for struck in deployment.strikes(kind, call.ask, given, calls=call.calls):
        again = await call.ask(deployment.healthy, struck.given)
        after = await call.ask(deployment.healthy, struck.given)

        if struck.has_reply:
            require_retry(struck.reply)
        assert again.status == 200 or (
            again.status == 404 and call.is_gone and has_happened(struck)
        )
        assert after.status == (404 if call.is_gone else 200)
        if not call.is_gone:
            assert after.json == again.json


def has_happened(struck: Struck[Any]) -> bool:
    """Whether a call before the last, or that one, was made."""
    return struck.at > 0 or struck.kind.endswith("after_success")


@each_strike
async def test_what_is_left_of_a_deleted_conversation_expires_once_that_was_repeated(
    deployment: Deployment, kind: str
) -> None:
    async def given() -> Made:
        return await made(deployment, turns=2)

    delete = CALLS["delete"]
    async for struck in deployment.strikes(kind, delete.ask, given, calls=delete.calls):
        await delete.ask(deployment.healthy, struck.given)

    assert deployment.rows()
    assert all("ttl" in row for row in deployment.rows())


@each_strike
async def test_items_are_added_whole_or_not_at_all(deployment: Deployment, kind: str) -> None:
    async def given() -> Made:
        return await made(deployment)

    async def add(process: Instance, given: Made) -> Wire:
        return await ask(process, "POST", f"/{given.id}/items", {"items": [HELLO, HELLO]})

    # Their number, the items; whether the conversation is still there, which counts only if known.
    async for struck in deployment.strikes(kind, add, given, calls=3):
        if struck.has_reply and struck.at < 2:
            require_retry(struck.reply)
        was_written = struck.at == 2 or (struck.at == 1 and kind.endswith("after_success"))
        expected = ["Hello!"] * (3 if was_written else 1)
        assert await said(deployment, struck.given.id) == expected
        again = await add(deployment.healthy, struck.given)
        assert again.status == 200
        assert await said(deployment, struck.given.id) == [*expected, "Hello!", "Hello!"]


@each_strike
@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
async def test_a_turn_is_in_its_conversation_whole_or_not_at_all_and_leaves_it_unlocked(
    deployment: Deployment, kind: str, stream: bool
) -> None:
    async def given() -> Made:
        return await made(deployment)

    async def create(process: Instance, given: Made) -> Wire:
        fields = {"input": "What is it?", "conversation": given.id, "stream": stream}
        return await process.post("/v1/responses", fields)

    turn = ["What is it?", "It is: 42"]
    # The lock, the history; the save, the unlock.
    async for struck in deployment.strikes(kind, create, given, calls=4):
        is_written = struck.at == 3 or (struck.at == 2 and kind.endswith("after_success"))
        if struck.has_reply and struck.at < 2:
            require_retry(struck.reply)
        elif struck.has_reply and struck.at == 2:
            require_told_of_failure(struck.reply, stream=stream)
        elif struck.has_reply:
            assert completed(struck.reply, stream=stream)
        before = ["Hello!", *(turn if is_written else [])]
        assert await said(deployment, struck.given.id) == before
        ids = [await deployment.status(each) for each in deployment.saved]
        assert {*ids} <= ({"completed"} if is_written else {None})

        again = await create(deployment.healthy, struck.given)
        if again.status != 200:
            assert struck.is_for_good or struck.at == 3
            assert again.error_body["code"] == "conversation_locked"
            deployment.clock.now += MAX_TURN_S + LOCK_GRACE_S + 1
            again = await create(deployment.healthy, struck.given)
        assert completed(again, stream=stream)
        assert await said(deployment, struck.given.id) == [*before, *turn]


def require_told_of_failure(reply: Wire, *, stream: bool) -> None:
    """Require that a turn that ran and was not kept is told as failed."""
    if stream:
        assert reply.types[-1] == "failed"
        return
    assert (reply.status, reply.headers["x-should-retry"]) == (500, "false")
    require_error(reply)


def completed(reply: Wire, *, stream: bool) -> bool:
    response = reply.events[-1]["response"] if stream else reply.json
    return reply.status == 200 and response["status"] == "completed"


class Keyed(NamedTuple):
    """A create with a key."""

    key: str
    stream: bool

    async def send(self, process: Instance) -> Wire:
        fields = {"input": "What is it?", "stream": self.stream}
        headers = {"idempotency-key": self.key}
        return await request("POST", "/v1/responses", fields, headers=headers).run(process.app)


@each_strike
@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
async def test_a_keyed_create_can_be_repeated_at_once_or_when_its_claim_is_over(
    deployment: Deployment, kind: str, stream: bool
) -> None:
    async def given() -> Keyed:
        deployment.ran.clear()
        return Keyed(random_hex(8), stream)

    async def create(process: Instance, keyed: Keyed) -> Wire:
        return await keyed.send(process)

    # The claim, its note, the save, the end of the claim.
    async for struck in deployment.strikes(kind, create, given, calls=4):
        if struck.at < 2:
            assert not deployment.ran
        if struck.has_reply and struck.at < 2:
            require_retry(struck.reply)
        elif struck.has_reply and struck.at == 2:
            require_told_of_failure(struck.reply, stream=stream)
        elif struck.has_reply:
            assert completed(struck.reply, stream=stream)

        again = await struck.given.send(deployment.healthy)
        if again.status != 200:
            assert struck.is_for_good or struck.at == 3
            assert again.error_body["code"] == "idempotency_key_in_progress"
            deployment.clock.now += LONGEST_S + MARGIN_S + 1
            again = await struck.given.send(deployment.healthy)
        elif struck.at == 3:
            assert again.headers["idempotent-replayed"] == "true"
        assert completed(again, stream=stream)
        replayed = await struck.given.send(deployment.healthy)
        assert replayed.headers["idempotent-replayed"] == "true"
        assert len(deployment.ran) <= 2


@each_strike
@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
async def test_a_replay_that_fails_can_be_repeated(
    deployment: Deployment, kind: str, stream: bool
) -> None:
    async def given() -> Keyed:
        keyed = Keyed(random_hex(8), stream)
        assert completed(await keyed.send(deployment.healthy), stream=stream)
        deployment.ran.clear()
        return keyed

    async def create(process: Instance, keyed: Keyed) -> Wire:
        return await keyed.send(process)

    # The claim, the record.
    async for struck in deployment.strikes(kind, create, given, calls=2):
        if struck.has_reply:
            require_retry(struck.reply)
        replayed = await struck.given.send(deployment.healthy)
        assert replayed.headers["idempotent-replayed"] == "true"
        assert completed(replayed, stream=stream)
        assert not deployment.ran
