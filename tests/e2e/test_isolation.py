"""Isolation, measured: what others are told of an id is the same before and after there is such a thing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest

from channel.agent import Turn
from channel.agents.demo import demo_agent
from channel.host import AgentHost
from channel.memory import InMemoryResponseStore
from channel.memory_conversations import InMemoryConversationStore
from channel.ports import Job, random_hex
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol import ids
from channel.sealing import Secret, SecretSealer
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
    host: AgentHost
    tokens: Tokens
    jobs: HeldJobs
    runner: asyncio.Runner

    @property
    def door(self) -> Door:
        return through(self.runner, self.host.app)

    def pair(self, apart: tuple[Who, Who]) -> tuple[Client, Client]:
        owner, other = (who.at(self.door) for who in apart)
        return owner, other

    def work(self) -> None:
        """Run the jobs that were started."""
        while self.jobs.held:
            self.runner.run(self._run(self.jobs.held.pop(0)))

    async def _run(self, job: Job) -> None:
        await self.host.jobs[job.kind](job.payload, None)

    def begin_stream(self, who: Who, **fields: Any) -> None:
        """Begin a background response whose events are kept, and wait for none of them."""
        wire = creating(who, background=True, stream=True, **fields)
        wire.hang_up()
        self.runner.run(wire.run(self.host.app))

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


def creating(who: Who, **fields: Any) -> Wire:
    return request("POST", "/v1/responses", fields, key=who.key, headers=who.headers)


def still() -> float:
    """Be a clock that stands still."""
    return 1_800_000_000.0


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_S", "IDLE_POLL_S"):
        monkeypatch.setattr(f"channel.responses.background.following.{name}", 0.001)


@contextmanager
def opened(
    engine: str, client: DynamoDBClient, agent: Callable[[Turn], Any] | None = None
) -> Iterator[Site]:
    tokens, jobs, secret = Tokens(), HeldJobs(), own_secret()
    stores = in_memory(tokens) if engine == "memory" else in_table(client, tokens, secret)
    channel = ResponsesChannel(
        **stores, jobs=jobs, sealer=SecretSealer(secret), clock=still, keepalive_s=0
    )
    host = AgentHost(agent or demo_agent(), channels=[channel], authenticator=KEYS)
    with asyncio.Runner() as runner:
        yield Site(engine, host, tokens, jobs, runner)


def in_memory(tokens: Tokens) -> dict[str, Any]:
    store = InMemoryResponseStore(clock=still, new_token=tokens)
    conversations = InMemoryConversationStore(store, clock=still, new_token=tokens)
    return {"store": store, "conversations": conversations}


def in_table(client: DynamoDBClient, tokens: Tokens, secret: Secret) -> dict[str, Any]:
    at: Any = {"client": client, "table": engines.TABLE, "secret": secret, "clock": still}
    return {
        "store": DynamoDBResponseStore(**at, new_token=tokens),
        "conversations": DynamoDBConversationStore(**at, new_token=tokens),
        "runs": DynamoDBRunStore(**at),
        "idempotency": DynamoDBIdempotencyStore(**at),
    }


def asked_everything(client: Client, response_id: str) -> list[Reply]:
    """Ask every route that takes the id of a response, or of an item of one, in every manner."""
    target = f"/responses/{response_id}"
    body = response_id.removeprefix("resp_")
    references = [{"type": "item_reference", "id": f"msg_{body}000{index}"} for index in (0, 1)]
    replies = [
        *asked_each_route(client, response_id),
        client.get(f"{target}?stream=true&starting_after=0"),
        client.get(f"{target}?include[]=message.output_text.logprobs"),
        client.ask("HEAD", target),
        client.ask("PUT", target, {}),
        client.get(f"{target}/input_items?limit=1&order=asc&after=msg_{body}0000"),
        client.delete(target),
    ]
    for fields in ({"stream": True}, {"store": False}, {"background": True}):
        replies += [client.post(input="On.", previous_response_id=response_id, **fields)]
    for fields in ({}, {"stream": True}):
        replies += [client.post(input=[reference], **fields) for reference in references]
    for route in ("/responses/input_tokens", "/responses/compact"):
        replies.append(client.ask("POST", route, {"model": "agent", "input": references[:1]}))
    return replies


def asked_each_route(client: Client, response_id: str) -> list[Reply]:
    """Ask every route that takes the id of a response once."""
    target, previous = f"/responses/{response_id}", {"previous_response_id": response_id}
    said = ids.item_id("message", response_id.removeprefix("resp_"), 1)
    reference = {"type": "item_reference", "id": said}
    return [
        client.get(target),
        client.get(f"{target}?stream=true"),
        client.get(f"{target}/input_items"),
        client.ask("POST", f"{target}/cancel"),
        client.delete(target),
        client.post(input="On.", **previous),
        client.ask("POST", "/responses/input_tokens", {"input": "On.", **previous}),
        client.ask("POST", "/responses/compact", {"model": "agent", **previous}),
        client.ask("POST", "/conversations", {"items": [reference]}),
    ]


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


def asked_of_conversation(client: Client, conversation_id: str, item_id: str) -> list[Reply]:
    """Ask every route that takes the id of a conversation."""
    target, given = f"/conversations/{conversation_id}", {"role": "user", "content": "Hi"}
    replies = [
        client.get(target),
        client.ask("HEAD", target),
        client.ask("PUT", target, {}),
        client.ask("POST", target, {"metadata": {"a": "b"}}),
        client.get(f"{target}/items"),
        client.get(f"{target}/items?limit=1&order=asc&after={item_id}"),
        client.ask("POST", f"{target}/items", {"items": [{"type": "message", **given}]}),
        client.get(f"{target}/items/{item_id}"),
        client.delete(f"{target}/items/{item_id}"),
        client.delete(target),
        client.ask("POST", "/responses/input_tokens", {"conversation": conversation_id}),
        client.post(input="On.", conversation=conversation_id),
    ]
    for fields in ({"stream": True}, {"store": False}, {"background": True}):
        replies += [client.post(input="On.", conversation={"id": conversation_id}, **fields)]
    return replies


def asked_with_own(client: Client, own: Own, conversation_id: str, item_id: str) -> list[Reply]:
    """Ask for an item in a conversation of one's own, and for one's own in another conversation."""
    target, mine = f"/conversations/{conversation_id}", f"/conversations/{own.conversation_id}"
    reference = {"type": "item_reference", "id": item_id}
    return [
        client.get(f"{mine}/items?after={item_id}"),
        client.get(f"{mine}/items/{item_id}"),
        client.delete(f"{mine}/items/{item_id}"),
        client.ask("POST", f"{mine}/items", {"items": [reference]}),
        client.post(input=[reference], conversation=own.conversation_id),
        client.ask("POST", "/conversations", {"items": [reference]}),
        client.get(f"{target}/items?after={own.item_id}"),
        client.get(f"{target}/items/{own.item_id}"),
        client.delete(f"{target}/items/{own.item_id}"),
    ]


Told: TypeAlias = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


def told(replies: list[Reply]) -> list[Told]:
    """Return the replies whole, but for the two headers that differ from request to request."""
    return [
        (
            reply.status,
            {k: v for k, v in reply.headers.items() if k not in {"x-request-id", "date"}},
            reply.body,
        )
        for reply in replies
    ]


FEW = ("two tenants", "two users of a delegate", "two chats of a user")

over_all_pairs = pytest.mark.parametrize("apart", APART.values(), ids=APART)
over_a_few_pairs = pytest.mark.parametrize("apart", [APART[name] for name in FEW], ids=FEW)
on_each_engine = pytest.mark.parametrize("engine", ENGINES)


@over_all_pairs
@on_each_engine
def test_nobody_else_can_tell_whether_a_response_exists(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    with opened(engine, client) as site:
        owner, other = site.pair(apart)
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
def test_nobody_else_can_tell_of_a_background_response_whether_it_waits_or_has_ended(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    with opened(engine, client) as site:
        owner, other = site.pair(apart)
        expected = site.response_id("5a")
        target = f"/responses/{expected}"

        def asked() -> list[Told]:
            resumed = other.get(f"{target}?stream=true&starting_after=2")
            return told([*asked_each_route(other, expected), resumed])

        before = asked()
        with site.tokens.foretold("5a"):
            site.begin_stream(apart[0], input="My name is Ada.")
        waiting, kept_waiting = asked(), owner.get(target)
        site.work()
        ended, kept, replayed = asked(), owner.get(target), owner.get(f"{target}?stream=true")
        deleted, afterwards = owner.delete(target), asked()

    assert {status for status, _, _ in before} == {400, 404}
    assert waiting == before
    assert (kept_waiting.json["id"], kept_waiting.json["status"]) == (expected, "queued")
    assert ended == before
    assert kept.json["status"] == "completed"
    assert replayed.events[-1]["response"] == kept.json
    assert deleted.status == 200
    assert afterwards == before


@over_all_pairs
@on_each_engine
def test_nobody_else_can_tell_of_a_conversation_whether_it_exists_or_is_locked(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    name, given = "c0" * 10, {"type": "message", "role": "user", "content": "My name is Ada."}
    conversation_id = ids.conversation_id(name)
    target = f"/conversations/{conversation_id}"
    with opened(engine, client) as site:
        owner, other = site.pair(apart)
        own = Own.made(other)
        added, turn = (site.entry_body(name, number, f"e{number}") for number in (1, 2))
        item_id, response_id = ids.item_id("message", added, 0), ids.response_id(turn)

        def asked() -> list[Told]:
            return told(asked_of_conversation(other, conversation_id, item_id))

        def asked_more() -> list[Told]:
            said = ids.item_id("message", turn, 1)
            replies = [
                *asked_each_route(other, response_id),
                *asked_with_own(other, own, conversation_id, item_id),
                other.get(f"{target}/items/{said}"),
            ]
            return told(replies)

        before, more_before = asked(), asked_more()
        with site.tokens.foretold("c0"):
            created = owner.ask("POST", "/conversations", {"metadata": {"topic": "names"}})
        with site.tokens.foretold("e1"):
            items = owner.ask("POST", f"{target}/items", {"items": [given]})
        with site.tokens.foretold("e2"):
            begun = owner.create(
                input="What is my name?", conversation=conversation_id, background=True
            )
        refused, locked = owner.post(input="And now?", conversation=conversation_id), asked()
        site.work()
        ended, more_ended = asked(), asked_more()
        kept = [owner.get(path).json for path in (target, f"/responses/{response_id}")]
        listed = owner.get(f"{target}/items?order=asc").json["data"]
        deleted, afterwards = owner.delete(target), told([other.get(target), other.delete(target)])

    assert {status for status, _, _ in [*before, *more_before]} == {400, 404, 405}
    assert locked == before
    assert (ended, more_ended) == (before, more_before)
    assert (created.json["id"], items.json["first_id"]) == (conversation_id, item_id)
    assert (begun["id"], refused.error["code"]) == (response_id, "conversation_locked")
    assert kept[0] == created.json
    assert text(kept[1]) == "Your name is Ada."
    assert [item["content"][0]["text"] for item in listed] == [
        *["My name is Ada.", "What is my name?", "Your name is Ada."]
    ]
    assert deleted.status == 200
    assert all(each in before for each in afterwards)


@over_all_pairs
@on_each_engine
def test_an_idempotency_key_of_another_is_an_unused_one_in_progress_and_after(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    gate, has_begun = asyncio.Event(), asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        if turn.text == "Wait.":
            has_begun.set()
            await gate.wait()
        yield turn.text

    async def begun(wire: Wire) -> "asyncio.Task[Wire]":
        task = wire.start(site.host.app)
        await has_begun.wait()
        return task

    async def done(task: "asyncio.Task[Wire]") -> Wire:
        gate.set()
        return await task

    with opened(engine, client, agent) as site:
        owner, other = (with_key(who, "key 1").at(site.door) for who in apart)

        def asked() -> list[Told]:
            unknown = {"previous_response_id": site.response_id("00")}
            with site.tokens.foretold("0e"):
                return told(
                    [
                        other.post(input="Hi", store=False),
                        other.post(input="Hi", store=False, stream=True),
                        other.post(input="Hi", **unknown),
                    ]
                )

        before = asked()
        task = site.runner.run(begun(creating(with_key(apart[0], "key 1"), input="Wait.")))
        conflict = owner.post(input="Wait.")
        in_progress = asked()
        first = site.runner.run(done(task))
        after = asked()
        replayed, others = owner.post(input="Wait."), other.post(input="Wait.")
        again = other.post(input="Wait.")

    assert [status for status, _, _ in before] == [200, 200, 400]
    assert conflict.error["code"] == "idempotency_key_in_progress"
    assert in_progress == before
    assert after == before
    assert (replayed.headers["idempotent-replayed"], replayed.json) == ("true", first.json)
    assert "idempotent-replayed" not in others.headers
    assert others.json["id"] != first.json["id"]
    assert (again.headers["idempotent-replayed"], again.json) == ("true", others.json)


def with_key(who: Who, key: str) -> Who:
    return Who(who.key, {**who.headers, "idempotency-key": key})


@over_all_pairs
@on_each_engine
def test_a_compaction_that_was_sealed_for_another_is_refused_like_one_of_nobody(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    asked = {"model": "agent", "input": "My name is Ada."}
    with opened(engine, client) as site:
        owner, other = site.pair(apart)
        own = Own.made(other)
        compacted = owner.ask("POST", "/responses/compact", asked).json["output"]
        sealed = compacted[-1]
        content = sealed["encrypted_content"]
        changed = content[:9] + ("A" if content[9] != "A" else "B") + content[10:]

        foreign, nobodys = (
            told(asked_with_compaction(other, {**sealed, "encrypted_content": each}, own))
            for each in (content, changed)
        )
        answer = owner.create(input=[*compacted, {"role": "user", "content": "What is my name?"}])

    assert sealed["type"] == "compaction"
    assert foreign == nobodys
    assert {status for status, _, _ in foreign} == {400}
    assert "Ada" in text(answer)


def asked_with_compaction(client: Client, item: dict[str, Any], own: Own) -> list[Reply]:
    """Ask every route that takes items with one, which is refused."""
    given = [item, {"role": "user", "content": "What is my name?"}]
    mine = f"/conversations/{own.conversation_id}"
    replies = [
        client.post(input=given, **fields)
        for fields in (
            *({}, {"stream": True}, {"store": False}, {"background": True}),
            {"conversation": own.conversation_id},
        )
    ]
    for route in ("/responses/input_tokens", "/responses/compact"):
        replies += [client.ask("POST", route, {"model": "agent", "input": given})]
    for route in ("/conversations", f"{mine}/items"):
        replies += [client.ask("POST", route, {"items": given})]
    return replies


@over_all_pairs
@on_each_engine
def test_the_same_id_in_two_partitions_is_two_responses(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    with opened(engine, client) as site, site.tokens.foretold("5a"):
        owner, other = site.pair(apart)

        first = owner.create(input="My name is Ada.")
        second = other.create(input="My name is Eve.")
        target, asked = f"/responses/{first['id']}", "What is my name?"
        answers = [
            text(client.create(input=asked, previous_response_id=first["id"], store=False))
            for client in (owner, other)
        ]
        items = [client.get(f"{target}/input_items").json["data"] for client in (owner, other)]
        gone = other.delete(target)
        left = owner.get(target)

    assert first["id"] == second["id"]
    assert answers == ["Your name is Ada.", "Your name is Eve."]
    assert [each[0]["content"][0]["text"] for each in items] == [
        *["My name is Ada.", "My name is Eve."]
    ]
    assert gone.status == 200
    assert (left.status, left.json) == (200, first)


@over_a_few_pairs
@on_each_engine
def test_the_same_id_in_two_partitions_is_two_background_responses(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    with opened(engine, client) as site, site.tokens.foretold("5a"):
        owner, other = site.pair(apart)

        for who, name in zip(apart, ("Ada", "Eve"), strict=True):
            site.begin_stream(who, input=f"My name is {name}.")
        target = f"/responses/{site.response_id('5a')}"
        cancelled = other.ask("POST", f"{target}/cancel")
        site.work()
        kept = [client.get(target).json for client in (owner, other)]
        streams = [client.get(f"{target}?stream=true").events for client in (owner, other)]
        gone = other.delete(target)
        left = owner.get(f"{target}?stream=true&starting_after=1")

    assert cancelled.json["status"] == "cancelled"
    assert [each["status"] for each in kept] == ["completed", "cancelled"]
    assert ["Ada" in str(events) for events in streams] == [True, False]
    assert ["Eve" in str(events) for events in streams] == [False, False]
    assert gone.status == 200
    assert left.events == streams[0][2:]


@over_a_few_pairs
@on_each_engine
def test_the_same_id_in_two_partitions_is_two_conversations(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    with opened(engine, client) as site:
        owner, other = site.pair(apart)

        made = []
        for each, name in ((owner, "Ada"), (other, "Eve")):
            given = {"type": "message", "role": "user", "content": f"My name is {name}."}
            with site.tokens.foretold("c0"):
                body = {"items": [given], "metadata": {"name": name}}
                made.append(each.ask("POST", "/conversations", body).json)
        target = f"/conversations/{made[0]['id']}"
        answers = [
            text(client.create(input="What is my name?", conversation=made[0]["id"]))
            for client in (owner, other)
        ]
        item_id = owner.get(f"{target}/items?order=asc").json["data"][0]["id"]
        changed = other.ask("POST", target, {"metadata": {}})
        dropped = other.delete(f"{target}/items/{item_id}")
        gone = other.delete(target)
        left = [owner.get(path) for path in (target, f"{target}/items/{item_id}")]

    assert made[0]["id"] == made[1]["id"]
    assert answers == ["Your name is Ada.", "Your name is Eve."]
    assert [reply.status for reply in (changed, dropped, gone)] == [200] * 3
    assert left[0].json == made[0]
    assert left[1].json["content"][0]["text"] == "My name is Ada."


def text(response: Mapping[str, Any]) -> str:
    said: str = response["output"][0]["content"][0]["text"]
    return said


@on_each_engine
def test_headers_of_a_key_that_is_no_delegate_count_for_nothing(
    client: DynamoDBClient, engine: str
) -> None:
    with opened(engine, client) as site:
        created = ALPHA.at(site.door).create(input="Hi")
        headed = Who("key-alpha", {USER: "ann", CHAT: "one"}).at(site.door)

        assert headed.get(f"/responses/{created['id']}").json == created


def test_over_a_socket_a_foreign_id_is_answered_as_one_that_never_was() -> None:
    with running() as root, over_http(root) as door:
        owner, other = Client(door, key="dev-alpha"), Client(door, key="dev-beta")
        own, conversation = Own.made(other), Own.made(owner).conversation_id
        alone = owner.create(input="My name is Ada.")["id"]
        turn = owner.create(input="My name is Ada.", conversation=conversation)["id"]
        never = {each: changed(each) for each in (alone, turn, conversation)}

        def asked(named: Mapping[str, str]) -> list[Told]:
            conversation_id = named[conversation]
            item_id = ids.item_id("message", named[turn].removeprefix("resp_"), 0)
            replies = [
                *asked_everything(other, named[alone]),
                *asked_everything(other, named[turn]),
                *asked_of_conversation(other, conversation_id, item_id),
                *asked_with_own(other, own, conversation_id, item_id),
            ]
            return told(replies)

        foreign, unknown = asked({each: each for each in never}), asked(never)

    renamed = [(status, headers, as_never(body, never)) for status, headers, body in foreign]
    assert renamed == unknown
    assert {status for status, _, _ in unknown} == {400, 404, 405}


def changed(identifier: str) -> str:
    """Return another id: its last digit is another one."""
    return identifier[:-1] + ("0" if identifier[-1] != "0" else "1")


def as_never(said: bytes, never: Mapping[str, str]) -> bytes:
    """Return what was said with the ids of what never was in place of those that are there."""
    for there, other in never.items():
        # An item has the body of its response in its id; a response has a conversation's in its own.
        old, new = (each.removeprefix("resp_").encode() for each in (there, other))
        said = said.replace(old, new)
    return said
