"""Isolation, measured: what others are told of an id is the same before and after there is such a thing."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import anyio
import pytest

from channel.agent import Turn
from channel.agents.demo import demo_agent
from channel.host import AgentHost
from channel.memory import InMemoryResponseStore
from channel.memory_conversations import InMemoryConversationStore
from channel.ports import random_hex
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol import ids
from channel.sealing import SecretSealer
from infra.dynamodb import keys
from infra.dynamodb.client import Client as DynamoDBClient
from infra.dynamodb.conversations import DynamoDBConversationStore
from infra.dynamodb.idempotency import DynamoDBIdempotencyStore
from infra.dynamodb.runs import DynamoDBRunStore
from infra.dynamodb.store import DynamoDBResponseStore
from tests.channel.asgi import KEYS, Wire, request
from tests.channel.instances import HeldJobs
from tests.e2e.conftest import Connect
from tests.e2e.doors import Client, Door, Reply, over_http, through
from tests.e2e.server import running
from tests.infra import engines
from tests.infra.turns import own_secret


USER, CHAT = "x-agent-user-isolation-key", "x-agent-chat-isolation-key"
ENGINES = ("memory", "moto")


@dataclass(frozen=True)
class Who:
    """A key, and the isolation headers that are sent with it."""

    key: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def at(self, door: Door) -> Client:
        return Client(door, key=self.key, headers=self.headers)


def delegate(user: str | None = None, chat: str | None = None) -> Who:
    named = {USER: user, CHAT: chat}
    return Who("key-agency", {name: value for name, value in named.items() if value is not None})


ALPHA, BETA = Who("key-alpha"), Who("key-beta")

APART: Mapping[str, tuple[Who, Who]] = {
    "two tenants": (ALPHA, BETA),
    "a tenant, and one that names it in the headers": (
        ALPHA,
        Who("key-beta", {USER: "alpha", CHAT: "alpha"}),
    ),
    "a tenant, and a delegate's user of its name": (ALPHA, delegate("alpha")),
    "a delegate's user, and a tenant of the user's name": (delegate("beta"), BETA),
    "two users of a delegate": (delegate("ann"), delegate("bob")),
    "a user of a delegate, and the delegate": (delegate("ann"), delegate()),
    "a delegate, and a user of it": (delegate(), delegate("ann")),
    "two chats of a user": (delegate("ann", "one"), delegate("ann", "two")),
    "a chat of a user, and no chat": (delegate("ann", "one"), delegate("ann")),
    "no chat, and a chat of the user": (delegate("ann"), delegate("ann", "one")),
    "a chat of a user, and that of another": (delegate("ann", "one"), delegate("bob", "one")),
    "a user in a chat, and the two swapped": (delegate("ann", "one"), delegate("one", "ann")),
    "a chat of the delegate, and that of a user": (delegate(None, "one"), delegate("ann", "one")),
}


@pytest.fixture(scope="module")
def client(connect: Connect) -> Iterator[DynamoDBClient]:
    with connect() as made:
        yield made


class Tokens:
    """Random ones; or where a test foretells them, the same two digits over and over."""

    def __init__(self) -> None:
        self._digits: str | None = None

    def __call__(self, size: int) -> str:
        return self._digits * size if self._digits else random_hex(size)

    @contextmanager
    def foretold(self, digits: str) -> Iterator[None]:
        self._digits = digits
        yield
        self._digits = None


@dataclass(frozen=True)
class Site:
    """An app over stores of its own: its ids can be foretold, and its jobs run when a test says so."""

    engine: str
    app: Any
    door: Door
    tokens: Tokens
    work: Callable[[], None]

    def response_id(self, digits: str) -> str:
        """Return the id of a response that begins a thread with such tokens."""
        if self.engine == "memory":
            return ids.response_id(digits * (ids.BODY_DIGITS // 2))
        return ids.response_id(keys.root_place(digits.__mul__).node.body)

    def entry_body(self, name: str, number: int, digits: str) -> str:
        """Return the body of the ids of an entry of a conversation."""
        if self.engine == "memory":
            return digits * (ids.BODY_DIGITS // 2)
        return keys.new_entry(name, number, digits.__mul__).body


@contextmanager
def opened(
    engine: str, client: DynamoDBClient, agent: Callable[[Turn], Any] | None = None
) -> Iterator[Site]:
    tokens, jobs, secret = Tokens(), HeldJobs(), own_secret()
    made = in_memory(tokens) if engine == "memory" else in_table(client, tokens, secret)
    channel = ResponsesChannel(**made, jobs=jobs, sealer=SecretSealer(secret), keepalive_s=0)
    host = AgentHost(agent or demo_agent(), channels=[channel], authenticator=KEYS)

    def work() -> None:
        while jobs.held:
            job = jobs.held.pop(0)
            runner.run(host.jobs[job.kind](job.payload, None))

    with asyncio.Runner() as runner:
        yield Site(engine, host.app, through(runner, host.app), tokens, work)


def in_memory(tokens: Tokens) -> dict[str, Any]:
    store = InMemoryResponseStore(new_token=tokens)
    return {
        "store": store,
        "conversations": InMemoryConversationStore(store, new_token=tokens),
    }


def in_table(client: DynamoDBClient, tokens: Tokens, secret: Any) -> dict[str, Any]:
    at: Any = {"client": client, "table": engines.TABLE, "secret": secret}
    return {
        "store": DynamoDBResponseStore(**at, new_token=tokens),
        "conversations": DynamoDBConversationStore(**at, new_token=tokens),
        "runs": DynamoDBRunStore(**at),
        "idempotency": DynamoDBIdempotencyStore(**at),
    }


def asked_everything(client: Client, response_id: str) -> list[Reply]:
    """Ask every route that takes the id of a response, or of an item of one."""
    target = f"/responses/{response_id}"
    body = response_id.removeprefix("resp_")
    references = [{"type": "item_reference", "id": f"msg_{body}000{index}"} for index in (0, 1)]
    replies = [
        client.get(target),
        client.get(f"{target}?stream=true"),
        client.get(f"{target}?stream=true&starting_after=0"),
        client.get(f"{target}?include[]=message.output_text.logprobs"),
        client.ask("HEAD", target),
        client.ask("PUT", target, {}),
        client.get(f"{target}/input_items"),
        client.get(f"{target}/input_items?limit=1&order=asc&after=msg_{body}0000"),
        client.ask("POST", f"{target}/cancel"),
        client.delete(target),
        client.delete(target),
    ]
    asked: list[dict[str, Any]] = [
        {"input": "On.", "previous_response_id": response_id},
        *({"input": [reference]} for reference in references),
    ]
    for fields in ({}, {"stream": True}, {"store": False}, {"background": True}):
        replies += [client.post(**each, **fields) for each in asked]
    for route in ("/responses/input_tokens", "/responses/compact"):
        replies += [client.ask("POST", route, {"model": "agent", **each}) for each in asked]
    replies.append(client.ask("POST", "/conversations", {"items": references[:1]}))
    return replies


@dataclass(frozen=True)
class Own:
    """A conversation of one's own, and an item of it."""

    conversation_id: str
    item_id: str

    @classmethod
    def made(cls, client: Client) -> "Own":
        given = {"type": "message", "role": "user", "content": "Mine."}
        made = client.ask("POST", "/conversations", {"items": [given]}).json["id"]
        (item,) = client.get(f"/conversations/{made}/items").json["data"]
        return cls(made, item["id"])


