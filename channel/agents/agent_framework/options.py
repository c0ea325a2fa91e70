"""What a run of an Agent Framework agent takes of a request: parameters, options, and tools. Pure."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from agent_framework import FunctionTool, RawAgent

from channel.agent import Turn, TurnError
from channel.agents.agent_framework.sessions import HistorySource
from channel.agents.reading import (
    ClientTool,
    client_tools,
    json_format,
    reasoning_effort,
    tool_mode,
    unsupported,
)


_OPTIONS: Final = {
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
_DUPLICATE: Final = re.compile("Duplicate tool name '([^']+)'")
_OPENAI_RESPONSES: Final = "RawOpenAIChatClient"
_OPENAI_CHAT: Final = "RawOpenAIChatCompletionClient"


def parameters_of(target: Any) -> frozenset[str]:
    """Return the parameters of the target's `run`; what only `**kwargs` takes counts as not taken.

    But for those that the protocol names: an agent that ignores them does so by its own will.
    """
    parameters = inspect.signature(target.run).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return frozenset(parameters) | {"stream", "session"}
    return frozenset(parameters)


def accepted(target: Any, takes: frozenset[str]) -> tuple[str, ...]:
    """Return the request's options that reach the run of this target."""
    if "options" not in takes:
        return ()
    return ("text", *_OPTIONS, *(("reasoning",) if _openai_client(target) else ()))


def options_of(turn: Turn, agent: Any, source: HistorySource) -> dict[str, Any]:
    """Return the run's options, in the words that the framework has for all clients."""
    options = {
        name: turn.options[option]
        for option, name in _OPTIONS.items()
        if turn.options.get(option) is not None
    }
    if (wanted := json_format(turn)) is not None:
        options["response_format"] = {"type": "json_object"}
        if wanted.schema is not None:
            named = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
            options["response_format"] = {"type": "json_schema", "json_schema": named}
    if (effort := reasoning_effort(turn)) is not None:
        is_responses = _openai_client(agent) == _OPENAI_RESPONSES
        name = "reasoning" if is_responses else "reasoning_effort"
        options[name] = {"effort": effort} if is_responses else effort
    if (choice := choice_of(turn)) is not None:
        options["tool_choice"] = choice
    if not turn.parallel_tool_calls:
        options["allow_multiple_tool_calls"] = False
    if source == "service":
        options["store"] = True
    elif source == "host" and _stores(agent):
        options["store"] = False
    return options


def choice_of(turn: Turn) -> str | dict[str, Any] | None:
    """Return `tool_choice` in the framework's words; None for `auto`, which is the agent's business.

    Raises `TurnError` for a choice of something else than functions.
    """
    mode, choice = tool_mode(turn), turn.tool_choice
    if mode == "auto" or isinstance(choice, str):
        return None if mode == "auto" else mode
    if choice.get("type") == "allowed_tools":
        return {"mode": mode, "allowed_tools": [tool.name for tool in client_tools(turn)]}
    if choice.get("type") != "function":
        raise unsupported("a choice of other tools than functions", "tool_choice")
    return {"mode": "required", "required_function_name": choice.get("name")}


def tools_of(turn: Turn, agent: Any, takes: frozenset[str]) -> list[ClientTool]:
    """Return the client's functions; raises `TurnError` where the agent cannot have them."""
    tools = client_tools(turn)
    if tools and "tools" not in takes:
        raise unsupported("tools of a client", "tools")
    if tools and "options" not in takes and choice_of(turn) is not None:
        raise unsupported("a choice of tools", "tool_choice")
    taken = {tool.name for tool in tools} & {_name(tool) for tool in _own_tools(agent)}
    if taken:
        raise _taken(min(taken))
    return tools


def taken_name(error: BaseException, tools: Iterable[ClientTool]) -> TurnError | None:
    """Return the 400 for a client's function whose name a tool has that a provider added in the run.

    The framework raises that only by a text; None of any other error.
    """
    named = _DUPLICATE.match(str(error)) if isinstance(error, ValueError) else None
    name = named and named[1]
    return _taken(name) if name and any(tool.name == name for tool in tools) else None


def declaration(tool: ClientTool) -> FunctionTool:
    """Return the client's function without code: a call of it goes out, and ends the run."""
    return FunctionTool(
        name=tool.name, description=tool.description, input_model=dict(tool.parameters)
    )


def safe_tools(agent: Any) -> set[str]:
    """Return the names of the agent's tools that run without asking first."""
    return {
        tool.name
        for tool in _own_tools(agent)
        if isinstance(tool, FunctionTool)
        and tool.approval_mode == "never_require"
        and not tool.declaration_only
    }


def _own_tools(agent: Any) -> Iterator[Any]:
    """Return the tools of the agent that are known before it runs."""
    if not isinstance(agent, RawAgent):
        return
    yield from agent.default_options.get("tools") or ()
    for server in agent.mcp_tools:
        yield from server.functions
    configuration = getattr(agent.client, "function_invocation_configuration", None) or {}
    yield from configuration.get("additional_tools") or ()


def _taken(name: str) -> TurnError:
    return unsupported(f"a tool with the name of one of its own, {name}", "tools")


def _name(tool: Any) -> object:
    if isinstance(tool, Mapping):
        return (tool.get("function") or tool).get("name")
    return getattr(tool, "name", None)


def _openai_client(agent: Any) -> str | None:
    """Return which of OpenAI's clients the agent has: each is told the effort in its own words."""
    kinds = {kind.__name__ for kind in type(getattr(agent, "client", None)).__mro__}
    return next((name for name in (_OPENAI_RESPONSES, _OPENAI_CHAT) if name in kinds), None)


def _stores(agent: Any) -> bool:
    """Return whether the model's service would keep a history where it is not told to keep none."""
    default = agent.default_options.get("store") if isinstance(agent, RawAgent) else None
    client = getattr(agent, "client", None)
    return bool(getattr(client, "STORES_BY_DEFAULT", False) if default is None else default)
