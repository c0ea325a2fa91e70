"""Agent Framework's history and checkpoints in the table: with its real agents and workflows, on real engines."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Never

import pytest
from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    Executor,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    Workflow,
    WorkflowBuilder,
    WorkflowCheckpoint,
    WorkflowCheckpointException,
    WorkflowContext,
    handler,
    tool,
)

from channel.agents.agent_framework import adapt
from channel.agents.agent_framework.workflow import adapt_workflow
from channel.isolation import (
    IsolationKeys,
    reset_current_isolation_keys,
    set_current_isolation_keys,
)
from channel.ports import HistoryTooLargeError, StoreError
from infra.agent_framework import (
    DynamoDBCheckpointStorage,
    DynamoDBHistoryProvider,
    HistoryNotWholeError,
)
from infra.dynamodb.client import Client
from infra.dynamodb.store import MONTH_S, DynamoDBResponseStore
from infra.settings import SettingsError
from tests.channel.asgi import create, creating, hosted
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import KINDS, OUTAGE, Died, Fault, Meter
from tests.infra.turns import noise, own_secret


pytestmark = pytest.mark.anyio

BOB = IsolationKeys("bob")
LARGE = noise(600_000)
"""A text that takes two chunks, compressed."""
Open = Callable[..., DynamoDBHistoryProvider]
OpenStorage = Callable[..., DynamoDBCheckpointStorage]


@contextmanager
def calling(keys: IsolationKeys | None) -> Iterator[None]:
    """Be in a request of this caller."""
    token = set_current_isolation_keys(keys)
    try:
        yield
    finally:
        reset_current_isolation_keys(token)


@pytest.fixture(params=["moto", "dynalite"])
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.getfixturevalue(f"{request.param}_client")
    return found


@pytest.fixture
def options(clock: MovableClock) -> dict[str, Any]:
    return {"table": engines.TABLE, "secret": own_secret(), "clock": clock, "retention_s": MONTH_S}


@pytest.fixture
def open_provider(client: Client, options: dict[str, Any]) -> Open:
    def open_it(**others: Any) -> DynamoDBHistoryProvider:
        return DynamoDBHistoryProvider(**{"client": client, **options, **others})

    return open_it


@pytest.fixture
def open_storage(client: Client, options: dict[str, Any]) -> OpenStorage:
    def open_it(scope: str = "a session", **others: Any) -> DynamoDBCheckpointStorage:
        return DynamoDBCheckpointStorage(scope, **{"client": client, **options, **others})

    return open_it


class Model(FunctionInvocationLayer[Any], ChatMiddlewareLayer[Any], BaseChatClient[Any]):
    """A model that says these things, one a call; a text is said in two pieces."""

    def __init__(self, *script: str | Content | Exception) -> None:
        super().__init__()
        self.script = [*script]
        self.seen: list[list[str]] = []

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **_: Any
    ) -> Any:
        self.seen.append([message.text for message in messages])
        said = ResponseStream(self._say(self.script.pop(0)), finalizer=ChatResponse.from_updates)
        return said if stream else said.get_final_response()

    async def _say(self, said: str | Content | Exception) -> AsyncIterator[ChatResponseUpdate]:
        pieces: list[str | Content | Exception] = [said]
        if isinstance(said, str):
            pieces = [said[: len(said) // 2], said[len(said) // 2 :]]
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            content = Content.from_text(piece) if isinstance(piece, str) else piece
            yield ChatResponseUpdate(contents=[content], role="assistant")


@tool(approval_mode="never_require")
async def weather(city: str) -> str:
    return f"sunny in {city}"


def agent(model: Model, provider: DynamoDBHistoryProvider) -> Agent[Any]:
    return Agent(model, "Be kind.", tools=[weather], context_providers=[provider])


async def ask(asked: Agent[Any], text: str, session: str = "s", *, stream: bool = False) -> str:
    if not stream:
        return (await asked.run(text, session=AgentSession(session_id=session))).text
    said = asked.run(text, stream=True, session=AgentSession(session_id=session))
    return "".join([update.text async for update in said])


def texts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


async def fails(operation: Awaitable[object]) -> bool:
    try:
        await operation
    except (StoreError, Died):
        return True
    return False


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_remembers_its_session(
    ann: IsolationKeys, open_provider: Open, stream: bool
) -> None:
    model = Model("Hello Ann.", "You are Ann.")
    with calling(ann):
        await ask(agent(model, open_provider()), "I am Ann.", stream=stream)
        # Another process, another agent, the same session.
        said = await ask(agent(model, open_provider()), "Who am I?", stream=stream)

        assert said == "You are Ann."
        assert model.seen[1] == ["I am Ann.", "Hello Ann.", "Who am I?"]
        assert texts(await open_provider().get_messages("s")) == [
            ("user", "I am Ann."),
            ("assistant", "Hello Ann."),
            ("user", "Who am I?"),
            ("assistant", "You are Ann."),
        ]


async def test_everything_that_a_message_holds_comes_back(
    ann: IsolationKeys, open_provider: Open
) -> None:
    provider = open_provider(isolation=lambda: ann)
    kept = [
        Message("user", [Content.from_text("A cat?"), Content.from_data(b"\x89PNG", "image/png")]),
        Message(
            "assistant",
            [
                Content.from_text_reasoning(text="Hm.", protected_data="signed"),
                Content.from_function_call("c1", "weather", arguments='{"city": "Rome"}'),
            ],
            author_name="A",
            message_id="m1",
            additional_properties={"hosting": {"channel": "responses"}},
        ),
        Message("tool", [Content.from_function_result("c1", result="sunny ☀ \U0001f600")]),
    ]

    await provider.save_messages("s", kept)

    found = await provider.get_messages("s")
    assert [message.to_dict() for message in found] == [message.to_dict() for message in kept]


async def test_a_run_that_is_large_comes_back_whole(
    ann: IsolationKeys, open_provider: Open
) -> None:
    provider = open_provider(isolation=lambda: ann)

    for text in (LARGE, "small", LARGE):
        await provider.save_messages("s", [Message("user", [text])])

    assert [text for _, text in texts(await provider.get_messages("s"))] == [LARGE, "small", LARGE]


async def test_a_foreign_tenant_learns_nothing_of_a_session(
    ann: IsolationKeys, open_provider: Open
) -> None:
    provider = open_provider()
    with calling(ann):
        await provider.save_messages("s", [Message("user", ["ann's"])])

    for foreign in (BOB, IsolationKeys("ann", "a chat")):
        with calling(foreign):
            assert await provider.get_messages("s") == []
            with provider.bind_request_context(response_id="r2", previous_response_id="r1"):
                assert await provider.get_messages("s") == []
                with pytest.raises(HistoryNotWholeError) as foreign_error:
                    await provider.get_messages("s", state={"last": 1})
                with pytest.raises(HistoryNotWholeError) as unknown_error:
                    await provider.get_messages("unknown", state={"last": 1})
            assert str(foreign_error.value) == str(unknown_error.value)
            await provider.save_messages("s", [Message("user", ["another's"])])
    with calling(ann):
        assert texts(await provider.get_messages("s")) == [("user", "ann's")]


@pytest.mark.parametrize("nobody", [None, IsolationKeys(), IsolationKeys(chat_key="a chat")])
async def test_without_a_caller_nothing_is_read_or_written(
    ann: IsolationKeys, open_provider: Open, open_storage: OpenStorage, nobody: IsolationKeys | None
) -> None:
    provider, storage = open_provider(), open_storage()
    with calling(nobody):
        with pytest.raises(ValueError, match="isolation keys"):
            await provider.get_messages("s")
        with pytest.raises(ValueError, match="isolation keys"):
            await provider.save_messages("s", [Message("user", ["everybody's"])])
        with pytest.raises(ValueError, match="isolation keys"):
            await ask(agent(Model("Hello."), provider), "Hi")
        with pytest.raises(ValueError, match="isolation keys"):
            await storage.save(WorkflowCheckpoint("w", "hash"))
        for found in (
            storage.load("an id"),
            storage.list_checkpoints(workflow_name="w"),
            storage.list_checkpoint_ids(workflow_name="w"),
            storage.get_latest(workflow_name="w"),
            storage.delete("an id"),
        ):
            with pytest.raises(ValueError, match="isolation keys"):
                await found


async def test_without_a_session_nothing_is_kept(ann: IsolationKeys, open_provider: Open) -> None:
    provider = open_provider(isolation=lambda: ann)
    for no_session in (None, ""):
        with pytest.raises(ValueError, match="by session"):
            await provider.get_messages(no_session)
        with pytest.raises(ValueError, match="by session"):
            await provider.save_messages(no_session, [Message("user", ["Hi"])])


async def test_names_of_sessions_are_any_text(ann: IsolationKeys, open_provider: Open) -> None:
    provider = open_provider(isolation=lambda: ann)
    names = ["a", "a#b", "../../etc", "M#000000000001", "\ud800", "\0", "x" * 10_000]
    for name in names:
        await provider.save_messages(name, [Message("user", [f"of {names.index(name)}"])])

    for name in names:
        assert texts(await provider.get_messages(name)) == [("user", f"of {names.index(name)}")]


async def test_the_order_is_a_counters_and_no_clocks(
    ann: IsolationKeys, open_provider: Open, clock: MovableClock
) -> None:
    provider = open_provider(isolation=lambda: ann)
    for number in range(12):
        await provider.save_messages("s", [Message("user", [str(number)])])
        clock.now -= 1000

    assert [text for _, text in texts(await provider.get_messages("s"))] == [*map(str, range(12))]


async def test_runs_at_the_same_time_are_all_kept(ann: IsolationKeys, open_provider: Open) -> None:
    providers = [open_provider(isolation=lambda: ann) for _ in range(4)]

    await asyncio.gather(
        *(
            provider.save_messages("s", [Message("user", [str(n)]), Message("assistant", ["ok"])])
            for n, provider in enumerate(providers)
        )
    )

    found = texts(await providers[0].get_messages("s"))
    assert {text for role, text in found if role == "user"} == {"0", "1", "2", "3"}
    assert [role for role, _ in found] == ["user", "assistant"] * 4


async def test_forks_do_not_see_each_other(ann: IsolationKeys, open_provider: Open) -> None:
    model = Model("one", "left", "right", "left again")
    kept: dict[str, dict[str, Any]] = {}

    async def turn(text: str, response_id: str, previous: str | None) -> list[str]:
        """Be the host, which keeps the session of each response."""
        provider = open_provider()
        session = AgentSession(session_id="s")
        if previous is not None:
            session = AgentSession.from_dict(json.loads(json.dumps(kept[previous])))
        with provider.bind_request_context(
            response_id=response_id, previous_response_id=previous, conversation_id=None
        ):
            await agent(model, provider).run(text, session=session)
        kept[response_id] = session.to_dict()
        return model.seen[-1]

    with calling(ann):
        await turn("first", "r1", None)
        assert await turn("to the left", "r2", "r1") == ["first", "one", "to the left"]
        assert await turn("to the right", "r3", "r1") == ["first", "one", "to the right"]
        assert await turn("on", "r4", "r2") == ["first", "one", "to the left", "left", "on"]


async def test_runs_of_one_response_belong_together(
    ann: IsolationKeys, open_provider: Open
) -> None:
    provider = open_provider(isolation=lambda: ann)
    state: dict[str, Any] = {}
    with provider.bind_request_context(response_id="r1"):
        for text in ("one", "two"):
            await provider.save_messages("s", [Message("user", [text])], state=state)
        await provider.save_messages("s", [], state=state)

    with provider.bind_request_context(response_id="r2", previous_response_id="r1"):
        found = texts(await provider.get_messages("s", state=state))

    assert [text for _, text in found] == ["one", "two"]


@pytest.mark.parametrize("last", [2, 99, -1])
async def test_a_turn_that_continues_what_is_gone_is_refused(
    ann: IsolationKeys, open_provider: Open, last: int
) -> None:
    provider = open_provider(isolation=lambda: ann)
    await provider.save_messages("s", [Message("user", ["one"])])

    with (
        provider.bind_request_context(response_id="r2", previous_response_id="r1"),
        pytest.raises(HistoryNotWholeError),
    ):
        await provider.get_messages("s", state={"last": last})


@pytest.mark.parametrize("pulls", [1, 2, 3, 4])
async def test_a_stream_that_is_left_early_is_not_kept(
    ann: IsolationKeys, open_provider: Open, caplog: pytest.LogCaptureFixture, pulls: int
) -> None:
    call = Content.from_function_call("c1", "weather", arguments='{"city": "Rome"}')
    model = Model(call, "It is sunny.", "Hello.")
    with calling(ann):
        asked = agent(model, open_provider())
        stream = asked.run("Hi", stream=True, session=AgentSession(session_id="s"))
        for _ in range(pulls):  # the call, the tool's result, two pieces of text
            await anext(stream)
        await stream.close()  # the framework finalises it as if it had ended

        assert await open_provider().get_messages("s") == []
        (record,) = [r for r in caplog.records if r.name.startswith("infra")]
        assert record.getMessage() == "the messages of a run that was left early are not kept"
        model.script = ["Hello."]
        await ask(asked, "Hi", stream=True)
        assert len(await open_provider().get_messages("s")) == 2


async def test_a_model_that_fails_leaves_nothing(ann: IsolationKeys, open_provider: Open) -> None:
    for stream in (False, True):
        with calling(ann), pytest.raises(RuntimeError, match="secret"):
            await ask(agent(Model(RuntimeError("secret")), open_provider()), "Hi", stream=stream)

    with calling(ann):
        assert await open_provider().get_messages("s") == []


async def test_with_history_for_each_call_a_call_that_is_left_early_is_not_kept(
    ann: IsolationKeys, open_provider: Open
) -> None:
    provider = open_provider()
    asked = Agent(
        Model("Hello."),
        context_providers=[provider],
        require_per_service_call_history_persistence=True,
    )
    with calling(ann):
        stream = asked.run("Hi", stream=True, session=AgentSession(session_id="s"))
        await anext(stream)
        await stream.close()

        assert await provider.get_messages("s") == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_save_that_fails_fails_the_run(
    ann: IsolationKeys, options: dict[str, Any], fragile_client: Any, stream: bool
) -> None:
    provider = DynamoDBHistoryProvider(client=fragile_client, **options)
    with (
        calling(ann),
        Fault(fragile_client, OUTAGE, at=2),  # the history, the last run; the row
        pytest.raises(StoreError),
    ):
        await ask(agent(Model("Hello."), provider), "Hi", stream=stream)


async def test_messages_that_only_go_in_are_kept_by_one_that_does_not_load(
    ann: IsolationKeys, open_provider: Open
) -> None:
    audit = open_provider(source_id="audit", load_messages=False, store_outputs=False)
    with calling(ann):
        await ask(agent(Model("Hello."), audit), "Hi")

        assert texts(await audit.get_messages("s")) == [("user", "Hi")]


async def test_a_session_that_has_expired_begins_anew(
    ann: IsolationKeys, open_provider: Open, clock: MovableClock
) -> None:
    provider = open_provider(isolation=lambda: ann)
    await provider.save_messages("s", [Message("user", ["old"])])
    clock.now += MONTH_S + 1
    assert await provider.get_messages("s") == []

    await provider.save_messages("s", [Message("user", ["new"])])
    await provider.save_messages("s", [Message("user", ["newer"])])

    assert texts(await provider.get_messages("s")) == [("user", "new"), ("user", "newer")]


async def test_a_session_that_has_expired_in_part_is_refused_and_not_shorter(
    ann: IsolationKeys, open_provider: Open, clock: MovableClock
) -> None:
    provider = open_provider(isolation=lambda: ann)
    for text in ("one", "two"):
        await provider.save_messages("s", [Message("user", [text])])
        clock.now += MONTH_S * 0.7

    with pytest.raises(HistoryNotWholeError, match="expired"):
        await provider.get_messages("s")


async def test_a_session_that_is_used_lives_on(
    ann: IsolationKeys, open_provider: Open, clock: MovableClock
) -> None:
    provider = open_provider(isolation=lambda: ann)
    await provider.save_messages("s", [Message("user", [LARGE])])
    for number in range(3):
        clock.now += MONTH_S * 0.6
        await provider.get_messages("s")
        await provider.save_messages("s", [Message("user", [str(number)])])

    found = texts(await provider.get_messages("s"))
    assert [text for _, text in found] == [LARGE, "0", "1", "2"]


async def test_a_history_that_is_too_large_is_refused(
    ann: IsolationKeys, open_provider: Open
) -> None:
    provider = open_provider(isolation=lambda: ann)
    for _ in range(3):
        await provider.save_messages("s", [Message("user", ["x" * 30_000_000])])

    with pytest.raises(HistoryTooLargeError):
        await provider.get_messages("s")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_that_is_cut_off_anywhere_is_kept_as_a_whole_or_not_at_all(
    dynalite_client: Any,
    fragile_client: Any,
    ann: IsolationKeys,
    options: dict[str, Any],
    kind: str,
) -> None:
    healthy = DynamoDBHistoryProvider(client=dynalite_client, isolation=lambda: ann, **options)
    fragile = DynamoDBHistoryProvider(client=fragile_client, isolation=lambda: ann, **options)
    outcomes: list[tuple[bool, int]] = []
    at = 0
    while True:
        session = f"{kind} {at}"
        before = [Message("user", ["before"])]
        await healthy.save_messages(session, before)
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(fragile.save_messages(session, [Message("user", [LARGE])]))
        found = texts(await healthy.get_messages(session))
        if not fault.has_struck:
            break
        assert found in ([("user", "before")], [("user", "before"), ("user", LARGE)])
        outcomes.append((failed, len(found)))
        await healthy.save_messages(session, [Message("user", ["after"])])
        assert texts(await healthy.get_messages(session)) == [*found, ("user", "after")]
        at += 1

    # The run before, two chunks, and then the row, which is what makes it there.
    is_after = kind.endswith("after_success")
    assert outcomes == [(True, 1)] * 3 + [(True, 2 if is_after else 1)]
    assert len(found) == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_history_that_is_cut_off_anywhere_is_whole_or_an_error(
    dynalite_client: Any,
    fragile_client: Any,
    ann: IsolationKeys,
    options: dict[str, Any],
    kind: str,
) -> None:
    healthy = DynamoDBHistoryProvider(client=dynalite_client, isolation=lambda: ann, **options)
    fragile = DynamoDBHistoryProvider(client=fragile_client, isolation=lambda: ann, **options)
    for text in ("one", LARGE):
        await healthy.save_messages("s", [Message("user", [text])])
    at = 0
    while True:
        found = None
        with Fault(fragile_client, kind, at) as fault:
            try:
                found = await fragile.get_messages("s")
            except (StoreError, Died):
                assert fault.has_struck
        if not fault.has_struck:
            break
        assert found is None
        at += 1

    assert at == 2  # the rows, and the chunks of one
    assert found is not None
    assert [text for _, text in texts(found)] == ["one", LARGE]


async def test_what_a_run_costs(
    dynalite_endpoint: str, ann: IsolationKeys, options: dict[str, Any]
) -> None:
    with engines.connected(None, dynalite_endpoint) as client:
        provider = DynamoDBHistoryProvider(client=client, isolation=lambda: ann, **options)
        await provider.save_messages("s", [Message("user", ["Hi"])])
        meter = Meter(client)

        await provider.get_messages("s")
        await provider.save_messages("s", [Message("user", ["Hi"]), Message("assistant", ["Hi"])])

        assert meter.take() == {"Query": [1.0, 1.0], "PutItem": [1.0]}


async def test_the_table_is_that_of_the_environment(
    dynalite_endpoint: str,
    dynalite_client: Any,
    ann: IsolationKeys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DYNAMODB_ENDPOINT", dynalite_endpoint)
    monkeypatch.setenv("TABLE_NAME", engines.TABLE)
    monkeypatch.setenv("RETENTION_DAYS", "7")
    with calling(ann):
        provider = DynamoDBHistoryProvider()
        storage = DynamoDBCheckpointStorage("environment")

        await provider.save_messages("environment", [Message("user", ["Hi"])])
        await storage.save(WorkflowCheckpoint("w", "hash"))

        assert provider._place.retention_s == 7 * 24 * 3600
        found = DynamoDBHistoryProvider(client=dynalite_client, table=engines.TABLE)
        assert texts(await found.get_messages("environment")) == [("user", "Hi")]
        latest = DynamoDBCheckpointStorage(
            "environment", client=dynalite_client, table=engines.TABLE
        )
        assert await latest.get_latest(workflow_name="w") is not None


async def test_an_environment_without_a_table_is_told_in_one_sentence(
    ann: IsolationKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DYNAMODB_ENDPOINT", "TABLE_NAME"):
        monkeypatch.delenv(name, raising=False)
    provider = DynamoDBHistoryProvider(isolation=lambda: ann)  # may be made by an import

    with pytest.raises(SettingsError, match="The setting TABLE_NAME is not set"):
        await provider.get_messages("s")


# Behind the host.


class Apps:
    """Apps of one agent over one store, each as another environment would make it."""

    def __init__(self, client: Client, options: dict[str, Any]) -> None:
        self.provider = DynamoDBHistoryProvider(client=client, **options)
        given = {name: options[name] for name in ("secret", "clock")}
        self.store = DynamoDBResponseStore(client, engines.TABLE, **given)

    def of(self, model: Model, *, is_workflow: bool, **others: Any) -> Any:
        asked = agent(model, self.provider)
        if not is_workflow:
            return hosted(adapt(asked, history_source="agent"), self.store, **others)
        asked.name = "A"
        workflow = WorkflowBuilder(name="w", start_executor=asked).build()
        return hosted(adapt_workflow(workflow), self.store, **others)


@pytest.fixture
def apps(client: Client, options: dict[str, Any]) -> Apps:
    return Apps(client, options)


def said(response: dict[str, Any]) -> str:
    return "".join(
        part["text"] for item in response["output"] for part in item.get("content") or ()
    )


@pytest.mark.parametrize("is_workflow", [False, True])
async def test_behind_the_host_each_chain_and_each_tenant_has_its_own_history(
    apps: Apps, *, is_workflow: bool
) -> None:
    model = Model("one", "left", "right", "on", "beta's")
    app = apps.of(model, is_workflow=is_workflow)

    first = await create(app, input="first")
    left = await create(app, input="to the left", previous_response_id=first["id"])
    await create(app, input="to the right", previous_response_id=first["id"])
    on = await create(app, input="on", previous_response_id=left["id"])
    await create(app, input="first", key="key-beta")

    assert said(on) == "on"
    assert [each[-5:] for each in model.seen] == [
        ["first"],
        ["first", "one", "to the left"],
        ["first", "one", "to the right"],
        ["first", "one", "to the left", "left", "on"],
        ["first"],
    ]


@pytest.mark.parametrize("is_workflow", [False, True])
async def test_a_background_turn_has_the_callers_history(apps: Apps, *, is_workflow: bool) -> None:
    model = Model("one", "two")
    app = apps.of(model, is_workflow=is_workflow)
    first = await create(app, input="first")

    again = creating(input="second", previous_response_id=first["id"], background=True, stream=True)
    response = (await again.run(app)).events[-1]["response"]

    assert (response["status"], said(response)) == ("completed", "two")
    assert model.seen[1] == ["first", "one", "second"]


async def test_the_state_of_a_workflow_is_kept_with_its_response(
    client: Client, options: dict[str, Any]
) -> None:
    given = {name: options[name] for name in ("secret", "clock")}

    def app() -> Any:
        """Be another environment."""
        store = DynamoDBResponseStore(client, engines.TABLE, **given)
        return hosted(adapt_workflow(counter), store)

    first = await create(app(), input=LARGE)  # more than one row can hold
    second = await create(app(), input="two", previous_response_id=first["id"])
    foreign = await creating(previous_response_id=first["id"], key="key-beta").run(app())

    assert said(second) == f"{LARGE} two"
    assert foreign.error_body["code"] == "previous_response_not_found"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_turn_of_a_workflow_that_is_not_kept_leaves_no_state(
    dynalite_client: Any, fragile_client: Any, options: dict[str, Any], kind: str
) -> None:
    given = {name: options[name] for name in ("secret", "clock")}
    healthy = hosted(
        adapt_workflow(counter), DynamoDBResponseStore(dynalite_client, engines.TABLE, **given)
    )
    fragile = hosted(
        adapt_workflow(counter), DynamoDBResponseStore(fragile_client, engines.TABLE, **given)
    )
    first = await create(healthy, input="one")
    at = 0
    while True:
        body = creating(input="cut", previous_response_id=first["id"])
        with Fault(fragile_client, kind, at) as fault:
            try:
                reply = await body.run(fragile)
            except (Died, BaseExceptionGroup):
                assert kind.startswith("death")
        again = await create(healthy, input="two", previous_response_id=first["id"])
        assert said(again) == "one two"
        if not fault.has_struck:
            break
        at += 1

    assert at == 2  # the history, and the turn
    assert said(reply.json) == "one cut"


# Checkpoints of workflows that the user runs.


@dataclass
class Own:
    """A class of the user's own, which a checkpoint holds."""

    value: int


