"""What a client gets of a reply, whatever a runtime posts and whatever the URL expects."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from handler.emulator.client import Client
from handler.emulator.invocation import Invocation, Mode, Record
from handler.emulator.options import Faults
from handler.runtime_api import STREAMED, Failure


pytestmark = pytest.mark.anyio

PRELUDE = b'{"statusCode":201,"headers":{"content-type":"text/plain"}}' + bytes(8)
JSON = "application/json"
OCTETS = b"application/octet-stream"


class Got:
    """ASGI's `send` of a server, and the record of the invocation."""

    def __init__(self) -> None:
        self.record = Record(request_id="request-1")
        self.messages: list[dict[str, Any]] = []

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def content_type(self) -> bytes:
        headers: list[tuple[bytes, bytes]] = self.messages[0]["headers"]
        return dict(headers)[b"content-type"]

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def is_whole(self) -> bool:
        return not self.messages[-1].get("more_body", True)


async def answered(
    mode: Mode,
    content_type: str,
    pieces: Sequence[bytes],
    *,
    streams: bool,
    failure: Failure | None = None,
) -> Got:
    """Have a reply answered that is posted in these pieces, and fails after them if it is to."""
    got = Got()
    invocation = Invocation(got.record, b"{}", "Root=1-1", Faults())

    async def post() -> None:
        invocation.begin(mode, content_type, lambda: None)
        for piece in pieces:
            await invocation.deliver(piece)
        if failure is None:
            invocation.end()
        else:
            invocation.fail(failure)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(post())
        await Client(got.send, got.record).answer(invocation, streams=streams)
    invocation.close()
    return got


@pytest.mark.parametrize(
    ("streams", "mode", "content_type", "posted", "expected"),
    [
        (True, "streamed", STREAMED, PRELUDE + b"body", (201, b"text/plain", b"body")),
        (True, "streamed", "text/plain", b"body", (200, OCTETS, b"body")),
        (True, "buffered", JSON, b'{"statusCode":201}', (201, JSON.encode(), b"")),
        (False, "streamed", STREAMED, PRELUDE + b"body", (200, OCTETS, PRELUDE + b"body")),
        (False, "streamed", "text/plain", b"body", (200, OCTETS, b"body")),
        (False, "buffered", JSON, b"[1]", (200, JSON.encode(), b"[1]")),
    ],
)
async def test_a_reply_is_read_as_the_mode_of_the_url_has_it(
    streams: bool, mode: Mode, content_type: str, posted: bytes, expected: tuple[int, bytes, bytes]
) -> None:
    got = await answered(mode, content_type, [posted], streams=streams)

    assert (got.status, got.content_type, got.body) == expected
    assert got.is_whole
    assert got.record.status == expected[0]


@pytest.mark.parametrize(
    ("mode", "pieces", "kind"),
    [
        ("streamed", [b"data: 1\n\n", bytes(8), b"more"], "Prelude.NotJSON"),
        ("streamed", [PRELUDE[:-1]], "Prelude.Missing"),
        ("streamed", [], "Prelude.Missing"),
        ("buffered", [b"hello"], "Reply.NotJSON"),
    ],
)
async def test_a_reply_that_cannot_be_read_is_a_502_with_its_reason_noted(
    mode: Mode, pieces: list[bytes], kind: str
) -> None:
    got = await answered(mode, STREAMED, pieces, streams=True)

    assert (got.status, got.body, got.is_whole) == (502, b"Internal Server Error", True)
    assert got.record.error is not None
    assert got.record.error.type == kind


async def test_a_reply_that_breaks_off_is_never_whole() -> None:
    failure = Failure("Runtime.ExitError", "gone")

    got = await answered("streamed", STREAMED, [PRELUDE, b"half"], streams=True, failure=failure)

    assert (got.status, got.body, got.is_whole) == (201, b"half", False)


@pytest.mark.parametrize("streams", [True, False])
async def test_a_reply_that_breaks_off_before_its_head_is_a_502(streams: bool) -> None:
    failure = Failure("Runtime.ExitError", "gone")

    got = await answered("streamed", STREAMED, [PRELUDE[:9]], streams=streams, failure=failure)

    assert (got.status, got.is_whole, got.record.error) == (502, True, failure)


async def test_a_runtime_waits_until_its_last_piece_was_taken() -> None:
    record = Record(request_id="request-1")
    invocation = Invocation(record, b"{}", "Root=1-1", Faults())
    is_taken = asyncio.Event()
    sending = asyncio.Event()

    async def send(message: Any) -> None:
        if message.get("body"):
            sending.set()
            await is_taken.wait()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(Client(send, record).answer(invocation, streams=True))
        invocation.begin("streamed", "text/plain", lambda: None)
        await invocation.deliver(b"first")
        await sending.wait()
        second = group.create_task(invocation.deliver(b"second"))
        await asyncio.sleep(0)
        waited = not second.done()
        is_taken.set()
        await second
        invocation.end()
    invocation.close()

    assert waited


async def test_nothing_can_be_delivered_where_nobody_takes_it() -> None:
    invocation = Invocation(Record(request_id="request-1"), b"{}", "Root=1-1", Faults())
    invocation.close()

    with pytest.raises(ConnectionResetError):
        await invocation.deliver(b"piece")
    invocation.end()
