"""A graph of LangGraph: a model that thinks until it calls no tool.

Its settings, in the environment: OPENAI_API_KEY; OPENAI_BASE_URL, where the model is not OpenAI's;
MODEL, which is gpt-5-mini unless it says otherwise.
"""

from os import getenv
from time import gmtime, strftime, time

from langchain_core.messages import SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from channel.agents.langgraph import as_requested


INSTRUCTIONS = "Answer in a sentence or two. Look at the clock when you are asked for the time."


@tool
def clock(utc_offset_hours: float) -> str:
    """Tell the time of day at an offset from UTC, in hours."""
    return strftime("%H:%M", gmtime(time() + utc_offset_hours * 3600))


# What only the request knows (its tools, a JSON format, limits) reaches the model here.
model = as_requested(ChatOpenAI(model=getenv("MODEL", "gpt-5-mini"), stream_usage=True))


async def think(state: MessagesState) -> dict[str, list[object]]:
    """Let the model answer, or call the clock."""
    messages = [SystemMessage(INSTRUCTIONS), *state["messages"]]
    return {"messages": [await model.bind_tools([clock]).ainvoke(messages)]}


graph = StateGraph(MessagesState)
graph.add_node("think", think)
graph.add_node("tools", ToolNode([clock]))
graph.add_edge(START, "think")
graph.add_conditional_edges("think", tools_condition)
graph.add_edge("tools", "think")
agent = graph.compile()
