"""Agents of Strands behind the Responses API: what the matrix does not ask."""

import asyncio
import json
import sys
import threading
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel
from starlette.types import ASGIApp
from strands import Agent, ModelRetryStrategy, Plugin, ToolContext, tool
from strands.agent.conversation_manager import NullConversationManager
from strands.hooks import (
    AfterToolsEvent,
    BeforeInvocationEvent,
    BeforeModelCallEvent,
    BeforeToolCallEvent,
)
from strands.models import Model
from strands.models.openai import OpenAIModel
from strands.models.openai_responses import OpenAIResponsesModel
from strands.multiagent import GraphBuilder
from strands.session import FileSessionManager
from strands.storage import LocalFileStorage
from strands.tools.executors import SequentialToolExecutor
from strands.types.exceptions import ContextWindowOverflowException, ModelThrottledException

from channel.agent import AgentEvent, TextDelta, Turn, Usage
from channel.agents.strands import adapt
from channel.agents.strands.adapter import DEFAULT_TURNS
from tests.channel.agents.frameworks.strands import ScriptedModel, weather
from tests.channel.agents.scripts import Call, Meet, Say, Spend, Stop, Think, Wait
from tests.channel.asgi import create, creating, hosted
from tests.models.openai_server import OpenAIServer
from tests.models.steps import Truncate


pytestmark = pytest.mark.anyio

