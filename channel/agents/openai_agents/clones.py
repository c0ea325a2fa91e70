"""The agents of one turn: clones with the client's tools, instructions, options and format of the answer.

The user's own objects are never changed. An agent that another hands over to is cloned when it is
its turn; agents that are used as tools stay as they are.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from agents import (
    Agent,
    AgentOutputSchemaBase,
    FunctionTool,
    Handoff,
    Model,
    ModelSettings,
    RunConfig,
    RunContextWrapper,
    handoff,
)
from agents.tool_context import ToolContext

from channel.agent import Turn
from channel.agents.openai_agents.finishing import watched
from channel.agents.openai_agents.models import model_of, own_settings, traits_of
from channel.agents.reading import ClientTool, JsonFormat, json_format, tool_mode, unsupported


_SETTINGS: Final = {
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "top_logprobs": "top_logprobs",
    "truncation": "truncation",
}
OPTIONS: Final = ("reasoning", "text", *_SETTINGS)
"""The request fields that reach the model's settings."""


class Clones:
    """Makes the agents of one turn, each once."""

    def __init__(self, turn: Turn, tools: Sequence[ClientTool], config: RunConfig) -> None:
        """Take what the request asks for, and the configuration that the run has."""
        wanted = json_format(turn)
        self._tools = [_declared(tool) for tool in tools]
        self._output = _Wanted(wanted) if wanted is not None else None
        self._instructions = turn.instructions
        self._settings = _settings_of_turn(turn)
        self._reasoning = _given(turn.options.get("reasoning"))
        self._choice = _choice(turn, tools)
        self._config = config
        self._made: dict[int, tuple[Agent[Any], Agent[Any]]] = {}

    def first(self, agent: Agent[Any], root: Agent[Any], *, has_called: bool = False) -> Agent[Any]:
        """Return the clone that begins, by the guardrails of the agent that the user named.

        A choice of tools is for the first call of its model, unless that was made already. A client
        that requires a call means its own tools, so no others are there to be called instead.
        """
        clone = self.of(agent)
        changed: dict[str, Any] = {"input_guardrails": root.input_guardrails}
        if self._choice is not None and not has_called:
            changed["model_settings"] = clone.model_settings.resolve({"tool_choice": self._choice})
            changed |= {"tools": [*self._tools], "handoffs": [], "mcp_servers": []}
        return clone.clone(**changed)

    def of(self, agent: Agent[Any]) -> Agent[Any]:
        """Return the clone of an agent."""
        if (made := self._made.get(id(agent))) is not None:
            return made[1]
        changed: dict[str, Any] = {
            "tools": [*agent.tools, *self._tools],
            "handoffs": [self._handing_over(each) for each in agent.handoffs],
            "model_settings": self._settings_of(agent),
        }
        if isinstance(agent.model, Model):
            changed["model"] = watched(agent.model)
        if self._instructions and agent.prompt is None:
            changed["instructions"] = _instructing(agent, self._instructions)
        if self._output is not None and agent.output_type in (None, str):
            changed["output_type"] = self._output
        clone = agent.clone(**changed)
        self._made[id(agent)] = agent, clone  # the agent, too: its id must stay its own
        return clone

    def _settings_of(self, agent: Agent[Any]) -> ModelSettings:
        if self._config.model is not None:
            # Settings that only come from the model's name are those of the run's model.
            agent = agent.clone(model=self._config.model)
        own = agent.model_settings
        traits = traits_of(model_of(agent, self._config))
        settings = {**self._settings, **own_settings(own, traits)}
        limits = [each for each in (own.max_tokens, settings.get("max_tokens")) if each is not None]
        if limits:
            settings["max_tokens"] = min(limits)  # the agent's own limit is its owner's
        if self._reasoning:
            reasoning = own.reasoning.model_dump(exclude_none=True) if own.reasoning else {}
            settings["reasoning"] = {**reasoning, **self._reasoning}
        return own.resolve(settings)

    def _handing_over(self, given: Agent[Any] | Handoff[Any, Any]) -> Handoff[Any, Any]:
        made = given if isinstance(given, Handoff) else handoff(given)

        async def invoke(context: RunContextWrapper[Any], arguments: str) -> Agent[Any]:
            return self.of(await made.on_invoke_handoff(context, arguments))

        wrapped = copy.copy(made)
        wrapped.on_invoke_handoff = invoke
        return wrapped


