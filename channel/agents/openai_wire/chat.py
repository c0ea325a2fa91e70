"""A turn as an upstream's Chat Completions take it: items as messages, tools and options as fields of the body."""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from channel.agent import Turn
from channel.agents.openai_wire.dialect import Dialect
from channel.agents.openai_wire.options import (
    CHAT_REASONING,
    UpstreamModel,
    asked_tools,
    media_part,
    prompt_cache_key,
    said,
)
from channel.agents.reading import (
    client_tools,
    instructions_of,
    is_instruction,
    json_format,
    parts_of,
    reasoning_effort,
    summary_of,
    unsupported,
    with_own_tools,
)
from channel.responses.protocol.items import Item, text_of


ROUTE: Final = "/chat/completions"

Message = dict[str, Any]

_AS_THEY_ARE: Final = (
    "frequency_penalty",
    "presence_penalty",
    "service_tier",
    "temperature",
    "top_p",
    "user",
)
_REASONING_FIELDS: Final = ("reasoning_content", "reasoning")


def request_of(turn: Turn, model: UpstreamModel, dialect: Dialect) -> dict[str, Any]:
    """Return the body of the turn's request; raises `TurnError` (400) for what cannot be asked."""
    body: dict[str, Any] = {
        "model": model.name,
        "messages": messages_of(turn, model.instructions),
        "stream": True,
        "stream_options": {"include_usage": True},
        **_tools(turn),
        **_options(turn, dialect),
    }
    return {name: value for name, value in body.items() if name not in dialect.without}


def messages_of(turn: Turn, instructions: str | None) -> list[Message]:
    """Return the turn's items as messages.

    All instructions are one system message, the first: many local models take no other. Each call
    is followed by its output, whatever stood between them.
    """
    given = filter(None, (instructions, *instructions_of(turn)))
    system = "\n\n".join(given)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return messages + _Messages(turn.items).made


class _Messages:
    """Makes messages of items; what the model said between two others is one message."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.made: list[Message] = []
        self._said: Message = {}  # the model's message that is being made
        self._outputs: defaultdict[str, deque[str]] = defaultdict(deque)
        items = [*with_own_tools(items)]
        for item in items:
            if item.get("type") == "function_call_output":
                self._outputs[item["call_id"]].append(_output(item))
        for item in items:
            self._add(item)
        self._flush()

    def _add(self, item: Item) -> None:
        match item:
            case {"type": "message", "role": "assistant"}:
                self._answer(said(item))
            case {"type": "message"} if not is_instruction(item):
                self._flush()
                self.made.append({"role": "user", "content": _content(item)})
            case {"type": "reasoning", "encrypted_content": str(field)}:
                self._think(field.removeprefix(CHAT_REASONING), summary_of(item))
            case {"type": "function_call"}:
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                self._said.setdefault("tool_calls", []).append(call)
            case {"type": "function_call_output"}:
                self._flush()

    def _answer(self, text: str) -> None:
        if text and ("content" in self._said or "tool_calls" in self._said):
            self._flush()
        if text:
            self._said["content"] = text

    def _think(self, field: str, text: str) -> None:
        """Give reasoning back where it came from; what is not marked so is of another upstream."""
        if field not in _REASONING_FIELDS or not text:
            return
        if "content" in self._said or "tool_calls" in self._said:
            self._flush()
        self._said[field] = self._said.get(field, "") + text

    def _flush(self) -> None:
        message, self._said = self._said, {}
        calls = message.get("tool_calls") or []
        if not calls and "content" not in message:
            return  # reasoning that led to nothing
        self.made.append({"role": "assistant", "content": None, **message})
        for call in calls:
            outputs = self._outputs[call["id"]]
            content = outputs.popleft() if outputs else ""
            self.made.append({"role": "tool", "tool_call_id": call["id"], "content": content})


def _output(item: Item) -> str:
    output = item.get("output")
    if isinstance(output, str):
        return output
    if any(part.get("type") not in ("input_text", "output_text") for part in parts_of(item)):
        raise unsupported("anything but text as the output of a tool")
    return text_of({"content": output})


def _content(item: Item) -> str | list[dict[str, Any]]:
    parts = [_part(part) for part in parts_of(item)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] in ("input_text", "output_text"):
        return {"type": "text", "text": part["text"]}
    if part["type"] == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    media = media_part(part)
    if media is None:
        raise unsupported(f"a content part of the type {part['type']!r}")
    if media.is_image:
        return _image(part)
    return _file(part)


def _image(part: Mapping[str, Any]) -> dict[str, Any]:
    if not part.get("image_url"):
        raise unsupported("an image by a file id")
    detail = part.get("detail") or "auto"
    image = {"url": part["image_url"], **({} if detail == "auto" else {"detail": detail})}
    return {"type": "image_url", "image_url": image}


def _file(part: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: part[name] for name in ("file_data", "file_id", "filename") if part.get(name)}
    if not known.keys() & {"file_data", "file_id"}:
        raise unsupported("a file by its URL")
    return {"type": "file", "file": known}


def _tools(turn: Turn) -> dict[str, Any]:
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                **({"strict": True} if tool.strict else {}),
            },
        }
        for tool in client_tools(turn)
    ]
    return asked_tools(turn, tools)


def _options(turn: Turn, dialect: Dialect) -> dict[str, Any]:
    options = turn.options
    asked = {name: options[name] for name in _AS_THEY_ARE if options.get(name) is not None}
    if (limit := options.get("max_output_tokens")) is not None:
        asked[dialect.max_tokens] = limit
    if (effort := reasoning_effort(turn)) is not None:
        asked["reasoning_effort"] = effort
    if (verbosity := (options.get("text") or {}).get("verbosity")) is not None:
        asked["verbosity"] = verbosity
    if key := prompt_cache_key(turn):
        asked["prompt_cache_key"] = key
    return {**asked, **_response_format(turn)}


def _response_format(turn: Turn) -> dict[str, Any]:
    wanted = json_format(turn)
    if wanted is None:
        return {}
    if wanted.schema is None:
        return {"response_format": {"type": "json_object"}}
    schema: dict[str, Any] = {"name": wanted.name, "schema": wanted.schema}
    if wanted.strict:
        schema["strict"] = True
    if wanted.description:
        schema["description"] = wanted.description
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
