"""What a workflow of Agent Framework is given of a turn: a message of a type that it takes, and the client's tools. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_type_hints

from agent_framework import Message, RunContext, WorkflowMessage

from channel.agent import Turn
from channel.agents.agent_framework.messages import messages_of
from channel.agents.agent_framework.options import choice_of, declaration, tools_of
from channel.agents.reading import client_tools, is_instruction, parts_of, unsupported
from channel.responses.protocol.items import Item, text_of


_RUN_TAKES = frozenset({"tools", "options"})


def message_of(turn: Turn, workflow: Any, items: Sequence[Item]) -> Any:
    """Return what the workflow is given of these items, in the richest form that it takes.

    That is a list of messages (all of the items, instructions first), or the last user message, or its
    text. Raises `TurnError` (400) for what the form has no place for, and where it takes none of them.
    """
    messages = [*_instructions(turn, items), *messages_of(items)]
    if messages and _takes(workflow, messages):
        return messages
    asked = next((item for item in reversed(items) if _is_users(item)), None)
    if asked is None:
        raise unsupported("an input without a user message")
    message = next(iter(messages_of([asked])), None)
    if message is None:
        raise unsupported("a user message without text, images and files")
    takes_message = _takes(workflow, message)
    if not takes_message and not _takes(workflow, text_of(asked)):
        raise unsupported("text: its start executor takes something else")
    if turn.instructions:
        raise unsupported("instructions", "instructions")
    if any(is_instruction(item) for item in turn.input):
        raise unsupported("system and developer messages")
    if takes_message:
        return message
    if any(not isinstance(part.get("text"), str) for part in parts_of(asked)):
        raise unsupported("images and files")
    return text_of(asked)


def tools_for(turn: Turn, workflow: Any, agents: Iterable[Any]) -> dict[str, Any]:
    """Return the argument of the run that gives the client's tools to the workflow's agents.

    Raises `TurnError` (400) where they cannot have them as the request asks.
    """
    tools = client_tools(turn)
    if not tools:
        return {}
    if not hasattr(workflow, "executors"):
        raise unsupported("tools of a client", "tools")
    if choice_of(turn) is not None:
        raise unsupported("a choice of tools", "tool_choice")
    for agent in agents:
        tools_of(turn, agent, _RUN_TAKES)  # refuses a name that the agent has itself
    return {"tools": [declaration(tool) for tool in tools]}


def _instructions(turn: Turn, items: Sequence[Item]) -> list[Message]:
    texts = [turn.instructions] if turn.instructions else []
    texts += [text for item in items if is_instruction(item) and (text := text_of(item))]
    return [Message("system", ["\n\n".join(texts)])] if texts else []


def _is_users(item: Item) -> bool:
    return item.get("type") == "message" and item.get("role") == "user"


def _takes(workflow: Any, data: Any) -> bool:
    """Return whether the workflow can begin with this."""
    if hasattr(workflow, "executors"):
        start = workflow.get_start_executor()
        taken: bool = start.can_handle(WorkflowMessage(data=data, source_id=start.id))
        return taken
    wanted = _parameter(workflow)
    if isinstance(data, list):
        return any(each is Message for each in _flat(wanted)) and wanted is not Message
    return type(data) in _flat(wanted) or (wanted is None and isinstance(data, str))


def _parameter(workflow: Any) -> Any:
    """Return the type of a workflow function's message; None where it does not say."""
    hints = get_type_hints(workflow.__wrapped__)
    hints.pop("return", None)
    return next((each for each in hints.values() if each is not RunContext), None)


def _flat(declared: Any) -> list[Any]:
    args = get_args(declared)
    return [each for arg in args for each in _flat(arg)] if args else [declared]
