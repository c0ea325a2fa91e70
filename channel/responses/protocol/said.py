"""What an agent said, as it can go onto the wire; or the error that it cannot."""

from collections.abc import Mapping
from typing import Any

import msgspec

from channel.responses.protocol.shapes import MAX_NESTING, is_nested_deeper


class AgentEventError(Exception):
    """The agent said something that makes no sense there: the agent's fault, never shown."""


def encodable(text: str) -> str:
    """Return the text with lone surrogates replaced: JSON on the wire is UTF-8, which has none."""
    if not isinstance(text, str):
        msg = f"an agent event holds {type(text).__name__} where text belongs"
        raise AgentEventError(msg)
    if text.isascii():
        return str.__str__(text)  # msgspec writes no subclasses
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plain_object(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a JSON object's own copy, so that nothing an agent keeps can change it later."""
    try:
        data = msgspec.json.encode(value)
        copy = None if is_nested_deeper(data, MAX_NESTING) else msgspec.json.decode(data)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError):
        copy = None
    if not isinstance(copy, dict):
        msg = f"{what} is not a JSON object of at most {MAX_NESTING} levels"
        raise AgentEventError(msg)
    return copy
