"""LangGraph: what of a graph is the answer, each text once; graphs made by hand, and traps."""

import asyncio
import operator
import threading
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.config import get_stream_writer
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Send

from channel.agent import Annotation, Turn
from channel.agents.langgraph import adapt, as_requested, client_tools
from channel.responses.protocol.items import message
from channel.testing import NoResponseError, ask_async
from tests.channel.agents.frameworks.langgraph import (
    SilentModel,
    react_agent,
    scripted_model,
    weather,
)
from tests.channel.agents.langgraph_graphs import (
    CITY,
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
from tests.channel.agents.scripts import Call, Fail, Meet, Say, Spend, Think, Wait


pytestmark = pytest.mark.anyio


async def test_text_streams_and_its_own_tools_run() -> None:
    model = scripted_model([(RAIN, Spend(2, 2)), (Say(("Sun", "ny.")), Spend(5, 4))])

    reply = await ask_async(hand_made(model), "How is it in Rome?")

    assert reply.deltas == ["Sun", "ny."]
    assert [(run.name, run.output) for run in reply.tools] == [("weather", "sunny")]
    assert reply.usage is not None
    assert reply.usage["total_tokens"] == 13


async def test_a_tool_of_the_clients_goes_to_it_and_comes_back() -> None:
    model = scripted_model([(NOON,), *says("It is noon.")])

    first = await ask_async(hand_made(model), "When?", tools=[CLOCK])
    second = await first.give_async("12:00")

    assert (kinds(first), second.text) == (["function_call"], "It is noon.")
    assert model.seen[0].tools == ["weather", "clock"]
    assert model.seen[1].calls == [("call_1", "clock")]
    assert ("tool", "12:00") in model.seen[1].texts


async def test_the_arguments_of_a_call_stream() -> None:
    model = scripted_model([(NOON,)])

    reply = await ask_async(hand_made(model), "When?", tools=[CLOCK])

    deltas = [e["delta"] for e in reply.events if e["type"].endswith("arguments.delta")]
    assert deltas == ['{"z', 'one": "UTC"}']


async def test_the_answer_has_the_form_that_the_client_asks_for() -> None:
    model = scripted_model(says('{"city": "Rome"}'))

    reply = await ask_async(hand_made(model), "Where?", text=PLACE)

    assert reply.text == '{"city": "Rome"}'
    assert model.seen[0].schema == {**CITY, "title": "place"}


async def test_a_model_without_json_answers_by_a_tool_which_ends_the_turn() -> None:
    call = Call("give_place", {"city": "Rome"}, "call_1")
    model = scripted_model([(RAIN,), (call, Spend(1, 1))], profile={})

    reply = await ask_async(hand_made(model), "Where?", text=PLACE)

    assert (reply.text, reply.deltas) == ('{"city": "Rome"}', ['{"c', 'ity": "Rome"}'])
    assert model.seen[0].tools == ["weather", "give_place"]
    assert [each["tool_choice"] for each in model.play.calls] == ["any", "any"]
    assert kinds(reply) == ["message"]


async def test_a_graph_that_binds_the_clients_tools_itself_needs_no_wrapper() -> None:
    model = scripted_model([(NOON,), (NOON,)])

    async def helped(state: MessagesState) -> Any:
        bound = model.bind_tools([weather, *client_tools()])
        return {"messages": [await bound.ainvoke(state["messages"])]}

    async def configured(state: MessagesState, config: RunnableConfig) -> Any:
        bound = model.bind_tools([weather, *config["configurable"]["client_tools"]])
        return {"messages": [await bound.ainvoke(state["messages"])]}

    for node in (helped, configured):
        reply = await ask_async(one_node(node), "When?", tools=[CLOCK])
        assert [call.name for call in reply.calls] == ["clock"]
    assert model.seen[1].tools == ["weather", "clock"]
    assert client_tools() == []


async def test_a_synchronous_node_works_in_its_thread() -> None:
    threads: list[int] = []
    model = scripted_model([(Say(("Hel", "lo.")),), (NOON,)])
    bound = as_requested(model)

    def node(state: MessagesState) -> Any:
        threads.append(threading.get_ident())
        return {"messages": [bound.invoke(state["messages"])]}

    reply = await ask_async(one_node(node), "hi", temperature=0.5)
    other = await ask_async(one_node(node), "hi", tools=[CLOCK])

    assert reply.deltas == ["Hel", "lo."]
    assert [call.name for call in other.calls] == ["clock"]
    assert threading.get_ident() not in threads
    assert model.seen[0].temperature == 0.5


async def test_a_model_that_does_not_stream_is_told_whole() -> None:
    model = scripted_model([(Say(("Hel", "lo.")), Spend(2, 1)), (NOON,)], SilentModel)
    agent = hand_made(model)

    reply = await ask_async(agent, "hi")
    other = await ask_async(agent, "hi", tools=[CLOCK])

    assert reply.deltas == ["Hello."]
    assert [call.arguments for call in other.calls] == [{"zone": "UTC"}]


async def test_a_node_that_returns_the_history_as_well() -> None:
    model = scripted_model(says("one", "two"))

    async def node(state: MessagesState) -> Any:
        said = await model.ainvoke(state["messages"])
        return {"messages": [*state["messages"], said]}

    first = await ask_async(one_node(node), "hi")
    second = await first.ask_async("and?")

    assert (first.text, second.text) == ("one", "two")


async def test_a_node_that_returns_a_copy_of_what_was_said() -> None:
    model = scripted_model(says("Hello."))

    async def node(state: MessagesState) -> Any:
        said = await model.ainvoke(state["messages"])
        return {"messages": [AIMessage(said.content)]}

    assert (await ask_async(one_node(node), "hi")).text == "Hello."


async def test_a_node_that_adds_to_what_was_said() -> None:
    model = scripted_model(says("Hello."))

    async def node(state: MessagesState) -> Any:
        said = await model.ainvoke(state["messages"])
        return {"messages": [AIMessage(f"{said.content} Bye.", id=said.id)]}

    assert (await ask_async(one_node(node), "hi")).text == "Hello. Bye."


@pytest.mark.parametrize(
    "message",
    [AIMessage("Hello."), {"role": "assistant", "content": "Hello."}, ("ai", "Hello.")],
)
async def test_a_message_that_no_model_made_is_told(message: Any) -> None:
    for left in (message, [message]):
        reply = await ask_async(one_node(lambda _, left=left: {"messages": left}), "hi")
        assert reply.text == "Hello."


async def test_a_state_whose_messages_are_something_else_is_let_alone() -> None:
    class Notes(TypedDict):
        messages: list[Any]

    def node(_: Notes) -> Any:
        return {"messages": [{"note": 1}, AIMessage("Hello.")]}

    assert (await ask_async(one_node(node, state=Notes), "hi")).text == "Hello."


async def test_messages_by_commands_are_told() -> None:
    def node(_: MessagesState) -> Command[Any]:
        return Command(update={"messages": [AIMessage("Hello.")]}, goto=END)

    assert (await ask_async(one_node(node), "hi")).text == "Hello."


async def test_nodes_that_speak_at_the_same_time_do_so_one_after_another() -> None:
    meet = Meet(asyncio.Barrier(2))
    model = scripted_model([(Say(("a", "b")), meet, Say(("c",)))] * 2)
    graph = StateGraph(MessagesState)
    for name in ("left", "right"):
        graph.add_node(name, calls_model(model))
        graph.add_edge(START, name)
    graph.add_node("last", lambda _: {"messages": AIMessage("d")})
    graph.add_edge(["left", "right"], "last")

    assert (await ask_async(graph.compile(), "hi")).text == "abcabcd"


async def test_the_last_speaker_is_told_whoever_came_first() -> None:
    slow, wait = scripted_model([(Say(("slow",)),)]), asyncio.Event()
    quick = scripted_model(says("quick"))

    async def left(state: MessagesState) -> Any:
        await wait.wait()
        return {"messages": [await slow.ainvoke(state["messages"])]}

    async def right(state: MessagesState) -> Any:
        said = await quick.ainvoke(state["messages"])
        wait.set()
        return {"messages": [said]}

    graph = StateGraph(MessagesState)
    for name, node in (("left", left), ("right", right)):
        graph.add_node(name, node)
        graph.add_edge(START, name)

    assert (await ask_async(graph.compile(), "hi")).text == "quickslow"


async def test_what_a_subgraph_says_inside_is_not_the_answer() -> None:
    inner, outer = scripted_model(says("I think...", "Found.")), scripted_model(says("Done."))
    research = row(("think", calls_model(inner)), ("look", calls_model(inner)))

    async def ask_research(state: MessagesState) -> Any:
        await research.ainvoke(state)
        return {}

    agent = row(("research", ask_research), ("writer", calls_model(outer)))

    reply = await ask_async(agent, "hi")

    assert reply.text == "Done."


async def test_what_a_subgraph_leaves_in_the_state_is_told() -> None:
    inner, outer = scripted_model(says("Found.")), scripted_model(says(" Done."))
    agent = row(("research", one_node(calls_model(inner))), ("writer", calls_model(outer)))

    reply = await ask_async(agent, "hi")

    assert reply.text == "Found. Done."


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        (["writer"], "Done."),
        (["research"], "Found."),
        (["research/speaker"], "Found."),
        (["research/nobody"], ""),
        (["writer", "research/speaker"], "Found.Done."),
    ],
)
async def test_nodes_that_are_named_speak(nodes: list[str], text: str) -> None:
    inner, outer = scripted_model(says("Found.")), scripted_model(says("Done."))
    agent = row(
        ("research", one_node(calls_model(inner))),
        ("note", lambda _: {"messages": AIMessage("(a note)")}),
        ("writer", calls_model(outer)),
    )

    reply = await ask_async(adapt(agent, nodes=nodes), "hi")

    assert reply.text == text


