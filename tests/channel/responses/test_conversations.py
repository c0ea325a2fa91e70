"""Conversations over the wire: their routes, their items, and the turns that go on with them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import ASGIApp

from channel.agent import AgentEvent, FunctionCall, OutputItem, Turn
from channel.conversations import LOCK_GRACE_S, ConversationLockedError
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.memory_conversations import InMemoryConversationStore
from channel.ports import Branch, StoredTurn, StoreError, TurnTooLargeError
from channel.responses.operations import MAX_TURN_S
from channel.responses.protocol.items import text_of
from tests.channel.asgi import Wire, create, creating, get, hosted, request


pytestmark = pytest.mark.anyio

ALPHA = IsolationKeys("alpha")
UNKNOWN = "conv_" + "0" * 20
F = {"type": "function", "name": "f"}


async def recalls(turn: Turn) -> AsyncIterator[AgentEvent]:
    """Say everything that was said so far, so that a test can read what the agent was given."""
    yield " | ".join(text_of(item) for item in turn.items if item["type"] == "message")


class Gated:
    """An agent that waits until it is let go, and says that it has begun."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.has_begun.set()
        yield "so "
        await self.may_end.wait()
        yield "far"


def user(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


async def begin(app: ASGIApp, *texts: str, **fields: Any) -> str:
    body = {"items": [user(text) for text in texts], **fields}
    reply = await request("POST", "/v1/conversations", body).run(app)
    assert reply.status == 200, reply.body
    name: str = reply.json["id"]
    return name


async def listed(app: ASGIApp, name: str, query: str = "order=asc") -> list[str]:
    reply = await get(app, f"/v1/conversations/{name}/items", query=query)
    assert reply.status == 200, reply.body
    return [text_of(item) for item in reply.json["data"]]


def said(response: dict[str, Any]) -> str:
    return text_of(response["output"][-1])


def error_of(reply: Wire) -> tuple[int, str | None, str | None]:
    return reply.status, reply.error_body["code"], reply.error_body["param"]


# Conversations


async def test_a_conversation_is_created_read_changed_and_deleted() -> None:
    app = hosted(recalls, clock=lambda: 1_700_000_000.9)
    made = await request("POST", "/v1/conversations", {"metadata": {"a": "b"}}).run(app)
    name = made.json["id"]
    path = f"/v1/conversations/{name}"
    expected = {
        "id": name,
        "object": "conversation",
        "created_at": 1_700_000_000,
        "metadata": {"a": "b"},
    }

    read = await get(app, path)
    changed = await request("POST", path, {"metadata": {"c": "d"}}).run(app)
    read_again = await get(app, path)
    deleted = await request("DELETE", path).run(app)
    gone = await get(app, path)

    assert (made.status, made.json) == (read.status, read.json) == (200, expected)
    assert changed.json == read_again.json == {**expected, "metadata": {"c": "d"}}
    assert deleted.json == {"id": name, "object": "conversation.deleted", "deleted": True}
    assert gone.status == 404
    assert gone.error_body["message"] == f"Conversation with id '{name}' not found."


@pytest.mark.parametrize("body", [None, b"", b"{}", b'{"metadata":null,"items":null}', b'{"x":1}'])
async def test_a_conversation_needs_nothing_to_begin_with(body: bytes | None) -> None:
    app = hosted(recalls)

    made = await request("POST", "/v1/conversations", body).run(app)

    assert made.status == 200
    assert made.json["metadata"] == {}
    assert await listed(app, made.json["id"]) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "invalid_json", None)),
        (b'"x"', (400, "invalid_type", None)),
        (b"\xff", (400, "invalid_json", None)),
        ({"metadata": []}, (400, "invalid_type", "metadata")),
        ({"metadata": {"k": 1}}, (400, "invalid_type", "metadata")),
        ({"metadata": {"k": "v" * 513}}, (400, "invalid_value", "metadata")),
        ({"metadata": {"k" * 65: "v"}}, (400, "invalid_value", "metadata")),
        ({"metadata": {str(n): "v" for n in range(17)}}, (400, "invalid_value", "metadata")),
        ({"items": "hi"}, (400, "invalid_type", "items")),
        ({"items": [user("x")] * 21}, (400, "invalid_value", "items")),
        ({"items": ["hi"]}, (400, "invalid_type", "items[0]")),
        ({"items": [{}]}, (400, "missing_required_parameter", "items[0].type")),
        ({"items": [user("x"), {"role": "king", "content": "x"}]}, (400, "invalid_value", "items[1].role")),
        ({"items": [{"type": "item_reference", "id": "msg_x"}]}, (404, None, "items")),
        (b'{"items":' + b"[" * 200 + b"]" * 200 + b"}", (400, "invalid_value", None)),
    ],
)  # fmt: skip
async def test_a_body_that_is_wrong_is_refused_by_its_parameter(
    body: Any, expected: tuple[int, str | None, str | None]
) -> None:
    reply = await request("POST", "/v1/conversations", body).run(hosted(recalls))

    assert error_of(reply) == expected


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("", {}, (400, "missing_required_parameter", "metadata")),
        ("", b"", (400, "invalid_json", None)),
        ("", {"metadata": 3}, (400, "invalid_type", "metadata")),
        ("/items", {}, (400, "missing_required_parameter", "items")),
        ("/items", {"items": None}, (400, "invalid_type", "items")),
        ("/items", {"items": [user("x")] * 21}, (400, "invalid_value", "items")),
        ("/items", {"items": [{"type": "message", "role": "user"}]},
         (400, "missing_required_parameter", "items[0].content")),
    ],
)  # fmt: skip
async def test_a_change_that_is_wrong_is_refused_by_its_parameter(
    path: str, body: Any, expected: tuple[int, str | None, str | None]
) -> None:
    app = hosted(recalls)
    name = await begin(app, "one")

    reply = await request("POST", f"/v1/conversations/{name}{path}", body).run(app)

    assert error_of(reply) == expected
    assert await listed(app, name) == ["one"]


