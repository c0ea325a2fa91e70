"""What only the OpenAI Agents SDK has: its stream, its items, its endings, its guardrails, its traces."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest
from agents import (
    Agent,
    AgentOutputSchemaBase,
    GuardrailFunctionOutput,
    ModelSettings,
    RunConfig,
    RunContextWrapper,
    function_tool,
    input_guardrail,
    output_guardrail,
    set_trace_processors,
)
from agents.tracing import TracingProcessor
from pydantic import BaseModel

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolFinished,
    ToolStarted,
    Turn,
    TurnError,
    Usage,
)
from channel.agents.openai_agents import adapt
from channel.responses.protocol.items import message
from tests.channel.agents.frameworks.openai_agents import (
    Break,
    Cite,
    Item,
    Reason,
    Refuse,
    Said,
    ScriptedModel,
    Tell,
    weather,
)
from tests.channel.agents.scripts import Call, Fail, Say, Spend, Stop, Think, Wait
from tests.channel.agents.test_matrix import CITY, CLOCK, HELLO, kinds, said
from tests.channel.asgi import create, creating, hosted


pytestmark = pytest.mark.anyio
WEATHER = Call("weather", {"city": "Rome"}, "call_1")
ASKED = Turn(input=[message("user", "hi")])
PLACE = {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}


def agent_of(*script: Sequence[Said], streams: bool = True, **fields: Any) -> Agent[Any]:
    model = ScriptedModel(script, streams=streams)
    given = {"tools": [weather], "instructions": "Be kind.", **fields}
    return Agent("kind", model=model, **given)


def model_of(agent: Agent[Any]) -> ScriptedModel:
    assert isinstance(agent.model, ScriptedModel)
    return agent.model


def turn(**fields: Any) -> Turn:
    return Turn(**{"input": [message("user", "hi")], **fields})


async def told(agent: Agent[Any], given: Turn = ASKED, **options: Any) -> list[AgentEvent]:
    return [event async for event in adapt(agent, **options)(given)]


def text_of(events: Sequence[AgentEvent]) -> str:
    said = [e.text if isinstance(e, TextDelta) else e for e in events]
    return "".join(each for each in said if isinstance(each, str))


# What a model says.


async def test_reasoning_is_its_summary_and_its_text_part_by_part() -> None:
    agent = agent_of(
        (Think(("a", "b")), Think(("c",), "sealed"), Reason(("d",)), Say(("ok",)), Spend(1, 1))
    )

    events = await told(agent)

    assert [event for event in events if isinstance(event, ReasoningDelta)][:4] == [
        ReasoningDelta("a"),
        ReasoningDelta("b"),
        ReasoningDelta("c", new_part=True),
        ReasoningDelta(encrypted_content="sealed"),
    ]
    assert ReasoningDelta("d") in events


async def test_what_other_providers_want_back_with_reasoning_comes_back_whole() -> None:
    rest = {"encrypted_content": "signed", "provider_data": {"model": "claude", "blocks": [1]}}
    agent = agent_of((Reason(("Hm.",), rest), Say(("ok",)), Spend(1, 1)), HELLO)
    app = hosted(agent)

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    (thought,) = (item for item in model_of(agent).inputs[1] if item["type"] == "reasoning")
    assert thought == {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "Hm."}],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
        **rest,
    }


async def test_reasoning_that_nobody_wants_back_is_left_out() -> None:
    agent = agent_of((Think(("Hm.",)), Say(("ok",)), Spend(1, 1)), HELLO)
    app = hosted(agent)

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert [item["type"] for item in model_of(agent).inputs[1]] == ["message"] * 3


async def test_what_is_broken_in_reasoning_goes_back_as_it_is() -> None:
    agent = agent_of(HELLO)
    thought = {"type": "reasoning", "summary": [], "encrypted_content": "sdk.%"}

    await told(agent, turn(history=[thought]))

    assert model_of(agent).inputs[0][0]["encrypted_content"] == "sdk.%"


async def test_annotations_count_from_the_beginning_of_their_message() -> None:
    cited = {"type": "url_citation", "url": "https://a", "title": "A"}
    agent = agent_of(
        (Say(("Let me see.",)), WEATHER, Spend(1, 1)),
        (Say(("Sunny.",)), Cite({**cited, "start_index": 0, "end_index": 6}), Spend(1, 1)),
    )

    response = await create(hosted(agent))

    first, second = (item["content"][0] for item in response["output"])
    (found,) = second["annotations"]
    assert (first["text"], second["text"]) == ("Let me see.", "Sunny.")
    assert (found["start_index"], found["end_index"], found["url"]) == (0, 6, "https://a")


async def test_messages_with_something_between_them_are_not_joined() -> None:
    agent = agent_of((Say(("One.",)), Think(("Hm.",)), Say(("Two.",)), Spend(1, 1)))

    assert text_of(await told(agent)) == "One.Two."


async def test_a_refusal_is_a_refusal() -> None:
    app = hosted(agent_of((Refuse(("I ", "won't.")), Spend(2, 3))))

    response = await create(app)

    assert response["status"] == "completed"
    assert response["output"][0]["content"] == [{"type": "refusal", "refusal": "I won't."}]
    assert response["usage"]["total_tokens"] == 5


async def test_a_model_that_does_not_stream_is_told_whole() -> None:
    said_item = {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": "Well.", "annotations": [
                {"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 4}
            ]},
        ],
    }  # fmt: skip
    script = [(Think(("Hm.",), "sealed"), Item(said_item), Call("clock", {}, "c1"), Spend(1, 1))]
    agent = agent_of(*script, streams=False)

    events = await told(agent, turn(tools=[CLOCK]))

    assert events[:3] == [
        ReasoningDelta("Hm."),
        ReasoningDelta(encrypted_content="sealed"),
        "Well.",
    ]
    assert isinstance(events[3], Annotation)
    assert [type(event).__name__ for event in events[4:]] == ["FunctionCall", "Usage"]


async def test_a_refusal_that_does_not_stream_is_told_whole() -> None:
    events = await told(agent_of((Refuse(("No.",)), Spend(1, 1)), streams=False))

    assert [e.text for e in events if isinstance(e, RefusalDelta) and e.text] == ["No."]


async def test_nothing_of_a_models_own_events_reaches_the_client() -> None:
    app = hosted(agent_of((Think(("Hm.",)), Say(("Hi.",)), Spend(1, 1))))

    wire = await creating(stream=True).run(app)

    assert wire.types.count("created") == wire.types.count("completed") == 1
    assert [event["sequence_number"] for event in wire.events] == [*range(len(wire.events))]
    for own in (b'"resp_inner"', b'"msg_1"', b'"rs_0"', b'"scripted"'):
        assert own not in wire.body


async def test_a_generated_image_is_an_item() -> None:
    image = {"type": "image_generation_call", "status": "completed", "result": "aGk="}
    agent = agent_of((Item(image), Say(("There.",)), Spend(1, 1)))

    events = await told(agent)

    assert OutputItem(image) in events
    assert not [event for event in events if isinstance(event, ToolStarted)]


# The calls of clients, as they grow.


def grow(index: int, text: str) -> Tell:
    return Tell(
        {
            "type": "function_call_arguments.delta",
            "item_id": f"fc_{index}",
            "output_index": index,
            "delta": text,
        }
    )


def begin(index: int, call_id: str) -> Tell:
    item = {"type": "function_call", "name": "clock", "call_id": call_id, "arguments": ""}
    return Tell({"type": "output_item.added", "output_index": index, "item": item})


def end(index: int, call_id: str, arguments: str) -> Tell:
    item = {"type": "function_call", "name": "clock", "call_id": call_id, "arguments": arguments}
    return Tell({"type": "output_item.done", "output_index": index, "item": item})


async def test_calls_that_grow_at_the_same_time_are_told_one_after_the_other() -> None:
    agent = agent_of(
        (
            begin(0, "a"), begin(1, "b"), grow(0, '{"x'), grow(1, '{"y'), grow(0, '":1}'),
            grow(1, '":2}'), end(0, "a", '{"x":1}'), end(1, "b", '{"y":2}'), Say(("Now.",)),
            Spend(1, 1),
        )
    )  # fmt: skip

    events = await told(agent, turn(tools=[CLOCK]))

    assert events[:-1] == [
        FunctionCallDelta("a", name="clock"),
        FunctionCallDelta("a", '{"x'),
        FunctionCallDelta("a", '":1}'),
        FunctionCallDelta("b", name="clock"),
        FunctionCallDelta("b", '{"y'),
        FunctionCallDelta("b", '":2}'),
        "Now.",
    ]


async def test_a_call_that_ends_late_holds_up_nothing_once_it_is_whole() -> None:
    agent = agent_of(
        (
            begin(0, "a"), grow(0, "{}"), begin(1, "b"), grow(0, " "), grow(1, "{"), grow(1, "}"),
            end(0, "a", "{} "), end(1, "b", "{}"), Spend(1, 1),
        )
    )  # fmt: skip

    events = await told(agent, turn(tools=[CLOCK]))

    assert events[:-1] == [
        FunctionCallDelta("a", name="clock"),
        FunctionCallDelta("a", "{}"),
        FunctionCallDelta("b", name="clock"),
        FunctionCallDelta("b", "{"),
        FunctionCallDelta("b", "}"),
    ]


async def test_a_call_without_arguments_has_an_empty_object() -> None:
    agent = agent_of((begin(0, "a"), end(0, "a", ""), Spend(1, 1)))

    events = await told(agent, turn(tools=[CLOCK]))

    assert FunctionCallDelta("a", "{}") in events


async def test_arguments_that_come_at_the_end_are_told_at_the_end() -> None:
    agent = agent_of((begin(0, "a"), grow(0, '{"z'), end(0, "a", '{"z":1}'), Spend(1, 1)))

    events = await told(agent, turn(tools=[CLOCK]))

    assert FunctionCallDelta("a", '":1}') in events


# Endings.


async def test_more_model_calls_than_a_turn_may_make_end_it_as_incomplete() -> None:
    again = [(Call("weather", {"city": "Rome"}, f"call_{i}"), Spend(1, 1)) for i in range(3)]

    events = await told(agent_of(*again), max_turns=2)

    assert events[-2:] == [Usage(2, 2), Finish("max_output_tokens")]


async def test_a_cut_answer_counts_its_tokens() -> None:
    app = hosted(agent_of((WEATHER, Spend(2, 2)), (Say(("Once",)), Stop("length"), Spend(5, 4))))

    response = await create(app)

    assert (response["status"], said(response)) == ("incomplete", "Once")
    assert response["usage"]["total_tokens"] == 13


async def test_a_cut_call_is_not_answered_for() -> None:
    agent = agent_of((begin(0, "a"), grow(0, '{"zo'), Stop("length"), Spend(1, 1)), HELLO)
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    second = await create(app, input="go on", previous_response_id=first["id"])

    assert first["output"][0]["status"] == "incomplete"
    assert said(second) == "Hello there."
    assert model_of(agent).seen[1].calls == []


@pytest.mark.parametrize(
    "step",
    [
        Break("rate_limit_exceeded"),
        Tell({"type": "error", "code": "rate_limit_exceeded", "message": "secret", "param": None}),
    ],
)
async def test_a_models_rate_limit_within_its_stream_is_told(step: Break | Tell) -> None:
    app = hosted(agent_of((step,)), first_event_grace_s=60)

    reply = await creating().run(app)

    assert (reply.status, reply.error_body["code"]) == (429, "rate_limit_exceeded")
    assert b"secret" not in reply.body


async def test_a_models_failure_within_its_stream_is_a_failure() -> None:
    agent = agent_of((Say(("Well",)), Spend(3, 1), Break("server_error")))

    response = await create(hosted(agent))

    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert "secret" not in json.dumps(response)


async def test_a_call_of_a_tool_that_there_is_not_is_a_failure() -> None:
    app = hosted(agent_of((Call("unheard_of", {}, "c"), Spend(1, 1))), first_event_grace_s=60)

    reply = await creating().run(app)

    assert reply.status == 500
    assert b"unheard_of" not in reply.body


async def test_tokens_of_a_turn_that_fails_later_are_counted() -> None:
    app = hosted(agent_of((Say(("Well",)), WEATHER, Spend(3, 1)), (Fail("secret"),)))

    response = await create(app)

    assert (response["status"], response["usage"]["total_tokens"]) == ("failed", 4)


async def test_a_tools_output_that_is_the_answer_is_told() -> None:
    @function_tool
    def place() -> Place:
        return Place(city="Rome")

    @function_tool
    def numbers() -> list[int]:
        return [1, 2]

    @function_tool
    def thing() -> Any:
        return object

    async def answer(tool: Any, output_type: Any = None) -> str:
        call = (Call(tool.name, {}, "c"), Spend(1, 1))
        fields: dict[str, Any] = {"tools": [tool], "tool_use_behavior": "stop_on_first_tool"}
        return text_of(await told(agent_of(call, **fields, output_type=output_type)))

    text_agent = agent_of((WEATHER, Spend(1, 1)), tool_use_behavior="stop_on_first_tool")
    assert text_of(await told(text_agent)) == "sunny"
    assert await answer(place, Place) == '{"city":"Rome"}'
    assert await answer(numbers, list[int]) == "[1,2]"
    assert await answer(thing, list[int]) == str(object)


class Place(BaseModel):
    city: str


# Guardrails.


@input_guardrail
async def suspicious(
    context: RunContextWrapper[Any], agent: Agent[Any], given: Any
) -> GuardrailFunctionOutput:
    is_bad = "bad" in json.dumps(given)
    return GuardrailFunctionOutput(output_info="secret", tripwire_triggered=is_bad)


@output_guardrail
async def careful(
    context: RunContextWrapper[Any], agent: Agent[Any], output: Any
) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info="secret", tripwire_triggered="bad" in str(output))


async def test_an_input_guardrail_ends_the_turn_as_filtered() -> None:
    app = hosted(agent_of(HELLO, HELLO, input_guardrails=[suspicious]))

    good = await create(app, input="good")
    bad = await create(app, input="bad")

    assert good["status"] == "completed"
    assert (bad["status"], bad["incomplete_details"]) == (
        "incomplete",
        {"reason": "content_filter"},
    )


async def test_what_an_output_guardrail_refuses_is_never_told() -> None:
    app = hosted(agent_of((Say(("very ", "bad indeed")), Spend(1, 1)), output_guardrails=[careful]))

    wire = await creating(stream=True).run(app)

    response = wire.events[-1]["response"]
    assert (response["status"], response["output"]) == ("incomplete", [])
    assert response["incomplete_details"] == {"reason": "content_filter"}
    assert b"indeed" not in wire.body  # an id may hold "bad"
    assert b"secret" not in wire.body


async def test_what_an_output_guardrail_has_seen_is_told_when_it_has_passed() -> None:
    script: list[Sequence[Said]] = [
        (Say(("bad",)), WEATHER, Spend(1, 1)),
        (Think(("Hm.",)), *HELLO),
    ]

    events = await told(agent_of(*script, output_guardrails=[careful]))

    assert text_of(events) == "Hello there."
    assert ReasoningDelta("Hm.") in events


async def test_a_tools_output_that_a_guardrail_refuses_is_never_told() -> None:
    @function_tool
    def bad() -> str:
        return "bad"

    agent = agent_of(
        (Call("bad", {}, "c"), Spend(1, 1)),
        tools=[bad],
        output_guardrails=[careful],
        tool_use_behavior="stop_on_first_tool",
    )

    events = await told(agent)

    assert text_of(events) == ""
    assert events[-1] == Finish("content_filter")


async def test_a_guardrail_of_the_configuration_is_one_too() -> None:
    config = RunConfig(output_guardrails=[careful])

    events = await told(agent_of((Say(("bad",)), Spend(1, 1))), run_config=config)

    assert events == [Usage(1, 1), Finish("content_filter")]


# What a model is given.


async def test_options_are_merged_over_the_agents_settings() -> None:
    settings = ModelSettings(
        temperature=0.1, top_p=0.2, reasoning={"effort": "high", "summary": "auto"}
    )
    agent = agent_of(HELLO, model_settings=settings)
    app = hosted(agent)

    await create(
        app,
        max_output_tokens=64,
        top_p=0.9,
        top_logprobs=2,
        truncation="auto",
        reasoning={"effort": "low"},
        text={"verbosity": "low"},
        parallel_tool_calls=False,
    )

    given = model_of(agent).settings[0]
    assert (given.temperature, given.top_p, given.max_tokens) == (0.1, 0.9, 64)
    assert (given.top_logprobs, given.truncation, given.verbosity) == (2, "auto", "low")
    assert given.reasoning is not None
    assert (given.reasoning.effort, given.reasoning.summary) == ("low", "auto")
    assert given.parallel_tool_calls is False
    assert given.store is False


async def test_a_users_own_choice_to_store_stays() -> None:
    agent = agent_of(HELLO, model_settings=ModelSettings(store=True))

    await told(agent)

    assert model_of(agent).settings[0].store is True


async def test_what_the_user_configures_for_runs_wins() -> None:
    agent, model = agent_of(), ScriptedModel([HELLO])
    config = RunConfig(model=model, model_settings=ModelSettings(temperature=0.0))

    await told(agent, turn(options={"temperature": 1.0}), run_config=config)

    assert model.settings[0].temperature == 0.0


@pytest.mark.parametrize("wanted", [PLACE, {"type": "json_object"}])
async def test_the_wanted_form_reaches_the_model_as_it_is(wanted: dict[str, Any]) -> None:
    agent = agent_of((Say(('{"city": "Rome"}',)), Spend(1, 1)))

    response = await create(hosted(agent), text={"format": wanted})

    assert json.loads(said(response)) == {"city": "Rome"}
    assert model_of(agent).seen[0].schema == wanted.get("schema", {"type": "object"})


async def test_an_answer_without_the_wanted_form_is_the_models() -> None:
    app = hosted(agent_of((Say(("Rome",)), Spend(1, 1))))

    response = await create(app, text={"format": PLACE})

    assert (response["status"], said(response)) == ("completed", "Rome")


async def test_the_agents_own_output_type_wins() -> None:
    agent = agent_of((Say(('{"city": "Rome"}',)), Spend(1, 1)), output_type=Place)
    other = {**PLACE, "schema": {"type": "object", "properties": {"town": {"type": "string"}}}}

    response = await create(hosted(agent), text={"format": other})

    assert json.loads(said(response)) == {"city": "Rome"}
    assert "city" in (model_of(agent).seen[0].schema or {})["properties"]


async def test_an_output_that_is_not_of_the_agents_type_is_a_failure() -> None:
    app = hosted(agent_of((Say(('{"town": 1}',)), Spend(1, 1)), output_type=Place))

    response = await create(app)

    assert response["status"] == "failed"


async def test_a_guardrail_is_given_the_wanted_form_as_an_object() -> None:
    seen: list[Any] = []

    @output_guardrail
    async def look(
        context: RunContextWrapper[Any], agent: Agent[Any], output: Any
    ) -> GuardrailFunctionOutput:
        seen.append(output)
        schema = agent.output_type
        assert isinstance(schema, AgentOutputSchemaBase)
        assert (schema.name(), schema.is_strict_json_schema()) == ("place", True)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

    app = hosted(agent_of((Say(('{"city": "Rome"}',)), Spend(1, 1)), output_guardrails=[look]))

    await create(app, text={"format": PLACE})

    assert seen == [{"city": "Rome"}]


async def test_items_of_history_go_without_ids_and_unknown_ones_not_at_all() -> None:
    agent = agent_of(HELLO)
    cited = {"type": "output_text", "text": "one", "annotations": [], "logprobs": []}
    history: list[dict[str, Any]] = [
        {**message("user", "first"), "id": "msg_1", "status": "completed"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aGk="},
        {"type": "message", "id": "msg_2", "role": "assistant", "status": "completed",
         "phase": "final_answer", "content": [cited]},
        {"type": "message", "id": "msg_3", "role": "assistant", "content": []},
        {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "c", "name": "f",
         "arguments": "{}"},
        {"type": "function_call_output", "id": "fco_1", "status": "completed", "call_id": "c",
         "output": "x"},
        {**message("developer", "Be brief."), "id": "msg_4"},
    ]  # fmt: skip

    await told(agent, turn(history=history))

    assert model_of(agent).inputs[0] == [
        message("user", "first"),
        {"type": "message", "role": "assistant", "phase": "final_answer", "content": [cited]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        message("system", "Be brief."),
        message("user", "hi"),
    ]


async def test_the_requests_instructions_follow_those_that_are_made_for_a_run() -> None:
    async def made(context: RunContextWrapper[Any], agent: Agent[Any]) -> str:
        return f"Be kind to {context.context}."

    agent = agent_of(HELLO, HELLO, instructions=made)
    bare = agent_of(HELLO, instructions=None)

    await told(agent, turn(instructions="Be brief."), context=lambda turn: "Ada")
    await told(bare, turn(instructions="Be brief."))

    assert model_of(agent).seen[0].texts[0] == ("system", "Be kind to Ada.\n\nBe brief.")
    assert model_of(bare).seen[0].texts[0] == ("system", "Be brief.")


async def test_with_a_prompt_of_openais_the_requests_instructions_are_a_message() -> None:
    agent = agent_of(HELLO, instructions=None, prompt={"id": "pmpt_1"})

    await told(agent, turn(instructions="Be brief."))

    assert model_of(agent).seen[0].texts == [("system", "Be brief."), ("user", "hi")]


async def test_the_context_is_made_of_the_turn() -> None:
    @function_tool
    def who(context: RunContextWrapper[Any]) -> str:
        return f"It is {context.context}."

    async def make(given: Turn) -> str | None:
        return given.safety_identifier

    agent = agent_of((Call("who", {}, "c"), Spend(1, 1)), HELLO, tools=[who])

    await told(agent, turn(safety_identifier="Ada"), context=make)

    assert ("tool", "It is Ada.") in model_of(agent).seen[1].texts


async def test_a_broken_image_is_the_clients_error() -> None:
    part = {"type": "input_image", "image_url": "data:image/png;base64,%%%"}
    given = turn(input=[{"type": "message", "role": "user", "content": [part]}])

    with pytest.raises(TurnError) as caught:
        await told(agent_of(), given)

    assert (caught.value.status, caught.value.code) == (400, "invalid_base64_image")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [CLOCK], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
async def test_tools_of_other_kinds_than_functions_are_refused(
    fields: dict[str, Any], param: str
) -> None:
    reply = await creating(**fields).run(hosted(agent_of()))

    assert (reply.status, reply.error_body["param"]) == (400, param)


# What is never changed, sent or left behind.


async def test_the_users_agent_is_not_changed() -> None:
    other = agent_of()
    agent = agent_of(HELLO, handoffs=[other])
    before = dict(vars(agent))
    tools, handoffs = [*agent.tools], [*agent.handoffs]

    await told(agent, turn(tools=[CLOCK], instructions="Be brief.", options={"temperature": 1}))

    assert vars(agent) == before
    assert (agent.tools, agent.handoffs) == (tools, handoffs)


async def test_a_factory_makes_an_agent_for_each_turn() -> None:
    made: list[Agent[Any]] = []

    def fresh() -> Agent[Any]:
        made.append(agent_of(HELLO))
        return made[-1]

    agent = adapt(fresh(), fresh)

    for _ in range(2):
        assert text_of([event async for event in agent(ASKED)]) == "Hello there."

    assert len(made) == 3


def test_something_else_of_the_sdk_is_no_agent() -> None:
    with pytest.raises(TypeError, match=r"takes an agents\.Agent, not str"):
        adapt(cast("Any", "agent"))


def test_a_context_that_turns_would_share_is_refused() -> None:
    with pytest.raises(TypeError, match="may not share a context"):
        adapt(agent_of(), context=cast("Any", {"user": "Ada"}))


class Traces(TracingProcessor):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    def on_trace_start(self, trace: Any) -> None: ...

    def on_trace_end(self, trace: Any) -> None: ...

    def on_span_start(self, span: Any) -> None: ...

    def on_span_end(self, span: Any) -> None:
        self.spans.append(span.export())

    def shutdown(self) -> None: ...

    def force_flush(self) -> None: ...


@pytest.fixture
async def traces() -> AsyncIterator[Traces]:
    found = Traces()
    set_trace_processors([found])
    yield found
    set_trace_processors([])


async def test_nothing_is_traced_unless_the_user_asks_for_it(traces: Traces) -> None:
    script: list[Sequence[Said]] = [(WEATHER, Spend(1, 1)), HELLO]
    inner = agent_of(HELLO).as_tool("ask", "Asks.", run_config=RunConfig())

    await told(agent_of(*script), run_config=RunConfig())
    await told(agent_of((Call("ask", {"input": "x"}, "c"), Spend(1, 1)), HELLO, tools=[inner]))
    assert traces.spans == []

    await told(agent_of(*script), tracing=True, run_config=RunConfig())
    assert traces.spans != []
    assert "sunny" not in str(traces.spans)

    await told(agent_of(*script), tracing=True, trace_include_sensitive_data=True)
    assert "sunny" in str(traces.spans)


async def test_a_tool_is_cancelled_with_its_turn() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @function_tool
    async def wait() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(9):
                await asyncio.sleep(0)
            ended.set()
        return "never"

    before = asyncio.all_tasks()
    agent = adapt(agent_of((Say(("Well",)), Call("wait", {}, "c"), Spend(1, 1)), tools=[wait]))
    async with aclosing(cast("Any", agent(ASKED))) as events:
        assert await anext(events) == "Well"
        await asyncio.wait_for(begun.wait(), 30)

    if sys.version_info < (3, 12):  # there it cannot be known which tasks are the turn's
        await asyncio.wait_for(ended.wait(), 30)
        await asyncio.gather(*asyncio.all_tasks() - before, return_exceptions=True)
    assert ended.is_set()
    assert asyncio.all_tasks() == before


async def test_a_turn_that_nobody_reads_any_more_leaves_no_task() -> None:
    wait = Wait()
    before = asyncio.all_tasks()

    async with aclosing(cast("Any", adapt(agent_of((Say(("a", "b")), wait)))(ASKED))) as events:
        assert await anext(events) == "a"
        await asyncio.wait_for(wait.begun.wait(), 30)

    assert wait.ended.is_set()
    assert asyncio.all_tasks() == before


# Its own tools.


async def test_tools_at_the_same_time_are_told_each_by_its_call() -> None:
    calls = [Call("weather", {"city": city}, city) for city in ("Rome", "Nowhere", "Oslo")]
    agent = agent_of((*calls, Spend(1, 1)), HELLO)

    events = await told(agent)

    assert [event.call_id for event in events if isinstance(event, ToolStarted)] == [
        "Rome",
        "Nowhere",
        "Oslo",
    ]
    assert [event for event in events if isinstance(event, ToolFinished)] == [
        ToolFinished("Rome", "sunny"),
        ToolFinished("Nowhere", error="The tool failed."),
        ToolFinished("Oslo", "sunny"),
    ]


async def test_the_users_own_words_for_a_failed_tool_are_kept() -> None:
    config = RunConfig(tool_error_formatter=lambda failure: "Try another city.")
    agent = agent_of((Call("weather", {"city": "Nowhere"}, "c"), Spend(1, 1)), HELLO)

    events = await told(agent, run_config=config)

    assert ToolFinished("c", "Try another city.") in events


@pytest.mark.parametrize(
    ("item", "started", "finished"),
    [
        (
            {
                "type": "web_search_call",
                "status": "completed",
                "action": {"type": "search", "query": "x"},
            },
            ToolStarted("item_0", "web_search", '{"action":{"query":"x","type":"search"}}'),
            ToolFinished("item_0", ""),
        ),
        (
            {
                "type": "file_search_call",
                "status": "completed",
                "queries": ["q"],
                "results": [{"text": "t"}],
            },
            ToolStarted("item_0", "file_search", '{"queries":["q"]}'),
            ToolFinished("item_0", '[{"text":"t"}]'),
        ),
        (
            {
                "type": "code_interpreter_call",
                "status": "failed",
                "code": "1/0",
                "container_id": "c",
            },
            ToolStarted("item_0", "code_interpreter", '{"code":"1/0"}'),
            ToolFinished("item_0", error="The tool failed."),
        ),
        (
            {
                "type": "mcp_call",
                "server_label": "docs",
                "name": "find",
                "arguments": '{"a":1}',
                "output": "found",
            },
            ToolStarted("item_0", "find", '{"a":1}', "docs"),
            ToolFinished("item_0", "found"),
        ),
        (
            {
                "type": "mcp_call",
                "server_label": "docs",
                "name": "find",
                "arguments": "",
                "error": {"type": "http_error", "code": 500, "message": "secret"},
            },
            ToolStarted("item_0", "find", "{}", "docs"),
            ToolFinished("item_0", error="The tool failed."),
        ),
        (
            {"type": "image_generation_call", "status": "failed"},
            ToolStarted("item_0", "image_generation", "{}"),
            ToolFinished("item_0", error="The tool failed."),
        ),
    ],
)
async def test_a_providers_own_tools_are_told_when_they_are_done(
    item: dict[str, Any], started: ToolStarted, finished: ToolFinished
) -> None:
    events = await told(agent_of((Item(item), Say(("Done.",)), Spend(1, 1))))

    tools = [event for event in events if isinstance(event, ToolStarted | ToolFinished)]
    assert (_sorted(tools[0]), tools[1]) == (_sorted(started), finished)


def _sorted(event: AgentEvent) -> Any:
    assert isinstance(event, ToolStarted)
    return event.call_id, event.name, json.loads(event.arguments), event.server_label


async def test_a_tools_output_of_parts_is_told_as_text() -> None:
    @function_tool
    def look() -> Any:
        return [{"type": "text", "text": "a cat"}, {"type": "image", "image_url": "data:,x"}]

    agent = agent_of((Call("look", {}, "c"), Spend(1, 1)), HELLO, tools=[look])

    assert ToolFinished("c", "a cat") in await told(agent)


async def test_kinds_of_a_turn_with_its_tools_shown() -> None:
    app = hosted(agent_of((Say(("Let me see.",)), WEATHER, Spend(1, 1)), HELLO), shows_tools=True)

    assert kinds(await create(app)) == ["message", "mcp_call", "message"]
