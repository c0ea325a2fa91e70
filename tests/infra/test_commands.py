"""`/reset` where what is remembered is in a table, and from two instances."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import ASGIApp

from channel.agent import KeptState, Turn
from channel.chat.channel import ChatCompletionsChannel
from channel.commands import HELP, RESET
from channel.contract import Channel
from channel.host import AgentHost
from channel.memory_sessions import InMemorySessionStore
from channel.responses.channel import ResponsesChannel
from channel.sessions import SessionStore
from infra.dynamodb.sessions import DynamoDBSessionStore
from tests.channel.asgi import KEYS, create, request
from tests.e2e import stores
from tests.infra import engines
from tests.infra.turns import own_secret


pytestmark = pytest.mark.anyio

Hosts = tuple[ASGIApp, ASGIApp]


async def recalling(turn: Turn) -> AsyncIterator[Any]:
    """Say how many items and runs it is given of the past."""
    runs = (turn.state or {}).get("runs", 0)
    yield KeptState({"runs": runs + 1})
    yield f"{len(turn.history)} items, {runs} runs"


@pytest.fixture(params=["memory", "moto", "dynalite"])
def hosts(request: pytest.FixtureRequest) -> Hosts:
    """Return two instances over the same stores."""
    sessions: SessionStore
    if request.param == "memory":
        given, sessions = stores.in_memory(), InMemorySessionStore()
    else:
        client = request.getfixturevalue(f"{request.param}_client")
        given = stores.in_table(client)
        sessions = DynamoDBSessionStore(client, engines.TABLE, secret=own_secret())

    def hosted() -> ASGIApp:
        responses = ResponsesChannel(**given, keepalive_s=0, commands=(RESET, HELP))
        chat = ChatCompletionsChannel(keepalive_s=0, commands=(RESET, HELP), session_mode="auto")
        channels: list[Channel] = [responses, chat]
        return AgentHost(recalling, channels=channels, authenticator=KEYS, sessions=sessions).app

    return hosted(), hosted()


def said(response: dict[str, Any]) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


async def after(app: ASGIApp, before: dict[str, Any], text: str = "hi") -> dict[str, Any]:
    return await create(app, input=text, previous_response_id=before["id"])


async def test_after_a_reset_a_chain_begins_anew_and_a_fork_of_before_has_its_past(
    hosts: Hosts,
) -> None:
    one, other = hosts
    first = await create(one)
    second = await after(other, first)
    reset = await after(one, second, "/reset")
    third = await after(other, reset)
    fourth = await after(one, third)
    fork = await after(other, second)
    assert [said(each) for each in (first, second, third, fourth, fork)] == [
        "0 items, 0 runs",
        "2 items, 1 runs",
        "0 items, 0 runs",
        "2 items, 1 runs",
        "4 items, 2 runs",
    ]


async def test_a_reset_in_a_conversation_keeps_its_items_and_gives_none_of_them(
    hosts: Hosts,
) -> None:
    one, other = hosts
    conversation = (await request("POST", "/v1/conversations", {}).run(one)).json["id"]
    for app, text in ((one, "hi"), (other, "/reset")):
        await create(app, input=text, conversation=conversation)
    third = await create(one, conversation=conversation)
    assert said(third) == "0 items, 0 runs"
    listed = await request("GET", f"/v1/conversations/{conversation}/items").run(other)
    assert len(listed.json["data"]) == 6


async def chatting(app: ASGIApp, text: str, *, chat: str, path: str = "responses") -> str:
    headers = {"x-agent-user-isolation-key": "ann", "x-agent-chat-isolation-key": chat}
    body = {"input": text}
    if path != "responses":
        body = {"messages": [{"role": "user", "content": text}]}  # type: ignore[dict-item]
    wire = await request("POST", f"/v1/{path}", body, key="key-agency", headers=headers).run(app)
    if path != "responses":
        return str(wire.json["choices"][0]["message"]["content"])
    return said(wire.json)


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
async def test_a_chat_goes_on_at_any_instance_and_is_reset_through_either_channel(
    hosts: Hosts, path: str
) -> None:
    one, other = hosts
    assert await chatting(one, "hi", chat="1") == "0 items, 0 runs"
    assert await chatting(other, "hi", chat="1") == "2 items, 1 runs"
    assert await chatting(one, "hi", chat="2") == "0 items, 0 runs"
    assert "tart" in await chatting(one, "/reset", chat="1", path=path)
    assert await chatting(other, "hi", chat="1") == "0 items, 0 runs"
    assert await chatting(one, "hi", chat="1") == "2 items, 1 runs"
    assert await chatting(one, "hi", chat="2") == "2 items, 1 runs"
