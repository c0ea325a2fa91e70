"""What Agent Framework's agents and workflows remember beside the host: never what is gone, and never too much."""

import os
from base64 import b64encode
from typing import Any

import pytest
from agent_framework import Agent, ContextProvider, WorkflowBuilder, tool
from starlette.types import ASGIApp

from channel.agent import OutputItem, RefusalDelta, TextDelta, Turn
from channel.agents.agent_framework import adapt
from channel.agents.agent_framework.seen import mark_of, news, text_in
from channel.responses.protocol.items import message
from tests.channel.agents.frameworks.agent_framework import ScriptedClient
from tests.channel.agents.scripts import Say
from tests.channel.agents.test_agent_framework_history import Recording, chain, turns_of, words
from tests.channel.agents.test_matrix import CLOCK
from tests.channel.asgi import create, creating, hosted, request


pytestmark = pytest.mark.anyio
KINDS = ["workflow", "session", "provider"]
COMPACT = [{"type": "compaction", "compact_threshold": 1000}]


def app_of(kind: str, client: ScriptedClient) -> ASGIApp:
    """Return an agent that remembers: by its checkpoint, its session, or a provider of its own."""
    if kind == "workflow":
        return hosted(adapt(WorkflowBuilder(start_executor=Agent(client, name="A")).build()))
    providers = [Recording()] if kind == "provider" else None
    return hosted(adapt(Agent(client, context_providers=providers), history_source="agent"))


def texts(client: ScriptedClient, call: int) -> list[str]:
    return [text for _, text in turns_of(client, call)]


async def conversation_of(app: ASGIApp, *inputs: str) -> tuple[str, list[dict[str, Any]]]:
    """Return a new conversation, and its items after these turns."""
    made = (await request("POST", "/v1/conversations", {}).run(app)).json
    for text in inputs:
        await create(app, input=text, conversation=made["id"])
    path = f"/v1/conversations/{made['id']}/items"
    listed = (await request("GET", path).run(app)).json
    return made["id"], listed["data"][::-1]  # newest first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", range(4))
async def test_what_was_deleted_is_not_given_to_the_model(kind: str, gone: int) -> None:
    client = ScriptedClient(words("one", "two", "three", "four"))
    app = app_of(kind, client)
    name, items = await conversation_of(app, "first", "second")

    path = f"/v1/conversations/{name}/items/{items[gone]['id']}"
    assert (await request("DELETE", path).run(app)).status == 200
    await create(app, input="third", conversation=name)
    await create(app, input="fourth", conversation=name)

    left = ["first", "one", "second", "two"]
    del left[gone]
    # What one side says in a row may be one message.
    assert " ".join(texts(client, 2)) == " ".join([*left, "third"])
    assert " ".join(texts(client, 3)) == " ".join([*left, "third", "three", "fourth"])


@pytest.mark.parametrize("kind", KINDS)
async def test_what_gave_way_to_a_summary_is_not_given_to_the_model(kind: str) -> None:
    client = ScriptedClient([[Say(("ok ",) * 50)], [Say(("In short.",))], *words("two", "three")])
    app = app_of(kind, client)
    first = await create(app, input="a long text " * 500)
    goes_on = {"previous_response_id": first["id"], "context_management": COMPACT}

    second = await create(app, input="second", **goes_on)
    await create(app, input="third", previous_response_id=second["id"])

    for call in (2, 3):
        assert not any("a long text" in text for text in texts(client, call))
    assert texts(client, 2)[-1] == "second"
    assert texts(client, 3)[-2:] == ["two", "third"]
    said = " ".join(text for _, text in client.seen[3].texts)
    assert "In short." in said or "In short." in str(client.given[3])


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_whole_is_gone_on_with(kind: str) -> None:
    client = ScriptedClient(words("one", "two", "three"))

    await chain(app_of(kind, client), "first", "second", "third")

    assert texts(client, 2) == ["first", "one", "second", "two", "third"]


def test_a_mark_is_that_of_the_items_and_of_what_was_said() -> None:
    asked = {**message("user", "hi"), "id": "msg_1"}
    answer = {**message("assistant", "Hello."), "id": "msg_2"}
    new = {**message("user", "bye"), "id": "msg_3"}
    mark = mark_of(Turn(input=[asked]), "Hello.")

    assert news(Turn(input=[new], history=[asked, answer]), mark) == [new]
    assert news(Turn(input=[new], history=[asked]), mark) is None
    assert news(Turn(input=[new], history=[answer]), mark) is None
    assert news(Turn(input=[new]), mark) is None
    assert news(Turn(input=[new], history=[asked, answer]), {}) is None


def test_what_an_event_says_is_told_by_its_kind() -> None:
    whole = OutputItem(message("assistant", "c"))

    said = [text_in(each) for each in ("a", TextDelta("b"), whole, RefusalDelta("d"))]

    assert said == ["a", "b", "c", "d"]


@pytest.mark.parametrize("kind", ["workflow", "session"])
async def test_a_state_of_more_than_a_megabyte_fails_the_turn_and_says_why(kind: str) -> None:
    app = app_of(kind, ScriptedClient(words("one", "two")))
    image = "data:image/png;base64," + b64encode(os.urandom(2**20 + 2**16)).decode()
    part = {"type": "input_image", "image_url": image}

    reply = await create(app, input=[{"role": "user", "content": [part]}])
    small = await create(app, input="small")

    assert (reply["status"], reply["error"]["code"]) == ("failed", "context_length_exceeded")
    assert "larger than 1 MB" in reply["error"]["message"]
    assert small["status"] == "completed"


class Equipping(ContextProvider):
    """A provider that gives its agent a tool with the name of the client's."""

    async def before_run(self, *, context: Any, **_: Any) -> None:
        @tool(name="clock")
        def clock(zone: str) -> str:
            return zone

        context.extend_tools("equipping", [clock])


@pytest.mark.parametrize("kind", ["agent", "workflow"])
async def test_a_name_that_a_provider_gave_a_tool_is_taken(kind: str) -> None:
    agent = Agent(
        ScriptedClient(words("one")), name="A", context_providers=[Equipping("equipping")]
    )
    target = agent if kind == "agent" else WorkflowBuilder(start_executor=agent).build()

    reply = await creating(tools=[CLOCK]).run(hosted(adapt(target)))

    assert (reply.status, reply.error_body["param"]) == (400, "tools")
    assert "clock" in reply.error_body["message"]


async def test_a_message_with_nothing_that_a_workflow_takes_is_a_400() -> None:
    app = app_of("workflow", ScriptedClient(words("one")))
    audio = {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}}

    reply = await creating(input=[{"role": "user", "content": [audio]}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "input")
