"""Isolation, measured: what others are told of an id is the same before and after there is such a response."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from channel.agents.demo import demo_agent
from channel.memory import InMemoryResponseStore
from channel.ports import ResponseStore
from channel.responses.protocol import ids
from infra.dynamodb import keys
from infra.dynamodb.client import Client as DynamoDBClient
from infra.dynamodb.store import DynamoDBResponseStore
from tests.channel.asgi import hosted
from tests.e2e.conftest import Connect
from tests.e2e.doors import Client, Door, Reply, direct, over_http
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


@contextmanager
def opened(engine: str, client: DynamoDBClient) -> Iterator[Door]:
    """Open a door to an app whose ids can be foretold: its random tokens are always the same."""
    store: ResponseStore = (
        InMemoryResponseStore(new_token=_token)
        if engine == "memory"
        else DynamoDBResponseStore(client, engines.TABLE, secret=own_secret(), new_token=_token)
    )
    with direct(hosted(demo_agent(), store)) as door:
        yield door


def _token(size: int) -> str:
    return "5a" * size


FORETOLD: Mapping[str, str] = {
    "memory": ids.response_id(_token(ids.BODY_DIGITS // 2)),
    "moto": ids.response_id(keys.root_place(_token).node.body),
}
"""The id that the first response of such an app will have."""


def asked_everything(client: Client, response_id: str) -> list[Reply]:
    """Ask every route that takes an id."""
    target = f"/responses/{response_id}"
    body = response_id.removeprefix("resp_")
    references = [{"type": "item_reference", "id": f"msg_{body}000{index}"} for index in (0, 1)]
    replies = [
        client.get(target),
        client.get(f"{target}?stream=true"),
        client.get(f"{target}?include[]=message.output_text.logprobs"),
        client.ask("HEAD", target),
        client.ask("PUT", target, {}),
        client.get(f"{target}/input_items"),
        client.get(f"{target}/input_items?limit=1&order=asc&after=msg_{body}0000"),
        client.delete(target),
        client.delete(target),
    ]
    for fields in ({}, {"stream": True}, {"store": False}):
        replies.append(client.post(input="On.", previous_response_id=response_id, **fields))
        replies += [client.post(input=[reference], **fields) for reference in references]
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


@pytest.mark.parametrize("apart", APART.values(), ids=APART)
@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_else_can_tell_whether_a_response_exists(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    expected = FORETOLD[engine]
    with opened(engine, client) as door:
        owner, other = (who.at(door) for who in apart)

        before = told(asked_everything(other, expected))
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


@pytest.mark.parametrize("apart", APART.values(), ids=APART)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_id_in_two_partitions_is_two_responses(
    client: DynamoDBClient, engine: str, apart: tuple[Who, Who]
) -> None:
    with opened(engine, client) as door:
        owner, other = (who.at(door) for who in apart)

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


def text(response: Mapping[str, Any]) -> str:
    said: str = response["output"][0]["content"][0]["text"]
    return said


@pytest.mark.parametrize("engine", ENGINES)
def test_headers_of_a_key_that_is_no_delegate_count_for_nothing(
    client: DynamoDBClient, engine: str
) -> None:
    with opened(engine, client) as door:
        created = ALPHA.at(door).create(input="Hi")
        headed = Who("key-alpha", {USER: "ann", CHAT: "one"}).at(door)

        assert headed.get(f"/responses/{created['id']}").json == created


def test_over_a_socket_a_foreign_id_is_answered_as_one_that_never_was() -> None:
    with running() as root, over_http(root) as door:
        created = Client(door, key="dev-alpha").create(input="My name is Ada.")
        identifier = created["id"]
        digit = "0" if identifier[-1] != "0" else "1"
        never = identifier[:-1] + digit
        other = Client(door, key="dev-beta")

        foreign, unknown = (told(asked_everything(other, each)) for each in (identifier, never))

    body, other_body = (each.removeprefix("resp_").encode() for each in (identifier, never))
    assert [
        (status, headers, said.replace(body, other_body)) for status, headers, said in foreign
    ] == unknown
    assert {status for status, _, _ in unknown} == {400, 404, 405}
