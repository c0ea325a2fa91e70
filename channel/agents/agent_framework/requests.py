"""What a workflow of Agent Framework asks for while it runs (`request_info`), and how a client answers it. Pure.

A call of the client's function is a `function_call`, a request to approve a call of the agent's own an
`mcp_approval_request`; those have answers of their own. Anything else is asked in text and answered by
the text of the next user message, or, where the client declares the function `request_info`, asked and
answered by calls of that.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from agent_framework import AgentResponseUpdate, Content, WorkflowEvent

from channel.agent import TurnError
from channel.agents.agent_framework.messages import messages_of
from channel.agents.agent_framework.outputs import text_of
from channel.agents.reading import is_instruction, output_of
from channel.responses.protocol.items import Item, text_of as message_text_of


FUNCTION: Final = "request_info"
_OWN_KINDS: Final = frozenset({"function_call", "function_approval_request"})

Pending = Mapping[str, WorkflowEvent[Any]]
"""Requests that are open, by their ids."""


def asked(event: WorkflowEvent[Any], clients: Collection[str]) -> AgentResponseUpdate:
    """Return what is said of a request to a client with these functions."""
    data = event.data
    if isinstance(data, Content) and data.user_input_request and data.type != "text":
        # The call may have been streamed already: this is all of it.
        return AgentResponseUpdate(contents=[data], role="assistant", merge_mode="replace")
    if FUNCTION not in clients:
        return AgentResponseUpdate(contents=[Content.from_text(text_of(data))], role="assistant")
    given = {"request_id": event.request_id, "data": _plain(data)}
    arguments = msgspec.json.encode(given).decode()
    call = Content.from_function_call(event.request_id, FUNCTION, arguments=arguments)
    return AgentResponseUpdate(contents=[call], role="assistant")


def require_answerable(pending: Pending, clients: Collection[str], *, is_kept: bool) -> None:
    """Refuse to ask for what cannot be answered; raises `TurnError`.

    That is several things in text, which one message would answer, and anything but a call of the
    client's function where nothing is kept: a call and its output come back with the history.
    """
    general = [event for event in pending.values() if _is_general(event)]
    if len(general) > 1 and FUNCTION not in clients:
        msg = (
            "The workflow asks for several things at once. Declare the function tool "
            f"'{FUNCTION}' to be asked by its calls."
        )
        raise TurnError(msg, code="unsupported_value", status=400, param="tools")
    if not is_kept and any(not _is(event.data, "function_call") for event in pending.values()):
        msg = "The workflow asks for something, and keeps no state here that an answer could go on from."
        raise TurnError(msg)


def answers_to(pending: Pending, given: Sequence[Item]) -> dict[str, Any]:
    """Return the client's answers to what is open, by its ids; empty where nothing is.

    Instructions are passed over: they are for a new input. Raises `TurnError` (400, `input`) where nothing
    of what is open is answered, and for an item that answers nothing.
    """
    given = [item for item in given if not is_instruction(item)]
    answers: dict[str, Any] = {}
    used: set[int] = set()
    for request_id, event in pending.items():
        for index, answer in _answers(request_id, event, given):
            answers[request_id] = answer
            used.add(index)
    if pending and not answers:
        msg = f"The workflow waits for the answer to its request '{next(iter(pending))}'."
        raise _error(msg)
    left = next((item for i, item in enumerate(given) if i not in used), None)
    if pending and left is not None:
        msg = f"The workflow waits for answers; an item of type '{left['type']}' answers nothing."
        raise _error(msg)
    if any(item.get("type") == "mcp_approval_response" for item in given) and not pending:
        raise _error("No open approval request was found for an approval.")
    return answers


def calls_of(pending: Pending) -> dict[str, list[Content]]:
    """Return the calls of agents' own tools that wait to be approved, by executor."""
    calls: dict[str, list[Content]] = {}
    for event in pending.values():
        call = getattr(event.data, "function_call", None)
        if isinstance(call, Content):
            calls.setdefault(event.source_executor_id, []).append(call)
    return calls


def _answers(
    request_id: str, event: WorkflowEvent[Any], given: Sequence[Item]
) -> Iterator[tuple[int, Any]]:
    """Yield the answer to a request, and which item it is."""
    data = event.data
    for index, item in enumerate(given):
        match item:
            case {"type": "function_call_output", "call_id": call_id} if _is(data, "function_call"):
                if call_id == data.call_id:
                    yield index, messages_of([item])[0].contents[0]
            case {"type": "mcp_approval_response", "approval_request_id": asked_id}:
                if asked_id == request_id and _is(data, "function_approval_request"):
                    yield index, data.to_function_approval_response(item.get("approve") is True)
            case {"type": "function_call_output", "call_id": call_id} if _is_general(event):
                if call_id == request_id:
                    yield index, _value(output_of(item), event)
            case {"type": "message", "role": "user"} if _is_general(event):
                yield index, _value(message_text_of(item), event)


def _value(text: str, event: WorkflowEvent[Any]) -> Any:
    """Return an answer in text as the value that the request is for, as far as JSON says it."""
    if event.response_type is str:
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _is(data: Any, kind: str) -> bool:
    return isinstance(data, Content) and data.type == kind


def _is_general(event: WorkflowEvent[Any]) -> bool:
    return not (isinstance(event.data, Content) and event.data.type in _OWN_KINDS)


def _plain(data: Any) -> Any:
    """Return a value as JSON has it."""
    text = text_of(data)
    if isinstance(data, str | Content):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _error(message: str) -> TurnError:
    return TurnError(message, code="invalid_value", status=400, param="input")
