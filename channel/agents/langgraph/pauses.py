"""What a graph stops for (`interrupt`), and how a client answers it. Pure.

Approvals of tool calls, as LangChain's middleware asks for them, are `mcp_approval_request` items.
Anything else is asked in text, and answered by the text of the next user message.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langgraph.types import Interrupt

from channel.agent import AgentEvent, OutputItem, TurnError
from channel.agents.langgraph.chains import text_of_output
from channel.agents.reading import is_instruction
from channel.responses.protocol.items import Item, text_of


_ID: Final = "mcpr_"


def asked(pauses: Sequence[Interrupt]) -> Iterator[AgentEvent]:
    """Ask for what the graph stopped for; raises `TurnError` for two questions at once."""
    if len([pause for pause in pauses if _actions(pause) is None]) > 1:
        raise TurnError(
            "The agent asks several questions at once, which one message cannot answer."
        )
    for pause in pauses:
        actions = _actions(pause)
        if actions is None:
            yield text_of_output(pause.value)
        for number, action in enumerate(actions or ()):
            yield OutputItem(
                {
                    "type": "mcp_approval_request",
                    "id": _request_id(pause, number),
                    "name": str(action.get("name") or "interrupt"),
                    "arguments": text_of_output(action.get("args") or {}),
                    "server_label": "agent",
                }
            )


def answers_to(pauses: Sequence[Interrupt], given: Sequence[Item]) -> dict[str, Any] | None:
    """Return the client's answers by the ids of the pauses, or None where it goes on otherwise.

    That is with a message where an approval is waited for. Raises `TurnError` (400, `input`) for
    approvals that are not those asked for, or not all of them, and for what answers nothing.
    """
    items = [item for item in given if not is_instruction(item)]
    approvals = {
        str(item.get("approval_request_id")): item
        for item in items
        if item.get("type") == "mcp_approval_response"
    }
    texts = [text_of(item) for item in items if item.get("role") == "user"]
    is_question = any(_actions(pause) is None for pause in pauses)
    if not (approvals or is_question):
        return None
    answers = {pause.id: _answer(pause, approvals, texts) for pause in pauses}
    waited_for = sum(len(actions) if (actions := _actions(each)) else 1 for each in pauses)
    if approvals or len(items) > waited_for:
        raise _error("An approval was given that is not waited for, or something beside it.")
    return answers


def _answer(pause: Interrupt, approvals: dict[str, Item], texts: Sequence[str]) -> Any:
    actions = _actions(pause)
    if actions is None:
        if not texts:
            raise _error("The agent waits for the answer to its question.")
        return texts[-1]
    decisions = []
    for number in range(len(actions)):
        approval = approvals.pop(_request_id(pause, number), None)
        if approval is None:
            raise _error("The agent waits for more approvals than were given.")
        decisions.append(_decision(approval))
    return {"decisions": decisions} if "action_requests" in pause.value else decisions[0]


def _decision(approval: Item) -> dict[str, Any]:
    if approval.get("approve") is True:
        return {"type": "approve"}
    reason = approval.get("reason")
    return {"type": "reject", **({"message": reason} if isinstance(reason, str) else {})}


def _actions(pause: Interrupt) -> list[Mapping[str, Any]] | None:
    """Return the calls that are to be approved, or None of a question."""
    match pause.value:
        case {"action_requests": list(actions)}:
            return actions
        case {"type": "tool_approval"} as action:
            return [action]
        case _:
            return None


def _request_id(pause: Interrupt, number: int) -> str:
    return f"{_ID}{pause.id}{number:04x}"


def _error(message: str) -> TurnError:
    return TurnError(message, code="invalid_value", status=400, param="input")