HELLO = (Say(("Hello.",)), Spend(1, 1))
CLOCK = {
    "type": "function",
    "name": "clock",
    "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
}
CALENDAR = {"type": "function", "name": "calendar", "parameters": {"type": "object"}}
PLACE = {
    "type": "json_schema",
    "name": "place",
    "description": "Where it is.",
    "schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "near": {"$ref": "#"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
Script = list[Any]


def app_of(script: Script, **options: Any) -> tuple[ASGIApp, ScriptedModel]:
    model = ScriptedModel(script)
    made = Agent(model, **{"system_prompt": "Be kind.", "tools": [weather], **options})
    return hosted(adapt(made), first_event_grace_s=60), model


def turn(text: str = "hi", **fields: Any) -> Turn:
    parts = [{"type": "input_text", "text": text}]
    return Turn(input=[{"type": "message", "role": "user", "content": parts}], **fields)


async def events_of(made: Agent, of: Turn | None = None, **options: Any) -> list[AgentEvent]:
    return [event async for event in adapt(made, **options)(of or turn())]


def said(response: dict[str, Any]) -> str:
    parts = [part for item in response["output"] for part in item.get("content") or ()]
    return "".join(part["text"] for part in parts)


def calls(response: dict[str, Any]) -> list[tuple[str, Any]]:
    items = [item for item in response["output"] if item["type"] == "function_call"]
    return [(item["name"], json.loads(item["arguments"])) for item in items]


def answers(response: dict[str, Any], *outputs: str) -> list[dict[str, Any]]:
    items = [item for item in response["output"] if item["type"] == "function_call"]
    return [
        {"type": "function_call_output", "call_id": item["call_id"], "output": output}
        for item, output in zip(items, outputs, strict=True)
    ]


# The agent of a turn.


async def test_the_users_own_agent_is_left_as_it_was() -> None:
    model = ScriptedModel([HELLO])
    made = Agent(model, tools=[weather], state={"seen": []})

    await create(hosted(adapt(made)))

    assert (made.messages, made.state.get(), made.tool_names) == ([], {"seen": []}, ["weather"])
    assert made.event_loop_metrics.accumulated_usage["totalTokens"] == 0


async def test_the_messages_that_an_agent_was_made_with_come_first() -> None:
    few: Any = [
        {"role": "user", "content": [{"text": "Ping?"}]},
        {"role": "assistant", "content": [{"text": "Pong."}]},
    ]
    app, model = app_of([HELLO, HELLO], messages=few)

    first = await create(app, input="One?")
    await create(app, input="Two?", previous_response_id=first["id"])

    texts = [text for role, text in model.seen[1].texts if role != "system"]
    assert texts == ["Ping?", "Pong.", "One?", "Hello.", "Two?"]
    assert len(few) == 2


async def test_a_factory_makes_the_agent_of_each_turn() -> None:
    model = ScriptedModel([HELLO, HELLO])
    messages: Any = []  # one list for all, as a careless factory may have it
    made: list[Agent] = []

    def make() -> Agent:
        made.append(Agent(model, messages=messages, tools=[weather]))
        return made[-1]

    app = hosted(adapt(make(), make))
    await create(app, input="one")
    await create(app, input="two")

    assert len(made) == 3
    assert [text for _, text in model.seen[1].texts] == ["two"]
    assert messages == []


async def test_a_factory_that_returns_the_same_agent_has_it_copied() -> None:
    meet = Meet(asyncio.Barrier(2))
    made = Agent(ScriptedModel([(meet, Say(("Hi",))), (meet, Say(("Hi",)))]))
    app = hosted(adapt(made, lambda: made))

    async with asyncio.TaskGroup() as group:
        both = [group.create_task(create(app)) for _ in range(2)]

    assert [said(task.result()) for task in both] == ["Hi", "Hi"]


async def test_a_factory_that_returns_a_used_agent_fails_the_turn() -> None:
    made = Agent(ScriptedModel([HELLO, HELLO]))
    app = hosted(adapt(Agent(ScriptedModel([])), lambda: made))

    await create(app, input="secret of the first")
    reply = await creating(input="second").run(app)

    assert reply.status == 500


async def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    inner = Agent(ScriptedModel([HELLO]), name="inner", description="An inner one.")
    call = Call("inner", {"input": "x"}, "call_1")
    script = [(call,), HELLO]

    await events_of(Agent(ScriptedModel(script), tools=[inner]))
    fresh = Agent(ScriptedModel([HELLO]))
    await events_of(fresh, fresh=lambda: Agent(ScriptedModel([HELLO])))

    assert capsys.readouterr().out == ""


async def test_a_callback_handler_of_the_users_own_is_called() -> None:
    heard: list[str] = []

    await events_of(
        Agent(ScriptedModel([HELLO]), callback_handler=lambda **k: heard.append(k.get("data", "")))
    )

    assert "Hello." in heard


async def test_tools_find_the_turn_in_the_invocation_state() -> None:
    found: list[Turn] = []

    @tool(context=True)
    def who(tool_context: ToolContext) -> str:
        """Tell who asks."""
        found.append(tool_context.invocation_state["turn"])
        return "you"

    asked = turn(safety_identifier="user-1")
    await events_of(Agent(ScriptedModel([(Call("who", {}, "call_1"),), HELLO]), tools=[who]), asked)

    assert found == [asked]


async def test_two_turns_use_one_agent_among_the_tools_at_once() -> None:
    meet = Meet(asyncio.Barrier(2))
    inner = Agent(ScriptedModel([(meet, Say(("in",))), (meet, Say(("in",)))]), name="inner")
    call = (Call("inner", {"input": "x"}, "call_1"),)
    model = ScriptedModel([call, call, HELLO, HELLO])
    app = hosted(adapt(Agent(model, tools=[inner])))

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(create(app))

    assert [text for seen in model.seen for role, text in seen.texts if role == "tool"] == [
        "in\n",
        "in\n",
    ]


async def test_what_the_agent_remembers_is_saved_before_the_turn_ends() -> None:
    flushed: list[str] = []

    class Remembering(Agent):
        async def shutdown_async(self) -> None:
            flushed.append("now")

    events = [event async for event in adapt(Remembering(ScriptedModel([HELLO])))(turn())]

    assert flushed == ["now"]
    assert events


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"session_manager": True}, "session_manager"),
        ({"checkpointing": True}, "checkpointing"),
        ({"background_tasks": {"wait_for_completion": False}}, "background tasks"),
    ],
)
async def test_what_cannot_serve_several_turns_is_refused_at_start(
    options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    if "session_manager" in options:
        options = {"session_manager": FileSessionManager("one", storage_dir=str(tmp_path))}
    made = Agent(ScriptedModel([]), **options)

    with pytest.raises(TypeError, match=named):
        adapt(made)


async def test_a_context_manager_that_stores_messages_needs_a_factory(tmp_path: Path) -> None:
    def make() -> Agent:
        storage = LocalFileStorage(str(tmp_path))
        model = ScriptedModel([HELLO], context_window_limit=100_000)
        return Agent(model, context_manager="auto", storage=storage)

    with pytest.raises(TypeError, match="a function without parameters"):
        adapt(make())

    assert said(await create(hosted(adapt(make(), make)))) == "Hello."


async def test_a_model_that_keeps_the_conversation_is_refused_at_start() -> None:
    class Stateful(ScriptedModel):
        stateful = True

    with pytest.raises(TypeError, match="stateful model"):
        adapt(Agent(Stateful([])))


async def test_a_graph_is_refused_at_start() -> None:
    builder = GraphBuilder()
    builder.add_node(Agent(ScriptedModel([])), "one")
    builder.set_max_node_executions(1)

    with pytest.raises(TypeError, match=r"Graph of Strands .* write an async def over a Turn"):
        adapt(builder.build())


# The client's functions.


async def test_the_agents_own_calls_beside_a_clients_are_made_in_the_next_turn() -> None:
    runs: list[str] = []

    @tool
    def rain(city: str) -> str:
        """Tell whether it rains."""
        runs.append(city)
        return f"dry in {city}"

    own, clients = Call("rain", {"city": "Rome"}, "call_1"), Call("clock", {}, "call_2")
    app, model = app_of([(own, clients), (own,), HELLO], tools=[rain])

    first = await create(app, tools=[CLOCK])
    before = [*runs]
    second = await create(
        app, input=answers(first, "noon"), previous_response_id=first["id"], tools=[CLOCK]
    )

    assert (calls(first), before) == ([("clock", {})], [])
    assert model.seen[1].calls == [("call_2", "clock")]
    assert (runs, said(second)) == (["Rome"], "Hello.")
    assert ("tool", "dry in Rome") in model.seen[2].texts


async def test_arguments_stream_as_the_model_writes_them() -> None:
    app, _ = app_of([(Call("clock", {"zone": "UTC"}, "call_1"),)])

    wire = await creating(stream=True, tools=[CLOCK]).run(app)

    kind = "response.function_call_arguments.delta"
    assert [e["delta"] for e in wire.events if e["type"] == kind] == ['{"z', 'one": "UTC"}']


async def test_a_call_without_arguments_has_an_empty_object_of_them() -> None:
    start = {"start": {"toolUse": {"toolUseId": "call_1", "name": "clock"}}}
    chunks = [{"messageStart": {"role": "assistant"}}, {"contentBlockStart": start}]
    chunks += [{"contentBlockStop": {}}, {"messageStop": {"stopReason": "tool_use"}}]
    app, _ = app_of([chunks])

    assert calls(await create(app, tools=[CLOCK])) == [("clock", {})]


async def test_a_model_that_names_the_function_in_a_delta_is_understood() -> None:
    piece = {"toolUse": {"toolUseId": "call_1", "name": "clock", "input": "{}"}}
    chunks: Script = [{"messageStart": {"role": "assistant"}}]
    chunks += [{"contentBlockDelta": {"delta": piece}}, {"contentBlockStop": {}}]
    chunks += [{"messageStop": {"stopReason": "tool_use"}}]
    app, _ = app_of([chunks])

    assert calls(await create(app, tools=[CLOCK])) == [("clock", {})]


async def test_calls_under_one_id_are_told_apart() -> None:
    zones = [Call("clock", {"zone": zone}, "clock") for zone in ("UTC", "CET")]
    app, model = app_of([zones, HELLO])

    first = await create(app, tools=[CLOCK])
    await create(app, input=answers(first, "12:00", "13:00"), previous_response_id=first["id"])

    assert calls(first) == [("clock", {"zone": "UTC"}), ("clock", {"zone": "CET"})]
    assert [text for role, text in model.seen[1].texts if role == "tool"] == ["12:00", "13:00"]


async def test_tools_of_the_agents_own_under_one_id_are_told_apart() -> None:
    cities = [Call("weather", {"city": city}, "weather") for city in ("Rome", "Nowhere")]
    model = ScriptedModel([cities, HELLO])
    app = hosted(adapt(Agent(model, tools=[weather])), shows_tools=True)

    shown = (await create(app))["output"][:2]

    assert [item["output"] for item in shown] == ["sunny", None]
    assert "The tool failed." in json.dumps(shown[1]["error"])


async def test_one_call_at_a_time_is_kept_to() -> None:
    app, model = app_of([[Call("clock", {}, "call_1"), Call("calendar", {}, "call_2")], HELLO])
    tools = [CLOCK, CALENDAR]

    first = await create(app, tools=tools, parallel_tool_calls=False)
    await create(app, input=answers(first, "noon"), previous_response_id=first["id"], tools=tools)

    assert calls(first) == [("clock", {})]
    assert model.seen[1].calls == [("call_1", "clock")]


async def test_calls_one_after_the_other_go_to_the_client_together() -> None:
    script = [[Call("clock", {}, "call_1"), Call("calendar", {}, "call_2")]]
    app, _ = app_of(script, tool_executor=SequentialToolExecutor())

    response = await create(app, tools=[CLOCK, CALENDAR])

    assert [name for name, _ in calls(response)] == ["clock", "calendar"]


async def test_a_call_that_a_hook_turns_down_does_not_go_to_the_client() -> None:
    def refuse(event: BeforeToolCallEvent) -> None:
        event.cancel_tool = "Not now."

    app, model = app_of([(Call("clock", {}, "call_1"),), HELLO], hooks=[refuse])

    response = await create(app, tools=[CLOCK])

    assert (calls(response), said(response)) == ([], "Hello.")
    assert ("tool", "Not now.") in model.seen[1].texts


async def test_a_call_that_a_hook_changes_goes_to_the_client_as_it_is_then() -> None:
    def change(event: BeforeToolCallEvent) -> None:
        event.tool_use["input"] = {"zone": "CET"}

    app, _ = app_of([(Call("clock", {"zone": "UTC"}, "call_1"),)], hooks=[change])

    assert calls(await create(app, tools=[CLOCK])) == [("clock", {"zone": "CET"})]


async def test_a_function_with_the_name_of_one_of_the_agents_own_is_refused() -> None:
    app, _ = app_of([])

    reply = await creating(tools=[{**CLOCK, "name": "weather"}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "tools")


async def test_a_choice_of_one_function_is_of_the_first_call_of_the_model() -> None:
    app, model = app_of([(Call("clock", {}, "call_1"),)])
    choice = {"type": "function", "name": "clock"}

    await create(app, tools=[CLOCK, CALENDAR], tool_choice=choice)

    assert (model.choices, model.seen[0].tools) == ([{"tool": {"name": "clock"}}], ["clock"])


async def test_after_a_call_that_was_required_the_model_is_free_to_answer() -> None:
    def refuse(event: BeforeToolCallEvent) -> None:
        event.cancel_tool = "Not now."

    app, model = app_of([(Call("clock", {}, "call_1"),), HELLO], hooks=[refuse])

    await create(app, tools=[CLOCK], tool_choice="required")

    assert model.choices == [{"tool": {"name": "clock"}}, None]


async def test_a_required_call_is_one_of_the_clients() -> None:
    app, model = app_of([(Call("clock", {}, "call_1"),)])

    await create(app, tools=[CLOCK, CALENDAR], tool_choice="required")

    assert (model.choices, model.seen[0].tools) == ([{"any": {}}], ["clock", "calendar"])


async def test_tools_of_the_history_stay_known_to_a_model_that_has_none_now() -> None:
    app, model = app_of([(Call("clock", {}, "call_1"),), HELLO], tools=[])

    first = await create(app, tools=[CLOCK])
    await create(app, input=answers(first, "noon"), previous_response_id=first["id"])

    assert model.seen[1].tools == ["clock"]


# Answers in a form.


async def test_an_answer_in_words_is_asked_for_again_in_its_form() -> None:
    words = [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"delta": {"text": "It is Rome."}}},
        {"contentBlockStop": {}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"metadata": {"usage": {"inputTokens": 2, "outputTokens": 1, "totalTokens": 3}}},
    ]
    app, model = app_of([words, (Say(('{"city": "Rome"}',)), Spend(3, 1))])

    response = await create(app, text={"format": PLACE})

    assert json.loads(said(response)) == {"city": "Rome"}
    assert response["usage"]["total_tokens"] == 7
    assert model.choices == [None, {"tool": {"name": "FinalAnswer"}}]


