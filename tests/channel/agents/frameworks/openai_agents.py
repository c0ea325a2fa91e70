"""The OpenAI Agents SDK with a scripted model, which speaks the stream events of the Responses API."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from agents import (
    Agent,
    AgentOutputSchemaBase,
    Handoff,
    Model,
    ModelResponse,
    Tool,
    Usage,
    function_tool,
)
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.model_settings import ModelSettings
from msgspec import Struct
from openai.types.responses import ResponseCompletedEvent, ResponseStreamEvent
from pydantic import TypeAdapter

from channel.agents.media import parse_data_url
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


class Refuse(Struct, frozen=True):
    """The model refuses, in these pieces."""

    pieces: tuple[str, ...]


class Reason(Struct, frozen=True):
    """The model thinks aloud (raw reasoning text), in these pieces."""

    pieces: tuple[str, ...]
    rest: Mapping[str, Any] = {}
    """More fields of the reasoning item."""


class Cite(Struct, frozen=True):
    """The model annotates the text that it has just said."""

    annotation: Mapping[str, Any]


class Item(Struct, frozen=True):
    """The model says a whole output item, such as a hosted tool's call."""

    item: Mapping[str, Any]


class Tell(Struct, frozen=True):
    """The model's stream holds this event as it is."""

    event: Mapping[str, Any]


class Break(Struct, frozen=True):
    """The model's API ends its stream with a failed response."""

    code: str


