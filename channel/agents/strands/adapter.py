"""Agents of Strands, unmodified: each turn has an agent of its own, made anew or copied."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, cast
from weakref import WeakSet

from strands import Agent as StrandsAgent
from strands.hooks import BeforeToolCallEvent, BeforeToolsEvent
from strands.middleware import (
    ExecuteToolContext,
    ExecuteToolStage,
    InvokeModelContext,
    InvokeModelResult,
    InvokeModelStage,
    ModelStopReason,
)
from strands.types.agent import Limits
from strands.types.exceptions import MaxTokensReachedException, StructuredOutputException
from strands.types.tools import ToolSpec

from channel.agent import Agent, AgentEvent, Finish, Turn, TurnError, accepts
from channel.agents.provider_errors import turn_error_of
from channel.agents.reading import (
    JsonFormat,
    client_tools,
    instructions_of,
    json_format,
    reasoning_effort,
    tool_mode,
    unsupported,
)
from channel.agents.strands.copies import copy_of, silence
from channel.agents.strands.history import conversation_of, split_conversation
from channel.agents.strands.models import PacedModel, models_of, options_of, tuned
from channel.agents.strands.telling import Telling
from channel.agents.strands.tools import DeclaredTool, FinalAnswer, wanted_form


DEFAULT_TURNS: Final = 100
"""Calls of the model in one turn, after which the response is incomplete: Strands itself has no limit."""


class ToolExitError(Exception):
    """What runs in a turn wanted to end the process (`SystemExit`)."""


def adapt(
    target: Any, fresh: Callable[[], Any] | None = None, *, limits: Limits | None = None
) -> Agent:
    """Return a Strands agent as an agent.

    Each turn runs on an agent that `fresh` made, or on a copy of the target as it is now; its tools
    find the turn in `invocation_state["turn"]`. `limits` are those of `stream_async`, for each turn;
    unless they say how many times the model is called, it is `DEFAULT_TURNS`. Raises `TypeError` for an agent that keeps more than one turn itself, a graph and a swarm.
    """
    _require_servable(target, is_made_anew=fresh is not None)
    template = copy_of(target)
    used = WeakSet[StrandsAgent]()
    models = models_of(target.model, vars(target).get("_model_router"))

    @accepts("text", *frozenset.intersection(*map(options_of, models)))
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        made = fresh() if fresh else target
        own = copy_of(template, session_id=turn.response_id) if made is target else made
        if own in used:
            raise TypeError("the factory must return a new agent for each turn")
        used.add(own)
        try:
            async with aclosing(_Run(own, turn, limits).events()) as events:
                async for event in events:
                    yield event
        except MaxTokensReachedException:
            yield Finish("max_output_tokens")
        except StructuredOutputException:
            # Its text may hold what the model said.
            message = "The model did not answer in the form that was asked for."
            raise TurnError(message) from None
        except Exception as error:
            if (known := turn_error_of(error)) is not None:
                raise known from error
            raise
        finally:
            if own is made:
                own.cleanup()

    return agent


def _require_servable(target: Any, *, is_made_anew: bool) -> None:
    """Refuse what would mix turns up, or keep the history a second time."""
    if not isinstance(target, StrandsAgent):
        msg = (
            f"{type(target).__name__} of Strands cannot be given the history of a conversation; "
            "write an async def over a Turn that calls it"
        )
        raise TypeError(msg)
    has = vars(target).get
    background = getattr(has("_background_tasks"), "_config", {})
    faults = {
        "a session_manager, but the host keeps the conversation": has("_session_manager"),
        "a stateful model, but the host keeps the conversation": target.model.stateful,
        "checkpointing, which would stop each turn half-way": has("_checkpointing"),
        "background tasks that a turn does not wait for": (
            background.get("wait_for_completion") is False
        ),
    }
    for fault in (fault for fault, is_found in faults.items() if is_found):
        msg = f"this Strands agent has {fault}; make it without"
        raise TypeError(msg)
    if not is_made_anew and getattr(target.context_manager, "_stash_is_durable", False):
        msg = (
            "the context manager of this Strands agent stores what turns must not share; "
            "name a function without parameters that returns the agent"
        )
        raise TypeError(msg)


class _Run:
    """One turn of one agent."""

    def __init__(self, own: StrandsAgent, turn: Turn, limits: Limits | None) -> None:
        silence(own)
        self._own = own
        self._turn = turn
        self._form = _object_format(turn)
        self._exit: ToolExitError | None = None
        self._answers = _answering_tool(own, self._form)
        self._clients = _declare(own, turn, self._answers)
        self._instructions = "\n\n".join(instructions_of(turn))
        self._limit: int | None = turn.options.get("max_output_tokens")
        self._limits = _limits(limits, self._limit)
        self._options = _options(turn)
        self._is_forced = tool_mode(turn) == "required"
        # A new list: the one that the agent was made with may be another agent's, too.
        known, self._asked_for = split_conversation(own.messages, conversation_of(turn))
        own.messages = cast("Any", known)
        # What the run tells and was not taken yet: an event, or None when it ended.
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        own.add_middleware(InvokeModelStage.Input, self._asked)
        own.add_middleware(InvokeModelStage.Output, self._answered)
        own.add_middleware(ExecuteToolStage, self._executed)

    async def events(self) -> AsyncGenerator[AgentEvent, None]:
        """Yield what the run says.

        The run has a task of its own, which waits for nothing but what the agent waits for: wherever
        a cancellation meets it, the agent's own frames unwind.
        """
        telling = Telling(
            self._clients, answers=self._answers, streams_calls=not _may_be_refused(self._own)
        )
        finish: Finish | None = None
        task = asyncio.create_task(self._run())
        task.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            while (event := await self._events.get()) is not None:
                for said in telling.take(event):
                    if isinstance(said, Finish):
                        finish = said
                    else:
                        yield said
                self._events.task_done()
            await task
        finally:
            if not task.done():
                self._own.cancel()
                task.cancel()
                await asyncio.wait({task})
                self._own.cancel()  # the run cleared it, but a thread may still look at it
            if not task.cancelled():
                task.exception()  # seen: it was raised above, or nobody is there to see it
        if finish is not None:
            yield finish

    async def _run(self) -> None:
        try:
            await self._told()
        except SystemExit as error:  # of a hook or a model: out of a task it ends the process
            raise ToolExitError("the agent wanted to end the process") from error
        if self._exit is not None:
            raise self._exit

    async def _told(self) -> None:
        wanted_form.set(self._form)
        events = self._own.stream_async(
            cast("Any", self._asked_for),
            invocation_state={"turn": self._turn},
            structured_output_model=FinalAnswer if self._form else None,
            limits=self._limits,
        )
        async for event in events:
            self._events.put_nowait(event)
        await self._own.shutdown_async()  # saves what the agent remembers, now or never

    def _asked(self, context: InvokeModelContext) -> InvokeModelContext:
        """Add to a call of the model what the request asks for."""
        if self._exit is not None:
            raise self._exit
        specs = context.tool_specs
        if self._form is not None:
            name = FinalAnswer.__name__
            specs = [FinalAnswer.told(spec) if spec["name"] == name else spec for spec in specs]
        choice: Any = context.tool_choice
        if not specs:
            specs = [_gone(name) for name in _called(context.messages)]
        if self._is_forced and choice is None:
            # A choice is of the first call: after it, the agent must be free to answer.
            specs = [spec for spec in specs if spec["name"] in self._clients]
            choice = {"any": {}} if len(specs) > 1 else {"tool": {"name": specs[0]["name"]}}
        options = dict(self._options)
        if self._limit is not None:
            spent = self._own.event_loop_metrics.accumulated_usage["outputTokens"]
            options["max_output_tokens"] = max(1, self._limit - spent)
        model: Any = PacedModel(tuned(context.model, options), self._events.join)
        return context.replace(
            system_prompt=_with_instructions(context.system_prompt, self._instructions),
            tool_specs=specs,
            tool_choice=choice,
            model=model,
        )

    async def _executed(
        self, context: ExecuteToolContext, execute: Callable[[Any], AsyncGenerator[Any, None]]
    ) -> AsyncGenerator[Any, None]:
        """Run a tool, which has a task of its own; where it wants to end the process, the turn fails."""
        try:
            async with aclosing(execute(context)) as events:
                async for event in events:
                    yield event
        except SystemExit as error:
            self._exit = ToolExitError("a tool wanted to end the process")
            raise self._exit from error

    def _answered(self, answer: InvokeModelResult) -> InvokeModelResult:
        """Leave the agent's own calls out of a message that also calls the client's functions.

        Their results would be lost with this run. In the next turn the model calls them again, if
        it still wants to.
        """
        self._is_forced = False
        stop = answer.result
        calls = [
            block["toolUse"]["name"] in self._clients
            for block in stop.message["content"]
            if "toolUse" in block
        ]
        if not any(calls) or all(calls):
            return answer
        content = [
            block
            for block in stop.message["content"]
            if "toolUse" not in block or block["toolUse"]["name"] in self._clients
        ]
        message: Any = {**stop.message, "content": content}
        return InvokeModelResult(
            ModelStopReason(stop.stop_reason, message, stop.usage, stop.metrics)
        )


def _object_format(turn: Turn) -> JsonFormat | None:
    """Return the form that is wanted: it becomes a tool's arguments, which are an object."""
    form = json_format(turn)
    kind = form.schema.get("type", "object") if form and form.schema else "object"
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise unsupported("a schema of anything but an object", "text.format.schema")
    return form


