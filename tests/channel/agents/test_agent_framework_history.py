"""Who keeps the history of an Agent Framework agent; what its providers see of a run, and of a cut one."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from agent_framework import (
    Agent,
    AgentSession,
    BaseAgent,
    ChatResponseUpdate,
    Content,
    ContextProvider,
    HistoryProvider,
    InMemoryHistoryProvider,
    Message,
)
from starlette.types import ASGIApp

from channel.agents.agent_framework import adapt
from tests.channel.agents.frameworks.agent_framework import ScriptedClient, weather
from tests.channel.agents.scripts import Call, Fail, Say, Spend, Step, Wait
from tests.channel.agents.test_matrix import CLOCK, HELLO, said
from tests.channel.asgi import create, creating, hosted, request
from tests.channel.instances import Instances


pytestmark = pytest.mark.anyio
BOUND: ContextVar[dict[str, Any] | None] = ContextVar("bound", default=None)
WEATHER = Call("weather", {"city": "Rome"}, "call_1")


class Recording(HistoryProvider):
    """A history provider that keeps by session, and what it was asked."""

    def __init__(self, source_id: str = "recording", **options: Any) -> None:
        super().__init__(source_id, **options)
        self.loaded: list[str | None] = []
        self.stored: dict[str | None, list[tuple[str, str]]] = {}
        self.bound: list[Any] = []

    async def get_messages(self, session_id: str | None, **_: Any) -> list[Message]:
        self.loaded.append(session_id)
        return [Message(role, [text]) for role, text in self.stored.get(session_id, ())]

    async def save_messages(
        self, session_id: str | None, messages: Sequence[Message], **_: Any
    ) -> None:
        self.bound.append(BOUND.get())
        texts = [(str(message.role), message.text) for message in messages]
        self.stored[session_id] = [*self.stored.get(session_id, ()), *texts]

    @contextmanager
    def bind_request_context(self, **given: Any) -> Iterator[None]:
        token = BOUND.set(given)
        try:
            yield
        finally:
            BOUND.reset(token)


class Remembering(ContextProvider):
    """A context provider that counts turns in its session, and tells the model."""

    def __init__(self) -> None:
        super().__init__("remembering")
        self.sessions: list[str] = []
        self.inputs: list[list[str]] = []

    async def before_run(
        self, *, session: AgentSession, context: Any, state: Any, **_: Any
    ) -> None:
        self.sessions.append(session.session_id)
        self.inputs.append([message.text for message in context.input_messages])
        state["turns"] = state.get("turns", 0) + 1
        context.extend_instructions("remembering", f"Turn {state['turns']}.")


class ServiceClient(ScriptedClient):
    """A client whose service keeps the conversation, and names it anew with each response."""

    STORES_BY_DEFAULT = True

    async def _said(self, steps: Sequence[Step]) -> Any:
        number = len(self.given)
        async for update in super()._said(steps):
            yield update
        yield ChatResponseUpdate(conversation_id=f"service_{number}")


def words(*texts: str) -> list[Sequence[Step]]:
    return [(Say((text,)), Spend(1, 1)) for text in texts]


def turns_of(client: ScriptedClient, call: int) -> list[tuple[str, str]]:
    return [text for text in client.seen[call].texts if text[0] != "system"]


async def chain(app: ASGIApp, *inputs: str, after: str | None = None) -> list[dict[str, Any]]:
    responses: list[dict[str, Any]] = []
    for text in inputs:
        response = await create(app, input=text, previous_response_id=after)
        responses.append(response)
        after = response["id"]
    return responses


# The host's history.


async def test_with_the_hosts_history_a_loading_provider_neither_loads_nor_stores() -> None:
    history, client = Recording(), ScriptedClient(words("one", "two"))
    app = hosted(Agent(client, context_providers=[history]))

    await chain(app, "first", "second")

    assert (history.loaded, history.stored) == ([], {})
    assert turns_of(client, 1) == [("user", "first"), ("assistant", "one"), ("user", "second")]


async def test_a_provider_that_only_stores_is_given_what_is_new_in_each_turn() -> None:
    audit = Recording(load_messages=False)
    app = hosted(Agent(ScriptedClient(words("one", "two")), context_providers=[audit]))

    first, _ = await chain(app, "first", "second")

    assert audit.stored == {
        first["id"]: [
            ("user", "first"),
            ("assistant", "one"),
            ("user", "second"),
            ("assistant", "two"),
        ]
    }


async def test_a_provider_that_stores_call_by_call_is_given_each_call_once() -> None:
    audit = Recording(load_messages=False)
    client = ScriptedClient([(WEATHER,), *words("It is sunny.", "Bye.")])
    agent = Agent(
        client,
        tools=[weather],
        context_providers=[audit],
        require_per_service_call_history_persistence=True,
    )

    await chain(hosted(agent), "first", "second")

    (stored,) = audit.stored.values()
    assert [role for role, _ in stored] == [
        *("user", "assistant", "tool", "assistant"),
        *("user", "assistant"),
    ]
    # The model itself is given the run so far, and then the host's history.
    assert client.seen[1].calls == [("call_1", "weather")]
    assert turns_of(client, 2) == [
        ("user", "first"),
        ("assistant", "It is sunny."),
        ("user", "second"),
    ]


async def test_an_agent_is_never_given_a_provider_of_its_own_for_all() -> None:
    agent = Agent(ScriptedClient(words("one", "two")))

    await chain(hosted(agent), "first", "second")

    assert agent.context_providers == []


async def test_other_providers_see_the_new_input_and_remember_by_their_session() -> None:
    provider, client = Remembering(), ScriptedClient(words("one", "two", "three"))
    app = hosted(Agent(client, "Be kind.", context_providers=[provider]))

    first, *_ = await chain(app, "first", "second", "third")

    assert provider.inputs == [["first"], ["second"], ["third"]]
    assert provider.sessions == [first["id"]] * 3
    assert client.seen[2].texts[0] == ("system", "Be kind.\nTurn 3.")


async def test_a_fork_remembers_its_own_past() -> None:
    provider, client = Remembering(), ScriptedClient(words("one", "two", "three"))
    app = hosted(Agent(client, context_providers=[provider]))

    first, _ = await chain(app, "first", "left")
    await chain(app, "right", after=first["id"])

    assert client.seen[2].texts[0] == ("system", "Turn 2.")


async def test_a_state_that_is_no_json_is_left_out_and_the_turn_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(Remembering):
        async def before_run(self, **given: Any) -> None:
            await super().before_run(**given)
            given["session"].state["odd"] = {"socket": {1, 2}}

    provider, client = Odd(), ScriptedClient(words("one", "two"))
    with pytest.warns(RuntimeWarning, match="unsupported type"):
        await chain(hosted(Agent(client, context_providers=[provider])), "first", "second")

    assert client.seen[1].texts[0] == ("system", "Turn 2.")
    assert "no JSON" in caplog.text


async def test_the_service_keeps_nothing_beside_the_hosts_history() -> None:
    client = ServiceClient(words("one", "two"))

    await chain(hosted(Agent(client)), "first", "second")

    assert [given["store"] for given in client.given] == [False, False]
    assert [given.get("conversation_id") for given in client.given] == [None, None]
    assert len(turns_of(client, 1)) == 3


@pytest.mark.parametrize("source", ["host", "agent", "service"])
async def test_a_conversation_of_the_owners_is_shared_with_nobody(source: Any) -> None:
    client = ServiceClient(words("one"))
    agent: Any = Agent(client, default_options={"conversation_id": "of the owner"})

    await create(hosted(adapt(agent, history_source=source)))

    assert client.given[0].get("conversation_id") is None
    assert agent.default_options["conversation_id"] == "of the owner"


async def test_a_client_that_stores_nothing_is_not_told_to_store_nothing() -> None:
    client = ScriptedClient(words("one"))

    await create(hosted(Agent(client)))

    assert "store" not in client.given[0]


async def test_an_agent_of_another_kind_with_a_history_of_its_own_is_refused() -> None:
    class Custom(BaseAgent):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(TypeError, match="history_source='agent'"):
        adapt(Custom(context_providers=[Recording()]))


async def test_a_summary_is_made_of_the_hosts_history_and_no_provider_knows() -> None:
    history, client = Recording(), ScriptedClient(words("one", "two", "A summary."))
    app = hosted(adapt(Agent(client, context_providers=[history]), history_source="agent"))
    _, second = await chain(app, "first", "second")
    before = dict(history.stored)

    body = {"model": "agent", "previous_response_id": second["id"]}
    reply = await request("POST", "/v1/responses/compact", body).run(app)

    assert reply.status == 200
    assert [text for _, text in turns_of(client, 2)][:4] == ["first", "one", "second", "two"]
    assert client.given[2]["tool_choice"] == "none"
    assert history.stored == before


# The agent's history.


async def test_with_the_agents_history_turn_three_sees_turn_one() -> None:
    history, client = Recording(), ScriptedClient(words("one", "two", "three"))
    app = hosted(adapt(Agent(client, context_providers=[history]), history_source="agent"))

    first, *_ = await chain(app, "first", "second", "third")

    assert [text for _, text in turns_of(client, 2)] == ["first", "one", "second", "two", "third"]
    assert history.loaded == [first["id"]] * 3
    assert len(history.stored[first["id"]]) == 6


async def test_without_a_provider_the_agents_history_is_its_session_and_forks_are_apart() -> None:
    client = ScriptedClient(words("one", "two", "three"))
    agent = Agent(client)
    app = hosted(adapt(agent, history_source="agent"))

    first, _ = await chain(app, "first", "left")
    await chain(app, "right", after=first["id"])

    assert [text for _, text in turns_of(client, 2)] == ["first", "one", "right"]
    assert agent.context_providers == []


async def test_forks_share_what_a_provider_keeps_by_the_session() -> None:
    history, client = Recording(), ScriptedClient(words("one", "two", "three"))
    app = hosted(adapt(Agent(client, context_providers=[history]), history_source="agent"))

    first, _ = await chain(app, "first", "left")
    await chain(app, "right", after=first["id"])

    assert [text for _, text in turns_of(client, 2)] == ["first", "one", "left", "two", "right"]


async def test_two_callers_never_share_a_session() -> None:
    history = Recording()
    agent = Agent(ScriptedClient(words("one", "two")), context_providers=[history])
    app = hosted(adapt(agent, history_source="agent"))

    await create(app)
    await create(app, key="key-beta")

    assert len(set(history.loaded)) == 2


async def test_what_was_in_a_conversation_before_the_agent_comes_from_the_host() -> None:
    history, client = Recording(), ScriptedClient(words("one", "two"))
    app = hosted(adapt(Agent(client, context_providers=[history]), history_source="agent"))
    items = [{"role": "user", "content": "before"}]
    made = await request("POST", "/v1/conversations", {"items": items}).run(app)

    for text in ("first", "second"):
        await create(app, input=text, conversation=made.json["id"])

    assert [text for _, text in turns_of(client, 0)] == ["before", "first"]
    assert [text for _, text in turns_of(client, 1)] == ["before", "first", "one", "second"]


async def test_a_clients_tool_goes_through_the_agents_history() -> None:
    call = Call("clock", {"zone": "UTC"}, "call_1")
    client = ScriptedClient([(call,), *words("It is noon.")])
    app = hosted(adapt(Agent(client), history_source="agent"))

    first = await create(app, tools=[CLOCK])
    output = {"type": "function_call_output", "call_id": "call_1", "output": "12:00"}
    second = await create(app, input=[output], previous_response_id=first["id"], tools=[CLOCK])

    assert said(second) == "It is noon."
    assert client.seen[1].calls == [("call_1", "clock")]
    assert turns_of(client, 1)[-1] == ("tool", "12:00")


# The service's history.


async def test_with_the_services_history_only_its_id_and_the_new_input_are_given() -> None:
    history, client = Recording(), ServiceClient(words("one", "two", "three"))
    app = hosted(adapt(Agent(client, context_providers=[history]), history_source="service"))

    await chain(app, "first", "second", "third")

    assert [given.get("conversation_id") for given in client.given] == [
        *(None, "service_1", "service_2"),
    ]
    assert [given["store"] for given in client.given] == [True] * 3
    assert turns_of(client, 2) == [("user", "third")]
    # A provider of the agent's own is a second copy: it stores, and loads nothing.
    assert history.loaded == []
    (stored,) = history.stored.values()
    assert len(stored) == 6


async def test_a_fork_goes_on_with_the_services_id_of_its_own_past() -> None:
    client = ServiceClient(words("one", "two", "three"))
    app = hosted(adapt(Agent(client), history_source="service"))

    first, _ = await chain(app, "first", "left")
    await chain(app, "right", after=first["id"])

    assert client.given[2]["conversation_id"] == "service_1"


async def test_the_services_id_is_told_to_no_client() -> None:
    app = hosted(adapt(Agent(ServiceClient(words("one"))), history_source="service"))

    wire = await creating(stream=True).run(app)

    assert b"service_1" not in wire.body


async def test_a_service_that_names_no_conversation_is_given_the_hosts_history() -> None:
    client = ScriptedClient(words("one", "two"))
    app = hosted(adapt(Agent(client), history_source="service"))

    await chain(app, "first", "second")

    assert [text for _, text in turns_of(client, 1)] == ["first", "one", "second"]


async def test_another_source_is_refused() -> None:
    source: Any = "agent_server"
    with pytest.raises(ValueError, match="'host', 'agent', 'service'"):
        adapt(Agent(ScriptedClient([])), history_source=source)


# What a provider is told, and what it is not.


async def test_a_provider_is_bound_to_the_response_for_the_whole_run() -> None:
    history, client = Recording(), ScriptedClient(words("one", "two"))
    app = hosted(adapt(Agent(client, context_providers=[history]), history_source="agent"))

    first, second = await chain(app, "first", "second")

    assert history.bound == [
        {"response_id": first["id"], "previous_response_id": None},
        {"response_id": second["id"], "previous_response_id": first["id"]},
    ]
    assert BOUND.get() is None


async def test_the_binding_ends_with_a_client_that_goes() -> None:
    wait, history = Wait(), Recording()
    client = ScriptedClient([(Say(("Well",)), wait), *words("two")])
    app = hosted(adapt(Agent(client, context_providers=[history]), history_source="agent"))
    wire = creating(stream=True)
    running = wire.start(app)

    await asyncio.wait_for(wire.until("Well"), 30)
    wire.hang_up()
    await asyncio.wait_for(running, 30)
    await create(app)

    assert len(history.bound) == 1


PER_CALL = pytest.mark.parametrize("per_call", [False, True])


@PER_CALL
async def test_a_client_that_goes_leaves_nothing_with_the_agents_providers(per_call: bool) -> None:
    wait, history = Wait(), Recording()
    app = hosted(recorded([(Say(("Well",)), wait)], history, per_call=per_call))
    wire = creating(stream=True)
    running = wire.start(app)

    await asyncio.wait_for(wire.until("Well"), 30)
    wire.hang_up()
    await asyncio.wait_for(running, 30)

    assert wait.ended.is_set()
    assert len(history.loaded) == 1
    assert history.stored == {}


@PER_CALL
async def test_a_client_that_goes_between_two_words_leaves_nothing(per_call: bool) -> None:
    history = Recording()
    app = hosted(recorded([(Say(("Well",) * 1000),)], history, per_call=per_call))
    wire = creating(stream=True)
    wire.gate.clear()  # it reads nothing, so the run is held back at a word
    running = wire.start(app)

    for _ in range(50):
        await asyncio.sleep(0)
    wire.hang_up()
    wire.gate.set()
    await asyncio.wait_for(running, 30)

    assert len(history.loaded) == 1
    assert history.stored == {}


@PER_CALL
async def test_a_failure_of_the_model_leaves_nothing(per_call: bool) -> None:
    history = Recording()
    app = hosted(recorded([(Say(("Well",)), Fail("secret"))], history, per_call=per_call))

    response = await create(app)

    assert response["status"] == "failed"
    assert history.stored == {}


@PER_CALL
async def test_a_turn_that_is_cancelled_leaves_nothing(per_call: bool) -> None:
    wait, history = Wait(), Recording()
    agent = recorded([(Say(("Well",)), wait)], history, per_call=per_call)
    both = Instances(agent, has_cancellable_streams=True)
    wire = creating(stream=True)
    running = wire.start(both.a.app)
    await asyncio.wait_for(wire.until("Well"), 30)
    response_id = wire.body.decode().partition('"id":"')[2].partition('"')[0]

    cancelled = await both.b.cancel(response_id)
    await asyncio.wait_for(running, 30)

    assert cancelled.json["status"] == "cancelled"
    assert history.stored == {}


async def test_an_error_that_the_run_reports_leaves_nothing() -> None:
    class Reporting(ScriptedClient):
        async def _said(self, steps: Sequence[Step]) -> Any:
            async for update in super()._said(steps):
                yield update
            yield ChatResponseUpdate(contents=[Content.from_error(message="secret")])

    history = Recording()
    agent = Agent(Reporting(words("Well")), context_providers=[history])

    response = await create(hosted(adapt(agent, history_source="agent")))

    assert response["status"] == "failed"
    assert "secret" not in str(response)
    assert history.stored == {}


async def test_a_word_that_the_host_refuses_leaves_nothing() -> None:
    def refuse(event: Any) -> Any:
        raise LookupError

    history = Recording()
    app = hosted(recorded(words("Well"), history), stream_transform_hook=refuse)

    reply = await creating().run(app)

    assert reply.status == 500
    assert history.stored == {}


@PER_CALL
async def test_a_whole_answer_is_stored_once(per_call: bool) -> None:
    history = Recording()
    app = hosted(recorded(words("Hello."), history, per_call=per_call))

    await create(app)

    assert [*history.stored.values()] == [[("user", "hi"), ("assistant", "Hello.")]]


def recorded(
    script: Sequence[Sequence[Step]], history: Recording, *, per_call: bool = False
) -> Any:
    agent = Agent(
        ScriptedClient(script),
        context_providers=[history],
        require_per_service_call_history_persistence=per_call,
    )
    return adapt(agent, history_source="agent")


async def test_a_storage_that_fails_fails_the_turn() -> None:
    class Broken(Recording):
        async def save_messages(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("secret")

    app = hosted(recorded([HELLO], Broken()))

    wire = await creating(stream=True).run(app)

    assert wire.types[-1] == "failed"
    assert b"secret" not in wire.body


async def test_a_provider_of_the_frameworks_own_is_no_different() -> None:
    client = ScriptedClient(words("one", "two"))
    agent = Agent(client, context_providers=[InMemoryHistoryProvider()])

    await chain(hosted(agent), "first", "second")

    assert len(turns_of(client, 1)) == 3