def _settings_of_turn(turn: Turn) -> dict[str, Any]:
    """Return the request's options as the SDK's model settings."""
    settings = {
        name: turn.options[option]
        for option, name in _SETTINGS.items()
        if turn.options.get(option) is not None
    }
    if verbosity := (turn.options.get("text") or {}).get("verbosity"):
        settings["verbosity"] = verbosity
    if not turn.parallel_tool_calls:
        settings["parallel_tool_calls"] = False
    return settings


def _given(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields that are not null."""
    return {name: each for name, each in (value or {}).items() if each is not None}


def require_functions(turn: Turn) -> None:
    """Raise `TurnError` (400) for tools and choices of other kinds than functions."""
    for tool in turn.tools:
        if tool.get("type") != "function":
            raise unsupported(f"tools of the type {tool.get('type')}", "tools")
    choice = turn.tool_choice
    if not isinstance(choice, str) and choice.get("type") not in ("function", "allowed_tools"):
        raise unsupported(f"a choice of the type {choice.get('type')}", "tool_choice")


async def require_own_names(
    agents: Iterable[Agent[Any]], tools: Sequence[ClientTool], context: Any
) -> None:
    """Raise `TurnError` (400, `tools`) for a client's tool with the name of one of the agents' own."""
    if not tools:
        return
    names = {tool.name for tool in tools}
    for agent in agents:
        own = await agent.get_all_tools(RunContextWrapper(context))
        taken = names & {*(tool.name for tool in own), *map(_name_of, agent.handoffs)}
        if taken:
            raise unsupported(f"a tool with the name of one of its own, {min(taken)}", "tools")


def reachable(agent: Agent[Any]) -> Iterator[Agent[Any]]:
    """Yield the agent and those that it may hand over to, as far as its handoffs tell."""
    seen: set[int] = set()
    waiting = [agent]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += filter(None, map(_target_of, each.handoffs))


def has_unknown_target(agent: Agent[Any]) -> bool:
    """Return whether one of its handoffs chooses its agent only when it is run."""
    return any(_target_of(each) is None for each in agent.handoffs)


def _target_of(given: Agent[Any] | Handoff[Any, Any]) -> Agent[Any] | None:
    if isinstance(given, Agent):
        return given
    # Handoffs of `handoff()` know their agent; those that choose one when they are run do not.
    reference = getattr(given, "_agent_ref", None)
    target = reference() if reference is not None else None
    return target if isinstance(target, Agent) else None


def _name_of(given: Agent[Any] | Handoff[Any, Any]) -> str:
    return given.tool_name if isinstance(given, Handoff) else Handoff.default_tool_name(given)


def _choice(turn: Turn, tools: Sequence[ClientTool]) -> str | None:
    if not tools or tool_mode(turn) != "required":
        return None
    return tools[0].name if len(tools) == 1 else "required"


def _declared(tool: ClientTool) -> FunctionTool:
    """Return a tool whose calls wait for an approval, which never comes: the run ends there."""
    declared = FunctionTool(
        tool.name,
        tool.description,
        dict(tool.parameters),
        _never,
        strict_json_schema=False,
        needs_approval=True,
    )
    # Set afterwards: the SDK would rewrite a strict schema, and the client's is to stay as it is.
    declared.strict_json_schema = tool.strict
    return declared


async def _never(_context: ToolContext[Any], _arguments: str) -> str:
    msg = "the tool of a client was run here"
    raise RuntimeError(msg)


def _instructing(agent: Agent[Any], more: str) -> Any:
    async def instructions(context: RunContextWrapper[Any], _clone: Agent[Any]) -> str:
        own = await agent.get_system_prompt(context)
        return f"{own}\n\n{more}" if own else more

    return instructions


class _Wanted(AgentOutputSchemaBase):
    """The form of the answer that a request wants; that the answer has it is the model's business."""

    def __init__(self, wanted: JsonFormat) -> None:
        self._wanted = wanted

    def is_plain_text(self) -> bool:
        return False

    def name(self) -> str:
        return self._wanted.name

    def json_schema(self) -> dict[str, Any]:
        schema = self._wanted.schema
        return {"type": "object"} if schema is None else dict(schema)

    def is_strict_json_schema(self) -> bool:
        return self._wanted.strict

    def validate_json(self, json_str: str) -> Any:
        # The answer was streamed already; a guardrail of the agent's gets what others would.
        try:
            return json.loads(json_str)
        except ValueError:
            return json_str
