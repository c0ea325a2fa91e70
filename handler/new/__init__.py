"""What `lambda-responses new` writes: the files of `<framework>/`, and those beside it.

They are the project's examples, too: tests run them as they are.
"""

from pathlib import Path
from typing import Final


FRAMEWORKS: Final = (
    "plain",
    "agent-framework",
    "openai-agents",
    "langgraph",
    "strands",
    "pydantic-ai",
    "bedrock",
    "openai",
)
MODELS: Final = ("bedrock", "openai")
"""Those that are a model alone, without tools of its own."""
AGENT: Final = "agent.assistant:agent"
"""The reference of what is written."""

_HERE: Final = Path(__file__).parent


def files_of(framework: str) -> dict[str, str]:
    """Return the texts of the files of an agent, by their names."""
    own = _HERE / framework.replace("-", "_")
    places = {
        "__init__.py": own / "__init__.py",
        "assistant.py": own / "assistant.py",
        "requirements.txt": own / "requirements.txt",
        "test_assistant.py": _HERE / ("test_model.py" if framework in MODELS else "test_agent.py"),
        "README.md": _HERE / "README.md",
    }
    return {name: place.read_text() for name, place in places.items()}
