"""One run of the OpenAI Agents SDK: from its beginning to whatever ends it, and nothing left behind."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final, cast

import msgspec
from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    RunContextWrapper,
    Runner,
    RunResultStreaming,
    ToolErrorFormatterArgs,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)
from agents.items import RunItem, ToolApprovalItem

from channel.agent import (
    AgentEvent,
    Finish,
    KeptState,
    OutputItem,
    RefusalDelta,
    Turn,
    TurnError,
    Usage,
)
from channel.agents.openai_agents.clones import Clones
from channel.agents.openai_agents.events import Telling, usage_of
from channel.agents.openai_agents.finishing import StreamEndedError
from channel.agents.openai_agents.items import Asked, Conversation, Unfinished, kept
from channel.agents.openai_agents.models import Replay
from channel.agents.provider_errors import turn_error_of
from channel.responses.protocol.items import message


_TRIPPED: Final = (
    InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)
_RUN: Final[ContextVar[object]] = ContextVar("openai_agents_run", default=None)
_NOTHING: Final = Usage()


class Run:
    """A run of one turn; its `events` are read once."""

    def __init__(
        self,
        turn: Turn,
        given: Conversation,
        clones: Clones,
        *,
        agents: Sequence[Agent[Any]],
        names: frozenset[str],
        config: RunConfig,
        context: Any,
        max_turns: int,
    ) -> None:
        """Take what the run is given.

        `agents` are the user's, the first the one that was named; `names` those of the client's
        tools; `config` is this run's own.
        """
        self._turn = turn
        self._given = given
        self._root = agents[0]
        self._starts = next((each for each in agents if each.name == given.agent), self._root)
        self._first = clones.first(self._starts, self._root, has_called=bool(given.approved))
        self._names = names
        self._config = config
        self._context = RunContextWrapper(context)
        self._max_turns = max_turns
        guardrails = [*(config.output_guardrails or ())]
        guardrails += [each for agent in agents for each in agent.output_guardrails]
        self._telling = Telling(names, holds_text=bool(guardrails), is_resumed=bool(given.approved))

    async def events(self) -> AsyncGenerator[AgentEvent, None]:
        """Yield what the run does, then the tokens it used, then how it ends.

        Raises what ends it as failed: a `TurnError` where the client may know why.
        """
        if self._turn.state:
            yield KeptState({})  # of an earlier turn; this one keeps its own, if it waits
        result = self._begin()
        ending: Iterator[AgentEvent] | Exception
        try:
            async with aclosing(self._streamed(result)) as events:
                async for event in events:
                    yield event
        except Exception as error:  # noqa: BLE001 - how a run ends; raised again unless it is known
            ending = self._ended_by(error)
        else:
            ending = self._waiting(result) if result.interruptions else self._final(result)
        for used in (usage_of(result.context_wrapper.usage), self._telling.cut_usage):
            if used != _NOTHING:
                yield used
        if isinstance(ending, Exception):
            raise ending
        for event in ending:
            yield event

    def _begin(self) -> RunResultStreaming:
        config = self._config
        if config.tool_error_formatter is None:
            config.tool_error_formatter = self._note_failure
        if self._names:
            config.tool_name_collision_policy = "error"
        items = self._given.items
        if self._turn.instructions and self._starts.prompt is not None:
            items = [message("developer", self._turn.instructions), *items]
        max_turns = self._max_turns
        if self._given.approved:
            self._replay()
            max_turns += 1  # a call of no model
        _RUN.set(self)
        return Runner.run_streamed(
            self._first,
            cast("Any", items),
            context=cast("Any", self._context),
            max_turns=max_turns,
            run_config=config,
        )

    def _replay(self) -> None:
        """Have the SDK run the calls that were approved, as if its model had just made them."""
        place: Any = self._config if self._config.model is not None else self._first
        own = place.model

        def restore() -> None:
            place.model = own

        replay = place.model = Replay(self._given.approved, restore)
        for call in replay.calls:
            self._context.approve_tool(ToolApprovalItem(self._first, call))

    def _note_failure(self, failure: ToolErrorFormatterArgs[Any]) -> None:
        """Note which tool has failed; what its model reads of that stays the SDK's."""
        if failure.kind == "tool_exception":
            self._telling.failed_tools.add(failure.call_id)

    async def _streamed(self, result: RunResultStreaming) -> AsyncGenerator[AgentEvent, None]:
        events = cast("AsyncGenerator[Any, None]", result.stream_events())
        try:
            async for event in events:
                for each in self._telling.take(event):
                    yield each
        finally:
            if result.run_loop_task is not None and not result.run_loop_task.done():
                result.cancel()  # before the stream is closed, which waits for the run
            await events.aclose()
            await self._ended(result)

    async def _ended(self, result: RunResultStreaming) -> None:
        """Wait for the run, and for its tools: a run that is cancelled ends before they do."""
        running: set[asyncio.Task[Any]] = {
            task for task in asyncio.all_tasks() if _run_of(task) is self
        }
        if result.run_loop_task is not None:
            running.add(result.run_loop_task)
        if running:
            await asyncio.wait(running)

    def _ended_by(self, error: Exception) -> Iterator[AgentEvent] | Exception:
        """Return how the error ends the turn; as a failure, it is what the client may know of it."""
        telling = self._telling
        if isinstance(error, MaxTurnsExceeded):
            return iter([Finish("max_output_tokens")])
        if isinstance(error, _TRIPPED):
            return iter([Finish("content_filter")])
        if isinstance(error, ModelRefusalError):
            # The SDK fails for a refusal, and what was not read of a failed run yet is lost.
            return iter([RefusalDelta(error.refusal.removeprefix(telling.refusal))])
        if isinstance(error, StreamEndedError):
            telling.cut, telling.cut_usage = error.reason, error.usage
        if telling.cut is not None:
            return iter([Finish(telling.cut)])
        return turn_error_of(_ToldError(telling.error_code, error)) or error

    def _waiting(self, result: RunResultStreaming) -> Iterator[AgentEvent]:
        """Ask for what must be approved, and keep what the next turn goes on with."""
        items = [cast("Any", item.to_input_item()) for item in result.new_items if not _asks(item)]
        known = {item.get(name) for item in items for name in ("call_id", "id")}
        asked: list[Asked] = []
        requests: list[OutputItem] = []
        agent = self._telling.agent or self._starts.name
        for item in result.interruptions:
            if item.tool_name not in self._names:
                asked.append(_asked(item, known))
                requests.append(OutputItem(_request(asked[-1])))
        given = self._given
        is_seen = agent == self._root.name and not (asked or given.open_items or given.approved)
        if not is_seen or self._telling.is_own or any(map(_has_more, items)):
            yield kept(Unfinished(agent, [*given.open_items, *items], given.after, asked))
        yield from requests

    def _final(self, result: RunResultStreaming) -> Iterator[AgentEvent]:
        """Tell what was not streamed: a tool's output as the answer, text that waited for a guardrail."""
        last = result.new_items[-1] if result.new_items else None
        if last is not None and last.type == "tool_call_output_item":
            yield from self._telling.text(_text_of(result.final_output))
        yield from self._telling.released


