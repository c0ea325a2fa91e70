"""From the stream of an OpenAI Agents SDK's run to agent events.

A run's stream holds each model call's own stream events, whose ids and numbers are not ours, and
after them what the SDK made of the call: items of tools, of handovers, of messages.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from channel.agent import (
    AgentEvent,
    Annotation,
    FunctionCall,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    ToolFinished,
    ToolStarted,
    Usage,
)
from channel.agents.openai_agents.calls import GrowingCalls
from channel.agents.openai_agents.items import packed_reasoning
from channel.responses.protocol.items import text_of


_BETWEEN: Final = "\n\n"
_FAILED: Final = "The tool failed."
_RUN_HERE: Final = frozenset(
    {
        "apply_patch_call",
        "computer_call",
        "custom_tool_call",
        "function_call",
        "local_shell_call",
        "program",
        "shell_call",
    }
)
"""Calls whose output is an item of its own; a provider's own tools have it in the call."""
_ARGUMENTS: Final = ("action", "queries", "code", "operation", "input")
_POSITIONS: Final = ("start_index", "end_index")


class Telling:
    """Tells what a run does, event by event.

    With `holds_text` (an agent whose answers must pass a guardrail) text waits: `released` is the
    last message, and text before it is never told. A run that `is_resumed` begins with calls that the
    model has made, and thought about, before.
    """

    def __init__(
        self, client_tools: frozenset[str], *, holds_text: bool = False, is_resumed: bool = False
    ) -> None:
        """Begin; `client_tools` are the names of the tools that the client runs."""
        self._client_tools = client_tools
        self._holds_text = holds_text
        self._held: list[AgentEvent] = []
        self._calls = GrowingCalls()
        self._written = self._base = 0  # characters of the text that goes on, as clients read it
        self._is_streamed, self._is_made = is_resumed, False  # this model call; items of it
        self._thought: tuple[Any, ...] | None = None
        self._thoughts: set[int] = set()  # places of this model call's that were told
        self._is_thinking = False
        self._started: set[str] = set()
        self._waiting: dict[str, ToolStarted] = {}
        self.failed_tools: set[str] = set()
        self.refusal = ""
        self.is_own = False  # something happened that no client sees, or not where it belongs
        self.agent: str | None = None
        self.cut: str | None = None
        self.error_code: str | None = None
        self.cut_usage = Usage()

    def take(self, event: Any) -> Iterator[AgentEvent]:
        """Return what an event of the run's stream tells."""
        match event.type:
            case "raw_response_event":
                if self._is_made:
                    self._is_streamed = self._is_made = False
                    self._thoughts.clear()
                yield from self._raw(event.data)
            case "run_item_stream_event":
                self._is_made = True
                yield from self._item(event.name, event.item)
            case "agent_updated_stream_event":
                self.agent = event.new_agent.name

    @property
    def released(self) -> list[AgentEvent]:
        """The text that waited."""
        return self._held

    def text(self, text: str) -> Iterator[AgentEvent]:
        """Tell a text that no model has streamed."""
        self._begin_message()
        yield from self._write(text)

    # What the model says.

    def _raw(self, data: Any) -> Iterator[AgentEvent]:
        match data.type:
            case "response.output_item.added":
                self._is_streamed = True
                yield from self._added(data.output_index, data.item)
            case "response.output_item.done":
                yield from self._done(data.output_index, data.item)
            case "response.output_text.annotation.added":
                yield from self._annotate(data.annotation)
            case "response.incomplete":
                self._note_cut(data.response)
            case "response.failed":
                self.error_code = getattr(data.response.error, "code", None)
            case "error":
                self.error_code = data.code
            case _:
                yield from self._delta(data)

    def _delta(self, data: Any) -> Iterator[AgentEvent]:
        match data.type:
            case "response.output_text.delta":
                yield from self._write(data.delta)
            case "response.refusal.delta":
                yield from self._refuse(data.delta)
            case "response.reasoning_summary_text.delta":
                part = (data.output_index, "summary", data.summary_index)
                yield from self._think(part, data.delta)
            case "response.reasoning_text.delta":
                part = (data.output_index, "text", data.content_index)
                yield from self._think(part, data.delta)
            case "response.function_call_arguments.delta":
                yield from self._calls.grow(data.output_index, data.delta)

    def _added(self, index: int, item: Any) -> Iterator[AgentEvent]:
        match _type_of(item):
            case "message":
                self._begin_message()
            case "function_call" if item.name in self._client_tools:
                self._end_message()
                self._is_thinking = False
                yield from self._calls.begin(index, item.call_id, item.name)

    def _done(self, index: int, item: Any) -> Iterator[AgentEvent]:
        match _type_of(item):
            case "function_call":
                yield from self._calls.end(index, item.arguments)
            case "reasoning":
                yield from self._end_thought(_plain(item), index)
            case "image_generation_call" if (image := _plain(item)).get("result"):
                self._end_message()
                whole = {**image, "status": "completed"}
                del whole["id"]
                yield from self._pass(OutputItem(whole))

    def _begin_message(self) -> None:
        self.refusal = ""
        self._held.clear()
        if self._holds_text:
            self._written = 0
        self._base = self._written

    def _end_message(self) -> None:
        """Note that something follows which ends the message: later text is one of its own."""
        self._written = self._base = 0

    def _write(self, text: str) -> Iterator[AgentEvent]:
        if not text:
            return
        if self._base and self._base == self._written:
            # Two messages of the model, and nothing between them.
            self._base = self._written = self._written + len(_BETWEEN)
            yield from self._say(_BETWEEN)
        self._written += len(text)
        yield from self._say(text)

    def _annotate(self, annotation: Any) -> Iterator[AgentEvent]:
        whole = _plain(annotation)
        for name in _POSITIONS:
            if isinstance(whole.get(name), int):
                whole[name] += self._base
        yield from self._say(Annotation(whole))

    def _refuse(self, text: str) -> Iterator[AgentEvent]:
        self.refusal += text
        self._end_message()
        yield from self._pass(RefusalDelta(text))

    def _say(self, event: AgentEvent) -> Iterator[AgentEvent]:
        if self._holds_text:
            self._held.append(event)
        else:
            yield from self._pass(event)

    def _pass(self, event: AgentEvent) -> Iterator[AgentEvent]:
        self._is_thinking = isinstance(event, ReasoningDelta)
        yield from self._calls.pass_by(event)

    def _think(self, part: tuple[Any, ...], text: str) -> Iterator[AgentEvent]:
        self._end_message()
        is_new = self._thought is not None and part != self._thought
        self._thought = part
        self._thoughts.add(part[0])
        yield from self._pass(ReasoningDelta(text, new_part=is_new))

    def _end_thought(self, item: Mapping[str, Any], index: int) -> Iterator[AgentEvent]:
        is_late = index in self._thoughts and not self._is_thinking
        if index not in self._thoughts:
            yield from self._whole_thought(item, index)
        wanted = packed_reasoning(item)
        self._thought = None if wanted is not None else (None,)
        if wanted is not None and is_late:
            self.is_own = True  # its item has ended: what is wanted back would be out of place
        elif wanted is not None:
            self._end_message()
            yield from self._pass(ReasoningDelta(encrypted_content=wanted))

    def _whole_thought(self, item: Mapping[str, Any], index: int) -> Iterator[AgentEvent]:
        parts = [*(item.get("content") or ()), *(item.get("summary") or ())]
        for position, part in enumerate(parts):
            if text := part.get("text"):
                yield from self._think((index, "whole", position), text)

    def _note_cut(self, response: Any) -> None:
        reason = getattr(response.incomplete_details, "reason", None)
        self.cut = "content_filter" if reason == "content_filter" else "max_output_tokens"
        if response.usage is not None:
            self.cut_usage = usage_of(response.usage)

    # What the SDK makes of it.

    def _item(self, name: str, item: Any) -> Iterator[AgentEvent]:
        if self._is_streamed and name in ("message_output_created", "reasoning_item_created"):
            return
        raw = _plain(item.raw_item)
        match name:
            case "message_output_created":
                yield from self._whole_message(raw)
            case "reasoning_item_created":
                yield from self._end_thought(raw, -1)
            case "tool_called" if self._is_clients(raw):
                yield from self._whole_call(raw)
            case "tool_called" | "handoff_requested":
                yield from self._tool_called(raw, item)
            case "tool_output" | "handoff_occured":  # so the SDK spells it
                yield from self._tool_output(raw)

    def _is_clients(self, raw: Mapping[str, Any]) -> bool:
        return raw.get("type") == "function_call" and raw.get("name") in self._client_tools

    def _whole_message(self, raw: Mapping[str, Any]) -> Iterator[AgentEvent]:
        """Tell a message that was not streamed."""
        self._begin_message()
        for part in raw.get("content") or ():
            if part.get("type") == "refusal":
                yield from self._refuse(part["refusal"])
            elif part.get("type") == "output_text":
                yield from self._write(part["text"])
                for annotation in part.get("annotations") or ():
                    yield from self._annotate(annotation)

    def _whole_call(self, raw: Mapping[str, Any]) -> Iterator[AgentEvent]:
        if not self._calls.has_told(raw["call_id"]):
            self._end_message()
            arguments = raw.get("arguments") or "{}"
            yield FunctionCall(raw["name"], arguments, raw["call_id"])

    def _tool_called(self, raw: Mapping[str, Any], item: Any) -> Iterator[AgentEvent]:
        if raw.get("type") == "image_generation_call" and raw.get("result"):
            return  # an item of its own
        self.is_own = True
        call_id = raw.get("call_id") or raw.get("id") or f"own_{len(self._started)}"
        started = ToolStarted(
            call_id,
            raw.get("name") or str(raw.get("type")).removesuffix("_call"),
            _arguments_of(raw),
            raw.get("server_label") or "agent",
        )
        if raw.get("type") == "function_call" and _may_wait(item):
            self._waiting[call_id] = started  # it has not begun if the client must approve it first
        else:
            yield from self._start(started)
        if raw.get("type") not in _RUN_HERE:
            yield _finished(call_id, raw)

    def _tool_output(self, raw: Mapping[str, Any]) -> Iterator[AgentEvent]:
        call_id = raw.get("call_id")
        if call_id in self._waiting:
            yield from self._start(self._waiting.pop(call_id))
        if call_id not in self._started:
            return
        if call_id in self.failed_tools:
            yield ToolFinished(call_id, error=_FAILED)
        else:
            yield ToolFinished(call_id, _text_of_output(raw.get("output")))

    def _start(self, started: ToolStarted) -> Iterator[AgentEvent]:
        if started.call_id not in self._started:
            self._started.add(started.call_id)
            self._end_message()
            yield started


