"""Clients of Chat Completions, as users have them, talk to the local server, as users start it."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import (
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionToolParam,
)
from pydantic import BaseModel, SecretStr
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.e2e.scenarios import HELLO, PIXEL, WEATHER
from tests.e2e.server import running


MODEL: Final = "agent"
TOOL: Final[ChatCompletionToolParam] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {**WEATHER["parameters"]},
        "strict": True,
    },
}
QUESTION: Final = "What is the weather in Paris?"
ANSWER: Final = "The tool get_weather answered: 18 degrees"


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    """Start a server whose streams beat often."""
    with running(KEEPALIVE_S="0.2", FIRST_EVENT_GRACE_S="0.1") as url:
        yield url


@pytest.fixture(scope="module")
def client(root: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as made:
        yield made


def user(text: str) -> ChatCompletionMessageParam:
    return {"role": "user", "content": text}


# openai


def test_a_completion_is_created(client: OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=[user("Hello!")])

    (choice,) = completion.choices
    assert completion.id.startswith("chatcmpl-")
    assert (choice.message.content, choice.finish_reason) == (HELLO, "stop")
    assert completion.usage is not None
    assert completion.usage.total_tokens == 16
    assert completion._request_id is not None
    assert completion._request_id.startswith("req_")


def test_both_apis_say_the_same(client: OpenAI) -> None:
    for said in ("Hello!", "My name is Ada.", "demo: tool", "demo: refuse", "help"):
        response = client.responses.create(model=MODEL, input=said)
        completion = client.chat.completions.create(model=MODEL, messages=[user(said)])

        assert (completion.choices[0].message.content or "") == response.output_text


def test_a_completion_streams(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=[user("Hello!")], stream=True
    ) as stream:
        chunks = [*stream]

    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == HELLO
    assert len(deltas) == len(HELLO.split()) + 2
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)


def test_a_stream_tells_its_usage_where_it_is_asked_to(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model=MODEL,
        messages=[user("Hello!")],
        stream=True,
        stream_options={"include_usage": True},
    )

    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (1, 15)


def test_a_conversation_is_the_clients_to_keep(client: OpenAI) -> None:
    messages = [user("My name is Ada.")]
    said = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message
    messages += [{"role": "assistant", "content": said.content}, user("What is my name?")]

    known = client.chat.completions.create(model=MODEL, messages=messages)
    unknown = client.chat.completions.create(model=MODEL, messages=messages[-1:])

    assert known.choices[0].message.content == "Your name is Ada."
    assert "Ada" not in (unknown.choices[0].message.content or "")


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_are_obeyed(client: OpenAI, role: Any) -> None:
    instructions: Any = {"role": role, "content": "Answer in upper case."}

    completion = client.chat.completions.create(model=MODEL, messages=[instructions, user("Hi")])

    assert (completion.choices[0].message.content or "").startswith("HELLO! YOU SAID")


def test_a_tool_makes_its_round_trip(client: OpenAI) -> None:
    first = client.chat.completions.create(model=MODEL, messages=[user(QUESTION)], tools=[TOOL])
    (choice,) = first.choices
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    said: Any = choice.message.model_dump(exclude_none=True)
    second = client.chat.completions.create(
        model=MODEL,
        messages=[
            user(QUESTION),
            said,
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
        ],
        tools=[TOOL],
    )

    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert second.choices[0].message.content == ANSWER


def test_a_call_streams_through_the_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[user(QUESTION)], tools=[TOOL]
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()

    (choice,) = final.choices
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.parsed_arguments) == (
        *("tool_calls", {"city": "Paris"}),
    )
    assert kinds.count("tool_calls.function.arguments.delta") == 3  # the first names it
    assert kinds[-1] == "tool_calls.function.arguments.done"


def test_an_answer_is_parsed_into_a_pydantic_model(client: OpenAI) -> None:
    asked = [user("name: Ada, age: 36")]
    parsed = client.chat.completions.parse(model=MODEL, messages=asked, response_format=Person)
    with client.chat.completions.stream(
        model=MODEL, messages=asked, response_format=Person
    ) as stream:
        streamed = stream.until_done().get_final_completion()

    ada = Person(name="Ada", age=36)
    assert parsed.choices[0].message.parsed == streamed.choices[0].message.parsed == ada


def test_reasoning_refusals_citations_and_limits_are_told(client: OpenAI) -> None:
    def ask(said: str, **options: Any) -> Any:
        messages = [user(said)]
        return client.chat.completions.create(model=MODEL, messages=messages, **options).choices[0]

    thought, refused, cited = (
        ask("Hi", reasoning_effort="high"),
        ask("demo: refuse"),
        ask("demo: cite"),
    )
    cut, filtered = ask("demo: count 9", max_tokens=3), ask("demo: filter")

    assert thought.message.reasoning_content.startswith("I look at 1 items")
    assert refused.message.refusal.startswith("I am sorry")
    assert refused.message.content is None
    (annotation,) = cited.message.annotations
    place = annotation.url_citation
    assert cited.message.content[place.start_index : place.end_index].startswith("this domain")
    assert (cut.message.content, cut.finish_reason) == ("1 2 3 ", "length")
    assert filtered.finish_reason == "content_filter"


def test_an_image_and_a_file_are_seen(client: OpenAI) -> None:
    text = "data:text/plain;base64,aGVsbG8="
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                    {"type": "file", "file": {"file_data": text, "filename": "hello.txt"}},
                ],
            }
        ],
    )

    said = completion.choices[0].message.content or ""
    assert "image/png" in said
    assert "hello.txt" in said


def test_a_wrong_request_is_a_bad_request_with_its_parameter(client: OpenAI) -> None:
    wrong: Any = {"role": "user", "content": 7}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model=MODEL, messages=[wrong], stream=stream)

        error = raised.value
        assert (error.param, error.code) == ("messages[0].content", "invalid_type")
        assert error.type == "invalid_request_error"
        assert error.request_id is not None
        assert error.request_id.startswith("req_")


def test_what_is_not_offered_is_refused_by_its_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=[user("Hi")], n=2)

    assert (raised.value.param, raised.value.code) == ("n", "unsupported_parameter")


def test_a_wrong_key_is_an_authentication_error(root: str) -> None:
    with (
        OpenAI(base_url=f"{root}/v1", api_key="dev-gamma") as nobody,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        nobody.chat.completions.create(model=MODEL, messages=[user("Hi")])

    assert raised.value.code == "invalid_api_key"


def test_another_tenant_is_served_and_told_nothing(root: str, client: OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=[user("My name is Ada.")])

    with OpenAI(base_url=f"{root}/v1", api_key="dev-beta", max_retries=0) as other:
        completion = other.chat.completions.create(model=MODEL, messages=[user("What is my name?")])

    assert "Ada" not in (completion.choices[0].message.content or "")


@pytest.mark.parametrize("said", ["demo: fail at once", "demo: fail"])
def test_an_agent_that_failed_is_not_asked_again(root: str, said: str) -> None:
    sent: list[str] = []
    counting = openai.DefaultHttpxClient(
        event_hooks={"request": [lambda request: sent.append(request.url.path)]}
    )
    with (
        OpenAI(
            base_url=f"{root}/v1", api_key="dev-alpha", max_retries=5, http_client=counting
        ) as patient,
        pytest.raises(openai.InternalServerError) as raised,
    ):
        patient.chat.completions.create(model=MODEL, messages=[user(said)])

    assert raised.value.response.headers["x-should-retry"] == "false"
    assert sent == ["/v1/chat/completions"]


def test_a_stream_that_fails_on_the_way_raises_what_it_was_told(client: OpenAI) -> None:
    said: list[str] = []
    stream = client.chat.completions.create(model=MODEL, messages=[user("demo: fail")], stream=True)
    with pytest.raises(openai.APIError) as raised:
        said.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    with (
        pytest.raises(openai.APIError),
        client.chat.completions.stream(model=MODEL, messages=[user("demo: fail")]) as helper,
    ):
        helper.until_done()

    assert "".join(said) == "I will fail in the middle of "
    assert (raised.value.code, raised.value.type) == ("server_error", "server_error")
    assert raised.value.message.startswith("The agent failed to answer. Request id: req_")


def test_the_asynchronous_client_streams_while_the_agent_is_silent(root: str) -> None:
    async def talk() -> tuple[str, bytes]:
        async with AsyncOpenAI(base_url=f"{root}/v1", api_key="dev-beta") as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[user("demo: wait 1")], stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            async with client.chat.completions.with_streaming_response.create(
                model=MODEL, messages=[user("demo: wait 1")], stream=True
            ) as raw:
                return text, await raw.read()

    text, raw = asyncio.run(talk())

    assert text == "Waiting… that took 1 seconds."
    assert raw.count(b": keepalive\n\n") >= 2


# LangChain


@pytest.fixture(scope="module")
def chat(root: str) -> ChatOpenAI:
    key = SecretStr("dev-alpha")
    url = f"{root}/v1"
    return ChatOpenAI(model=MODEL, base_url=url, api_key=key, max_retries=0, stream_usage=True)


def test_langchain_talks_and_streams(chat: ChatOpenAI) -> None:
    said = chat.invoke([SystemMessage("Answer in upper case."), HumanMessage("Hi")])
    pieces = [*chat.stream("Hello!")]
    silent = [*chat.stream("demo: wait 1")]

    assert str(said.content).startswith("HELLO! YOU SAID")
    assert "".join(str(piece.content) for piece in pieces) == HELLO
    assert "".join(str(piece.content) for piece in silent) == "Waiting… that took 1 seconds."
    used = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert [usage["total_tokens"] for usage in used] == [16]


def test_langchain_calls_tools_and_parses(chat: ChatOpenAI) -> None:
    able = chat.bind_tools([{**TOOL}])
    first = able.invoke(QUESTION)
    assert isinstance(first, AIMessage)
    (call,) = first.tool_calls
    output = ToolMessage("18 degrees", tool_call_id=call["id"])
    second = able.invoke([HumanMessage(QUESTION), first, output])
    parsed = chat.with_structured_output(Person).invoke("name: Ada, age: 36")

    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    assert second.content == ANSWER
    assert parsed == Person(name="Ada", age=36)


def test_langchain_raises_where_an_agent_fails(chat: ChatOpenAI) -> None:
    with pytest.raises(openai.InternalServerError):
        chat.invoke("demo: fail")
    with pytest.raises(openai.APIError, match="The agent failed to answer"):
        list(chat.stream("demo: fail"))


# Pydantic AI


def test_pydantic_ai_calls_a_tool_and_streams(root: str) -> None:
    async def talk() -> tuple[str, str, Person]:
        async with AsyncOpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as client:
            model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
            agent = Agent(model)

            @agent.tool_plain
            def get_weather(city: str) -> str:
                """Return the weather of a city."""
                assert city == "Paris"
                return "18 degrees"

            answered = await agent.run(QUESTION)
            async with agent.run_stream("Hello!") as streamed:
                said = await streamed.get_output()
            with pytest.raises(ModelAPIError):
                await agent.run("demo: fail")
            person = await Agent(model, output_type=Person).run("name: Ada, age: 36")
            return answered.output, said, person.output

    assert asyncio.run(talk()) == (ANSWER, HELLO, Person(name="Ada", age=36))
