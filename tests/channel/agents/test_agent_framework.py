"""What only Agent Framework has: agents of many kinds, options in its own words, its exceptions, factories."""

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from agent_framework import (
    Agent,
    AgentExecutor,
    AgentResponse,
    AgentResponseUpdate,
    AgentSession,
    BaseAgent,
    Content,
    ContextProvider,
    FunctionTool,
    MCPStdioTool,
    Message,
    ResponseStream,
    WorkflowBuilder,
    workflow,
)
from agent_framework.exceptions import ChatClientContentFilterException, ChatClientException
from starlette.types import ASGIApp

from channel.agents.agent_framework import adapt
from channel.agents.recognition import framework_of
from channel.loading import agent_of
from tests.channel.agents.frameworks.agent_framework import ScriptedClient, weather
from tests.channel.agents.scripts import Call, Say, Spend, Step, Think, Wait
from tests.channel.agents.test_matrix import CITY, CLOCK, HELLO, kinds, said
from tests.channel.asgi import create, creating, hosted


pytestmark = pytest.mark.anyio
WEATHER = Call("weather", {"city": "Rome"}, "call_1")


class Protocol:
    """No more than the protocol asks for; notes what it was given."""

    id = "custom"
    name = None
    description = None

    def __init__(self) -> None:
        self.given: list[Sequence[Message]] = []
        self.sessions: list[AgentSession | None] = []

    def create_session(self, *, session_id: str | None = None) -> AgentSession:
        return AgentSession(session_id=session_id)

    def get_session(
        self, service_session_id: Any, *, session_id: str | None = None
    ) -> AgentSession:
        return AgentSession(session_id=session_id, service_session_id=service_session_id)

    async def say(self, messages: Sequence[Message]) -> AsyncIterator[AgentResponseUpdate]:
        self.given.append(messages)
        for word in ("Hello ", "there."):
            yield AgentResponseUpdate(contents=[Content.from_text(word)], role="assistant")


class Streaming(Protocol):
    def run(
        self,
        messages: Any = None,
        *,
        stream: bool = False,
        session: AgentSession | None = None,
        function_invocation_kwargs: Any = None,
        client_kwargs: Any = None,
    ) -> Any:
        assert stream
        self.sessions.append(session)
        return ResponseStream(self.say(messages), finalizer=AgentResponse.from_updates)


class Iterating(Protocol):
    async def run(self, messages: Any = None, *, stream: bool = False, **kwargs: Any) -> Any:
        assert stream
        return self.say(messages)


class Generating(Protocol):
    async def run(self, messages: Any = None, **kwargs: Any) -> Any:
        async for update in self.say(messages):
            yield update


class Whole(Protocol):
    async def run(self, messages: Any = None) -> Any:
        self.given.append(messages)
        return AgentResponse(messages=Message("assistant", ["Hello there."]))


def app_of(*script: Sequence[Step], **options: Any) -> tuple[ASGIApp, ScriptedClient]:
    client = ScriptedClient(script)
    return hosted(Agent(client, "Be kind.", tools=[weather], **options)), client


# Agents of other kinds


@pytest.mark.parametrize("kind", [Streaming, Iterating, Generating, Whole])
async def test_an_agent_may_return_its_answer_in_any_way(kind: Any) -> None:
    agent = kind()

    app = hosted(agent_of(agent))
    first = await create(app, input="first", instructions="Be brief.")
    await create(app, input="second", previous_response_id=first["id"])

    assert said(first) == "Hello there."
    assert [[(m.role, m.text) for m in given] for given in agent.given] == [
        [("system", "Be brief."), ("user", "first")],
        [
            ("user", "first"),
            ("assistant", "Hello there."),
            ("user", "second"),
        ],
    ]


async def test_an_agent_without_tools_and_options_refuses_what_it_cannot_do() -> None:
    app = hosted(Streaming())
    wanted = {"type": "json_schema", "name": "place", "schema": CITY}

    tools = await creating(tools=[CLOCK]).run(app)
    form = await creating(text={"format": wanted}).run(app)
    ignored = await create(app, temperature=0.5, tools=[CLOCK], tool_choice="none")

    assert (tools.status, tools.error_body["param"]) == (400, "tools")
    assert (form.status, form.error_body["param"]) == (400, "text.format.type")
    assert (said(ignored), ignored["temperature"]) == ("Hello there.", 0.5)


async def test_an_agent_without_options_refuses_a_choice_of_tools() -> None:
    class Tooled(Protocol):
        def run(self, messages: Any = None, *, stream: bool = False, tools: Any = None) -> Any:
            assert [each.name for each in tools] == ["clock"]
            return self.say(messages)

    app = hosted(Tooled())

    forced = await creating(tools=[CLOCK], tool_choice="required").run(app)

    assert (forced.status, forced.error_body["param"]) == (400, "tool_choice")
    assert said(await create(app, tools=[CLOCK])) == "Hello there."


