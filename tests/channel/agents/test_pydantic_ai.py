"""What only Pydantic AI has: approvals, output types, dependencies, prompts that history drops."""

import json
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests, ModelRetry, NativeOutput, RunContext
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import (
    BinaryContent,
    ImageUrl,
    ModelResponse,
    ThinkingPart,
    UserPromptPart,
)
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.usage import UsageLimits

from channel.agent import Turn
from channel.agents.pydantic_ai import adapt
from tests.channel.agents.frameworks.pydantic_ai import ScriptedModel, weather
from tests.channel.agents.scripts import Call, Say, Spend, Step, Stop, Think
from tests.channel.agents.test_matrix import CITY, CLOCK, HELLO, kinds, loaded, said
from tests.channel.asgi import create, creating, hosted


pytestmark = pytest.mark.anyio
WEATHER = Call("weather", {"city": "Rome"}, "call_1")


class Place(BaseModel):
    city: str


def model_of(*script: tuple[Step, ...], is_native: bool = False) -> ScriptedModel:
    profile = ModelProfile(supports_json_schema_output=True) if is_native else None
    return ScriptedModel(script, profile)


async def test_a_system_prompt_is_there_in_every_turn() -> None:
    model = model_of(HELLO, HELLO)
    app = hosted(Agent(model, system_prompt="Be kind."))

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert [seen.texts[0] for seen in model.seen] == [("system", "Be kind.")] * 2


async def test_a_system_message_follows_the_agents_own_instructions() -> None:
    model = model_of(HELLO)
    app = hosted(Agent(model, instructions="Be kind."))

    await create(
        app,
        input=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    )

    assert model.seen[0].texts == [("system", "Be kind.\n\nBe brief."), ("user", "hi")]


async def test_an_output_type_of_the_agents_own_is_answered_as_json() -> None:
    app = hosted(Agent(model_of((Say(('{"city": ', '"Rome"}')),)), output_type=Place))

    response = await create(app)

    assert (kinds(response), json.loads(said(response))) == (["message"], {"city": "Rome"})


async def test_an_answer_that_must_be_tried_again_is_told_once() -> None:
    script = [(Say(('{"town": "Rome"}',)),), (Say(('{"city": "Rome"}',)),)]
    app = hosted(Agent(model_of(*script), output_type=Place))

    assert json.loads(said(await create(app))) == {"city": "Rome"}


async def test_a_native_output_type_is_answered_once_too() -> None:
    model = model_of((Say(('{"city": ', '"Rome"}')),), is_native=True)
    app = hosted(Agent(model, output_type=NativeOutput(Place)))

    assert json.loads(said(await create(app))) == {"city": "Rome"}


async def test_the_clients_form_goes_before_the_agents_own() -> None:
    model = model_of((Say(('{"city": "Rome"}',)),))
    app = hosted(Agent(model, output_type=int))
    wanted = {"type": "json_schema", "name": "place", "schema": CITY}

    response = await create(app, text={"format": wanted})

    assert json.loads(said(response)) == {"city": "Rome"}


async def test_a_choice_of_a_tool_is_of_the_first_call_only() -> None:
    chosen = []

    class Model(ScriptedModel):
        def prepare_request(self, settings: Any, parameters: Any) -> Any:
            chosen.append((settings or {}).get("tool_choice"))
            return super().prepare_request(settings, parameters)

    model = Model([(WEATHER,), HELLO])
    app = hosted(Agent(model, tools=[weather]))

    await create(app, tools=[CLOCK], tool_choice={"type": "function", "name": "clock"})

    assert chosen == [["clock"], None]


async def test_reasoning_effort_and_one_call_at_a_time_are_settings() -> None:
    given = []

    class Model(ScriptedModel):
        def prepare_request(self, settings: Any, parameters: Any) -> Any:
            given.append(dict(settings))
            return super().prepare_request(settings, parameters)

    app = hosted(Agent(Model([HELLO])))

    await create(app, reasoning={"effort": "low"}, parallel_tool_calls=False, tools=[CLOCK])

    assert given == [{"thinking": "low", "parallel_tool_calls": False}]


async def test_a_tool_of_the_clients_cannot_have_the_name_of_the_agents_own() -> None:
    app = hosted(Agent(model_of(HELLO), tools=[weather]))

    reply = await creating(tools=[{**CLOCK, "name": "weather"}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "tools")


async def test_dependencies_are_made_of_the_turn() -> None:
    agent = Agent(model_of((WEATHER,), HELLO), deps_type=str)
    asked = []

    @agent.tool(name="weather")
    def own(context: RunContext[str], city: str) -> str:
        asked.append(context.deps)
        return "sunny"

    def who(turn: Turn) -> str:
        return turn.principal.name if turn.principal else ""

    await create(hosted(adapt(agent, deps=who)))

    assert asked == ["alpha"]


async def test_a_call_that_needs_approval_waits_for_the_client_and_runs_then() -> None:
    model = model_of((WEATHER, Spend(1, 1)), HELLO)
    agent = Agent(model)
    ran = []

    @agent.tool_plain(name="weather", requires_approval=True)
    def own(city: str) -> str:
        ran.append(city)
        return "sunny"

    app = hosted(agent)
    first = await create(app)
    (request,) = first["output"]
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": True,
    }
    assert (request["type"], request["name"], ran) == ("mcp_approval_request", "weather", [])
    second = await create(app, input=[answer], previous_response_id=first["id"])

    assert ran == ["Rome"]
    assert said(second) == "Hello there."
    assert ("tool", "sunny") in model.seen[1].texts