class Counter(Executor):
    """Counts what it is told over all runs."""

    def __init__(self) -> None:
        super().__init__(id="counter")
        self.told: list[str] = []

    @handler
    async def take(self, text: str, ctx: WorkflowContext[Never, str]) -> None:
        self.told.append(text)
        await ctx.yield_output(" ".join(self.told))

    async def on_checkpoint_save(self) -> dict[str, Any]:
        return {"told": self.told, "pair": ("a", 1)}

    async def on_checkpoint_restore(self, state: dict[str, Any]) -> None:
        self.told = state["told"]


def counter() -> Workflow:
    return WorkflowBuilder(name="counter", start_executor=Counter()).build()


async def test_a_workflow_goes_on_from_its_latest_checkpoint(
    ann: IsolationKeys, open_storage: OpenStorage
) -> None:
    with calling(ann):
        await counter().run("one", checkpoint_storage=open_storage())
        latest = await open_storage().get_latest(workflow_name="counter")
        assert latest is not None

        another = counter()
        await another.run(checkpoint_id=latest.checkpoint_id, checkpoint_storage=open_storage())
        result = await another.run("two", checkpoint_storage=open_storage())

        assert result.get_outputs() == ["one two"]


async def test_checkpoints_are_listed_in_the_order_in_which_they_were_saved(
    ann: IsolationKeys, open_storage: OpenStorage
) -> None:
    with calling(ann):
        storage = open_storage()
        made = [
            WorkflowCheckpoint("w", "hash", timestamp=f"20{30 - n}-01-01T00:00:00+00:00")
            for n in range(11)
        ]
        other = WorkflowCheckpoint("another", "hash")
        for checkpoint in (*made, other):
            assert await storage.save(checkpoint) == checkpoint.checkpoint_id

        ids = [checkpoint.checkpoint_id for checkpoint in made]
        assert await storage.list_checkpoint_ids(workflow_name="w") == ids
        assert await storage.list_checkpoints(workflow_name="w") == made
        assert await storage.get_latest(workflow_name="w") == made[-1]
        assert await storage.load(ids[3]) == made[3]
        assert await storage.delete(ids[-1]) is True
        assert await storage.delete(ids[-1]) is False
        assert await storage.get_latest(workflow_name="w") == made[-2]
        with pytest.raises(WorkflowCheckpointException, match="no checkpoint of that id"):
            await storage.load(ids[-1])
        assert await storage.get_latest(workflow_name="another") == other


