"""A turn as an upstream's Responses API takes it: items as input, tools and options as fields of the body."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
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
    is_instruction,
    parts_of,
    with_own_tools,
)
from channel.responses.protocol.items import Item, text_of


ROUTE: Final = "/responses"

_AS_THEY_ARE: Final = (
    "frequency_penalty",
    "max_output_tokens",
    "max_tool_calls",
    "presence_penalty",
    "service_tier",
    "temperature",
    "top_p",
    "user",
)
_CUSTOM: Final = ("custom_tool_call", "custom_tool_call_output")
_CALLED: Final = ("function_call", "custom_tool_call")


def request_of(turn: Turn, model: UpstreamModel, dialect: Dialect) -> dict[str, Any]:
    """Return the body of the turn's request; raises `TurnError` (400) for what cannot be asked."""
    leading = [text_of(item) for item in takewhile(is_instruction, turn.items)]
    items = turn.items[len(leading) :]
    body: dict[str, Any] = {
        "model": model.name,
        "input": [*_input(items, dialect)],
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    # One message at the beginning, since templates of local models may take no second one there.
    given = filter(None, (model.instructions, turn.instructions, *leading))
    if instructions := "\n\n".join(given):
        body["instructions"] = instructions
    body |= _tools(turn, model)
    body |= _options(turn)
    return {name: value for name, value in body.items() if name not in dialect.without}


def _tools(turn: Turn, model: UpstreamModel) -> dict[str, Any]:
    return asked_tools(turn, [*model.tools, *_functions(turn), *_custom_tools(turn)])


def _functions(turn: Turn) -> Iterator[dict[str, Any]]:
    strict = {tool.get("name"): tool.get("strict") for tool in turn.tools}
    for tool in client_tools(turn):
        function = {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        }
        # Whether it is strict where the caller does not say is for the upstream to know.
        given = strict[tool.name]
        yield function if given is None else {**function, "strict": given}


def _custom_tools(turn: Turn) -> Iterator[dict[str, Any]]:
    """Return the tools with free text as their input, which the client runs itself as well."""
    choice = turn.tool_choice
    for tool in turn.tools:
        if tool.get("type") != "custom":
            continue
        if isinstance(choice, str):
            is_permitted = choice != "none"
        else:
            named = [choice, *(choice.get("tools") or ())]
            is_permitted = any(each.get("name") == tool.get("name") for each in named)
        if is_permitted:
            yield dict(tool)


def _options(turn: Turn) -> dict[str, Any]:
    options = turn.options
    asked = {name: options[name] for name in _AS_THEY_ARE if options.get(name) is not None}
    if reasoning := _given(options.get("reasoning")):
        asked["reasoning"] = {k: v for k, v in reasoning.items() if k != "generate_summary"}
    if text := _given(options.get("text")):
        asked["text"] = {k: _given(v) if k == "format" else v for k, v in text.items()}
    if key := prompt_cache_key(turn):
        asked["prompt_cache_key"] = key
    return asked


def _given(value: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: each for key, each in (value or {}).items() if each is not None}


def _input(items: Iterable[Item], dialect: Dialect) -> Iterator[dict[str, Any]]:
    """Return the items without ids: the upstream stores nothing, and knows none of them."""
    thoughts: list[dict[str, Any]] = []
    for item in with_own_tools(items):
        if item.get("type") == "reasoning":
            thoughts += _reasoning(item) if dialect.replays_reasoning else ()
            continue
        sent = _item(item)
        if sent is None:
            continue
        # Reasoning that led to nothing, since its turn was cut off, is refused.
        if sent.get("role") == "assistant" or sent["type"] in _CALLED:
            yield from thoughts
        thoughts = []
        yield sent
    # What the items end with was not said by the model, or else there would be nothing to ask.


def _item(item: Item) -> dict[str, Any] | None:  # noqa: PLR0911 - one case for each item
    match item:
        case {"type": "message", "role": "assistant"}:
            return _answer(item)
        case {"type": "message", "role": role}:
            # To OpenAI the two roles are one; many templates do not know the other word.
            known = "system" if role == "developer" else role
            return {"type": "message", "role": known, "content": _content(item)}
        case {"type": "function_call"}:
            return {key: item[key] for key in ("type", "call_id", "name", "arguments")}
        case {"type": "function_call_output", "output": str(output), "call_id": call_id}:
            return {"type": "function_call_output", "call_id": call_id, "output": output}
        case {"type": "function_call_output", "call_id": call_id}:
            content = _content(item)
            return {"type": "function_call_output", "call_id": call_id, "output": content}
        case {"type": kind} if kind in _CUSTOM:
            return {key: value for key, value in item.items() if key not in ("id", "status")}
    return None


def _answer(item: Item) -> dict[str, Any] | None:
    """Return what the model said as plain text: a part of an answer without its id is not taken everywhere."""
    if not (text := said(item)):
        return None
    phase = {"phase": item["phase"]} if item.get("phase") else {}
    return {"type": "message", "role": "assistant", "content": text, **phase}


def _content(item: Item) -> str | list[dict[str, Any]]:
    parts = [_part(part) for part in parts_of(item)]
    if all(part["type"] == "input_text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] in ("input_text", "output_text"):
        return {"type": "input_text", "text": part["text"]}
    media_part(part)
    return {key: value for key, value in part.items() if value is not None}


def _reasoning(item: Item) -> Iterator[dict[str, Any]]:
    encrypted = item.get("encrypted_content")
    if isinstance(encrypted, str) and encrypted and not encrypted.startswith(CHAT_REASONING):
        summary = item.get("summary") or []
        yield {"type": "reasoning", "summary": summary, "encrypted_content": encrypted}