async def test_an_unknown_node_stops_the_start() -> None:
    agent = hand_made(scripted_model([]))

    with pytest.raises(TypeError, match=r"the graph has the nodes \['assistant', 'tools'\]"):
        adapt(agent, nodes=["asistant"])
    with pytest.raises(TypeError):
        adapt(agent, nodes="assistant")


async def test_a_model_that_a_tool_asks_is_not_heard_but_counted() -> None:
    inner = scripted_model([(Say(("psst",)), Spend(10, 10))])
    expert = one_node(calls_model(scripted_model([(Say(("hm",)), Spend(100, 100))])))

    @tool
    async def oracle(question: str) -> str:
        """Knows."""
        await expert.ainvoke({"messages": [HumanMessage(question)]})
        return str((await inner.ainvoke(question)).content)

    call = Call("oracle", {"question": "why?"}, "call_1")
    model = scripted_model([(call, Spend(1, 1)), (Say(("Because.",)), Spend(1, 1))])

    reply = await ask_async(react_agent(model, [oracle]), "hi")

    assert reply.text == "Because."
    assert [run.output for run in reply.tools] == ["psst"]
    assert reply.usage is not None
    assert reply.usage["total_tokens"] == 224


async def test_a_call_that_is_tagged_nostream_is_not_heard() -> None:
    model = scripted_model(says("billing", "Pay here."))

    async def node(state: MessagesState) -> Any:
        await model.ainvoke(state["messages"], {"tags": ["nostream"]})
        return {"messages": [await model.ainvoke(state["messages"])]}

    assert (await ask_async(one_node(node), "hi")).text == "Pay here."