Said = Step | Refuse | Reason | Cite | Item | Tell | Break
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_STOPS = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ScriptedModel(Model):
    """A model that says a script, and keeps what it was given.

    One that does not stream says everything in its last event, as simple models of users do.
    """

    def __init__(self, script: Sequence[Sequence[Said]], *, streams: bool = True) -> None:
        self._script = iter(script)
        self._streams = streams
        self.seen: list[Seen] = []
        self.inputs: list[list[Any]] = []
        self.settings: list[ModelSettings] = []

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Say the same at once, as agents that are tools of others ask for it."""
        *_, last = [event async for event in self.stream_response(*args, **kwargs)]
        assert isinstance(last, ResponseCompletedEvent)
        used = last.response.usage
        assert used is not None
        usage = Usage(1, used.input_tokens, total_tokens=used.total_tokens)
        usage.output_tokens = used.output_tokens
        return ModelResponse(last.response.output, usage, None)

    async def stream_response(  # noqa: PLR0917 - the SDK's signature
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        *args: Any,
        **kwargs: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        items: list[Any] = (
            input if isinstance(input, list) else [{"role": "user", "content": input}]
        )
        self.inputs.append(items)
        self.settings.append(model_settings)
        seen = _seen(system_instructions, items)
        seen.tools = [tool.name for tool in tools] + [each.tool_name for each in handoffs]
        seen.schema = output_schema.json_schema() if output_schema else None
        seen.max_tokens = model_settings.max_tokens
        seen.temperature = model_settings.temperature
        self.seen.append(seen)
        telling = Telling()
        for step in next(self._script):
            for event in telling.events(step):
                if self._streams or event["type"] in ("response.completed", "response.failed"):
                    yield _EVENT.validate_python(event)
                    await asyncio.sleep(0)  # as for the network: an SDK's run is a task of its own
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
        if (last := telling.end()) is not None:
            yield _EVENT.validate_python(last)


class Telling:
    """One response of the model as stream events, as OpenAI's API writes them."""

    def __init__(self) -> None:
        self._number = -1
        self._output: list[dict[str, Any]] = []
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._is_ended = False

    def events(  # noqa: C901 - one case for each kind of step
        self, step: Said
    ) -> Iterator[dict[str, Any]]:
        if self._number < 0:
            yield self._event("created", response=self._response("in_progress"))
        match step:
            case Say(pieces):
                yield from self._message("output_text", pieces)
            case Refuse(pieces):
                yield from self._message("refusal", pieces)
            case Think(pieces, signature):
                yield from self._thought(pieces, signature)
            case Reason(pieces, rest):
                yield from self._raw_thought(pieces, rest)
            case Call(name, arguments, call_id):
                yield from self._call(name, json.dumps(arguments), call_id)
            case Cite(annotation):
                at = {"output_index": len(self._output) - 1, "content_index": 0}
                yield self._event(
                    "output_text.annotation.added",
                    item_id=self._output[-1]["id"],
                    annotation_index=0,
                    annotation=annotation,
                    **at,
                )
            case Item(item):
                yield from self._whole({"id": f"item_{len(self._output)}", **item})
            case Tell(event):
                yield self._event(**event)
            case Break(code):
                self._is_ended = True
                error = {"code": code, "message": "secret detail"}
                failed = {**self._response("failed"), "error": error}
                yield self._event("failed", response=failed)
            case Stop(reason):
                self._reason = _STOPS[reason]
            case Spend():
                self._usage = _usage(step)

    def end(self) -> dict[str, Any] | None:
        if self._is_ended:
            return None
        if self._reason is None:
            return self._event("completed", response=self._response("completed"))
        cut = {**self._response("incomplete"), "incomplete_details": {"reason": self._reason}}
        return self._event("incomplete", response=cut)

    def _message(self, kind: str, pieces: Sequence[str]) -> Iterator[dict[str, Any]]:
        field = "text" if kind == "output_text" else "refusal"
        part: dict[str, Any] = {"type": kind, field: ""}
        if kind == "output_text":
            part["annotations"] = []
        item = {"id": f"msg_{len(self._output)}", "type": "message", "role": "assistant"}
        at = self._add({**item, "status": "in_progress", "content": []})
        part_at = {**at, "item_id": item["id"], "content_index": 0}
        yield self._event("output_item.added", **at, item=self._output[-1])
        yield self._event("content_part.added", **part_at, part=part)
        for piece in pieces:
            rest: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            yield self._event(f"{kind}.delta", **part_at, delta=piece, **rest)
        whole = {**part, field: "".join(pieces)}
        yield self._event("content_part.done", **part_at, part=whole)
        yield from self._done(at, {**item, "status": "completed", "content": [whole]})

    def _thought(self, pieces: Sequence[str], signature: str | None) -> Iterator[dict[str, Any]]:
        item: dict[str, Any] = {"id": f"rs_{len(self._output)}", "type": "reasoning", "summary": []}
        at = self._add(item)
        part_at = {**at, "item_id": item["id"], "summary_index": 0}
        part = {"type": "summary_text", "text": ""}
        yield self._event("output_item.added", **at, item=item)
        yield self._event("reasoning_summary_part.added", **part_at, part=part)
        for piece in pieces:
            yield self._event("reasoning_summary_text.delta", **part_at, delta=piece)
        whole = {**part, "text": "".join(pieces)}
        yield self._event("reasoning_summary_part.done", **part_at, part=whole)
        yield from self._done(at, {**item, "summary": [whole], "encrypted_content": signature})

    def _raw_thought(
        self, pieces: Sequence[str], rest: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        item: dict[str, Any] = {"id": f"rs_{len(self._output)}", "type": "reasoning", "summary": []}
        at = self._add(item)
        part_at = {**at, "item_id": item["id"], "content_index": 0}
        yield self._event("output_item.added", **at, item=item)
        for piece in pieces:
            yield self._event("reasoning_text.delta", **part_at, delta=piece)
        content = [{"type": "reasoning_text", "text": "".join(pieces)}]
        yield from self._done(at, {**item, "content": content, **rest})

    def _call(self, name: str, arguments: str, call_id: str) -> Iterator[dict[str, Any]]:
        item = {"type": "function_call", "name": name, "call_id": call_id, "arguments": ""}
        item = {"id": f"fc_{len(self._output)}", **item}
        at = self._add({**item, "status": "in_progress"})
        yield self._event("output_item.added", **at, item=self._output[-1])
        for piece in (arguments[:3], arguments[3:]):
            yield self._event(
                "function_call_arguments.delta", **at, item_id=item["id"], delta=piece
            )
        yield from self._done(at, {**item, "status": "completed", "arguments": arguments})

    def _whole(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        at = self._add(item)
        yield self._event("output_item.added", **at, item=item)
        yield from self._done(at, item)

    def _add(self, item: dict[str, Any]) -> dict[str, Any]:
        self._output.append(item)
        return {"output_index": len(self._output) - 1}

    def _done(self, at: dict[str, Any], item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._output[at["output_index"]] = item
        yield self._event("output_item.done", **at, item=item)

    def _event(self, type: str, **fields: Any) -> dict[str, Any]:  # noqa: A002 - the wire's name
        self._number += 1
        name = type if type == "error" else f"response.{type}"
        return {"type": name, "sequence_number": self._number, **fields}

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": "resp_inner",
            "object": "response",
            "created_at": 0,
            "model": "scripted",
            "status": status,
            "output": list(self._output),
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": self._usage if status != "in_progress" else None,
        }


def _usage(spent: Spend) -> dict[str, Any]:
    return {
        "input_tokens": spent.input_tokens,
        "input_tokens_details": {"cached_tokens": spent.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": spent.output_tokens,
        "output_tokens_details": {"reasoning_tokens": spent.reasoning_tokens},
        "total_tokens": spent.input_tokens + spent.output_tokens,
    }


def _seen(instructions: str | None, items: Sequence[Any]) -> Seen:
    seen = Seen(texts=[("system", instructions)] if instructions else [])
    for item in items:
        match item:
            case {"role": role, "content": str(content)}:
                seen.texts.append((_role(role), content))
            case {"role": role, "content": parts}:
                seen.texts += [(_role(role), each["text"]) for each in parts if "text" in each]
                urls = [each["image_url"] for each in parts if each["type"] == "input_image"]
                seen.images += [parse_data_url(url).content for url in urls]
            case {"type": "function_call"}:
                seen.calls.append((item["call_id"], item["name"]))
            case {"type": "function_call_output", "output": output}:
                seen.texts.append(("tool", output if isinstance(output, str) else str(output)))
            case {"type": "reasoning", "encrypted_content": str(signature)}:
                seen.signatures.append(signature)
    return seen


def _role(role: str) -> str:
    return "system" if role == "developer" else role


weather = function_tool(own_weather, name_override="weather")


class _OpenAIAgents:
    unsupported: Mapping[str, str] = {}

    def agent(self, script: Script) -> tuple[Agent[Any], ScriptedModel]:
        model = ScriptedModel(script)
        return Agent("kind", instructions="Be kind.", tools=[weather], model=model), model


SCRIPTED = _OpenAIAgents()
