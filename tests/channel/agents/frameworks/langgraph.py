"""LangGraph with a scripted chat model, a real one of LangChain's, in the usual agent graph."""

import asyncio
import json
import warnings
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
)
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from msgspec import Struct, field

from channel.agents.langgraph import as_requested
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


class Chunk(Struct, frozen=True):
    """The model's provider sends these pieces of a message as they are."""

    messages: tuple[AIMessageChunk, ...]


class Play(Struct):
    """The script, and what the calls so far were given; copies of a model share it."""

    script: Iterator[Sequence[Step | Chunk]]
    seen: list[Seen] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    """How the model was called: what is bound to it."""
    inputs: list[list[BaseMessage]] = field(default_factory=list)


class ScriptedModel(BaseChatModel):
    """A chat model that says a script: text, thinking as Anthropic has it, pieces of tool calls."""

    play: Any
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: str | None = None

    @property
    def seen(self) -> list[Seen]:
        found: list[Seen] = self.play.seen
        return found

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        choice = {"tool_choice": tool_choice} if tool_choice else {}
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools], **choice, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        self._note(messages, kwargs)
        telling = _Telling()
        for step in next(self.play.script):
            yield from (ChatGenerationChunk(message=each) for each in telling.messages(step))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        self._note(messages, kwargs)
        telling = _Telling()
        for step in next(self.play.script):
            for message in telling.messages(step):
                yield ChatGenerationChunk(message=message)
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

    def _note(self, messages: list[BaseMessage], kwargs: Mapping[str, Any]) -> None:
        seen = _seen(messages)
        seen.tools = [each["function"]["name"] for each in kwargs.get("tools", ())]
        seen.schema = _schema(kwargs)
        seen.max_tokens = self.max_tokens
        seen.temperature = self.temperature
        self.play.seen.append(seen)
        self.play.calls.append({**kwargs, "top_p": self.top_p, "effort": self.reasoning_effort})
        self.play.inputs.append(messages)


class SilentModel(ScriptedModel):
    """The same model without streaming: every message comes whole."""

    disable_streaming: bool = True

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, None, **kwargs))


class _Telling:
    """From steps to pieces of one message."""

    def __init__(self) -> None:
        self._calls = 0

    def messages(self, step: Step | Chunk) -> Iterator[AIMessageChunk]:
        match step:
            case Say(pieces):
                yield from (AIMessageChunk(content=piece) for piece in pieces)
            case Think(pieces, signature):
                block = {"type": "thinking", "index": 0}
                yield from (
                    AIMessageChunk(content=[{**block, "thinking": piece}]) for piece in pieces
                )
                if signature is not None:
                    yield AIMessageChunk(content=[{**block, "signature": signature}])
            case Call(name, arguments, call_id):
                text = json.dumps(arguments)
                place = {"index": self._calls}
                self._calls += 1
                first = {"name": name, "args": text[:3], "id": call_id, **place}
                rest = {"name": None, "args": text[3:], "id": None, **place}
                for piece in (first, rest):
                    yield AIMessageChunk(content="", tool_call_chunks=[piece])  # type: ignore[list-item] # a TypedDict
            case Spend(read, written, cached, reasoning):
                usage = {
                    "input_tokens": read,
                    "output_tokens": written,
                    "total_tokens": read + written,
                    "input_token_details": {"cache_read": cached},
                    "output_token_details": {"reasoning": reasoning},
                }
                yield AIMessageChunk(content="", usage_metadata=usage)  # type: ignore[arg-type] # a TypedDict
            case Stop(reason):
                yield AIMessageChunk(content="", response_metadata={"finish_reason": reason})
            case Chunk(messages):
                yield from messages


def scripted_model(
    script: Sequence[Sequence[Step | Chunk]],
    kind: type[ScriptedModel] = ScriptedModel,
    **fields: Any,
) -> ScriptedModel:
    """Return a chat model that says the script, and takes `response_format`."""
    return kind(play=Play(iter(script)), **{"profile": {"structured_output": True}, **fields})


weather = tool("weather")(own_weather)


def react_agent(model: Any, tools: Sequence[Any] = (weather,), **options: Any) -> Any:
    """Return the usual agent graph; its maker tells that it has moved to another package."""
    from langgraph.prebuilt import create_react_agent  # noqa: PLC0415 - slow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create_react_agent(model, [*tools], **{"prompt": "Be kind.", **options})


def _schema(kwargs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = kwargs.get("response_format") or {}
    found: Mapping[str, Any] | None = wanted.get("json_schema", {}).get("schema")
    return found


def _seen(messages: Sequence[BaseMessage]) -> Seen:
    seen = Seen()
    for message in messages:
        if message.text:
            seen.texts.append((_ROLES[message.type], message.text))
        if isinstance(message, AIMessage):
            seen.calls += [(call["id"] or "", call["name"]) for call in message.tool_calls]
        for block in message.content if isinstance(message.content, list) else ():
            if isinstance(block, dict) and "base64" in block:
                seen.images.append(b64decode(block["base64"]))
            elif isinstance(block, dict) and block.get("signature"):
                seen.signatures.append(block["signature"])
    return seen


_ROLES = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool"}


class _LangGraph:
    unsupported: ClassVar[dict[str, str]] = {}

    def agent(self, script: Script) -> tuple[Any, ScriptedModel]:
        model = scripted_model(script)
        return react_agent(as_requested(model)), model


SCRIPTED = _LangGraph()
