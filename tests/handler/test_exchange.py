"""The ASGI side of an invocation against a Runtime API that reads, stops reading, refuses and cuts."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message

from handler.events import DoorSettings, HTTPEvent, HTTPEvents
from handler.exchange import AppProtocolError, BufferedReply, Inbox, StreamedReply
from handler.runtime_api import END, Failure, Invocation, ReplyHeadError, RuntimeApi
from handler.runtime_client import Connection, Line
from tests.handler.events import DOORS, Context, function_url, http_api, load_balancer, rest_api
from tests.handler.runtime_server import (
    OK,
    PATH,
    Lambda,
    Request,
    read_chunk,
    read_head,
    read_rest,
    reply as said,
    reset,
    server,
)


pytestmark = pytest.mark.anyio

NULS = b"\0" * 8
MUCH = b"x" * 1024 * 1024
JSON = (b"content-type", b"application/json")


def start(*headers: tuple[bytes, bytes], status: int = 200, trailers: bool = False) -> Message:
    message: Message = {"type": "http.response.start", "status": status, "headers": headers}
    return {**message, "trailers": True} if trailers else message


def piece(data: bytes, *, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": not last}


def trailers(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.trailers", "headers": headers}


async def streamed(address: str) -> StreamedReply:
    invocation = Invocation("id-1", b"{}", invocation_id="attempt-2")
    return StreamedReply(RuntimeApi(address), invocation, await Connection(address).open())


def request_by(door: Callable[..., dict[str, Any]]) -> HTTPEvent:
    request = HTTPEvents(DoorSettings(), may_stream=False).read(door("GET", "/"), Context())
    assert request is not None
    return request


def buffered(
    line: Line, door: Callable[..., dict[str, Any]] = http_api, address: str = "api"
) -> BufferedReply:
    return BufferedReply(RuntimeApi(address), Invocation("id-1", b"{}"), request_by(door), line)


async def told_of(*messages: Message, failure: Failure | None = None) -> Request:
    """Return what the Runtime API is told by an app that sends this."""
    api = Lambda()
    async with server(api.serve) as address:
        reply = await streamed(address)
        for message in messages:
            await reply.send(message)
        assert (await reply.settle(failure)).status == 202
        reply.drop()
        return await api.told.get()


# --- the streamed reply --------------------------------------------------------------------------


async def test_a_streamed_reply_is_written_byte_for_byte() -> None:
    got = bytearray()

    async def recording(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not got.endswith(b"\r\n" + END):
            got.extend(await reader.read(65536))
        writer.write(OK)

    async with server(recording) as address:
        reply = await streamed(address)
        await reply.send(start((b"content-type", b"text/plain"), status=201))
        await reply.send(piece(b"one"))
        await reply.send(piece(b""))
        await reply.send(piece(b"two", last=True))
        settled = await reply.settle(None)
        reply.drop()

    assert (settled.status, settled.body) == (202, b"ok")
    assert bytes(got) == (
        b"POST /2018-06-01/runtime/invocation/id-1/response HTTP/1.1\r\n"
        b"Host: " + address.encode() + b"\r\n"
        b"Lambda-Runtime-Invocation-Id: attempt-2\r\n"
        b"Content-Type: application/vnd.awslambda.http-integration-response\r\n"
        b"Lambda-Runtime-Function-Response-Mode: streaming\r\n"
        b"Transfer-Encoding: chunked\r\n"
        b"Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n"
        b"Connection: close\r\n\r\n"
        b'42\r\n{"statusCode":201,"headers":{"content-type":"text/plain"}}' + NULS + b"\r\n"
        b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    )


async def test_the_prelude_and_each_piece_are_chunks_of_their_own() -> None:
    told = await told_of(start(JSON), piece(b"{"), piece(b"}", last=True))

    prelude, *pieces = told.chunks
    assert prelude == b'{"statusCode":200,"headers":{"content-type":"application/json"}}' + NULS
    assert pieces == [b"{", b"}"]
    assert told.trailers == {}


async def test_a_piece_arrives_before_the_next_is_sent() -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def watching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        while data := await read_chunk(reader):
            arrived.put_nowait(data)
        writer.write(OK)

    async with server(watching) as address:
        reply = await streamed(address)
        await reply.send(start())
        assert not reply.has_begun
        for data in (b"one", b"two"):
            await reply.send(piece(data))
            while await arrived.get() != data:
                pass
        await reply.send(piece(b"three", last=True))
        assert await arrived.get() == b"three"
        await reply.settle(None)
        reply.drop()


@pytest.mark.parametrize("body", [[piece(b"", last=True)], [{"type": "http.response.body"}]])
async def test_an_empty_body_is_ended_and_its_length_is_told(body: list[Message]) -> None:
    told = await told_of(start((b"location", b"/v1"), status=307), *body)

    head = {"statusCode": 307, "headers": {"location": "/v1", "content-length": "0"}}
    assert [json.loads(told.chunks[0][:-8]), *told.chunks[1:]] == [head]


async def test_a_body_that_turns_out_empty_ends_all_the_same() -> None:
    told = await told_of(start(), piece(b""), piece(b"", last=True))

    assert told.chunks == [b'{"statusCode":200,"headers":{}}' + NULS]


async def test_an_app_waits_while_nothing_is_read_and_goes_on_after() -> None:
    may_read = asyncio.Event()
    told: list[Request] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        told.append(await read_rest(reader, await read_head(reader)))
        writer.write(OK)

    async with server(slow) as address:
        reply = await streamed(address)
        await reply.send(start())
        await reply.send(piece(MUCH))
        sent, waited = 1, False
        while not waited and sent < 100:
            sending, sent = asyncio.create_task(reply.send(piece(MUCH))), sent + 1
            await asyncio.wait({sending}, timeout=0.1)
            waited = not sending.done()
        may_read.set()
        await sending
        await reply.send(piece(b"", last=True))
        settled = await reply.settle(None)
        reply.drop()

    assert (waited, settled.status) == (True, 202)
    assert told[0].chunks[1:] == [MUCH] * sent


async def test_a_reset_ends_the_apps_sending_and_its_waiting() -> None:
    async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await read_chunk(reader)
        reset(writer)

    async with server(cutting) as address:
        reply = await streamed(address)
        inbox = Inbox(b"question", reply.is_over)
        await reply.send(start())
        await reply.send(piece(b"one"))
        received = [await inbox.receive(), await inbox.receive()]
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the moment
            await reply.send(piece(b"two"))
        with pytest.raises(OSError):  # noqa: PT011
            await reply.settle(None)
        reply.drop()

    assert received == [
        {"type": "http.request", "body": b"question", "more_body": False},
        {"type": "http.disconnect"},
    ]
    assert (reply.has_begun, reply.is_whole) == (True, False)


async def test_a_reset_ends_a_send_that_waits() -> None:
    begun, may_cut = asyncio.Event(), asyncio.Event()

    async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        begun.set()
        await may_cut.wait()
        reset(writer)

    async with server(cutting) as address:
        reply = await streamed(address)
        await reply.send(start())
        sending = asyncio.create_task(reply.send(piece(MUCH * 16)))
        await begun.wait()
        may_cut.set()
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the moment
            await sending
        await reply.is_over.wait()
        reply.drop()


@pytest.mark.parametrize("status", [400, 413])
async def test_an_early_answer_ends_the_reply_and_is_what_became_of_it(status: int) -> None:
    may_close = asyncio.Event()

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(said(status, b"{}"))
        await may_close.wait()

    async with server(refusing) as address:
        reply = await streamed(address)
        await reply.send(start())
        await reply.send(piece(b"one"))
        await reply.is_over.wait()
        with pytest.raises(ConnectionResetError):
            await reply.send(piece(b"two"))
        settled = await reply.settle(Failure("Runtime.Boom", "not told any more"))
        reply.drop()
        may_close.set()

    assert settled.status == status


@pytest.mark.parametrize("headers", [[(b"x", b"a" * 16384)], [(b"x", b"1\r\n")], [(b"x y", b"1")]])
async def test_a_head_that_cannot_be_sent_is_known_before_anything_is_written(
    headers: list[tuple[bytes, bytes]],
) -> None:
    api = Lambda()
    async with server(api.serve) as address:
        reply = await streamed(address)
        await reply.send(start(*headers))
        with pytest.raises(ReplyHeadError):
            await reply.send(piece(b"one", last=True))

        reply.discard()
        await reply.send(start(status=500))
        await reply.send(piece(b"instead", last=True))
        await reply.settle(None)
        reply.drop()

        told = await api.told.get()
    assert told.chunks == [b'{"statusCode":500,"headers":{}}' + NULS, b"instead"]
    assert api.connections == 1


FAILURE = Failure("Runtime.StreamError", "The server had an error.")


@pytest.mark.parametrize(
    "messages",
    [
        [start(), piece(b"one")],
        [start(trailers=True), piece(b"one", last=True)],
    ],
    ids=["amid the body", "before the trailers"],
)
async def test_a_failure_on_the_way_is_told_by_trailers(messages: list[Message]) -> None:
    told = await told_of(*messages, failure=FAILURE)

    assert told.chunks[1:] == [b"one"]
    assert told.trailers["lambda-runtime-function-error-type"] == "Runtime.StreamError"
    assert json.loads(base64.b64decode(told.trailers["lambda-runtime-function-error-body"])) == {
        "errorMessage": "The server had an error.",
        "errorType": "Runtime.StreamError",
        "stackTrace": [],
    }


async def test_a_reply_that_the_app_did_not_end_is_ended() -> None:
    told = await told_of(start(), piece(b"one"))

    assert (told.chunks[1:], told.trailers) == ([b"one"], {})


async def test_the_apps_trailers_tell_of_a_turn_that_failed() -> None:
    told = await told_of(
        start(trailers=True), piece(b"one", last=True), trailers((b"x-error-code", b"server_error"))
    )

    body = json.loads(base64.b64decode(told.trailers["lambda-runtime-function-error-body"]))
    assert told.trailers["lambda-runtime-function-error-type"] == "Runtime.StreamError"
    assert body["errorMessage"] == "The response failed: server_error. The stream tells how."


@pytest.mark.parametrize("headers", [[], [(b"x-checksum", b"1")]])
async def test_other_trailers_are_no_failure(headers: list[tuple[bytes, bytes]]) -> None:
    told = await told_of(start(trailers=True), piece(b"one", last=True), trailers(*headers))

    assert (told.chunks[1:], told.trailers) == ([b"one"], {})


async def test_an_app_may_send_from_several_tasks_at_once() -> None:
    api = Lambda()
    pieces = [letter * 1_500_000 for letter in (b"a", b"b", b"c")]

    async with server(api.serve) as address:
        reply = await streamed(address)
        await reply.send(start())
        await asyncio.gather(*(reply.send(piece(data)) for data in pieces))
        await reply.settle(None)
        reply.drop()
        told = await api.told.get()

    assert told.chunks == [b'{"statusCode":200,"headers":{}}' + NULS, *pieces]
    assert api.connections == 1


async def test_a_send_that_is_cancelled_half_way_leaves_whole_chunks() -> None:
    may_read = asyncio.Event()
    told: list[Request] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        told.append(await read_rest(reader, await read_head(reader)))
        writer.write(OK)

    async with server(slow) as address:
        reply = await streamed(address)
        await reply.send(start())
        await reply.send(piece(b"one"))
        sending = asyncio.create_task(reply.send(piece(MUCH * 5)))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait({sending})
        may_read.set()
        await reply.settle(FAILURE)
        reply.drop()

    assert sending.cancelled()
    assert told[0].chunks[1:] == [b"one", MUCH * 5]
    assert told[0].trailers["lambda-runtime-function-error-type"] == "Runtime.StreamError"


async def test_a_reply_that_is_dropped_is_cut() -> None:
    cut: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def watching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await read_chunk(reader)
        await read_chunk(reader)
        cut.set_result(await reader.read())

    async with server(watching) as address:
        reply = await streamed(address)
        await reply.send(start())
        await reply.send(piece(b"one"))
        reply.drop()
        assert await cut == b""
        with pytest.raises(OSError):  # noqa: PT011 - whatever the closed connection says
            await reply.send(piece(b"two"))

    assert reply.is_over.is_set()


async def test_a_reply_that_was_dropped_takes_no_more_from_an_app_that_is_left_to_itself() -> None:
    api = Lambda()
    async with server(api.serve) as address:
        line = Line(address)
        for reply in (await streamed(address), buffered(line, address=address)):
            inbox = Inbox(b"", reply.is_over)
            await reply.send(start())
            reply.drop()

            with pytest.raises(AppProtocolError):
                await reply.send(piece(b"one"))
            received = [await inbox.receive(), await inbox.receive()]
            assert received[-1] == {"type": "http.disconnect"}

    assert api.connections == 0


# --- what ASGI does not allow --------------------------------------------------------------------

ILLEGAL: dict[str, list[Message]] = {
    "a body before the start": [piece(b"one")],
    "two starts": [start(), start()],
    "trailers before the start": [trailers()],
    "trailers before the body": [start(trailers=True), trailers()],
    "a websocket's message": [{"type": "websocket.accept"}],
    "a push": [start(), {"type": "http.response.push", "path": "/", "headers": []}],
}
LATER: dict[str, list[Message]] = {
    "a body after the last": [start(trailers=True), piece(b"", last=True), piece(b"one")],
    "a start amid the body": [start(), piece(b"one"), start()],
    "trailers amid the body": [start(trailers=True), piece(b"one"), trailers()],
}


@pytest.mark.parametrize("messages", [*ILLEGAL.values(), *LATER.values()], ids=[*ILLEGAL, *LATER])
async def test_a_streamed_reply_refuses_what_asgi_does_not_allow(messages: list[Message]) -> None:
    *before, illegal = messages
    async with server(Lambda().serve) as address:
        reply = await streamed(address)
        for message in before:
            await reply.send(message)

        with pytest.raises(AppProtocolError) as raised:
            await reply.send(illegal)

        reply.drop()
    assert str(raised.value) == (f"The app sent '{illegal['type']}' where ASGI does not allow it.")


@pytest.mark.parametrize("messages", [*ILLEGAL.values(), *LATER.values()], ids=[*ILLEGAL, *LATER])
async def test_a_whole_reply_refuses_what_asgi_does_not_allow(messages: list[Message]) -> None:
    *before, illegal = messages
    reply = buffered(Line("127.0.0.1:1"))
    for message in before:
        await reply.send(message)

    with pytest.raises(AppProtocolError, match=f"^The app sent '{illegal['type']}' where"):
        await reply.send(illegal)


# --- the whole reply -----------------------------------------------------------------------------


async def document_of(
    *messages: Message, door: Callable[..., dict[str, Any]] = http_api
) -> dict[str, Any]:
    """Return the document that the Runtime API gets of what an app sends."""
    api = Lambda()
    async with server(api.serve) as address:
        line = Line(address)
        reply = buffered(line, door, address)
        for message in messages:
            await reply.send(message)
        assert (await reply.settle(None)).status == 202
        reply.drop()
        line.drop()
        told = await api.told.get()
    assert told.target == f"POST {PATH}/invocation/id-1/response"
    assert told.headers["content-type"] == "application/json"
    document: dict[str, Any] = json.loads(told.body)
    return document


async def test_a_whole_reply_has_the_shape_of_its_door() -> None:
    messages = (start(JSON, (b"set-cookie", b"a=1")), piece(b'{"a":'), piece(b"1}", last=True))

    by_http_api = await document_of(*messages)
    by_rest_api = await document_of(*messages, door=rest_api)
    by_load_balancer = await document_of(*messages, door=load_balancer)

    assert by_http_api == {
        "statusCode": 200,
        "body": '{"a":1}',
        "headers": {"content-type": "application/json"},
        "cookies": ["a=1"],
        "isBase64Encoded": False,
    }
    assert by_rest_api == {
        "statusCode": 200,
        "headers": {"content-type": "application/json", "set-cookie": "a=1"},
        "multiValueHeaders": {},
        "body": '{"a":1}',
        "isBase64Encoded": False,
    }
    assert by_load_balancer == {
        "statusCode": 200,
        "body": '{"a":1}',
        "isBase64Encoded": False,
        "headers": {"content-type": "application/json", "set-cookie": "a=1"},
    }


async def test_a_whole_reply_is_over_with_its_last_piece() -> None:
    reply = buffered(Line("127.0.0.1:1"))
    inbox = Inbox(b"", reply.is_over)
    await reply.send(start())
    await reply.send(piece(b"one"))
    first = await inbox.receive()
    waiting = asyncio.create_task(inbox.receive())
    await asyncio.sleep(0)
    states = [(reply.is_whole, waiting.done())]

    await reply.send(piece(b"two", last=True))

    assert await waiting == {"type": "http.disconnect"}
    assert (await inbox.receive())["type"] == "http.disconnect"
    assert first == {"type": "http.request", "body": b"", "more_body": False}
    assert [*states, (reply.is_whole, reply.has_begun)] == [(False, False), (True, False)]


async def test_what_was_discarded_is_not_said() -> None:
    reply_messages = [start(JSON), piece(b"half")]
    api = Lambda()
    async with server(api.serve) as address:
        line = Line(address)
        reply = buffered(line, address=address)
        for message in [*reply_messages, piece(b"", last=True)]:
            await reply.send(message)
        reply.discard()
        is_over = reply.is_over.is_set()
        for message in [start(JSON, status=500), piece(b"{}", last=True)]:
            await reply.send(message)
        await reply.settle(None)
        line.drop()
        told = json.loads((await api.told.get()).body)

    assert (is_over, told["statusCode"], told["body"]) == (False, 500, "{}")


@pytest.mark.parametrize("door", DOORS)
async def test_what_no_door_can_carry_is_not_kept_but_told(
    door: Callable[..., dict[str, Any]],
) -> None:
    text = b'{"id":"resp_42"' + b" " * len(MUCH)

    told = await document_of(
        start(JSON), piece(text), *[piece(MUCH)] * 64, piece(b"", last=True), door=door
    )

    headers = told.get("headers") or {}
    error = json.loads(told["body"])["error"]
    assert (told["statusCode"], headers["x-should-retry"]) == (500, "false")
    assert (error["code"], error["type"]) == ("reply_too_large", "server_error")
    assert "can be retrieved by its id, resp_42" in error["message"]


@pytest.mark.parametrize("door", DOORS)
async def test_headers_may_be_utf_8_or_latin_1_through_every_door(
    door: Callable[..., dict[str, Any]],
) -> None:
    headers = [(b"X-Utf-8", "grüß".encode()), (b"x-latin", "grüß".encode("latin-1"))]

    told = await document_of(start(JSON, *headers), piece(b"{}", last=True), door=door)

    assert (told["headers"]["x-utf-8"], told["headers"]["x-latin"]) == ("grüß", "grüß")


@pytest.mark.parametrize("door", DOORS)
async def test_a_whole_reply_refuses_a_header_that_http_does_not_allow(
    door: Callable[..., dict[str, Any]],
) -> None:
    reply = buffered(Line("127.0.0.1:1"), door)
    await reply.send(start((b"location", b"/\r\nset-cookie: a=1")))
    await reply.send(piece(b"", last=True))

    with pytest.raises(ReplyHeadError, match="a header that HTTP does not allow"):
        await reply.settle(None)


async def test_bytes_that_are_no_text_go_as_base64() -> None:
    told = await document_of(
        start((b"content-type", b"image/png")), piece(b"\x89PNG", last=True), door=function_url
    )

    assert (told["isBase64Encoded"], base64.b64decode(told["body"])) == (True, b"\x89PNG")
