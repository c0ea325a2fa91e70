"""What is imported: an agent brings its own framework and no other, and the base app brings none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from channel.agents.recognition import FRAMEWORKS
from tests.channel.agents.frameworks import NAMES


ROOT = Path(__file__).parents[3]

WATCHED: Final = {
    "agent_framework", "agents", "boto3", "botocore", "langchain_core", "langgraph", "openai",
    "pydantic_ai", "strands",
}  # fmt: skip
"""The frameworks and clients that nobody should pay for who does not use them."""

BROUGHT: Final[dict[str, dict[str, str]]] = {
    "agent_framework": {"agent_framework": "it is the framework"},
    "agent_framework_workflow": {"agent_framework": "it is the framework"},
    "bedrock": {"botocore": "it makes Bedrock's client, as it does the table's"},
    "langgraph": {"langgraph": "it is the framework", "langchain_core": "its messages and models"},
    "openai_agents": {
        "agents": "it is the framework",
        "openai": "the framework imports it: its items are this package's types",
    },
    "openai_upstream": {"openai": "it is the client"},
    "pydantic_ai": {"pydantic_ai": "it is the framework"},
    "strands": {
        "strands": "it is the framework",
        "boto3": "the framework imports it: its default model is Bedrock's",
        "botocore": "boto3 is made of it",
    },
}
"""What an agent of each adapter brings of that, with the reason."""

ONE_TURN = """
import asyncio, json, sys
from types import ModuleType
from channel.testing import ask_async
from tests.channel.agents.frameworks import scripted
from tests.channel.agents.scripts import Say, Spend

async def one_turn():
    module = sys.modules["named_agent"] = ModuleType("named_agent")
    module.agent, _ = scripted(sys.argv[1]).agent([(Say(("Hi.",)), Spend(1, 1))])
    return (await ask_async("named_agent:agent", "hi")).text

print(json.dumps([asyncio.run(one_turn()), sorted(sys.modules)]))
"""

BASE_APP = """
import json, sys
from handler.app import create_host
from infra.settings import Settings

create_host(Settings.from_env({**json.loads(sys.argv[1])})).app
print(json.dumps(["", sorted(sys.modules)]))
"""


def imported(code: str, argument: str) -> tuple[str, set[str]]:
    """Return what the code says, and which modules it leaves in a process of its own."""
    command = [sys.executable, "-c", code, argument]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, modules = json.loads(done.stdout.splitlines()[-1])
    return said, set(modules)


def adapters(modules: set[str]) -> set[str]:
    """Return which adapters are among the modules."""
    return {name for name in NAMES if f"channel.agents.{name}" in modules}


def test_every_adapter_says_what_it_brings() -> None:
    assert BROUGHT.keys() == set(NAMES)
    assert {each.module for each in FRAMEWORKS} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_of_an_agent_brings_its_own_framework_and_no_other(name: str) -> None:
    said, modules = imported(ONE_TURN, name)

    assert said == "Hi."
    assert modules & WATCHED == BROUGHT[name].keys()
    assert {each for each in adapters(modules) if not name.startswith(each)} == set()


@pytest.mark.parametrize(
    ("environ", "brought"),
    [
        ({}, set()),
        (
            {"TABLE_NAME": "table", "AWS_REGION": "eu-west-1", "AWS_LAMBDA_FUNCTION_NAME": "f"},
            {"botocore"},  # by which the table is reached
        ),
    ],
)
def test_the_base_app_brings_no_framework_and_no_adapter(
    environ: dict[str, str], brought: set[str]
) -> None:
    _, modules = imported(BASE_APP, json.dumps(environ))

    assert modules & WATCHED == brought
    assert adapters(modules) == set()
    of_agents = {name for name in modules if name.startswith("channel.agents.")}
    others = {"channel.agents.media", "channel.agents.recognition"}
    assert {name for name in of_agents if not name.startswith("channel.agents.demo")} <= others
