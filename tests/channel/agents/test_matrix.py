"""The behaviour matrix: what every kind of agent does behind the Responses API, one test a behaviour.

Each test runs for each framework; what a framework has not is data, with its reason
(`Scripted.unsupported`), and is shown as skipped with it.
"""

import asyncio
import json
import sys
from base64 import b64encode
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from starlette.types import ASGIApp

from channel.loading import load_agent
from tests.channel.agents.frameworks import NAMES, scripted
from tests.channel.agents.scripts import (
    Call,
    Fail,
    Meet,
    Model,
    Say,
    Script,
    Scripted,
    Spend,
    Stop,
    Think,
    Wait,
)
from tests.channel.asgi import create, creating, hosted


pytestmark = pytest.mark.anyio

HELLO = (Say(("Hel", "lo ", "there.")), Spend(7, 3))
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89"
    b"\x00\x00\x00\rIDATx\x9cc\xf8\xff\xff?\x00\x05\xfe\x02\xfe\xa75\x81\x84\x00\x00\x00\x00IEND\xaeB`\x82"
)
CLOCK = {
    "type": "function",
    "name": "clock",
    "description": "Tells the time.",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "string"}},
        "required": ["zone"],
        "additionalProperties": False,
    },
    "strict": True,
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
Hosted = Callable[..., tuple[ASGIApp, Model]]


@pytest.fixture(params=NAMES)
def framework(request: pytest.FixtureRequest) -> Scripted:
    made = scripted(request.param)
    behaviour = request.function.__name__.removeprefix("test_")
    if behaviour in made.unsupported:
        pytest.skip(made.unsupported[behaviour])
    return made


@pytest.fixture
def host(framework: Scripted) -> Hosted:
    def make(script: Script, **options: Any) -> tuple[ASGIApp, Model]:
        target, model = framework.agent(script)
        return hosted(loaded(target), **options), model

    return make


def loaded(target: Any) -> Any:
    """Return the agent as `AGENT=module:attribute` would find it."""
    module: Any = ModuleType("named_agent")
    module.agent = target
    sys.modules["named_agent"] = module
    try:
        return load_agent("named_agent:agent")
    finally:
        del sys.modules["named_agent"]


def said(response: dict[str, Any]) -> str:
    """Return the text of a response."""
    parts = [part for item in response["output"] for part in item.get("content") or ()]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


