"""Agent Framework with its real client of OpenAI's Responses API, whose upstream is a host of ours."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx2
import pytest
from agent_framework import Agent
from agent_framework.openai import OpenAIChatClient
from openai import AsyncOpenAI

from channel.agent import (
    AgentEvent,
    Annotation,
    FunctionCall,
    ReasoningDelta,
    RefusalDelta,
    Turn,
    Usage,
    accepts,
)
from channel.agents.agent_framework import adapt
from tests.channel.agents.frameworks.agent_framework import weather
from tests.channel.agents.test_matrix import CITY, CLOCK, kinds, said
from tests.channel.asgi import create, hosted


pytestmark = pytest.mark.anyio
THOUGHT = (ReasoningDelta("Hm."), ReasoningDelta(encrypted_content="sealed"))
TIME = FunctionCall("clock", '{"zone":"UTC"}', "call_1")
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "12:00"}


class Upstream:
    """A model behind the Responses API: says a script, and keeps the turns that it was given."""

    def __init__(self, *script: Sequence[AgentEvent]) -> None:
        self._script = iter(script)
        self.turns: list[Turn] = []

    @accepts("reasoning", "text", "max_output_tokens", "include")
    async def say(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.turns.append(turn)
        for event in next(self._script):
            yield event

    @property
    def client(self) -> OpenAIChatClient[Any]:
        transport = httpx2.ASGITransport(hosted(self.say))
        http = httpx2.AsyncClient(transport=transport)
        upstream = AsyncOpenAI(
            base_url="http://upstream/v1", api_key="key-alpha", http_client=http, max_retries=0
        )
        return OpenAIChatClient(model="model", async_client=upstream)


Hosted = Callable[..., tuple[Any, Upstream]]


@pytest.fixture
def host() -> Hosted:
    def make(*script: Sequence[AgentEvent], source: Any = "host") -> tuple[Any, Upstream]:
        upstream = Upstream(*script)
        agent = Agent(upstream.client, "Be kind.", tools=[weather])
        return hosted(adapt(agent, history_source=source)), upstream

    return make


def types(turn: Turn) -> list[str]:
    return [item["type"] for item in turn.items]


async def test_text_is_told_once_and_history_comes_from_the_host(host: Hosted) -> None:
    app, upstream = host(
        ("Hel", "lo.", Usage(3, 2)), ("Bye.", Usage(5, 1, reasoning_tokens=1)), ("!",)
    )

    first = await create(app, instructions="Be brief.")
    second = await create(app, input="bye", previous_response_id=first["id"])

    assert (said(first), said(second)) == ("Hello.", "Bye.")
    assert first["usage"]["total_tokens"] == 5
    assert upstream.turns[0].instructions == "Be kind.\nBe brief."
    assert upstream.turns[1].previous_response_id is None
    assert [item["content"][0]["text"] for item in upstream.turns[1].items] == [
        *("hi", "Hello.", "bye"),
    ]


async def test_reasoning_comes_back_to_a_clients_tool_as_the_service_made_it(host: Hosted) -> None:
    app, upstream = host((*THOUGHT, TIME), ("It is noon.",))

    first = await create(app, tools=[CLOCK])
    second = await create(app, input=[OUTPUT], previous_response_id=first["id"], tools=[CLOCK])

    assert kinds(first) == ["reasoning", "function_call"]
    assert [part["text"] for part in first["output"][0]["summary"]] == ["Hm."]
    assert said(second) == "It is noon."
    given = upstream.turns[1].items
    assert [item["type"] for item in given] == [
        *("message", "reasoning", "function_call", "function_call_output"),
    ]
    assert (given[1]["encrypted_content"], given[1]["summary"]) == (
        *("sealed", [{"type": "summary_text", "text": "Hm."}]),
    )
    # The service's own id, without which the client refuses to give the reasoning back.
    assert given[1]["id"].startswith("rs_")
    assert given[1]["id"] != first["output"][0]["id"]


async def test_reasoning_before_the_agents_own_tool_leaves_no_orphan(host: Hosted) -> None:
    own = FunctionCall("weather", '{"city":"Rome"}', "call_2")
    app, upstream = host((*THOUGHT, own), (*THOUGHT, "It is sunny."), ("!",))

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert types(upstream.turns[1]) == [
        *("message", "reasoning", "function_call", "function_call_output"),
    ]
    assert types(upstream.turns[2]) == ["message", "reasoning", "message", "message"]


async def test_options_arrive_in_the_services_words(host: Hosted) -> None:
    app, upstream = host(('{"city": "Rome"}',))
    wanted = {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}

    response = await create(
        app, text={"format": wanted}, max_output_tokens=64, reasoning={"effort": "low"}
    )

    options = upstream.turns[0].options
    assert json.loads(said(response)) == {"city": "Rome"}
    assert options["text"]["format"]["schema"] == CITY
    assert options["text"]["format"]["strict"] is True
    assert (options["max_output_tokens"], options["reasoning"]["effort"]) == (64, "low")


async def test_refusals_and_citations_arrive(host: Hosted) -> None:
    cited = {
        "type": "url_citation",
        "url": "https://example.com",
        "title": "A",
        "start_index": 0,
        "end_index": 4,
    }
    app, upstream = host(("Well", Annotation(cited), RefusalDelta("No.")), ("!",))

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    told, refused = first["output"][0]["content"]
    assert (told["text"], told["annotations"], refused["refusal"]) == ("Well", [cited], "No.")
    assert [part["type"] for part in upstream.turns[1].items[1]["content"]] == [
        *("output_text", "refusal"),
    ]


async def test_images_and_files_arrive(host: Hosted) -> None:
    app, upstream = host(("Nice.",))
    parts = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
        {"type": "input_file", "file_data": "data:text/plain;base64,aGk=", "filename": "a.txt"},
        {"type": "input_file", "file_url": "https://example.com/b.pdf"},
    ]

    await create(app, input=[{"role": "user", "content": parts}])

    assert upstream.turns[0].items[0]["content"] == parts


async def test_the_service_keeps_the_history_where_it_is_told_to(host: Hosted) -> None:
    app, upstream = host(("one",), (TIME,), ("three",), source="service")

    first = await create(app, input="first", tools=[CLOCK])
    second = await create(app, input="second", previous_response_id=first["id"], tools=[CLOCK])
    third = await create(app, input=[OUTPUT], previous_response_id=second["id"], tools=[CLOCK])

    assert said(third) == "three"
    assert [len(turn.input) for turn in upstream.turns] == [1, 1, 1]
    assert types(upstream.turns[2]) == [
        *("message", "message", "message", "function_call", "function_call_output"),
    ]
