"""The `openai` package, as users have it, talks to the local server, as users start it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import FunctionToolParam, Response, ResponseFunctionToolCall
from pydantic import BaseModel

from tests.e2e import sam_scenarios
from tests.e2e.scenarios import HELLO, WEATHER
from tests.e2e.server import running


MODEL = "agent"
TOOL = FunctionToolParam(
    type="function",
    name="get_weather",
    description="Weather of a city",
    parameters={**WEATHER["parameters"]},
    strict=True,
)


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture(scope="module")
def alpha(root: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def beta(root: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{root}/v1", api_key="dev-beta", max_retries=0) as client:
        yield client


def plain(model: BaseModel) -> dict[str, Any]:
    """Return what a model holds, and fail where pydantic would only warn."""
    return model.model_dump(mode="json", by_alias=True, warnings="error")


def test_a_response_is_created_and_retrieved(alpha: OpenAI) -> None:
    created = alpha.responses.create(model=MODEL, input="Hello!", metadata={"case": "7"})
    retrieved = alpha.responses.retrieve(created.id)

    assert created.output_text == HELLO
    assert (created.status, created.metadata, created.error) == ("completed", {"case": "7"}, None)
    assert created.usage is not None
    assert created.usage.total_tokens == 16
    assert created._request_id is not None
    assert created._request_id.startswith("req_")
    assert plain(retrieved) == plain(created)


def test_a_response_streams_through_the_helper(alpha: OpenAI) -> None:
    with alpha.responses.stream(model=MODEL, input="Hello!") as stream:
        events = [*stream]
        final = stream.get_final_response()

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    snapshots = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) == len(HELLO.split())
    assert "".join(deltas) == snapshots[-1] == final.output_text == HELLO
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert plain(alpha.responses.retrieve(final.id))["output"][0]["content"][0]["text"] == HELLO


def test_three_turns_are_chained_and_the_first_is_forked(alpha: OpenAI) -> None:
    first = alpha.responses.create(model=MODEL, input="My name is Ada.")
    second = alpha.responses.create(
        model=MODEL, input="My city is Paris.", previous_response_id=first.id
    )
    asked = "What did I tell you?"
    third = alpha.responses.create(model=MODEL, input=asked, previous_response_id=second.id)
    with alpha.responses.stream(model=MODEL, input=asked, previous_response_id=first.id) as stream:
        fork = stream.until_done().get_final_response()

    assert third.output_text == (
        "Your name is Ada. Your city is Paris. "
        "Before this you said: “My name is Ada.”, “My city is Paris.”."
    )
    assert fork.output_text == "Your name is Ada. Before this you said: “My name is Ada.”."


def test_input_items_are_read_through_the_pages_of_the_package(alpha: OpenAI) -> None:
    last: str | None = None
    for number in range(4):
        last = alpha.responses.create(
            model=MODEL, input=f"number {number}", previous_response_id=last
        ).id
    assert last is not None

    page = alpha.responses.input_items.list(last, limit=2, order="asc")
    items = [plain(item) for item in page]

    assert page.has_next_page()
    roles = ["user", "assistant"] * 3 + ["user"]
    assert [item["role"] for item in items] == roles
    assert [item["content"][0]["text"] for item in items[::2]] == [
        f"number {number}" for number in range(4)
    ]
    backwards = [item.id for item in alpha.responses.input_items.list(last, limit=3)]
    assert backwards == [item["id"] for item in reversed(items)]


def test_a_deleted_response_is_not_found(alpha: OpenAI) -> None:
    created = alpha.responses.create(model=MODEL, input="Hello!")

    alpha.responses.delete(created.id)

    for ask in (alpha.responses.retrieve, alpha.responses.delete, alpha.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match=f"'{created.id}' not found"):
            ask(created.id)


def test_a_tool_makes_its_round_trip(alpha: OpenAI) -> None:
    asked = "What is the weather in Paris?"
    with alpha.responses.stream(model=MODEL, input=asked, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)

    second = alpha.responses.create(
        model=MODEL,
        tools=[TOOL],
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}],
    )

    assert (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
    assert kinds.count("response.function_call_arguments.delta") == 2
    assert second.output_text == "The tool get_weather answered: 18 degrees"


def test_a_round_trip_without_storage_sends_the_output_back_as_input(alpha: OpenAI) -> None:
    question: Any = {"role": "user", "content": "What is the weather in Paris?"}
    first = alpha.responses.create(model=MODEL, input=[question], tools=[TOOL], store=False)
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)

    output = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
    again = [question, *(plain(item) for item in first.output), output]
    second = alpha.responses.create(model=MODEL, input=again, tools=[TOOL], store=False)

    assert second.output_text == "The tool get_weather answered: 18 degrees"


def test_an_answer_is_parsed_into_a_pydantic_model(alpha: OpenAI) -> None:
    asked = "name: Ada, age: 36"
    parsed = alpha.responses.parse(model=MODEL, input=asked, text_format=Person)
    with alpha.responses.stream(model=MODEL, input=asked, text_format=Person) as stream:
        streamed = stream.until_done().get_final_response()

    assert parsed.output_parsed == streamed.output_parsed == Person(name="Ada", age=36)
    assert parsed.text is not None
    echoed = plain(parsed.text)["format"]["schema"]
    assert echoed == {**Person.model_json_schema(), "additionalProperties": False}


def test_reasoning_refusals_and_incomplete_answers_are_the_packages_types(alpha: OpenAI) -> None:
    thought = alpha.responses.create(model=MODEL, input="Hi", reasoning={"effort": "low"})
    refused = alpha.responses.create(model=MODEL, input="demo: refuse")
    cut = alpha.responses.create(model=MODEL, input="demo: count 40", max_output_tokens=16)

    assert thought.output[0].type == "reasoning"
    assert thought.output[0].summary[0].text == "I look at 1 items; the user last said “Hi”."
    assert refused.output[0].type == "message"
    assert refused.output[0].content[0].type == "refusal"
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    for response in (thought, refused, cut):
        assert plain(response) == plain(alpha.responses.retrieve(response.id))


def test_a_turn_that_fails_on_the_way_is_told_in_both_forms(alpha: OpenAI) -> None:
    failed = alpha.responses.create(model=MODEL, input="demo: fail")
    events = [*alpha.responses.create(model=MODEL, input="demo: fail", stream=True)]

    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.output_text == "I will fail in the middle of "


def test_an_error_is_a_bad_request_with_its_parameter(alpha: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        alpha.responses.create(model=MODEL, input="Hi", previous_response_id="resp_nobody")

    error = raised.value
    assert (error.status_code, error.param) == (400, "previous_response_id")
    assert (error.code, error.type) == ("previous_response_not_found", "invalid_request_error")
    assert "Previous response with id 'resp_nobody' not found." in error.message
    assert error.request_id is not None
    assert error.request_id.startswith("req_")


def test_an_error_of_a_stream_is_the_same(alpha: OpenAI) -> None:
    with (
        pytest.raises(openai.BadRequestError) as raised,
        alpha.responses.stream(model=MODEL, input="Hi", temperature=3),
    ):
        pass

    assert (raised.value.param, raised.value.code) == ("temperature", "invalid_value")


def test_a_wrong_key_is_an_authentication_error(root: str) -> None:
    with (
        OpenAI(base_url=f"{root}/v1", api_key="dev-gamma") as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.responses.create(model=MODEL, input="Hi")

    assert (raised.value.status_code, raised.value.code) == (401, "invalid_api_key")


def test_two_tenants_cannot_see_each_other(alpha: OpenAI, beta: OpenAI) -> None:
    secret = alpha.responses.create(model=MODEL, input="My name is Ada.")

    for ask in (beta.responses.retrieve, beta.responses.delete, beta.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            ask(secret.id)
    with pytest.raises(openai.BadRequestError):
        beta.responses.create(model=MODEL, input="What is my name?", previous_response_id=secret.id)
    own = beta.responses.create(model=MODEL, input="What is my name?")

    assert "Ada" not in own.output_text
    assert alpha.responses.retrieve(secret.id).id == secret.id


def test_the_models_are_listed(alpha: OpenAI) -> None:
    (model,) = alpha.models.list()

    assert plain(alpha.models.retrieve(model.id)) == plain(model)
    assert (model.id, model.object) == (MODEL, "model")
    with pytest.raises(openai.NotFoundError):
        alpha.models.retrieve("gpt-7")


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_that_failed_is_not_asked_again(root: str, stream: bool) -> None:
    sent: list[str] = []
    counting = openai.DefaultHttpxClient(
        event_hooks={"request": [lambda request: sent.append(request.url.path)]}
    )
    with OpenAI(
        base_url=f"{root}/v1", api_key="dev-alpha", max_retries=5, http_client=counting
    ) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            client.responses.create(model=MODEL, input="demo: fail at once", stream=stream)
        client.responses.create(model=MODEL, input="demo: fail")

    assert raised.value.response.headers["x-should-retry"] == "false"
    assert sent == ["/v1/responses"] * 2


def test_the_asynchronous_client_streams_and_continues(root: str) -> None:
    async def talk() -> tuple[str, Response]:
        async with AsyncOpenAI(base_url=f"{root}/v1", api_key="dev-beta") as client:
            async with client.responses.stream(model=MODEL, input="My name is Eve.") as stream:
                said = [e.delta async for e in stream if e.type == "response.output_text.delta"]
                first = await stream.get_final_response()
            second = await client.responses.create(
                model=MODEL, input="What is my name?", previous_response_id=first.id
            )
        return "".join(said), second

    said, second = asyncio.run(talk())

    assert (said, second.output_text) == (
        *("I will remember that. Your name is Eve.", "Your name is Eve."),
    )


def test_the_scenarios_for_sam_hold_here_too(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sam_scenarios.main(root) == 0

    assert capsys.readouterr().out.splitlines() == [
        f"ok    {name}" for name in sam_scenarios.SCENARIOS
    ]
