"""LangGraph and LangChain: compiled graphs, agents made by them, chains and chat models, as they are.

What only the request knows (its tools, a JSON format, limits) reaches the model of a graph or a chain
where it is wrapped, in one place: `create_react_agent(as_requested(model), tools)`. A bare chat model
needs nothing.
"""

from channel.agents.langgraph.adapter import adapt
from channel.agents.langgraph.models import as_requested, client_tools


__all__ = ["adapt", "as_requested", "client_tools"]
