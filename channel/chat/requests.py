"""The body of `POST /chat/completions`: bytes in, what a Responses create has out, or a `RequestError`.

Strict with the types of known fields, which the error names as `param`; open to unknown fields. What
cannot be done, and would be missed, is a 400 that names it: `docs/channels.md` has the table.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from channel.chat.messages import Message, split
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item
from channel.responses.protocol.requests import (
    CreateResponse,
    FunctionTool,
    Metadata,
    checked_tool_choice,
)
from channel.responses.protocol.shapes import NAME, decoded


_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=1)]


class ChatRequest(Struct, frozen=True, gc=False):
    """What a body asks for, as a Responses create would: its fields, and its items in normal form."""

    create: CreateResponse
    items: list[Item]
    includes_usage: bool = False


class _Tool(Struct, frozen=True, gc=False):
    function: FunctionTool
    type: Literal["function"] = "function"


class _Named(Struct, frozen=True, gc=False):
    name: str


class _NamedTool(Struct, frozen=True, gc=False, tag_field="type", tag="function"):
    function: _Named


class _Allowed(Struct, frozen=True, gc=False):
    mode: Literal["auto", "required"]
    tools: Annotated[list[_NamedTool], Meta(min_length=1, max_length=128)]


class _AllowedTools(Struct, frozen=True, gc=False, tag_field="type", tag="allowed_tools"):
    allowed_tools: _Allowed


class _TextFormat(Struct, frozen=True, gc=False, tag_field="type", tag="text"):
    pass


class _ObjectFormat(Struct, frozen=True, gc=False, tag_field="type", tag="json_object"):
    pass


class _Schema(Struct, frozen=True, gc=False):
    name: Annotated[str, Meta(pattern=NAME)]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class _SchemaFormat(Struct, frozen=True, gc=False, tag_field="type", tag="json_schema"):
    json_schema: _Schema


class _StreamOptions(Struct, frozen=True, gc=False):
    include_usage: bool | None = None


class _Body(Struct, frozen=True, gc=False):
    """The fields of OpenAI's `CreateChatCompletionRequest` that mean something here."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _NamedTool | _AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    response_format: _TextFormat | _ObjectFormat | _SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    max_completion_tokens: _Count | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    reasoning_effort: str | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    safety_identifier: Annotated[str, Meta(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    user: str | None = None
    response_target: Any = None
    # What nobody here can do; `_require_supported`.
    n: _Count | None = None
    modalities: list[str] | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    moderation: Any = None
    stop: Any = None
    top_logprobs: Any = None
    web_search_options: Any = None


_AS_THEY_ARE: Final = (
    *("model", "stream", "parallel_tool_calls", "temperature", "top_p", "presence_penalty"),
    *("frequency_penalty", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("user", "response_target"),
)
_UNSUPPORTED: Final = (
    *("audio", "function_call", "functions", "logit_bias", "logprobs", "moderation", "stop"),
    "top_logprobs",
)

_decode = msgspec.json.Decoder(_Body).decode


def parse(body: bytes) -> ChatRequest:
    """Return what the body asks for; raises `RequestError` (400) naming the first field that is wrong."""
    asked = decoded(body, _decode)
    _require_supported(asked)
    instructions, items = split(asked.messages)
    tools = [_tool(tool.function) for tool in asked.tools or ()]
    effort = asked.reasoning_effort
    create = CreateResponse(
        instructions=instructions,
        tools=tools,
        tool_choice=checked_tool_choice(_tool_choice(asked.tool_choice), tools),
        max_output_tokens=asked.max_completion_tokens or asked.max_tokens,
        text=_text(asked),
        reasoning=None if effort is None else {"effort": effort, "summary": None},
        **{name: getattr(asked, name) for name in _AS_THEY_ARE},
    )
    options = asked.stream_options
    return ChatRequest(create, items, options is not None and bool(options.include_usage))


def _require_supported(asked: _Body) -> None:
    for name in _UNSUPPORTED:
        if getattr(asked, name):  # an empty one asks for nothing
            raise _unsupported(name, "is not supported by this server")
    if asked.web_search_options is not None:
        raise _unsupported("web_search_options", "is not supported by this server")
    if asked.n not in (None, 1):
        raise _unsupported("n", "is 1 at this server")
    if any(modality != "text" for modality in asked.modalities or ()):
        raise _unsupported("modalities", "is ['text'] at this server")


def _unsupported(name: str, what: str) -> RequestError:
    msg = f"Unsupported parameter: '{name}' {what}."
    return RequestError(msg, param=name, code="unsupported_parameter")


def _tool(function: FunctionTool) -> dict[str, Any]:
    return {"type": "function", **msgspec.structs.asdict(function)}


def _tool_choice(choice: str | _NamedTool | _AllowedTools | None) -> str | dict[str, Any] | None:
    match choice:
        case _NamedTool(function):
            return {"type": "function", "name": function.name}
        case _AllowedTools(allowed):
            names = [{"type": "function", "name": tool.function.name} for tool in allowed.tools]
            return {"type": "allowed_tools", "mode": allowed.mode, "tools": names}
        case _:
            return choice


def _text(asked: _Body) -> dict[str, Any] | None:
    text: dict[str, Any] = {"format": {"type": "text"}}
    match asked.response_format:
        case _SchemaFormat(schema):
            fields = {**msgspec.structs.asdict(schema), "schema": schema.schema or {}}
            text["format"] = {"type": "json_schema", **fields}
        case _ObjectFormat():
            text["format"] = {"type": "json_object"}
        case None if asked.verbosity is None:
            return None
    if asked.verbosity is not None:
        text["verbosity"] = asked.verbosity
    return text
