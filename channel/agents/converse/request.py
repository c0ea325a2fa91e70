"""A turn as a request of the Converse API: pure. What differs by model is in `converse.models`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from channel.agent import Turn
from channel.agents.converse.messages import Block, Message, messages_of, tool_name
from channel.agents.converse.models import Model, Reasoning
from channel.agents.converse.schema import closed, is_enforceable
from channel.agents.reading import (
    ClientTool,
    JsonFormat,
    client_tools,
    instructions_of,
    json_format,
    reasoning_effort,
    tool_mode,
    unsupported,
)


CACHE_POINT: Final[Block] = {"cachePoint": {"type": "default"}}
_CACHED_MESSAGES: Final = 2
_MOST_STRICT_TOOLS: Final = 20


class ConverseOptions(Struct, frozen=True):
    """What holds for all turns of an agent: its instructions, and how its model is called.

    `guardrail` is its id, or its ARN, and its version. `caching` None is for the models that are
    known to take cache points. `fields` are additional fields of each request
    (`additionalModelRequestFields`), which go before what is made of a turn.
    """

    instructions: str | None = None
    guardrail: tuple[str, str] | None = None
    caching: bool | None = None
    fields: Mapping[str, Any] = {}


def request_of(
    turn: Turn, model: Model, options: ConverseOptions, *, replays_reasoning: bool = True
) -> dict[str, Any]:
    """Return the arguments of `converse_stream`; raises `TurnError` (400) for what they cannot say."""
    replays_reasoning = replays_reasoning and model.replays_reasoning
    messages = messages_of(turn.items, replays_reasoning=replays_reasoning)
    if not messages:
        raise unsupported("an input without a message of the user")
    caches = model.has_prompt_caching if options.caching is None else options.caching
    reasoning = _reasoning(turn, model, messages)
    sampling = _sampling(turn, model)
    limit = {} if reasoning.max_tokens is None else {"maxTokens": reasoning.max_tokens}
    effort = {"effort": reasoning.effort} if reasoning.effort else {}
    tool_config, choice = _tools(turn, model, messages)
    request = {
        "modelId": model.model_id,
        "messages": _with_cache_points(messages) if caches and turn.history else messages,
        "system": _system(turn, options.instructions, caches=caches),
        "inferenceConfig": {**limit, **sampling} if reasoning.has_sampling else limit,
        "toolConfig": tool_config,
        "guardrailConfig": _guardrail(options.guardrail),
        "outputConfig": {**_text_format(json_format(turn)), **effort},
        "additionalModelRequestFields": {**reasoning.fields, **choice, **options.fields},
    }
    return {name: value for name, value in request.items() if value}


def count_request_of(request: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return the arguments of `count_tokens` for a request."""
    counted = {name: request[name] for name in _COUNTED if name in request}
    return {"modelId": model.foundation_id, "input": {"converse": counted}}


_COUNTED: Final = ("messages", "system", "toolConfig", "additionalModelRequestFields")


def _system(turn: Turn, instructions: str | None, *, caches: bool) -> list[Block]:
    """Return the agent's own instructions, which may be cached for all, and those of the request."""
    own = [{"text": instructions}] if instructions else []
    point = [CACHE_POINT] if own and caches else []
    return [*own, *point, *({"text": text} for text in instructions_of(turn) if text.strip())]


def _reasoning(turn: Turn, model: Model, messages: Sequence[Message]) -> Reasoning:
    return model.reasoning(
        reasoning_effort(turn),
        max_tokens=turn.options.get("max_output_tokens"),
        is_shown=bool((turn.options.get("reasoning") or {}).get("summary")),
        is_bound=tool_mode(turn) == "required" or _called_unreasoned(messages),
    )


def _called_unreasoned(messages: Sequence[Message]) -> bool:
    """Return whether the last message has results of calls that no reasoning went before."""
    return (
        "toolResult" in messages[-1]["content"][0]
        and "reasoningContent" not in messages[-2]["content"][0]
    )