async def test_another_agent_has_a_session_only_where_it_keeps_the_history() -> None:
    host, own = Streaming(), Streaming()
    app = hosted(adapt(own, history_source="agent"))

    await create(hosted(host))
    first = await create(app, input="first")
    await create(app, input="second", previous_response_id=first["id"])

    assert host.sessions == [None]
    assert [session and session.session_id for session in own.sessions] == [first["id"]] * 2
    assert [message.text for message in own.given[1]] == ["second"]


async def test_what_the_session_of_another_agent_holds_comes_back() -> None:
    class Counting(Streaming):
        def run(self, messages: Any = None, *, session: Any = None, **kwargs: Any) -> Any:
            session.state["count"] = session.state.get("count", 0) + 1
            session.service_session_id = f"remote {session.state['count']}"
            self.sessions.append(session)
            return self.say(messages)

    agent = Counting()
    app = hosted(adapt(agent, history_source="agent"))
    first = await create(app)
    await create(app, previous_response_id=first["id"])

    second = agent.sessions[1]
    assert second is not None
    assert (second.state["count"], second.service_session_id) == (2, "remote 2")


async def test_a_providers_binding_reaches_agents_of_other_kinds() -> None:
    bound: list[Any] = []

    class Binding(ContextProvider):
        def bind_request_context(self, **given: Any) -> Any:
            bound.append(given)
            return self

        async def __aenter__(self) -> None:
            bound.append("in")

        async def __aexit__(self, *_: object) -> None:
            bound.append("out")

    class Custom(BaseAgent):
        def run(self, messages: Any = None, *, stream: bool = False, session: Any = None) -> Any:
            return Protocol().say(messages)

    response = await create(hosted(Custom(context_providers=[Binding("binding")])))

    assert bound == [{"response_id": response["id"], "previous_response_id": None}, "in", "out"]


async def test_an_agent_that_waits_is_ended_when_its_client_goes() -> None:
    wait = Wait()

    class Waiting(Iterating):
        async def say(self, messages: Any) -> AsyncIterator[AgentResponseUpdate]:
            async for update in super().say(messages):
                yield update
            wait.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                wait.ended.set()

    wire = creating(stream=True)
    running = wire.start(hosted(Waiting()))
    await asyncio.wait_for(wire.until("there"), 30)
    wire.hang_up()
    await asyncio.wait_for(running, 30)

    assert wait.ended.is_set()


async def test_a_stream_that_can_not_be_closed_hides_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(ResponseStream[Any, Any]):
        async def close(self, exc: BaseException | None = None) -> None:
            raise OSError("secret")

    class Odd(Protocol):
        def run(self, messages: Any = None, *, stream: bool = False) -> Any:
            return Stuck(self.say(messages), finalizer=AgentResponse.from_updates)

    def refuse(event: Any) -> Any:
        raise LookupError

    reply = await creating().run(hosted(Odd(), stream_transform_hook=refuse))

    assert reply.status == 500
    assert ["LookupError" in caplog.text, "OSError" in caplog.text] == [True, True]


# Factories and workflows


async def test_a_factory_makes_an_agent_for_each_turn_which_is_closed_after_it() -> None:
    client, closed = ScriptedClient([HELLO, HELLO]), []

    class Closing(Agent[Any]):
        async def close(self) -> None:
            closed.append(self)
            await super().close()

    made: list[Any] = []

    def make() -> Any:
        made.append(Closing(client, "Be kind."))
        return made[-1]

    app = hosted(agent_of(make))
    for _ in range(2):
        await create(app)

    assert len(made) == 3  # one to know what it is
    assert closed == made[1:]


async def test_an_agent_that_is_a_workflow_needs_a_factory() -> None:
    client = ScriptedClient([HELLO, HELLO])

    def make() -> Any:
        executor = AgentExecutor(Agent(client, "Be kind.", name="kind"))
        return WorkflowBuilder(start_executor=executor).build().as_agent()

    with pytest.raises(TypeError, match="factory"):
        adapt(make())
    app = hosted(agent_of(make))
    first = await create(app, input="first")
    await create(app, input="second", previous_response_id=first["id"])

    assert said(first) == "Hello there."
    assert [text for role, text in client.seen[1].texts if role != "system"] == [
        *("first", "Hello there.", "second"),
    ]


async def test_a_workflow_keeps_its_own_history() -> None:
    executor = AgentExecutor(Agent(ScriptedClient([]), name="kind"))
    graph = WorkflowBuilder(start_executor=executor).build()

    with pytest.raises(ValueError, match="checkpoints"):
        adapt(graph, history_source="agent")


def test_workflows_of_all_kinds_are_known() -> None:
    definition = echo()

    known = [framework_of(definition), framework_of(definition.build())]
    assert [each and each.module for each in known] == ["agent_framework"] * 2