async def test_a_graphs_own_structured_output_is_not_heard() -> None:
    route = Call("Route", {"to": "billing"}, "call_1")
    model = scripted_model([(route,), *says("Pay here.")])

    async def node(state: MessagesState) -> Any:
        schema = {"title": "Route", "type": "object", "properties": {"to": {"type": "string"}}}
        found = await model.with_structured_output(schema).ainvoke(state["messages"])
        assert found == {"to": "billing"}
        return {"messages": [await model.ainvoke(state["messages"])]}

    assert (await ask_async(one_node(node), "hi")).text == "Pay here."


async def test_tasks_of_a_functional_graph_speak() -> None:
    model = scripted_model(says("Hello."))

    @task
    async def ask(messages: Any) -> Any:
        return await model.ainvoke(messages)

    @entrypoint()
    async def flow(messages: Any) -> Any:
        return [await ask(messages)]

    reply = await ask_async(adapt(flow, to_input=lambda _, messages: messages), "hi")

    assert (reply.text, model.seen[0].texts) == ("Hello.", [("user", "hi")])


async def test_a_node_can_say_agent_events_itself() -> None:
    note = {"type": "url_citation", "url": "https://a.example", "title": "A"}

    def node(_: MessagesState) -> Any:
        write = get_stream_writer()
        write({"progress": 1})
        write(Annotation({**note, "start_index": 0, "end_index": 0}))
        return {"messages": AIMessage("Hello.")}

    reply = await ask_async(one_node(node), "hi")

    assert reply.text == "Hello."
    assert reply.output[0]["content"][0]["annotations"][0]["url"] == "https://a.example"


