"""Agents of Microsoft Agent Framework, unmodified: `Agent`, and whatever else has its `run`."""

import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, get_args

from agent_framework import (
    AgentResponseUpdate,
    AgentSession,
    Content,
    HistoryProvider,
    Message,
    RawAgent,
    ResponseStream,
)
from msgspec import Struct

from channel.agent import Agent, AgentEvent, Finish, KeptState, Turn, accepts
from channel.agents.agent_framework.binding import bind
from channel.agents.agent_framework.endings import FILTERED, INCOMPLETE
from channel.agents.agent_framework.messages import messages_of
from channel.agents.agent_framework.options import (
    accepted,
    declaration,
    options_of,
    parameters_of,
    safe_tools,
    taken_name,
    tools_of,
)
from channel.agents.agent_framework.pauses import (
    answers_to,
    calls_of,
    history_of,
    is_answered,
    restored,
)
from channel.agents.agent_framework.room import require_room_for
from channel.agents.agent_framework.seen import mark_of, text_in
from channel.agents.agent_framework.sessions import (
    Gate,
    HistorySource,
    Kept,
    agent_for_turn,
    kept_before,
    providers_for,
    saved,
    session_for,
    state_of,
)
from channel.agents.agent_framework.telling import Telling
from channel.agents.own_task import in_own_task
from channel.agents.provider_errors import turn_error_of
from channel.agents.reading import ClientTool, client_tools, instructions_of
from channel.faults import log_fault


_LOG: Final = logging.getLogger(__name__)


class _Run(Struct, frozen=True):
    """What one run is given, and who its providers are."""

    agent: Any
    messages: list[Message]
    session: AgentSession | None
    gate: Gate
    bound: Sequence[Any]
    paused: list[Content]
    source: HistorySource
    is_answering: bool


def adapt(
    target: Any,
    fresh: Callable[[], Any] | None = None,
    *,
    history_source: HistorySource = "host",
) -> Agent:
    """Return an agent of the framework, or a workflow, as an agent.

    `history_source` says who keeps the history that the model is given:

    - `host`: the host's transcript. The agent's own history providers load nothing, and those that
      load are left out; its other context providers run, and get what is new in the turn.
    - `agent`: the agent's own providers (or else its session, which is kept with each response). A run
      is given this turn's input only. A session is named by the response that began it; a fork has the
      same one, and so what its providers keep by the session is shared by all forks.
      Where some of what it has seen is no more in the host's history (deleted, summed up, left out),
      the next run begins a new session, with the history that is there. So does one of `service`.
    - `service`: the model's service, whose own id of the conversation is kept with each response.

    A summary of a conversation (compaction) is always made of the host's transcript. `fresh` makes an
    agent for each turn, where the user gave a factory. Raises `TypeError` for an agent that turns cannot
    share, and `ValueError` for another source.
    """
    _require_usable(target, fresh, history_source)
    if not hasattr(target, "create_session"):
        return _adapted_workflow(target, fresh)
    takes = parameters_of(target)

    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        async with AsyncExitStack() as stack:
            stack.push_async_exit(_explaining(turn))
            agent = target if fresh is None else _made(fresh, stack)
            tools = tools_of(turn, agent, takes)
            given = _given(turn, agent, history_source)
            for provider in given.bound:
                await bind(stack, provider, turn)
            told = Telling({tool.name for tool in tools}, safe_tools(agent))
            said: list[str] = []
            told.resume(calls_of(given.paused))
            arguments = _arguments(turn, agent, given, tools, takes)
            stream = await _stream(given.agent, given.messages, arguments)
            stack.push_async_exit(_ending(stream, given.gate))
            try:
                async for update in stream:
                    for event in told.take(update):
                        said.append(text_in(event))
                        yield event
                    given.gate.is_cut = told.has_failed
            except FILTERED:
                told.finish_reason = "content_filter"
            for event in told.end():
                said.append(text_in(event))
                yield event
            if (state := _state(turn, given, told.paused(), said)) is not None:
                yield KeptState(state)
            if (reason := INCOMPLETE.get(told.finish_reason or "")) is not None:
                yield Finish(reason)

    return accepts(*accepted(target, takes))(in_own_task(run))


def _adapted_workflow(target: Any, fresh: Callable[[], Any] | None) -> Agent:
    from channel.agents.agent_framework.workflow import (  # noqa: PLC0415 - only for workflows
        adapt_workflow,
    )

    if not hasattr(target, "run"):  # a definition, which makes as many as one likes
        return adapt_workflow(target.build(), target.build)
    return adapt_workflow(target, fresh)


def _require_usable(target: Any, fresh: Callable[[], Any] | None, source: str) -> None:
    if source not in get_args(HistorySource):
        msg = f"history_source is {source!r}; it must be one of {get_args(HistorySource)}"
        raise ValueError(msg)
    if source != "host" and not hasattr(target, "create_session"):
        msg = f"history_source is {source!r}, but a workflow has its checkpoints; leave it out"
        raise ValueError(msg)
    if fresh is None and hasattr(target, "workflow"):
        msg = (
            "a workflow keeps state, and turns cannot share it; name a factory that makes its agent "
            "anew, such as `def agent(): return build_workflow().as_agent()`"
        )
        raise TypeError(msg)
    providers = getattr(target, "context_providers", None) or ()
    if (
        source == "host"
        and not isinstance(target, RawAgent)
        and any(isinstance(provider, HistoryProvider) for provider in providers)
    ):
        msg = (
            f"{type(target).__name__} has a history provider of its own, beside the host's history; "
            "write `agent = adapt(my_agent, history_source='agent')`"
        )
        raise TypeError(msg)


