"""LangGraph: states of any shape, contexts, and checkpointers."""

from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from channel.agents.langgraph import adapt
from channel.testing import NoResponseError, ask_async
from tests.channel.agents.frameworks.langgraph import (
    react_agent,
    scripted_model,
)
from tests.channel.agents.langgraph_graphs import (
    HELLO,
    hand_made,
    one_node,
    row,
    says,
)
from tests.channel.agents.scripts import Say, Spend


pytestmark = pytest.mark.anyio


class Question(TypedDict, total=False):
    question: str
    rewritten: str
    answer: str


def rag(model: Any) -> Any:
    async def rewrite(state: Any) -> Any:
        return {"rewritten": (await model.ainvoke(state["question"])).text}

    async def generate(state: Any) -> Any:
        return {"answer": (await model.ainvoke(state["rewritten"])).text}

    return row(("rewrite", rewrite), ("generate", generate), state=Question)


async def test_a_state_without_messages_needs_to_be_told_how() -> None:
    graph = rag(scripted_model([]))

    with pytest.raises(TypeError, match=r"adapt\(graph, to_input="):
        adapt(graph)


async def test_a_state_without_messages_answers_by_a_function() -> None:
    model = scripted_model([(Say(("what?",)), Spend(1, 1)), (Say(("Th", "is.")), Spend(1, 1))])
    agent = adapt(
        rag(model),
        to_input=lambda turn, _: {"question": turn.text},
        to_answer=lambda state: state["answer"],
    )

    reply = await ask_async(agent, "hm?")

    assert (reply.text, reply.deltas) == ("This.", ["This."])
    assert [seen.texts for seen in model.seen] == [[("user", "hm?")], [("user", "what?")]]
    assert reply.usage is not None
    assert reply.usage["total_tokens"] == 4


async def test_a_named_node_streams_and_the_answer_is_not_said_again() -> None:
    agent = adapt(
        rag(scripted_model([*says("what?"), (Say(("Th", "is.")),)])),
        to_input=lambda turn, _: {"question": turn.text},
        to_answer=lambda state: state["answer"],
        nodes=["generate"],
    )

    assert (await ask_async(agent, "hm?")).deltas == ["Th", "is."]


async def test_an_answer_that_is_no_text_is_json() -> None:
    agent = adapt(
        rag(scripted_model(says("what?", "This."))),
        to_input=lambda turn, _: {"question": turn.text},
        to_answer=lambda state: {"found": state["answer"]},
    )

    assert (await ask_async(agent, "hm?")).text == '{"found": "This."}'


async def test_the_context_and_the_config_are_made_of_the_turn() -> None:
    @dataclass
    class Context:
        tenant: str

    model = scripted_model([HELLO])
    found = []

    async def node(state: Any, config: RunnableConfig, runtime: Runtime[Context]) -> Any:
        found.append((runtime.context.tenant, config["configurable"]["language"]))
        return {"messages": [await model.ainvoke(state["messages"])]}

    agent = adapt(
        one_node(node, context=Context),
        context=lambda turn: Context(turn.principal.name if turn.principal else ""),
        config=lambda turn: {"configurable": {"language": turn.metadata["language"]}},
    )

    await ask_async(agent, "hi", metadata={"language": "de"})

    assert found == [("tester", "de")]


async def test_options_that_the_context_declares_reach_it() -> None:
    @dataclass
    class Base:
        temperature: float | None = None

    @dataclass
    class Context(Base):
        max_tokens: int | None = None

    found: list[Any] = []

    def node(_: Any, runtime: Runtime[Context]) -> Any:
        found.append(runtime.context)
        return {"messages": AIMessage("Hello.")}

    agent = one_node(node, context=Context)

    await ask_async(agent, "hi", temperature=0.5, max_output_tokens=64, top_p=0.9)
    await ask_async(agent, "hi")

    assert found == [Context(0.5, 64), None]


async def test_options_are_ignored_by_a_model_that_was_not_told_of_them() -> None:
    model = scripted_model([HELLO], temperature=0.1)

    await ask_async(react_agent(model), "hi", temperature=0.5, reasoning={"effort": "low"})

    assert model.seen[0].temperature == 0.1


async def test_the_host_keeps_the_history_and_nothing_is_there_twice() -> None:
    saver = InMemorySaver()
    model = scripted_model(says("one", "two"))
    agent = hand_made(model, checkpointer=saver)

    first = await ask_async(agent, "first")
    await first.ask_async("second")

    assert [text for _, text in model.seen[1].texts] == ["first", "one", "second"]
    assert list(saver.list(None)) == []


async def test_a_stop_for_a_decision_fails() -> None:
    def node(_: MessagesState) -> Any:
        return {"messages": AIMessage(str(interrupt("Really?")))}

    for graph in (
        one_node(node, checkpointer=InMemorySaver()),
        one_node(node, interrupt_before=["speaker"]),
    ):
        with pytest.raises(NoResponseError) as failed:
            await ask_async(graph, "hi")
        assert (failed.value.status, failed.value.code) == (500, "server_error")
        assert "decision" in failed.value.message
