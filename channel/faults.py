"""Logging of faults: their type and place; their text only for those who asked for it."""

import logging
import traceback
from typing import Any, Final


SENSITIVE: Final = logging.getLogger("channel.sensitive")
"""Gets what may hold a user's words (exception texts). Silent unless its level is lowered."""

SENSITIVE.setLevel(logging.CRITICAL + 1)

_FRAMES: Final = 5


class HookError(Exception):
    """A hook did what its contract forbids: the host's fault, never the client's."""


def log_fault(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Log an error by type and place, once; with its text on `SENSITIVE` only."""
    logger.error(what, extra=fault_facts(error))
    SENSITIVE.error(what, exc_info=error)


def fault_facts(error: BaseException) -> dict[str, Any]:
    """Return the type of an error and the innermost places that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    cause = error.__cause__ or error.__context__
    facts: dict[str, Any] = {"error_type": type(error).__qualname__, "error_at": places}
    if isinstance(error, HookError):
        facts["hook"] = str(error)  # names of code, no user's words
    if cause is not None:
        facts["error_cause"] = type(cause).__qualname__
    return facts