def _given(turn: Turn, agent: Any, history_source: HistorySource) -> _Run:
    """Decide what the run is given; raises `TurnError` for input that cannot be given."""
    # A turn without an id is one of the host's own, which makes a summary: nothing is kept of it.
    is_hosts = not turn.response_id
    source: HistorySource = "host" if is_hosts else history_source
    kept = Kept() if is_hosts else kept_before(turn, source)
    paused = restored(kept.paused)
    messages = [*answers_to(paused, turn.input), *messages_of(turn.input)]
    is_answering = is_answered(paused, turn.input)
    history = history_of(turn.history, paused if is_answering else ())
    gate = Gate()
    is_raw = isinstance(agent, RawAgent)
    session: AgentSession | None = None
    if is_raw or source != "host":
        session = session_for(agent, kept, turn.response_id, source)
    providers = [] if is_hosts else providers_for(agent, source)
    own = agent_for_turn(agent, source, providers, history, gate) if is_raw else agent
    if not (is_raw if source == "host" else _knows(source, kept)):
        messages = [*history, *messages]
    return _Run(own, messages, session, gate, providers, paused, source, is_answering)


def _knows(source: HistorySource, kept: Kept) -> bool:
    """Return whether the source has the history; of what was before its first turn, only the host knows."""
    return bool(kept.session if source == "agent" else kept.session.get("service_session_id"))


def _arguments(
    turn: Turn, agent: Any, given: _Run, tools: Sequence[ClientTool], takes: frozenset[str]
) -> dict[str, Any]:
    """Return the keyword arguments of the run, of those that it takes."""
    arguments: dict[str, Any] = {}
    if "stream" in takes:
        arguments["stream"] = True
    if given.session is not None and "session" in takes:
        arguments["session"] = given.session
    if tools:
        arguments["tools"] = [declaration(tool) for tool in tools]
    options = options_of(turn, agent, given.source) if "options" in takes else {}
    instructions = "\n\n".join(instructions_of(turn))
    if instructions and isinstance(agent, RawAgent):
        options["instructions"] = instructions
    elif instructions:
        given.messages.insert(0, Message("system", [instructions]))
    if options:
        arguments["options"] = options
    return arguments


async def _stream(
    agent: Any, messages: list[Message], arguments: dict[str, Any]
) -> AsyncIterator[AgentResponseUpdate]:
    """Begin the run; an agent may return a stream, or a coroutine of one, or of a whole response."""
    given = agent.run(messages, **arguments)
    if not hasattr(given, "__aiter__"):
        given = await given
    return aiter(given) if hasattr(given, "__aiter__") else _updates(given.to_updates())


async def _updates(updates: Iterable[AgentResponseUpdate]) -> AsyncIterator[AgentResponseUpdate]:
    for update in updates:
        yield update


def _ending(stream: Any, gate: Gate) -> Callable[..., Any]:
    """Return what ends a run; one that is cut, however it is, has given no answer that may be kept."""

    async def end(_kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        gate.is_cut = True
        try:
            # A stream that is closed for a reason finishes nothing.
            if isinstance(stream, ResponseStream):
                await stream.close(error)
            elif hasattr(stream, "aclose"):
                await stream.aclose()
        except Exception as failure:  # noqa: BLE001 - what ended the run is raised
            log_fault(_LOG, "stream of a run not closed", failure)

    return end


def _explaining(turn: Turn) -> Callable[..., Any]:
    """Return what tells of a run's failure all that a client may know."""

    async def explain(_kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        known = taken_name(error, client_tools(turn)) or turn_error_of(error)
        if known not in (None, error):
            raise known from error

    return explain


def _made(fresh: Callable[[], Any], stack: AsyncExitStack) -> Any:
    """Return an agent for one turn, which is closed after it: a run connects the MCP servers it has."""
    agent = fresh()
    close = getattr(agent, "close", None)
    if inspect.iscoroutinefunction(close):
        stack.push_async_callback(close)
    return agent


def _state(
    turn: Turn, given: _Run, paused: Sequence[Content], said: Iterable[str]
) -> dict[str, Any] | None:
    """Return what the turn is to keep; None where that is as it was, or nothing.

    Raises `TurnError` where it is too much.
    """
    if not turn.response_id:
        return None
    session = saved(given.session, given.source) if given.session is not None else {}
    if given.source == "host" and not (given.bound or session.get("state")):
        session = {}  # nobody has anything to remember by it
    open_still = [] if given.is_answering else given.paused
    seen = {} if given.source == "host" else mark_of(turn, "".join(said))
    kept = Kept(session, [each.to_dict() for each in paused or open_still], seen)
    state = state_of(given.source, kept)
    was = turn.state or state_of(given.source, Kept())
    if state == was:
        return None
    require_room_for(state)
    return state