async def test_checkpoints_at_the_same_time_are_all_kept(
    ann: IsolationKeys, open_storage: OpenStorage
) -> None:
    made = [WorkflowCheckpoint("w", "hash") for _ in range(4)]
    with calling(ann):
        await asyncio.gather(*(open_storage().save(checkpoint) for checkpoint in made))

        found = await open_storage().list_checkpoint_ids(workflow_name="w")
        assert sorted(found) == sorted(checkpoint.checkpoint_id for checkpoint in made)
        for checkpoint in made:
            assert await open_storage().load(checkpoint.checkpoint_id) == checkpoint


async def test_a_checkpoint_that_is_saved_again_is_replaced(
    ann: IsolationKeys, open_storage: OpenStorage
) -> None:
    with calling(ann):
        storage = open_storage()
        first, second = WorkflowCheckpoint("w", "hash"), WorkflowCheckpoint("w", "hash")
        for checkpoint in (first, second):
            await storage.save(checkpoint)
        first.state = {"large": LARGE}
        await storage.save(first)

        assert await storage.list_checkpoints(workflow_name="w") == [first, second]


async def test_a_foreign_tenant_and_another_scope_learn_nothing_of_a_checkpoint(
    ann: IsolationKeys, open_storage: OpenStorage
) -> None:
    with calling(ann):
        saved = await open_storage().save(WorkflowCheckpoint("w", "hash"))

    for keys, scope in (
        (BOB, "a session"),
        (IsolationKeys("ann", "chat"), "a session"),
        (ann, "b"),
    ):
        with calling(keys):
            storage = open_storage(scope)
            with pytest.raises(WorkflowCheckpointException, match="no checkpoint of that id"):
                await storage.load(saved)
            assert await storage.list_checkpoints(workflow_name="w") == []
            assert await storage.list_checkpoint_ids(workflow_name="w") == []
            assert await storage.get_latest(workflow_name="w") is None
            assert await storage.delete(saved) is False
    with calling(ann):
        assert (await open_storage().load(saved)).checkpoint_id == saved


