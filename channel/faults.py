"""Logging of faults: their type and place; their text only for those who asked for it."""

import logging
import traceback
from typing import Any, Final

from channel.responses.protocol.said import AgentEventError


SENSITIVE: Final = logging.getLogger("channel.sensitive")
"""Gets what may hold a user's words (exception texts). Silent unless its level is lowered."""

SENSITIVE.setLevel(logging.CRITICAL + 1)

_FRAMES: Final = 5


class HookError(Exception):
    """A hook did what its contract forbids: the host's fault, never the client's."""


def log_fault(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Log an error, once: by type and place, or with its text and traceback for those who asked."""
    if SENSITIVE.isEnabledFor(logging.ERROR):
        SENSITIVE.error(what, exc_info=error)
        return
    facts = fault_facts(error)
    said = facts.get("error", facts["error_type"])
    logger.error("%s: %s", what, said, extra=facts)


def fault_facts(error: BaseException) -> dict[str, Any]:
    """Return the type of an error and the innermost places that it passed through.

    Its text too (`error`) where that is ours: then it holds no user's words.
    """
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    cause = error.__cause__ or error.__context__
    facts: dict[str, Any] = {"error_type": type(error).__qualname__, "error_at": places}
    if isinstance(error, HookError | AgentEventError):
        facts["error"] = str(error)
    if cause is not None:
        facts["error_cause"] = type(cause).__qualname__
    return facts