def _answering_tool(own: StrandsAgent, form: JsonFormat | None) -> str | None:
    """Return the name of the tool that takes the answer, where it must have a form."""
    if form is not None:
        return FinalAnswer.__name__
    model = vars(own).get("_default_structured_output_model")
    return None if model is None else str(model.__name__)


def _declare(own: StrandsAgent, turn: Turn, answering: str | None) -> frozenset[str]:
    """Add the client's functions to an agent, and return their names."""
    tools = client_tools(turn)
    if not tools and tool_mode(turn) == "required":
        raise unsupported("this choice of a tool", "tool_choice")
    registry = own.tool_registry
    taken = {*registry.registry, *registry.dynamic_tools, answering}
    for tool in tools:
        if tool.name in taken:
            raise unsupported(f"a tool with the name of one of its own, {tool.name}", "tools")
        if not isinstance(tool.parameters.get("properties", {}), Mapping):
            raise unsupported(f"the parameters of the tool {tool.name}", "tools")
        registry.register_dynamic_tool(DeclaredTool(tool))
    return frozenset(tool.name for tool in tools)


def _called(messages: Sequence[Any]) -> list[str]:
    """Return the names of the tools that a conversation calls."""
    blocks = (block for message in messages for block in message["content"])
    return [*dict.fromkeys(block["toolUse"]["name"] for block in blocks if "toolUse" in block)]


