"""Every scenario through every door: ASGI, a socket, and the kinds of Lambda event under both mounts."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Final, TypeAlias

import pytest

from channel.agents.demo import demo_agent
from channel.auth import FixedKeys
from channel.chat.channel import ChatCompletionsChannel
from channel.contract import Channel
from channel.host import AgentHost
from channel.responses.channel import ResponsesChannel
from handler.app import DEVELOPMENT_KEYS, create_app
from handler.emulator.options import Function
from infra.settings import Settings
from tests.e2e.doors import Client, Door, comparable, direct, on_lambda, over_http
from tests.e2e.lambda_events import EVENTS
from tests.e2e.loop import DEVELOPMENT, function_url, stock_function
from tests.e2e.scenarios import (
    SCENARIOS,
    Scenario,
    a_body_that_is_no_json_or_too_large_is_refused,
)
from tests.e2e.server import running
from tests.infra.engines import ROOT


Doors: TypeAlias = Mapping[str, Door]

SETTINGS = Settings(has_development_keys=True)
WHOLE: Final = {"FUNCTION_URL_MODE": "BUFFERED", "REST_API_MODE": "BUFFERED"}
STREAMED: Final = {"FUNCTION_URL_MODE": "RESPONSE_STREAM", "REST_API_MODE": "STREAM"}
LOOP: Final = {
    **{f"loop, whole: {name}": (name, WHOLE) for name in (*EVENTS,) if "many" not in name},
    **{f"loop, streamed: {name}": (name, STREAMED) for name in ("function URL", "REST API")},
}
"""The doors under the streaming loop: which events, and the settings."""


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with ExitStack() as stack:
        opened: dict[str, Door] = {}
        # As whoever embeds the host makes it, and as `handler.app` composes it.
        channels: list[Channel] = [
            ResponsesChannel(keepalive_s=0),
            ChatCompletionsChannel(keepalive_s=0),
        ]
        keys = FixedKeys(DEVELOPMENT_KEYS)
        embedded = AgentHost(demo_agent(), channels=channels, authenticator=keys).app
        opened["ASGI"] = stack.enter_context(direct(embedded))
        for name, make_event in EVENTS.items():
            opened[name] = stack.enter_context(on_lambda(create_app(SETTINGS), make_event))
        functions = {
            id(settings): stack.enter_context(stock_function(settings))
            for settings in (WHOLE, STREAMED)
        }
        for name, (events, settings) in LOOP.items():
            opened[name] = functions[id(settings)].door(EVENTS[events])
        function = Function(handler="handler.buffered.handler", environ=DEVELOPMENT, task_root=ROOT)
        url = stack.enter_context(function_url(function))
        opened[URL] = stack.enter_context(over_http(url.root))
        opened["socket"] = stack.enter_context(over_http(stack.enter_context(running())))
        yield opened


URL: Final = "local function URL"
CASES: Final = [
    pytest.param(name, scenario, id=f"{name}-{scenario.__name__}")
    for name in ("ASGI", *EVENTS, *LOOP, URL, "socket")
    for scenario in SCENARIOS
    # Lambda itself refuses what is too large, with words of its own.
    if not (name == URL and scenario is a_body_that_is_no_json_or_too_large_is_refused)
]


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_a_scenario_is_the_same_through_every_door(
    doors: Doors, name: str, scenario: Scenario
) -> None:
    reference, client = Client(doors["ASGI"]), Client(doors[name])

    scenario(reference)
    scenario(client)

    assert comparable(client.replies) == comparable(reference.replies)