async def test_the_model_is_given_the_schema_as_it_is() -> None:
    app, model = app_of([(Say(('{"city": "Rome"}',)),)])

    await create(app, text={"format": PLACE})

    schema = cast("dict[str, Any]", model.seen[0].schema)
    assert schema["properties"]["near"] == {"$ref": "#"}
    assert (schema["required"], schema["additionalProperties"]) == (["city"], False)


async def test_an_answer_of_another_form_is_asked_for_again() -> None:
    app, model = app_of([(Say(('{"town": "Rome"}',)),), (Say(('{"city": "Rome"}',)),)])

    response = await create(app, text={"format": PLACE})

    assert json.loads(said(response)) == {"city": "Rome"}
    (complaint,) = (text for role, text in model.seen[1].texts if role == "tool")
    assert "The answer lacks ['city']" in complaint


async def test_the_agent_uses_its_tools_before_it_answers_in_a_form() -> None:
    app, model = app_of([(Call("weather", {"city": "Rome"}, "c"),), (Say(('{"city": "Rome"}',)),)])

    response = await create(app, text={"format": PLACE})

    assert json.loads(said(response)) == {"city": "Rome"}
    assert ("tool", "sunny") in model.seen[1].texts


async def test_any_object_is_a_form_too() -> None:
    app, _ = app_of([(Say(('{"a": [1, {"b": null}], "ä": "ö"}',)),)])

    response = await create(app, text={"format": {"type": "json_object"}})

    assert json.loads(said(response)) == {"a": [1, {"b": None}], "ä": "ö"}


