"""Tools: which of the client's functions the demo agent calls, and with which arguments."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from channel.agent import FunctionCall, FunctionCallDelta, Turn, TurnError
from channel.agents.demo_conversation import Conversation
from channel.agents.demo_schema import NoInstanceError, instance
from channel.agents.demo_words import all_words, content_words, pieces


Tool = Mapping[str, Any]

_COMMON = (
    "get set fetch find look lookup list show make create run do call use tool function api current"
)
COMMON_IN_NAMES: Final = frozenset(_COMMON.split())
CALL_ID_LENGTH: Final = 24


def calls(turn: Turn, conversation: Conversation) -> list[FunctionCall]:
    """Return the calls that the turn asks for: none once each of them has been made.

    Raises `TurnError` for parameters that the demo agent finds no arguments for.
    """
    tools, choice = _callable(turn)
    wanted = [
        tool
        for tool in tools
        if tool["name"] not in conversation.called and _is_asked(tool, conversation.asked)
    ]
    if choice == "required" and not wanted and not _has_called(conversation):
        wanted = [*tools[:1]]
    if not turn.parallel_tool_calls:
        wanted = wanted[:1]
    made_before = sum(item.get("type") == "function_call" for item in turn.items)
    return [
        FunctionCall(
            name=tool["name"],
            arguments=_arguments(tool, conversation.asked),
            call_id=_call_id(turn.response_id, number),
        )
        for number, tool in enumerate(wanted, made_before + 1)
    ]


def streamed(made: Sequence[FunctionCall]) -> Iterator[FunctionCall | FunctionCallDelta]:
    """Yield the first call in pieces and the others whole, so that clients meet both."""
    for call in made[:1]:
        yield FunctionCallDelta(call.call_id or "", name=call.name)
        for piece in pieces(call.arguments):
            yield FunctionCallDelta(call.call_id or "", piece)
    yield from made[1:]


def _callable(turn: Turn) -> tuple[list[Tool], str]:
    """Return the functions that `tool_choice` allows, and none, auto or required."""
    functions = [tool for tool in turn.tools if tool.get("type") == "function"]
    choice = turn.tool_choice
    if isinstance(choice, str):
        return ([] if choice == "none" else functions), choice
    if choice.get("type") == "function":
        return _named(functions, [choice.get("name")]), "required"
    if choice.get("type") == "allowed_tools":
        names = [tool.get("name") for tool in choice.get("tools", ())]
        return _named(functions, names), choice.get("mode", "auto")
    return [], "none"


def _named(functions: Sequence[Tool], names: Sequence[str | None]) -> list[Tool]:
    return [tool for tool in functions if tool["name"] in names]


def _has_called(conversation: Conversation) -> bool:
    return bool(conversation.called or conversation.outputs)


def _is_asked(tool: Tool, text: str) -> bool:
    """Tell whether a text holds a tool's name, the name's own words, or two of its description."""
    name = tool["name"].casefold()
    if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text.casefold()):
        return True
    spoken = {*all_words(text)}
    own_words = _name_words(tool["name"])
    described = content_words(tool.get("description") or "") - COMMON_IN_NAMES
    return own_words <= spoken or len(described & spoken) > 1


def _name_words(name: str) -> set[str]:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    spelled = {*all_words(" ".join(words))} or {name}
    return spelled - COMMON_IN_NAMES or spelled


def _arguments(tool: Tool, text: str) -> str:
    try:
        arguments = instance(tool.get("parameters") or {"type": "object"}, text)
    except NoInstanceError:
        raise TurnError(
            f"The demo agent finds no arguments for the parameters of '{tool['name']}'.",
            code="invalid_function_parameters",
            status=400,
            param="tools",
        ) from None
    return json.dumps(arguments if isinstance(arguments, dict) else {}, ensure_ascii=False)


def _call_id(response_id: str, number: int) -> str:
    unique = response_id.removeprefix("resp_")[-CALL_ID_LENGTH:] or "demo"
    return f"call_{unique}_{number}"
