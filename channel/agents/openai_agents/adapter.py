"""Agents of the OpenAI Agents SDK, unmodified."""

import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from agents import Agent as SDKAgent, RunConfig
from agents.run_config import DEFAULT_MAX_TURNS

from channel.agent import Agent, AgentEvent, Turn, accepts
from channel.agents.openai_agents.clones import (
    OPTIONS,
    Clones,
    has_unknown_target,
    reachable,
    require_functions,
    require_own_names,
)
from channel.agents.openai_agents.finishing import watching
from channel.agents.openai_agents.items import conversation_of
from channel.agents.openai_agents.models import joined, model_of, traits_of
from channel.agents.openai_agents.run import Run
from channel.agents.openai_agents.servers import Servers
from channel.agents.own_task import in_own_task
from channel.agents.reading import client_tools
from channel.contract import settled


Context = Callable[[Turn], Any | Awaitable[Any]]


def adapt(
    target: SDKAgent[Any],
    fresh: Callable[[], SDKAgent[Any]] | None = None,
    *,
    max_turns: int | None = None,
    context: Context | None = None,
    run_config: RunConfig | None = None,
    tracing: bool = False,
    trace_include_sensitive_data: bool = False,
) -> Agent:
    """Return an agent of the SDK as an agent.

    - `max_turns`: model calls of one turn (the SDK's default, 10); more of them end it as incomplete
    - `context`: makes the run's context object of a turn, sync or async
    - `run_config`: the SDK's configuration of runs; its model settings win over the request's
    - `tracing`: lets the SDK trace runs; it sends traces to OpenAI unless it was told where else to
    - `trace_include_sensitive_data`: lets traces hold what was said, too

    MCP servers that are not connected are, while a turn needs them. What an agent with output
    guardrails says is told when it has passed them. Raises `TypeError` for anything but an
    `agents.Agent`, and for a context that all turns would share.
    """
    if not isinstance(target, SDKAgent):
        msg = f"this adapter takes an agents.Agent, not {type(target).__name__}"
        raise TypeError(msg)
    if context is not None and not callable(context):
        msg = (
            "turns may not share a context; write context=lambda turn: …, which makes one for each"
        )
        raise TypeError(msg)
    base = dataclasses.replace(
        run_config or RunConfig(),
        tracing_disabled=not tracing,
        trace_include_sensitive_data=tracing and trace_include_sensitive_data,
    )
    shared = Servers()

    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        require_functions(turn)
        root = fresh() if fresh is not None else target
        agents = [*reachable(root)]
        # A factory makes servers, too: those of one turn are nobody else's.
        servers = Servers() if fresh is not None else shared
        async with servers.connected(server for each in agents for server in each.mcp_servers):
            prepared = await _prepared(turn, agents)
            async with aclosing(prepared.events()) as events:
                async for event in events:
                    yield event

    async def _prepared(turn: Turn, agents: Sequence[SDKAgent[Any]]) -> Run:
        config = watching(base)
        made = await settled(context(turn)) if context is not None else None
        tools = client_tools(turn)
        await require_own_names(agents, tools, made)
        traits = joined([traits_of(model_of(each, config)) for each in agents])
        if any(map(has_unknown_target, agents)):
            traits = msgspec.structs.replace(traits, fetches=True)
        given = conversation_of(turn, traits)
        return Run(
            turn,
            given,
            Clones(turn, tools, config),
            agents=agents,
            names=frozenset(tool.name for tool in tools),
            config=config,
            context=made,
            max_turns=DEFAULT_MAX_TURNS if max_turns is None else max_turns,
        )

    return accepts(*OPTIONS)(in_own_task(run))