def asked_of_conversation(client: Client, conversation_id: str, item_id: str, own: Own) -> list[Reply]:
    """Ask every route that takes the id of a conversation, or of an item of one."""
    target, mine = f"/conversations/{conversation_id}", f"/conversations/{own.conversation_id}"
    given = {"type": "message", "role": "user", "content": "Hi"}
    reference = {"type": "item_reference", "id": item_id}
    replies = [
        client.get(target),
        client.ask("HEAD", target),
        client.ask("PUT", target, {}),
        client.ask("POST", target, {"metadata": {"a": "b"}}),
        client.get(f"{target}/items"),
        client.get(f"{target}/items?limit=1&order=asc&after={item_id}"),
        client.get(f"{target}/items?after={own.item_id}"),
        client.get(f"{mine}/items?after={item_id}"),
        client.ask("POST", f"{target}/items", {"items": [given]}),
        client.ask("POST", f"{target}/items", {"items": []}),
        client.ask("POST", f"{mine}/items", {"items": [reference]}),
        client.ask("POST", "/conversations", {"items": [given, reference]}),
        client.delete(target),
        client.delete(target),
        client.ask("POST", "/responses/input_tokens", {"conversation": conversation_id}),
        client.post(input=[reference], conversation=own.conversation_id),
    ]
    for path in (f"{target}/items/{item_id}", f"{target}/items/{own.item_id}", f"{mine}/items/{item_id}"):
        replies += [client.get(path), client.delete(path)]
    for fields in ({}, {"stream": True}, {"store": False}, {"background": True}):
        replies.append(client.post(input="On.", conversation={"id": conversation_id}, **fields))
    return replies


