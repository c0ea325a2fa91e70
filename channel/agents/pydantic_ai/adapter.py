"""Agents of Pydantic AI, unmodified."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, Final, cast

import msgspec
from pydantic_ai import (
    AgentRunResultEvent,
    DeferredToolRequests,
    ExternalToolset,
    RunContext,
    StructuredDict,
)
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import ReinjectSystemPrompt
from pydantic_ai.exceptions import (
    AgentRunError,
    ContentFilterError,
    IncompleteToolCall,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import (
    BinaryContent,
    FilePart,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
    ToolReturnPart,
)
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RunUsage
from pydantic_core import to_json

from channel.agent import (
    Agent,
    AgentEvent,
    Finish,
    FunctionCallDelta,
    KeptState,
    OutputItem,
    ReasoningDelta,
    ToolFinished,
    ToolStarted,
    Turn,
    Usage,
    accepts,
)
from channel.agents.media import Media
from channel.agents.own_task import in_own_task
from channel.agents.provider_errors import turn_error_of
from channel.agents.pydantic_ai.messages import (
    approval_request,
    conversation_of,
    state_of,
    wanted_back,
)
from channel.agents.reading import (
    ClientTool,
    JsonFormat,
    client_tools,
    instructions_of,
    json_format,
    reasoning_effort,
    tool_mode,
    unsupported,
)


_FETCHES_ITSELF: Final = frozenset({"anthropic", "groq", "mistral", "openai"})
"""The model systems that are given an image's URL as it is; for others the framework would fetch it."""

_OUTPUT_TOOL: Final = "final_result"
_SETTINGS: Final = {
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "service_tier": "service_tier",
}


class CutStreamError(Exception):
    """A model's stream ended without its last event: what it said is not whole."""


def adapt(
    target: AbstractAgent[Any, Any],
    fresh: Callable[[], Any] | None = None,
    *,
    deps: Callable[[Turn], Any] | None = None,
) -> Agent:
    """Return a Pydantic AI agent as an agent.

    `deps` makes the dependencies of a run, of agents that have a `deps_type`. The request's tools
    become external tools, its JSON format the run's output type, its instructions follow the agent's.
    An answer that is no plain text, or that the agent validates, comes whole, when it is valid. A
    factory makes the agent of each turn.
    """

    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        agent: AbstractAgent[Any, Any] = fresh() if fresh else target
        tools = client_tools(turn)
        names = [tool.name for tool in tools]
        form = _form_of(agent, turn, names)
        _require_own_names(agent, {*names})
        told = _Telling({*names}, is_text=form.is_text)
        given = conversation_of(turn, _takes_url(agent))
        if turn.state:
            yield KeptState({})
        running: Any = agent.run_stream_events(
            given.prompt,
            message_history=given.messages,
            deferred_tool_results=given.results,
            instructions="\n\n".join(instructions_of(turn)) or None,
            output_type=form.output_type,
            toolsets=[ExternalToolset([_definition(tool) for tool in tools])],
            model_settings=_settings(turn, names),
            capabilities=[ReinjectSystemPrompt()],
            deps=deps(turn) if deps else None,
        )
        async with running as events:
            try:
                async for event in events:
                    for each in told.take(event):
                        yield each
            except AgentRunError as error:
                yield _usage(events.usage)
                if (reason := _limit(error, events.all_messages())) is None:
                    raise turn_error_of(error) or error from error
                yield Finish(reason)
                return
            yield _usage(events.usage)
            if (reason := _stop(events.all_messages())) is not None:
                yield Finish(reason)

    return accepts("reasoning", "text", *_SETTINGS)(in_own_task(run))


class _Form(msgspec.Struct, frozen=True):
    """The form of an answer; without an `output_type` it is the agent's own."""

    is_text: bool
    output_type: Any = None


def _form_of(agent: AbstractAgent[Any, Any], turn: Turn, names: Sequence[str]) -> _Form:
    wanted = json_format(turn)
    if getattr(agent, "_output_validators", None):
        # Such an agent takes no other form, not even that of a call for the client.
        if wanted is not None:
            raise unsupported("a form of JSON, since it validates its answers", "text.format")
        if names:
            raise unsupported("tools, since it validates its answers", "tools")
        return _Form(is_text=False)
    own = agent.output_type
    kinds: list[Any] = [*own] if isinstance(own, list | tuple) else [own]
    if wanted is not None:
        kinds = [dict if wanted.schema is None else _json_object(wanted)]
    is_text = all(kind in (str, DeferredToolRequests) for kind in kinds)
    if not is_text and _OUTPUT_TOOL in names:
        raise unsupported(f"a function that is named {_OUTPUT_TOOL}", "tools")
    return _Form(is_text, [*kinds, DeferredToolRequests])


def _json_object(wanted: JsonFormat) -> Any:
    schema = dict(wanted.schema or {})
    try:
        return StructuredDict(schema, name=wanted.name, description=wanted.description)
    except UserError:
        what = "this JSON schema: it must be one of an object that does not contain itself"
        raise unsupported(what, "text.format") from None