@pytest.mark.parametrize("reason", [None, "Not there."])
async def test_a_call_that_is_denied_does_not_run(reason: str | None) -> None:
    model = model_of((WEATHER,), HELLO)
    agent = Agent(model)
    ran = []

    @agent.tool_plain(name="weather", requires_approval=True)
    def own(city: str) -> str:
        ran.append(city)
        return "sunny"

    app = hosted(agent)
    first = await create(app)
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": first["output"][0]["id"],
        "approve": False,
        "reason": reason,
    }
    more = {"role": "user", "content": "And now?"}
    second = await create(app, input=[answer, more], previous_response_id=first["id"])

    assert (ran, said(second)) == ([], "Hello there.")
    assert ("user", "And now?") in model.seen[1].texts


async def test_a_call_that_nobody_approves_any_more_is_forgotten() -> None:
    model = model_of((WEATHER,), HELLO)
    agent = Agent(model)

    @agent.tool_plain(name="weather", requires_approval=True)
    def own(city: str) -> str:
        return "sunny"

    app = hosted(agent)
    first = await create(app)
    second = await create(app, input="Never mind.", previous_response_id=first["id"])

    assert said(second) == "Hello there."
    assert model.seen[1].calls == []


async def test_a_call_that_only_the_client_knows_of_does_not_run() -> None:
    agent = Agent(model_of(HELLO))
    ran = []

    @agent.tool_plain(name="weather", requires_approval=True)
    def own(city: str) -> str:
        ran.append(city)
        return "sunny"

    invented = {
        "type": "mcp_approval_request",
        "id": "mcpr_1",
        "name": "weather",
        "arguments": '{"city": "Rome"}',
        "server_label": "agent",
    }
    answer = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    app = hosted(agent)
    first = await create(app, input=[invented, {"role": "user", "content": "hi"}])
    reply = await creating(input=[answer], previous_response_id=first["id"]).run(app)

    assert (reply.status, reply.error_body["param"], ran) == (400, "input", [])


async def test_an_approval_counts_once() -> None:
    agent = Agent(model_of((WEATHER,), HELLO))
    ran = []

    @agent.tool_plain(name="weather", requires_approval=True)
    def own(city: str) -> str:
        ran.append(city)
        return "sunny"

    app = hosted(agent)
    first = await create(app)
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": first["output"][0]["id"],
        "approve": True,
    }
    second = await create(app, input=[answer], previous_response_id=first["id"])
    again = await creating(input=[answer], previous_response_id=second["id"]).run(app)

    assert (again.status, ran) == (400, ["Rome"])


async def test_an_own_call_beside_a_clients_call_is_run() -> None:
    ran = []
    agent = Agent(model_of((WEATHER, Call("clock", {}, "call_2")), HELLO))

    @agent.tool_plain(name="weather")
    def own(city: str) -> str:
        ran.append(city)
        return "sunny"

    app = hosted(agent)
    first = await create(app, tools=[CLOCK])
    output = {"type": "function_call_output", "call_id": "call_2", "output": "12:00"}
    second = await create(app, input=[output], previous_response_id=first["id"], tools=[CLOCK])

    assert (kinds(first), ran, said(second)) == (["function_call"], ["Rome"], "Hello there.")


@pytest.mark.parametrize(("system", "status"), [("openai", 200), ("bedrock", 400)])
async def test_an_images_url_goes_only_to_models_that_fetch_it_themselves(
    system: str, status: int
) -> None:
    given: list[Any] = []

    class Model(ScriptedModel):
        @property
        def system(self) -> str:
            return system

        def request_stream(self, messages: Any, *more: Any) -> Any:
            parts = (part for message in messages for part in message.parts)
            given.extend(part.content for part in parts if isinstance(part, UserPromptPart))
            return super().request_stream(messages, *more)

    app = hosted(Agent(Model([HELLO])))
    image = {"type": "input_image", "image_url": "https://example.com/a.png"}

    reply = await creating(input=[{"role": "user", "content": [image]}]).run(app)

    assert reply.status == status
    assert given == ([[ImageUrl("https://example.com/a.png")]] if status == 200 else [])
    if status == 400:
        assert reply.error_body["code"] == "invalid_image_url"


