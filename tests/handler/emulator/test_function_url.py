"""The local function URL as its clients see it, each function in a process of its own."""

import asyncio

import httpx
import pytest

from handler.runtime_api import STREAMED
from tests.handler.emulator.serving import Gate, is_running, serving


pytestmark = pytest.mark.anyio


async def test_a_reply_streams_piece_by_piece(gate: Gate) -> None:
    async with (
        serving() as served,
        served.client.stream("GET", "/gated", headers=gate.header) as reply,
    ):
        pieces = reply.aiter_raw()
        first = await anext(pieces)
        gate.open()
        second = await anext(pieces)

    assert (reply.status_code, first, second) == (200, b"first ", b"second")
    (record,) = served.url.invocations
    assert (record.mode, record.content_type, record.answered) == ("streamed", STREAMED, 202)


async def test_status_headers_and_cookies_arrive() -> None:
    async with serving() as served:
        reply = await served.get("/decorated")

    assert (reply.status_code, reply.text, reply.headers["x-one"]) == (201, "made", "1, 2")
    assert reply.headers.get_list("set-cookie") == [
        "a=1; Path=/; SameSite=lax",
        "b=2; Path=/; SameSite=lax",
    ]
    assert reply.headers["x-amzn-requestid"] == served.url.invocations[0].request_id


async def test_an_app_gets_the_request_as_a_function_urls_event() -> None:
    async with serving() as served:
        reply = await served.client.post(
            "/event?a=1&a=2", content=b'{"b": 3}', headers={"content-type": "application/json"}
        )

    event = reply.json()
    assert event["rawQueryString"] == "a=1&a=2"
    assert event["body"] == '{"b": 3}'
    assert event["requestContext"]["http"]["sourceIp"] == "127.0.0.1"
    assert event["requestContext"]["requestId"] == served.url.invocations[0].request_id


@pytest.mark.parametrize("mode", ["RESPONSE_STREAM", "BUFFERED"])
async def test_replies_without_a_body_end(mode: str) -> None:
    async with serving(environ={"FUNCTION_URL_MODE": mode}) as served:
        replies = [
            await served.client.request(method, path)
            for method, path in (
                ("GET", "/nothing/200"),
                ("GET", "/nothing/404"),
                ("GET", "/nothing/204"),
                ("GET", "/nothing/304"),
                ("HEAD", "/hello"),
            )
        ]

    assert [reply.status_code for reply in replies] == [200, 404, 204, 304, 200]
    assert {reply.content for reply in replies} == {b""}
    assert [reply.headers.get("content-length") for reply in replies[:2]] == ["0", "0"]
    assert {record.answered for record in served.url.invocations} == {202}


async def test_a_failure_on_the_way_is_in_the_trailers_and_the_stream_ends() -> None:
    async with serving() as served:
        reply = await served.get("/failing")

    assert (reply.status_code, reply.content) == (200, b"half")
    (record,) = served.url.invocations
    assert record.trailers is not None
    assert record.trailers.type == "Runtime.StreamError"
    assert record.request_id in record.trailers.message
    assert (record.error, record.answered) == (None, 202)


async def test_a_buffered_url_gets_whole_replies() -> None:
    async with serving(streams=False, environ={"FUNCTION_URL_MODE": "BUFFERED"}) as served:
        reply = await served.get("/decorated")

    assert (reply.status_code, reply.text) == (201, "made")
    assert reply.headers.get_list("set-cookie")[0].startswith("a=1")
    assert served.url.invocations[0].mode == "buffered"


async def test_a_streamed_reply_through_a_buffered_url_shows_its_prelude() -> None:
    async with serving(streams=False) as served:
        reply = await served.get("/decorated")

    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/octet-stream")
    assert reply.content.startswith(b'{"statusCode":201,')
    assert reply.content.endswith(bytes(8) + b"made")


async def test_a_whole_reply_through_a_streaming_url_is_a_reply() -> None:
    async with serving(environ={"FUNCTION_URL_MODE": "BUFFERED"}) as served:
        reply = await served.get("/decorated")

    assert (reply.status_code, reply.text) == (201, "made")
    assert served.url.invocations[0].mode == "buffered"


async def test_a_request_that_is_too_large_is_refused_before_the_function_runs() -> None:
    async with serving() as served:
        reply = await served.client.put("/event", content=bytes(5 * 1024 * 1024))

    assert reply.status_code == 413
    assert not served.url.invocations


async def test_a_request_that_breaks_off_invokes_nothing() -> None:
    async with serving() as served:
        root = served.client.base_url
        _, writer = await asyncio.open_connection(root.host, root.port)
        writer.write(b"POST /event HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await served.get("/hello")

    assert [record.status for record in served.url.invocations] == [200]


async def test_a_client_that_leaves_does_not_end_the_invocation() -> None:
    async with serving() as served:
        async with served.client.stream("GET", "/sized/4096") as reply:
            await anext(reply.aiter_raw())
        await served.lines.until("all sent")
        await served.lines.until("REPORT")

    assert served.url.invocations[0].answered == 202


async def test_what_the_function_prints_is_in_the_logs() -> None:
    async with serving() as served:
        await served.get("/hello?name=log")
        await served.lines.until("hello log")

    assert "hello log" in served.url.logs


async def test_the_end_leaves_no_process_behind() -> None:
    async with serving() as served:
        pid = (await served.get("/process")).json()
        assert is_running(pid)

    assert served.url.pids == []
    assert not is_running(pid)


async def test_the_end_cuts_what_is_on_its_way() -> None:
    async with serving() as served, served.client.stream("GET", "/watching") as reply:
        pieces = reply.aiter_raw()
        await anext(pieces)
        await served.url.__aexit__(None, None, None)
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)
