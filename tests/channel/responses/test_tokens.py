"""Input tokens: the estimate, part by part, and an agent's own count instead of it."""

from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channel.agent import AgentEvent, Turn, TurnError
from channel.responses.protocol.items import Item, message
from channel.responses.protocol.said import AgentEventError
from channel.responses.windows.tokens import estimated_input_tokens, input_tokens, item_tokens
from tests.channel.asgi import create, hosted, request


pytestmark = pytest.mark.anyio

IMAGE = "data:image/png;base64," + "A" * 4000
PDF = "data:application/pdf;base64," + "A" * 4000
NOTES = "data:text/plain;base64," + b64encode(b"four" * 10).decode()


async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield "ok"


def parts(*content: Item) -> Item:
    return {"type": "message", "role": "user", "content": [*content]}


# The estimate


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("a", 1),
        ("four", 1),
        ("fours", 2),
        ("über", 2),
        ("日本", 2),
        ("🙂", 1),
        ("\ud800", 1),
    ],
)
def test_text_is_its_bytes_by_four(text: str, tokens: int) -> None:
    assert item_tokens(message("user", text)) == 4 + tokens


@pytest.mark.parametrize(
    ("item", "tokens"),
    [
        ({"type": "message", "role": "user", "content": "four"}, 1),
        ({**message("assistant", "four"), "id": "msg_1", "status": "completed"}, 1),
        (parts({"type": "refusal", "refusal": "fours"}), 2),
        (parts({"type": "input_image", "image_url": IMAGE, "detail": "low"}), 85),
        (parts({"type": "input_image", "image_url": IMAGE, "detail": "auto"}), 765),
        (parts({"type": "input_image", "file_id": "file_1"}), 765),
        (parts({"type": "input_file", "file_data": PDF}), 1500),
        (parts({"type": "input_file", "file_url": "https://example.com/a.pdf"}), 1500),
        (parts({"type": "input_file", "file_data": NOTES}), 11),
        (parts({"type": "acme:part", "note": "four"}), 6),
        ({"type": "function_call", "call_id": "c" * 40, "name": "f", "arguments": '{"a":1}'}, 3),
        ({"type": "function_call_output", "call_id": "c" * 40, "output": "fours"}, 2),
        (
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_image", "image_url": IMAGE, "detail": "high"}],
            },
            765,
        ),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "four"}]}, 1),
        ({"type": "reasoning", "summary": [], "encrypted_content": "e" * 4000}, 0),
        ({"type": "compaction", "encrypted_content": "e" * 4000}, 0),
        ({"type": "acme:note", "id": "i" * 40, "text": "four", "n": 1.5}, 4),
        ({"type": "computer_call_output", "call_id": "c", "output": {"image_url": IMAGE}}, 770),
    ],
)
def test_each_kind_of_item(item: Item, tokens: int) -> None:
    assert item_tokens(item) == 4 + tokens


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"type": None},
        {"type": 5, "x": None},
        {"type": "message"},
        {"type": "message", "content": None},
        {"type": "message", "content": [None, 5, "x", [], {}, {"type": 5}, {"text": 5}]},
        {"type": "message", "content": {"a": {"b": [True]}}},
        {"type": "function_call"},
        {"type": "function_call_output", "output": 5},
        {"type": "reasoning", "summary": "x", "content": [None]},
        {"type": "input_file", "file_data": 5},
    ],
)
def test_no_item_is_too_strange_to_be_estimated(item: Item) -> None:
    assert 4 <= item_tokens(item) < 30
    assert item_tokens(item) == item_tokens(dict(reversed(item.items())))


