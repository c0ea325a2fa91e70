"""LangGraph: the client's tools, tool_choice and JSON formats in graphs, and limits."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, ToolCall, ToolCallChunk
from langchain_core.tools import tool
from langgraph.graph import MessagesState

from channel.agents.langgraph import adapt, as_requested, client_tools
from channel.testing import NoResponseError, ask_async
from tests.channel.agents.frameworks.langgraph import (
    Chunk,
    ScriptedModel,
    react_agent,
    scripted_model,
)
from tests.channel.agents.langgraph_graphs import (
    CLOCK,
    HELLO,
    NOON,
    PLACE,
    RAIN,
    calls_model,
    hand_made,
    kinds,
    one_node,
    row,
    says,
)
from tests.channel.agents.scripts import Call, Say, Stop, Wait


pytestmark = pytest.mark.anyio


async def test_a_graph_that_was_not_told_of_them_refuses_them() -> None:
    model = scripted_model([HELLO, HELLO])
    agent = react_agent(model)

    with pytest.raises(NoResponseError) as refused:
        await ask_async(agent, "When?", tools=[CLOCK])
    reply = await ask_async(agent, "When?", tools=[CLOCK], tool_choice="none")

    assert (refused.value.status, refused.value.param) == (400, "tools")
    assert reply.text == "Hello there."


async def test_a_node_that_hides_errors_does_not_hide_that() -> None:
    model = scripted_model([(Wait(),)])

    async def node(state: MessagesState) -> Any:
        try:
            return {"messages": [await model.ainvoke(state["messages"])]}
        except asyncio.CancelledError:
            return {"messages": [AIMessage("Sorry.")]}

    with pytest.raises(NoResponseError) as refused:
        await ask_async(one_node(node), "When?", tools=[CLOCK])

    assert (refused.value.status, refused.value.param) == (400, "tools")


async def test_a_planner_without_them_may_think_where_it_does_not_speak() -> None:
    planner, model = scripted_model(says("Plan.")), scripted_model([(NOON,)])
    agent = row(("plan", calls_model(planner)), ("act", calls_model(as_requested(model))))

    reply = await ask_async(adapt(agent, nodes=["act"]), "When?", tools=[CLOCK])

    assert kinds(reply) == ["function_call"]


async def test_a_json_format_is_refused_where_no_model_is_told_of_it() -> None:
    with pytest.raises(NoResponseError) as refused:
        await ask_async(react_agent(scripted_model([HELLO])), "Where?", text=PLACE)

    assert (refused.value.status, refused.value.param) == (400, "text.format")


async def test_a_tool_choice_is_refused_where_no_model_is_told_of_it() -> None:
    model = scripted_model([HELLO])

    async def node(state: MessagesState) -> Any:
        bound = model.bind_tools(client_tools())
        return {"messages": [await bound.ainvoke(state["messages"])]}

    with pytest.raises(NoResponseError) as refused:
        await ask_async(one_node(node), "When?", tools=[CLOCK], tool_choice="required")

    assert (refused.value.status, refused.value.param) == (400, "tool_choice")


async def test_a_name_that_one_of_its_own_tools_has_is_refused() -> None:
    agent = react_agent(as_requested(scripted_model([HELLO])))

    with pytest.raises(NoResponseError) as refused:
        await ask_async(agent, "hi", tools=[{**CLOCK, "name": "weather"}])

    assert (refused.value.status, refused.value.param) == (400, "tools")
    assert "weather" in refused.value.message


@pytest.mark.parametrize(
    ("choice", "bound"),
    [
        ("required", "any"),
        ({"type": "function", "name": "clock"}, "clock"),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "clock"}],
            },
            "any",
        ),
    ],
)
async def test_a_choice_counts_until_a_tool_was_called(choice: Any, bound: str) -> None:
    model = scripted_model([(RAIN,), (NOON,)])
    agent = react_agent(as_requested(model))

    reply = await ask_async(agent, "When?", tools=[CLOCK], tool_choice=choice)

    assert [call.name for call in reply.calls] == ["clock"]
    assert [each.get("tool_choice") for each in model.play.calls] == [bound, None]


async def test_only_permitted_functions_are_offered() -> None:
    model = scripted_model([HELLO])
    other = {**CLOCK, "name": "calendar"}
    choice = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "calendar"}],
    }

    agent = react_agent(as_requested(model))
    await ask_async(agent, "When?", tools=[CLOCK, other], tool_choice=choice)

    assert model.seen[0].tools == ["weather", "calendar"]


async def test_one_call_at_a_time_reaches_a_model_that_knows_of_it() -> None:
    class Careful(ScriptedModel):
        def bind_tools(
            self, tools: Any, *, parallel_tool_calls: bool | None = None, **kwargs: Any
        ) -> Any:
            return super().bind_tools(tools, parallel=parallel_tool_calls, **kwargs)

    two = (NOON, Call("clock", {"zone": "CET"}, "call_9"))
    careful, careless = scripted_model([two], Careful), scripted_model([two])

    for model in (careful, careless):
        agent = react_agent(as_requested(model))
        reply = await ask_async(agent, "?", tools=[CLOCK], parallel_tool_calls=False)
        assert len(reply.calls) == 1
    assert careful.play.calls[0]["parallel"] is False


async def test_its_own_tools_do_not_run_beside_a_call_of_the_clients() -> None:
    ran = []

    @tool
    def write(text: str) -> str:
        """Writes."""
        ran.append(text)
        return "written"

    own = Call("write", {"text": "x"}, "call_2")
    model = scripted_model([(own, NOON), *says("Noon.")])
    agent = react_agent(as_requested(model), [write])

    first = await ask_async(agent, "When?", tools=[CLOCK])
    second = await first.give_async("12:00")

    assert ([call.name for call in first.calls], ran) == (["clock"], [])
    assert (list(first.tools), second.text) == ([], "Noon.")
    assert model.seen[1].calls == [("call_1", "clock")]


async def test_a_call_from_within_a_subgraph_ends_the_turn_as_well() -> None:
    after: list[Any] = []
    model = scripted_model([(Say(("Hm. ",)), RAIN), (Say(("inside",)), NOON)])
    worker = react_agent(as_requested(model))

    async def work(state: MessagesState) -> Any:
        return await worker.ainvoke(state)

    for node in (worker, work):
        model.play.script = iter([(Say(("Hm. ",)), RAIN), (Say(("inside",)), NOON)])
        agent = row(("worker", node), ("after", after.append))
        reply = await ask_async(agent, "When?", tools=[CLOCK])
        assert (kinds(reply), reply.text) == (["function_call"], "")
    assert after == []


async def test_several_calls_that_a_model_writes_at_the_same_time() -> None:
    def piece(
        index: int, args: str, name: str | None = None, call_id: str | None = None
    ) -> AIMessageChunk:
        chunk = ToolCallChunk(name=name, id=call_id, args=args, index=index)
        return AIMessageChunk(content="", tool_call_chunks=[chunk])

    script = Chunk(
        (
            piece(0, "", "clock", "call_1"),
            piece(1, "", "clock", "call_2"),
            piece(0, '{"zone": '),
            piece(1, '{"zone": "CET"}'),
            piece(0, '"UTC"}'),
            piece(2, "", "clock", "call_3"),
        )
    )
    agent = react_agent(as_requested(scripted_model([(script,)])))

    reply = await ask_async(agent, "When?", tools=[CLOCK])

    calls = [(call.call_id, call.arguments) for call in reply.calls]
    assert calls == [("call_1", {"zone": "UTC"}), ("call_2", {"zone": "CET"}), ("call_3", {})]


async def test_a_call_that_a_node_wrote_itself() -> None:
    call = ToolCall(name="clock", args={"zone": "UTC"}, id="call_1")
    ran: list[Any] = []

    def node(_: MessagesState) -> Any:
        return {"messages": AIMessage("Let me see.", tool_calls=[call])}

    agent = row(("speaker", node), ("after", ran.append))

    reply = await ask_async(agent, "When?", tools=[CLOCK])

    assert (kinds(reply), ran) == (["message", "function_call"], [])


async def test_too_many_steps_make_the_response_incomplete() -> None:
    model = scripted_model([(Say(("Again. ",)), RAIN)] * 9)
    agent = hand_made(model).with_config(recursion_limit=4)

    reply = await ask_async(agent, "hi")

    assert (reply.status, reply.text) == ("incomplete", "Again. Again. ")
    assert reply.response["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_only_the_last_call_counts() -> None:
    agent = hand_made(scripted_model([(RAIN, Stop("length")), *says("Sunny.")]))

    assert (await ask_async(agent, "hi")).status == "completed"


async def test_a_call_that_was_cut_off_is_not_told_as_a_whole_one() -> None:
    cut = ToolCallChunk(name="clock", id="call_2", args='{"zone": "C', index=1)
    script = (
        NOON,
        Chunk((AIMessageChunk(content="", tool_call_chunks=[cut]),)),
        Stop("length"),
    )
    agent = react_agent(as_requested(scripted_model([script])))

    reply = await ask_async(agent, "When?", tools=[CLOCK])

    assert (reply.status, [call.call_id for call in reply.calls]) == ("incomplete", ["call_1"])


async def test_the_prebuilt_agents_own_excuse_is_told() -> None:
    model = scripted_model([(RAIN,)] * 9)
    agent = react_agent(model).with_config(recursion_limit=4)

    assert "need more steps" in (await ask_async(agent, "hi")).text