async def test_metadata_may_be_taken_away() -> None:
    app = hosted(recalls)
    name = await begin(app, metadata={"a": "b"})

    reply = await request("POST", f"/v1/conversations/{name}", {"metadata": None}).run(app)

    assert reply.json["metadata"] == {}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("POST", "", {"metadata": {}}),
        ("DELETE", "", None),
        ("GET", "/items", None),
        ("POST", "/items", {"items": [user("x")]}),
        ("GET", "/items/{item}", None),
        ("DELETE", "/items/{item}", None),
    ],
)
async def test_another_tenants_conversation_is_an_unknown_one_byte_for_byte(
    method: str, path: str, body: Any
) -> None:
    app = hosted(recalls)
    name = await begin(app, "secret")
    item_id = (await get(app, f"/v1/conversations/{name}/items")).json["data"][0]["id"]
    paths = [f"/v1/conversations/{each}{path.format(item=item_id)}" for each in (name, UNKNOWN)]

    foreign, unknown = [
        await request(method, each, body, key="key-beta").run(app) for each in paths
    ]

    assert (foreign.status, unknown.status) == (404, 404)
    assert foreign.body == unknown.body.replace(UNKNOWN.encode(), name.encode())
    assert foreign.error_body["message"] == f"Conversation with id '{name}' not found."
    assert await listed(app, name) == ["secret"]


@pytest.mark.parametrize("name", ["x", "conv_", "conv_x", "resp_" + "0" * 52, "%00", "🌍"])
async def test_what_is_no_conversation_id_is_an_unknown_one(name: str) -> None:
    reply = await get(hosted(recalls), f"/v1/conversations/{name}")

    assert error_of(reply) == (404, None, None)


# Items


async def test_items_are_added_listed_read_and_deleted() -> None:
    app = hosted(recalls)
    name = await begin(app, "one", metadata={"a": "b"})
    path = f"/v1/conversations/{name}/items"

    added = await request("POST", path, {"items": [user("two"), user("three")]}).run(app)
    page = await get(app, path)
    two = added.json["data"][0]
    read = await get(app, f"{path}/{two['id']}")
    deleted = await request("DELETE", f"{path}/{two['id']}").run(app)
    gone = await get(app, f"{path}/{two['id']}")

    assert two == {
        "id": two["id"],
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "two"}],
    }
    assert {**added.json, "data": [text_of(item) for item in added.json["data"]]} == {
        "object": "list",
        "data": ["two", "three"],
        "first_id": two["id"],
        "last_id": added.json["data"][1]["id"],
        "has_more": False,
    }
    assert [text_of(item) for item in page.json["data"]] == ["three", "two", "one"]
    assert read.json == two
    assert deleted.json == (await get(app, f"/v1/conversations/{name}")).json
    assert error_of(gone) == (404, None, None)
    assert gone.error_body["message"] == (
        f"Item with id '{two['id']}' not found in conversation '{name}'."
    )
    assert await listed(app, name) == ["one", "three"]


