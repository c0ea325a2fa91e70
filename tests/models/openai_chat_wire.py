"""Chat Completions as a model's server speaks it: steps of a script to chunks, a request to what was seen."""

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.channel.agents.scripts import Call, Say, Seen, Spend, Stop, Think
from tests.models.steps import Break, Calls, Cite, Flood, Raw, Refuse, ServerStep


PATH = "/v1/chat/completions"
Chunk = dict[str, Any]


class Writer:
    """Writes one completion: `start`, `say` each step, `end`; `whole` is its JSON after that.

    Reasoning is said in the field `reasoning_field` of a delta (servers differ). Usage comes in a
    chunk without choices, where the request asks for it.
    """

    def __init__(self, body: Mapping[str, Any], number: int, reasoning_field: str) -> None:
        self._body = body
        self._number = number
        self._reasoning_field = reasoning_field
        self._message: dict[str, Any] = {"role": "assistant", "content": None}
        self._calls: list[dict[str, Any]] = []
        self._usage: dict[str, Any] | None = None
        self._stop: str | None = None
        self.is_broken = False

    def start(self) -> Iterator[Chunk]:
        yield self._chunk({"role": "assistant", "content": ""})

    def say(self, step: ServerStep) -> Iterator[Chunk]:  # noqa: C901 - one case for each step
        match step:
            case Say(pieces):
                yield from self._pieces("content", pieces)
            case Flood(pieces=count, letters=letters):
                yield from self._pieces("content", ["x" * letters] * count)
            case Refuse(pieces):
                yield from self._pieces("refusal", pieces)
            case Think(pieces):
                yield from self._pieces(self._reasoning_field, pieces)
            case Cite(annotation):
                yield self._chunk({"annotations": [_nested(annotation)]})
            case Call():
                yield from self._call([step])
            case Calls(calls):
                yield from self._call(calls)
            case Spend():
                self._usage = _usage(step)
            case Stop(reason):
                self._stop = reason
            case Raw(data):
                yield {**data}
            case Break(code, message):
                self.is_broken = True
                yield {"error": {"message": message, "type": "server_error", "code": code}}

    def end(self) -> Iterator[Chunk]:
        yield {**self._chunk({}), "choices": [self._choice(delta={})]}
        if self._usage and (self._body.get("stream_options") or {}).get("include_usage"):
            yield {**self._chunk({}), "choices": [], "usage": self._usage}

    def fail(self, message: str) -> Iterator[Chunk]:
        """Fail as a server does whose model failed."""
        yield from self.say(Break("internal_error", message))

    def whole(self) -> dict[str, Any]:
        calls = {"tool_calls": self._calls} if self._calls else {}
        message = {"refusal": None, **self._message, **calls}
        return {
            **self._base("chat.completion"),
            "choices": [self._choice(message=message)],
            "usage": self._usage,
        }

    def _pieces(self, field: str, pieces: Sequence[str]) -> Iterator[Chunk]:
        for piece in pieces:
            self._message[field] = (self._message.get(field) or "") + piece
            yield self._chunk({field: piece})

    def _call(self, calls: Sequence[Call]) -> Iterator[Chunk]:
        texts = [json.dumps(call.arguments) for call in calls]
        first = len(self._calls)
        for i, call in enumerate(calls):
            function = {"name": call.name, "arguments": texts[i]}
            whole = {"id": call.call_id, "type": "function", "function": function}
            self._calls.append(whole)
            opening = {**whole, "function": {"name": call.name, "arguments": ""}}
            yield self._chunk({"tool_calls": [{"index": first + i, **opening}]})
        for half in (slice(3), slice(3, None)):
            for i, text in enumerate(texts):
                piece = {"index": first + i, "function": {"arguments": text[half]}}
                yield self._chunk({"tool_calls": [piece]})

    def _chunk(self, delta: Mapping[str, Any]) -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._base("chat.completion.chunk"), "choices": [choice], "usage": None}

    def _choice(self, **said: Any) -> dict[str, Any]:
        reason = self._stop or ("tool_calls" if self._calls else "stop")
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}

    def _base(self, kind: str) -> dict[str, Any]:
        identity = {"id": f"chatcmpl-up-{self._number}", "object": kind}
        return {**identity, "created": 1_800_000_000, "model": self._body.get("model")}


def seen_of(body: Mapping[str, Any]) -> Seen:
    """Return what a request shows the model; `signatures` are the reasoning that came back."""
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    seen = Seen(
        tools=[tool["function"]["name"] for tool in body.get("tools") or ()],
        schema=schema,
        max_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
        temperature=body.get("temperature"),
    )
    for message in body["messages"]:
        role = "system" if message["role"] == "developer" else message["role"]
        for field in ("reasoning_content", "reasoning"):
            if message.get(field):
                seen.signatures.append(message[field])
        _see(seen, role, message.get("content") or [])
        for call in message.get("tool_calls") or ():
            seen.calls.append((call["id"], call["function"]["name"]))
    return seen


def _see(seen: Seen, role: str, content: str | Sequence[Mapping[str, Any]]) -> None:
    if isinstance(content, str):
        seen.texts.append((role, content))
        return
    for part in content:
        url = (part.get("image_url") or {}).get("url", "")
        if "text" in part:
            seen.texts.append((role, part["text"]))
        elif url.startswith("data:"):
            seen.images.append(b64decode(url.partition(",")[2]))


def _nested(annotation: Mapping[str, Any]) -> dict[str, Any]:
    kind = annotation["type"]
    return {"type": kind, kind: {key: value for key, value in annotation.items() if key != "type"}}


def _usage(step: Spend) -> dict[str, Any]:
    return {
        "prompt_tokens": step.input_tokens,
        "completion_tokens": step.output_tokens,
        "total_tokens": step.input_tokens + step.output_tokens,
        "prompt_tokens_details": {"cached_tokens": step.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": step.reasoning_tokens},
    }
