"""Workflows of Agent Framework behind the Responses API: what only they have, and their traps."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Never

import pytest
from agent_framework import (
    Agent,
    AgentExecutor,
    AgentExecutorResponse,
    AgentResponse,
    Content,
    Executor,
    InMemoryCheckpointStorage,
    Message,
    Workflow,
    WorkflowBuilder,
    WorkflowContext,
    WorkflowExecutor,
    executor,
    handler,
)
from agent_framework.exceptions import ChatClientContentFilterException
from msgspec import Struct
from pydantic import BaseModel
from starlette.types import ASGIApp

from channel.agent import AgentEvent, Turn
from channel.agents.agent_framework.checkpoints import packed, unpacked
from channel.agents.agent_framework.outputs import Outputs, text_of, updates_of
from channel.agents.agent_framework.workflow import adapt_workflow
from channel.memory import InMemoryResponseStore
from channel.responses.protocol.items import message
from tests.channel.agents.frameworks.agent_framework import ScriptedClient, weather
from tests.channel.agents.scripts import Meet, Say, Spend, Stop, Wait
from tests.channel.agents.test_matrix import CLOCK, kinds, loaded, said
from tests.channel.asgi import create, creating, hosted, request


pytestmark = pytest.mark.anyio

LOGGER = "channel.agents.agent_framework.workflow"


class Counter(Executor):
    """Says everything that it was told in all turns."""

    def __init__(self) -> None:
        super().__init__(id="counter")
        self.told: list[str] = []

    @handler
    async def take(self, text: str, ctx: WorkflowContext[Never, str]) -> None:
        self.told.append(text)
        await ctx.yield_output(" ".join(self.told))

    async def on_checkpoint_save(self) -> dict[str, Any]:
        return {"told": self.told}

    async def on_checkpoint_restore(self, state: dict[str, Any]) -> None:
        self.told = state["told"]


def counter() -> Workflow:
    return WorkflowBuilder(name="counter", start_executor=Counter()).build()


def app_of(target: Any, **options: Any) -> ASGIApp:
    return hosted(loaded(target), **options)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == LOGGER]


# State: from turn to turn, along each chain.


async def test_a_turn_goes_on_from_the_response_that_it_continues() -> None:
    app = app_of(counter)

    first = await create(app, input="one")
    second = await create(app, input="two", previous_response_id=first["id"])
    third = await create(app, input="three", previous_response_id=second["id"])

    assert [said(each) for each in (first, second, third)] == ["one", "one two", "one two three"]


async def test_forks_share_nothing_but_their_past() -> None:
    app = app_of(counter)

    first = await create(app, input="one")
    left = await create(app, input="left", previous_response_id=first["id"])
    right = await create(app, input="right", previous_response_id=first["id"])
    on = await create(app, input="on", previous_response_id=left["id"])

    assert [said(each) for each in (left, right, on)] == [
        "one left",
        "one right",
        "one left on",
    ]


async def test_threads_and_tenants_share_nothing() -> None:
    app = app_of(counter)

    first = await create(app, input="alpha's")
    foreign = await creating(key="key-beta", previous_response_id=first["id"]).run(app)
    own = await create(app, input="beta's", key="key-beta")

    assert (foreign.status, foreign.error_body["code"]) == (400, "previous_response_not_found")
    assert said(own) == "beta's"
    assert said(await create(app, input="new")) == "new"


async def test_a_conversation_goes_on_too() -> None:
    app = app_of(counter)
    made = (await request("POST", "/v1/conversations", {}).run(app)).json

    texts = [said(await create(app, input=text, conversation=made["id"])) for text in "abc"]

    assert texts == ["a", "a b", "a b c"]


async def test_what_is_added_to_a_conversation_is_news() -> None:
    script = [(Say((word,)),) for word in ("one", "two")]
    client = ScriptedClient(script)
    app = app_of(lambda: WorkflowBuilder(start_executor=Agent(client, name="A")).build())
    made = (await request("POST", "/v1/conversations", {}).run(app)).json
    path = f"/v1/conversations/{made['id']}/items"

    await create(app, input="first", conversation=made["id"])
    added = [message("user", "added"), message("assistant", "noted")]
    await request("POST", path, {"items": added}).run(app)
    await create(app, input="second", conversation=made["id"])

    assert client.seen[1].texts == [
        ("user", "first"),
        ("assistant", "one"),
        ("user", "added"),
        ("assistant", "noted"),
        ("user", "second"),
    ]


async def test_turns_at_the_same_time_have_workflows_of_their_own() -> None:
    meet = Meet(asyncio.Barrier(2))
    client = ScriptedClient([(meet, Say(("one",))), (meet, Say(("two",)))])
    target = WorkflowBuilder(start_executor=Agent(client, name="A")).build()
    app = app_of(target)  # a single workflow, which is copied

    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(create(app, input=text)) for text in ("left", "right")]

    assert {said(turn.result()) for turn in turns} == {"one", "two"}
    assert sorted(seen.texts[0][1] for seen in client.seen) == ["left", "right"]


async def test_a_single_workflow_is_copied_with_the_state_of_its_executors() -> None:
    start = Counter()
    inner = WorkflowBuilder(name="inner", start_executor=start).build()
    outer = WorkflowExecutor(inner, id="outer", allow_direct_output=True)
    for target in (counter(), WorkflowBuilder(name="outer", start_executor=outer).build()):
        app = app_of(target)
        first = await create(app, input="one")
        await create(app, input="two", previous_response_id=first["id"])
        assert said(await create(app, input="new")) == "new"
    assert start.told == []


async def test_an_agent_in_a_workflow_remembers_without_being_told_twice() -> None:
    client = ScriptedClient([(Say((word,)),) for word in ("one", "two", "three")])
    app = app_of(WorkflowBuilder(start_executor=Agent(client, "Be kind.", name="A")).build())

    first = await create(app, input="first")
    second = await create(app, input="second", previous_response_id=first["id"])
    await create(app, input="third", previous_response_id=second["id"])

    assert [text for role, text in client.seen[2].texts if role != "system"] == [
        *("first", "one", "second", "two", "third"),
    ]


async def test_without_its_state_a_workflow_is_given_the_whole_history() -> None:
    client = ScriptedClient([(Say((word,)),) for word in ("one", "two")])
    build = WorkflowBuilder(start_executor=Agent(client, name="A")).build
    app = hosted(adapt_workflow(build(), keeps_state=False))

    first = await create(app, input="first")
    await create(app, input="second", previous_response_id=first["id"])

    assert client.seen[1].texts == [("user", "first"), ("assistant", "one"), ("user", "second")]


async def test_a_response_that_is_not_stored_leaves_nothing() -> None:
    store = InMemoryResponseStore()
    app = app_of(counter, store=store)

    first = await create(app, input="one", store=False)

    reply = await creating(previous_response_id=first["id"]).run(app)
    assert reply.error_body["code"] == "previous_response_not_found"


async def test_a_summary_goes_on_from_nothing_and_keeps_nothing() -> None:
    client = ScriptedClient([(Say(("one",)),), (Say(("It was one.",)),), (Say(("two",)),)])
    app = app_of(WorkflowBuilder(start_executor=Agent(client, name="A")).build())
    first = await create(app, input="first")

    body = {"model": "agent", "previous_response_id": first["id"]}
    reply = await request("POST", "/v1/responses/compact", body).run(app)
    await create(app, input="second", previous_response_id=first["id"])

    assert reply.status == 200
    assert [text for _, text in client.seen[1].texts][:2] == ["first", "one"]
    assert [text for _, text in client.seen[2].texts] == ["first", "one", "second"]


# A run that fails, is cut, or is cancelled.


class Passes(Executor):
    """Says something, and passes on what it was told."""

    @handler
    async def take(self, text: str, ctx: WorkflowContext[str, str]) -> None:
        await ctx.yield_output("Well, ")
        await ctx.send_message(text)


async def test_a_run_that_fails_is_a_failed_response_that_tells_and_leaves_nothing() -> None:
    @executor(id="second")
    async def second(text: str, ctx: WorkflowContext[Never, str]) -> None:
        if text == "bad":
            raise RuntimeError("secret detail")
        await ctx.yield_output("fine.")

    def build() -> Workflow:
        first = Passes(id="first")
        return WorkflowBuilder(start_executor=first).add_edge(first, second).build()

    app = app_of(build)
    good = await create(app, input="good")
    wire = await creating(stream=True, input="bad", previous_response_id=good["id"]).run(app)

    assert said(good) == "Well, \n\nfine."
    failed = wire.events[-1]["response"]
    assert (failed["status"], said(failed)) == ("failed", "Well, ")
    assert b"secret" not in wire.body
    reply = await creating(previous_response_id=failed["id"]).run(app)
    assert reply.error_body["code"] == "previous_response_not_found"


async def test_a_client_that_goes_ends_the_run_and_leaves_nothing() -> None:
    wait = Wait()
    client = ScriptedClient([(Say(("Well, ",)), wait), (Say(("Hello.",)),)])
    build = WorkflowBuilder(start_executor=Agent(client, name="A")).build
    app = app_of(build())
    wire = creating(stream=True)
    running = wire.start(app)

    await wait.begun.wait()
    await wire.until("Well")
    wire.hang_up()
    await running

    await wait.ended.wait()
    first = json.loads(wire.body.split(b"data: ")[1].split(b"\n")[0])["response"]
    reply = await creating(previous_response_id=first["id"]).run(app)
    assert reply.error_body["code"] == "previous_response_not_found"


async def test_state_that_cannot_be_captured_fails_the_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Counter):
        async def on_checkpoint_save(self) -> dict[str, Any]:
            raise RuntimeError("secret detail")  # the framework only logs it

    class Locked(Counter):
        async def on_checkpoint_save(self) -> dict[str, Any]:
            return {"lock": threading.Lock()}

    class Foreign(Counter):
        async def on_checkpoint_save(self) -> dict[str, Any]:
            return {"own": Own("secret detail")}

    for kind in (Broken, Locked, Foreign):
        app = app_of(lambda kind=kind: WorkflowBuilder(start_executor=kind()).build())
        assert (await create(app))["status"] == "failed"

    assert "secret" not in "".join(logged(caplog))
    (message,) = logged(caplog)
    assert f"{__name__}:Own" in message


async def test_a_state_of_ones_own_classes_is_kept_where_they_are_allowed() -> None:
    class Foreign(Counter):
        async def on_checkpoint_save(self) -> dict[str, Any]:
            return {"told": self.told, "own": Own("kept")}

    def build() -> Workflow:
        return WorkflowBuilder(start_executor=Foreign()).build()

    app = hosted(adapt_workflow(build, allowed_types=[Own]))
    first = await create(app, input="one")

    assert said(await create(app, input="two", previous_response_id=first["id"])) == "one two"


async def test_a_run_that_does_not_converge_is_incomplete_and_begins_anew() -> None:
    class Loop(Executor):
        @handler
        async def take(self, text: str, ctx: WorkflowContext[str, str]) -> None:
            await ctx.yield_output(text)
            await ctx.send_message(text)

    def build() -> Workflow:
        loop = Loop(id="loop")
        builder = WorkflowBuilder(start_executor=loop, max_iterations=2)
        return builder.add_edge(loop, loop).build()

    app = app_of(build)
    first = await create(app, input="a")
    second = await create(app, input="b", previous_response_id=first["id"])

    assert first["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (said(first), said(second)) == ("a\n\na", "b\n\nb")


async def test_a_filter_ends_the_run_as_such() -> None:
    @executor(id="filtered")
    async def filtered(text: str, ctx: WorkflowContext[Never, str]) -> None:
        await ctx.yield_output(text)
        raise ChatClientContentFilterException("secret")

    response = await create(app_of(WorkflowBuilder(start_executor=filtered).build()))

    assert response["incomplete_details"] == {"reason": "content_filter"}


async def test_a_limit_of_the_last_agent_makes_the_response_incomplete() -> None:
    client = ScriptedClient([(Say(("Once upon",)), Stop("length"), Spend(1, 1))])
    app = app_of(WorkflowBuilder(start_executor=Agent(client, name="A")).build())

    response = await create(app)

    assert (response["status"], said(response)) == ("incomplete", "Once upon")


async def test_a_workflow_that_has_changed_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    store = InMemoryResponseStore()
    first = await create(app_of(counter, store=store), input="one")

    class Other(Counter):
        pass

    changed = app_of(lambda: WorkflowBuilder(start_executor=Other()).build(), store=store)
    second = await create(changed, input="two", previous_response_id=first["id"])

    assert said(second) == "two"
    assert logged(caplog) == [
        "a workflow has changed since its checkpoint was kept, and begins anew"
    ]


async def test_a_checkpoint_that_cannot_be_restored_begins_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Forgetful(Counter):
        async def on_checkpoint_restore(self, state: dict[str, Any]) -> None:
            raise RuntimeError("secret detail")

    app = app_of(lambda: WorkflowBuilder(start_executor=Forgetful()).build())
    first = await create(app, input="one")
    second = await create(app, input="two", previous_response_id=first["id"])

    assert said(second) == "two"
    assert logged(caplog) == ["the checkpoint of a workflow cannot be restored, and it begins anew"]


async def test_a_checkpoint_whose_classes_are_gone_begins_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Foreign(Counter):
        async def on_checkpoint_save(self) -> dict[str, Any]:
            return {"told": self.told, "own": Own("kept")}

    def build() -> Workflow:
        return WorkflowBuilder(name="w", start_executor=Foreign()).build()

    store = InMemoryResponseStore()
    first = await create(hosted(adapt_workflow(build, allowed_types=[Own]), store), input="one")
    # A version that keeps nothing of that class any more does not allow it either.
    Foreign.on_checkpoint_save = Counter.on_checkpoint_save  # type: ignore[method-assign]  # as a deployment would
    second = await create(hosted(adapt_workflow(build), store), previous_response_id=first["id"])

    assert said(second) == "hi"
    assert logged(caplog) == [
        f"the checkpoint of a workflow cannot be read, and it begins anew: {__name__}:Own"
    ]


async def test_a_restore_that_yields_nothing_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        """A workflow whose restore says nothing."""

        def __init__(self) -> None:
            self._workflow = counter()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._workflow, name)

        def run(self, **arguments: Any) -> Any:
            stream = self._workflow.run(**arguments)
            return _Nothing(stream) if "checkpoint_id" in arguments else stream

    app = hosted(adapt_workflow(Silent(), Silent))
    first = await create(app, input="one")
    await create(app, input="two", previous_response_id=first["id"])

    assert logged(caplog) == ["restoring the checkpoint of a workflow yielded nothing"]


class _Nothing:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aenter__(self) -> AsyncIterator[Any]:
        async for _ in self._stream:
            pass
        return aiter(self._stream)

    async def __aexit__(self, *_: object) -> None:
        await self._stream.close()


async def test_a_storage_of_the_workflows_own_gives_way_to_the_hosts() -> None:
    storage = InMemoryCheckpointStorage()

    def build() -> Workflow:
        return WorkflowBuilder(
            name="counter", start_executor=Counter(), checkpoint_storage=storage
        ).build()

    app = hosted(adapt_workflow(build))
    first = await create(app, input="one")
    second = await create(app, input="two", previous_response_id=first["id"])
    assert said(second) == "one two"
    assert await storage.list_checkpoints(workflow_name="counter") == []

    # Without the host's state its own is written, and nobody's turn goes on from it.
    app = hosted(adapt_workflow(build, keeps_state=False))
    first = await create(app, input="one")
    second = await create(app, input="two", previous_response_id=first["id"])
    assert said(second) == "two"
    assert await storage.list_checkpoints(workflow_name="counter") != []


# What cannot be shared is refused at start.


def shared_workflow() -> Callable[[], Workflow]:
    made = counter()
    return lambda: made


def shared_executor() -> Callable[[], Workflow]:
    made = Counter()
    return lambda: WorkflowBuilder(start_executor=made).build()


def shared_agent_executor() -> Callable[[], Workflow]:
    made = AgentExecutor(Agent(ScriptedClient([]), name="A"))
    return lambda: WorkflowBuilder(start_executor=made).build()


def uncopiable() -> Workflow:
    start = Counter()
    start.lock = asyncio.get_event_loop_policy()  # type: ignore[attr-defined]  # what only one can have
    start.generator = (n for n in range(3))  # type: ignore[attr-defined]
    return WorkflowBuilder(name="mine", start_executor=start).build()


@pytest.mark.parametrize(
    ("target", "said_of_it"),
    [
        (shared_workflow(), "gives the workflow .* twice"),
        (shared_executor(), "share the executor 'counter'"),
        (shared_agent_executor(), "share the executor 'A'"),
        (uncopiable(), "the workflow 'mine' cannot be copied .* name a function that builds it"),
    ],
)
async def test_what_turns_would_share_is_refused_at_start(target: Any, said_of_it: str) -> None:
    with pytest.raises(Exception, match=said_of_it):
        loaded(target)


async def test_functions_as_executors_may_be_shared() -> None:
    @executor(id="upper")
    async def upper(text: str, ctx: WorkflowContext[Never, str]) -> None:
        await ctx.yield_output(text.upper())

    app = app_of(lambda: WorkflowBuilder(start_executor=upper).build())

    assert said(await create(app, input="one")) == "ONE"


# Input.


class Takes(Executor):
    """Says of what type it was given what."""

    @handler
    async def take(self, given: Message, ctx: WorkflowContext[Never, str]) -> None:
        await ctx.yield_output(f"message {[content.type for content in given.contents]}")


class TakesOwn(Executor):
    @handler
    async def take(self, given: dict[str, int], ctx: WorkflowContext[Never, str]) -> None:
        await ctx.yield_output("never")


class TakesMessages(Executor):
    @handler
    async def take(self, given: list[Message], ctx: WorkflowContext[Never, str]) -> None:
        await ctx.yield_output(json.dumps([[str(each.role), each.text] for each in given]))


IMAGE = {
    "role": "user",
    "content": [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="},
    ],
}


async def test_the_start_executor_is_given_what_it_takes() -> None:
    one = app_of(lambda: WorkflowBuilder(start_executor=Takes(id="t")).build())
    many = app_of(lambda: WorkflowBuilder(start_executor=TakesMessages(id="t")).build())

    assert said(await create(one, input=[IMAGE])) == "message ['text', 'data']"
    response = await create(
        many,
        instructions="Be brief.",
        input=[message("developer", "Be kind."), message("user", "Hi")],
    )
    assert json.loads(said(response)) == [["system", "Be brief.\n\nBe kind."], ["user", "Hi"]]


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (TakesOwn, {}, "input"),
        (Counter, {"instructions": "Be brief."}, "instructions"),
        (Counter, {"input": [message("system", "Be brief."), message("user", "Hi")]}, "input"),
        (Counter, {"input": [IMAGE]}, "input"),
        (Counter, {"input": [message("assistant", "Hi")]}, "input"),
        (Counter, {"tools": [CLOCK], "tool_choice": "required"}, "tool_choice"),
        (
            Counter,
            {"tools": [CLOCK], "tool_choice": {"type": "function", "name": "clock"}},
            "tool_choice",
        ),
        (
            Counter,
            {
                "input": [
                    {
                        "type": "mcp_approval_response",
                        "approval_request_id": "none",
                        "approve": True,
                    }
                ]
            },
            "input",
        ),
    ],
)
async def test_what_a_workflow_does_not_take_is_told_by_a_400(
    kind: type[Executor], fields: dict[str, Any], param: str
) -> None:
    app = app_of(
        lambda: WorkflowBuilder(start_executor=kind() if kind is Counter else kind(id="t")).build(),
        first_event_grace_s=60,
    )

    reply = await creating(**fields).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, param)


async def test_a_tool_with_the_name_of_an_agents_own_is_refused() -> None:
    agent = Agent(ScriptedClient([]), name="A", tools=[weather])
    app = app_of(WorkflowBuilder(start_executor=agent).build(), first_event_grace_s=60)

    reply = await creating(tools=[{**CLOCK, "name": "weather"}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "tools")


# Output.


@dataclass
class Own:
    """A class of the user's own."""

    word: str