async def test_a_scope_must_be_named() -> None:
    with pytest.raises(ValueError, match="by scope"):
        DynamoDBCheckpointStorage("")


async def test_a_checkpoint_expires(
    ann: IsolationKeys, open_storage: OpenStorage, clock: MovableClock
) -> None:
    with calling(ann):
        storage = open_storage()
        checkpoint = WorkflowCheckpoint("w", "hash")
        await storage.save(checkpoint)
        clock.now += MONTH_S + 1

        assert await storage.get_latest(workflow_name="w") is None
        assert await storage.list_checkpoints(workflow_name="w") == []
        with pytest.raises(WorkflowCheckpointException):
            await storage.load(checkpoint.checkpoint_id)
        await storage.save(checkpoint)
        assert await storage.load(checkpoint.checkpoint_id) == checkpoint


async def test_classes_that_nobody_allowed_are_refused_before_they_are_stored(
    ann: IsolationKeys, open_storage: OpenStorage
) -> None:
    checkpoint = WorkflowCheckpoint("w", "hash", state={"own": Own(1)})
    with calling(ann):
        with pytest.raises(WorkflowCheckpointException, match="Own"):
            await open_storage().save(checkpoint)
        with pytest.raises(WorkflowCheckpointException, match="cannot be stored"):
            await open_storage().save(WorkflowCheckpoint("w", "hash", state={"f": lambda: 1}))
        assert await open_storage().list_checkpoint_ids(workflow_name="w") == []

        for allowed in (Own, f"{__name__}:Own"):
            storage = open_storage(allowed_types=[allowed])
            assert await storage.load(await storage.save(checkpoint)) == checkpoint


