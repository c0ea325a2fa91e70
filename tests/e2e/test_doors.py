"""Every scenario through every door: a socket, the kinds of Lambda event, and ASGI; all say the same."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TypeAlias

import pytest

from channel.agents.demo import demo_agent
from channel.auth import FixedKeys
from channel.host import AgentHost
from channel.responses.channel import ResponsesChannel
from handler.app import DEVELOPMENT_KEYS, create_app
from infra.settings import Settings
from tests.e2e.doors import Client, Door, comparable, direct, on_lambda, over_http
from tests.e2e.lambda_events import EVENTS
from tests.e2e.scenarios import SCENARIOS, Scenario
from tests.e2e.server import running


Doors: TypeAlias = Mapping[str, Door]

SETTINGS = Settings(has_development_keys=True)


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with ExitStack() as stack:
        opened: dict[str, Door] = {}
        # As whoever embeds the host makes it, and as `handler.app` composes it.
        channel = ResponsesChannel(keepalive_s=0)
        keys = FixedKeys(DEVELOPMENT_KEYS)
        embedded = AgentHost(demo_agent(), channels=[channel], authenticator=keys).app
        opened["ASGI"] = stack.enter_context(direct(embedded))
        for name, make_event in EVENTS.items():
            opened[name] = stack.enter_context(on_lambda(create_app(SETTINGS), make_event))
        opened["socket"] = stack.enter_context(over_http(stack.enter_context(running())))
        yield opened


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("name", ["ASGI", *EVENTS, "socket"])
def test_a_scenario_is_the_same_through_every_door(
    doors: Doors, name: str, scenario: Scenario
) -> None:
    reference, client = Client(doors["ASGI"]), Client(doors[name])

    scenario(reference)
    scenario(client)

    assert comparable(client.replies) == comparable(reference.replies)