async def test_pages_follow_their_last_id() -> None:
    app = hosted(recalls)
    name = await begin(app, *"abcde")
    path = f"/v1/conversations/{name}/items"

    first = await get(app, path, query="limit=2&order=asc")
    second = await get(app, path, query=f"limit=2&order=asc&after={first.json['last_id']}")
    third = await get(app, path, query=f"limit=2&order=asc&after={second.json['last_id']}")

    pages = [first.json, second.json, third.json]
    assert [[text_of(item) for item in page["data"]] for page in pages] == [
        ["a", "b"], ["c", "d"], ["e"],
    ]  # fmt: skip
    assert [page["has_more"] for page in pages] == [True, True, False]
    assert all(page["first_id"] == page["data"][0]["id"] for page in pages)


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"),
     ("after=msg_x", "after")],
)  # fmt: skip
async def test_a_page_that_cannot_be_is_refused(query: str, param: str) -> None:
    app = hosted(recalls)
    name = await begin(app, "one")

    reply = await get(app, f"/v1/conversations/{name}/items", query=query)

    assert (reply.status, reply.error_body["param"]) == (400, param)


async def test_nothing_can_be_added() -> None:
    app = hosted(recalls)
    name = await begin(app, "one")
    path = f"/v1/conversations/{name}/items"

    reply = await request("POST", path, {"items": []}).run(app)

    assert (reply.status, reply.json["data"]) == (200, [])
    assert await listed(app, name) == ["one"]


async def test_a_reference_is_added_as_what_it_names() -> None:
    app = hosted(recalls)
    elsewhere = await create(app, input="elsewhere")
    reference = {"type": "item_reference", "id": elsewhere["output"][0]["id"]}

    name = await begin(app, items=[user("one"), reference])

    assert await listed(app, name) == ["one", "elsewhere"]
    foreign = await request(
        "POST", "/v1/conversations", {"items": [reference]}, key="key-beta"
    ).run(app)
    assert error_of(foreign) == (404, None, "items")


# Turns


@pytest.mark.parametrize("as_object", [True, False])
async def test_turns_of_a_conversation_remember_it(as_object: bool) -> None:
    app = hosted(recalls)
    name = await begin(app, "one")
    conversation: Any = {"id": name} if as_object else name

    first = await create(app, input="two", conversation=conversation)
    second = await create(app, input="three", conversation=conversation)

    assert first["conversation"] == second["conversation"] == {"id": name}
    assert first["previous_response_id"] is None
    assert said(first) == "one | two"
    assert said(second) == "one | two | one | two | three"
    assert await listed(app, name) == ["one", "two", said(first), "three", said(second)]
    assert (await get(app, f"/v1/responses/{first['id']}")).json == first
    items = await get(app, f"/v1/responses/{second['id']}/input_items", query="order=asc")
    assert [text_of(item) for item in items.json["data"]] == ["one", "two", said(first), "three"]


async def test_a_response_without_a_conversation_says_nothing_of_one() -> None:
    assert "conversation" not in await create(hosted(recalls))


async def test_a_streamed_turn_tells_its_conversation_and_is_in_it_when_it_ends() -> None:
    app = hosted(recalls)
    name = await begin(app, "one")

    reply = await creating(stream=True, input="two", conversation=name).run(app)
    again = await creating(stream=True, input="three", conversation=name).run(app)

    assert all(
        event["response"]["conversation"] == {"id": name}
        for event in reply.events
        if "response" in event
    )
    assert again.types[-1] == "completed"
    assert len(await listed(app, name)) == 5


async def test_a_turn_needs_no_input_beside_a_conversation() -> None:
    app = hosted(recalls)
    name = await begin(app, "one")

    response = await create(app, input=None, conversation=name)

    assert said(response) == "one"


async def test_a_turn_that_is_not_stored_is_remembered() -> None:
    app = hosted(recalls)
    name = await begin(app, "one")

    response = await create(app, input="two", conversation=name, store=False)

    assert (await get(app, f"/v1/responses/{response['id']}")).status == 404
    assert await listed(app, name) == ["one", "two", "one | two"]