@pytest.mark.parametrize("kind", KINDS)
async def test_a_checkpoint_that_is_cut_off_anywhere_is_kept_as_a_whole_or_not_at_all(
    dynalite_client: Any,
    fragile_client: Any,
    ann: IsolationKeys,
    options: dict[str, Any],
    kind: str,
) -> None:
    outcomes: list[tuple[bool, bool]] = []
    at = 0
    while True:
        others = {"isolation": lambda: ann, **options}
        healthy = DynamoDBCheckpointStorage(f"{at}", client=dynalite_client, **others)
        fragile = DynamoDBCheckpointStorage(f"{at}", client=fragile_client, **others)
        before, after = WorkflowCheckpoint("w", "hash"), WorkflowCheckpoint("w", "hash")
        cut = WorkflowCheckpoint("w", "hash", state={"noise": Random(0).randbytes(300_000)})
        await healthy.save(before)
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(fragile.save(cut))
        found = await healthy.list_checkpoints(workflow_name="w")
        if not fault.has_struck:
            break
        assert found in ([before], [before, cut])
        outcomes.append((failed, cut in found))
        if cut not in found:
            with pytest.raises(WorkflowCheckpointException):
                await healthy.load(cut.checkpoint_id)
        await healthy.save(after)
        assert await healthy.list_checkpoints(workflow_name="w") == [*found, after]
        await healthy.save(cut)
        assert await healthy.load(cut.checkpoint_id) == cut
        at += 1

    # Whether it is there, the one before, what leads to it, two chunks, and then the row.
    is_after = kind.endswith("after_success")
    assert outcomes == [(True, False)] * 5 + [(True, is_after)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deletion_that_is_cut_off_anywhere_can_be_repeated(
    dynalite_client: Any,
    fragile_client: Any,
    ann: IsolationKeys,
    options: dict[str, Any],
    kind: str,
) -> None:
    others = {"isolation": lambda: ann, **options}
    healthy = DynamoDBCheckpointStorage("s", client=dynalite_client, **others)
    fragile = DynamoDBCheckpointStorage("s", client=fragile_client, **others)
    at = 0
    while True:
        checkpoint = WorkflowCheckpoint("w", "hash", state={"noise": noise(600_000, at)})
        await healthy.save(checkpoint)
        with Fault(fragile_client, kind, at) as fault:
            failed = await fails(fragile.delete(checkpoint.checkpoint_id))
        if not fault.has_struck:
            break
        assert failed
        await healthy.delete(checkpoint.checkpoint_id)
        assert await healthy.list_checkpoints(workflow_name="w") == []
        with pytest.raises(WorkflowCheckpointException):
            await healthy.load(checkpoint.checkpoint_id)
        at += 1

    assert at == 6  # where it is, what it is, the row, two chunks, what leads to it
