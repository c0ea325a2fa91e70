from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from channel.http import (
    MAX_BODY_BYTES,
    ClientGoneError,
    ErrorReplies,
    JSONReply,
    RequestIds,
    read_body,
    request_id,
)
from channel.ports import StoreError
from channel.responses.protocol.errors import RequestError
from tests.channel.asgi import Wire


pytestmark = pytest.mark.anyio


def scope_of(*headers: tuple[bytes, bytes]) -> Scope:
    return {"type": "http", "method": "POST", "path": "/", "headers": [*headers]}


def receiving(*messages: Message) -> Receive:
    waiting = [*messages]

    async def receive() -> Message:
        return waiting.pop(0)

    return receive


def chunk(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


GONE: Message = {"type": "http.disconnect"}
FULL = b"x" * MAX_BODY_BYTES


# Bodies


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        ([chunk(b"")], b""),
        ([{"type": "http.request"}], b""),
        ([chunk(b"ab")], b"ab"),
        ([chunk(b"a", more=True), chunk(b"", more=True), chunk(b"b")], b"ab"),
        ([chunk(FULL)], FULL),
        ([chunk(FULL, more=True), chunk(b"")], FULL),
    ],
)
async def test_a_body_is_read_whole(messages: list[Message], body: bytes) -> None:
    assert await read_body(scope_of(), receiving(*messages)) == body


@pytest.mark.parametrize(
    ("headers", "messages"),
    [
        ([(b"content-length", b"6291457")], []),
        ([(b"content-length", b"9" * 4000)], []),
        ([(b"content-length", b"9" * 5000)], []),
        ([], [chunk(FULL + b"x")]),
        ([], [chunk(FULL, more=True), chunk(b"x")]),
        ([], [chunk(FULL, more=True), chunk(b"x", more=True)]),
        ([(b"content-length", b"-1")], [chunk(FULL + b"x")]),
        ([(b"content-length", b"1")], [chunk(FULL + b"x")]),
    ],
)
async def test_a_body_too_large_is_a_413_as_soon_as_it_is_known(
    headers: list[tuple[bytes, bytes]], messages: list[Message]
) -> None:
    with pytest.raises(RequestError) as caught:
        await read_body(scope_of(*headers), receiving(*messages))

    assert (caught.value.status, caught.value.code, caught.value.message) == (
        413,
        "request_too_large",
        "The request is too large: its body may have at most 6 MB.",
    )


@pytest.mark.parametrize("messages", [[GONE], [chunk(b"a", more=True), GONE]])
async def test_a_client_that_goes_while_it_sends_is_gone(messages: list[Message]) -> None:
    with pytest.raises(ClientGoneError):
        await read_body(scope_of(), receiving(*messages))


# Request ids


async def served(app: Any, **scope: Any) -> Wire:
    wire = Wire("GET", "/")
    wire.scope.update(scope)
    return await wire.run(app)


async def names_itself(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONReply(request_id.get())(scope, receive, send)


async def test_a_reply_has_the_id_that_the_app_sees() -> None:
    one = await served(RequestIds(names_itself))
    two = await served(RequestIds(names_itself))

    assert one.json == one.headers["x-request-id"] != two.json
    assert len(one.json) == len("req_") + 32
    assert request_id.get() == ""


async def test_on_lambda_it_is_the_invocations() -> None:
    context = SimpleNamespace(aws_request_id="8b0f-é\n")

    wire = await served(RequestIds(names_itself), **{"aws.context": context})

    assert wire.headers["x-request-id"].startswith("8b0f-")


async def test_other_scopes_pass_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    wire = Wire("GET", "/")
    wire.scope["type"] = "lifespan"
    await wire.run(RequestIds(ErrorReplies(app)))

    assert seen == [wire.scope]


# Errors


def raising(error: Exception) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    return RequestIds(ErrorReplies(app))


async def test_a_request_error_is_its_reply() -> None:
    error = RequestError("No.", param="p", code="c", status=429, headers={"retry-after": "1"})

    wire = await served(raising(error))

    assert (wire.status, wire.headers["retry-after"]) == (429, "1")
    assert wire.error_body == {
        "message": "No.",
        "type": "rate_limit_error",
        "param": "p",
        "code": "c",
    }


async def test_a_401_says_how_to_authenticate() -> None:
    wire = await served(raising(RequestError("No.", status=401)))

    assert (wire.status, wire.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_request_error_may_hold_any_text() -> None:
    wire = await served(raising(RequestError("no \ud800\0é", param="é")))

    assert wire.status == 400


async def test_a_store_that_is_down_is_a_503() -> None:
    wire = await served(raising(StoreError("secret")))

    assert (wire.status, wire.headers["x-should-retry"]) == (503, "true")
    assert b"secret" not in wire.body


async def test_anything_else_is_a_500_without_its_text() -> None:
    wire = await served(raising(KeyError("secret")))

    assert wire.status == 500
    assert wire.error_body["type"] == "server_error"
    assert b"secret" not in wire.body


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (404, "Unknown request URL. Please check the URL for typos.", "unknown_url"),
        (405, "Method not allowed on this URL.", None),
        (418, "The request cannot be served.", None),
    ],
)
async def test_starlettes_own_errors_have_the_same_shape(
    status: int, said: str, code: str | None
) -> None:
    error = HTTPException(status, "secret", headers={"allow": "GET"})

    wire = await served(raising(error))

    assert (wire.status, wire.headers["allow"]) == (status, "GET")
    assert wire.error_body == {
        "message": said,
        "type": "invalid_request_error",
        "param": None,
        "code": code,
    }


async def test_a_client_that_is_gone_gets_nothing() -> None:
    wire = await served(raising(ClientGoneError()))

    assert wire.sent == []


async def test_a_reply_that_has_begun_is_not_begun_again() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("secret")

    wire = Wire("GET", "/")
    with pytest.raises(KeyError):
        await wire.run(RequestIds(ErrorReplies(app)))

    assert [message["type"] for message in wire.sent] == ["http.response.start"]


async def test_a_json_reply() -> None:
    wire = await served(JSONReply({"a": "é"}, status=201, headers={"x-a": "b"}))

    assert wire.sent == [
        {
            "type": "http.response.start",
            "status": 201,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"10"),
                (b"x-a", b"b"),
            ],
        },
        {"type": "http.response.body", "body": '{"a":"é"}'.encode(), "more_body": False},
    ]