async def test_the_definition_of_a_workflow_is_its_own_factory() -> None:
    app = hosted(echo())

    assert said(await create(app, input="hello")) == "hello"


def echo() -> Any:
    """Return the definition of a workflow, of which the framework warns once that it is new."""

    async def run(data: str) -> str:
        return data

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*FUNCTIONAL_WORKFLOWS")
        return workflow(run)


# Options and tools


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("required", "required"),
        ("none", "none"),
        (
            {"type": "function", "name": "clock"},
            {"mode": "required", "required_function_name": "clock"},
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "clock"}],
            },
            {"mode": "required", "allowed_tools": ["clock"]},
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "clock"}],
            },
            "auto",
        ),
    ],
)
async def test_a_choice_of_tools_is_said_in_the_frameworks_words(
    choice: Any, expected: Any
) -> None:
    app, client = app_of(HELLO)

    await create(app, tools=[CLOCK, {**CLOCK, "name": "other"}], tool_choice=choice)

    assert client.given[0]["tool_choice"] == expected
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        assert set(client.seen[0].tools) == {"clock", "weather"}


async def test_a_choice_of_a_hosted_tool_is_refused() -> None:
    app, _ = app_of(HELLO)

    reply = await creating(tools=[CLOCK], tool_choice={"type": "web_search"}).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "tool_choice")


async def test_calls_one_at_a_time_and_other_options_are_said_too() -> None:
    app, client = app_of(HELLO)

    await create(
        app, parallel_tool_calls=False, top_p=0.5, presence_penalty=1, frequency_penalty=-1
    )

    given = client.given[0]
    assert given["allow_multiple_tool_calls"] is False
    assert (given["top_p"], given["presence_penalty"], given["frequency_penalty"]) == (0.5, 1, -1)


async def test_any_json_is_asked_for_without_a_schema() -> None:
    app, client = app_of((Say(("{}",)),))

    await create(app, text={"format": {"type": "json_object"}})

    assert client.given[0]["response_format"] == {"type": "json_object"}


async def test_an_answer_that_is_not_the_json_that_was_asked_for_is_no_failure_of_the_run() -> None:
    app, _ = app_of((Say(('{"ci',)),))
    wanted = {"type": "json_schema", "name": "place", "schema": CITY}

    assert said(await create(app, text={"format": wanted})) == '{"ci'


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("RawOpenAIChatClient", ("reasoning", {"effort": "low"})),
        ("RawOpenAIChatCompletionClient", ("reasoning_effort", "low")),
    ],
)
async def test_openais_clients_are_told_the_effort(kind: str, expected: tuple[str, Any]) -> None:
    # The base class is known by its name, so that nothing imports it.
    named: Any = type(kind, (), {})
    client = type("Client", (ScriptedClient, named), {})([HELLO])

    await create(hosted(Agent(client)), reasoning={"effort": "low"})

    assert client.given[0][expected[0]] == expected[1]


async def test_other_clients_are_not_told_of_reasoning() -> None:
    app, client = app_of(HELLO)

    response = await create(app, reasoning={"effort": "low"})

    assert response["reasoning"]["effort"] == "low"
    assert not {"reasoning", "reasoning_effort"} & client.given[0].keys()


