"""Pydantic AI with a scripted model."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic_ai import Agent, Tool
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelResponseStreamEvent,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from tests.channel.agents.scripts import (
    Call,
    Fail,
    Meet,
    Say,
    Script,
    Seen,
    Spend,
    Step,
    Stop,
    Think,
    Wait,
    own_weather,
)


class ScriptedModel(Model):
    """A model that says a script, and keeps what it was given; one with a URL is a provider's."""

    def __init__(
        self, script: Script, profile: ModelProfile | None = None, url: str | None = None
    ) -> None:
        super().__init__(profile=profile)
        self._script = iter(script)
        self._url = url
        self.seen: list[Seen] = []

    @property
    def model_name(self) -> str:
        return "scripted"

    @property
    def system(self) -> str:
        return "scripted"

    async def request(self, *args: Any) -> ModelResponse:
        raise NotImplementedError("hosted turns stream")

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        self.seen.append(_seen(messages, settings or {}, parameters))
        yield _Streamed(parameters, next(self._script), self._url)


class _Streamed(StreamedResponse):
    def __init__(
        self, parameters: ModelRequestParameters, steps: Sequence[Step], url: str | None
    ) -> None:
        super().__init__(model_request_parameters=parameters)
        self._steps = steps
        self._url = url

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for i, step in enumerate(self._steps):
            for event in self._events(i, step):
                yield event
            match step:
                case Fail(text):
                    raise RuntimeError(text)
                case Wait(begun, ended):
                    begun.set()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        ended.set()
                case Meet(barrier):
                    await barrier.wait()

    def _events(self, i: int, step: Step) -> Iterator[ModelResponseStreamEvent]:
        parts, output = self._parts_manager, self.model_request_parameters.output_tools
        match step:
            case Say(pieces) if output:  # it says the arguments of the output tool
                yield from self._call(i, output[0].name, pieces, f"call_out_{i}")
            case Say(pieces):
                for piece in pieces:
                    yield from parts.handle_text_delta(vendor_part_id=i, content=piece)
            case Think(pieces, signature):
                for piece in pieces:
                    yield from parts.handle_thinking_delta(vendor_part_id=i, content=piece)
                if signature:
                    yield from parts.handle_thinking_delta(
                        vendor_part_id=i, signature=signature, provider_name="scripted"
                    )
            case Call(name, arguments, call_id):
                text = json.dumps(arguments)
                yield from self._call(i, name, (text[:3], text[3:]), call_id)
            case Spend():
                self._usage += RequestUsage(
                    input_tokens=step.input_tokens,
                    output_tokens=step.output_tokens,
                    cache_read_tokens=step.cached_tokens,
                    details={"reasoning_tokens": step.reasoning_tokens},
                )
            case Stop(reason):
                self.finish_reason = "length" if reason == "length" else "content_filter"

    def _call(
        self, i: int, name: str, pieces: Sequence[str], call_id: str
    ) -> Iterator[ModelResponseStreamEvent]:
        for n, piece in enumerate(pieces):
            yield from self._parts_manager.handle_tool_call_delta_events(
                vendor_part_id=i,
                tool_name=None if n else name,
                args=piece,
                tool_call_id=call_id,
            )

    async def close_stream(self) -> None:
        pass

    @property
    def model_name(self) -> str:
        return "scripted"

    @property
    def provider_name(self) -> str:
        return "scripted"

    @property
    def provider_url(self) -> str | None:
        return self._url

    @property
    def timestamp(self) -> datetime:
        return datetime.fromtimestamp(0, UTC)


def _seen(
    messages: list[ModelMessage], settings: ModelSettings, parameters: ModelRequestParameters
) -> Seen:
    output = parameters.output_tools[0].parameters_json_schema if parameters.output_tools else None
    native = parameters.output_object.json_schema if parameters.output_object else None
    seen = Seen(
        tools=[tool.name for tool in parameters.function_tools],
        schema=output or native,
        max_tokens=settings.get("max_tokens"),
        temperature=settings.get("temperature"),
    )
    last = messages[-1]
    if isinstance(last, ModelRequest) and last.instructions:
        seen.texts.append(("system", last.instructions))
    for part in (part for message in messages for part in message.parts):
        match part:
            case SystemPromptPart(content):
                seen.texts.append(("system", content))
            case UserPromptPart(str(content)):
                seen.texts.append(("user", content))
            case UserPromptPart(content):
                seen.texts += [("user", each) for each in content if isinstance(each, str)]
                seen.images += [e.data for e in content if isinstance(e, BinaryContent)]
            case TextPart(content):
                seen.texts.append(("assistant", content))
            case ThinkingPart(signature=str(signature)):
                seen.signatures.append(signature)
            case ToolCallPart(name, _, call_id):
                seen.calls.append((call_id, name))
            case ToolReturnPart():
                seen.texts.append(("tool", part.model_response_str()))
    return seen


weather = Tool(own_weather, name="weather")


class _PydanticAI:
    unsupported: dict[str, str] = {}  # noqa: RUF012 - read only

    def agent(self, script: Script) -> tuple[Agent, ScriptedModel]:
        model = ScriptedModel(script)
        return Agent(model, instructions="Be kind.", tools=[weather]), model


SCRIPTED = _PydanticAI()
