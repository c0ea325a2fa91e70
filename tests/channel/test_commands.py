"""Commands: recognised in a channel, and run in place of its agent by the one path of all turns."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import msgspec
import pytest
from starlette.types import ASGIApp

from channel.agent import (
    AgentEvent,
    FunctionCall,
    KeptState,
    TextDelta,
    Turn,
    TurnError,
    accepts,
)
from channel.auth import Caller
from channel.chat.channel import ChatCompletionsChannel
from channel.commands import (
    COMMAND,
    HELP,
    RESET,
    ChannelCommand,
    ChannelCommandContext,
    Typed,
    typed,
)
from channel.contract import Channel, ChannelRequest, HostedRunResult
from channel.deadline import DEADLINE, TimeLeft
from channel.host import AgentHost
from channel.http import request_id
from channel.isolation import IsolationKeys, get_current_isolation_keys
from channel.memory import InMemoryResponseStore
from channel.memory_sessions import InMemorySessionStore
from channel.ports import StoreError
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item, message
from tests.channel.asgi import KEYS, Wire, create, creating, get, request
from tests.channel.chat.wire import asking, chunks_of, completed, message_of, said
from tests.channel.instances import Instances
from tests.channel.websocket import Socket, text_of


pytestmark = pytest.mark.anyio

IMAGE: Item = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
RESET_SAID = "Started over: what was said before is not remembered any more."
HELP_SAID = (
    "- /reset: Start over: what was said before is not remembered any more.\n"
    "- /help: List the commands."
)


@accepts("text")
async def echo(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield f"You said {turn.text} after {len(turn.history)}."


def to_the_agent(text: str) -> str:
    return f"You said {text} after 0."


class Noting(AgentHost):
    """A host that notes whose sessions were to be reset."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reset: list[tuple[IsolationKeys, str]] = []
        self.failure: StoreError | None = None

    async def reset_session(self, keys: IsolationKeys, key: str, /) -> bool:
        if self.failure is not None:
            raise self.failure
        self.reset.append((keys, key))
        return await super().reset_session(keys, key)


def hosting(*commands: ChannelCommand, agent: Any = echo, **options: Any) -> Noting:
    """Return a host whose two channels have the commands, and sessions."""
    given: dict[str, Any] = {
        "keepalive_s": 0,
        "session_mode": "auto",
        "commands": commands,
        **options,
    }
    channels = [ResponsesChannel(**given), ChatCompletionsChannel(**given)]
    sessions = InMemorySessionStore()
    return Noting(agent, channels=channels, authenticator=KEYS, sessions=sessions)


def app_of(*commands: ChannelCommand, **options: Any) -> ASGIApp:
    return hosting(*(commands or (RESET, HELP)), **options).app


def command(
    handle: Callable[[ChannelCommandContext], Any],
    name: str = "do",
    is_for: Callable[[Caller], bool] | None = None,
) -> ChannelCommand:
    return ChannelCommand(name, f"What /{name} does.", handle, is_for)


async def echo_arguments(context: ChannelCommandContext) -> None:
    await context.reply(f"done: {context.arguments!r}")


DO = command(echo_arguments)


async def answer(app: ASGIApp, given: Any, **fields: Any) -> str:
    return text_of(await create(app, input=given, **fields))


async def chat_answer(app: ASGIApp, content: Any, **fields: Any) -> str:
    messages = [{"role": "user", "content": content}]
    text: str = message_of(await completed(app, messages=messages, **fields))["content"]
    return text


# Names


@pytest.mark.parametrize("name", ["a", "reset", "a-b_c9", "a" * 32])
def test_a_command_has_a_name_that_can_be_typed(name: str) -> None:
    assert command(echo_arguments, name).name == name


@pytest.mark.parametrize("name", ["", "/reset", "Reset", "9a", "_a", "a b", "é", "a" * 33, "a\n"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a command"):
        command(echo_arguments, name)


# Recognition


def user(*parts: Item) -> Item:
    return {"type": "message", "role": "user", "content": [*parts]}


def text(said: str) -> Item:
    return {"type": "input_text", "text": said}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([message("user", "/do")], Typed("do", "")),
        ([message("user", "/do it  now ")], Typed("do", "it  now")),
        ([message("user", "/do\nit\nnow")], Typed("do", "it\nnow")),
        ([message("user", "/do\t")], Typed("do", "")),
        ([message("user", "/do-it_2 x")], Typed("do-it_2", "x")),
        ([message("user", f"/{'a' * 32}")], Typed("a" * 32, "")),
        ([{"type": "message", "role": "user", "content": "/do it"}], Typed("do", "it")),
        ([message("user", "hi"), message("assistant", "ho"), message("user", "/do")], ("do", "")),
        ([message("system", "be"), message("user", "/do")], ("do", "")),
        ([message("user", f"/{'a' * 33}")], None),
        ([message("user", " /do")], None),
        ([message("user", "\n/do")], None),
        ([message("user", "/Do")], None),
        ([message("user", "/DO")], None),
        ([message("user", "/do.")], None),
        ([message("user", "/do/it")], None),
        ([message("user", "/")], None),
        ([message("user", "/ do")], None),
        ([message("user", "//do")], None),
        ([message("user", "please /do")], None),
        ([message("user", "")], None),
        ([user(text("/do"), IMAGE)], None),
        ([user(IMAGE, text("/do"))], None),
        ([user(text("/do"), text("it"))], None),
        ([user(IMAGE)], None),
        ([user()], None),
        ([message("user", "/do"), message("user", "thanks")], None),
        ([message("user", "/do"), message("assistant", "done")], None),
        ([message("assistant", "/do")], None),
        ([message("system", "/do")], None),
        ([{"type": "function_call_output", "call_id": "c", "output": "/do"}], None),
        ([], None),
    ],
)
def test_a_command_is_the_last_message_and_all_of_it(
    items: list[Item], expected: Typed | None
) -> None:
    assert typed(items) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/do", "done: ''"),
        ("/do  it now ", "done: 'it now'"),
        ([{"role": "user", "content": "/do it"}], "done: 'it'"),
        ([{"role": "user", "content": [text("/do it")]}], "done: 'it'"),
        ([{"role": "user", "content": "hi"}, {"role": "user", "content": "/do"}], "done: ''"),
        ("/unknown", to_the_agent("/unknown")),
        ("/Do", to_the_agent("/Do")),
        (" /do", to_the_agent(" /do")),
        ("do", to_the_agent("do")),
        ([{"role": "user", "content": [text("/do"), IMAGE]}], to_the_agent("/do")),
        ([{"role": "user", "content": "/do"}, {"role": "user", "content": "x"}], to_the_agent("x")),
    ],
)
async def test_a_response_runs_the_command_that_it_is_asked_for(given: Any, expected: str) -> None:
    assert await answer(app_of(DO), given) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("/do", "done: ''"),
        ("/do it", "done: 'it'"),
        ([{"type": "text", "text": "/do it"}], "done: 'it'"),
        ("/unknown", to_the_agent("/unknown")),
        (
            [
                {"type": "text", "text": "/do"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
            to_the_agent("/do"),
        ),
    ],
)
async def test_a_completion_does_so_too(content: Any, expected: str) -> None:
    assert await chat_answer(app_of(DO), content) == expected