async def test_the_form_that_an_agent_answers_in_by_itself_is_told_as_json() -> None:
    class Place(BaseModel):
        city: str

    start = {"start": {"toolUse": {"toolUseId": "c", "name": "Place"}}}
    piece = {"delta": {"toolUse": {"input": '{"city": "Rome"}'}}}
    chunks: Script = [{"messageStart": {"role": "assistant"}}]
    chunks += [{"contentBlockDelta": {"delta": {"text": "Sure:"}}}, {"contentBlockStop": {}}]
    chunks += [{"contentBlockStart": start}, {"contentBlockDelta": piece}, {"contentBlockStop": {}}]
    chunks += [{"messageStop": {"stopReason": "tool_use"}}]
    app, _ = app_of([chunks], structured_output_model=Place)

    assert said(await create(app)) == '{"city":"Rome"}'


async def test_no_answer_in_the_form_is_a_failure_that_says_so() -> None:
    chunks = [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"delta": {"text": "secret words"}}},
        {"contentBlockStop": {}},
        {"messageStop": {"stopReason": "end_turn"}},
    ]
    app, _ = app_of([chunks, chunks])

    reply = await creating(text={"format": PLACE}).run(app)

    assert reply.status == 500
    assert "in the form that was asked for" in reply.error_body["message"]
    assert b"secret" not in reply.body