class _Telling:
    """From the events of a run to agent events."""

    def __init__(self, client_tools: set[str], *, is_text: bool) -> None:
        self._client_tools = client_tools
        self._is_text = is_text
        self._calls: dict[int, str] = {}

    def take(self, event: Any) -> Iterator[AgentEvent]:
        match event:
            case PartStartEvent(index=index, part=part):
                yield from self._start(index, part)
            case PartDeltaEvent(index=index, delta=delta):
                yield from self._grow(index, delta)
            case PartEndEvent(part=ThinkingPart() as part):
                yield ReasoningDelta(encrypted_content=wanted_back(part))
            case FunctionToolCallEvent(part=part) if part.tool_name not in self._client_tools:
                yield ToolStarted(part.tool_call_id, part.tool_name, part.args_as_json_str())
            case FunctionToolResultEvent(part=part):
                yield _finished(part)
            case AgentRunResultEvent(result=result):
                yield from self._result(result.output)

    def _start(self, index: int, part: Any) -> Iterator[AgentEvent]:
        self._calls.pop(index, None)
        match part:
            case TextPart(content=text) if self._is_text:
                yield text
            case ThinkingPart(content=text):
                yield ReasoningDelta(text)
            case ToolCallPart(tool_name=name) if name in self._client_tools:
                self._calls[index] = part.tool_call_id
                # What has begun is a piece of JSON, if it is text.
                args = part.args if isinstance(part.args, str) else part.args_as_json_str()
                yield FunctionCallDelta(part.tool_call_id, args if part.args else "", name)
            case NativeToolCallPart(tool_name=name):
                label = part.provider_name or "agent"
                yield ToolStarted(part.tool_call_id, name, part.args_as_json_str(), label)
            case NativeToolReturnPart():
                yield _finished(part)
            case FilePart(content=BinaryContent() as content) if content.is_image:
                image = {"type": "image_generation_call", "status": "completed"}
                yield OutputItem({**image, "result": content.base64})

    def _grow(self, index: int, delta: Any) -> Iterator[AgentEvent]:
        match delta:
            case TextPartDelta(content_delta=text) if self._is_text:
                yield text
            case ThinkingPartDelta(content_delta=str(text)):
                yield ReasoningDelta(text)
            case ToolCallPartDelta(args_delta=str(args)) if index in self._calls:
                yield FunctionCallDelta(self._calls[index], args)

    def _result(self, output: Any) -> Iterator[AgentEvent]:
        if isinstance(output, DeferredToolRequests):
            for part in output.approvals:
                yield OutputItem(approval_request(part))
            yield KeptState(state_of(output.approvals))
        elif not self._is_text and not isinstance(output, BinaryContent):
            yield output if isinstance(output, str) else to_json(output).decode()


def _finished(part: Any) -> ToolFinished:
    if isinstance(part, ToolReturnPart | NativeToolReturnPart) and part.outcome == "success":
        return ToolFinished(part.tool_call_id, part.model_response_str())
    return ToolFinished(part.tool_call_id, error="The tool failed.")


def _usage(usage: RunUsage) -> Usage:
    return Usage(
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.details.get("reasoning_tokens", 0),
    )


def _limit(error: AgentRunError, messages: list[ModelMessage]) -> str | None:
    """Return which limit ended the run, where it was one."""
    if isinstance(error, UsageLimitExceeded | IncompleteToolCall):
        return "max_output_tokens"
    return "content_filter" if isinstance(error, ContentFilterError) else _stop(messages)


def _stop(messages: list[ModelMessage]) -> str | None:
    """Return which limit ended the last answer; raises `CutStreamError` for one that is not whole."""
    last = next((each for each in reversed(messages) if isinstance(each, ModelResponse)), None)
    reason = last.finish_reason if last else None
    if last and last.provider_url and reason is None:
        raise CutStreamError  # a model behind a URL always says why it stopped
    return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reason or "")


def _settings(turn: Turn, names: list[str]) -> Callable[[RunContext[Any]], ModelSettings]:
    settings: dict[str, Any] = {
        name: turn.options[option]
        for option, name in _SETTINGS.items()
        if turn.options.get(option) is not None
    }
    if (effort := reasoning_effort(turn)) is not None:
        settings["thinking"] = False if effort == "none" else effort
    if not turn.parallel_tool_calls:
        settings["parallel_tool_calls"] = False

    def of_step(context: RunContext[Any]) -> ModelSettings:
        # A choice is of the first call: after it, the agent must be free to answer.
        is_forced = tool_mode(turn) == "required" and names and context.run_step <= 1
        return cast("ModelSettings", {**settings, "tool_choice": names} if is_forced else settings)

    return of_step


def _definition(tool: ClientTool) -> ToolDefinition:
    return ToolDefinition(
        name=tool.name,
        parameters_json_schema=dict(tool.parameters),
        description=tool.description or None,
        strict=tool.strict or None,
    )


def _takes_url(target: AbstractAgent[Any, Any]) -> Callable[[Media], bool]:
    model: Any = getattr(target, "model", None)
    system = model.partition(":")[0] if isinstance(model, str) else getattr(model, "system", None)
    return lambda media: media.is_image and str(system).partition("-")[0] in _FETCHES_ITSELF


def _require_own_names(target: AbstractAgent[Any, Any], names: set[str]) -> None:
    for toolset in target.toolsets:
        taken = names & set(getattr(toolset, "tools", ()))
        if taken:
            raise unsupported(f"a tool with the name of one of its own, {min(taken)}", "tools")