class OwnModel(BaseModel):
    word: str


class OwnStruct(Struct):
    word: str


class Opaque:
    def __str__(self) -> str:
        return "opaque"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("text", "text"),
        (Message("assistant", ["a", "b"]), "ab"),
        ([Message("user", ["asked"]), Message("assistant", ["answered"])], "answered"),
        (AgentResponse(messages=[Message("assistant", ["whole"])]), "whole"),
        (
            AgentExecutorResponse(
                "A", AgentResponse(messages=[Message("assistant", ["sent"])]), []
            ),
            "sent",
        ),
        (Content.from_text("content"), "content"),
        (Own("dataclass"), '{"word":"dataclass"}'),
        (OwnModel(word="model"), '{"word":"model"}'),
        (OwnStruct("struct"), '{"word":"struct"}'),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (3, "3"),
        (True, "true"),
        ([], "[]"),
        (Opaque(), "opaque"),
    ],
)
async def test_an_output_is_told_by_its_kind(output: Any, text: str) -> None:
    @executor(id="says", input=str, workflow_output=type(output))
    async def says(_: str, ctx: WorkflowContext[Never, Any]) -> None:
        await ctx.yield_output(output)

    response = await create(app_of(WorkflowBuilder(start_executor=says).build()))

    assert (kinds(response), said(response)) == (["message"], text)