def kinds(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


async def test_text_streams_as_the_model_says_it(host: Hosted) -> None:
    app, model = host([HELLO])

    wire = await creating(stream=True, input="hi").run(app)

    deltas = [e["delta"] for e in wire.events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "Hello there."
    assert len(deltas) > 1
    assert wire.types[-1] == "completed"
    response = wire.events[-1]["response"]
    assert (kinds(response), said(response)) == (["message"], "Hello there.")
    assert ("user", "hi") in model.seen[0].texts


async def test_the_agents_own_instructions_and_the_requests_reach_the_model(host: Hosted) -> None:
    app, model = host([HELLO])

    await create(app, instructions="Be brief.")

    system = "\n".join(text for role, text in model.seen[0].texts if role == "system")
    assert system.index("Be kind.") < system.index("Be brief.")


async def test_usage_is_counted(host: Hosted) -> None:
    app, _ = host([(Say(("Hi",)), Spend(20, 9, cached_tokens=5, reasoning_tokens=4))])

    usage = (await create(app))["usage"]

    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (20, 9, 29)
    assert usage["input_tokens_details"]["cached_tokens"] == 5


async def test_reasoning_tokens_are_counted(host: Hosted) -> None:
    app, _ = host([(Say(("Hi",)), Spend(20, 9, reasoning_tokens=4))])

    usage = (await create(app))["usage"]

    assert usage["output_tokens_details"]["reasoning_tokens"] == 4


async def test_reasoning_is_an_item_of_its_own(host: Hosted) -> None:
    app, _ = host([(Think(("Let me ", "see.")), Say(("Hello.",)), Spend(1, 1))])

    response = await create(app)

    assert kinds(response) == ["reasoning", "message"]
    assert [part["text"] for part in response["output"][0]["summary"]] == ["Let me see."]
    assert said(response) == "Hello."


async def test_what_the_model_wants_back_with_its_reasoning_comes_back(host: Hosted) -> None:
    app, model = host([(Think(("Hm.",), "signed"), Say(("Hello.",)), Spend(1, 1)), HELLO])

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert first["output"][0]["encrypted_content"]
    assert model.seen[1].signatures == ["signed"]


async def test_history_reaches_the_model_over_three_turns(host: Hosted) -> None:
    app, model = host([(Say((word,)), Spend(1, 1)) for word in ("one", "two", "three")])

    first = await create(app, input="first")
    second = await create(app, input="second", previous_response_id=first["id"])
    third = await create(app, input="third", previous_response_id=second["id"])

    assert said(third) == "three"
    assert [text for text in model.seen[2].texts if text[0] != "system"] == [
        ("user", "first"),
        ("assistant", "one"),
        ("user", "second"),
        ("assistant", "two"),
        ("user", "third"),
    ]


async def test_a_fork_does_not_see_its_sibling(host: Hosted) -> None:
    app, model = host([(Say((word,)), Spend(1, 1)) for word in ("one", "two", "three")])

    first = await create(app, input="first")
    await create(app, input="left", previous_response_id=first["id"])
    await create(app, input="right", previous_response_id=first["id"])

    assert [text for role, text in model.seen[2].texts if role != "system"] == [
        "first",
        "one",
        "right",
    ]


async def test_a_clients_tool_goes_to_the_client_and_its_output_back(
    host: Hosted, framework: Scripted
) -> None:
    own = set() if "the_agents_own_tool_is_hidden" in framework.unsupported else {"weather"}
    call = Call("clock", {"zone": "UTC"}, "call_1")
    app, model = host([(call, Spend(3, 2)), (Say(("It is noon.",)), Spend(5, 4))])

    first = await create(app, input="What time is it?", tools=[CLOCK])
    (item,) = (item for item in first["output"] if item["type"] == "function_call")
    output = {"type": "function_call_output", "call_id": item["call_id"], "output": "12:00"}
    second = await create(app, input=[output], previous_response_id=first["id"], tools=[CLOCK])

    assert (item["name"], json.loads(item["arguments"])) == ("clock", {"zone": "UTC"})
    assert first["status"] == "completed"
    assert kinds(second) == ["message"]
    assert said(second) == "It is noon."
    assert set(model.seen[0].tools) == {"clock", *own}
    assert [name for _, name in model.seen[1].calls] == ["clock"]
    assert ("tool", "12:00") in model.seen[1].texts


async def test_two_calls_of_a_clients_tool_in_one_turn(host: Hosted) -> None:
    calls = (Call("clock", {"zone": "UTC"}, "call_1"), Call("clock", {"zone": "CET"}, "call_2"))
    app, model = host([(*calls, Spend(3, 2)), HELLO])

    first = await create(app, tools=[CLOCK])
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": f"for {i}"}
        for i, item in enumerate(first["output"])
    ]
    second = await create(app, input=outputs, previous_response_id=first["id"], tools=[CLOCK])

    assert kinds(first) == ["function_call", "function_call"]
    zones = [json.loads(item["arguments"])["zone"] for item in first["output"]]
    assert zones == ["UTC", "CET"]
    assert said(second) == "Hello there."
    assert {"for 0", "for 1"} <= {text for role, text in model.seen[1].texts if role == "tool"}


async def test_tool_choice_none_offers_no_tool_of_the_clients(host: Hosted) -> None:
    app, model = host([HELLO])

    await create(app, tools=[CLOCK], tool_choice="none")

    assert "clock" not in model.seen[0].tools


async def test_the_agents_own_tool_is_hidden(host: Hosted) -> None:
    app, model = host([(Call("weather", {"city": "Rome"}, "call_1"), Spend(2, 2)), HELLO])

    response = await create(app)

    assert (kinds(response), said(response)) == (["message"], "Hello there.")
    assert ("tool", "sunny") in model.seen[1].texts
    assert response["usage"]["total_tokens"] == 14


async def test_the_agents_own_tool_is_shown_where_the_host_shows_tools(host: Hosted) -> None:
    call = Call("weather", {"city": "Rome"}, "call_1")
    app, _ = host([(call, Spend(2, 2)), HELLO], shows_tools=True)

    response = await create(app)

    assert kinds(response) == ["mcp_call", "message"]
    tool = response["output"][0]
    assert (tool["name"], json.loads(tool["arguments"])) == ("weather", {"city": "Rome"})
    assert (tool["status"], tool["output"]) == ("completed", "sunny")


async def test_a_tool_that_was_shown_is_remembered(host: Hosted) -> None:
    call = Call("weather", {"city": "Rome"}, "call_1")
    app, model = host([(call, Spend(2, 2)), HELLO, HELLO], shows_tools=True)

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert [name for _, name in model.seen[2].calls] == ["weather"]
    assert ("tool", "sunny") in model.seen[2].texts


async def test_a_failure_of_the_agents_own_tool_does_not_leak(host: Hosted) -> None:
    call = Call("weather", {"city": "Nowhere"}, "call_1")
    app, _ = host([(call, Spend(2, 2)), HELLO], first_event_grace_s=0)

    response = await create(app)  # the framework tells its model, or ends the turn

    assert response["status"] in ("completed", "failed")
    assert "secret" not in json.dumps(response)


async def test_the_answer_has_the_form_that_the_client_asks_for(host: Hosted) -> None:
    app, model = host([(Say(('{"city": ', '"Rome"}')), Spend(1, 1))])
    wanted = {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}

    response = await create(app, text={"format": wanted})

    assert json.loads(said(response)) == {"city": "Rome"}
    schema = model.seen[0].schema
    assert schema is not None
    assert schema["properties"]["city"]["type"] == "string"


async def test_an_image_reaches_the_model(host: Hosted) -> None:
    app, model = host([HELLO])
    url = "data:image/png;base64," + b64encode(PNG).decode()
    parts = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": url},
    ]

    await create(app, input=[{"role": "user", "content": parts}])

    assert model.seen[0].images == [PNG]


