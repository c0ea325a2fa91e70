"""Invocations and what becomes of them: whatever an app or a worker does, Lambda gets an answer."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.dispatch import Dispatcher
from handler.events import DoorSettings
from handler.mount import Worker
from handler.runtime_api import Invocation, Reply, RuntimeApiError
from handler.runtime_client import Line
from infra.settings import RuntimeSettings
from tests.handler.events import function_url, http_api, load_balancer, rest_api
from tests.handler.runtime_server import (
    PATH,
    Lambda,
    Request,
    read_chunk,
    read_head,
    read_request,
    reply as said,
    reset,
    server,
)


pytestmark = pytest.mark.anyio

Door = Callable[..., dict[str, Any]]
Answering = Callable[..., Coroutine[Any, Any, Reply]]

SECRET = "the user's words"
STREAMS = DoorSettings(rest_api_streams=True)
STREAMED: list[Door] = [function_url, rest_api]
WHOLE: list[Door] = [http_api, load_balancer]
DOORS = [*STREAMED, *WHOLE]
LONG_MS = 2**42
SHORT_MS = 20  # at a clock that stands still at 0


# --- an invocation and its answer ----------------------------------------------------------------


@asynccontextmanager
async def dispatching(
    app: ASGIApp,
    address: str,
    *,
    worker: Worker | None = None,
    doors: DoorSettings = STREAMS,
    deadline_ms: int = LONG_MS,
) -> AsyncIterator[Answering]:
    """A dispatcher that answers events to this Runtime API, all by one line."""
    settings = RuntimeSettings(api_address=address, handler="")
    dispatcher = Dispatcher(app, worker, doors, settings, lambda: 0.0)
    line = Line(address)

    async def answer(event: Any, request_id: str = "id-1") -> Reply:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        return await dispatcher.answer(Invocation(request_id, body, deadline_ms), line)

    try:
        yield answer
    finally:
        line.drop()


@dataclass
class Answer:
    """What Lambda was told: `way` is the last part of the path, `failure` what trailers say."""

    way: str
    status: int = 0
    headers: dict[str, str] | None = None
    body: str = ""
    failure: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    """The error document of the Runtime API's."""


async def answered(app: ASGIApp, event: Any, **given: Any) -> Answer:
    """Return what Lambda is told of one event; the next one is served, too."""
    api = Lambda()
    async with server(api.serve) as address, dispatching(app, address, **given) as answer:
        assert (await answer(event)).status == 202
        return read_answer(await api.told.get())


def read_answer(told: Request) -> Answer:
    way = told.target.removeprefix(f"POST {PATH}/invocation/id-1/")
    if way == "error":
        return Answer(way, error=json.loads(told.body))
    if not told.chunks:
        document = json.loads(told.body)
        many = document.get("multiValueHeaders") or {}
        headers = {name: values[-1] for name, values in many.items()} | document.get("headers", {})
        return Answer(way, document["statusCode"], headers, document["body"])
    head = json.loads(told.chunks[0].removesuffix(b"\0" * 8))
    encoded = told.trailers.get("lambda-runtime-function-error-body")
    failure = json.loads(base64.b64decode(encoded)) if encoded else None
    body = b"".join(told.chunks[1:]).decode()
    return Answer(way, head["statusCode"], head["headers"], body, failure)


def error_in(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(answer.body)["error"]
    return error


# --- apps ----------------------------------------------------------------------------------------

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain")],
}