def _gone(name: str) -> ToolSpec:
    """Return what a model is told of a tool of the history: some refuse calls to tools that are not there."""
    schema = {"type": "object", "properties": {}}
    description = "This tool is not there any more."
    return {"name": name, "description": description, "inputSchema": {"json": schema}}


def _with_instructions(prompt: Any, instructions: str) -> Any:
    if not instructions:
        return prompt
    blocks = [{"text": prompt}] if isinstance(prompt, str) else list(prompt or ())
    return [*blocks, {"text": instructions}]


def _options(turn: Turn) -> Mapping[str, Any]:
    given = {name: turn.options.get(name) for name in ("temperature", "top_p")}
    given["reasoning"] = reasoning_effort(turn)
    return {name: value for name, value in given.items() if value is not None}


def _limits(limits: Limits | None, output_tokens: int | None) -> Limits:
    given: Limits = {"turns": DEFAULT_TURNS, **(limits or {})}
    if output_tokens is not None:
        given["output_tokens"] = min(output_tokens, given.get("output_tokens", output_tokens))
    return given


_DELEGATION: Final = "strands.agent._agent_delegation"


def _may_be_refused(own: StrandsAgent) -> bool:
    """Whether a hook or middleware of the agent may turn a call down, or change it, after the model made it."""
    before: Sequence[Any] = (
        BeforeToolsEvent(own, message={"role": "assistant", "content": []}, invocation_state={}),
        BeforeToolCallEvent(
            own,
            selected_tool=None,
            tool_use={"toolUseId": "", "name": "", "input": {}},
            invocation_state={},
        ),
    )
    callbacks: list[Any] = [each for e in before for each in own.hooks.get_callbacks_for(e)]
    middleware = getattr(vars(own).get("_middleware_registry"), "_handlers", {})
    callbacks += [each.handler for each in middleware.get(ExecuteToolStage, ())]
    return any(
        getattr(callback, "__module__", "") not in (_DELEGATION, __name__) for callback in callbacks
    )
