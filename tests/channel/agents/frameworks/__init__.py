"""One scripted framework a module: the real package, a fake model that says what a script says."""

from importlib import import_module
from typing import Final

from tests.channel.agents.scripts import Scripted


NAMES: Final = (
    "agent_framework", "agent_framework_workflow", "openai_agents", "langgraph", "strands", "pydantic_ai", "bedrock", "openai_upstream",
)  # fmt: skip


def scripted(name: str) -> Scripted:
    """Return what makes agents of this framework (each module has one, `SCRIPTED`)."""
    made: Scripted = import_module(f"tests.channel.agents.frameworks.{name}").SCRIPTED
    return made
