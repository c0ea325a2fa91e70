"""The create request: bytes in, a `CreateResponse` and its input items out, or a `RequestError`.

Strict with the types of known fields, which the error names as `param`; open to unknown fields,
item types and content parts.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.input import input_items
from channel.responses.protocol.items import Item
from channel.responses.protocol.shapes import NAME, checked, decoded, missing


_Unit = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_ShortText = Annotated[str, Meta(max_length=64)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class CreateResponse(Struct, frozen=True, omit_defaults=True, gc=False):
    """The fields of `POST /responses` besides `input` (OpenAI's OpenAPI 2.3.0 `CreateResponse`)."""

    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=16)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Unit | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    context_management: list[dict[str, Any]] | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    safety_identifier: _ShortText | None = None
    prompt_cache_key: _ShortText | None = None
    user: str | None = None
    response_target: Any = None  # no field of OpenAI's: `channel.targets.parse_target`

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation, which may be given as `{"id"}`; raises `RequestError`."""
        given = self.conversation
        if given is None or isinstance(given, str):
            return given
        return checked(given, _NamedConversation, "conversation").id


class _Body(CreateResponse, frozen=True, gc=False):
    """The whole body, with `input` as the client wrote it."""

    input: str | list[dict[str, Any]] | None = None


class FunctionTool(Struct, frozen=True, gc=False):
    """A function that the client declared."""

    name: Annotated[str, Meta(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _AllowedTools(Struct, frozen=True, gc=False):
    mode: Literal["none", "auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=128)]


class _NamedTool(Struct, frozen=True, gc=False):
    name: str


class _NamedConversation(Struct, frozen=True, gc=False):
    id: str


class _Text(Struct, frozen=True, gc=False):
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class _JsonSchemaFormat(Struct, frozen=True, gc=False):
    name: Annotated[str, Meta(pattern=NAME)]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class _Reasoning(Struct, frozen=True, gc=False):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class _ContextManagement(Struct, frozen=True, gc=False):
    type: Literal["compaction"]
    compact_threshold: Annotated[int, Meta(ge=1000)] | None = None


_decode = msgspec.json.Decoder(_Body).decode


def parse(body: bytes, *, requires_input: bool = True) -> tuple[CreateResponse, list[Item]]:
    """Return the request and its input items in normal form, still without ids.

    Without `requires_input`, a request may have neither input nor anything that it continues.
    Raises `RequestError` (400), with `param` naming the first field that is wrong.
    """
    request = decoded(body, _decode)
    items = input_items(request.input)
    _require_supported(request)
    continued = _continued(request)
    for i, entry in enumerate(request.context_management or ()):
        checked(entry, _ContextManagement, f"context_management[{i}]")
    if requires_input and not items and continued is None:
        raise missing("input")
    return _with_normal_fields(request), items


def function_names(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Return the names of the function tools."""
    return frozenset(tool["name"] for tool in tools if tool["type"] == "function")


def permitted_names(
    tools: Sequence[Mapping[str, Any]], tool_choice: str | Mapping[str, Any]
) -> frozenset[str]:
    """Return the functions that this turn may call: `tool_choice` is a hard constraint."""
    names = function_names(tools)
    if isinstance(tool_choice, str):
        return frozenset() if tool_choice == "none" else names
    match tool_choice:
        case {"type": "function", "name": name}:
            return names & {name}
        case {"type": "allowed_tools", "mode": "none"}:
            return frozenset()
        case {"type": "allowed_tools", "tools": allowed}:
            return names & {tool["name"] for tool in allowed if isinstance(tool.get("name"), str)}
    return names


def _require_supported(request: CreateResponse) -> None:
    if request.background and request.store is False:
        msg = "Unsupported parameter: 'background' needs 'store', which is false."
        raise RequestError(msg, param="background", code="unsupported_parameter")
    if request.prompt:
        msg = "Unsupported parameter: 'prompt' is not supported by this server."
        raise RequestError(msg, param="prompt", code="unsupported_parameter")


def _continued(request: CreateResponse) -> str | None:
    """Return the one thing that the request continues."""
    conversation = request.conversation_id
    if conversation is not None and request.previous_response_id is not None:
        msg = (
            "Mutually exclusive parameters: only one of 'previous_response_id' and 'conversation'."
        )
        raise RequestError(msg, param="previous_response_id", code="mutually_exclusive_parameters")
    return request.previous_response_id if conversation is None else conversation


def _with_normal_fields(request: CreateResponse) -> CreateResponse:
    given = (request.tool_choice, request.text, request.reasoning)
    if not request.tools and given == (None, None, None):
        return request
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())]
    return msgspec.structs.replace(
        request,
        tools=tools,
        tool_choice=checked_tool_choice(request.tool_choice, tools),
        text=_text(request.text),
        reasoning=_reasoning(request.reasoning),
    )


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    tool_type = tool.get("type")
    if not isinstance(tool_type, str) or not tool_type:
        raise missing(f"{where}.type")
    if tool_type != "function":
        return tool
    function = checked(tool, FunctionTool, where)
    # Open Responses requires all of them on every tool that is echoed.
    known = {
        "description": function.description,
        "parameters": function.parameters,
        "strict": function.strict,
    }
    return {**tool, **known}


def checked_tool_choice(
    choice: str | dict[str, Any] | None, tools: Sequence[Mapping[str, Any]]
) -> str | dict[str, Any]:
    """Return the choice, or its default; raises `RequestError` (400) where it does not go with the tools."""
    if choice is None or choice in ("none", "auto"):
        return choice or "auto"
    names = function_names(tools)
    if choice == "required":
        if not tools:
            raise _wrong_choice("Tool choice 'required' needs at least one tool in 'tools'.")
    elif isinstance(choice, str):
        raise _wrong_choice(
            "Invalid value for 'tool_choice': expected none, auto, required or an object."
        )
    elif choice.get("type") == "function":
        named = checked(choice, _NamedTool, "tool_choice")
        if named.name not in names:
            raise _wrong_choice(f"Tool choice '{named.name}' is not a function in 'tools'.")
    elif choice.get("type") == "allowed_tools":
        checked(choice, _AllowedTools, "tool_choice")
    elif not isinstance(choice.get("type"), str):
        raise _wrong_choice("Missing required parameter: 'tool_choice.type'.")
    return choice


def _wrong_choice(message: str) -> RequestError:
    return RequestError(message, param="tool_choice", code="invalid_value")


def _text(text: dict[str, Any] | None) -> dict[str, Any] | None:
    if text is None:
        return None
    chosen = checked(text, _Text, "text")
    text_format = chosen.format or {"type": "text"}
    match text_format.get("type"):
        case "text" | "json_object":
            pass
        case "json_schema":
            checked(text_format, _JsonSchemaFormat, "text.format")
            text_format = {"description": None, "strict": None, **text_format}
        case _:
            raise RequestError(
                "Invalid value for 'text.format.type': expected text, json_object or json_schema.",
                param="text.format.type",
                code="invalid_value",
            )
    return {**{k: v for k, v in text.items() if v is not None}, "format": text_format}


def _reasoning(reasoning: dict[str, Any] | None) -> dict[str, Any] | None:
    if reasoning is None:
        return None
    chosen = checked(reasoning, _Reasoning, "reasoning")
    summary = chosen.summary or chosen.generate_summary
    return {**reasoning, "effort": chosen.effort, "summary": summary}