async def test_a_command_comes_after_what_the_client_tells_again() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "/do it"},
    ]

    completion = await completed(app_of(DO), messages=messages)

    assert message_of(completion)["content"] == "done: 'it'"


@pytest.mark.parametrize("stream", [False, True])
async def test_where_a_client_parses_the_reply_there_are_no_commands(stream: bool) -> None:
    app = app_of(DO)
    form = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}
    chat_form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}}
    messages = [{"role": "user", "content": "/do"}]

    wire = await creating(input="/do", text={"format": form}, stream=stream).run(app)
    chat = await asking(messages=messages, response_format=chat_form, stream=stream).run(app)
    plain = await answer(app, "/do", text={"format": {"type": "text"}, "verbosity": "low"})
    plain_chat = await chat_answer(app, "/do", response_format={"type": "text"})

    assert b"You said /do" in wire.body
    assert b"You said /do" in chat.body
    assert [plain, plain_chat] == ["done: ''", "done: ''"]


async def test_a_channel_without_commands_has_none() -> None:
    given: dict[str, Any] = {"keepalive_s": 0}
    channels = [ResponsesChannel(commands=[DO], **given), ChatCompletionsChannel(**given)]
    app = Noting(echo, channels=channels, authenticator=KEYS).app

    assert await answer(app, "/do") == "done: ''"
    assert await chat_answer(app, "/do") == to_the_agent("/do")


async def test_what_a_channel_has_is_not_another_channels() -> None:
    other = command(echo_arguments, "other")
    channels: list[Channel] = [
        ResponsesChannel(commands=[DO], keepalive_s=0),
        ChatCompletionsChannel(commands=[other], keepalive_s=0),
    ]
    app = Noting(echo, channels=channels, authenticator=KEYS).app

    said_to_one = [await answer(app, each) for each in ("/do", "/other")]
    said_to_other = [await chat_answer(app, each) for each in ("/do", "/other")]

    assert said_to_one == ["done: ''", to_the_agent("/other")]
    assert said_to_other == [to_the_agent("/do"), "done: ''"]


# Hooks


async def test_the_run_hook_comes_first_and_may_make_or_unmake_a_command() -> None:
    seen: list[str] = []
    swapped = {"please do it": "/do it", "/do": "no"}

    async def hook(asked: ChannelRequest, /, **_: Any) -> ChannelRequest:
        seen.append(asked.operation)
        given = asked.input[-1]["content"][0]["text"]
        return replace(asked, input=[message("user", swapped[given])])

    app = app_of(DO, run_hook=hook)

    assert await answer(app, "please do it") == "done: 'it'"
    assert await answer(app, "/do") == to_the_agent("no")
    assert seen == ["message.create", "message.create"]


async def test_a_policy_may_refuse_a_command() -> None:
    def hook(asked: ChannelRequest, /, **_: Any) -> ChannelRequest:
        raise RequestError("Not today.", status=403)

    wire = await creating(input="/do").run(app_of(DO, run_hook=hook))

    assert (wire.status, wire.error_body["message"]) == (403, "Not today.")


@pytest.mark.parametrize("given", ["/help", "/reset", "Hi"])
async def test_a_session_that_a_hook_requires_is_required_before_anything_is_done(
    given: str,
) -> None:
    def hook(asked: ChannelRequest, /, **_: Any) -> ChannelRequest:
        return replace(asked, session=None, session_mode="required")

    host = hosting(RESET, HELP, run_hook=hook)
    both = Instances(echo, commands=(RESET, HELP), run_hook=hook)
    messages = [{"role": "user", "content": given}]
    wires = [
        await creating(input=given).run(host.app),
        await creating(input=given, stream=True).run(host.app),
        await asking(messages=messages).run(host.app),
        await both.a.post("/v1/responses", {"input": given, "background": True}),
    ]
    async with Socket(host.app) as socket:
        ending = await socket.turn(input=given)

    assert [(wire.status, wire.error_body["code"]) for wire in wires] == [
        (409, "session_required")
    ] * 4
    assert (ending["type"], ending["error"]["code"]) == ("error", "session_required")
    assert (host.reset, both.jobs.held) == ([], [])