async def test_two_forms_at_once_are_not_mixed_up() -> None:
    meet = Meet(asyncio.Barrier(2))
    app, model = app_of([(meet, Say(('{"city": "Rome"}',)))] * 2)
    other = {**PLACE, "schema": {"type": "object", "properties": {"city": {"enum": ["Rome"]}}}}

    async with asyncio.TaskGroup() as group:
        for form in (PLACE, other):
            group.create_task(create(app, text={"format": form}))

    schemas = [cast("dict[str, Any]", seen.schema)["properties"] for seen in model.seen]
    assert sorted("near" in properties for properties in schemas) == [False, True]


# Ends that are none.


OpenAIs = type[OpenAIModel] | type[OpenAIResponsesModel]


@pytest.mark.parametrize("kind", [OpenAIModel, OpenAIResponsesModel])
@pytest.mark.parametrize("steps", [(Say(("Hel",)),), (Call("clock", {}, "c1"),), ()])
async def test_a_stream_that_was_cut_off_fails_the_turn(
    kind: OpenAIs, steps: tuple[Any, ...]
) -> None:
    with OpenAIServer([(*steps, Truncate())]) as server:
        made = Agent(kind(client_args={"base_url": server.url, "api_key": "k"}, model_id="m"))
        app = hosted(adapt(made), first_event_grace_s=60)

        reply = await creating(tools=[CLOCK]).run(app)

    assert (reply.status, reply.json.get("status")) in ((200, "failed"), (500, None))


@pytest.mark.parametrize("kind", [OpenAIModel, OpenAIResponsesModel])
@pytest.mark.parametrize(
    ("step", "status"),
    [
        (Say(("Hello.",)), "completed"),
        (Call("clock", {}, "c1"), "completed"),
        (Stop("length"), "incomplete"),
    ],
)
async def test_a_stream_that_ends_is_not_cut_off(kind: OpenAIs, step: Any, status: str) -> None:
    with OpenAIServer([(step, Spend(1, 1))]) as server:
        model = kind(client_args={"base_url": server.url, "api_key": "k"}, model_id="m")
        app = hosted(adapt(Agent(model)), first_event_grace_s=60)

        response = await create(app, tools=[CLOCK])

    assert response["status"] == status


async def test_a_model_of_another_make_that_gives_no_reason_is_believed() -> None:
    chunks = [{"contentBlockDelta": {"delta": {"text": "Hi"}}}, {"contentBlockStop": {}}]
    app, _ = app_of([chunks])

    response = await create(app)

    assert (response["status"], said(response)) == ("completed", "Hi")


@pytest.mark.parametrize("executor", [None, SequentialToolExecutor()])
async def test_a_tool_that_wants_to_end_the_process_fails_the_turn(executor: Any) -> None:
    @tool
    def leave() -> str:
        """Leave."""
        sys.exit(3)

    app, model = app_of(
        [(Call("leave", {}, "c1"),), HELLO],
        tools=[leave],
        **({"tool_executor": executor} if executor else {}),
    )

    reply = await creating().run(app)

    assert reply.status == 500
    assert len(model.seen) == 1


async def test_a_hook_that_wants_to_end_the_process_fails_the_turn() -> None:
    def leave(event: BeforeModelCallEvent) -> None:
        sys.exit(3)

    made = Agent(ScriptedModel([HELLO]))
    made.hooks.add_callback(BeforeModelCallEvent, leave)
    app = hosted(adapt(made), first_event_grace_s=60)

    reply = await creating().run(app)

    assert reply.status == 500


