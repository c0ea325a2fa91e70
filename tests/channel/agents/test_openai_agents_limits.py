"""What bounds an OpenAI Agents SDK's turn: how its model's stream ends, tokens, kept state, connecting."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIProvider,
    OpenAIResponsesModel,
    RunConfig,
    function_tool,
)
from openai import AsyncOpenAI

from channel.agent import KeptState, Turn, TurnError
from channel.agents.openai_agents import adapt
from channel.responses.protocol.items import message
from tests.channel.agents.frameworks.openai_agents import ScriptedModel
from tests.channel.agents.scripts import Call, Say, Spend, Stop, Think
from tests.channel.agents.test_matrix import CLOCK, HELLO, said
from tests.channel.agents.test_openai_agents_tools import ONE, TIME, Server
from tests.channel.asgi import create, creating, hosted
from tests.models.openai_server import OpenAIServer
from tests.models.steps import ServerStep, Truncate


pytestmark = pytest.mark.anyio
PIECES = Say(("Hello ", "wor"))
CUT = [("length", "max_output_tokens"), ("content_filter", "content_filter")]


def chat(server: OpenAIServer) -> OpenAIChatCompletionsModel:
    return OpenAIChatCompletionsModel("m", client(server))


def client(server: OpenAIServer) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.url, api_key="key", max_retries=0)


# How a stream ends.


@pytest.mark.parametrize("api", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
@pytest.mark.parametrize(
    "steps", [(Truncate(),), (PIECES, Truncate()), (Think(("Hm.",)), TIME, Truncate())]
)
async def test_an_answer_whose_stream_just_ends_is_a_failure(
    api: Any, steps: Sequence[ServerStep]
) -> None:
    with OpenAIServer([steps]) as server:
        agent = Agent("kind", model=api("m", client(server)))
        reply = await creating(tools=[CLOCK]).run(hosted(agent))

    assert reply.status == 500 or reply.json["status"] == "failed"


@pytest.mark.parametrize("api", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
@pytest.mark.parametrize(("reason", "told"), CUT)
async def test_an_answer_that_is_cut_is_incomplete(api: Any, reason: str, told: str) -> None:
    with OpenAIServer([(PIECES, Spend(3, 2), Stop(reason))]) as server:
        settings = ModelSettings(include_usage=True)
        agent = Agent("kind", model=api("m", client(server)), model_settings=settings)
        response = await create(hosted(agent))

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": told})
    assert (said(response), response["usage"]["total_tokens"]) == ("Hello wor", 5)


async def test_a_call_that_is_cut_does_not_run() -> None:
    ran: list[str] = []

    @function_tool
    def note(text: str) -> str:
        ran.append(text)
        return "noted"

    with OpenAIServer([(Call("note", {"text": "a"}, "c"), Stop("length")), HELLO]) as server:
        response = await create(hosted(Agent("kind", model=chat(server), tools=[note])))

    assert (response["status"], ran) == ("incomplete", [])


async def test_nothing_but_a_filter_is_incomplete() -> None:
    with OpenAIServer([(Stop("content_filter"),)]) as server:
        response = await create(hosted(Agent("kind", model=chat(server))))

    assert response["incomplete_details"] == {"reason": "content_filter"}


@pytest.mark.parametrize("is_of_run", [True, False])
async def test_models_that_are_named_are_watched_too(is_of_run: bool) -> None:
    with OpenAIServer([(PIECES, Stop("length"))]) as server:
        provider = OpenAIProvider(openai_client=client(server), use_responses=False)
        config = RunConfig(model="m" if is_of_run else None, model_provider=provider)
        agent = adapt(Agent("kind", model="m"), run_config=config)
        response = await create(hosted(agent))

    assert response["status"] == "incomplete"


async def test_the_users_own_models_stay_as_they_are() -> None:
    with OpenAIServer([HELLO]) as server:
        model = chat(server)
        before = dict(vars(model))
        response = await create(hosted(Agent("kind", model=model)))

    assert (said(response), vars(model)) == ("Hello there.", before)


# Tokens.


@pytest.mark.parametrize(
    ("own", "asked", "given"),
    [(500, 100_000, 500), (500, 16, 16), (None, 16, 16), (500, None, 500), (None, None, None)],
)
async def test_the_smaller_limit_of_tokens_holds(
    own: int | None, asked: int | None, given: int | None
) -> None:
    model = ScriptedModel([HELLO])
    agent = Agent("kind", model=model, model_settings=ModelSettings(max_tokens=own))

    await create(hosted(agent), max_output_tokens=asked)

    assert model.settings[0].max_tokens == given


# State.


@pytest.mark.parametrize(("letters", "is_kept"), [(200_000, True), (300_000, False)])
async def test_a_turn_that_would_keep_too_much_is_a_failure(letters: int, is_kept: bool) -> None:
    @function_tool
    def read() -> str:
        return "x" * letters

    model = ScriptedModel([(Call("read", {}, "c"), ONE), (TIME, ONE)])
    agent = adapt(Agent("kind", model=model, tools=[read]))
    turn = Turn(input=[message("user", "hi")], tools=[CLOCK])
    events: list[Any] = []
    failure = None

    try:
        events.extend([event async for event in agent(turn)])
    except TurnError as error:
        failure = error.message

    assert (failure is None) is is_kept
    assert any(isinstance(event, KeptState) for event in events) is is_kept


# Connecting.


class Slow(Server):
    """A server that is connected for the first time when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def connect(self) -> None:
        if not self.begun.is_set():
            self.begun.set()
            await asyncio.Event().wait()
        await super().connect()


async def test_a_turn_that_is_cancelled_while_it_connects_ends_at_once() -> None:
    server = Slow()
    agent = adapt(Agent("kind", model=ScriptedModel([HELLO]), mcp_servers=[server]))

    async def run() -> list[Any]:
        return [event async for event in agent(Turn(input=[message("user", "hi")]))]

    first = asyncio.create_task(run())
    await server.begun.wait()
    second = asyncio.create_task(run())
    first.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait({first})
        events = await second

    assert first.cancelled()
    assert "Hello" in "".join(event for event in events if isinstance(event, str))
    assert server.log == ["cleanup", "connect", "cleanup"]


async def test_a_server_that_fails_leaves_no_other_one_connected() -> None:
    good, bad, slow = Server(), Server(fails=True), Slow()
    agent = Agent("kind", model=ScriptedModel([HELLO]), mcp_servers=[good, bad, slow])

    with pytest.raises(OSError, match="secret"):
        _ = [event async for event in adapt(agent)(Turn(input=[message("user", "hi")]))]

    assert (good.log, good.session, slow.log) == (["connect", "cleanup"], None, ["cleanup"])
