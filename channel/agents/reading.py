"""What adapters read of a turn: the client's tools, the wanted format, the texts of items."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from channel.agent import Turn, TurnError
from channel.responses.protocol.items import Item, text_of


class ClientTool(Struct, frozen=True):
    """A function that the client declared, and runs itself."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool = False


class JsonFormat(Struct, frozen=True):
    """JSON as the wanted form of the answer: by a schema, or (`schema` is None) any object."""

    schema: Mapping[str, Any] | None = None
    name: str = "answer"
    strict: bool = False
    description: str | None = None


def client_tools(turn: Turn) -> list[ClientTool]:
    """Return the functions that the request lets the model call; none with `tool_choice: none`.

    Raises `TurnError` (400, `tools`) for two of one name, which no framework can tell apart.
    """
    permitted = _permitted(turn.tool_choice)
    names = [tool.get("name") for tool in turn.tools if tool.get("type") == "function"]
    if len(names) != len(set(names)):
        raise unsupported("two functions of one name", "tools")
    return [
        ClientTool(
            tool["name"],
            tool.get("description") or "",
            tool.get("parameters") or {"type": "object", "properties": {}},
            bool(tool.get("strict")),
        )
        for tool in turn.tools
        if tool.get("type") == "function" and (permitted is None or tool["name"] in permitted)
    ]


def tool_mode(turn: Turn) -> str:
    """Return `auto`, `none` or `required`; a choice of one function is `required` of that one."""
    choice = turn.tool_choice
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "allowed_tools":
        mode = choice.get("mode")
        return mode if isinstance(mode, str) else "auto"
    return "required"


def json_format(turn: Turn) -> JsonFormat | None:
    """Return the JSON that `text.format` asks for, or None where it asks for text."""
    wanted = (turn.options.get("text") or {}).get("format") or {}
    match wanted.get("type"):
        case "json_schema":
            return JsonFormat(
                wanted["schema"],
                wanted["name"],
                bool(wanted.get("strict")),
                wanted.get("description"),
            )
        case "json_object":
            return JsonFormat()
        case _:
            return None


def reasoning_effort(turn: Turn) -> str | None:
    """Return `reasoning.effort` where the request gives it."""
    effort = (turn.options.get("reasoning") or {}).get("effort")
    return effort if isinstance(effort, str) else None


def instructions_of(turn: Turn) -> list[str]:
    """Return the request's instructions, then the texts of system and developer messages."""
    given = [turn.instructions] if turn.instructions else []
    return given + [text for item in turn.items if is_instruction(item) and (text := text_of(item))]


def is_instruction(item: Item) -> bool:
    """Return whether the item is a message of the system or the developer."""
    return item.get("type") == "message" and item.get("role") in ("system", "developer")


def summary_of(item: Item) -> str:
    """Return the text of a reasoning item."""
    return "".join(part.get("text") or "" for part in item.get("summary") or ())


def output_of(item: Item) -> str:
    """Return the text of a `function_call_output`, whose output is text or parts."""
    output = item.get("output")
    return output if isinstance(output, str) else text_of({"content": output})


def with_own_tools(items: Iterable[Item]) -> Iterator[Item]:
    """Return the items with each tool that the agent ran, where it was shown, as a call and its output."""
    for item in items:
        if item.get("type") != "mcp_call" or item.get("server_label") != "agent":
            yield item
            continue
        call = {"call_id": item.get("id"), "name": item.get("name")}
        yield {"type": "function_call", "arguments": item.get("arguments") or "{}", **call}
        output = item.get("output")
        said = output if isinstance(output, str) else "The tool failed."
        yield {"type": "function_call_output", "call_id": item.get("id"), "output": said}


class Approvals:
    """The answers of a turn's input to what was asked: an `mcp_approval_response` for each request.

    What was asked is known from what the server kept, never from the items: an item only tells, by
    its id, which server, name and arguments an answer is about.
    """

    def __init__(self, turn: Turn) -> None:
        """Read the turn."""
        self._requests = {
            item.get("id"): (item.get("server_label"), item.get("name"), item.get("arguments"))
            for item in turn.history
            if item.get("type") == "mcp_approval_request"
        }
        self.left = {
            item["approval_request_id"]: item
            for item in turn.input
            if item.get("type") == "mcp_approval_response"
            and isinstance(item.get("approval_request_id"), str)
        }

    def take(self, name: str, arguments: str, server: str = "agent") -> Item | None:
        """Return the answer about a call like this, which is then taken, or None."""
        about = (server, name, arguments)
        found = next((id_ for id_ in self.left if self._requests.get(id_) == about), None)
        return None if found is None else self.left.pop(found)

    def require_none_left(self) -> None:
        """Raise `TurnError` (400, `input`) where an answer is about nothing that was asked."""
        for request_id in self.left:
            message = f"No approval request found for approval_request_id {request_id}."
            raise TurnError(message, code="invalid_value", status=400, param="input")


def parts_of(item: Item) -> list[Mapping[str, Any]]:
    """Return the parts of a message, or of a `function_call_output` whose output is parts."""
    content = item.get("output" if item.get("type") == "function_call_output" else "content")
    return (
        [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    )


def unsupported(what: str, param: str = "input") -> TurnError:
    """Return the error for what this kind of agent cannot take (400)."""
    message = f"Unsupported value: this agent does not take {what}."
    return TurnError(message, code="unsupported_value", status=400, param=param)


def _permitted(choice: str | Mapping[str, Any]) -> frozenset[str] | None:
    """Return the names that the choice permits, or None for all of them."""
    if isinstance(choice, str):
        return frozenset() if choice == "none" else None
    if choice.get("type") == "allowed_tools":
        if choice.get("mode") == "none":
            return frozenset()
        return frozenset(tool.get("name", "") for tool in choice.get("tools") or ())
    return frozenset({choice.get("name", "")})
