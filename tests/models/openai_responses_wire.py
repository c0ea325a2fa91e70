"""The Responses API as a model's server speaks it: steps of a script to events, a request to what was seen."""

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.channel.agents.scripts import Call, Say, Seen, Spend, Stop, Think
from tests.models.steps import Break, Calls, Cite, Flood, Hosted, Raw, Refuse, ServerStep


PATH = "/v1/responses"
Event = dict[str, Any]


class Writer:
    """Writes one response: `start`, `say` each step, `end`; `whole` is its JSON after that."""

    def __init__(self, body: Mapping[str, Any], number: int) -> None:
        self._body = body
        self._number = number
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._parts: list[dict[str, Any]] | None = None
        self._usage: dict[str, Any] | None = None
        self._stop: str | None = None
        self._error: dict[str, Any] | None = None
        self.is_broken = False

    def start(self) -> Iterator[Event]:
        yield self._event("created", response=self._response("in_progress"))
        yield self._event("in_progress", response=self._response("in_progress"))

    def say(self, step: ServerStep) -> Iterator[Event]:  # noqa: C901 - one case for each step
        match step:
            case Say(pieces):
                yield from self._text("output_text", pieces)
            case Flood(pieces=count, letters=letters):
                yield from self._text("output_text", ["x" * letters] * count)
            case Refuse(pieces):
                yield from self._text("refusal", pieces)
            case Cite(annotation):
                yield from self._cite(annotation)
            case Think(pieces, signature):
                yield from self._think(pieces, signature)
            case Call():
                yield from self._calls([step])
            case Calls(calls):
                yield from self._calls(calls)
            case Hosted(item):
                yield from self._item({**item, "id": self._id("ws")})
            case Spend():
                self._usage = _usage(step)
            case Stop(reason):
                self._stop = "max_output_tokens" if reason == "length" else reason
            case Raw(data):
                yield {"sequence_number": self._sequence, **data}
            case Break(code, message):
                self.is_broken = True
                self._error = {"code": code, "message": message}
                yield self._event("error", prefix="", code=code, message=message, param=None)

    def end(self) -> Iterator[Event]:
        yield from self._close()
        status = "incomplete" if self._stop else "completed"
        yield self._event(status, response=self._response(status))

    def fail(self, message: str) -> Iterator[Event]:
        """Fail as a server does whose model failed."""
        self.is_broken = True
        self._error = {"code": "server_error", "message": message}
        yield self._event("failed", response=self._response("failed"))

    def whole(self) -> dict[str, Any]:
        status = "failed" if self._error else "incomplete" if self._stop else "completed"
        return self._response(status)

    def _event(self, kind: str, /, *, prefix: str = "response.", **fields: Any) -> Event:
        self._sequence += 1
        return {"type": prefix + kind, "sequence_number": self._sequence - 1, **fields}

    def _id(self, prefix: str) -> str:
        return f"{prefix}_up_{self._number}_{len(self._output)}"

    def _text(self, kind: str, pieces: Sequence[str]) -> Iterator[Event]:
        yield from self._open(kind)
        assert self._parts is not None
        part, key = self._parts[-1], "text" if kind == "output_text" else "refusal"
        extra: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        for piece in pieces:
            part[key] += piece
            yield self._event(f"{kind}.delta", **self._at(), delta=piece, **extra)

    def _open(self, kind: str) -> Iterator[Event]:
        if self._parts is None:
            item = {
                "id": self._id("msg"),
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
            }
            self._parts = []
            self._output.append({**item, "content": self._parts})
            added = {**item, "content": []}
            yield self._event("output_item.added", output_index=self._last, item=added)
        if not self._parts or self._parts[-1]["type"] != kind:
            if self._parts:
                yield from self._close_part()
            part: dict[str, Any] = {"type": "refusal", "refusal": ""}
            if kind == "output_text":
                part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._parts.append(part)
            yield self._event("content_part.added", **self._at(), part={**part})

    def _cite(self, annotation: Mapping[str, Any]) -> Iterator[Event]:
        yield from self._open("output_text")
        assert self._parts is not None
        annotations = self._parts[-1]["annotations"]
        annotations.append(annotation)
        yield self._event(
            "output_text.annotation.added",
            **self._at(),
            annotation_index=len(annotations) - 1,
            annotation=annotation,
        )

    def _close(self) -> Iterator[Event]:
        if self._parts is None:
            return
        yield from self._close_part()
        self._parts = None
        item = self._output[-1]
        item["status"] = "incomplete" if self._stop else "completed"
        yield self._event("output_item.done", output_index=self._last, item=item)

    def _close_part(self) -> Iterator[Event]:
        assert self._parts is not None
        part = self._parts[-1]
        if part["type"] == "output_text":
            done: dict[str, Any] = {"text": part["text"], "logprobs": []}
            yield self._event("output_text.done", **self._at(), **done)
        else:
            yield self._event("refusal.done", **self._at(), refusal=part["refusal"])
        yield self._event("content_part.done", **self._at(), part=part)

    def _think(self, pieces: Sequence[str], signature: str | None) -> Iterator[Event]:
        yield from self._close()
        item: dict[str, Any] = {"id": self._id("rs"), "type": "reasoning", "summary": []}
        self._output.append(item)
        yield self._event("output_item.added", output_index=self._last, item=item)
        at = {"item_id": item["id"], "output_index": self._last, "summary_index": 0}
        text = "".join(pieces)
        part = {"type": "summary_text", "text": text}
        if text:
            empty = {"type": "summary_text", "text": ""}
            yield self._event("reasoning_summary_part.added", **at, part=empty)
            for piece in pieces:
                yield self._event("reasoning_summary_text.delta", **at, delta=piece)
            yield self._event("reasoning_summary_text.done", **at, text=text)
            yield self._event("reasoning_summary_part.done", **at, part=part)
        item = {**item, "summary": [part] if text else []}
        if signature and "reasoning.encrypted_content" in (self._body.get("include") or ()):
            item["encrypted_content"] = signature
        self._output[-1] = item
        yield self._event("output_item.done", output_index=self._last, item=item)

    def _calls(self, calls: Sequence[Call]) -> Iterator[Event]:
        yield from self._close()
        opened = []
        for call in calls:
            item = {
                "id": self._id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": "",
            }
            self._output.append(item)
            opened.append((self._last, item, json.dumps(call.arguments)))
            yield self._event("output_item.added", output_index=self._last, item=item)
        for half in (slice(3), slice(3, None)):
            for index, item, text in opened:
                at: dict[str, Any] = {"item_id": item["id"], "output_index": index}
                yield self._event("function_call_arguments.delta", **at, delta=text[half])
        for index, item, text in opened:
            at = {"item_id": item["id"], "output_index": index}
            done = {"name": item["name"], "arguments": text}
            yield self._event("function_call_arguments.done", **at, **done)
            self._output[index] = {**item, "status": "completed", "arguments": text}
            yield self._event("output_item.done", output_index=index, item=self._output[index])

    def _item(self, item: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self._output.append(item)
        added = {**item, "status": "in_progress"}
        yield self._event("output_item.added", output_index=self._last, item=added)
        yield self._event("output_item.done", output_index=self._last, item=item)

    @property
    def _last(self) -> int:
        return len(self._output) - 1

    def _at(self) -> dict[str, Any]:
        assert self._parts is not None
        position = {"output_index": self._last, "content_index": len(self._parts) - 1}
        return {"item_id": self._output[-1]["id"], **position}

    def _response(self, status: str) -> dict[str, Any]:
        body = self._body
        is_over = status != "in_progress"
        return {
            "id": f"resp_up_{self._number}",
            "object": "response",
            "created_at": 1_800_000_000,
            "status": status,
            "model": body.get("model"),
            "output": [*self._output] if is_over else [],
            "usage": self._usage if is_over else None,
            "error": self._error if status == "failed" else None,
            "incomplete_details": {"reason": self._stop} if status == "incomplete" else None,
            "instructions": body.get("instructions"),
            "metadata": {},
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "tool_choice": body.get("tool_choice", "auto"),
            "tools": body.get("tools", []),
            "text": body.get("text", {"format": {"type": "text"}}),
            "temperature": body.get("temperature", 1.0),
            "top_p": body.get("top_p", 1.0),
            "truncation": "disabled",
        }


def seen_of(body: Mapping[str, Any]) -> Seen:
    """Return what a request shows the model."""
    text_format = (body.get("text") or {}).get("format") or {}
    seen = Seen(
        tools=[tool["name"] for tool in body.get("tools") or () if "name" in tool],
        schema=text_format.get("schema"),
        max_tokens=body.get("max_output_tokens"),
        temperature=body.get("temperature"),
    )
    if body.get("instructions"):
        seen.texts.append(("system", body["instructions"]))
    given = body.get("input") or []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for item in items:
        match item.get("type", "message"):
            case "message":
                _see_message(seen, item)
            case "function_call":
                seen.calls.append((item["call_id"], item["name"]))
            case "function_call_output":
                _see(seen, "tool", item["output"])
            case "reasoning" if item.get("encrypted_content"):
                seen.signatures.append(item["encrypted_content"])
    return seen


def _see_message(seen: Seen, item: Mapping[str, Any]) -> None:
    role = "system" if item["role"] == "developer" else item["role"]
    _see(seen, role, item["content"])


def _see(seen: Seen, role: str, content: str | Sequence[Mapping[str, Any]]) -> None:
    if isinstance(content, str):
        seen.texts.append((role, content))
        return
    for part in content:
        if "text" in part:
            seen.texts.append((role, part["text"]))
        elif str(part.get("image_url")).startswith("data:"):
            seen.images.append(b64decode(part["image_url"].partition(",")[2]))


def _usage(step: Spend) -> dict[str, Any]:
    return {
        "input_tokens": step.input_tokens,
        "input_tokens_details": {"cached_tokens": step.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": step.output_tokens,
        "output_tokens_details": {"reasoning_tokens": step.reasoning_tokens},
        "total_tokens": step.input_tokens + step.output_tokens,
    }