def _sampling(turn: Turn, model: Model) -> dict[str, Any]:
    """Return how the next token is chosen; a model that takes one of the two gets the temperature."""
    temperature, top_p = turn.options.get("temperature"), turn.options.get("top_p")
    if temperature is not None and temperature > 1:
        raise unsupported("a temperature above 1", "temperature")
    if model.has_one_sampler and temperature is not None:
        top_p = None
    given = {"temperature": temperature, "topP": top_p}
    return {name: float(value) for name, value in given.items() if value is not None}


def _tools(
    turn: Turn, model: Model, messages: Sequence[Message]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `toolConfig`, and what the additional fields say about the choice of tools.

    Converse cannot say that no tool may be called, and refuses calls in the history of a request
    without tools: then they stay, and only Claude is told. A call by another model fails the turn.
    """
    tools, mode = client_tools(turn), tool_mode(turn)
    if not tools:
        if mode == "required":
            raise unsupported("this choice of a tool", "tool_choice")
        tools = _kept_tools(turn, messages)
        choice = {"type": "none"} if tools and model.has_tool_choice_field else None
        return _tool_config(tools, model), {"tool_choice": choice} if choice else {}
    config = _tool_config(tools, model)
    if mode == "required":
        config["toolChoice"] = _forced(turn, tools)
    elif not turn.parallel_tool_calls and model.has_strict_tools:
        return config, {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    return config, {}


def _kept_tools(turn: Turn, messages: Sequence[Message]) -> list[ClientTool]:
    """Return the tools to which calls in the history belong, as far as the request tells of them."""
    called = dict.fromkeys(
        block["toolUse"]["name"]
        for message in messages
        for block in message["content"]
        if "toolUse" in block
    )
    if not called:
        return []
    declared = client_tools(replace(turn, tool_choice="auto"))
    return declared or [ClientTool(name, "", {"type": "object"}) for name in called]


def _tool_config(tools: Sequence[ClientTool], model: Model) -> dict[str, Any]:
    strict = (
        [tool.name for tool in tools if tool.strict and is_enforceable(tool.parameters)]
        if model.has_strict_tools
        else []
    )
    enforced = frozenset(strict[:_MOST_STRICT_TOOLS])
    return {"tools": [_tool(tool, tool.name in enforced) for tool in tools]} if tools else {}


def _tool(tool: ClientTool, is_enforced: bool) -> Block:
    return {
        "toolSpec": {
            "name": tool_name(tool.name),
            **({"description": tool.description} if tool.description.strip() else {}),
            "inputSchema": {"json": {"type": "object", **tool.parameters}},
            **({"strict": True} if is_enforced else {}),
        }
    }


def _forced(turn: Turn, tools: Sequence[ClientTool]) -> dict[str, Any]:
    is_named = isinstance(turn.tool_choice, Mapping) and turn.tool_choice["type"] == "function"
    return {"tool": {"name": tools[0].name}} if is_named else {"any": {}}


def _text_format(wanted: JsonFormat | None) -> dict[str, Any]:
    if wanted is None:
        return {}
    if wanted.schema is None:
        raise unsupported("'json_object' (but 'json_schema')", "text.format.type")
    definition = {
        "schema": json.dumps(closed(wanted.schema), ensure_ascii=False),
        "name": wanted.name,
        **({"description": wanted.description} if wanted.description else {}),
    }
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": definition}}}


def _guardrail(guardrail: tuple[str, str] | None) -> dict[str, Any]:
    if guardrail is None:
        return {}
    return {"guardrailIdentifier": guardrail[0], "guardrailVersion": guardrail[1]}


def _with_cache_points(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with a cache point in the user's last two.

    The first of them is where the turn before this one wrote; a model need not look further back.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    cached = frozenset(users[-_CACHED_MESSAGES:])
    return [
        {**message, "content": [*_pointed(message["content"])]} if i in cached else message
        for i, message in enumerate(messages)
    ]


def _pointed(blocks: Sequence[Block]) -> Iterator[Block]:
    """Put a cache point behind the blocks, but before documents at their end: it may not follow them."""
    last = max((i for i, block in enumerate(blocks) if "document" not in block), default=-1)
    for i, block in enumerate(blocks):
        yield block
        if i == last:
            yield CACHE_POINT
