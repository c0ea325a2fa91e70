"""`lambda-responses run` over an OpenAI-compatible upstream, driven by the `openai` package."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseFunctionToolCall

from tests.channel.agents.scripts import Call, Fail, Say, Spend, Think
from tests.e2e.server import running
from tests.e2e.test_openai_sdk import MODEL, TOOL, Person
from tests.models.openai_server import OpenAIServer, ServerScript
from tests.models.steps import Reply, error_body


HELLO = (Say(("Hel", "lo.")), Spend(7, 3))
Serve = Callable[[ServerScript], tuple[OpenAI, OpenAIServer]]


@pytest.fixture(scope="module", params=["responses", "chat"])
def started(request: pytest.FixtureRequest) -> Iterator[tuple[OpenAI, OpenAIServer]]:
    has_responses = request.param == "responses"
    with ExitStack() as stack:
        model = stack.enter_context(OpenAIServer([], has_responses=has_responses))
        root = stack.enter_context(
            running(
                AGENT=f"openai:vendor/model:8b@{model.url}",
                OPENAI_API_KEY="sk-upstream",
                AGENT_INSTRUCTIONS="Be kind.",
            )
        )
        client = OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0)
        yield stack.enter_context(client), model


@pytest.fixture
def serve(started: tuple[OpenAI, OpenAIServer]) -> Serve:
    """Let the upstream say a script; give a client of our server, and what the upstream sees of it."""
    client, model = started

    def play(script: ServerScript) -> tuple[OpenAI, OpenAIServer]:
        model.play(script)
        return client, model

    return play


def test_a_response_streams_through_the_helper(serve: Serve) -> None:
    client, model = serve([(Think(("Hm.",), "signed"), *HELLO)])

    with client.responses.stream(model=MODEL, input="Hello!") as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()

    assert deltas == ["Hel", "lo."]
    assert final.output_text == "Hello."
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.usage is not None
    assert final.usage.total_tokens == 10
    assert model.bodies[0]["model"] == "vendor/model:8b"
    assert client.responses.retrieve(final.id).output_text == "Hello."


def test_a_tool_makes_its_round_trip(serve: Serve) -> None:
    call = Call("get_weather", {"city": "Paris"}, "call_1")
    client, model = serve([(call, Spend(1, 1)), HELLO])

    with client.responses.stream(model=MODEL, input="Weather?", tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    (made,) = first.output
    assert isinstance(made, ResponseFunctionToolCall)
    second = client.responses.create(
        model=MODEL,
        tools=[TOOL],
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": made.call_id, "output": "18 degrees"}],
    )

    assert (made.name, made.arguments) == ("get_weather", '{"city": "Paris"}')
    assert kinds.count("response.function_call_arguments.delta") == 2
    assert second.output_text == "Hello."
    assert ("tool", "18 degrees") in model.seen[1].texts


def test_a_stateless_upstream_remembers_three_turns_and_a_fork(serve: Serve) -> None:
    words = ("one", "two", "three", "other")
    client, model = serve([(Say((word,)), Spend(1, 1)) for word in words])

    last: Response | None = None
    made: list[Response] = []
    for asked in ("first", "second", "third"):
        previous = last.id if last else None
        last = client.responses.create(model=MODEL, input=asked, previous_response_id=previous)
        made.append(last)
    client.responses.create(model=MODEL, input="fork", previous_response_id=made[0].id)

    texts = [[text for _, text in seen.texts] for seen in model.seen]
    assert texts[2] == ["Be kind.", "first", "one", "second", "two", "third"]
    assert texts[3] == ["Be kind.", "first", "one", "fork"]


def test_an_answer_is_parsed_into_a_pydantic_model(serve: Serve) -> None:
    client, model = serve([(Say(('{"name": "Ada", ', '"age": 36}')), Spend(1, 1))])

    parsed = client.responses.parse(model=MODEL, input="Who?", text_format=Person)

    assert parsed.output_parsed == Person(name="Ada", age=36)
    assert model.seen[0].schema is not None


def test_errors_are_the_packages_own(serve: Serve) -> None:
    no_retry = {"x-should-retry": "false"}
    busy = Reply(429, error_body("secret detail"), no_retry)
    unauthorized = Reply(401, error_body("secret detail of sk-upstream", "invalid_api_key"))
    client, model = serve([(busy,), (unauthorized,), (Say(("Well, ",)), Fail("secret detail"))])

    with pytest.raises(openai.RateLimitError) as limited:
        client.responses.create(model=MODEL, input="Hi")
    with pytest.raises(openai.InternalServerError) as failed:
        client.responses.create(model=MODEL, input="Hi")
    broken = client.responses.create(model=MODEL, input="Hi")

    assert limited.value.code == "rate_limit_exceeded"
    assert failed.value.status_code == 500
    assert (broken.status, broken.output_text) == ("failed", "Well, ")
    told = f"{limited.value.body} {failed.value.body} {broken.to_json()}"
    for hidden in ("secret", "sk-upstream", model.url, "vendor/model"):
        assert hidden not in told


def test_a_turn_runs_in_the_background(serve: Serve) -> None:
    client, _ = serve([HELLO])

    begun = client.responses.create(model=MODEL, input="Take your time.", background=True)
    response, until = begun, time.monotonic() + 30
    while response.status in ("queued", "in_progress") and time.monotonic() < until:
        response = client.responses.retrieve(begun.id)

    assert begun.status == "queued"
    assert (response.status, response.output_text) == ("completed", "Hello.")


def test_conversations_are_kept_here(serve: Serve) -> None:
    client, model = serve([HELLO, HELLO])
    conversation = client.conversations.create()

    for asked in ("first", "second"):
        client.responses.create(model=MODEL, input=asked, conversation=conversation.id)

    assert [text for role, text in model.seen[1].texts if role != "system"] == [
        "first",
        "Hello.",
        "second",
    ]


def test_the_wire_is_chosen_once(serve: Serve) -> None:
    client, model = serve([HELLO, HELLO, HELLO])

    for _ in range(3):
        client.responses.create(model=MODEL, input="Hi")

    assert len(set(model.paths[-2:])) == 1
    assert len(model.paths) <= 4
