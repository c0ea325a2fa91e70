"""The tables of docs/agents.md: they say of each option, and of each extra, what is."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from channel.agent import OPTION_NAMES, accepted_options
from channel.loading import agent_of
from handler.new import FRAMEWORKS
from tests.channel.agents.frameworks import scripted


pytestmark = pytest.mark.anyio

ROOT: Final = Path(__file__).parents[3]
DOCS: Final = (ROOT / "docs/agents.md").read_text()
COLUMNS: Final = {
    "Agent Framework": "agent_framework",
    "OpenAI Agents SDK": "openai_agents",
    "LangGraph": "langgraph",
    "Strands": "strands",
    "Pydantic AI": "pydantic_ai",
    "Bedrock": "bedrock",
    "OpenAI's wire": "openai_upstream",
}
OPTION: Final = re.compile(r"\| `([a-z_]+)` \|((?: (?:yes|model)? ?\|)+)")


def documented() -> dict[str, dict[str, str]]:
    """Return the cells of the table of options, by option and adapter."""
    rows = {option: cells.split("|")[:-1] for option, cells in OPTION.findall(DOCS)}
    return {
        option: dict(zip(COLUMNS.values(), (cell.strip() for cell in cells), strict=True))
        for option, cells in rows.items()
    }


def test_every_option_and_every_adapter_has_its_place_in_the_table() -> None:
    assert documented().keys() == OPTION_NAMES
    assert f"| | {' | '.join(COLUMNS)} |" in DOCS


@pytest.mark.parametrize("adapter", COLUMNS.values())
async def test_an_adapter_takes_what_the_table_says(adapter: str) -> None:
    target, _ = scripted(adapter).agent([])

    taken = accepted_options(agent_of(target))

    table = documented()
    said = {option: table[option][adapter] for option in table}
    assert {option for option, cell in said.items() if cell == "yes"} <= taken
    assert taken <= {option for option, cell in said.items() if cell}


def test_what_each_extra_costs_has_a_row() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"]) - {"local"}

    assert set(re.findall(r"^\| `([a-z-]+)` \| \d", DOCS, re.MULTILINE)) == extras


def test_every_example_is_linked() -> None:
    links = set(re.findall(r"\]\(\.\./(handler/new/[a-z_]+/assistant\.py)\)", DOCS))

    assert links == {
        f"handler/new/{each.replace('-', '_')}/assistant.py" for each in FRAMEWORKS[1:]
    }
    assert all((ROOT / link).is_file() for link in links)
