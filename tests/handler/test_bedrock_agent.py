"""`AGENT=bedrock:<model id>`: what of the settings reaches the model, and its client before a snapshot."""

from collections.abc import Iterator
from typing import Any

import pytest
import snapshot_restore_py as registry

from channel.agent import TextDelta, Turn
from channel.responses.protocol.items import message
from handler.agents import agent_of
from infra.settings import Settings, SettingsError
from tests.channel.agents.scripts import Say, Spend
from tests.models.bedrock_server import BedrockServer


pytestmark = pytest.mark.anyio

HI = Turn(input=[message("user", "hi")], history=[message("user", "a"), message("assistant", "b")])
MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
SNAP_START = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}
HELLO = (Say(("Hello.",)), Spend(7, 3))


@pytest.fixture
def server() -> BedrockServer:
    return BedrockServer([HELLO, HELLO])


@pytest.fixture
def before_snapshot() -> Iterator[list[Any]]:
    """Return what is called before a snapshot; at the end, call it, and forget it."""
    hooks = registry.get_before_snapshot()
    others, hooks[:] = hooks[:], []
    yield hooks
    call(hooks)
    hooks[:] = others


def call(hooks: list[Any]) -> None:
    for function, arguments, named in hooks:
        function(*arguments, **named)


def settings(server: BedrockServer, **environ: str) -> Settings:
    return Settings.from_env(
        {"AGENT": f"bedrock:{MODEL}", "BEDROCK_ENDPOINT": server.endpoint, **environ}
    )


async def test_a_model_is_an_agent_by_one_setting(
    server: BedrockServer, before_snapshot: list[Any]
) -> None:
    server.start()
    agent = agent_of(settings(server, **SNAP_START))

    said = [event async for event in agent(HI)]
    call(before_snapshot)  # which leaves no connection to the restored environment
    again = [event async for event in agent(HI)]

    assert said[0] == again[0] == TextDelta("Hello.")
    assert [asked.model_id for asked in server.asked] == [MODEL, MODEL]
    assert server.connections == 2


async def test_the_settings_of_a_model_reach_it(
    server: BedrockServer, before_snapshot: list[Any]
) -> None:
    server.start()
    given = {
        "AGENT_INSTRUCTIONS": "Be kind.",
        "BEDROCK_GUARDRAIL": "abc123:DRAFT",
        "BEDROCK_PROMPT_CACHING": "0",
    }

    agent = agent_of(settings(server, **given, **SNAP_START))
    [_ async for _ in agent(HI)]

    (asked,) = server.asked
    assert asked.body["system"] == [{"text": "Be kind."}]
    assert asked.body["guardrailConfig"] == {
        "guardrailIdentifier": "abc123",
        "guardrailVersion": "DRAFT",
    }


def test_a_model_without_a_region_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(SettingsError, match=r"^The setting AGENT names a Bedrock model, which"):
        agent_of(Settings.from_env({"AGENT": f"bedrock:{MODEL}"}))


def test_the_region_of_the_model_may_be_another_one(before_snapshot: list[Any]) -> None:
    environ = {"AGENT": f"bedrock:{MODEL}", "AWS_REGION": "eu-west-1", **SNAP_START}

    agent_of(Settings.from_env(environ))
    agent_of(Settings.from_env({**environ, "BEDROCK_REGION": "us-west-2"}))

    regions = [close.__self__.meta.region_name for close, _, _ in before_snapshot]
    assert regions == ["eu-west-1", "us-west-2"]