def test_a_turn_is_the_sum_of_its_parts() -> None:
    tool = {
        "type": "function",
        "name": "f",
        "description": "four",
        "parameters": {"type": "object"},
    }
    schema = {"type": "object", "properties": {}}
    said, asked = message("assistant", "four"), message("user", "fours")
    turn = Turn(
        input=[asked],
        history=[asked, said],
        instructions="Be brief.",
        tools=[tool],
        options={"text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}},
    )
    alone = Turn(input=[asked])

    rest = sum(map(item_tokens, [asked, asked, said]))
    assert estimated_input_tokens(alone) == item_tokens(asked) == 6
    assert estimated_input_tokens(Turn(input=[])) == 0
    assert estimated_input_tokens(turn) == rest + (4 + 3) + (8 + 12) + (8 + 6)


# The agent's own count


async def test_an_agents_own_count_counts() -> None:
    def count(turn: Turn) -> int:
        return 7 + len(turn.items)

    async def count_later(turn: Turn) -> int:
        return count(turn)

    class Own:
        count_input_tokens = staticmethod(count)

    class OwnLater:
        count_input_tokens = staticmethod(count_later)

    turn = Turn(input=[message("user", "hi")])

    assert await input_tokens(Own(), turn) == await input_tokens(OwnLater(), turn) == 8
    assert await input_tokens(object(), turn) == estimated_input_tokens(turn)


@pytest.mark.parametrize("counted", [None, -1, 1.5, "7", True])
async def test_a_count_that_is_none_is_the_agents_fault(counted: Any) -> None:
    class Own:
        def count_input_tokens(self, turn: Turn) -> Any:
            return counted

    with pytest.raises(AgentEventError):
        await input_tokens(Own(), Turn(input=[]))


# POST /responses/input_tokens


async def counted(app: Any, key: str = "key-alpha", **fields: Any) -> Any:
    return await request("POST", "/v1/responses/input_tokens", fields, key=key).run(app)


async def test_the_tokens_of_a_request_are_told() -> None:
    wire = await counted(hosted(agent), model="m", input="fours", instructions="four")

    assert wire.status == 200
    assert wire.json == {"object": "response.input_tokens", "input_tokens": 4 + 2 + 4 + 1}


async def test_every_field_is_optional() -> None:
    wire = await request("POST", "/v1/responses/input_tokens", {}).run(hosted(agent))

    assert wire.json == {"object": "response.input_tokens", "input_tokens": 0}


async def test_the_tokens_of_a_chain_include_its_history() -> None:
    app = hosted(agent)
    first = await create(app, input="four")

    wire = await counted(app, previous_response_id=first["id"], input="four")
    alone = await counted(app, previous_response_id=first["id"])

    assert wire.json["input_tokens"] == (4 + 1) * 3
    assert alone.json["input_tokens"] == (4 + 1) * 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"truncation": "left"}, "truncation"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
async def test_what_cannot_be_created_cannot_be_counted(fields: Any, param: str) -> None:
    wire = await counted(hosted(agent), **fields)

    assert (wire.status, wire.error_body["param"]) == (400, param)


async def test_fields_of_other_operations_say_nothing() -> None:
    app = hosted(agent, has_background=False)

    wire = await counted(app, input="four", background=True, stream=True, max_output_tokens=99)

    assert wire.json["input_tokens"] == 5


async def test_a_foreign_response_is_an_unknown_one() -> None:
    app = hosted(agent)
    mine = await create(app)

    foreign = await counted(app, "key-beta", previous_response_id=mine["id"])
    assert (await counted(app, previous_response_id=mine["id"])).status == 200
    await request("DELETE", f"/v1/responses/{mine['id']}").run(app)
    unknown = await counted(app, "key-beta", previous_response_id=mine["id"])

    assert foreign.status == 400
    assert foreign.error_body["code"] == "previous_response_not_found"
    assert foreign.body == unknown.body


async def test_no_agent_and_no_hook_runs_for_a_count() -> None:
    ran: list[str] = []

    async def running(turn: Turn) -> AsyncIterator[AgentEvent]:
        ran.append("agent")
        yield "ok"

    def hook(asked: Any, **_: Any) -> Any:
        ran.append("hook")
        return asked

    wire = await counted(hosted(running, run_hook=hook), input="four")

    assert (wire.status, ran) == (200, [])


def own(count: Any) -> Any:
    async def counting(turn: Turn) -> str:
        return "ok"

    counting.count_input_tokens = count  # type: ignore[attr-defined]  # what a user writes
    return counting


async def test_the_agents_own_count_is_what_is_told() -> None:
    turns: list[Turn] = []

    async def count(turn: Turn) -> int:
        turns.append(turn)
        return 42

    wire = await counted(hosted(own(count)), input="hi", instructions="Be brief.")

    assert wire.json["input_tokens"] == 42
    assert (turns[0].text, turns[0].instructions) == ("hi", "Be brief.")


async def test_what_the_agents_count_raises_is_told_as_far_as_it_may_be() -> None:
    def known(turn: Turn) -> int:
        raise TurnError("No such model.", code="model_not_found", status=404, param="model")

    def unknown(turn: Turn) -> int:
        raise RuntimeError("secret")

    told = await counted(hosted(own(known)), input="hi")
    hidden = await counted(hosted(own(unknown)), input="hi")

    assert (told.status, told.error_body["code"]) == (404, "model_not_found")
    assert hidden.status == 500
    assert b"secret" not in hidden.body


async def test_only_post_counts() -> None:
    wire = await request("GET", "/v1/responses/input_tokens").run(hosted(agent))

    assert wire.status == 404  # the response of that name