async def test_the_other_hooks_see_what_a_command_says() -> None:
    def transform(event: AgentEvent) -> AgentEvent:
        return TextDelta("changed") if isinstance(event, str) else event

    def respond(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
        return result

    app = app_of(DO, stream_transform_hook=transform, response_hook=respond)

    assert await answer(app, "/do") == "changed"


async def test_a_command_is_told_what_was_asked() -> None:
    given: list[ChannelCommandContext] = []

    async def handle(context: ChannelCommandContext) -> None:
        given.append(context)

    app = app_of(command(handle), HELP)
    response = await create(app, input="/do it", metadata={"a": "b"}, model="mine")

    (context,) = given
    assert (response["status"], response["output"], response["model"]) == ("completed", [], "mine")
    assert context.request.operation == COMMAND == "message.command"
    assert context.request.caller.keys == IsolationKeys("alpha")
    assert context.request.metadata == {"a": "b"}
    assert context.request.attributes["response_id"] == response["id"]
    assert context.arguments == "it"
    assert [*context.commands] == ["do", "help"]


# The one path


async def test_a_command_is_a_turn_like_any_other() -> None:
    app = app_of(DO)
    before = await create(app, input="Hi")
    response = await create(app, input="/do it", previous_response_id=before["id"])
    stored = await get(app, f"/v1/responses/{response['id']}")
    items = await get(app, f"/v1/responses/{response['id']}/input_items")
    after = await answer(app, "Hi", previous_response_id=response["id"])

    assert stored.json == response
    assert [item["content"][0]["text"] for item in items.json["data"]] == [
        "/do it",
        "You said Hi after 0.",
        "Hi",
    ]
    assert after == "You said Hi after 4."


async def test_no_usage_is_invented() -> None:
    app = app_of(DO)
    response = await create(app, input="/do")
    completion = await completed(app, messages=[{"role": "user", "content": "/do"}])

    assert response["usage"]["total_tokens"] == 0
    assert completion["usage"]["total_tokens"] == 0


async def test_a_command_in_a_conversation_is_one_of_its_turns() -> None:
    app = app_of(DO)
    made = await request("POST", "/v1/conversations", {}).run(app)

    await create(app, input="/do", conversation=made.json["id"])
    after = await answer(app, "Hi", conversation=made.json["id"])

    assert after == "You said Hi after 2."


async def test_an_agent_keeps_its_state_over_a_command() -> None:
    given: list[Mapping[str, Any] | None] = []

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        given.append(turn.state)
        yield "ok"
        yield KeptState({"turns": len(given)})

    app = app_of(DO, agent=agent)
    first = await create(app)
    second = await create(app, input="/do", previous_response_id=first["id"])
    await create(app, previous_response_id=second["id"])

    assert given == [None, {"turns": 1}]


def replying_twice(door: asyncio.Event) -> ChannelCommand:
    async def handle(context: ChannelCommandContext) -> None:
        await context.reply("one, ")
        await door.wait()
        await context.reply("two")

    return command(handle)


async def test_a_reply_is_streamed_when_it_is_given() -> None:
    door = asyncio.Event()
    wire = creating(input="/do", stream=True)
    async with asyncio.timeout(10):
        running = wire.start(app_of(replying_twice(door)))
        await wire.until('"delta":"one, "')
        assert b'"delta":"two"' not in wire.body
        door.set()
        await running

    deltas = [each["delta"] for each in wire.events if each["type"].endswith("text.delta")]
    assert deltas == ["one, ", "two"]
    assert wire.types[-1] == "completed"
    assert text_of(wire.events[-1]["response"]) == "one, two"


async def test_a_completion_streams_it_so_too() -> None:
    door = asyncio.Event()
    wire = asking(messages=[{"role": "user", "content": "/do"}], stream=True)
    async with asyncio.timeout(10):
        running = wire.start(app_of(replying_twice(door)))
        await wire.until("one, ")
        assert b"two" not in wire.body
        door.set()
        await running

    assert said(chunks_of(wire)) == "one, two"


async def test_a_connection_has_commands_too() -> None:
    door = asyncio.Event()
    async with Socket(app_of(replying_twice(door), HELP)) as socket:
        socket.create(input="/do")
        while (await socket.read()).get("delta") != "one, ":
            pass
        assert socket.is_quiet
        door.set()
        ending = (await socket.until_end())[-1]
        listed = await socket.text(input="/help")
        continued = await socket.text(previous_response_id=ending["response"]["id"])

    assert text_of(ending["response"]) == "one, two"
    assert listed == "- /do: What /do does.\n- /help: List the commands."
    assert continued == "You said hi after 2."


async def test_a_warm_up_runs_no_command() -> None:
    async with Socket(app_of(DO)) as socket:
        response = await socket.response(input="/do", generate=False)

    assert response["output"] == []


async def test_a_command_in_the_background_is_run_by_its_worker() -> None:
    both = Instances(echo, commands=(DO, HELP))
    begun = await both.a.begin(input="/do it")
    assert begun["status"] == "queued"

    await both.b.work(both.jobs.held.pop(0))

    found = (await both.a.get(begun["id"])).json
    assert (found["status"], text_of(found)) == ("completed", "done: 'it'")


async def test_a_worker_that_does_not_have_the_command_leaves_it_to_the_agent() -> None:
    both = Instances(echo, commands=(DO,))
    begun = await both.a.begin(input="/do it")
    both.options["commands"] = (HELP,)

    await both.another().work(both.jobs.held.pop(0))

    assert text_of((await both.a.get(begun["id"])).json) == to_the_agent("/do it")


async def test_a_command_is_run_once_for_an_idempotency_key() -> None:
    runs: list[str] = []

    async def handle(context: ChannelCommandContext) -> None:
        runs.append(context.arguments)
        await context.reply("done")

    app, headers = app_of(command(handle)), {"idempotency-key": "k"}
    replies = [
        await request("POST", "/v1/responses", {"input": "/do"}, headers=headers).run(app)
        for _ in range(2)
    ]

    assert runs == [""]
    assert replies[0].json == replies[1].json


KIND: ContextVar[str] = ContextVar("KIND", default="none")


async def test_a_command_runs_in_the_context_of_its_turn() -> None:
    found: list[Any] = []

    async def handle(context: ChannelCommandContext) -> None:
        found.extend((get_current_isolation_keys(), request_id.get(), KIND.get()))
        KIND.set("the command's")

    token = KIND.set("the client's")
    wire = await creating(input="/do").run(app_of(command(handle)))
    after = KIND.get()
    KIND.reset(token)

    assert found == [IsolationKeys("alpha"), wire.headers["x-request-id"], "the client's"]
    assert after == "the client's"


async def test_replies_may_come_from_tasks_of_the_command() -> None:
    async def handle(context: ChannelCommandContext) -> None:
        async with asyncio.TaskGroup() as tasks:
            for each in "abc":
                tasks.create_task(context.reply(each))

    assert sorted(await answer(app_of(command(handle)), "/do")) == ["a", "b", "c"]


async def test_who_goes_away_cancels_the_command() -> None:
    ended = asyncio.Event()

    async def handle(context: ChannelCommandContext) -> None:
        await context.reply("so far")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    store = InMemoryResponseStore()
    given: dict[str, Any] = {"store": store, "commands": [command(handle)], "keepalive_s": 0}
    app = AgentHost(echo, channels=[ResponsesChannel(**given)], authenticator=KEYS).app
    wire = creating(input="/do", stream=True)
    async with asyncio.timeout(10):
        running = wire.start(app)
        await wire.until("so far")
        wire.hang_up()
        await running

    identifier = re.search(rb'"id":"(resp_\w+)"', wire.body)
    assert ended.is_set()
    assert identifier is not None
    stored = (await get(app, f"/v1/responses/{identifier[1].decode()}")).json
    assert (stored["status"], text_of(stored)) == ("cancelled", "so far")


async def test_a_client_that_reads_slowly_slows_the_command_down() -> None:
    taken: list[int] = []

    async def handle(context: ChannelCommandContext) -> None:
        for i in range(100_000):
            await context.reply("x" * 10_000)
            taken.append(i)

    wire = creating(input="/do", stream=True)
    async with asyncio.timeout(10):
        running = wire.start(app_of(command(handle)))
        await wire.until('"delta":"x')
        wire.gate.clear()
        count = -1
        while count != len(taken):  # until nothing is taken any more
            count = len(taken)
            for _ in range(20):
                await asyncio.sleep(0)
        wire.hang_up()
        wire.gate.set()
        await running

    assert count < 1000


# Its end


def working_until_it_is_stopped() -> ChannelCommand:
    """Return a command that has something to say when it is cancelled."""

    async def handle(context: ChannelCommandContext) -> None:
        await context.reply("working")
        try:
            await asyncio.Event().wait()
        finally:
            await context.reply("stopped")

    return command(handle)


async def has_ended(running: "asyncio.Task[Any]") -> bool:
    """Return whether a task ends by itself: one that is cancelled may end without an error."""
    done, _ = await asyncio.wait({running}, timeout=3)
    running.cancel()
    await asyncio.wait({running})
    return bool(done)


async def test_a_command_that_replies_as_it_is_cancelled_ends_with_its_client() -> None:
    wire = creating(input="/do", stream=True)
    running = wire.start(app_of(working_until_it_is_stopped()))
    await wire.until("working")
    wire.hang_up()

    assert await has_ended(running)
    assert b"stopped" not in wire.body


@pytest.mark.parametrize("stream", [False, True])
async def test_it_ends_when_the_time_is_up(stream: bool) -> None:
    wire = creating(input="/do", stream=stream)
    wire.scope[DEADLINE] = TimeLeft(0.05, 1.0).since(monotonic())

    assert await has_ended(wire.start(app_of(working_until_it_is_stopped())))
    assert b"The server ran out of time." in wire.body
    assert b"stopped" not in wire.body


async def test_it_ends_with_its_connection() -> None:
    socket = Socket(app_of(working_until_it_is_stopped())).start()
    socket.create(input="/do")
    while (await socket.read()).get("delta") != "working":
        pass
    socket.hang_up()

    assert socket.task is not None
    assert await has_ended(socket.task)


async def test_it_lets_its_conversation_go() -> None:
    app = app_of(working_until_it_is_stopped())
    made = await request("POST", "/v1/conversations", {}).run(app)
    wire = creating(input="/do", stream=True, conversation=made.json["id"])
    running = wire.start(app)
    await wire.until("working")
    wire.hang_up()

    assert await has_ended(running)
    assert await answer(app, "Hi", conversation=made.json["id"]) == "You said Hi after 0."


async def test_it_ends_with_its_worker() -> None:
    both = Instances(echo, commands=(working_until_it_is_stopped(),))
    begun = await both.a.begin(input="/do")

    assert await has_ended(both.working(both.b, TimeLeft(0.05, 1.0).since(monotonic())))
    found = (await both.a.get(begun["id"])).json
    assert (found["status"], text_of(found)) == ("failed", "working")


async def test_a_reply_after_the_end_is_not_said_and_holds_up_nobody() -> None:
    may_reply, tasks = asyncio.Event(), list[asyncio.Task[None]]()

    async def handle(context: ChannelCommandContext) -> None:
        async def late() -> None:
            await may_reply.wait()
            await context.reply("late")

        tasks.append(asyncio.create_task(late()))
        await context.reply("in time")

    said_in_time = await answer(app_of(command(handle)), "/do")
    may_reply.set()

    assert await has_ended(tasks[0])
    assert said_in_time == "in time"


async def test_a_task_that_replies_for_ever_stops_nobody_else() -> None:
    tasks = list[asyncio.Task[None]]()

    async def handle(context: ChannelCommandContext) -> None:
        first = asyncio.Event()

        async def ticking() -> None:
            while True:
                await context.reply("tick ")
                first.set()

        tasks.append(asyncio.create_task(ticking()))
        await first.wait()

    app = app_of(command(handle))
    async with asyncio.timeout(3):
        ticked = await answer(app, "/do")
        other = await answer(app, "Hi")
    tasks[0].cancel()
    await asyncio.wait(tasks)

    assert "tick " in ticked
    assert other == "You said Hi after 0."
    assert tasks[0].cancelled()


@pytest.mark.parametrize("given", [None, 7, b"text", TextDelta("text")])
async def test_what_is_no_text_is_no_reply(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def handle(context: ChannelCommandContext) -> None:
        await context.reply(given)

    wire = creating(input="/do")

    assert await has_ended(wire.start(app_of(command(handle))))
    assert wire.status == 500
    assert caplog.messages == ["agent failed: the command /do failed"]
    assert caplog.records[0].__dict__["error_cause"] == "TypeError"


# For whom


def for_alpha(caller: Caller) -> bool:
    return caller.principal.name == "alpha"


SECRET = command(echo_arguments, "secret", for_alpha)


def scrubbed(wire: Wire) -> tuple[int, dict[str, str], bytes]:
    """Return a reply without what differs from one request to another."""
    headers = {name: value for name, value in wire.headers.items() if name != "x-request-id"}
    headers.pop("content-length", None)
    return wire.status, headers, re.sub(rb"(resp|msg|chatcmpl-)_?\w{20,}", b"id", wire.body)


@pytest.mark.parametrize("stream", [False, True])
async def test_for_others_a_command_does_not_exist(stream: bool) -> None:
    def clock() -> float:
        return 1_800_000_000.0

    messages = [{"role": "user", "content": "/secret"}]
    own, foreign = app_of(SECRET, HELP, clock=clock), app_of(HELP, clock=clock)
    replies = [
        [
            await creating(input="/secret", key="key-beta", stream=stream).run(app),
            await asking(messages=messages, key="key-beta", stream=stream).run(app),
            await creating(input="/help", key="key-beta", stream=stream).run(app),
            await get(app, "/v1/commands", key="key-beta"),
        ]
        for app in (own, foreign)
    ]

    assert [scrubbed(wire) for wire in replies[0]] == [scrubbed(wire) for wire in replies[1]]
    assert await answer(own, "/secret") == "done: ''"
    assert await answer(own, "/help") == (
        "- /secret: What /secret does.\n- /help: List the commands."
    )


async def test_a_command_sees_only_those_that_its_caller_may_use() -> None:
    seen: list[list[str]] = []

    async def handle(context: ChannelCommandContext) -> None:
        seen.append([*context.commands])

    app = app_of(command(handle), SECRET)
    for key in ("key-alpha", "key-beta"):
        await create(app, input="/do", key=key)

    assert seen == [["do", "secret"], ["do"]]


async def for_nobody(_: Any, __: Any = None) -> bool:
    return False


class ForNobody:
    async def __call__(self, _: Caller) -> bool:
        return False

    async def look(self, _: Caller) -> bool:
        return False


@pytest.mark.parametrize(
    "is_for",
    [
        for_nobody,
        partial(for_nobody, None),
        ForNobody(),
        partial(partial(ForNobody())),
        ForNobody().look,
    ],
)
def test_who_may_use_a_command_is_not_found_out_later(is_for: Any) -> None:
    with pytest.raises(TypeError, match="is_for of the command /do is async"):
        command(echo_arguments, is_for=is_for)


@pytest.mark.parametrize("given", [1, "yes", None, [True]])
async def test_what_is_no_bool_is_nobodys_command(
    given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(command(echo_arguments, is_for=lambda _: given))

    wires = [
        await creating(input="/do").run(app),
        await asking(messages=[{"role": "user", "content": "/do"}]).run(app),
        await get(app, "/v1/commands"),
    ]

    assert [wire.status for wire in wires] == [500, 500, 500]
    returned = f"is_for of the command /do returned {type(given).__name__}, not bool"
    assert all(returned in message for message in caplog.messages)
    assert await answer(app, "Hi") == to_the_agent("Hi")


@pytest.mark.filterwarnings("error")
async def test_nor_is_one_whose_answer_would_have_to_be_awaited() -> None:
    def is_for(caller: Caller) -> Any:
        return for_nobody(caller)

    wire = await creating(input="/do").run(app_of(command(echo_arguments, is_for=is_for)))

    assert wire.status == 500


async def test_a_worker_that_cannot_tell_whose_a_command_is_fails_its_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[Exception] = []

    def is_for(_: Caller) -> bool:
        if failures:
            raise failures[0]
        return True

    both = Instances(echo, commands=(command(echo_arguments, is_for=is_for),))
    begun = await both.a.begin(input="/do")
    failures.append(RuntimeError("a secret"))

    await both.b.work(both.jobs.held.pop(0))

    found = (await both.a.get(begun["id"])).json
    assert (found["status"], found["output"]) == ("failed", [])
    assert caplog.messages == ["agent failed: is_for of the command /do raised RuntimeError"]
    assert "a secret" not in caplog.text


# Failures


@pytest.mark.parametrize(
    ("error", "status", "message", "code", "param"),
    [
        (
            TurnError("Too many.", code="rate_limit_exceeded", status=429),
            *(429, "Too many.", "rate_limit_exceeded", None),
        ),
        (
            RequestError("No such city.", param="input", code="invalid_value"),
            *(400, "No such city.", "invalid_value", "input"),
        ),
    ],
)
async def test_what_a_command_tells_of_its_failure_reaches_the_client(
    error: Exception, status: int, message: str, code: str, param: str | None
) -> None:
    async def handle(context: ChannelCommandContext) -> None:
        raise error

    app = app_of(command(handle))
    wire = await creating(input="/do").run(app)
    chat = await asking(messages=[{"role": "user", "content": "/do"}]).run(app)

    told = [wire.error_body[name] for name in ("message", "code", "param")]
    assert (wire.status, told) == (status, [message, code, param])
    assert wire.headers["x-should-retry"] == chat.headers["x-should-retry"] == "false"
    assert (chat.status, chat.error_body["message"]) == (status, message)
    assert chat.error_body["param"] == (param and "messages")


NO_CITY = RequestError("No such city.", param="input", code="invalid_value", status=409)


async def test_a_refusal_by_a_command_is_told_wherever_the_reply_has_begun() -> None:
    async def late(context: ChannelCommandContext) -> None:
        await context.reply("so far")
        raise NO_CITY

    async def early(_: ChannelCommandContext) -> None:
        raise NO_CITY

    app = app_of(command(late, "late"), command(early, "early"))
    both = Instances(echo, commands=(command(early, "early"),))
    begun = await both.a.begin(input="/early")
    await both.b.work(both.jobs.held.pop(0))
    async with Socket(app) as socket:
        ending = await socket.turn(input="/early")
    streamed = await creating(input="/late", stream=True).run(app)
    told = [
        (await create(app, input="/late"))["error"],
        (await both.a.get(begun["id"])).json["error"],
        ending["response"]["error"],
        streamed.events[-1]["response"]["error"],
    ]

    assert told == [{"code": "invalid_value", "message": "No such city."}] * 4


async def test_a_completion_is_told_of_it_with_its_status_however_late_it_is() -> None:
    async def handle(context: ChannelCommandContext) -> None:
        await context.reply("so far")
        raise NO_CITY

    app, messages = app_of(command(handle)), [{"role": "user", "content": "/do"}]
    whole = await asking(messages=messages).run(app)
    streamed = await asking(messages=messages, stream=True).run(app)

    expected = {
        "message": "No such city.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "invalid_value",
    }
    assert (whole.status, whole.error_body) == (409, expected)
    assert msgspec.json.encode({"error": expected}) in streamed.body


@pytest.mark.parametrize("error", [RuntimeError("a secret"), SystemExit(3), StoreError("a secret")])
@pytest.mark.parametrize("stream", [False, True])
async def test_any_other_failure_is_hidden_and_the_log_names_the_command(
    error: BaseException, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(context: ChannelCommandContext) -> None:
        raise error

    wire = await creating(input="/do", stream=stream).run(app_of(command(handle)))

    assert wire.status == 500
    assert wire.headers["x-should-retry"] == "false"
    assert wire.error_body["message"].startswith("The agent failed to answer. Request id: req_")
    assert caplog.messages == ["agent failed: the command /do failed"]
    (record,) = caplog.records
    facts = record.__dict__
    assert (facts["error_type"], facts["error_cause"]) == ("CommandError", type(error).__name__)
    assert facts["error_at"][-1].endswith("in handle")
    assert "a secret" not in caplog.text


async def test_a_command_that_cannot_tell_whose_the_others_are_fails_as_a_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: Caller) -> bool:
        raise RuntimeError("a secret")

    wire = await creating(input="/help").run(app_of(HELP, command(echo_arguments, is_for=broken)))

    assert wire.status == 500
    assert caplog.messages == ["agent failed: the command /help failed"]


async def test_a_command_that_fails_after_a_reply_is_a_failed_response() -> None:
    async def handle(context: ChannelCommandContext) -> None:
        await context.reply("so far")
        raise TurnError("Too many.", code="rate_limit_exceeded")

    app = app_of(command(handle))
    response = await create(app, input="/do")
    wire = await creating(input="/do", stream=True).run(app)

    assert (response["status"], text_of(response)) == ("failed", "so far")
    assert response["error"] == {"code": "rate_limit_exceeded", "message": "Too many."}
    assert wire.types[-1] == "failed"


# Several channels


def test_a_host_has_the_commands_of_all_its_channels() -> None:
    other = command(echo_arguments, "other")
    host = AgentHost(
        echo,
        channels=[
            ResponsesChannel(commands=(RESET, HELP)),
            ChatCompletionsChannel(commands=(HELP, other)),
        ],
    )

    assert host.commands == {"reset": RESET, "help": HELP, "other": other}


def test_a_host_whose_channels_have_no_commands_has_none() -> None:
    host = AgentHost(echo, channels=[ResponsesChannel(), ChatCompletionsChannel()])

    assert host.commands == {}


def test_two_commands_of_one_name_are_refused_at_the_start() -> None:
    host = AgentHost(
        echo,
        channels=[
            ResponsesChannel(commands=(command(echo_arguments, "help"),)),
            ChatCompletionsChannel(commands=(HELP,)),
        ],
    )

    with pytest.raises(ValueError, match="two different commands /help"):
        _ = host.app


@pytest.mark.parametrize("channel", [ResponsesChannel, ChatCompletionsChannel])
def test_so_are_they_in_one_channel(channel: Callable[..., Channel]) -> None:
    with pytest.raises(ValueError, match="two different commands /help"):
        channel(commands=(HELP, command(echo_arguments, "help")))


# The list


async def test_the_commands_are_listed_over_http() -> None:
    listed = await get(app_of(RESET, DO), "/v1/commands")

    assert listed.json == {
        "object": "list",
        "data": [
            {"object": "command", "name": "reset", "description": RESET.description},
            {"object": "command", "name": "do", "description": "What /do does."},
        ],
    }


async def test_the_list_is_each_callers_own() -> None:
    app = app_of(SECRET, DO)
    names = [
        [each["name"] for each in (await get(app, "/v1/commands", key=key)).json["data"]]
        for key in ("key-alpha", "key-beta")
    ]

    assert names == [["secret", "do"], ["do"]]


async def test_the_list_needs_a_key() -> None:
    wire = await request("GET", "/v1/commands", key=None).run(app_of())

    assert wire.status == 401


async def test_where_there_are_no_commands_there_is_no_list() -> None:
    app = hosting().app

    nothing, unknown = await get(app, "/v1/commands"), await get(app, "/v1/nothing")
    assert nothing.status == 404
    assert nothing.body.replace(b"commands", b"nothing") == unknown.body


# /help


async def test_help_lists_the_commands() -> None:
    app = app_of()

    assert await answer(app, "/help") == HELP_SAID
    assert await answer(app, "/help me") == HELP_SAID
    assert await chat_answer(app, "/help") == HELP_SAID


# /reset


async def test_after_a_reset_an_agent_is_given_nothing_of_what_was_said() -> None:
    app = app_of()
    first = await create(app, input="My name is Ada.")
    reset = await create(app, input="/reset", previous_response_id=first["id"])
    after = await create(app, input="Hi", previous_response_id=reset["id"])
    later = await create(app, input="Hi", previous_response_id=after["id"])
    fork = await create(app, input="Hi", previous_response_id=first["id"])

    said = [text_of(response) for response in (reset, after, later, fork)]
    assert said == [
        RESET_SAID,
        "You said Hi after 0.",
        "You said Hi after 2.",
        "You said Hi after 2.",
    ]


async def test_nor_what_it_kept() -> None:
    given: list[Mapping[str, Any] | None] = []

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        given.append(turn.state)
        yield "ok"
        yield KeptState({"turns": len(given)})

    app = app_of(agent=agent)
    first = await create(app)
    reset = await create(app, input="/reset", previous_response_id=first["id"])
    await create(app, previous_response_id=reset["id"])

    assert given == [None, None]


async def test_a_conversation_is_begun_anew_in_its_place() -> None:
    app = app_of()
    made = await request("POST", "/v1/conversations", {}).run(app)
    conversation = made.json["id"]
    for said_there in ("Hi", "/reset"):
        await create(app, input=said_there, conversation=conversation)

    assert await answer(app, "Hi", conversation=conversation) == "You said Hi after 0."


async def test_a_connection_forgets_too() -> None:
    async with Socket(app_of()) as socket:
        first = await socket.response(input="Hi", store=False)
        reset = await socket.response(input="/reset", store=False, previous_response_id=first["id"])
        after = await socket.text(input="Hi", store=False, previous_response_id=reset["id"])

    assert after == "You said Hi after 0."


async def test_the_session_of_the_request_is_reset() -> None:
    host = hosting(RESET)
    first = await create(host.app)
    await create(host.app, input="/reset", previous_response_id=first["id"])

    assert host.reset == [(IsolationKeys("alpha"), first["id"])]


async def test_the_chat_of_a_delegate_begins_anew() -> None:
    app = app_of()

    async def answered(given: str) -> str:
        headers = {"x-agent-chat-isolation-key": "chat-1"}
        body = {"input": given}
        wire = await request("POST", "/v1/responses", body, key="key-agency", headers=headers).run(
            app
        )
        return text_of(wire.json)

    said_there = [await answered(each) for each in ("Hi", "Hi", "/reset", "Hi")]

    assert said_there == [
        "You said Hi after 0.",
        "You said Hi after 2.",
        RESET_SAID,
        "You said Hi after 0.",
    ]


CHAT = {"x-agent-chat-isolation-key": "chat-1"}


async def said_in_chat(app: ASGIApp, given: Any, **fields: Any) -> dict[str, Any]:
    body = {"input": given, **fields}
    wire = await request("POST", "/v1/responses", body, key="key-agency", headers=CHAT).run(app)
    assert wire.status == 200, wire.body
    response: dict[str, Any] = wire.json
    return response


@pytest.mark.parametrize("store", [True, False])
async def test_so_it_does_whatever_its_reset_goes_on_after(store: bool) -> None:
    host = hosting(RESET)
    first = await said_in_chat(host.app, "Hi")
    await said_in_chat(host.app, "/reset", previous_response_id=first["id"], store=store)
    after = await said_in_chat(host.app, "Hi")

    keys = IsolationKeys("agency", "chat-1")
    assert host.reset == [(keys, first["id"]), (keys, "chat-1")]
    assert text_of(after) == "You said Hi after 0."


async def test_so_it_does_when_it_is_reset_over_a_connection() -> None:
    app = app_of()
    await said_in_chat(app, "Hi")
    async with Socket(app, key="key-agency", headers=CHAT) as socket:
        aside = await socket.response(input="aside", store=False)
        await socket.response(input="/reset", store=False, previous_response_id=aside["id"])
        after = await socket.text(input="Hi", store=False)

    assert text_of(aside) == "You said aside after 2."
    assert after == "You said Hi after 0."


async def test_a_reset_in_a_conversation_leaves_the_chat_as_it_is() -> None:
    host = hosting(RESET)
    made = await request("POST", "/v1/conversations", {}, key="key-agency", headers=CHAT).run(
        host.app
    )
    conversation = made.json["id"]
    await said_in_chat(host.app, "Hi")
    await said_in_chat(host.app, "Hi", conversation=conversation)
    await said_in_chat(host.app, "/reset", conversation=conversation)

    in_chat = await said_in_chat(host.app, "Hi")
    in_conversation = await said_in_chat(host.app, "Hi", conversation=conversation)

    assert host.reset == []
    assert text_of(in_chat) == "You said Hi after 2."
    assert text_of(in_conversation) == "You said Hi after 0."


async def test_a_reset_that_a_hook_took_the_session_from_leaves_the_chat_as_it_is() -> None:
    def hook(asked: ChannelRequest, /, **_: Any) -> ChannelRequest:
        return replace(asked, session_mode="disabled") if typed(asked.input) else asked

    host = hosting(RESET, run_hook=hook)
    first = await said_in_chat(host.app, "Hi")
    await said_in_chat(host.app, "/reset", previous_response_id=first["id"])

    assert host.reset == []
    assert text_of(await said_in_chat(host.app, "Hi")) == "You said Hi after 2."


async def test_a_request_without_a_session_has_none_to_reset() -> None:
    host = hosting(RESET)

    assert await answer(host.app, "/reset") == RESET_SAID
    assert await chat_answer(host.app, "/reset") == RESET_SAID
    assert host.reset == []


async def test_a_request_that_a_hook_took_the_session_from_has_none_to_reset_either() -> None:
    def hook(asked: ChannelRequest, /, **_: Any) -> ChannelRequest:
        return replace(asked, session_mode="disabled")

    host = hosting(RESET, run_hook=hook)
    first = await create(host.app)
    reset = await create(host.app, input="/reset", previous_response_id=first["id"])
    after = await answer(host.app, "Hi", previous_response_id=reset["id"])

    assert (host.reset, after) == ([], "You said Hi after 0.")


async def test_a_completion_in_a_chat_resets_the_session_of_that_chat() -> None:
    host = hosting(RESET)
    headers = {"x-agent-chat-isolation-key": "chat-1"}
    body = {"model": "agent", "messages": [{"role": "user", "content": "/reset"}]}
    wire = await request(
        "POST", "/v1/chat/completions", body, key="key-agency", headers=headers
    ).run(host.app)

    assert message_of(wire.json)["content"] == RESET_SAID
    assert host.reset == [(IsolationKeys("agency", "chat-1"), "chat-1")]


async def test_a_client_that_tells_everything_again_is_told_so() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "/reset"},
    ]
    completion = await completed(app_of(), messages=messages)

    assert message_of(completion)["content"] == (
        f"{RESET_SAID} This client sends it again, though: begin a new chat there as well."
    )


async def test_a_reset_that_fails_is_a_failure_and_resets_nothing() -> None:
    host = hosting(RESET)
    first = await create(host.app)
    host.failure = StoreError("The table is gone.")
    failed = await creating(input="/reset", previous_response_id=first["id"]).run(host.app)
    host.failure = None

    assert failed.status == 500
    assert (await answer(host.app, "Hi", previous_response_id=first["id"])).endswith("after 2.")


# Where a function call waits for its output

F = {"type": "function", "name": "f"}
ANSWER = {"type": "function_call_output", "call_id": "call_1", "output": "42"}
UNANSWERED = "No tool output found for function call call_1."


async def calling(turn: Turn) -> AsyncIterator[AgentEvent]:
    """Call a function where the text is `call`; else say how many items came before."""
    if turn.text == "call":
        yield FunctionCall("f", "{}", "call_1")
    else:
        yield f"after {len(turn.history)}"


async def called(app: ASGIApp, **fields: Any) -> str:
    response = await create(app, input="call", tools=[F], **fields)
    identifier: str = response["id"]
    return identifier


async def test_a_reset_begins_anew_where_a_call_waits_for_its_output() -> None:
    app = app_of(agent=calling)
    refused = await creating(input="Hi", previous_response_id=await called(app)).run(app)

    reset = await create(app, input="/reset", previous_response_id=await called(app))
    after = await answer(app, "Hi", previous_response_id=reset["id"])

    assert (refused.status, refused.error_body["message"]) == (400, UNANSWERED)
    assert (text_of(reset), after) == (RESET_SAID, "after 0")


async def test_so_it_does_in_a_conversation_a_chat_and_a_connection() -> None:
    app = app_of(agent=calling)
    conversation = (await request("POST", "/v1/conversations", {}).run(app)).json["id"]
    await called(app, conversation=conversation)
    await answer(app, "/reset", conversation=conversation)
    await said_in_chat(app, "call", tools=[F])
    await said_in_chat(app, "/reset")
    async with Socket(app) as socket:
        first = await socket.response(input="call", tools=[F], store=False)
        reset = await socket.response(input="/reset", store=False, previous_response_id=first["id"])
        after = await socket.text(input="Hi", store=False, previous_response_id=reset["id"])

    assert await answer(app, "Hi", conversation=conversation) == "after 0"
    assert text_of(await said_in_chat(app, "Hi")) == "after 0"
    assert after == "after 0"


async def test_so_it_does_in_the_background() -> None:
    both = Instances(calling, commands=(RESET,))
    first = await both.a.post("/v1/responses", {"input": "call", "tools": [F]})
    begun = await both.a.begin(input="/reset", previous_response_id=first.json["id"])
    await both.b.work(both.jobs.held.pop(0))

    found = (await both.a.get(begun["id"])).json
    assert (found["status"], text_of(found)) == ("completed", RESET_SAID)


async def test_another_command_is_refused_there_and_the_call_can_still_be_answered() -> None:
    app = app_of(agent=calling)
    first = await called(app)
    refused = await creating(input="/help", previous_response_id=first).run(app)
    answered = await answer(app, [ANSWER], previous_response_id=first)

    assert (refused.status, refused.error_body["message"]) == (400, UNANSWERED)
    assert answered == "after 2"


async def test_a_command_of_ones_own_may_reset_there_too_if_it_says_so() -> None:
    async def handle(context: ChannelCommandContext) -> None:
        await context.reset_session()
        await context.reply("new")

    app = app_of(
        ChannelCommand("new", "Begin anew.", handle, resets=True),
        ChannelCommand("silent", "Begin anew.", handle),
        agent=calling,
    )
    first = await called(app)
    silent = await creating(input="/silent", previous_response_id=first).run(app)
    new = await create(app, input="/new", previous_response_id=first)

    assert (silent.status, text_of(new)) == (400, "new")
    assert await answer(app, "Hi", previous_response_id=new["id"]) == "after 0"


async def test_a_command_that_says_so_and_does_not_reset_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of(ChannelCommand("new", "Begin anew.", echo_arguments, resets=True), agent=calling)

    response = await create(app, input="/new", previous_response_id=await called(app))

    assert response["status"] == "failed"
    assert caplog.messages == [
        "agent failed: the command /new has `resets`, and did not call reset_session"
    ]


async def test_for_others_than_its_own_callers_no_call_is_left_waiting() -> None:
    app = app_of(replace(RESET, is_for=lambda _: False), agent=calling)
    refused = await creating(input="/reset", previous_response_id=await called(app)).run(app)

    assert (refused.status, refused.error_body["message"]) == (400, UNANSWERED)


async def test_a_reset_that_a_hook_makes_a_message_needs_the_output_after_all() -> None:
    def hook(asked: ChannelRequest, /, **_: Any) -> ChannelRequest:
        is_command = typed(asked.input) is not None
        return replace(asked, input=[message("user", "Hi")]) if is_command else asked

    app = app_of(agent=calling, run_hook=hook)
    refused = await creating(input="/reset", previous_response_id=await called(app)).run(app)

    assert (refused.status, refused.error_body["message"]) == (400, UNANSWERED)


async def test_an_output_without_its_call_is_refused_before_a_reset_too() -> None:
    app, first = app_of(agent=calling), {**ANSWER, "call_id": "call_2"}
    given = [first, {"role": "user", "content": "/reset"}]
    refused = await creating(input=given, previous_response_id=await called(app)).run(app)

    assert refused.status == 400
    assert refused.error_body["message"].startswith("No tool call found")
