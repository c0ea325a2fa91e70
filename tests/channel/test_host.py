import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from channel.agent import AgentEvent, Turn
from channel.auth import Caller, Principal
from channel.contract import (
    ChannelContext,
    ChannelContribution,
    ChannelRequest,
    ChannelSession,
    HostedRunResult,
)
from channel.host import AgentHost
from channel.isolation import IsolationKeys, get_current_isolation_keys
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.errors import RequestError
from channel.targets import ChannelIdentity
from tests.channel.asgi import KEYS, Wire, create, request


pytestmark = pytest.mark.anyio

CALLER = Caller(Principal("acme"), IsolationKeys("acme"))
Callback = Callable[[], Awaitable[None]]


async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield "you said "
    yield turn.text


class OtherChannel:
    """A channel that contributes what it is given."""

    name = "other"

    def __init__(
        self,
        routes: Sequence[BaseRoute] = (),
        *,
        path: str = "/other",
        on_startup: Sequence[Callback] = (),
        on_shutdown: Sequence[Callback] = (),
    ) -> None:
        self.path = path
        self.contexts: list[ChannelContext] = []
        self._contribution = ChannelContribution(routes, on_startup, on_shutdown)

    def contribute(self, context: ChannelContext, /) -> ChannelContribution:
        self.contexts.append(context)
        return self._contribution


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def hosting(*channels: Any, **options: Any) -> AgentHost:
    return AgentHost(agent, channels=channels, authenticator=KEYS, **options)


async def ask(host: AgentHost, path: str, method: str = "GET", **options: Any) -> Wire:
    return await request(method, path, **options).run(host.app)


# Assembly


async def test_the_health_check_needs_no_key_and_no_channel_shadows_it() -> None:
    shadow = OtherChannel([Route("/readiness", hello)], path="")

    wire = await ask(hosting(shadow), "/readiness", key=None)

    assert (wire.status, wire.body) == (200, b"ok")


@pytest.mark.parametrize(("path", "url"), [("/other", "/other/hello"), ("", "/hello")])
async def test_a_channel_lies_below_its_path_or_at_the_root(path: str, url: str) -> None:
    wire = await ask(hosting(OtherChannel([Route("/hello", hello)], path=path)), url)

    assert (wire.status, wire.body) == (200, b"hello")


async def test_several_channels_lie_side_by_side() -> None:
    other = OtherChannel([Route("/hello", hello)], path="/v1/other")
    host = hosting(ResponsesChannel(), other)

    assert (await create(host.app))["status"] == "completed"
    assert (await ask(host, "/v1/other/hello")).body == b"hello"


async def test_every_route_of_a_channel_is_reached_whatever_its_kind() -> None:
    async def socket(_: WebSocket) -> None: ...

    other = OtherChannel(
        [
            WebSocketRoute("/socket", socket),
            Mount("/inner", routes=[Route("/hello", hello)]),
            Route("/hello", hello),
        ]
    )
    host = hosting(other)

    assert (await ask(host, "/other/hello")).body == b"hello"
    assert (await ask(host, "/other/inner/hello")).body == b"hello"


async def test_a_route_keeps_its_methods_and_may_be_an_app() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("app")(scope, receive, send)

    class App:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)

    host = hosting(OtherChannel([Route("/app", App(), methods=["PUT"])]))

    assert (await ask(host, "/other/app", "PUT")).body == b"app"
    assert (await ask(host, "/other/app")).status == 405


def test_the_app_is_built_once_when_it_is_asked_for() -> None:
    channel = OtherChannel()
    host = hosting(channel)

    before = [*channel.contexts]
    apps = {id(host.app), id(host.app)}

    assert (before, len(apps), channel.contexts) == ([], 1, [host])


def test_a_target_that_is_no_agent_stops_the_start() -> None:
    nothing: Any = "agent"

    with pytest.raises(TypeError, match="an agent is an async generator function"):
        AgentHost(nothing, channels=[])


async def test_a_host_without_an_authenticator_lets_nobody_in() -> None:
    host = AgentHost(agent, channels=[ResponsesChannel()])

    refused = await ask(host, "/v1/models")
    healthy = await ask(host, "/readiness")

    assert (refused.status, healthy.status) == (401, 200)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/nothing", "/", "/readiness/"])
