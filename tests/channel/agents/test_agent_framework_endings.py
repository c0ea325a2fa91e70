"""Model streams that end in good HTTP before the answer does, with the framework's real clients over sockets."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from agent_framework import Agent, ChatResponseUpdate, Workflow, WorkflowBuilder
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
from openai import AsyncOpenAI
from starlette.types import ASGIApp

from channel.agents.agent_framework import adapt
from tests.channel.agents.frameworks.agent_framework import ScriptedClient, weather
from tests.channel.agents.scripts import Call, Say, Script, Step, Stop
from tests.channel.agents.test_agent_framework_history import Recording
from tests.channel.agents.test_matrix import said
from tests.channel.asgi import create, creating, hosted
from tests.models.openai_server import OpenAIServer
from tests.models.steps import Truncate


pytestmark = pytest.mark.anyio
CLIENTS = (OpenAIChatClient, OpenAIChatCompletionClient)
HALF: list[Any] = [Say(("Hello ", "wor")), Truncate()]
WEATHER = Call("weather", {"city": "Rome"}, "call_1")


class Azure(OpenAIChatCompletionClient[Any]):
    """A client that is made of one of OpenAI's."""


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


def client_of(server: OpenAIServer, kind: Any) -> Any:
    upstream = AsyncOpenAI(base_url=server.url, api_key="key-alpha", max_retries=0)
    return kind(model="model", async_client=upstream)


async def status_of(app: ASGIApp) -> str:
    """Return how a response ends; one that fails before its first word is a 500."""
    reply = await creating().run(app)
    return "failed" if reply.status == 500 else str(reply.json["status"])


@pytest.mark.parametrize("kind", [*CLIENTS, Azure])
@pytest.mark.parametrize("steps", [HALF, [Truncate()]])
async def test_a_stream_that_is_cut_cleanly_is_a_failure(
    server: OpenAIServer, kind: Any, steps: Any
) -> None:
    server.play([steps])

    assert await status_of(hosted(adapt(Agent(client_of(server, kind))))) == "failed"


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_second_model_call_that_is_cut_is_a_failure(
    server: OpenAIServer, kind: Any
) -> None:
    server.play([[WEATHER], [Truncate()]])

    app = hosted(adapt(Agent(client_of(server, kind), tools=[weather])))

    assert await status_of(app) == "failed"
    assert len(server.seen) == 2


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_call_that_is_cut_is_not_run(server: OpenAIServer, kind: Any) -> None:
    ran: list[str] = []

    def pay(to: str) -> str:
        ran.append(to)
        return "paid"

    server.play([[Call("pay", {"to": "Ann"}, "call_1"), Truncate()], [Say(("Done.",))]])

    app = hosted(adapt(Agent(client_of(server, kind), tools=[pay])))

    assert (await status_of(app), ran) == ("failed", [])


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("stop", "status"),
    [("stop", "completed"), ("length", "incomplete"), ("content_filter", "incomplete")],
)
async def test_whole_streams_end_as_their_model_says(
    server: OpenAIServer, kind: Any, stop: str, status: str
) -> None:
    server.play([[Say(("Hello.",)), Stop(stop)]])

    response = await create(hosted(adapt(Agent(client_of(server, kind)))))

    assert (response["status"], said(response)) == (status, "Hello.")


async def test_nothing_of_a_cut_answer_is_kept_by_the_agents_provider(
    server: OpenAIServer,
) -> None:
    server.play([HALF])
    provider = Recording()
    agent = Agent(client_of(server, OpenAIChatClient), context_providers=[provider])

    await create(hosted(adapt(agent, history_source="agent")))

    assert provider.stored == {}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("cut", [0, 1])
async def test_a_workflow_fails_by_any_of_its_agents(
    server: OpenAIServer, kind: Any, cut: int
) -> None:
    script: list[Any] = [[Say(("one",))], [Say(("two",))]]
    script[cut] = HALF
    server.play(script)

    def build() -> Workflow:
        agents = [Agent(client_of(server, kind), name=name) for name in ("A", "B")]
        builder = WorkflowBuilder(start_executor=agents[0], output_from=[agents[1]])
        return builder.add_chain(agents).build()

    assert await status_of(hosted(adapt(build(), build))) == "failed"
    assert len(server.seen) == cut + 1


class Reasonless(ScriptedClient):
    """A client that gives a reason only where the script says one."""

    async def _said(self, steps: Sequence[Step]) -> AsyncIterator[ChatResponseUpdate]:
        gives = any(isinstance(step, Stop) for step in steps)
        async for update in super()._said(steps):
            if gives or update.finish_reason is None:
                yield update


async def test_a_client_that_gives_no_reasons_goes_on_to_work() -> None:
    script: Script = [[WEATHER], [Say(("It is sunny.",))]]

    response = await create(hosted(adapt(Agent(Reasonless(script), tools=[weather]))))

    assert (response["status"], said(response)) == ("completed", "It is sunny.")


async def test_a_client_that_gave_a_reason_once_must_give_one() -> None:
    client = Reasonless([[Say(("one",)), Stop("stop")], [Say(("tw",))]])
    app = hosted(adapt(Agent(client)))

    assert (await create(app))["status"] == "completed"
    assert (await create(app))["status"] == "failed"
