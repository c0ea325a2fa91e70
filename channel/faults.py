"""Logging of faults: their type and place; their text only for those who asked for it."""

import logging
import traceback
from functools import partial
from types import FunctionType
from typing import Any, Final, Literal, TypeAlias

from channel.responses.protocol.said import AgentEventError


SENSITIVE: Final = logging.getLogger("channel.sensitive")
"""Gets what may hold a user's words (exception texts). Silent unless its level is lowered."""

SENSITIVE.setLevel(logging.CRITICAL + 1)

HookKind: TypeAlias = Literal["run hook", "stream transform hook", "response hook"]

_FRAMES: Final = 5


class HookError(Exception):
    """A hook raised, or did what its contract forbids: the host's fault, never the client's.

    Its text names the hook and what it did, and holds nothing of what the hook itself has said.
    """


def hook_error(kind: HookKind, hook: object, did: str) -> HookError:
    """Return the error that names the hook: "the run hook policy.check returned NoneType, …"."""
    return HookError(f"the {kind} {hook_name(hook)} {did}")


def hook_name(hook: object) -> str:
    """Return where to look for a hook: its module and qualified name, of a lambda the line, too.

    A partial is named by what it calls, and an object by its class.
    """
    while isinstance(hook, partial):
        hook = hook.func
    name = getattr(hook, "__qualname__", None)
    if not isinstance(name, str):
        return hook_name(type(hook))
    module = getattr(hook, "__module__", None)
    if isinstance(module, str):
        name = f"{module}.{name}"
    if isinstance(hook, FunctionType) and name.endswith("<lambda>"):
        return f"{name}:{hook.__code__.co_firstlineno}"
    return name


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

    Its text too (`error`) where that is ours: then it holds no user's words. Of what a hook raised
    the places are those of its cause, in the hook.
    """
    cause = error.__cause__ or error.__context__
    raised = error.__cause__ if isinstance(error, HookError) and error.__cause__ else error
    frames = traceback.extract_tb(raised.__traceback__)[-_FRAMES:]
    places = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    facts: dict[str, Any] = {"error_type": type(error).__qualname__, "error_at": places}
    if isinstance(error, HookError | AgentEventError):
        facts["error"] = str(error)
    if cause is not None:
        facts["error_cause"] = type(cause).__qualname__
    return facts