async def test_without_a_key_every_path_is_the_same_401(path: str) -> None:
    wire = await ask(hosting(ResponsesChannel()), path, key=None)

    assert (wire.status, wire.headers["www-authenticate"]) == (401, "Bearer")
    assert wire.error_body == {
        "message": "No API key provided. Send it as 'Authorization: Bearer KEY'.",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }


# CORS

PREFLIGHT = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


async def test_a_page_of_a_permitted_origin_may_ask_first_without_a_key() -> None:
    host = hosting(ResponsesChannel(), cors_origins=["https://app.example"])

    wire = await ask(host, "/v1/responses", "OPTIONS", key=None, headers=PREFLIGHT)

    assert wire.status == 200
    assert wire.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in wire.headers["access-control-allow-headers"]
    assert "x-request-id" in wire.headers


@pytest.mark.parametrize(("key", "status"), [("key-alpha", 200), (None, 401)])
async def test_a_page_of_a_permitted_origin_may_read_replies_and_errors(
    key: str | None, status: int
) -> None:
    host = hosting(ResponsesChannel(), cors_origins=["https://app.example"])

    wire = await ask(host, "/v1/models", key=key, headers={"origin": "https://app.example"})

    assert wire.status == status
    assert wire.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in wire.headers["access-control-expose-headers"]


async def test_a_page_of_another_origin_may_not() -> None:
    host = hosting(ResponsesChannel(), cors_origins=["https://app.example"])
    headers = {**PREFLIGHT, "origin": "https://evil.example"}

    asked = await ask(host, "/v1/responses", "OPTIONS", key=None, headers=headers)
    read = await ask(host, "/v1/models", headers=headers)

    assert asked.status == 400
    assert "access-control-allow-origin" not in {**asked.headers, **read.headers}


async def test_cors_is_off_unless_origins_are_named() -> None:
    host = hosting(ResponsesChannel())

    asked = await ask(host, "/v1/responses", "OPTIONS", headers=PREFLIGHT)
    read = await ask(host, "/v1/models", headers=PREFLIGHT)

    assert asked.status == 405
    assert not any(name.startswith("access-control") for name in {**asked.headers, **read.headers})


async def test_a_stream_may_be_read_by_a_page_too() -> None:
    host = hosting(ResponsesChannel(), cors_origins=["*"])

    wire = await ask(
        host,
        "/v1/responses",
        "POST",
        body={"input": "hi", "stream": True},
        headers={"origin": "https://app.example"},
    )

    assert wire.headers["access-control-allow-origin"] == "*"
    assert wire.types[-1] == "completed"


# Lifespan


class Life:
    """Runs the lifespan of an app as a server does."""

    def __init__(self, host: AgentHost) -> None:
        self._app = host.app
        self._asked: asyncio.Queue[Message] = asyncio.Queue()
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self._app({"type": "lifespan", "asgi": {}}, self._asked.get, self._told.put)

    async def ask(self, phase: str) -> str:
        self._asked.put_nowait({"type": f"lifespan.{phase}"})
        with anyio.fail_after(5):
            told: str = (await self._told.get())["type"]
        return told.removeprefix("lifespan.")

    async def failure(self) -> BaseException | None:
        with anyio.fail_after(5):
            await asyncio.wait([self._task])
        return self._task.exception()


def noting(lines: list[str], line: str, error: Exception | None = None) -> Callback:
    async def callback() -> None:
        lines.append(line)
        if error is not None:
            raise error

    callback.__qualname__ = line
    return callback


async def test_every_channel_is_started_and_stopped_in_order() -> None:
    lines: list[str] = []
    channels = [
        OtherChannel(
            path=f"/{name}",
            on_startup=[noting(lines, f"start {name}")],
            on_shutdown=[noting(lines, f"stop {name}")],
        )
        for name in "ab"
    ]
    life = Life(hosting(*channels))

    told = [await life.ask("startup"), await life.ask("shutdown")]

    assert told == ["startup.complete", "shutdown.complete"]
    assert lines == ["start a", "start b", "stop a", "stop b"]
    assert await life.failure() is None


