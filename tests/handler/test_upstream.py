"""`AGENT=openai:<model>@<base url>`: from the settings to an agent, its key and its imports."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from handler.agents import agent_of
from infra.dynamodb.client import make_aws_client
from infra.settings import Settings, SettingsError
from tests.channel.agents.scripts import Say, Spend
from tests.channel.asgi import create, hosted
from tests.models.openai_server import OpenAIServer


pytestmark = pytest.mark.anyio

HELLO = (Say(("Hello.",)), Spend(7, 3))
REGION = "eu-west-1"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer([HELLO, HELLO]) as started:
        yield started


def settings_of(server: OpenAIServer, scheme: str = "openai", **environ: str) -> Settings:
    return Settings.from_env({"AGENT": f"{scheme}:m@{server.url}", "AWS_REGION": REGION, **environ})


@pytest.mark.parametrize(
    ("scheme", "path"), [("openai", "/v1/responses"), ("openai-chat", "/v1/chat/completions")]
)
async def test_a_model_of_an_upstream_is_an_agent(
    server: OpenAIServer, scheme: str, path: str
) -> None:
    chosen = {"OPENAI_API_KEY": "sk-1", "AGENT_INSTRUCTIONS": "Be kind."}
    agent = agent_of(settings_of(server, scheme, **chosen))

    response = await create(hosted(agent))

    assert response["output"][0]["content"][0]["text"] == "Hello."
    assert server.paths == [path]
    assert server.bodies[0]["model"] == "m"
    assert server.seen[0].texts == [("system", "Be kind."), ("user", "hi")]
    assert server.headers[0]["authorization"] == "Bearer sk-1"


async def test_a_local_upstream_needs_no_key(server: OpenAIServer) -> None:
    await create(hosted(agent_of(settings_of(server))))

    assert server.headers[0]["authorization"] == "Bearer none"


async def test_a_key_in_secrets_manager_is_read_at_the_first_turn(server: OpenAIServer) -> None:
    from moto import mock_aws  # noqa: PLC0415 - slow to import

    with mock_aws():
        agent = agent_of(settings_of(server, OPENAI_API_KEY_SECRET="openai/key"))
        manager: Any = make_aws_client("secretsmanager", REGION)
        manager.create_secret(Name="openai/key", SecretString='{"OPENAI_API_KEY": "sk-kept"}')
        manager.close()

        await create(hosted(agent))

    assert server.headers[0]["authorization"] == "Bearer sk-kept"


async def test_a_key_that_is_given_goes_before_one_that_is_kept(server: OpenAIServer) -> None:
    chosen = {"OPENAI_API_KEY": "sk-1", "OPENAI_API_KEY_SECRET": "openai/key"}

    await create(hosted(agent_of(settings_of(server, **chosen))))

    assert server.headers[0]["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("scheme", ["openai", "openai-chat"])
def test_openai_itself_is_not_asked_without_a_key(scheme: str) -> None:
    with pytest.raises(SettingsError) as raised:
        agent_of(Settings(agent=f"{scheme}:gpt-5"))

    assert str(raised.value) == (
        f"The setting AGENT is '{scheme}:gpt-5', but neither OPENAI_API_KEY nor "
        "OPENAI_API_KEY_SECRET is set."
    )


def test_a_wrong_reference_is_one_sentence() -> None:
    with pytest.raises(SettingsError) as raised:
        agent_of(replace(Settings(), agent="openai:m@localhost:11434/v1"))

    assert str(raised.value) == (
        "The setting AGENT is 'openai:m@localhost:11434/v1', but its base URL does not begin with "
        "http:// or https://; write it as openai:<model>@<base url>, such as "
        "openai:qwen3:8b@http://localhost:11434/v1."
    )


def told(program: str) -> str:
    """Return what a process of its own prints."""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return run.stdout.strip()


MAKE = """
import sys
from handler.agents import agent_of
from infra.settings import Settings, SettingsError
settings = Settings(agent="openai:m@http://127.0.0.1:1/v1", openai_api_key_secret="key")
"""


def test_without_its_package_the_sentence_names_the_pip_command() -> None:
    program = """
sys.modules["openai"] = None
try:
    agent_of(settings)
except SettingsError as error:
    print(error)
"""

    assert told(MAKE + program) == (
        "The setting AGENT is 'openai:m@http://127.0.0.1:1/v1', but it needs the module 'openai', "
        "which is not installed: put openai into agent/requirements.txt, or pip install openai."
    )


def test_nothing_else_is_imported_for_it() -> None:
    program = """
agent_of(settings)
roots = {name.partition(".")[0] for name in sys.modules}
print(sorted(roots & {
    "agent_framework", "agents", "boto3", "botocore", "langgraph", "openai", "pydantic_ai", "strands",
}))
"""

    assert told(MAKE + program) == "['openai']"
