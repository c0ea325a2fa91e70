"""What a run of a Strands agent tells, as agent events: a machine of one turn, without I/O.

The events are dicts that are known by their keys. Text, reasoning and citations are told as they
come, and what their blocks end with by the raw events of the model; calls of the client's functions
as they come, or, where hooks may still turn them down, when they are made.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from channel.agent import (
    AgentEvent,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    ReasoningDelta,
    TextDelta,
    ToolFinished,
    ToolStarted,
    TurnError,
    Usage,
)
from channel.agents.converse.reply import Reply
from channel.agents.strands.history import signed_call
from channel.agents.strands.tools import Called


_FINISH: Final[Mapping[str, str]] = {
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "limit_output_tokens": "max_output_tokens",
    "limit_total_tokens": "max_output_tokens",
    "limit_turns": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "model_context_window_exceeded": "max_output_tokens",
}
"""How a response ends, by the reasons to stop that are not the end of the answer."""


class ModelCallError(Exception):
    """A call of the model that came to nothing after it was told of."""


class Telling:
    """One turn: `take` each event of the run."""

    def __init__(
        self, clients: frozenset[str], *, answers: str | None = None, streams_calls: bool = True
    ) -> None:
        """Begin with nothing told.

        `clients` are the names of the client's functions, and `answers` that of the tool that takes
        an answer in a form, in place of text.
        """
        self._clients = clients
        self._answers = answers
        self._streams_calls = streams_calls
        self._reply = Reply()
        self._ids = _Ids()
        self._text = ""  # of the model's message that is being told
        self._last: Mapping[str, Any] = {"content": []}  # the message that the model ended last
        self._call: str | None = None  # the id of the call that is being told
        self._arguments = ""
        self._streamed: Counter[str] = Counter()  # calls that were told but not made yet
        self._running: dict[str, list[str]] = {}
        self._has_called = False

    def take(self, event: Mapping[str, Any]) -> Iterator[AgentEvent]:
        """Yield what an event of the run says; unknown ones say nothing."""
        match event:
            case {"data": _} | {"delta": _}:
                yield from self._piece(event)
            case {"event": {} as chunk}:
                yield from self._chunk(chunk)
            case {"type": "tool_stream", "tool_stream_event": {"tool_use": used, "data": data}}:
                yield from self._tool_told(used, data)
            case {"message": {"role": "assistant"} as message}:
                yield from self._message(message)
            case {"message": {"content": blocks}}:
                yield from self._results(blocks)
            case {"result": result}:
                yield from self._result(result)

    def _piece(self, event: Mapping[str, Any]) -> Iterator[AgentEvent]:
        match event:
            case {"data": str(text)}:
                self._text += text
                if self._answers is None:
                    yield from self._delta({"text": text})
            case {"type": "tool_use_stream", "delta": delta, "current_tool_use": used}:
                yield from self._called_on(used, delta)
            case {"reasoning": True, "delta": delta}:
                yield from self._delta(delta)
            case {"citation": _, "delta": delta} if self._answers is None:
                yield from self._delta(delta)

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[AgentEvent]:
        return self._reply.take({"contentBlockDelta": {"delta": delta}})

    def _chunk(self, chunk: Mapping[str, Any]) -> Iterator[AgentEvent]:
        match chunk:
            case {"messageStart": _}:
                if self._streamed.total():
                    raise ModelCallError("the model was asked again after it had called a function")
                self._text = ""
            case {"contentBlockStart": {"start": {"toolUse": {"name": _} as used}}}:
                yield from self._call_begun(used)
            case {"contentBlockStop": _}:
                if self._call is not None and not self._arguments.strip():
                    yield FunctionCallDelta(self._call, "{}")
                self._call = None
                yield from self._reply.take(chunk)
            case {"contentBlockStart": {"start": {"image": _}}} | {
                "contentBlockDelta": {"delta": {"image": _}}
            }:
                yield from self._reply.take(chunk)
            case {"metadata": {"usage": {} as usage}}:
                yield usage_of(usage)

    def _call_begun(self, used: Mapping[str, Any]) -> Iterator[AgentEvent]:
        if self._streams_calls and used["name"] in self._clients:
            self._call, self._arguments = self._ids.new(used["toolUseId"]), ""
            self._streamed[used["toolUseId"]] += 1
            yield from _signature(used)
            yield FunctionCallDelta(self._call, name=used["name"])

    def _called_on(self, used: Mapping[str, Any], delta: Mapping[str, Any]) -> Iterator[AgentEvent]:
        if self._call is None and "name" in used and "toolUseId" in used:
            yield from self._call_begun(used)  # of a model that does not say when a block begins
        if self._call is not None:
            arguments = delta["toolUse"].get("input") or ""
            self._arguments += arguments
            yield FunctionCallDelta(self._call, arguments)

    def _tool_told(self, used: Mapping[str, Any], data: Any) -> Iterator[AgentEvent]:
        match data:
            case Called():
                self._has_called = True
                if self._streamed[used["toolUseId"]]:
                    self._streamed[used["toolUseId"]] -= 1
                else:
                    call_id = self._ids.new(used["toolUseId"])
                    yield from _signature(used)
                    yield FunctionCall(used["name"], _json(used["input"]), call_id)
            case {"event": {"metadata": {"usage": {} as usage}}}:  # of an agent among the tools
                yield usage_of(usage)
            case {"type": "tool_stream", "tool_stream_event": {"data": more}}:
                yield from self._tool_told(used, more)

    def _message(self, message: Mapping[str, Any]) -> Iterator[AgentEvent]:
        """Tell what of the model's message was not told as it came, and the agent's own calls in it."""
        text = _text_of(message)
        if text and not self._text and self._answers is None:
            yield TextDelta(text)  # by a hook, in place of the model
        self._text, self._last = "", message
        for used in (block["toolUse"] for block in message["content"] if "toolUse" in block):
            if used["name"] not in self._clients and used["name"] != self._answers:
                call_id = self._ids.new(used["toolUseId"])
                self._running.setdefault(used["toolUseId"], []).append(call_id)
                yield ToolStarted(call_id, used["name"], _json(used["input"]))

    def _results(self, blocks: list[Mapping[str, Any]]) -> Iterator[AgentEvent]:
        for result in (block["toolResult"] for block in blocks if "toolResult" in block):
            call_ids = self._running.get(result["toolUseId"])
            if not call_ids:
                continue
            if result.get("status") == "error":
                yield ToolFinished(call_ids.pop(0), error="The tool failed.")
            else:
                yield ToolFinished(call_ids.pop(0), _output(result["content"]))

    def _result(self, result: Any) -> Iterator[AgentEvent]:
        reason, answer = result.stop_reason, result.structured_output
        if reason == "interrupt":
            message = "The agent asked for a person's decision, which cannot be given here."
            raise TurnError(message)
        if reason.startswith("malformed"):
            raise ModelCallError(f"the model stopped with {reason}")
        finish = _FINISH.get(reason)
        if answer is not None:
            yield TextDelta(answer.model_dump_json())
        elif finish is None and not self._has_called:
            # What a hook or a tool ended the run with, in place of the model.
            text = _text_of(result.message)
            if text and (self._answers is not None or text != _text_of(self._last)):
                yield TextDelta(text)
        if finish is not None:
            yield Finish(finish)


class _Ids:
    """Ids of calls: some models give the same one to several."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def new(self, call_id: str) -> str:
        self._given[call_id] += 1
        count = self._given[call_id]
        return call_id if count == 1 else self.new(f"{call_id}-{count}")


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """Return the tokens of a call: the models of Strands count those of the cache in, or beside."""
    taken, made = usage.get("inputTokens", 0), usage.get("outputTokens", 0)
    read = usage.get("cacheReadInputTokens") or 0
    written = usage.get("cacheWriteInputTokens") or 0
    are_beside = taken + made != usage.get("totalTokens", 0)
    return Usage(
        input_tokens=taken + read + written if are_beside else taken,
        output_tokens=made,
        cached_tokens=read,
        cache_write_tokens=written,
    )


def _signature(used: Mapping[str, Any]) -> Iterator[AgentEvent]:
    if signature := used.get("reasoningSignature"):
        yield ReasoningDelta(encrypted_content=signed_call(signature))


def _text_of(message: Mapping[str, Any]) -> str:
    blocks = message["content"]
    cited = [
        each for block in blocks for each in block.get("citationsContent", {}).get("content", ())
    ]
    return "".join(block.get("text") or "" for block in [*blocks, *cited])


def _output(blocks: list[Mapping[str, Any]]) -> str:
    """Return the output of a tool as text; of an image or a document, only what it is."""
    return "\n".join(
        block["text"]
        if "text" in block
        else _json(block["json"])
        if "json" in block
        else f"({kind})"
        for block in blocks
        for kind in block
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
