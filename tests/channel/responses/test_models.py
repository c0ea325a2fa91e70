"""`/models`: OpenAI's list, and besides it what Codex reads."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from channel.agent import AgentEvent, Turn
from tests.channel.asgi import get, hosted


pytestmark = pytest.mark.anyio


async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield "ok"


class Limited:
    max_input_tokens = 32_000

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        yield "ok"


async def codex(agent: Any) -> dict[str, Any]:
    app = hosted(agent, model="acme/agent")
    listed = (await get(app, "/v1/models", query="client_version=0.99.0")).json
    (model,) = listed.pop("models")
    assert listed == (await get(app, "/v1/models")).json
    found: dict[str, Any] = model
    return found


async def test_codex_finds_its_own_key_besides_the_list() -> None:
    model = await codex(agent)

    assert (model["slug"], model["display_name"]) == ("acme/agent", "acme/agent")
    required = {
        *("supported_reasoning_levels", "shell_type", "visibility", "supported_in_api"),
        *("priority", "support_verbosity", "truncation_policy", "supports_parallel_tool_calls"),
        *("experimental_supported_tools", "supports_reasoning_summaries"),
    }
    assert required <= model.keys()
    assert "context_window" not in model


async def test_codex_is_told_the_limit_of_an_agent_that_has_one() -> None:
    assert (await codex(Limited()))["context_window"] == 32_000


async def test_codex_is_given_no_instructions_in_place_of_its_own() -> None:
    assert "base_instructions" not in await codex(agent)


async def test_other_clients_are_not_told() -> None:
    listed = (await get(hosted(agent), "/v1/models")).json

    assert listed.keys() == {"object", "data"}
