"""LangGraph: graphs whose checkpointer keeps the history, and what they stop for."""

import operator
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from channel.agents.langgraph import adapt, as_requested
from channel.testing import NoResponseError, Reply, ask_async
from tests.channel.agents.frameworks.langgraph import ScriptedModel, react_agent, scripted_model
from tests.channel.agents.langgraph_graphs import (
    CLOCK,
    HELLO,
    NOON,
    PLACE,
    RAIN,
    hand_made,
    kinds,
    one_node,
    row,
    says,
)
from tests.channel.agents.scripts import Call, Fail, Say


pytestmark = pytest.mark.anyio


def keeping(graph: Any, **options: Any) -> Any:
    return adapt(graph, history_source="agent", **options)


def talk(model: ScriptedModel) -> list[str]:
    """Return the texts of the last model call's messages."""
    return [text for _, text in model.seen[-1].texts]


class Counting(MessagesState):
    turns: Annotated[int, operator.add]


def counting(saver: Any = None) -> Any:
    """Return a graph that counts its turns in its own state."""

    def node(state: Counting) -> Any:
        return {"messages": AIMessage(f"turn {state.get('turns', 0)}"), "turns": 1}

    return one_node(node, state=Counting, checkpointer=saver or InMemorySaver())


async def test_a_turn_goes_on_from_the_state_of_the_one_before() -> None:
    agent = keeping(counting())

    first = await ask_async(agent, "hi")
    second = await first.ask_async("hi")
    third = await second.ask_async("hi")

    assert [reply.text for reply in (first, second, third)] == ["turn 0", "turn 1", "turn 2"]


async def test_a_fork_goes_on_from_its_own_past() -> None:
    agent = keeping(counting())

    first = await ask_async(agent, "hi")
    left = await first.ask_async("left")
    right = await first.ask_async("right")
    after = await left.ask_async("hi")

    assert [reply.text for reply in (left, right, after)] == ["turn 1", "turn 1", "turn 2"]


async def test_a_turn_that_failed_leaves_nothing_behind() -> None:
    model = scripted_model([*says("one"), (Say(("Well, ",)), Fail("secret")), *says("three")])
    agent = keeping(hand_made(model, checkpointer=InMemorySaver()))

    first = await ask_async(agent, "first")
    failed = await first.ask_async("second")
    again = await first.ask_async("second")

    assert (failed.status, again.text) == ("failed", "three")
    assert talk(model) == ["first", "one", "second"]


async def test_the_graph_knows_more_than_the_host() -> None:
    model = scripted_model([(RAIN,), *says("Sunny.", "Yes.")])
    agent = keeping(hand_made(model, checkpointer=InMemorySaver()))

    first = await ask_async(agent, "How is it?")
    await first.ask_async("Really?")

    assert talk(model) == ["How is it?", "sunny", "Sunny.", "Really?"]


async def test_tools_of_the_client_go_around() -> None:
    model = scripted_model([(RAIN, NOON), *says("Noon.", "Yes.")])
    agent = keeping(hand_made(model, checkpointer=InMemorySaver()))

    first = await ask_async(agent, "When?", tools=[CLOCK])
    second = await first.give_async("12:00")
    await second.ask_async("Really?")

    assert model.seen[1].calls == [("call_1", "clock")]
    assert talk(model) == ["When?", "12:00", "Noon.", "Really?"]


async def test_an_answer_by_a_tool_is_text_afterwards() -> None:
    model = scripted_model(
        [(Call("give_place", {"city": "Rome"}, "call_1"),), *says("Yes.")], profile={}
    )
    agent = keeping(hand_made(model, checkpointer=InMemorySaver()))

    first = await ask_async(agent, "Where?", text=PLACE)
    await first.ask_async("Really?", text={"format": {"type": "text"}})

    assert talk(model) == ["Where?", '{"city": "Rome"}', "Really?"]
    assert model.seen[1].calls == []