async def test_a_file_goes_to_the_model_by_its_content() -> None:
    given: list[Any] = []

    class Model(ScriptedModel):
        def request_stream(self, messages: Any, *more: Any) -> Any:
            given.extend(messages[0].parts[0].content)
            return super().request_stream(messages, *more)

    file = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,aGk="}
    await create(hosted(Agent(Model([HELLO]))), input=[{"role": "user", "content": [file]}])

    assert given == [BinaryContent(b"hi", media_type="text/plain")]


async def test_a_run_that_reaches_a_limit_of_the_agents_own_is_incomplete() -> None:
    class Limited(Agent[None, str]):
        def run_stream_events(self, *args: Any, **options: Any) -> Any:
            limits = UsageLimits(request_limit=1)
            return super().run_stream_events(*args, **options, usage_limits=limits)

    app = hosted(Limited(model_of((WEATHER, Spend(2, 3))), tools=[weather]))

    response = await create(app)

    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["total_tokens"] == 5


async def test_a_provider_that_is_busy_is_told_as_such() -> None:
    class Model(ScriptedModel):
        def request_stream(self, *args: Any) -> Any:
            raise ModelHTTPError(429, "scripted", {"secret": "detail"})

    reply = await creating().run(hosted(Agent(Model([]))))

    assert (reply.status, reply.error_body["code"]) == (429, "rate_limit_exceeded")
    assert b"secret" not in reply.body


async def test_a_clients_own_reasoning_items_are_no_thinking_of_the_models() -> None:
    model = model_of(HELLO)
    reasoning = {"type": "reasoning", "summary": [], "encrypted_content": "not ours"}

    await create(hosted(Agent(model)), input=[reasoning, {"role": "user", "content": "hi"}])

    assert model.seen[0].signatures == []


async def test_thinking_that_only_its_provider_can_read_comes_back() -> None:
    given: list[Any] = []

    class Model(ScriptedModel):
        def request_stream(self, messages: Any, *more: Any) -> Any:
            answers = (message for message in messages if isinstance(message, ModelResponse))
            given.extend(part for answer in answers for part in answer.parts)
            return super().request_stream(messages, *more)

    app = hosted(Agent(Model([(Think((), "unreadable"), *HELLO), HELLO])))

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert kinds(first) == ["reasoning", "message"]
    thinking = next(part for part in given if isinstance(part, ThinkingPart))
    assert (thinking.signature, thinking.provider_name) == ("unreadable", "scripted")


async def test_an_agent_that_validates_its_answers_tells_only_the_one_that_passed() -> None:
    agent = Agent(model_of((Say(("no",)),), (Say(("yes",)),)))

    @agent.output_validator
    def checked(said: str) -> str:
        if said == "no":
            raise ModelRetry("Say yes.")
        return said

    app = hosted(agent)

    assert said(await create(app)) == "yes"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [CLOCK]}, "tools"),
        (
            {"text": {"format": {"type": "json_schema", "name": "p", "schema": CITY}}},
            "text.format",
        ),
    ],
)
async def test_an_agent_that_validates_its_answers_takes_no_other_form(
    fields: Any, param: str
) -> None:
    agent = Agent(model_of(HELLO))

    @agent.output_validator
    def checked(said: str) -> str:
        return said

    reply = await creating(**fields).run(hosted(agent))

    assert (reply.status, reply.error_body["param"]) == (400, param)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/a"}}}}},
    ],
)  # fmt: skip
async def test_a_schema_that_the_framework_has_no_type_for_is_the_clients_error(
    schema: Any,
) -> None:
    app = hosted(Agent(model_of(HELLO)))
    wanted = {"type": "json_schema", "name": "p", "schema": schema}

    reply = await creating(text={"format": wanted}).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "text.format")


async def test_a_function_cannot_have_the_name_of_the_frameworks_own() -> None:
    app = hosted(Agent(model_of(HELLO), output_type=Place))

    reply = await creating(tools=[{**CLOCK, "name": "final_result"}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "tools")


async def test_an_agent_that_may_already_defer_calls_still_streams() -> None:
    app = hosted(Agent(model_of(HELLO), output_type=[str, DeferredToolRequests]))

    wire = await creating(stream=True).run(app)

    assert wire.types.count("output_text.delta") > 1


async def test_a_factory_makes_the_agent_of_each_turn() -> None:
    models = [model_of(HELLO), model_of((Say(("one",)),)), model_of((Say(("two",)),))]

    def make() -> Agent:
        return Agent(models.pop(0))

    app = hosted(loaded(make))

    assert [said(await create(app)) for _ in range(2)] == ["one", "two"]


@pytest.mark.parametrize(
    ("steps", "status"), [(HELLO, "failed"), ((*HELLO, Stop("length")), "incomplete")]
)
async def test_a_providers_stream_that_was_cut_off_is_no_whole_answer(
    steps: tuple[Step, ...], status: str
) -> None:
    model = ScriptedModel([steps], url="https://example.com")  # whose answers say why they stop

    response = await create(hosted(Agent(model)))

    assert (response["status"], said(response)) == (status, "Hello there.")
