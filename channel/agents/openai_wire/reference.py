"""References to OpenAI-compatible upstreams, `openai:<model>@<base url>`, as values."""

import re
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from channel.loading import AgentReferenceError
from channel.masking import masked


OPENAI: Final = "https://api.openai.com/v1"

_HOW: Final = (
    "write it as openai:<model>@<base url>, such as openai:qwen3:8b@http://localhost:11434/v1"
)
_BASE_URL: Final = re.compile(r"@(?=https?://)", re.IGNORECASE)
_A_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_HOST_ALONE: Final = re.compile(r"@(localhost$|.*[./:]|$)", re.IGNORECASE)
_ROUTES: Final = ("/responses", "/chat/completions")


class UpstreamReference(Struct, frozen=True):
    """A model, where it is served, and whether only Chat Completions are to be used there."""

    model: str
    base_url: str = OPENAI
    is_chat: bool = False


def parse_reference(reference: str) -> UpstreamReference:
    """Parse `openai:<model>[@<base url>]`, or the same with `openai-chat:`.

    A model's name may hold anything but spaces: the base URL begins at the last `@` before an `http`.
    Without a base URL, what follows an `@` in it may be a version, but nothing that looks like a
    host: a key and what is said must not go to OpenAI by mistake. Raises `AgentReferenceError`.
    """
    scheme, _, rest = reference.partition(":")
    ats = [match.start() for match in _BASE_URL.finditer(rest)]
    at = ats[-1] if ats else len(rest)
    model, base_url = rest[:at], rest[at + 1 :].rstrip("/")
    if wrong := _what_is_wrong(model, base_url):
        msg = f"AGENT is {masked(reference)!r}, but {wrong}; {_HOW}"
        raise AgentReferenceError(msg)
    return UpstreamReference(model, base_url or OPENAI, scheme == "openai-chat")


def _what_is_wrong(model: str, base_url: str) -> str | None:  # noqa: PLR0911 - one for each mistake
    if not model or (not base_url and _A_URL.match(model)):
        return "it names no model"
    if not base_url:
        is_url_meant = _HOST_ALONE.search(model)
        return "its base URL does not begin with http:// or https://" if is_url_meant else None
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "its base URL cannot be read"
    if not host:
        return "its base URL names no host"
    if parts.username is not None or parts.password is not None:
        return "its base URL holds credentials, which belong into OPENAI_API_KEY"
    if parts.query or parts.fragment:
        return "its base URL has more than a path"
    for route in _ROUTES:
        if parts.path.endswith(route):
            return f"its base URL ends with {route}, which is added to it"
    return None
