"""What an OpenAI-compatible upstream understands, as far as its refusals have told."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace


class Dialect(Struct, frozen=True):
    """How one upstream is asked.

    `without` are fields that it does not take, of those it can be asked without. `max_tokens` is
    what Chat Completions call the limit there. `is_forgetful` is of one turn: its history holds
    reasoning that another model or another account has encrypted.
    """

    is_chat: bool = False
    without: frozenset[str] = frozenset()
    max_tokens: str = "max_tokens"
    is_forgetful: bool = False

    @property
    def replays_reasoning(self) -> bool:
        """Whether the model gets its encrypted reasoning back."""
        return not self.is_forgetful and "include" not in self.without


class Refusal(Struct, frozen=True):
    """How an upstream refused a request: the HTTP status, and what its error says."""

    status: int
    code: str = ""
    param: str = ""
    message: str = ""


DISPENSABLE: Final = ("include", "parallel_tool_calls", "prompt_cache_key", "stream_options")
"""Fields of ours, or hints, that are left out for an upstream that refuses them.

`include` asks for encrypted reasoning, which OpenAI refuses for models that do not reason (400,
`param: include`); more than one call is held back by the host anyway.
"""

_NEW_LIMIT: Final = "max_completion_tokens"
_WITH_NEW_LIMIT: Final = (".openai.com", ".openai.azure.com", ".amazonaws.com", ".api.aws")
_NOT_FOUND: Final = 404
_NO_ROUTE: Final = frozenset({405, 501})
_REJECTED: Final = frozenset({400, 422})
_A_MODEL: Final = re.compile(r"model|deployment", re.IGNORECASE)


def first_dialect(base_url: str, *, is_chat: bool) -> Dialect:
    """Return how an upstream is asked of which nothing is known but its URL.

    Every upstream but OpenAI's own models takes `max_tokens`, which those refuse where they reason;
    Ollama takes `max_completion_tokens`, too, and pays no heed to it (ollama issue 7125).
    """
    host = f".{urlsplit(base_url).hostname or ''}"
    is_new = host.endswith(_WITH_NEW_LIMIT)
    return Dialect(is_chat=is_chat, max_tokens=_NEW_LIMIT if is_new else "max_tokens")


def simpler(
    dialect: Dialect, body: Mapping[str, Any], refusal: Refusal, *, may_switch: bool
) -> Dialect | None:
    """Return how to ask again for the same, or None where the refusal stands.

    With `may_switch` an upstream without a Responses API is asked by Chat Completions.
    """
    if may_switch and not dialect.is_chat and has_no_route(refusal):
        return replace(dialect, is_chat=True)
    if refusal.status not in _REJECTED:
        return None
    if dialect.replays_reasoning and refusal.code == "invalid_encrypted_content":
        return replace(dialect, is_forgetful=True)
    for field in DISPENSABLE:
        if field in body and _names(refusal, field):
            return replace(dialect, without=dialect.without | {field})
    if "max_tokens" in body and _NEW_LIMIT in refusal.message and _is_unsupported(refusal):
        return replace(dialect, max_tokens=_NEW_LIMIT)
    return None


def has_no_route(refusal: Refusal) -> bool:
    """Return whether there is no such URL, rather than no such model or file."""
    if refusal.status == _NOT_FOUND:
        is_of_a_field = bool(refusal.param) or _A_MODEL.search(f"{refusal.code} {refusal.message}")
        return not is_of_a_field
    return refusal.status in _NO_ROUTE


def _names(refusal: Refusal, field: str) -> bool:
    if refusal.param:
        return re.split(r"[.\[]", refusal.param)[0] == field
    return re.search(rf"\b{field}\b", refusal.message) is not None


def _is_unsupported(refusal: Refusal) -> bool:
    return refusal.code == "unsupported_parameter" or "not supported" in refusal.message