def piece(data: bytes, *, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": not last}


def says(*messages: Message | BaseException) -> ASGIApp:
    """An app that sends these messages, and raises what is an exception among them."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            if isinstance(message, BaseException):
                raise message
            await send(message)

    return app


def hangs(*messages: Message) -> ASGIApp:
    """An app that sends these messages and then ends no more."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        await asyncio.Event().wait()

    return app


def ignores_its_end(
    let_go: asyncio.Event, tasks: list[asyncio.Task[Any]], *messages: Message
) -> ASGIApp:
    """An app that sends these messages and is not to be cancelled before it is let go."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if (task := asyncio.current_task()) is not None:
            tasks.append(task)
        for message in messages:
            await send(message)
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        raise LookupError(SECRET)

    return app


async def no_app(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("nobody asked for it")


OK = says(START, piece(b"o"), piece(b"k", last=True))


# --- HTTP events: door x outcome -----------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
async def test_an_app_answers_through_every_door(door: Door) -> None:
    answer = await answered(OK, door("GET", "/"))

    assert (answer.way, answer.status, answer.body) == ("response", 200, "ok")
    assert answer.headers == {"content-type": "text/plain"}
    assert answer.failure is None


@pytest.mark.parametrize("door", DOORS)
async def test_an_app_reads_its_request_through_every_door(door: Door) -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        got = await receive()
        await send(START)
        await send(piece(scope["path"].encode() + b" " + got["body"], last=True))
        assert await receive() == {"type": "http.disconnect"}

    answer = await answered(echo, door("POST", "/v1/echo", {}, b"hello"))

    assert answer.body == "/v1/echo hello"


@pytest.mark.parametrize("door", DOORS)
async def test_trailers_are_offered_where_they_can_be_sent(door: Door) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(piece(",".join(scope["extensions"]).encode(), last=True))

    answer = await answered(app, door("GET", "/"))

    assert answer.body == ("http.response.trailers" if door in STREAMED else "")


BEFORE: dict[str, ASGIApp] = {
    "raises": says(LookupError(SECRET)),
    "exits": says(SystemExit(SECRET)),
    "raises after its start": says(START, LookupError(SECRET)),
    "returns": says(),
    "returns after its start": says(START),
    "sends a body first": says(piece(b"one")),
    "sends two starts": says(START, START),
    "sends no messages": says({"type": "http.response.none"}),
    "sends headers of text": says({**START, "headers": [("a", "b")]}, piece(b"", last=True)),
    "sends no status": says({"type": "http.response.start"}, piece(b"", last=True)),
    "cancels itself": says(START, asyncio.CancelledError(SECRET)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("outcome", BEFORE)
async def test_an_app_that_fails_before_its_reply_is_a_500_without_its_text(
    door: Door, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await answered(BEFORE[outcome], door("GET", "/"))

    assert SECRET not in caplog.text
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    if answer.way == "error":  # what a whole reply is made of is known at its end only
        assert door in WHOLE
        assert outcome in {"sends headers of text", "sends no status"}
        assert answer.error is not None
        assert answer.error["errorMessage"] == "The invocation failed. Request id: id-1"
        return
    headers = answer.headers or {}
    assert (answer.way, answer.status, answer.failure) == ("response", 500, None)
    assert (headers["x-request-id"], headers["x-should-retry"]) == ("id-1", "false")
    assert headers["content-type"] == "application/json"
    assert error_in(answer) == {
        "message": "The server had an error while processing your request. Request id: id-1",
        "type": "server_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize("door", DOORS)
async def test_an_app_that_fails_amid_its_reply_is_told_as_far_as_the_door_allows(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await answered(says(START, piece(b"one"), LookupError(SECRET)), door("GET", "/"))

    said = "The server had an error while processing your request. Request id: id-1"
    if door in STREAMED:
        assert (answer.status, answer.body) == (200, "one")
        assert answer.failure == {
            "errorType": "Runtime.StreamError",
            "errorMessage": said,
            "stackTrace": [],
        }
    else:
        assert (answer.status, error_in(answer)["message"]) == (500, said)
    assert SECRET not in caplog.text
    assert "the app failed: LookupError" in caplog.text


@pytest.mark.parametrize("door", DOORS)
async def test_an_app_that_fails_after_its_reply_takes_nothing_back(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await answered(
        says(START, piece(b"ok", last=True), LookupError(SECRET)), door("GET", "/")
    )

    assert (answer.status, answer.body, answer.failure) == (200, "ok", None)
    assert "the app failed after its reply: LookupError" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("door", DOORS)
async def test_an_app_that_forgets_its_last_message_has_ended_its_reply_where_it_streams(
    door: Door,
) -> None:
    answer = await answered(says(START, piece(b"one")), door("GET", "/"))

    assert answer.failure is None
    assert (answer.status, answer.body == "one") == (
        (200, True) if door in STREAMED else (500, False)
    )


@pytest.mark.parametrize("door", DOORS)
async def test_a_head_that_no_door_takes_is_an_error_of_the_function(door: Door) -> None:
    broken = {**START, "headers": [(b"x", b"1\r\nset-cookie: a=1")]}

    answer = await answered(says(broken, piece(b"one", last=True)), door("GET", "/"))

    assert answer.way == "error"
    assert answer.error == {
        "errorMessage": "The app's reply has a header that HTTP does not allow.",
        "errorType": "ReplyHeadError",
        "stackTrace": [],
    }


async def test_a_prelude_that_is_too_large_is_an_error_of_the_function() -> None:
    large = {**START, "headers": [(b"x", b"a" * 20_000)]}

    answer = await answered(says(large, piece(b"one")), function_url("GET", "/"))

    assert answer.way == "error"
    assert answer.error is not None
    assert answer.error["errorType"] == "ReplyHeadError"
    assert answer.error["errorMessage"].startswith("The app's status and headers take 200")


@pytest.mark.parametrize("door", DOORS)
async def test_a_request_that_cannot_be_read_is_a_400_and_no_apps_business(door: Door) -> None:
    bodies = {**door("POST", "/"), "body": "no base64!", "isBase64Encoded": True}
    heads = {**door("POST", "/"), "headers": ["a"], "multiValueHeaders": ["a"]}

    answers = [await answered(no_app, event) for event in (bodies, heads)]

    assert [(answer.way, answer.status) for answer in answers] == [("response", 400)] * 2
    assert [error_in(answer)["code"] for answer in answers] == ["invalid_request"] * 2
    assert [(answer.headers or {})["x-request-id"] for answer in answers] == ["id-1"] * 2
    assert error_in(answers[0])["message"] == "The request could not be read: its body."


@pytest.mark.parametrize(("door", "streams"), [(http_api, True), (function_url, False)])
async def test_who_streams_may_be_said_by_a_callable(door: Door, streams: bool) -> None:
    doors = DoorSettings(streams=lambda _: streams)
    api = Lambda()

    async with server(api.serve) as address, dispatching(OK, address, doors=doors) as answer:
        await answer(door("GET", "/"))
        told = await api.told.get()

    assert bool(told.chunks) is streams
    assert read_answer(told).body == "ok"


@pytest.mark.parametrize("error", [LookupError(SECRET), ConnectionError(SECRET)])
async def test_a_callable_that_fails_is_an_error_without_its_text(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def streams(_event: dict[str, Any]) -> bool:
        raise error

    answer = await answered(no_app, function_url("GET", "/"), doors=DoorSettings(streams=streams))

    assert answer.error is not None
    assert answer.error["errorMessage"] == "The invocation failed. Request id: id-1"
    assert "invocation failed" in caplog.text
    assert SECRET not in caplog.text


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("messages", [(), (START,)], ids=["silent", "started"])
async def test_an_app_that_does_not_end_in_time_is_a_504(
    door: Door, messages: tuple[Message, ...]
) -> None:
    answer = await answered(hangs(*messages), door("GET", "/"), deadline_ms=SHORT_MS)

    error = error_in(answer)
    assert (answer.status, error["code"], error["type"]) == (504, "timeout", "server_error")
    assert error["message"] == "The server ran out of time. Request id: id-1"
    assert (answer.headers or {})["x-should-retry"] == "false"


@pytest.mark.parametrize("door", DOORS)
async def test_a_reply_that_does_not_end_in_time_is_told_as_far_as_the_door_allows(
    door: Door,
) -> None:
    answer = await answered(hangs(START, piece(b"one")), door("GET", "/"), deadline_ms=SHORT_MS)

    if door in STREAMED:
        assert (answer.status, answer.body) == (200, "one")
        assert answer.failure is not None
        assert answer.failure["errorMessage"] == "The server ran out of time. Request id: id-1"
    else:
        assert (answer.status, error_in(answer)["code"]) == (504, "timeout")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("messages", [(), (START, piece(b"one"))], ids=["silent", "begun"])
async def test_an_app_that_ignores_its_end_is_left_to_itself(
    door: Door, messages: tuple[Message, ...], caplog: pytest.LogCaptureFixture
) -> None:
    let_go = asyncio.Event()
    left: list[asyncio.Task[Any]] = []
    app = ignores_its_end(let_go, left, *messages)

    answer = await answered(app, door("GET", "/"), deadline_ms=SHORT_MS)

    is_left = not left[0].done()
    let_go.set()
    await asyncio.wait(left)
    assert is_left
    assert answer.status == (200 if messages and door in STREAMED else 504)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("door", DOORS)
async def test_an_app_may_end_its_reply_when_it_is_cancelled(door: Door) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(piece(b"one"))
        try:
            await asyncio.Event().wait()
        finally:
            await send(piece(b", last words", last=True))

    answer = await answered(app, door("GET", "/"), deadline_ms=SHORT_MS)

    assert (answer.status, answer.body, answer.failure) == (200, "one, last words", None)


@pytest.mark.parametrize("door", DOORS)
async def test_an_app_that_is_late_after_its_reply_takes_nothing_back(door: Door) -> None:
    answer = await answered(
        hangs(START, piece(b"ok", last=True)), door("GET", "/"), deadline_ms=SHORT_MS
    )

    assert (answer.status, answer.body, answer.failure) == (200, "ok", None)


async def test_a_client_that_never_reads_does_not_hold_a_late_reply_up() -> None:
    async def deaf(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await asyncio.Event().wait()

    async def talks(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        while True:
            await send(piece(b"x" * 1024 * 1024))

    async with server(deaf) as address, dispatching(talks, address, deadline_ms=SHORT_MS) as answer:
        with pytest.raises(OSError):  # noqa: PT011 - it took too long
            await answer(function_url("GET", "/"))


# --- connections that end, and processes ----------------------------------------------------------


@pytest.mark.parametrize("refusal", [400, 403, 413, 500])
@pytest.mark.parametrize("door", DOORS)
async def test_what_lambda_made_of_an_answer_is_told(door: Door, refusal: int) -> None:
    api = Lambda()
    api.refusals.append(refusal)
    async with server(api.serve) as address, dispatching(OK, address) as answer:
        reply = await answer(door("GET", "/"))

    assert reply.status == refusal


@pytest.mark.parametrize("is_refused", [True, False])
async def test_an_app_whose_reply_nobody_takes_is_ended_by_that(
    is_refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Message] = []

    async def stopping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await read_chunk(reader)
        if not is_refused:
            reset(writer)
        else:
            writer.write(said(413))
            await reader.read()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(piece(b"one"))
        received.extend([await receive(), await receive()])
        await send(piece(b"two"))

    async with server(stopping) as address, dispatching(app, address) as answer:
        answering = asyncio.create_task(answer(function_url("GET", "/")))
        await asyncio.wait({answering})

    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]
    error = answering.exception()
    assert (error is None) == is_refused
    assert error is None or isinstance(error, OSError)
    assert caplog.text == ""


@pytest.mark.parametrize("door", DOORS)
async def test_a_runtime_api_that_is_gone_is_an_os_error(door: Door) -> None:
    async with server(Lambda().serve) as address:
        pass

    async with dispatching(OK, address) as answer:
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
            await answer(door("GET", "/"))


async def test_a_runtime_api_that_is_none_is_an_error_of_its_own() -> None:
    async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"220 ESMTP\r\n\r\n")

    async with server(gibberish) as address, dispatching(OK, address) as answer:
        with pytest.raises(RuntimeApiError):
            await answer(http_api("GET", "/"))


@pytest.mark.parametrize("door", DOORS)
async def test_an_end_of_the_process_cancels_the_app_and_waits_for_it(door: Door) -> None:
    begun, saved = asyncio.Event(), asyncio.Event()
    api = Lambda()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        await send(piece(b"one"))
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            saved.set()

    async with server(api.serve) as address, dispatching(app, address) as answer:
        answering = asyncio.create_task(answer(door("GET", "/")))
        await begun.wait()
        answering.cancel()
        await asyncio.wait({answering})

    assert (answering.cancelled(), saved.is_set(), api.told.empty()) == (True, True, True)


@pytest.mark.parametrize("door", DOORS)
async def test_invocations_follow_each_other_whatever_became_of_the_first(door: Door) -> None:
    apps = iter([says(LookupError(SECRET)), says(START, piece(b"a"), LookupError()), OK])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await next(apps)(scope, receive, send)

    api = Lambda()
    async with server(api.serve) as address, dispatching(app, address) as answer:
        for _ in range(3):
            await answer(door("GET", "/"))
        answers = [read_answer(await api.told.get()) for _ in range(3)]

    assert answers[-1].body == "ok"
    assert api.connections == (3 if door in STREAMED else 1)


# --- other events --------------------------------------------------------------------------------

SQS = {"Records": [{"eventSource": "aws:sqs", "body": "text"}]}


async def worked(worker: Worker | None, event: Any = SQS, **given: Any) -> tuple[str, Any]:
    """Return the last part of the path, and the document, by which a worker's event is answered."""
    api = Lambda()
    async with (
        server(api.serve) as address,
        dispatching(no_app, address, worker=worker, **given) as answer,
    ):
        await answer(event)
        told = await api.told.get()
    return told.target.rpartition("/")[2], json.loads(told.body)


@pytest.mark.parametrize(
    ("result", "document"),
    [(None, None), ({"batchItemFailures": []}, {"batchItemFailures": []}), ("grüß", "grüß")],
)
async def test_a_worker_answers_events_that_are_no_requests(result: Any, document: Any) -> None:
    async def worker(event: Any, context: Any) -> Any:
        assert (event, context.aws_request_id) == (SQS, "id-1")
        assert context.get_remaining_time_in_millis() == LONG_MS
        return result

    assert await worked(worker) == ("response", document)


@pytest.mark.parametrize("event", [SQS, {}, [1], "ping", None])
async def test_without_a_worker_other_events_are_errors_that_name_them(event: Any) -> None:
    way, document = await worked(None, event)

    assert (way, document["errorType"]) == ("error", "UnknownEventError")
    assert document["errorMessage"].startswith("The event is a")
    assert (
        "Supported are HTTP requests through a function URL, HTTP API" in document["errorMessage"]
    )


async def raises(_event: Any, _context: Any) -> None:
    raise LookupError(SECRET)


def raises_at_once(_event: Any, _context: Any) -> Awaitable[None]:
    raise LookupError(SECRET)


@pytest.mark.parametrize("worker", [raises, raises_at_once])
async def test_a_worker_that_fails_is_an_error_without_its_text(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    assert await worked(worker) == (
        "error",
        {
            "errorMessage": "The worker failed. Request id: id-1",
            "errorType": "LookupError",
            "stackTrace": [],
        },
    )
    assert "worker failed: LookupError" in caplog.text
    assert SECRET not in caplog.text


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize("result", [object(), {("a", 1): 2}, "\ud83d", CIRCLE])
async def test_what_a_worker_returns_has_to_be_json(result: Any) -> None:
    async def worker(_event: Any, _context: Any) -> Any:
        return result

    way, document = await worked(worker)

    assert (way, document["errorType"]) == ("error", "Runtime.MarshalError")
    assert document["errorMessage"] == "What the worker returned cannot be told as JSON."


async def test_a_worker_that_does_not_end_in_time_is_an_error() -> None:
    async def worker(_event: Any, _context: Any) -> None:
        await asyncio.Event().wait()

    assert await worked(worker, deadline_ms=SHORT_MS) == (
        "error",
        {
            "errorMessage": "The worker ran out of time.",
            "errorType": "Runtime.Timeout",
            "stackTrace": [],
        },
    )


@pytest.mark.parametrize("worker", [None, raises])
@pytest.mark.parametrize("body", [b"", b"{", b"no JSON", b'"\xff"', b"[" * 100_000, b'"\\ud83d"'])
async def test_an_event_that_is_no_json_is_an_error(worker: Worker | None, body: bytes) -> None:
    assert await worked(worker, body) == (
        "error",
        {
            "errorMessage": "The event is not JSON.",
            "errorType": "Runtime.UnmarshalError",
            "stackTrace": [],
        },
    )
