"""Microsoft Agent Framework with a scripted chat client."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from agent_framework import (
    Agent,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FinishReason,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    UsageDetails,
    tool,
)
from agent_framework.observability import ChatTelemetryLayer

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


class ScriptedClient(
    FunctionInvocationLayer[Any],
    ChatMiddlewareLayer[Any],
    ChatTelemetryLayer[Any],
    BaseChatClient[Any],
):
    """A chat client that says a script, and keeps what it was given."""

    def __init__(self, script: Script, **options: Any) -> None:
        super().__init__(**options)
        self._script = iter(script)
        self.seen: list[Seen] = []
        self.given: list[dict[str, Any]] = []
        self.messages: list[list[Message]] = []

    def _inner_get_response(
        self,
        *,
        messages: Sequence[Message],
        stream: bool,
        options: Mapping[str, Any],
        **kwargs: Any,
    ) -> ResponseStream[ChatResponseUpdate, ChatResponse[Any]]:
        assert stream, "hosted turns stream"
        self.given.append(dict(options))
        self.messages.append([*messages])
        self.seen.append(_seen(messages, options))
        return self._build_response_stream(self._said(next(self._script)))

    async def _said(self, steps: Sequence[Step]) -> AsyncIterator[ChatResponseUpdate]:
        for step in steps:
            for content in _contents(step):
                yield ChatResponseUpdate(contents=[content], role="assistant")
            match step:
                case Stop(reason):
                    yield ChatResponseUpdate(finish_reason=FinishReason(reason))
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
        if not any(isinstance(step, Stop) for step in steps):
            calls = any(isinstance(step, Call) for step in steps)
            yield ChatResponseUpdate(finish_reason="tool_calls" if calls else "stop")


def _contents(step: Step) -> Iterator[Content]:
    match step:
        case Say(pieces):
            yield from (Content.from_text(piece) for piece in pieces)
        case Think(pieces, signature):
            yield from (Content.from_text_reasoning(text=piece) for piece in pieces)
            if signature:
                yield Content.from_text_reasoning(protected_data=signature)
        case Call(name, arguments, call_id):
            text = json.dumps(arguments)
            for piece in (text[:3], text[3:]):
                yield Content.from_function_call(call_id, name, arguments=piece)
        case Spend():
            details = UsageDetails(
                input_token_count=step.input_tokens,
                output_token_count=step.output_tokens,
                cache_read_input_token_count=step.cached_tokens,
                reasoning_output_token_count=step.reasoning_tokens,
            )
            yield Content.from_usage(details)


def _seen(messages: Sequence[Message], options: Mapping[str, Any]) -> Seen:
    wanted = options.get("response_format") or {}
    seen = Seen(
        tools=[each.name for each in options.get("tools") or ()],
        schema=wanted.get("json_schema", {}).get("schema"),
        max_tokens=options.get("max_tokens"),
        temperature=options.get("temperature"),
    )
    if options.get("tool_choice") == "none":
        seen.tools = []
    if instructions := options.get("instructions"):
        seen.texts.append(("system", instructions))
    for message in messages:
        for content in message.contents:
            match content.type:
                case "text":
                    seen.texts.append((str(message.role), content.text or ""))
                case "function_call":
                    seen.calls.append((content.call_id or "", content.name or ""))
                case "function_result":
                    seen.texts.append(("tool", str(content.result)))
                case "text_reasoning" if content.protected_data:
                    seen.signatures.append(content.protected_data)
                case "data":
                    seen.images.append(b64decode((content.uri or "").partition(",")[2]))
    return seen


weather = tool(name="weather")(own_weather)


class _AgentFramework:
    unsupported: dict[str, str] = {}  # noqa: RUF012 - read only

    def agent(self, script: Script) -> tuple[Any, ScriptedClient]:
        client = ScriptedClient(script)
        return Agent(client, "Be kind.", tools=[weather]), client


SCRIPTED = _AgentFramework()