def told(replies: list[Reply]) -> list[tuple[int, dict[str, str], bytes]]:
    """Return the replies whole, but for the two headers that differ from request to request."""
    return [
        (
            reply.status,
            {k: v for k, v in reply.headers.items() if k not in {"x-request-id", "date"}},
            reply.body,
        )
        for reply in replies
    ]


over_all_pairs = pytest.mark.parametrize("apart", APART.values(), ids=APART)
on_each_engine = pytest.mark.parametrize("engine", ENGINES)


@over_all_pairs
@on_each_engine
def test_nobody_else_can_tell_whether_a_response_exists(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    with opened(engine, client) as site:
        owner, other = (who.at(site.door) for who in apart)
        expected = site.response_id("5a")

        before = told(asked_everything(other, expected))
        with site.tokens.foretold("5a"):
            created = owner.create(input="My name is Ada.")
        after = told(asked_everything(other, expected))
        kept = owner.get(f"/responses/{expected}")
        deleted = owner.delete(f"/responses/{expected}")
        afterwards = told(asked_everything(other, expected))

    assert created["id"] == expected
    assert {status for status, _, _ in before} == {400, 404, 405}
    assert after == before
    assert (kept.status, kept.json) == (200, created)
    assert deleted.status == 200
    assert afterwards == before


@over_all_pairs
@on_each_engine
def test_nobody_else_can_tell_whether_a_background_response_is_queued_or_has_ended(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    with opened(engine, client) as site:
        owner, other = (who.at(site.door) for who in apart)
        expected = site.response_id("5a")
        target = f"/responses/{expected}"

        before = told(asked_everything(other, expected))
        with site.tokens.foretold("5a"):
            begin_stream(site, owner)
        queued = told(asked_everything(other, expected))
        waiting = owner.get(target)
        site.work()
        ended = told(asked_everything(other, expected))
        kept, replayed = owner.get(target), owner.get(f"{target}?stream=true&starting_after=0")

    assert {status for status, _, _ in before} == {400, 404, 405}
    assert (waiting.json["id"], waiting.json["status"]) == (expected, "queued")
    assert queued == before
    assert kept.json["status"] == "completed"
    assert [event["sequence_number"] for event in replayed.events][:2] == [1, 2]
    assert replayed.events[-1]["response"] == kept.json
    assert ended == before


def begin_stream(site: Site, owner: Client) -> None:
    """Begin a background response whose events are kept, and do not wait for any of them."""
    fields = {"input": "My name is Ada.", "background": True, "stream": True}
    with asyncio.Runner() as runner:
        runner.run(begun_and_left(site, owner, fields))


@over_all_pairs
@on_each_engine
def test_nobody_else_can_tell_whether_a_conversation_exists_or_is_locked(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    given = {"type": "message", "role": "user", "content": "My name is Ada."}
    with opened(engine, client) as site:
        owner, other = (who.at(site.door) for who in apart)
        own, name = Own.made(other), "c0" * 10
        target = f"/conversations/{ids.conversation_id(name)}"
        first, second = (
            site.entry_body(name, number, f"e{number}") for number in (1, 2)
        )

        def everything() -> Any:
            of_item, of_turn = (ids.item_id("message", body, 0) for body in (first, second))
            return told(
                [
                    *asked_of_conversation(other, ids.conversation_id(name), of_item, own),
                    other.get(f"{target}/items/{of_turn}"),
                    other.get(f"{target}/items?after={of_turn}"),
                    *asked_everything(other, ids.response_id(second)),
                ]
            )