async def test_open_calls_are_taken_out_of_content_too() -> None:
    blocks = [
        {"type": "text", "text": "Hm."},
        {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
    ]
    call: Any = {"name": "weather", "args": {}, "id": "call_2"}

    def node(state: MessagesState) -> Any:
        seen.append(state["messages"])
        return {"messages": AIMessage(blocks, tool_calls=[call])}  # type: ignore[arg-type] # a list of dicts

    seen: list[Any] = []
    agent = keeping(one_node(node, checkpointer=InMemorySaver()))

    await (await ask_async(agent, "hi")).ask_async("and?")

    assert seen[1][1].content == [{"type": "text", "text": "Hm."}]
    assert seen[1][1].tool_calls == []


async def test_instructions_are_those_of_the_turn() -> None:
    model = scripted_model(says("one", "two", "three"))
    agent = keeping(react_agent(model, checkpointer=InMemorySaver()))

    first = await ask_async(agent, "a", instructions="Be brief.")
    second = await first.ask_async("b", instructions="Be long.")
    third = await second.ask_async("c", instructions=None)

    systems = [[text for role, text in seen.texts if role == "system"] for seen in model.seen]
    assert systems == [["Be kind.", "Be brief."], ["Be kind.", "Be long."], ["Be kind."]]
    assert third.text == "three"


async def test_the_hosts_history_stands_in_for_a_checkpoint_that_is_gone() -> None:
    saver = InMemorySaver()
    model = scripted_model(says("one", "two"))
    agent = keeping(hand_made(model, checkpointer=saver))

    first = await ask_async(agent, "first")
    for thread in {each.config["configurable"]["thread_id"] for each in saver.list(None)}:
        saver.delete_thread(thread)
    await first.ask_async("second")

    assert talk(model) == ["first", "one", "second"]


async def test_the_hosts_history_stands_in_where_it_holds_more() -> None:
    model = scripted_model(says("one", "two", "three"))
    graph = hand_made(model, checkpointer=InMemorySaver())
    kept, unkept = keeping(graph), adapt(graph)

    async def either(turn: Any) -> Any:
        agent = unkept if turn.text == "second" else kept
        async for event in agent(turn):
            yield event

    def reply_by(turn: Any) -> Any:
        return either(turn)

    first = await ask_async(reply_by, "first")
    second = await first.ask_async("second")
    await second.ask_async("third")

    assert talk(model) == ["first", "one", "second", "two", "third"]


async def test_a_call_from_within_a_subgraph_goes_on_with_the_hosts_history() -> None:
    model = scripted_model([(NOON,), *says("Noon.")])
    worker = react_agent(as_requested(model))
    agent = keeping(row(("worker", worker), checkpointer=InMemorySaver()))

    first = await ask_async(agent, "When?", tools=[CLOCK])
    second = await first.give_async("12:00")

    assert second.text == "Noon."
    assert talk(model) == ["Be kind.", "When?", "12:00"]


async def test_tenants_never_share_a_thread() -> None:
    saver = InMemorySaver()
    agent = keeping(counting(saver))

    await ask_async(agent, "hi")
    await ask_async(agent, "hi")

    threads = {each.config["configurable"]["thread_id"] for each in saver.list(None)}
    assert len(threads) == 2


async def test_an_agent_without_a_checkpointer_stops_the_start() -> None:
    for target in (hand_made(scripted_model([])), scripted_model([])):
        with pytest.raises(TypeError, match="compiled with a checkpointer"):
            keeping(target)
    with pytest.raises(TypeError, match="it is 'host' or 'agent'"):
        adapt(counting(), history_source="service")  # type: ignore[arg-type] # that is the point


# What a graph stops for.


def approving(value: Any) -> Any:
    """Return a graph that asks before it answers."""

    def node(_: MessagesState) -> Any:
        decision = interrupt(value)
        return {"messages": AIMessage(f"You said {decision}.")}

    return keeping(one_node(node, checkpointer=InMemorySaver()))


def approval(request: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": request["id"], **fields}


def requests_of(reply: Reply) -> list[Any]:
    return [item for item in reply.output if item["type"] == "mcp_approval_request"]


ACTIONS = {
    "action_requests": [
        {"name": "write", "args": {"path": "a"}},
        {"name": "send", "args": {"to": "b"}},
    ],
    "review_configs": [],
}


async def test_a_question_is_asked_in_text_and_answered_by_the_next_message() -> None:
    first = await ask_async(approving("Really?"), "hi")
    second = await first.ask_async("yes")
    other = await first.ask_async("no")

    assert (first.status, first.text) == ("completed", "Really?")
    assert (second.text, other.text) == ("You said yes.", "You said no.")


async def test_approvals_are_asked_for_and_given() -> None:
    first = await ask_async(approving(ACTIONS), "hi")
    write, send = requests_of(first)
    second = await first.ask_async(
        [approval(send, approve=False, reason="Too soon."), approval(write, approve=True)]
    )

    assert (write["name"], write["arguments"]) == ("write", '{"path": "a"}')
    assert "'decisions': [{'type': 'approve'}, {'type': 'reject'" in second.text
    assert "Too soon." in second.text


async def test_an_approval_of_one_call() -> None:
    asked = {"type": "tool_approval", "name": "write", "args": {"path": "a"}, "tool_call_id": "c"}

    first = await ask_async(approving(asked), "hi")
    second = await first.ask_async([approval(requests_of(first)[0], approve=True)])

    assert second.text == "You said {'type': 'approve'}."


async def test_a_message_in_place_of_an_approval_goes_on_without_it() -> None:
    agent = approving(ACTIONS)

    first = await ask_async(agent, "hi")
    second = await first.ask_async("never mind")

    assert len(requests_of(second)) == 2


@pytest.mark.parametrize(
    "answers",
    [
        lambda write, _: [approval(write, approve=True)],
        lambda write, send: [approval(each, approve=True) for each in (write, send, {"id": "x"})],
        lambda write, send: [
            *(approval(each, approve=True) for each in (write, send)),
            {"role": "user", "content": "and?"},
        ],
    ],
)
async def test_approvals_that_do_not_fit_are_refused(answers: Any) -> None:
    first = await ask_async(approving(ACTIONS), "hi")

    with pytest.raises(NoResponseError) as refused:
        await first.ask_async(answers(*requests_of(first)))

    assert (refused.value.status, refused.value.param) == (400, "input")


async def test_an_approval_that_nothing_waits_for_is_refused() -> None:
    first = await ask_async(keeping(counting()), "hi")

    for ask in (first.ask_async, lambda items: ask_async(keeping(counting()), items)):
        with pytest.raises(NoResponseError) as refused:
            await ask([approval({"id": "mcpr_x"}, approve=True)])
        assert (refused.value.status, refused.value.param) == (400, "input")


async def test_a_question_that_nobody_answers_is_refused() -> None:
    first = await ask_async(approving("Really?"), "hi", tools=[CLOCK], tool_choice="none")

    with pytest.raises(NoResponseError) as refused:
        await first.ask_async([{"role": "developer", "content": "Be brief."}])

    assert (refused.value.status, refused.value.param) == (400, "input")


async def test_two_questions_at_once_fail() -> None:
    def asks(_: MessagesState) -> Any:
        interrupt("Really?")

    graph: Any = StateGraph(MessagesState)
    for name in ("left", "right"):
        graph.add_node(name, asks)
        graph.add_edge(START, name)
        graph.add_edge(name, END)

    with pytest.raises(NoResponseError) as failed:
        await ask_async(keeping(graph.compile(checkpointer=InMemorySaver())), "hi")

    assert (failed.value.status, failed.value.code) == (500, "server_error")


def asks(_: MessagesState) -> Any:
    return {"messages": AIMessage(f"You said {interrupt('Really?')}, {interrupt('Why?')}.")}


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_forks_and_retries_of_a_pause_have_answers_of_their_own(depth: int) -> None:
    node: Any = asks
    for _ in range(depth):
        node = one_node(node)
    agent = keeping(one_node(node, checkpointer=InMemorySaver()))

    first = await ask_async(agent, "hi")
    yes = await first.ask_async("yes")
    other = await first.ask_async("no")
    because = await yes.ask_async("because")
    again = await yes.ask_async("just so")
    never = await other.ask_async("never")

    assert (first.text, yes.text, other.text) == ("Really?", "Why?", "Why?")
    assert because.text == "You said yes, because."
    assert again.text == "You said yes, just so."
    assert never.text == "You said no, never."


async def test_an_answer_is_repeated_after_a_failure() -> None:
    model = scripted_model([(Fail("secret"),), *says("Done.")])

    async def node(state: MessagesState) -> Any:
        answer = interrupt("Really?")
        return {"messages": await model.ainvoke([HumanMessage(answer)])}

    first = await ask_async(keeping(one_node(node, checkpointer=InMemorySaver())), "hi")
    with pytest.raises(NoResponseError):
        await first.ask_async("yes")
    other = await first.ask_async("no")

    assert (other.text, talk(model)) == ("Done.", ["no"])


async def test_texts_before_a_question_are_told() -> None:
    model = scripted_model([HELLO])

    async def node(state: MessagesState) -> Any:
        said = await model.ainvoke([SystemMessage("x"), *state["messages"]])
        return {"messages": [said, HumanMessage("note")]}

    def asks(_: MessagesState) -> Any:
        interrupt("Really?")

    agent = keeping(row(("speaker", node), ("asks", asks), checkpointer=InMemorySaver()))

    first = await ask_async(agent, "hi")

    assert (first.text, kinds(first)) == ("Hello there.Really?", ["message"])
