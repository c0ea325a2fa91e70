"""Graphs that tests of the LangGraph adapter share, as its tutorials write them."""

from collections.abc import Sequence
from typing import Any

from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from channel.agents.langgraph import as_requested
from channel.testing import Reply
from tests.channel.agents.frameworks.langgraph import weather
from tests.channel.agents.scripts import Call, Say, Spend


HELLO = (Say(("Hel", "lo ", "there.")), Spend(7, 3))
NOON = Call("clock", {"zone": "UTC"}, "call_1")
RAIN = Call("weather", {"city": "Rome"}, "call_2")
CLOCK = {
    "type": "function",
    "name": "clock",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "string"}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PLACE = {"format": {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}}


def says(*texts: str) -> list[tuple[Say, ...]]:
    """Return a script of one text a call."""
    return [(Say((text,)),) for text in texts]


def kinds(reply: Reply) -> Sequence[str]:
    """Return the types of the output items."""
    return [item["type"] for item in reply.output]


def hand_made(model: Any, **options: Any) -> Any:
    """Return the agent loop as LangGraph's tutorials write it out."""
    bound = as_requested(model).bind_tools([weather])

    async def assistant(state: MessagesState) -> Any:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("assistant", assistant)
    graph.add_node("tools", ToolNode([weather]))
    graph.add_edge(START, "assistant")
    graph.add_conditional_edges("assistant", tools_condition)
    graph.add_edge("tools", "assistant")
    return graph.compile(**options)


def one_node(node: Any, **options: Any) -> Any:
    """Return a graph of one node, `speaker`."""
    return row(("speaker", node), **options)


def row(
    *nodes: tuple[str, Any],
    state: Any = MessagesState,
    context: type | None = None,
    **options: Any,
) -> Any:
    """Return a graph of nodes one after the other."""
    graph: Any = StateGraph(state, context_schema=context)
    before = START
    for name, node in nodes:
        graph.add_node(name, node)
        graph.add_edge(before, name)
        before = name
    return graph.compile(**options)


def calls_model(model: Any) -> Any:
    """Return a node that calls a model with the state's messages."""

    async def node(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return node
