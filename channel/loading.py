"""From what a user names to an agent: the reference `module:attribute`, a framework's agent, a factory."""

import importlib
import inspect
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any, Final

from channel.agent import Agent, AgentEvent, Turn, accepted_options, accepts
from channel.agents.recognition import FRAMEWORKS, framework_of


_ATTRIBUTES: Final = ("aclose", "compact", "count_input_tokens", "max_input_tokens")
_NAMES: Final = ", ".join(dict.fromkeys(framework.name for framework in FRAMEWORKS))
_AGENTS: Final = f"an agent is an async def over a Turn, or one of {_NAMES}"
_PACKAGES: Final = {
    "agent_framework": "agent-framework-core",
    "agents": "openai-agents",
    "langchain_core": "langchain-core",
    "pydantic_ai": "pydantic-ai-slim",
    "strands": "strands-agents",
}
"""What pip calls a package whose module has another name."""


class AgentReferenceError(ValueError):
    """The setting that names the agent is wrong; the text says how."""


def as_agent(target: Any) -> Agent:
    """Return the target as an agent: a framework's agent, or a function that returns text, becomes one.

    Raises `TypeError` for something that cannot be called with a turn.
    """
    if inspect.isasyncgenfunction(target):
        return _as_plain_agent(target)
    framework = framework_of(target)
    return framework.adapt(target, None) if framework else _as_plain_agent(target)


def _as_plain_agent(target: Callable[[Turn], Any]) -> Agent:
    if not callable(target):
        msg = f"an agent is an async generator function over a Turn, not {type(target).__name__}"
        raise TypeError(msg)
    if not _takes_a_turn(target):
        msg = "an agent takes one argument, the Turn"
        raise TypeError(msg)
    # A function, a method or a partial of one; or else an object that is called like one.
    functions = (target, type(target).__call__)
    if any(inspect.isgeneratorfunction(function) for function in functions):
        msg = "an agent is an async generator function over a Turn; write `async def` before it"
        raise TypeError(msg)
    if not any(inspect.iscoroutinefunction(function) for function in functions):
        return target

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        said = await target(turn)
        yield said if said is not None else ""

    for name in _ATTRIBUTES:
        if hasattr(target, name):
            setattr(agent, name, getattr(target, name))
    return accepts(*accepted_options(target))(agent)


def agent_of(target: object) -> Agent:
    """Return the agent that is given as `AGENT` may name it: an object, a factory, or a reference.

    Raises `TypeError` for an object that is neither, and what `load_agent` raises.
    """
    return load_agent(target) if isinstance(target, str) else _agent_of(target)


def load_agent(reference: str) -> Agent:
    """Return the agent that `module:attribute` names: an agent, or a factory without parameters.

    Raises `AgentReferenceError` with a sentence that says what was looked for.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        msg = f"AGENT is {reference!r}; write it as module:attribute, such as agent.support:agent"
        raise AgentReferenceError(msg)
    found: object = _imported(module_name, reference)
    for name in attribute.split("."):
        if not hasattr(found, name):
            msg = f"AGENT is {reference!r}, but {module_name} has no attribute {name!r}"
            raise AgentReferenceError(msg)
        found = getattr(found, name)
    try:
        return _agent_of(found)
    except TypeError as error:
        msg = f"AGENT is {reference!r}, but {error}"
        raise AgentReferenceError(msg) from error


def _imported(module_name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            msg = f"there is no module {error.name!r} on the Python path"
        else:
            msg = (
                f"it needs the module {error.name!r}, which is not installed: {_remedy(error.name)}"
            )
        raise AgentReferenceError(f"AGENT is {reference!r}, but {msg}") from error
    except Exception as error:
        msg = f"AGENT is {reference!r}, but importing it failed: {type(error).__name__}: {error}"
        raise AgentReferenceError(msg) from error


def _remedy(module: str | None) -> str:
    root = (module or "").partition(".")[0]
    package = _PACKAGES.get(root, root)
    return f"put {package} into agent/requirements.txt, or pip install {package}"


def _agent_of(found: object) -> Agent:
    if (framework := framework_of(found)) is not None:
        return framework.adapt(found, None)
    if not callable(found):
        msg = f"that is {type(found).__name__}, and {_AGENTS}"
        raise TypeError(msg)
    if not _takes_nothing(found):
        return as_agent(found)
    made = found()
    if (framework := framework_of(made)) is not None:
        return framework.adapt(made, found)
    if not callable(made) or _takes_nothing(made):
        msg = f"that is a factory that made {type(made).__name__}, and {_AGENTS}"
        raise TypeError(msg)
    return as_agent(made)


def _takes_a_turn(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # a builtin may have no signature
        return True
    return True


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return False
    return all(
        parameter.default is not parameter.empty
        or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters
    )