def test_nothing_is_said_of_none() -> None:
    assert updates_of(None) == []
    assert text_of(float("nan")) == "null"


async def test_what_executors_say_at_the_same_time_comes_one_after_the_other() -> None:
    barrier = asyncio.Barrier(2)
    clients = [
        ScriptedClient(
            [(Meet(barrier), Say((f"{n} ",)), Meet(barrier), Say(("more",)), Spend(2, 1))]
        )
        for n in ("one", "two")
    ]

    @executor(id="start")
    async def start(text: str, ctx: WorkflowContext[str]) -> None:
        await ctx.send_message(text)

    def build() -> Workflow:
        agents = [Agent(client, name=f"A{n}") for n, client in enumerate(clients)]
        return WorkflowBuilder(start_executor=start).add_fan_out_edges(start, agents).build()

    response = await create(app_of(build))

    assert said(response) in ("one more\n\ntwo more", "two more\n\none more")
    assert response["usage"]["total_tokens"] == 6


def test_who_waits_speaks_when_those_before_are_done() -> None:
    outputs = Outputs((), (), {})
    heard: list[AgentEvent] = []

    for executor_id, text in (("a", "a1"), ("b", "b1"), ("c", "c1"), ("a", "a2"), ("b", "b2")):
        heard += outputs.say(executor_id, updates_of(text))
    heard += outputs.done("b")
    assert heard == ["a1", "a2"]
    heard += outputs.done("a")
    assert heard[2:] == ["\n\n", "b1", "b2", "\n\n", "c1"]
    heard += outputs.done("nobody")
    heard += outputs.say("c", updates_of("c2"))
    heard += outputs.say("d", updates_of("d1"))
    heard += outputs.end()
    assert heard[7:] == ["c2", "\n\n", "d1"]


