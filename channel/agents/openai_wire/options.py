"""What both wires of an OpenAI-compatible upstream share: the model, and readings of options, items and usage."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from msgspec import Struct

from channel.agent import Turn, TurnError, Usage
from channel.agents.media import Media, media_of
from channel.agents.reading import parts_of, tool_mode, unsupported
from channel.responses.protocol.items import Item


CHAT_REASONING: Final = "chat:"
"""What begins the `encrypted_content` of reasoning that came by Chat Completions, where it is readable:
the rest names the field of a message in which the upstream gave it, and may want it back."""

_WEB: Final = ("http://", "https://")


class UpstreamModel(Struct, frozen=True):
    """A model of an upstream, and what its owner gives to it in every turn."""

    name: str
    instructions: str | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    """Tools that the upstream runs itself, such as `{"type": "web_search"}`; by the Responses API only."""


def prompt_cache_key(turn: Turn) -> str | None:
    """Return the caller's key as one of the tenant's own: an upstream's cache knows no tenants."""
    key = turn.options.get("prompt_cache_key")
    if not key:
        return None
    keys = turn.isolation_keys
    tenant = (keys.user_key, keys.chat_key) if keys else ()
    return sha256(repr((*tenant, key)).encode()).hexdigest()


def asked_tools(turn: Turn, tools: Sequence[Any]) -> dict[str, Any]:
    """Return what a request says of these tools, which the turn permits.

    A choice of one function is `required` with this one alone: LM Studio, for one, takes words only.
    Raises `TurnError` (400, `tool_choice`) for a choice that leaves no tool.
    """
    mode = tool_mode(turn)
    if mode == "required" and not tools:
        raise unsupported("this choice of a tool", "tool_choice")
    if not tools:
        return {}
    asked: dict[str, Any] = {"tools": tools}
    if mode == "required":
        asked["tool_choice"] = "required"
    if not turn.parallel_tool_calls:
        asked["parallel_tool_calls"] = False
    return asked


def said(item: Item) -> str:
    """Return the text of an answer, with what was said of a refusal."""
    return "".join(part.get("text") or part.get("refusal") or "" for part in parts_of(item))


def media_part(part: Mapping[str, Any]) -> Media | None:
    """Return the image or file of a part, or None of any other.

    Raises `TurnError` (400, `input`) for broken content, and for a URL of another scheme than http,
    https and data: an upstream may know other ones, such as those of its own files.
    """
    media = media_of(part)
    if media is not None and media.url and not media.url.lower().startswith(_WEB):
        message = "A file's URL must be an https: or http: URL."
        raise TurnError(message, code="invalid_value", status=400, param="input")
    return media


def usage_of(counts: Mapping[str, Any] | None, *, given: str, said: str) -> list[Usage]:
    """Return what an upstream has counted, if anything; `given` and `said` are the wire's words."""
    if not counts:
        return []
    given_details, said_details = counts.get(f"{given}_details"), counts.get(f"{said}_details")
    return [
        Usage(
            input_tokens=_count(counts, given),
            output_tokens=_count(counts, said),
            cached_tokens=_count(given_details, "cached_tokens"),
            cache_write_tokens=_count(given_details, "cache_write_tokens"),
            reasoning_tokens=_count(said_details, "reasoning_tokens"),
        )
    ]


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, Mapping) else None
    return int(value) if isinstance(value, int | float) and value > 0 else 0
