"""Which framework an object belongs to: told by what it has, without importing the framework."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from msgspec import Struct

from channel.agent import Agent


class Framework(Struct, frozen=True):
    """A framework whose agents have an adapter here, `channel.agents.<module>`.

    The adapter's `adapt(target, fresh)` returns the target as an agent. `fresh` is the factory that
    made it, where the user gave one: whatever of the target keeps state is made anew by it.
    """

    name: str
    module: str
    has: tuple[str, ...]
    """The attributes by which its agents are known."""

    def adapt(self, target: Any, fresh: Callable[[], Any] | None) -> Agent:
        """Return the target as an agent; raises `TypeError` for a release that is too old."""
        for package, oldest in OLDEST[self.module].items():
            installed = _version(package)
            if installed is not None and _numbers(installed) < _numbers(oldest):
                msg = f"{package} is {installed} here; {oldest} or newer is needed"
                raise TypeError(msg)
        adapter = import_module(f"channel.agents.{self.module}")
        agent: Agent = adapter.adapt(target, fresh)
        return agent


OLDEST: Final = {
    "agent_framework": {"agent-framework-core": "1.23"},
    "langgraph": {"langchain-core": "1.8", "langgraph": "1.2.24"},
    "openai_agents": {"openai-agents": "0.24"},
    "pydantic_ai": {"pydantic-ai-slim": "2.68"},
    "strands": {"strands-agents": "1.62"},
}
"""By adapter, the oldest releases of its packages that it was tested with: those of the extras."""

FRAMEWORKS: Final = (
    Framework(
        "Microsoft Agent Framework", "agent_framework", ("run", "create_session", "get_session")
    ),
    Framework("Microsoft Agent Framework", "agent_framework", ("run", "executors", "edge_groups")),
    # A functional workflow, and its definition, which makes as many as one likes.
    Framework(
        "Microsoft Agent Framework", "agent_framework", ("run", "as_agent", "graph_signature_hash")
    ),
    Framework(
        "Microsoft Agent Framework", "agent_framework", ("build", "description", "__wrapped__")
    ),
    Framework(
        "OpenAI Agents SDK", "openai_agents", ("handoffs", "get_all_tools", "get_system_prompt")
    ),
    Framework("Pydantic AI", "pydantic_ai", ("run_stream_events", "iter", "override")),
    Framework("Strands", "strands", ("stream_async",)),
    Framework(
        "LangGraph", "langgraph", ("ainvoke", "astream", "astream_events", "get_input_schema")
    ),
)


def framework_of(target: object) -> Framework | None:
    """Return the framework of an agent object; None for anything else, classes included."""
    if isinstance(target, type):
        return None
    return next((each for each in FRAMEWORKS if _has_all(target, each.has)), None)


def _has_all(target: object, names: tuple[str, ...]) -> bool:
    return all(hasattr(target, name) for name in names)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # of one's own making, say: its code tells what it lacks
        return None


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".") if part.isdigit())