# What a request cannot ask for.


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "array"}}}},
            "text.format.schema",
        ),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": {"properties": [1]}}]},
            "tools",
        ),
    ],
)
async def test_what_no_tool_can_be_made_of_is_the_clients_error(
    fields: dict[str, Any], param: str
) -> None:
    app, _ = app_of([HELLO])

    reply = await creating(**fields).run(app)

    assert (reply.status, reply.json["error"]["param"]) == (400, param)


# Options and limits.


async def test_a_turn_that_does_not_end_by_itself_is_incomplete() -> None:
    app, model = app_of([(Call("weather", {"city": "x"}, f"c{n}"),) for n in range(200)])

    response = await create(app)

    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert len(model.seen) == DEFAULT_TURNS


async def test_options_of_a_request_leave_the_model_as_it_was() -> None:
    app, model = app_of([HELLO, HELLO], callback_handler=None)

    await create(app, temperature=0.5, max_output_tokens=64)
    await create(app)

    assert model.config == {"model_id": "scripted"}
    assert (model.seen[1].temperature, model.seen[1].max_tokens) == (None, None)


async def test_the_limit_of_the_output_is_that_of_all_calls_together() -> None:
    call = Call("weather", {"city": "Rome"}, "call_1")
    app, model = app_of([(call, Spend(5, 40)), (call, Spend(5, 24)), HELLO])

    response = await create(app, max_output_tokens=64)

    assert [seen.max_tokens for seen in model.seen] == [64, 24]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_limit_of_the_agents_turns_makes_the_response_incomplete() -> None:
    call = Call("weather", {"city": "Rome"}, "call_1")
    made = Agent(ScriptedModel([(call,), (call,), HELLO]), tools=[weather])
    app = hosted(adapt(made, limits={"turns": 2}))

    response = await create(app)

    assert response["status"] == "incomplete"


async def test_an_option_that_the_model_has_not_is_not_taken() -> None:
    class Plain(ScriptedModel):
        def update_config(self, **model_config: Any) -> None:
            raise NotImplementedError

    agent: Any = adapt(Agent(Plain([])))

    assert agent.accepted_options == {"text"}


# What goes wrong.


def failing(error: Exception) -> Model:
    class Failing(ScriptedModel):
        async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            yield {"messageStart": {"role": "assistant"}}
            raise error

    return Failing([])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelThrottledException("secret"), 429, "rate_limit_exceeded"),
        (ContextWindowOverflowException("secret"), 400, "context_length_exceeded"),
    ],
)
async def test_errors_of_the_models_provider_are_told_as_such(
    error: Exception, status: int, code: str
) -> None:
    manager = NullConversationManager()
    made = Agent(failing(error), retry_strategy=None, conversation_manager=manager)

    reply = await creating().run(hosted(adapt(made), first_event_grace_s=60))

    assert (reply.status, reply.error_body["code"]) == (status, code)
    assert b"secret" not in reply.body


async def test_a_question_to_a_person_fails_the_turn_with_a_sentence() -> None:
    def ask(event: BeforeToolCallEvent) -> None:
        event.interrupt("approval", reason="secret reason")

    call = Call("weather", {"city": "Rome"}, "call_1")
    app, _ = app_of([(call,)], hooks=[ask])

    reply = await creating().run(app)

    assert "a person's decision" in reply.body.decode()
    assert b"secret" not in reply.body


async def test_a_model_that_is_asked_again_after_it_called_a_function_fails_the_turn() -> None:
    class Again(ScriptedModel):
        async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            async for chunk in super().stream(*args, **kwargs):
                if "messageStop" in chunk and len(self.seen) == 1:
                    raise ModelThrottledException("secret")
                yield chunk

    model = Again([(Call("clock", {}, "call_1"),), HELLO])
    made = Agent(model, retry_strategy=ModelRetryStrategy(max_attempts=2, initial_delay=0))
    app = hosted(adapt(made), first_event_grace_s=0)

    response = await create(app, tools=[CLOCK])

    assert response["status"] == "failed"


# What a hook says in place of the model.


def cancelling(event: BeforeInvocationEvent) -> None:
    event.cancel = "Closed."


def denying(event: BeforeModelCallEvent) -> None:
    event.cancel = "Closed."


def ending(event: AfterToolsEvent) -> None:
    event.end_turn = "Closed."