def usage_of(usage: Any) -> Usage:
    """Return the tokens that a run, or a response, has used."""
    given, made = usage.input_tokens_details, usage.output_tokens_details
    return Usage(
        usage.input_tokens,
        usage.output_tokens,
        getattr(given, "cached_tokens", 0) or 0,
        getattr(given, "cache_write_tokens", 0) or 0,
        getattr(made, "reasoning_tokens", 0) or 0,
    )


def _type_of(item: Any) -> str | None:
    kind = item.get("type") if isinstance(item, Mapping) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else None


def _plain(item: Any) -> dict[str, Any]:
    """Return an item as a dict of its own."""
    if isinstance(item, Mapping):
        return dict(item)
    plain: dict[str, Any] = item.model_dump(mode="json", exclude_none=True, warnings=False)
    return plain


def _may_wait(item: Any) -> bool:
    tools = getattr(item.agent, "tools", ())
    named = [tool for tool in tools if tool.name == item.raw_item.name]
    return any(getattr(tool, "needs_approval", False) is not False for tool in named)


def _arguments_of(raw: Mapping[str, Any]) -> str:
    arguments = raw.get("arguments")
    if isinstance(arguments, str):
        return arguments or "{}"
    return msgspec.json.encode({name: raw[name] for name in _ARGUMENTS if name in raw}).decode()


def _finished(call_id: str, raw: Mapping[str, Any]) -> ToolFinished:
    """Return the end of a provider's own tool, whose call tells it."""
    if raw.get("error") or raw.get("status") in ("failed", "incomplete"):
        return ToolFinished(call_id, error=_FAILED)
    found = next((raw[name] for name in ("output", "outputs", "results") if raw.get(name)), "")
    return ToolFinished(call_id, found if isinstance(found, str) else _json(found))


def _text_of_output(output: Any) -> str:
    if isinstance(output, str):
        return output
    # Parts: images and files among them stay with the model.
    return text_of({"content": output}) if isinstance(output, list) else ""


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
