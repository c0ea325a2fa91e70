"""What an Agent Framework run left open (calls, requests to approve them), and how a client answers it. Pure."""

from collections.abc import Collection, Sequence
from typing import Any

from agent_framework import Content, Message

from channel.agent import TurnError
from channel.agents.agent_framework.messages import add_to_answer, messages_of
from channel.responses.protocol.items import Item


def restored(kept: Sequence[dict[str, Any]]) -> list[Content]:
    """Return what was kept of a pause: calls, and the requests to approve them."""
    return [Content.from_dict(each) for each in kept]


def answers_to(paused: Collection[Content], given: Sequence[Item]) -> list[Message]:
    """Return the client's approvals as messages; empty where it answers none.

    Raises `TurnError` (400, `input`) for an answer to nothing that is open, and where some of what is
    open is answered and some is not: the model called all of it at once.
    """
    requests = {content.id: content for content in _requests(paused)}
    responses = [item for item in given if item.get("type") == "mcp_approval_response"]
    contents: list[Content] = []
    for item in responses:
        request = requests.pop(item.get("approval_request_id"), None)
        if request is None:
            raise _error(f"No open approval request with id {item.get('approval_request_id')}.")
        contents.append(request.to_function_approval_response(item.get("approve") is True))
    if requests and (contents or is_answered(paused, given)):
        raise _error(f"No answer found for approval request {next(iter(requests))}.")
    return [Message("user", contents)] if contents else []


def is_answered(paused: Collection[Content], given: Sequence[Item]) -> bool:
    """Return whether a turn's input answers what is open."""
    calls = {content.call_id for content in paused if content.type == "function_call"}
    requests = {content.id for content in _requests(paused)}
    return any(
        (item.get("type") == "function_call_output" and item.get("call_id") in calls)
        or (
            item.get("type") == "mcp_approval_response"
            and item.get("approval_request_id") in requests
        )
        for item in given
    )


def history_of(items: Sequence[Item], paused: Collection[Content]) -> list[Message]:
    """Return the items as messages, the last of them with what is being answered now, as it was called."""
    calls = {content.call_id for content in paused if content.type == "function_call"}
    before = [
        item
        for item in items
        if not (item.get("type") == "function_call" and item.get("call_id") in calls)
    ]
    messages = messages_of(before)
    if paused:
        add_to_answer(messages, [*paused])
    return messages


def calls_of(paused: Collection[Content]) -> list[Content]:
    """Return the calls that are open, once each."""
    asked = [content.function_call for content in _requests(paused) if content.function_call]
    calls = [content for content in paused if content.type == "function_call"]
    known = {call.call_id for call in calls}
    return [*calls, *(call for call in asked if call.call_id not in known)]


def _requests(paused: Collection[Content]) -> list[Content]:
    return [content for content in paused if content.type == "function_approval_request"]


def _error(message: str) -> TurnError:
    return TurnError(message, code="invalid_value", status=400, param="input")