async def test_a_call_is_answered_in_the_conversation() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        if turn.input[-1]["type"] == "function_call_output":
            yield turn.input[-1]["output"]
        else:
            yield FunctionCall("f", "{}")

    app = hosted(agent)
    name = await begin(app)
    first = await create(app, input="hi", conversation=name, tools=[F])
    call_id = first["output"][0]["call_id"]
    output = {"type": "function_call_output", "call_id": call_id, "output": "18"}

    unanswered = await creating(input="hi", conversation=name, tools=[F]).run(app)
    second = await create(app, input=[output], conversation=name, tools=[F])

    assert error_of(unanswered) == (400, None, "input")
    assert said(second) == "18"


async def test_an_item_with_an_id_of_the_agents_own_has_one_of_ours_in_the_conversation() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield OutputItem({"type": "compaction", "id": "own", "encrypted_content": "x"})

    app = hosted(agent)
    name = await begin(app)
    for _ in range(2):
        response = await create(app, conversation=name)

    assert response["output"][0]["id"] == "own"
    page = (await get(app, f"/v1/conversations/{name}/items")).json["data"]
    assert len({item["id"] for item in page}) == 4
    assert "own" not in {item["id"] for item in page}


async def test_a_failed_turn_is_a_response_and_leaves_the_conversation_as_it_was() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield "so far"
        if turn.text == "fail":
            raise RuntimeError

    app = hosted(agent)
    name = await begin(app, "one")

    failed = await create(app, input="fail", conversation=name)
    response = await create(app, input="two", conversation=name)

    assert failed["status"] == "failed"
    assert (await get(app, f"/v1/responses/{failed['id']}")).json == failed
    assert response["status"] == "completed"
    assert await listed(app, name) == ["one", "two", "so far"]


async def test_a_response_of_a_conversation_can_be_continued_outside_of_it() -> None:
    app = hosted(recalls)
    name = await begin(app, "one")
    first = await create(app, input="two", conversation=name)
    await create(app, input="three", conversation=name)

    fork = await create(app, input="four", previous_response_id=first["id"])

    assert said(fork) == "one | two | one | two | four"
    assert "conversation" not in fork
    assert len(await listed(app, name)) == 5


async def test_a_deleted_response_leaves_its_items_and_a_deleted_item_its_response() -> None:
    app = hosted(recalls)
    name = await begin(app)
    first = await create(app, input="one", conversation=name)
    second = await create(app, input="two", conversation=name)
    item_id = second["output"][0]["id"]

    await request("DELETE", f"/v1/responses/{first['id']}").run(app)
    await request("DELETE", f"/v1/conversations/{name}/items/{item_id}").run(app)

    assert (await get(app, f"/v1/responses/{first['id']}")).status == 404
    assert (await get(app, f"/v1/responses/{second['id']}")).json == second
    assert await listed(app, name) == ["one", "one", "two"]


async def test_what_was_in_a_deleted_conversation_can_still_be_retrieved() -> None:
    app = hosted(recalls)
    name = await begin(app, "one")
    response = await create(app, input="two", conversation=name)

    await request("DELETE", f"/v1/conversations/{name}").run(app)

    assert (await get(app, f"/v1/responses/{response['id']}")).json == response
    refused = await creating(input="three", conversation=name).run(app)
    assert error_of(refused) == (404, None, "conversation")
    fork = await create(app, input="four", previous_response_id=response["id"])
    assert said(fork) == "one | two | one | two | four"


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"background": True}, {"store": False}])
async def test_an_unknown_conversation_is_not_found_before_anything_happens(
    fields: dict[str, Any],
) -> None:
    app = hosted(recalls)
    name = await begin(app, "secret")

    unknown = await creating(conversation=UNKNOWN, key="key-beta", **fields).run(app)
    foreign = await creating(conversation={"id": name}, key="key-beta", **fields).run(app)

    assert error_of(unknown) == error_of(foreign) == (404, None, "conversation")
    assert foreign.body == unknown.body.replace(UNKNOWN.encode(), name.encode())


@pytest.mark.parametrize(
    ("conversation", "param", "code"),
    [(3, "conversation", "invalid_type"), ([], "conversation", "invalid_type"),
     ({"id": 3}, "conversation.id", "invalid_type"),
     ({}, "conversation.id", "missing_required_parameter")],
)  # fmt: skip
async def test_a_conversation_of_a_wrong_type_is_refused(
    conversation: Any, param: str, code: str
) -> None:
    reply = await creating(conversation=conversation).run(hosted(recalls))

    assert error_of(reply) == (400, code, param)