async def test_an_agent_lets_go_of_what_it_holds_when_the_app_stops() -> None:
    lines: list[str] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield turn.text

    agent.aclose = noting(lines, "agent closed")  # type: ignore[attr-defined]
    life = Life(AgentHost(agent, channels=[]))

    assert await life.ask("startup") == "startup.complete"
    assert lines == []
    assert await life.ask("shutdown") == "shutdown.complete"
    assert lines == ["agent closed"]


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_every_callback_runs_and_is_logged_by_name_and_the_first_failure_is_raised(
    phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    first, second = KeyError("secret"), ValueError("secret")
    callbacks = [
        noting(lines, "one", first),
        noting(lines, "two"),
        noting(lines, "three", second),
    ]
    options: dict[str, Any] = {f"on_{phase}": callbacks}
    life = Life(hosting(OtherChannel(**options)))

    told = await life.ask("startup")
    if phase == "shutdown":
        told = await life.ask("shutdown")

    assert (told, lines) == (f"{phase}.failed", ["one", "two", "three"])
    assert await life.failure() is first
    assert [record.getMessage() for record in caplog.records] == [
        f"{phase} callback one failed: KeyError",
        f"{phase} callback three failed: ValueError",
    ]
    assert "secret" not in caplog.text


# The context: running the target

REQUEST = ChannelRequest(
    channel="other",
    operation="message.create",
    caller=CALLER,
    input=[{"type": "message", "role": "user", "content": "hi"}],
)


async def test_a_channel_runs_the_target_to_its_end() -> None:
    request = ChannelRequest(
        channel="other",
        operation="message.create",
        caller=CALLER,
        input=REQUEST.input,
        session=ChannelSession("s"),
    )

    run = await hosting().run(request)

    assert run == HostedRunResult(["you said ", "hi"], ChannelSession("s"))
    assert run.text == "you said hi"


async def test_a_request_becomes_a_turn() -> None:
    turns: list[Turn] = []

    async def notes(turn: Turn) -> str:
        turns.append(turn)
        return ""

    tools = [{"type": "function", "name": "f"}]
    history = [{"type": "x"}]
    request = ChannelRequest(
        channel="other",
        operation="message.create",
        caller=CALLER,
        input=REQUEST.input,
        history=history,
        instructions="Be brief.",
        model="m",
        tools=tools,
        tool_choice="none",
        parallel_tool_calls=False,
        options={"top_p": 1},
        metadata={"k": "v"},
        attributes={"response_id": "resp_2", "previous_response_id": "resp_1"},
        identity=ChannelIdentity("other", "ann"),
    )

    await AgentHost(notes, channels=[]).run(request)

    assert turns == [
        Turn(
            input=REQUEST.input,
            history=history,
            instructions="Be brief.",
            model="m",
            tools=tools,
            tool_choice="none",
            parallel_tool_calls=False,
            options={"top_p": 1},
            metadata={"k": "v"},
            response_id="resp_2",
            previous_response_id="resp_1",
            principal=CALLER.principal,
            isolation_keys=CALLER.keys,
            safety_identifier="ann",
        )
    ]


@pytest.mark.parametrize("session", [None, ChannelSession(), ChannelSession(None)])
async def test_a_required_session_that_is_missing_is_a_409(session: ChannelSession | None) -> None:
    request = ChannelRequest(
        channel="other",
        operation="message.create",
        caller=CALLER,
        input=[],
        session=session,
        session_mode="required",
    )

    with pytest.raises(RequestError) as caught:
        hosting().run_stream(request)

    assert (caught.value.status, caught.value.code) == (409, "session_required")


async def test_a_required_session_that_is_there_is_fine() -> None:
    request = ChannelRequest(
        channel="other",
        operation="message.create",
        caller=CALLER,
        input=REQUEST.input,
        session=ChannelSession("s"),
        session_mode="required",
    )

    assert (await hosting().run(request)).text == "you said hi"


# Isolation of concurrent requests


async def test_the_keys_of_concurrent_requests_do_not_mix() -> None:
    seen: dict[str, list[IsolationKeys | None]] = {"alpha": [], "beta": []}
    both = asyncio.Barrier(2)

    async def watches(turn: Turn) -> AsyncIterator[AgentEvent]:
        assert turn.principal is not None
        for _ in range(5):
            seen[turn.principal.name].append(get_current_isolation_keys())
            await both.wait()
            yield "a"

    host = AgentHost(watches, channels=[ResponsesChannel()], authenticator=KEYS)
    with anyio.fail_after(5):
        await asyncio.gather(create(host.app), create(host.app, key="key-beta", stream=False))

    assert seen == {"alpha": [IsolationKeys("alpha")] * 5, "beta": [IsolationKeys("beta")] * 5}
    assert get_current_isolation_keys() is None
