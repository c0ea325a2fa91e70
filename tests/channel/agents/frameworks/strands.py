"""Strands with a scripted model."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from strands import Agent, tool
from strands.models import Model

from channel.agents.strands.tools import FinalAnswer
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


Chunk = dict[str, Any]


class ScriptedConfig(TypedDict, total=False):
    """How a scripted model is configured."""

    model_id: str
    max_tokens: int
    temperature: float
    context_window_limit: int


class ScriptedModel(Model):
    """A model that says a script, and keeps what it was given.

    A step may be a chunk of its stream as it is; then nothing is added at the beginning and the end.
    """

    def __init__(
        self, script: Sequence[Sequence[Step | Chunk]], **config: Unpack[ScriptedConfig]
    ) -> None:
        self._script = iter(script)
        self.seen: list[Seen] = []
        self.choices: list[Any] = []
        self.messages: list[Sequence[Mapping[str, Any]]] = []
        self.config: ScriptedConfig = {"model_id": "scripted", **config}

    def update_config(self, **model_config: Unpack[ScriptedConfig]) -> None:  # type: ignore[override]  # Strands' way
        self.config.update(model_config)

    def get_config(self) -> ScriptedConfig:
        return self.config

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("hosted turns stream")

    async def stream(
        self, messages: Any, tool_specs: Any = None, system_prompt: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        specs = {spec["name"]: spec["inputSchema"]["json"] for spec in tool_specs or ()}
        self.messages.append(messages)
        self.choices.append(kwargs.get("tool_choice"))
        self.seen.append(_seen(messages, specs, system_prompt, self.config))
        for step in _whole(next(self._script), answers=FinalAnswer.__name__ in specs):
            match step:
                case dict():
                    yield step
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


def _whole(steps: Sequence[Step | Chunk], *, answers: bool) -> Iterator[Step | Chunk]:
    """Yield the chunks of a reply, and the steps that are none."""
    if any(isinstance(step, dict) for step in steps):
        yield from steps
        return
    scripted = [step for step in steps if not isinstance(step, dict)]
    yield {"messageStart": {"role": "assistant"}}
    for step in scripted:
        yield from _chunks(step, answers=answers)
        yield step
    yield {"messageStop": {"stopReason": _stop_reason(scripted, answers=answers)}}
    yield from (_metadata(step) for step in scripted if isinstance(step, Spend))


def _chunks(step: Step, *, answers: bool) -> Iterator[Chunk]:
    match step:
        case Say(pieces) if answers:  # it says the arguments of the tool that takes the answer
            yield from _call(FinalAnswer.__name__, pieces, "call_answer")
        case Say(pieces):
            yield from _block({"text": piece} for piece in pieces)
        case Think(pieces, signature):
            texts = [{"reasoningContent": {"text": piece}} for piece in pieces]
            signed = [{"reasoningContent": {"signature": signature}}] if signature else []
            yield from _block([*texts, *signed])
        case Call(name, arguments, call_id):
            text = json.dumps(arguments)
            yield from _call(name, (text[:3], text[3:]), call_id)


def _call(name: str, pieces: Sequence[str], call_id: str) -> Iterator[Chunk]:
    yield {"contentBlockStart": {"start": {"toolUse": {"toolUseId": call_id, "name": name}}}}
    yield from _block({"toolUse": {"input": piece}} for piece in pieces)


def _block(deltas: Any) -> Iterator[Chunk]:
    for delta in deltas:
        yield {"contentBlockDelta": {"delta": delta}}
    yield {"contentBlockStop": {}}


def _stop_reason(steps: Sequence[Step], *, answers: bool) -> str:
    for step in steps:
        if isinstance(step, Stop):
            return "max_tokens" if step.reason == "length" else "content_filtered"
        if isinstance(step, Call) or (answers and isinstance(step, Say)):
            return "tool_use"
    return "end_turn"


def _metadata(spent: Spend) -> Chunk:
    usage = {
        "inputTokens": spent.input_tokens - spent.cached_tokens,  # Converse counts them beside
        "outputTokens": spent.output_tokens,
        "totalTokens": spent.input_tokens + spent.output_tokens,
        "cacheReadInputTokens": spent.cached_tokens,
    }
    return {"metadata": {"usage": usage, "metrics": {"latencyMs": 1}}}


def _seen(
    messages: Sequence[Mapping[str, Any]],
    specs: dict[str, Any],
    system_prompt: str | None,
    config: ScriptedConfig,
) -> Seen:
    seen = Seen(
        tools=[name for name in specs if name != FinalAnswer.__name__],
        schema=specs.get(FinalAnswer.__name__),
        max_tokens=config.get("max_tokens"),
        temperature=config.get("temperature"),
    )
    if system_prompt:
        seen.texts.append(("system", system_prompt))
    for message in messages:
        for block in message["content"]:
            match block:
                case {"text": text}:
                    seen.texts.append((message["role"], text))
                case {"image": {"source": {"bytes": content}}}:
                    seen.images.append(content)
                case {"reasoningContent": {"reasoningText": {"signature": signature}}}:
                    seen.signatures.append(signature)
                case {"toolUse": used}:
                    seen.calls.append((used["toolUseId"], used["name"]))
                case {"toolResult": result}:
                    seen.texts += [("tool", each["text"]) for each in result["content"]]
    return seen


weather = tool(name="weather")(own_weather)


class _Strands:
    unsupported: dict[str, str] = {  # noqa: RUF012 - read only
        "reasoning_tokens_are_counted": "Strands' usage has no count of the reasoning tokens",
    }

    def agent(self, script: Script) -> tuple[Agent, ScriptedModel]:
        model = ScriptedModel(script)
        return Agent(model, system_prompt="Be kind.", tools=[weather]), model


SCRIPTED = _Strands()