async def test_a_clients_tool_with_the_name_of_the_agents_own_is_refused() -> None:
    app, _ = app_of(HELLO)

    reply = await creating(tools=[{**CLOCK, "name": "weather"}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "tools")


async def test_the_names_of_servers_and_of_declared_tools_are_the_agents_own() -> None:
    declared: Any = {"type": "function", "function": {"name": "declared"}}
    server: Any = MCPStdioTool(name="server", command="true")
    server._functions = [FunctionTool(name="served", func=None)]
    client = ScriptedClient(
        [HELLO], function_invocation_configuration={"additional_tools": [weather]}
    )
    agent = Agent(client, tools=[declared, server])

    for name in ("declared", "served", "weather"):
        reply = await creating(tools=[{**CLOCK, "name": name}]).run(hosted(agent))
        assert (reply.status, reply.error_body["param"]) == (400, "tools")


async def test_a_function_of_the_agents_own_that_nobody_runs_fails_the_turn() -> None:
    client = ScriptedClient([(Call("elsewhere", {}, "call_1"),)])
    app = hosted(Agent(client, tools=[FunctionTool(name="elsewhere", func=None)]))

    reply = await creating().run(app)

    assert reply.status == 500


async def test_a_clients_calls_are_streamed_in_pieces() -> None:
    app, _ = app_of((Call("clock", {"zone": "UTC"}, "call_1"),))

    wire = await creating(stream=True, tools=[CLOCK]).run(app)

    pieces = [e["delta"] for e in wire.events if e["type"].endswith("arguments.delta")]
    assert len(pieces) == 2
    assert json.loads("".join(pieces)) == {"zone": "UTC"}


# Reasoning


async def test_reasoning_before_the_agents_own_tool_is_shown_and_does_not_come_back() -> None:
    # A history without the call cannot hold the reasoning that led to it.
    client = ScriptedClient(
        [
            (Think(("Where? ",), "one"), WEATHER),
            (Think(("Sunny.",), "two"), Say(("It is sunny.",))),
            HELLO,
        ]
    )
    app = hosted(Agent(client, tools=[weather]))

    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert kinds(first) == ["reasoning", "reasoning", "message"]
    thoughts = [part["text"] for item in first["output"][:2] for part in item["summary"]]
    assert thoughts == ["Where? ", "Sunny."]
    given = [
        (content.text, content.protected_data)
        for message in client.messages[2]
        for content in message.contents
        if content.type == "text_reasoning"
    ]
    assert given == [("Sunny.", "two")]


async def test_reasoning_of_somebody_elses_making_is_left_out() -> None:
    app, client = app_of(HELLO)
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAAB…"}

    await create(app, input=[foreign, {"role": "user", "content": "hi"}])

    assert client.seen[0].signatures == []


# Media


async def test_files_and_urls_reach_the_model_as_they_are() -> None:
    app, client = app_of(HELLO)
    parts = [
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
        {"type": "input_image", "image_url": "https://example.com/image"},
        {"type": "input_file", "file_url": "https://example.com/b.pdf", "filename": "b.pdf"},
        {"type": "input_file", "file_data": "aGk=", "filename": "c.txt"},
    ]

    await create(app, input=[{"role": "user", "content": parts}])

    contents = client.messages[0][0].contents
    assert [(each.type, each.media_type, each.name) for each in contents] == [
        ("uri", "image/png", None),
        ("uri", "image/*", None),
        ("uri", "application/pdf", "b.pdf"),
        ("data", "text/plain", "c.txt"),
    ]
    assert contents[0].additional_properties == {"openai": {"image_detail": "low"}}


async def test_a_file_by_its_id_is_refused() -> None:
    app, _ = app_of(HELLO)
    parts = [{"type": "input_file", "file_id": "file-1"}]

    reply = await creating(input=[{"role": "user", "content": parts}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "input")


async def test_an_output_of_a_clients_tool_may_hold_an_image() -> None:
    app, client = app_of((Call("clock", {}, "call_1"),), HELLO)
    url = "data:image/png;base64,aGk="
    first = await create(app, tools=[CLOCK])
    parts = [{"type": "input_text", "text": "12:00"}, {"type": "input_image", "image_url": url}]
    output = {"type": "function_call_output", "call_id": "call_1", "output": parts}

    await create(app, input=[output], previous_response_id=first["id"], tools=[CLOCK])

    (result,) = client.messages[1][-1].contents
    assert [item.type for item in result.items or ()] == ["text", "data"]
    assert result.result == "12:00"


async def test_a_refusal_is_a_refusal_in_the_next_turn_too() -> None:
    app, client = app_of(HELLO, HELLO)
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}

    await create(app, input=[refused, {"role": "user", "content": "hi"}])

    (content,) = client.messages[0][0].contents
    assert (content.text, content.additional_properties) == (
        "No.",
        {"model_output_kind": "refusal"},
    )


# Exceptions


class Raising(ScriptedClient):
    def __init__(self, error: Exception, cause: Exception | None = None) -> None:
        super().__init__([])
        self._error, self._cause = error, cause

    async def _said(self, steps: Any) -> Any:
        raise self._error from self._cause
        yield

    def _inner_get_response(self, **given: Any) -> Any:
        return self._build_response_stream(self._said(()))


async def test_a_filter_of_the_model_makes_the_response_incomplete() -> None:
    app = hosted(Agent(Raising(ChatClientContentFilterException("secret"))))

    response = await create(app)

    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "content_filter"}


async def test_a_provider_with_too_many_requests_is_a_429() -> None:
    class TooManyError(Exception):
        status_code = 429

    app = hosted(Agent(Raising(ChatClientException("secret"), TooManyError())))

    reply = await creating().run(app)

    assert (reply.status, reply.error_body["code"]) == (429, "rate_limit_exceeded")
    assert b"secret" not in reply.body


# Usage


async def test_usage_is_the_sum_of_all_calls_whichever_way_it_is_told() -> None:
    app, _ = app_of(
        (WEATHER, Spend(2, 3, cached_tokens=1)),
        (WEATHER, Spend(5, 7)),
        (Say(("Hi",)), Spend(11, 13)),
    )

    usage = (await create(app))["usage"]

    assert (usage["input_tokens"], usage["output_tokens"]) == (18, 23)
    assert usage["input_tokens_details"]["cached_tokens"] == 1