@pytest.mark.parametrize("hook", [cancelling, denying, ending])
async def test_what_a_hook_ends_the_turn_with_is_the_answer(hook: Callable[..., None]) -> None:
    call = Call("weather", {"city": "Rome"}, "call_1")
    app, _ = app_of([(call,), HELLO], hooks=[hook])

    assert said(await create(app)) == "Closed."


async def test_a_delegates_answer_is_told_once() -> None:
    inner = Agent(ScriptedModel([(Say(("From ", "inside.")), Spend(2, 2))]), name="inner")
    call = (Call("inner", {"input": "x"}, "call_1"), Spend(3, 3))
    app, _ = app_of([call], tools=[inner.as_tool(delegate=True)])

    response = await create(app)

    assert said(response) == "From inside."
    assert response["usage"]["total_tokens"] == 10


async def test_a_guardrail_that_speaks_in_place_of_the_model_is_heard() -> None:
    chunks: Script = [
        {"messageStart": {"role": "assistant"}},
        {"redactContent": {"redactAssistantContentMessage": "I cannot say."}},
        {"messageStop": {"stopReason": "guardrail_intervened"}},
    ]
    app, _ = app_of([chunks])

    response = await create(app)

    assert (said(response), response["status"]) == ("I cannot say.", "incomplete")
    assert response["incomplete_details"] == {"reason": "content_filter"}


# What models are given and say.


async def test_reasoning_that_only_its_maker_can_read_goes_back_to_it() -> None:
    secret = {"reasoningContent": {"redactedContent": b"\x00\x01"}}
    chunks: Script = [{"messageStart": {"role": "assistant"}}]
    chunks += [{"contentBlockDelta": {"delta": secret}}, {"contentBlockStop": {}}]
    chunks += [{"contentBlockDelta": {"delta": {"text": "Hi."}}}, {"contentBlockStop": {}}]
    chunks += [{"messageStop": {"stopReason": "end_turn"}}]
    app, model = app_of([chunks, HELLO])

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert {"reasoningContent": {"redactedContent": b"\x00\x01"}} in model.messages[1][1]["content"]


async def test_signed_reasoning_goes_back_before_the_call_that_it_led_to() -> None:
    app, model = app_of([(Think(("Hm.",), "signed"), Call("clock", {}, "call_1")), HELLO])

    first = await create(app, tools=[CLOCK])
    await create(app, input=answers(first, "noon"), previous_response_id=first["id"])

    kinds = [[*block] for block in model.messages[1][1]["content"]]
    assert kinds == [["reasoningContent"], ["toolUse"]]


@pytest.mark.parametrize("hooks", [[], [lambda event: None]], ids=["streamed", "whole"])
async def test_a_signature_of_a_call_goes_back_with_it(hooks: list[Any]) -> None:
    used = {"toolUseId": "call_1", "name": "clock", "reasoningSignature": "signed"}
    chunks: Script = [{"messageStart": {"role": "assistant"}}]
    chunks += [{"contentBlockStart": {"start": {"toolUse": used}}}, {"contentBlockStop": {}}]
    chunks += [{"messageStop": {"stopReason": "tool_use"}}]
    model = ScriptedModel([chunks, HELLO])
    made = Agent(model)
    for hook in hooks:
        made.add_hook(hook, BeforeToolCallEvent)
    app = hosted(adapt(made))

    first = await create(app, tools=[CLOCK])
    await create(app, input=answers(first, "noon"), previous_response_id=first["id"])

    (block,) = model.messages[1][1]["content"]
    assert block["toolUse"]["reasoningSignature"] == "signed"


async def test_citations_annotate_the_text() -> None:
    where = {"web": {"url": "https://example.com/a", "domain": "example.com"}}
    citation = {"citation": {"title": "A", "location": where}}
    chunks: Script = [{"messageStart": {"role": "assistant"}}]
    chunks += [{"contentBlockDelta": {"delta": delta}} for delta in ({"text": "So."}, citation)]
    chunks += [{"contentBlockStop": {}}, {"messageStop": {"stopReason": "end_turn"}}]
    app, _ = app_of([chunks])

    (annotation,) = (await create(app))["output"][0]["content"][0]["annotations"]

    assert annotation == {
        "type": "url_citation",
        "url": "https://example.com/a",
        "title": "A",
        "start_index": 0,
        "end_index": 3,
    }


async def test_a_document_reaches_the_model() -> None:
    app, model = app_of([HELLO])
    data = "data:application/pdf;base64," + b64encode(b"%PDF").decode()
    parts = [
        {"type": "input_text", "text": "Read."},
        {"type": "input_file", "filename": "a.pdf", "file_data": data},
    ]

    await create(app, input=[{"role": "user", "content": parts}])

    document = model.messages[0][0]["content"][1]["document"]
    assert (document["format"], document["source"]) == ("pdf", {"bytes": b"%PDF"})


