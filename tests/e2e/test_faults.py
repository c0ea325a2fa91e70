"""Faults at each storage call of a request: a turn is there whole or not at all, and the client knows whether to retry."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import pytest
from starlette.types import ASGIApp

from channel.agent import Turn
from channel.host import AgentHost
from channel.responses.channel import ResponsesChannel
from infra.api_keys import DynamoDBAuthenticator, create_key
from infra.dynamodb.client import create_table
from infra.dynamodb.store import DynamoDBResponseStore
from tests.channel.asgi import Wire, request
from tests.e2e.conftest import Connect
from tests.infra.hooks import KINDS, Died, Fault, retry_at_once
from tests.infra.turns import noise


pytestmark = pytest.mark.anyio

LARGE = noise(330_000)
"""An answer that is stored in two chunks."""

_table_numbers = count()


@pytest.fixture(scope="module")
def healthy(connect: Connect) -> Iterator[Any]:
    with connect() as client:
        yield client


@pytest.fixture(scope="module")
def fragile(connect: Connect) -> Iterator[Any]:
    """Return a client that tries each call once."""
    with connect(attempts=1) as client:
        yield client


@dataclass
class Site:
    """A table of its own with an API key, and the apps on it; `ran` tells the turns of its agents.

    `healthy` is an app that is asked what there is; it keeps key and secret, and nothing else.
    """

    client: Any
    table: str
    key: str
    answer: str
    ran: list[Turn] = field(default_factory=list)

    @classmethod
    async def made(cls, client: Any, answer: str) -> "Site":
        table = f"faults-{next(_table_numbers)}"
        create_table(client, table)
        return cls(client, table, await create_key(client, table, "acme"), answer)

    @cached_property
    def healthy(self) -> ASGIApp:
        return self.app(self.client)

    def app(self, client: Any) -> ASGIApp:
        """Return the app of a new process, which has read nothing yet."""

        async def agent(turn: Turn) -> AsyncIterator[str]:
            self.ran.append(turn)
            yield "It is: "
            yield self.answer

        store = DynamoDBResponseStore(client, self.table)
        channel = ResponsesChannel(store=store, keepalive_s=0)
        keys = DynamoDBAuthenticator(client, self.table)
        return AgentHost(agent, channels=[channel], authenticator=keys).app

    def ask(self, method: str, target: str, **fields: Any) -> Wire:
        return request(method, f"/v1{target}", fields or None, key=self.key)

    def creating(self, **fields: Any) -> Wire:
        return self.ask("POST", "/responses", input="What is it?", **fields)

    async def create(self, **fields: Any) -> str:
        created = await self.creating(**fields).run(self.healthy)
        assert created.status == 200, created.body
        identifier: str = created.json["id"]
        return identifier

    def rows(self) -> int:
        """Count the rows of turns."""
        found = self.client.scan(
            TableName=self.table,
            ConsistentRead=True,
            Select="COUNT",
            FilterExpression="begins_with(pk, :tenant)",
            ExpressionAttributeValues={":tenant": {"S": "t#"}},
        )
        count: int = found["Count"]
        return count

    async def is_visible(self, response_id: str, inherited: Sequence[str]) -> bool:
        """Tell whether a turn is there, and require that every route says so of the whole of it."""
        app, target = self.healthy, f"/responses/{response_id}"
        got = await self.ask("GET", target).run(app)
        items = await self.ask("GET", f"{target}/input_items").run(app)
        after = await self.creating(previous_response_id=response_id, store=False).run(app)
        if got.status == 404:
            assert (items.status, after.status) == (404, 400)
            return False
        (message,) = got.json["output"]
        said = f"It is: {self.answer}"
        assert [part["text"] for part in message["content"]] == [said]
        assert (got.json["status"], message["status"]) == ("completed", "completed")
        asked = [*inherited, "What is it?"]
        texts = [item["content"][0]["text"] for item in items.json["data"]]
        assert texts == asked[::-1]
        assert after.status == 200
        history = [item["content"][0]["text"] for item in self.ran[-1].history]
        assert history == [*asked, said]
        return True


def require_told(reply: Wire, *, has_run: bool, stream: bool) -> None:
    """Require that the client knows of the failure, and whether the same request may be sent again."""
    request_id = reply.headers["x-request-id"]
    if has_run and stream:
        last = reply.events[-1]
        assert last["type"] == "response.failed"
        assert [event["type"] for event in reply.events].count("response.failed") == 1
        assert last["response"]["error"]["code"] == "server_error"
        assert request_id in last["response"]["error"]["message"]
        return
    expected = (500, "false") if has_run else (503, "true")
    assert (reply.status, reply.headers["x-should-retry"]) == expected
    assert reply.error_body["type"] == "server_error"
    assert request_id in reply.error_body["message"]


@dataclass(frozen=True)
class Case:
    """A turn, and its storage calls before and after the agent."""

    answer: str
    is_continued: bool
    before: Sequence[str]
    after: Sequence[str]

    async def begun(self, client: Any) -> tuple["Site", dict[str, str]]:
        """Return a new site, and the fields that continue the turn before where there is one."""
        site = await Site.made(client, "42")
        continued = {"previous_response_id": await site.create()} if self.is_continued else {}
        site.answer = self.answer
        return site, continued


FIRST = Case("42", False, ["key"], ["secret", "new secret", "turn"])
LATER = Case(LARGE, True, ["key", "secret", "history"], ["chunk", "chunk", "turn"])


@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [FIRST, LATER], ids=["first", "later"])
async def test_a_turn_is_whole_or_nothing_and_the_client_knows_whether_to_retry(
    healthy: Any, fragile: Any, case: Case, kind: str, stream: bool
) -> None:
    site, continued = await case.begun(healthy)
    inherited = ["What is it?", "It is: 42"] if continued else []
    outcomes: list[tuple[bool, bool]] = []
    for at, _ in enumerate([*case.before, *case.after]):
        if not continued:
            site, _ = await case.begun(healthy)  # one that has no secret yet
        rows = site.rows()
        site.ran.clear()

        reply = site.creating(**continued, stream=stream)
        with Fault(fragile, kind, at) as fault:
            try:
                await reply.run(site.app(fragile))
            except Died:
                assert kind.startswith("death")
                assert b"response.completed" not in reply.body
                assert stream or not reply.sent
            else:
                assert not kind.startswith("death")
                require_told(reply, has_run=bool(site.ran), stream=stream)

        assert fault.has_struck
        has_run = bool(site.ran)
        if has_run:
            is_visible = await site.is_visible(site.ran[0].response_id, inherited)
        else:
            is_visible = site.rows() != rows
        outcomes.append((has_run, is_visible))

    ends_visible = kind.endswith("after_success")
    assert outcomes == [
        *[(False, False)] * len(case.before),
        *[(True, False)] * (len(case.after) - 1),
        (True, ends_visible),
    ]


async def test_the_calls_of_a_turn_are_those_that_were_struck(healthy: Any, fragile: Any) -> None:
    for case in (FIRST, LATER):
        site, continued = await case.begun(healthy)

        with Fault(fragile, "timeout", at=1_000) as fault:
            reply = await site.creating(**continued).run(site.app(fragile))

        assert reply.json["status"] == "completed"
        assert fault.calls == len(case.before) + len(case.after)


@pytest.mark.parametrize("kind", ["timeout", "timeout_after_success"])
async def test_what_the_client_library_repeats_is_not_noticed(
    healthy: Any, connect: Connect, kind: str
) -> None:
    with connect(attempts=2) as persistent:
        retry_at_once(persistent)
        site, continued = await LATER.begun(healthy)
        for at, _ in enumerate([*LATER.before, *LATER.after]):
            site.ran.clear()

            with Fault(persistent, kind, at) as fault:
                reply = await site.creating(**continued).run(site.app(persistent))

            assert fault.has_struck
            assert (reply.status, reply.json["status"], len(site.ran)) == (200, "completed", 1)
            assert await site.is_visible(reply.json["id"], ["What is it?", "It is: 42"])


@pytest.mark.parametrize("kind", ["throttle", "timeout", "timeout_after_success"])
async def test_a_read_that_fails_may_be_repeated(healthy: Any, fragile: Any, kind: str) -> None:
    site = await Site.made(healthy, LARGE)
    kept = await site.create()
    body = kept.removeprefix("resp_")
    reference = {"type": "item_reference", "id": f"msg_{body}0001"}
    asked: dict[str, tuple[str, str, dict[str, Any], int]] = {
        "retrieve": ("GET", f"/responses/{kept}", {}, 4),
        "input items": ("GET", f"/responses/{kept}/input_items", {}, 3),
        "reference": ("POST", "/responses", {"input": [reference], "store": False}, 4),
        "input tokens": ("POST", "/responses/input_tokens", {"previous_response_id": kept}, 3),
        "compact": ("POST", "/responses/compact", {"model": "m", "previous_response_id": kept}, 3),
    }
    for method, target, fields, calls in asked.values():
        site.ran.clear()
        for at in range(calls):
            with Fault(fragile, kind, at) as fault:
                reply = await site.ask(method, target, **fields).run(site.app(fragile))

            assert fault.has_struck
            assert not site.ran
            require_told(reply, has_run=False, stream=False)
        with Fault(fragile, kind, calls) as fault:
            reply = await site.ask(method, target, **fields).run(site.app(fragile))
        assert (reply.status, fault.calls) == (200, calls)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deletion_that_fails_can_be_repeated_until_all_is_gone(
    healthy: Any, fragile: Any, kind: str
) -> None:
    site = await Site.made(healthy, LARGE)
    for at, call in enumerate(["key", "secret", "turn", "tombstone", "chunk", "chunk"]):
        kept, rows = await site.create(), site.rows()

        reply = site.ask("DELETE", f"/responses/{kept}")
        with Fault(fragile, kind, at) as fault:
            try:
                await reply.run(site.app(fragile))
            except Died:
                assert not reply.sent
            else:
                require_told(reply, has_run=False, stream=False)
        is_there = await site.is_visible(kept, [])
        again = await site.ask("DELETE", f"/responses/{kept}").run(site.healthy)

        assert fault.has_struck
        is_past = call == "chunk" or (call == "tombstone" and kind.endswith("after_success"))
        assert is_there is not is_past
        assert again.status == (200 if is_there else 404)
        assert not await site.is_visible(kept, [])
        assert site.rows() == rows - 2  # without the chunks