async def test_a_conversation_and_a_previous_response_exclude_each_other() -> None:
    app = hosted(recalls)
    name = await begin(app)
    first = await create(app, input="one")

    reply = await creating(conversation=name, previous_response_id=first["id"]).run(app)

    assert error_of(reply) == (400, "mutually_exclusive_parameters", "previous_response_id")
    assert await listed(app, name) == []


async def test_tokens_are_counted_with_a_conversation_and_without_its_lock() -> None:
    agent = Gated()
    app = hosted(agent)
    name = await begin(app, "one two three")
    running = creating(stream=True, conversation=name).start(app)
    await agent.has_begun.wait()

    counted = await request(
        "POST", "/v1/responses/input_tokens", {"input": "hi", "conversation": name}
    ).run(app)
    bare = await request("POST", "/v1/responses/input_tokens", {"input": "hi"}).run(app)
    unknown = await request(
        "POST", "/v1/responses/input_tokens", {"input": "hi", "conversation": UNKNOWN}
    ).run(app)

    assert counted.json["input_tokens"] > bare.json["input_tokens"]
    assert error_of(unknown) == (404, None, "conversation")
    agent.may_end.set()
    await running


# The lock


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"store": False}])
async def test_a_conversation_has_one_turn_at_a_time(fields: dict[str, Any]) -> None:
    agent = Gated()
    app = hosted(agent)
    name = await begin(app, "one")
    path = f"/v1/conversations/{name}"
    running = creating(stream=True, conversation=name).start(app)
    await agent.has_begun.wait()

    for refused in (
        await creating(conversation=name, **fields).run(app),
        await request("POST", f"{path}/items", {"items": [user("x")]}).run(app),
        await request("DELETE", path).run(app),
    ):
        assert error_of(refused) == (400, "conversation_locked", "conversation")
        assert refused.headers["retry-after"] == "3"
        assert "x-should-retry" not in refused.headers
    assert await listed(app, name) == ["one"]

    agent.may_end.set()
    assert (await running).types[-1] == "completed"
    assert said(await create(app, conversation=name)) == "so far"


async def test_the_next_turn_may_begin_as_soon_as_the_end_of_one_was_read() -> None:
    agent = Gated()
    app = hosted(agent)
    name = await begin(app)
    running = creating(stream=True, conversation=name)
    task = running.start(app)
    await agent.has_begun.wait()
    agent.may_end.set()

    await running.until("response.completed")
    running.gate.clear()
    again = await creating(conversation=name).run(app)

    assert again.status == 200
    running.gate.set()
    await task


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_comes_to_nothing_leaves_the_conversation_free(stream: bool) -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        if turn.text == "fail":
            raise RuntimeError
        yield "ok"

    app = hosted(agent)
    name = await begin(app)
    reference = [{"type": "item_reference", "id": "msg_x"}]

    for reply in (
        await creating(input=reference, conversation=name, stream=stream).run(app),
        await creating(input="fail", conversation=name, stream=stream).run(app),
    ):
        assert reply.status in (404, 500)

    assert said(await create(app, conversation=name)) == "ok"


async def test_a_client_that_goes_away_leaves_the_conversation_free() -> None:
    agent = Gated()
    app = hosted(agent)
    name = await begin(app)
    running = creating(stream=True, conversation=name)
    task = running.start(app)
    await agent.has_begun.wait()

    running.hang_up()
    await task

    agent.may_end.set()
    assert said(await create(app, conversation=name)) == "so far"


async def test_a_background_turn_holds_its_conversation_until_it_is_done() -> None:
    agent = Gated()
    app = hosted(agent)
    name = await begin(app, "one")
    running = creating(stream=True, background=True, input="two", conversation=name).start(app)
    await agent.has_begun.wait()

    refused = await creating(conversation=name).run(app)
    agent.may_end.set()
    response = (await running).events[-1]["response"]

    assert error_of(refused) == (400, "conversation_locked", "conversation")
    assert (response["status"], response["conversation"]) == ("completed", {"id": name})
    assert await listed(app, name) == ["one", "two", "so far"]
    assert said(await create(app, input="three", conversation=name)) == "so far"