async def test_an_image_by_its_url_is_refused() -> None:
    app, _ = app_of([])
    parts = [{"type": "input_image", "image_url": "https://example.com/a.png"}]

    reply = await creating(input=[{"role": "user", "content": parts}]).run(app)

    assert (reply.status, reply.error_body["code"]) == (400, "invalid_image_url")


async def test_results_of_tools_say_how_they_ended() -> None:
    app, model = app_of([(Call("clock", {}, "call_1"),), HELLO])

    first = await create(app, tools=[CLOCK])
    await create(app, input=answers(first, "noon"), previous_response_id=first["id"])

    (block,) = model.messages[1][2]["content"]
    assert block["toolResult"]["status"] == "success"


@pytest.mark.parametrize(("total", "counted"), [(12, 10), (17, 15)])
async def test_tokens_of_the_cache_count_once_whether_within_or_beside(
    total: int, counted: int
) -> None:
    usage = {"inputTokens": 10, "outputTokens": 2, "totalTokens": total}
    usage |= {"cacheReadInputTokens": 4, "cacheWriteInputTokens": 1}
    chunks: Script = [{"messageStart": {"role": "assistant"}}]
    chunks += [{"messageStop": {"stopReason": "end_turn"}}, {"metadata": {"usage": usage}}]

    events = await events_of(Agent(ScriptedModel([chunks])))

    assert events == [Usage(counted, 2, 4, 1)]


# Its end.


async def test_the_model_is_not_ahead_of_the_client() -> None:
    pulled: list[int] = []
    closed: list[bool] = []

    class Endless(ScriptedModel):
        async def stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            try:
                for number in range(1000):
                    pulled.append(number)
                    yield {"contentBlockDelta": {"delta": {"text": f"{number} "}}}
            finally:
                await asyncio.sleep(0)
                closed.append(True)

    async with aclosing(cast("Any", adapt(Agent(Endless([])))(turn()))) as events:
        first = [await anext(events) for _ in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)

    assert first == [TextDelta("0 "), TextDelta("1 "), TextDelta("2 ")]
    assert len(pulled) <= 4
    assert closed == [True]


async def test_nothing_of_a_turn_runs_on_after_it_was_left() -> None:
    wait = Wait()
    before = asyncio.all_tasks()

    async with aclosing(
        cast("Any", adapt(Agent(ScriptedModel([(Say(("a",)), wait)])))(turn()))
    ) as events:
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await wait.begun.wait()
        waiting.cancel()
        await asyncio.wait({waiting})

    assert wait.ended.is_set()
    assert asyncio.all_tasks() == before


async def test_a_tool_in_a_thread_is_told_that_its_turn_is_over() -> None:
    begun, told = asyncio.Event(), asyncio.Event()
    is_left = threading.Event()
    loop = asyncio.get_running_loop()

    @tool(context=True)
    def patient(tool_context: ToolContext) -> str:
        """Look whether it is still wanted, when it is not."""
        loop.call_soon_threadsafe(begun.set)
        is_left.wait(30)
        if tool_context.cancel_signal.is_set():
            loop.call_soon_threadsafe(told.set)
        return "late"

    model = ScriptedModel([(Call("patient", {}, "call_1"),)])
    async with aclosing(cast("Any", adapt(Agent(model, tools=[patient]))(turn()))) as events:
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await begun.wait()
        waiting.cancel()
        await asyncio.wait({waiting})
    is_left.set()

    await asyncio.wait_for(told.wait(), 30)


# What plugins do.


class Counting(Plugin):
    """Counts what its agent does, and knows its agent."""

    name = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.agent: Agent | None = None
        self.counts: list[bool] = []

    def init_agent(self, agent: Agent) -> None:
        self.agent = agent
        agent.add_hook(self.count, BeforeInvocationEvent)

    def count(self, event: BeforeInvocationEvent) -> None:
        self.counts.append(event.agent is self.agent)

    @tool
    def counted(self) -> str:
        """Return the counts."""
        return str(self.counts)


async def test_a_plugin_belongs_to_the_agent_of_its_turn() -> None:
    call = Call("counted", {}, "call_1")
    plugin = Counting()
    app, model = app_of([(call,), HELLO, (call,), HELLO], plugins=[plugin])

    await create(app)
    await create(app)

    assert [text for seen in model.seen for role, text in seen.texts if role == "tool"] == [
        "[True]",
        "[True]",
    ]
    assert plugin.counts == []
