"""Items of a turn as Pydantic AI's messages; what its thinking parts want back, as one opaque text."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from pydantic_ai.messages import (
    BinaryContent,
    DocumentUrl,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.tools import DeferredToolApprovalResult, DeferredToolResults, ToolDenied

from channel.agent import Turn, TurnError
from channel.agents.media import Media, media_of
from channel.agents.reading import (
    Approvals,
    is_instruction,
    output_of,
    parts_of,
    summary_of,
    with_own_tools,
)
from channel.responses.protocol.items import Item, text_of


_WAITING: Final = "waiting"
TakesUrl = Callable[[Media], bool]


class _Back(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a provider wants back with a thinking part, beside its text."""

    signature: str | None = None
    id: str | None = None
    provider_name: str | None = None
    provider_details: dict[str, Any] | None = None


class Conversation(msgspec.Struct, frozen=True):
    """What a run is given: messages, and what this turn brings for the calls that waited for it."""

    messages: list[ModelMessage]
    results: DeferredToolResults | None = None
    prompt: list[UserContent] | None = None


def conversation_of(turn: Turn, takes_url: TakesUrl) -> Conversation:
    """Return the turn's items as requests and responses, ending where the model is to go on.

    System and developer messages are left out: they are instructions. `takes_url` says which media
    the model fetches by itself; the content of any other must be there. Raises `TurnError` (400) if
    not, and for approvals that are not those of the calls that wait.
    """
    answers = Approvals(turn)
    if not answers.left:
        messages = _messages(turn.items, takes_url)
        if not messages or isinstance(messages[-1], ModelResponse):
            messages.append(ModelRequest(parts=[]))
        return Conversation(messages)
    # The calls stay open: the run ends them, by running what is approved.
    messages = _messages(turn.history, takes_url)
    calls = _waiting(turn)
    taken = [answers.take(call.tool_name, call.args_as_json_str()) for call in calls]
    answers.require_none_left()
    if None in taken:
        msg = "All the calls that wait for an approval must be answered at once."
        raise TurnError(msg, code="invalid_value", status=400, param="input")
    if messages and isinstance(response := messages[-1], ModelResponse):
        response.parts = [*response.parts, *calls]
    else:
        messages.append(ModelResponse(parts=[*calls]))
    given = zip(calls, taken, strict=True)
    results = DeferredToolResults(
        approvals={call.tool_call_id: _approval(answer) for call, answer in given if answer}
    )
    prompt: list[UserContent] = []
    for item in turn.input:
        part = _request_part(item, {}, takes_url)
        if isinstance(part, ToolReturnPart):
            results.calls[part.tool_call_id] = part.content
        elif isinstance(part, UserPromptPart):
            prompt += [part.content] if isinstance(part.content, str) else part.content
    return Conversation(messages, results, prompt or None)


def state_of(calls: Iterable[ToolCallPart]) -> dict[str, Any]:
    """Return the calls that wait for approval, as they are kept: what a client says of them is no proof."""
    return {
        _WAITING: [[call.tool_name, call.args_as_json_str(), call.tool_call_id] for call in calls]
    }


def approval_request(part: ToolCallPart) -> Item:
    """Return the item that asks the client to approve this call."""
    return {
        "type": "mcp_approval_request",
        "name": part.tool_name,
        "arguments": part.args_as_json_str(),
        "server_label": "agent",
    }


def wanted_back(part: ThinkingPart) -> str | None:
    """Return what the part's provider wants back with it, as text; None where it wants nothing."""
    if part.signature is None and part.id is None and not part.provider_details:
        return None
    back = _Back(part.signature, part.id, part.provider_name, part.provider_details)
    try:
        return msgspec.json.encode(back).decode()
    except TypeError:  # details that are no JSON
        return None


def _approval(answer: Item) -> bool | DeferredToolApprovalResult:
    reason = answer.get("reason")
    denied = ToolDenied(reason) if isinstance(reason, str) else ToolDenied()
    return True if answer.get("approve") is True else denied


def _waiting(turn: Turn) -> list[ToolCallPart]:
    waiting = (turn.state or {}).get(_WAITING) or ()
    return [ToolCallPart(*call) for call in waiting]


def _messages(items: Iterable[Item], takes_url: TakesUrl) -> list[ModelMessage]:
    messages: list[ModelMessage] = []
    names: dict[str, str] = {}
    for item in with_own_tools(items):
        if (asked := _request_part(item, names, takes_url)) is not None:
            if messages and isinstance(request := messages[-1], ModelRequest):
                request.parts = [*request.parts, asked]
            else:
                messages.append(ModelRequest(parts=[asked]))
        elif (answered := _response_part(item)) is not None:
            if messages and isinstance(response := messages[-1], ModelResponse):
                response.parts = [*response.parts, answered]
            else:
                messages.append(ModelResponse(parts=[answered]))
            if isinstance(answered, ToolCallPart):
                names[answered.tool_call_id] = answered.tool_name
    return messages


def _request_part(
    item: Item, names: dict[str, str], takes_url: TakesUrl
) -> ModelRequestPart | None:
    match item:
        case {"type": "message", "role": "assistant"}:
            return None
        case {"type": "message"} if not is_instruction(item):
            return UserPromptPart(_prompt(item, takes_url))
        case {"type": "function_call_output", "call_id": str(call_id)}:
            media = [_media(found, takes_url) for found in map(media_of, parts_of(item)) if found]
            output: Any = [output_of(item), *media] if media else output_of(item)
            return ToolReturnPart(names.get(call_id, ""), output, call_id)
        case _:
            return None


def _prompt(item: Item, takes_url: TakesUrl) -> str | list[UserContent]:
    parts: list[UserContent] = []
    for part in parts_of(item):
        media = media_of(part)
        if media is not None:
            parts.append(_media(media, takes_url))
        elif isinstance(text := part.get("text"), str):
            parts.append(text)
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _media(media: Media, takes_url: TakesUrl) -> UserContent:
    if media.data is None and media.url and takes_url(media):
        return ImageUrl(media.url) if media.is_image else DocumentUrl(media.url)
    data = media.content()
    return BinaryContent(data.content, media_type=data.media_type)


def _response_part(item: Item) -> ModelResponsePart | None:
    match item:
        case {"type": "message", "role": "assistant"}:
            refusals = [part.get("refusal") or "" for part in parts_of(item)]
            return TextPart(text_of(item) + "".join(refusals))
        case {"type": "function_call", "call_id": str(call_id), "name": str(name)}:
            return ToolCallPart(name, item.get("arguments"), call_id)
        case {"type": "reasoning"}:
            return _thinking(item)
        case _:
            return None


def _thinking(item: Item) -> ThinkingPart | None:
    """Return the reasoning as its provider knows it; None where only text is left, which none takes."""
    try:
        back = msgspec.json.decode(item.get("encrypted_content") or "null", type=_Back)
    except msgspec.DecodeError:
        return None
    return ThinkingPart(
        summary_of(item),
        id=back.id,
        signature=back.signature,
        provider_name=back.provider_name,
        provider_details=back.provider_details,
    )
