"""The Runtime API as a runtime sees it: states, refusals, and how fast a reply is read."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from handler.emulator.invocation import BrokenOffError, Invocation, Record
from handler.emulator.options import Faults, Function
from handler.emulator.runtime_api import MAX_BUFFERED_BYTES, RuntimeApiServer
from handler.runtime_api import (
    END,
    Failure,
    Invocation as LoopInvocation,
    Reply,
    RuntimeApi,
    chunk,
    failed_end,
)
from handler.runtime_client import Connection, Line


pytestmark = pytest.mark.anyio

REQUEST_ID = "request-1"
ATTEMPT = LoopInvocation(REQUEST_ID, b"")
STREAMED = RuntimeApi("x").streamed_response(ATTEMPT)
RESPONSE = f"/invocation/{REQUEST_ID}/response"
ERROR = f"/invocation/{REQUEST_ID}/error"
INVALID_ID = (400, "InvalidRequestID")
MUCH = 16 * 1024 * 1024


class Runtime:
    """A runtime that asks what a test wants it to ask, and the other side of its server."""

    def __init__(self, server: RuntimeApiServer) -> None:
        self.server = server
        self.api = RuntimeApi(server.address)
        self.lines: list[Line] = []
        self.invocations: list[Invocation] = []

    async def ask(self, request: bytes) -> Reply:
        line = Line(self.server.address)
        self.lines.append(line)
        return await line.ask(request)

    async def post(self, path: str, *headers: str, body: bytes = b"{}") -> Reply:
        lines = [
            f"POST /2018-06-01/runtime{path} HTTP/1.1",
            "Host: x",
            f"Content-Length: {len(body)}",
            *headers,
        ]
        return await self.ask("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def take(self, delivery: int = 1) -> Invocation:
        """Ask for the next invocation until that is taken up, and take one."""
        self.server.is_ready.clear()
        ready = asyncio.create_task(self.server.is_ready.wait())
        while not ready.done():
            asking = asyncio.create_task(self.ask(self.api.next()))
            await asyncio.wait({asking, ready}, return_when=asyncio.FIRST_COMPLETED)
        invocation = self.offer(delivery)
        await asking
        return invocation

    def offer(self, delivery: int = 1) -> Invocation:
        record = Record(request_id=REQUEST_ID, delivery=delivery)
        invocation = Invocation(record, b'{"a":1}', "Root=1-1", Faults())
        self.invocations.append(invocation)
        self.server.offer(invocation)
        return invocation


@asynccontextmanager
async def runtime(**options: Any) -> AsyncIterator[Runtime]:
    server = RuntimeApiServer(Function(handler="x.y", **options), lambda: None)
    await server.start()
    made = Runtime(server)
    try:
        async with asyncio.timeout(10):
            yield made
    finally:
        for line in made.lines:
            line.drop()
        for invocation in made.invocations:
            invocation.close()
            invocation.end()
        await server.close()


def error_type(reply: Reply) -> str:
    kind: str = msgspec.json.decode(reply.body)["errorType"]
    return kind


async def whole(invocation: Invocation) -> bytes:
    read = bytearray()
    while piece := await invocation.read():
        read += piece
    return bytes(read)


async def test_next_tells_an_invocation() -> None:
    async with runtime(region="eu-central-1", name="mine") as made:
        asking = asyncio.create_task(made.ask(made.api.next()))
        await made.server.is_ready.wait()
        made.offer()
        told = LoopInvocation.from_reply(await asking)

    arn = "arn:aws:lambda:eu-central-1:000000000000:function:mine"
    assert (told.request_id, told.body, told.function_arn) == (REQUEST_ID, b'{"a":1}', arn)
    assert (told.trace_id, told.invocation_id) == ("Root=1-1", "request-1-1")
    assert 0 <= told.deadline_ms - time.time() * 1000 <= 300_000


async def test_a_whole_reply_is_accepted() -> None:
    async with runtime() as made:
        invocation = await made.take()
        reading = asyncio.create_task(whole(invocation))
        reply = await made.post(RESPONSE, body=b'"done"')
        read = await reading

    assert (reply.status, msgspec.json.decode(reply.body)) == (202, {"status": "OK"})
    assert (invocation.record.mode, read) == ("buffered", b'"done"')


async def test_a_streamed_reply_tells_its_failure_by_trailers() -> None:
    failure = Failure("Runtime.StreamError", "no more")
    async with runtime() as made:
        invocation = await made.take()
        reading = asyncio.create_task(whole(invocation))
        reply = await made.ask(STREAMED + chunk(b"body") + failed_end(failure))
        read = await reading

    assert (reply.status, read) == (202, b"body")
    assert (invocation.record.trailers, invocation.record.error) == (failure, None)


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        (
            RESPONSE,
            ["Lambda-Runtime-Function-Response-Mode: chunky"],
            (400, "InvalidFunctionResponseMode"),
        ),
        ("/invocation/request-2/response", [], INVALID_ID),
        ("/invocation/request-2/error", [], INVALID_ID),
        ("/restore/error", [], (404, "NotFound")),
        ("/invocation/next", [], (404, "NotFound")),
    ],
)
async def test_what_is_wrong_is_refused(
    path: str, headers: list[str], expected: tuple[int, str]
) -> None:
    async with runtime() as made:
        await made.take()
        reply = await made.post(path, *headers)

    assert (reply.status, error_type(reply)) == expected


async def test_a_body_where_none_belongs_ends_the_connection() -> None:
    async with runtime() as made:
        with pytest.raises(ConnectionResetError):
            await made.ask(made.api.next().replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx"))


async def test_the_restore_is_asked_for_where_there_is_a_snapshot() -> None:
    async with runtime(is_snap_start=True) as made:
        asking = asyncio.create_task(made.ask(made.api.restore_next()))
        await made.server.is_ready.wait()
        was_answered = asking.done()
        made.server.is_restored.set()
        restored = await asking
        failed = await made.ask(made.api.restore_error(Failure("Runtime.AfterRestoreError", "x")))

    assert (was_answered, restored.status, failed.status) == (False, 200, 202)
    assert made.server.failure == Failure("Runtime.AfterRestoreError", "x")


async def test_an_error_is_the_invocations_failure() -> None:
    failure = Failure("ValueError", "no")
    async with runtime() as made:
        invocation = await made.take()
        reply = await made.ask(made.api.error(ATTEMPT, failure))
        with pytest.raises(BrokenOffError):
            await invocation.read()

    assert (reply.status, invocation.record.error) == (202, failure)


async def test_an_error_without_a_header_is_read_from_its_body() -> None:
    async with runtime() as made:
        invocation = await made.take()
        await made.post(ERROR, body=b'{"errorType": "ValueError", "errorMessage": "no"}')

    assert invocation.record.error == Failure("ValueError", "no")


async def test_an_error_is_refused_once_the_reply_has_begun() -> None:
    async with runtime() as made:
        invocation = await made.take()
        connection = await Connection(made.server.address).open()
        await connection.begin(STREAMED + chunk(b"body"), lambda: None)
        await invocation.has_begun.wait()
        refused = await made.ask(made.api.error(ATTEMPT, Failure("ValueError", "no")))
        again = await made.post(RESPONSE)
        read = await invocation.read()
        await connection.write(END)
        accepted = await connection.reply()
        connection.close()

    assert (refused.status, error_type(refused)) == (403, "InvalidStateTransition")
    assert (again.status, error_type(again)) == (403, "InvalidStateTransition")
    assert (accepted.status, read) == (202, b"body")


async def test_a_second_reply_is_refused() -> None:
    async with runtime() as made:
        invocation = await made.take()
        reading = asyncio.create_task(whole(invocation))
        await made.post(RESPONSE)
        await reading
        again = await made.post(RESPONSE)

    assert (again.status, error_type(again)) == INVALID_ID


async def test_a_late_answer_to_an_earlier_delivery_is_not_taken_for_that_of_the_next() -> None:
    late = LoopInvocation(REQUEST_ID, b"", invocation_id=f"{REQUEST_ID}-1")
    now = LoopInvocation(REQUEST_ID, b"", invocation_id=f"{REQUEST_ID}-2")
    async with runtime(concurrency=2) as made:
        first = await made.take()
        first.fail(Failure("Sandbox.Timedout", "late"))
        second = await made.take(delivery=2)
        reading = asyncio.create_task(whole(second))
        refused = await made.ask(made.api.response(late, b'"late"'))
        accepted = await made.ask(made.api.response(now, b'"done"'))
        read = await reading

    assert (refused.status, error_type(refused)) == INVALID_ID
    assert (accepted.status, read) == (202, b'"done"')


async def test_next_is_refused_while_an_invocation_is_not_answered() -> None:
    async with runtime() as made:
        await made.take()
        refused = await made.ask(made.api.next())

    assert (refused.status, error_type(refused)) == (403, "InvalidStateTransition")


async def test_more_pollers_than_invocations_are_refused() -> None:
    async with runtime() as made:
        first = asyncio.create_task(made.ask(made.api.next()))
        await made.server.is_ready.wait()
        second = await made.ask(made.api.next())
        first.cancel()

    assert (second.status, error_type(second)) == (400, "Runtime.TooManyIdleRuntimes")


async def test_a_poller_that_goes_away_takes_no_invocation_with_it() -> None:
    async with runtime() as made:
        line = Line(made.server.address)
        asking = asyncio.create_task(line.ask(made.api.next()))
        await made.server.is_ready.wait()
        asking.cancel()
        line.drop()
        invocation = await made.take()

    assert invocation.is_taken.is_set()


async def test_a_whole_reply_over_the_limit_is_refused() -> None:
    async with runtime() as made:
        invocation = await made.take()
        reading = asyncio.create_task(whole(invocation))
        reply = await made.post(RESPONSE, body=bytes(MAX_BUFFERED_BYTES + 1))
        with pytest.raises(BrokenOffError):
            await reading

    assert (reply.status, error_type(reply)) == (413, "RequestEntityTooLarge")
    assert invocation.record.error is not None
    assert invocation.record.error.type == "Function.ResponseSizeTooLarge"


async def test_a_reply_that_breaks_off_is_a_failure_if_the_runtime_goes_on() -> None:
    async with runtime() as made:
        invocation = await made.take()
        connection = await Connection(made.server.address).open()
        await connection.begin(STREAMED + chunk(b"body"), lambda: None)
        first = await invocation.read()
        connection.close()
        asking = asyncio.create_task(made.ask(made.api.next()))
        with pytest.raises(BrokenOffError):
            await invocation.read()
        asking.cancel()

    assert first == b"body"
    assert invocation.record.error == Failure("Runtime.TruncatedResponse", "The reply broke off.")


async def test_no_more_is_read_than_is_taken() -> None:
    async with runtime() as made:
        invocation = await made.take()
        connection = await Connection(made.server.address).open()
        await connection.begin(STREAMED, lambda: None)
        writing = asyncio.create_task(connection.write(chunk(bytes(MUCH)) + END))
        taken, ahead = 0, 0
        while piece := await invocation.read():
            taken += len(piece)
            for _ in range(10):
                await asyncio.sleep(0)  # whoever can go on does
            ahead = max(ahead, invocation.record.size - taken)
        await writing
        reply = await connection.reply()
        connection.close()

    assert (reply.status, taken) == (202, MUCH)
    assert 0 < ahead < 256 * 1024