async def test_a_failing_tool_that_the_graph_handles_tells_nothing() -> None:
    call = Call("weather", {"city": "Nowhere"}, "call_1")
    model = scripted_model([(call,), *says("No idea.")])
    graph = StateGraph(MessagesState)
    graph.add_node("assistant", calls_model(model.bind_tools([weather])))
    graph.add_node("tools", ToolNode([weather], handle_tool_errors=True))
    graph.add_edge(START, "assistant")
    graph.add_conditional_edges("assistant", tools_condition)
    graph.add_edge("tools", "assistant")

    reply = await ask_async(graph.compile(), "hi")

    assert [(run.output, run.error) for run in reply.tools] == [(None, "The tool failed.")]
    assert any("secret" in text for role, text in model.seen[1].texts if role == "tool")


async def test_errors_of_a_provider_say_what_they_are() -> None:
    class TooManyError(Exception):
        status_code = 429

    def node(_: MessagesState) -> Any:
        raise TooManyError("secret")

    with pytest.raises(NoResponseError) as failed:
        await ask_async(one_node(node), "hi")

    assert (failed.value.status, failed.value.code) == (429, "rate_limit_exceeded")


async def test_text_before_a_failure_is_told() -> None:
    agent = hand_made(scripted_model([(RAIN,), (Say(("Well, ",)), Fail("secret"))]))

    reply = await ask_async(agent, "hi")

    assert (reply.status, reply.text) == ("failed", "Well, ")


async def test_reasoning_that_led_to_a_hidden_tool_brings_nothing_back() -> None:
    script = [(Think(("Hm.",), "one"), RAIN), (Think(("S", "o."), "two"), *HELLO), HELLO]
    model = scripted_model(script)

    first = await ask_async(hand_made(model), "hi")
    await first.ask_async("and?")

    thoughts = [item for item in first.output if item["type"] == "reasoning"]
    assert [part["text"] for item in thoughts for part in item["summary"]] == ["Hm.", "So."]
    answer = model.play.inputs[2][1].content
    assert isinstance(answer, list)
    assert answer[0] == {"type": "thinking", "thinking": "So.", "signature": "two"}


PROMPT = ChatPromptTemplate.from_messages([MessagesPlaceholder("messages")])


@pytest.mark.parametrize("made", [hand_made, as_requested, PROMPT.__or__])
async def test_a_turn_that_is_closed_leaves_nothing_running(made: Callable[[Any], Any]) -> None:
    wait = Wait()
    agent = adapt(made(scripted_model([(Say(("a",)), wait)])))
    events: Any = agent(Turn(input=[message("user", "hi")]))

    assert await anext(events) == "a"
    await wait.begun.wait()
    await events.aclose()

    assert wait.ended.is_set()


async def test_send_runs_a_node_several_times() -> None:
    model = scripted_model(says("a", "b"))

    async def work(state: Any) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    class State(MessagesState):
        done: Annotated[list[str], operator.add]

    graph = StateGraph(State)
    graph.add_node("work", work)
    graph.add_conditional_edges(START, lambda state: [Send("work", state)] * 2)

    assert sorted((await ask_async(graph.compile(), "hi")).text) == ["a", "b"]


async def test_images_of_the_web_are_refused_unless_the_model_takes_them_itself() -> None:
    model = scripted_model([HELLO])
    content = [{"type": "input_image", "image_url": "https://a.example/cat.png"}]
    message = [{"role": "user", "content": content}]

    with pytest.raises(NoResponseError) as refused:
        await ask_async(hand_made(model), message)
    await ask_async(adapt(hand_made(model), takes_urls=True), message)

    assert (refused.value.status, refused.value.code) == (400, "invalid_image_url")
    assert model.play.inputs[0][0].content == [
        {"type": "image", "url": "https://a.example/cat.png"}
    ]


async def test_a_remote_graph_stops_the_start() -> None:
    from langgraph.pregel.remote import RemoteGraph  # noqa: PLC0415 - slow

    with pytest.raises(TypeError, match="RemoteGraph; only a graph of this process"):
        adapt(RemoteGraph("agent", url="http://127.0.0.1:1"))


async def test_tracing_is_not_turned_on() -> None:
    handlers: list[str] = []

    def node(_: MessagesState, config: RunnableConfig) -> Any:
        manager: Any = config["callbacks"]
        handlers.extend(type(each).__name__ for each in manager.handlers)
        return {"messages": AIMessage("Hello.")}

    await ask_async(one_node(node), "hi")

    assert "Listener" in handlers
    assert "LangChainTracer" not in handlers