async def test_limits_of_the_request_reach_the_model(host: Hosted) -> None:
    app, model = host([HELLO])

    await create(app, max_output_tokens=64, temperature=0.5)

    assert (model.seen[0].max_tokens, model.seen[0].temperature) == (64, 0.5)


@pytest.mark.parametrize(
    ("stop", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
async def test_a_limit_makes_the_response_incomplete(host: Hosted, stop: str, reason: str) -> None:
    app, _ = host([(Say(("Once upon",)), Stop(stop), Spend(1, 1))])

    response = await create(app)

    assert (response["status"], said(response)) == ("incomplete", "Once upon")
    assert response["incomplete_details"] == {"reason": reason}


async def test_a_failure_of_the_model_is_a_failed_response_that_tells_nothing(host: Hosted) -> None:
    app, _ = host([(Say(("Well, ",)), Fail("secret detail"))])

    wire = await creating(stream=True).run(app)

    assert wire.types[-1] == "failed"
    response = wire.events[-1]["response"]
    assert response["error"]["code"] == "server_error"
    assert said(response) == "Well, "
    assert b"secret" not in wire.body


async def test_a_failure_at_once_is_an_http_error(host: Hosted) -> None:
    app, _ = host([(Fail("secret detail"),)], first_event_grace_s=60)

    reply = await creating().run(app)

    assert reply.status >= 500
    assert b"secret" not in reply.body


async def test_a_client_that_goes_ends_the_turn_of_the_model(host: Hosted) -> None:
    wait = Wait()
    app, _ = host([(Say(("Well, ",)), wait)])
    wire = creating(stream=True)
    running = wire.start(app)

    await asyncio.wait_for(wait.begun.wait(), 30)
    await wire.until("Well")
    wire.hang_up()
    await asyncio.wait_for(running, 30)

    await asyncio.wait_for(wait.ended.wait(), 30)


async def test_turns_at_the_same_time_share_nothing(host: Hosted) -> None:
    meet = Meet(asyncio.Barrier(2))
    app, model = host(
        [(meet, Say(("one",)), Spend(1, 1)), (meet, Say(("two",)), Spend(2, 2)), HELLO]
    )

    async with asyncio.TaskGroup() as group:
        left = group.create_task(create(app, input="left"))
        right = group.create_task(create(app, input="right"))

    assert {said(left.result()), said(right.result())} == {"one", "two"}
    asked = sorted(text for seen in model.seen for role, text in seen.texts if role == "user")
    assert asked == ["left", "right"]
    totals = sorted(task.result()["usage"]["total_tokens"] for task in (left, right))
    assert totals == [2, 4]