class _ToldError(Exception):
    """An error of the model's stream, with the code that the stream told."""

    def __init__(self, code: str | None, cause: Exception) -> None:
        super().__init__()
        self.code = code
        self.status_code = 429 if code == "rate_limit_exceeded" else None
        self.__cause__ = cause


def _asked(item: ToolApprovalItem, known: set[Any]) -> Asked:
    """Return what the client is asked for; raises `TurnError` for what no later turn could go on with.

    That is anything but a function's call, and what an agent that is used as a tool asks for.
    """
    raw: Any = item.raw_item
    name, arguments = item.tool_name or "", item.arguments or "{}"
    server = getattr(raw, "server_label", None) or "agent"
    request_id, call_id = getattr(raw, "id", None), getattr(raw, "call_id", None)
    kind = getattr(raw, "type", None)
    if kind == "mcp_approval_request" and request_id in known:
        return Asked(name, arguments, server, request_id=request_id)
    if kind == "function_call" and call_id in known:
        return Asked(name, arguments, server, call_id)
    msg = "This agent asks for an approval that cannot be given here."
    raise TurnError(msg)


def _request(asked: Asked) -> dict[str, Any]:
    return {
        "type": "mcp_approval_request",
        "name": asked.name,
        "arguments": asked.arguments,
        "server_label": asked.server,
    }


def _asks(item: RunItem) -> bool:
    return item.type == "tool_approval_item"


def _has_more(item: dict[str, Any]) -> bool:
    """Whether a call has fields that its model wants back, and that no client's call has."""
    more = item.get("provider_data") or {}
    return item.get("type") == "function_call" and bool(more.keys() - {"model", "response_id"})


def _run_of(task: asyncio.Task[Any]) -> object:
    """Return the run whose task it is, of those that the SDK makes; not of those that tools make."""
    # Python 3.12 and later; before it, a cancelled tool may still clean up when its turn has ended.
    context = getattr(task, "get_context", None)
    frame = getattr(task.get_coro(), "cr_frame", None)
    if context is None or frame is None or not frame.f_globals["__name__"].startswith("agents."):
        return None
    return context().get(_RUN)


def _text_of(output: Any) -> str:
    if isinstance(output, str):
        return output
    if (dump := getattr(output, "model_dump_json", None)) is not None:
        return str(dump())
    try:
        return msgspec.json.encode(output).decode()
    except TypeError:
        return str(output)