async def test_a_cancelled_background_turn_leaves_the_conversation_free_and_as_it_was() -> None:
    agent = Gated()
    app = hosted(agent)
    name = await begin(app, "one")
    begun = await create(app, input="two", conversation=name, background=True)
    await agent.has_begun.wait()

    cancelled = await request("POST", f"/v1/responses/{begun['id']}/cancel").run(app)

    assert cancelled.json["status"] == "cancelled"
    assert await listed(app, name) == ["one"]
    agent.may_end.set()
    assert said(await create(app, input="three", conversation=name)) == "so far"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_lock_outlives_the_longest_turn_and_not_much_more() -> None:
    clock = Clock()
    store = InMemoryResponseStore(clock=clock)
    conversations = InMemoryConversationStore(store, clock=clock)
    agent = Gated()
    app = hosted(agent, store, conversations=conversations, clock=clock)
    name = await begin(app)
    running = creating(stream=True, conversation=name).start(app)
    await agent.has_begun.wait()

    clock.now += MAX_TURN_S
    with pytest.raises(ConversationLockedError):
        await conversations.enter(ALPHA, name, "next", clock.now + 60)
    clock.now += LOCK_GRACE_S + 1
    assert await conversations.enter(ALPHA, name, "next", clock.now + 60) is not None
    agent.may_end.set()
    reply = await running

    assert reply.types[-1] == "failed"
    assert await listed(app, name) == []


# What can fail


class Broken(InMemoryConversationStore):
    """Fails where it is told to."""

    fails: str = ""
    error: type[StoreError] = StoreError

    async def leave(self, keys: IsolationKeys, conversation_id: str, owner: str, /) -> None:
        if self.fails == "leave":
            raise self.error
        await super().leave(keys, conversation_id, owner)

    async def enter(
        self, keys: IsolationKeys, conversation_id: str, owner: str, until: float, /
    ) -> Branch | None:
        if self.fails == "enter":
            raise self.error
        return await super().enter(keys, conversation_id, owner, until)

    async def add(self, keys: IsolationKeys, conversation_id: str, items: Any, /) -> Any:
        if self.fails == "add":
            raise self.error
        return await super().add(keys, conversation_id, items)


class Full(InMemoryResponseStore):
    """Cannot keep a turn."""

    async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        raise StoreError


async def test_a_turn_that_was_stored_is_not_failed_by_an_unlock_that_fails() -> None:
    store = InMemoryResponseStore()
    conversations = Broken(store)
    app = hosted(recalls, store, conversations=conversations)
    name = await begin(app, "one")
    conversations.fails = "leave"

    response = await create(app, input="two", conversation=name)

    assert response["status"] == "completed"
    assert await listed(app, name) == ["one", "two", "one | two"]


async def test_a_conversation_that_cannot_be_entered_is_an_error_before_the_agent() -> None:
    store = InMemoryResponseStore()
    conversations = Broken(store)
    app = hosted(recalls, store, conversations=conversations)
    name = await begin(app, "one")
    conversations.fails = "enter"

    reply = await creating(conversation=name).run(app)

    assert reply.status >= 500
    assert await listed(app, name) == ["one"]


async def test_a_turn_that_cannot_be_stored_leaves_the_conversation_free() -> None:
    store = Full()
    conversations = InMemoryConversationStore(store)
    app = hosted(recalls, store, conversations=conversations)
    name = await begin(app, "one")

    reply = await creating(conversation=name).run(app)

    assert reply.status == 500
    assert await conversations.enter(ALPHA, name, "next", 2e9) is not None


async def test_items_that_are_too_large_are_refused_as_such() -> None:
    store = InMemoryResponseStore()
    conversations = Broken(store)
    app = hosted(recalls, store, conversations=conversations)
    name = await begin(app, "one")
    conversations.fails, conversations.error = "add", TurnTooLargeError

    reply = await request("POST", f"/v1/conversations/{name}/items", {"items": [user("x")]}).run(
        app
    )

    assert error_of(reply) == (413, "request_too_large", "items")


async def test_a_channel_whose_store_has_no_conversations_offers_none() -> None:
    class Elsewhere:
        """A store of another kind."""

        def __init__(self) -> None:
            self.inner = InMemoryResponseStore()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    app = hosted(recalls, Elsewhere())

    made = await request("POST", "/v1/conversations", {}).run(app)
    turn = await creating(conversation=UNKNOWN).run(app)

    assert made.status == 404
    assert error_of(turn) == (400, "unsupported_parameter", "conversation")
