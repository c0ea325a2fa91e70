"""The buffered mount: every kind of event, one lifespan, one loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from channel.agent import Turn
from channel.auth import FixedKeys, Principal
from channel.contract import ChannelCommand, ChannelCommandContext
from channel.host import AgentHost
from channel.responses.channel import ResponsesChannel
from handler.mount import LambdaHandler
from tests.handler.events import DOORS, Context, function_url


Door = Callable[..., dict[str, Any]]


@contextmanager
def mounted(app: ASGIApp) -> Iterator[LambdaHandler]:
    mount = LambdaHandler(app)
    try:
        yield mount
    finally:
        mount.close()
        asyncio.set_event_loop(None)


async def echo(request: Request) -> JSONResponse:
    body = (await request.body()).decode()
    seen = {"body": body, "key": request.headers["x-api-key"], "query": request.url.query}
    return JSONResponse(seen)


async def words(_request: Request) -> StreamingResponse:
    return StreamingResponse(
        iter(["data: grüß\n\n", "data: dich\n\n"]), media_type="text/event-stream"
    )


@pytest.mark.parametrize("door", DOORS)
def test_a_json_request_is_answered_as_text_through_every_door(door: Door) -> None:
    with mounted(Starlette(routes=[Route("/v1/echo", echo, methods=["POST"])])) as handler:
        body = '{"input": "grüß dich"}'.encode()
        event = door("POST", "/v1/echo?limit=2", {"x-api-key": "k"}, body)

        answer = handler(event, Context())

    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, False)
    assert json.loads(answer["body"]) == {"body": body.decode(), "key": "k", "query": "limit=2"}


def test_a_command_that_replies_as_it_is_cancelled_ends_within_its_invocation() -> None:
    async def handle(context: ChannelCommandContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await context.reply("stopped")

    class ShortContext(Context):
        def get_remaining_time_in_millis(self) -> int:
            return 1_000

    async def agent(_turn: Turn) -> AsyncIterator[str]:
        yield "ok"

    commands = [ChannelCommand("do", "Wait.", handle)]
    channel = ResponsesChannel(commands=commands, first_event_grace_s=0.01)
    app = AgentHost(
        agent, channels=[channel], authenticator=FixedKeys({"key": Principal("alpha")})
    ).app
    headers = {"authorization": "Bearer key", "content-type": "application/json"}
    with mounted(app) as handler:
        answer = handler(
            function_url("POST", "/v1/responses", headers, b'{"input": "/do"}'), ShortContext()
        )

    assert answer["statusCode"] == 504
    assert "stopped" not in answer["body"]


@pytest.mark.parametrize("door", DOORS)
def test_a_stream_is_answered_whole_and_as_text_through_every_door(door: Door) -> None:
    with mounted(Starlette(routes=[Route("/v1/words", words)])) as handler:
        answer = handler(door("GET", "/v1/words"), Context())

    assert (answer["body"], answer["isBase64Encoded"]) == ("data: grüß\n\ndata: dich\n\n", False)


def test_the_lifespan_runs_once_around_all_events_on_one_loop() -> None:
    said: list[str] = []
    loops: set[int] = set()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, str]]:
        said.append("startup")
        loops.add(id(asyncio.get_running_loop()))
        yield {"table": "open"}
        said.append("shutdown")

    async def state(request: Request) -> JSONResponse:
        said.append("request")
        loops.add(id(asyncio.get_running_loop()))
        return JSONResponse(request.state.table)

    app = Starlette(routes=[Route("/", state)], lifespan=lifespan)
    with mounted(app) as handler:
        answers = [handler(function_url("GET", "/"), Context())["body"] for _ in range(2)]

    assert answers == ['"open"', '"open"']
    assert said == ["startup", "request", "request", "shutdown"]
    assert len(loops) == 1


def test_a_failed_startup_stops_the_init_with_its_cause() -> None:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if _app.debug is not None:
            msg = "no table"
            raise LookupError(msg)
        yield

    with pytest.raises(LookupError, match="no table"):
        LambdaHandler(Starlette(lifespan=lifespan))


async def ignores(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await JSONResponse("served")(scope, receive, send)


async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await JSONResponse("served")(scope, receive, send)


@pytest.mark.parametrize("app", [ignores, refuses])
def test_an_app_without_a_lifespan_is_served_all_the_same(app: ASGIApp) -> None:
    with mounted(app) as handler:
        answer = handler(function_url("GET", "/"), Context())

    assert answer["body"] == '"served"'


def test_an_app_that_says_that_it_cannot_start_is_an_error() -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    with pytest.raises(RuntimeError, match=r"ended without lifespan\.startup\.complete"):
        LambdaHandler(app)


async def too_much(_request: Request) -> StreamingResponse:
    return StreamingResponse(iter(['"' * (4 * 1024 * 1024)]), media_type="text/event-stream")


@pytest.mark.parametrize("door", DOORS)
def test_a_reply_that_lambda_cannot_carry_is_an_error_that_clients_can_read(door: Door) -> None:
    with mounted(Starlette(routes=[Route("/v1/much", too_much)])) as handler:
        reply = handler(door("GET", "/v1/much", {"x-api-key": "k"}), Context())

    headers = reply.get("headers") or {
        name: values[-1] for name, values in reply["multiValueHeaders"].items()
    }
    assert (reply["statusCode"], headers["x-should-retry"]) == (500, "false")
    assert json.loads(reply["body"])["error"]["code"] == "reply_too_large"
    assert headers["content-type"] == "application/json"