async def test_only_designated_outputs_are_the_answer() -> None:
    clients = [ScriptedClient([(Say((word,)), Spend(1, 1))]) for word in ("draft", "answer")]

    def build() -> Workflow:
        writer, editor = (Agent(client, name=f"A{n}") for n, client in enumerate(clients))
        builder = WorkflowBuilder(start_executor=writer, output_from=[editor])
        return builder.add_edge(writer, editor).build()

    assert said(await create(app_of(build))) == "answer"


# What is kept.


async def test_what_is_kept_grows_with_the_messages_and_not_with_who_holds_them() -> None:
    kept: list[int] = []
    clients = [ScriptedClient([(Say(("x" * 2000,)),)] * 5) for _ in range(3)]

    def build() -> Workflow:
        agents = [Agent(client, name=f"A{n}") for n, client in enumerate(clients)]
        builder = WorkflowBuilder(start_executor=agents[0])
        return builder.add_chain(agents).build()

    agent = adapt_workflow(build)

    async def measured(turn: Turn) -> AsyncIterator[AgentEvent]:
        async for event in agent(turn):
            if hasattr(event, "state"):
                kept.append(len(json.dumps(event.state)))
            yield event

    app = hosted(measured)
    response: dict[str, Any] = {"id": None}
    for _ in range(5):
        response = await create(app, previous_response_id=response["id"])

    assert response["status"] == "completed"
    assert kept[-1] < 20_000  # of 30 kB of text, which each of three agents holds


def test_what_is_packed_unpacks() -> None:
    assert unpacked(packed(b"\0" * 1000)) == b"\0" * 1000
