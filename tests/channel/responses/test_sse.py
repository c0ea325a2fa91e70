import asyncio
import json
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Message

from channel.responses.protocol.events import OutputTextDelta, StreamEvent
from channel.responses.protocol.response import ResponseFailure, Status
from channel.responses.sse import MAX_BATCH_BYTES, SSEWriter, frame
from tests.channel.responses.protocol.machine import machine


pytestmark = pytest.mark.anyio

HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ],
}


class Reader:
    """A client: what it got, and a gate that holds back what it takes."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.news = asyncio.Event()
        self.error: Exception | None = None

    async def send(self, message: Message) -> None:
        await self.gate.wait()
        if self.error:
            raise self.error
        self.got.append(message)
        self.news.set()

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.got[1:] if message.get("body")]


def delta(number: int, text: str = "a") -> StreamEvent:
    return OutputTextDelta(number, "msg_1", 0, 0, text)


async def test_a_frame_is_an_event_line_and_one_line_of_data() -> None:
    event = machine().text_delta("line\r\nline\u2028é")[-1]

    name, data, *rest = frame(event).split(b"\n")

    assert name == b"event: response.output_text.delta"
    assert rest == [b"", b""]
    assert json.loads(data.removeprefix(b"data: "))["delta"] == "line\r\nline\u2028é"


async def test_a_text_delta_is_framed_like_every_other_event() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send)

    writer.take([delta(0)])
    await writer.flush()

    assert reader.bodies == [frame(delta(0))]


async def test_nothing_is_sent_before_the_first_flush() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send)

    is_due = writer.take(machine().reasoning_delta("a"))

    assert (is_due, bool(writer.ready), reader.got) == (False, True, [])


async def test_the_first_flush_sends_the_head() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send)

    await writer.flush()

    assert reader.got[0] == HEAD
    assert reader.bodies == []


async def test_only_the_first_text_delta_is_due_at_once() -> None:
    writer = SSEWriter(Reader().send)

    assert writer.take([delta(0)])
    assert not writer.take([delta(1)])


async def test_a_full_batch_is_due() -> None:
    writer = SSEWriter(Reader().send)
    writer.take([delta(0)])

    assert writer.take([delta(1, "x" * MAX_BATCH_BYTES)])


async def test_a_flush_takes_what_is_ready_once() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send)
    writer.take([delta(0), delta(1)])

    await writer.flush()
    await writer.flush()

    assert reader.bodies == [frame(delta(0)) + frame(delta(1))]
    assert not writer.ready


async def test_batches_hold_whole_events_up_to_the_limit() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send)
    sizes = [10_000, 5_000, 5_000, 20_000, 100]
    events = [delta(number, "x" * size) for number, size in enumerate(sizes)]

    writer.take(events)
    await writer.flush()

    a, b, c, d, e = (frame(event) for event in events)
    assert reader.bodies == [a + b, c, d, e]


async def test_the_end_is_done_and_nothing_follows() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send, keepalive_s=0.001)
    writer.take([delta(0)])

    await writer.close()
    with anyio.move_on_after(0.02):
        await asyncio.Event().wait()

    assert b"".join(reader.bodies) == frame(delta(0)) + b"data: [DONE]\n\n"
    assert [message.get("more_body") for message in reader.got][-1] is False
    assert [message.get("more_body") for message in reader.got].count(False) == 1


async def test_the_keepalive_repeats_the_number_that_was_written_last() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send, keepalive_s=0.002)
    writer.take([delta(7)])
    await writer.flush()
    reader.news.clear()

    with anyio.fail_after(5):
        await reader.news.wait()
    await writer.close()

    beat = b'event: keepalive\ndata: {"type":"keepalive","sequence_number":7}\n\n'
    assert reader.bodies[:2] == [frame(delta(7)), beat]


async def test_no_beat_comes_after_the_end_even_if_it_had_to_wait_for_a_slow_client() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send, keepalive_s=0.001)
    writer.take([delta(0)])
    await writer.flush()
    reader.gate.clear()
    writer.take([delta(1)])

    flushing = asyncio.create_task(writer.flush())
    with anyio.move_on_after(0.02):
        await asyncio.Event().wait()
    closing = asyncio.create_task(writer.close())
    await checkpoint()
    reader.gate.set()
    with anyio.fail_after(5):
        await asyncio.gather(flushing, closing)
    for _ in range(10):
        await checkpoint()

    bodies = [message for message in reader.got if message["type"] == "http.response.body"]
    assert [message["more_body"] for message in bodies].index(False) == len(bodies) - 1


async def test_a_client_that_is_gone_is_noted_and_written_to_no_more() -> None:
    reader = Reader()
    writer, noted = SSEWriter(reader.send), []
    writer.on_gone = lambda: noted.append("gone")
    writer.take([delta(0)])
    await writer.flush()
    reader.error = BrokenPipeError()

    writer.take([delta(1)])
    await writer.flush()
    reader.error = None
    writer.take([delta(2)])
    await writer.close()

    assert noted == ["gone"]
    assert reader.bodies == [frame(delta(0))]


async def test_a_client_that_is_gone_before_the_head_is_noted() -> None:
    reader = Reader()
    reader.error = ConnectionResetError()
    writer, noted = SSEWriter(reader.send), []
    writer.on_gone = lambda: noted.append("gone")
    writer.take([delta(0)])

    await writer.flush()

    assert (noted, reader.got) == (["gone"], [])


async def test_another_error_of_the_server_passes_through() -> None:
    reader = Reader()
    reader.error = ValueError("a bug of the server's")
    writer = SSEWriter(reader.send)

    with pytest.raises(ValueError, match="a bug of the server's"):
        await writer.flush()


async def test_two_flushes_at_once_keep_the_order() -> None:
    reader = Reader()
    reader.gate.clear()
    writer = SSEWriter(reader.send)
    writer.take([delta(0)])

    first = asyncio.create_task(writer.flush())
    await checkpoint()
    writer.take([delta(1)])
    second = asyncio.create_task(writer.flush())
    await checkpoint()
    reader.gate.set()
    with anyio.fail_after(5):
        await asyncio.gather(first, second)

    assert reader.got[0] == HEAD
    assert b"".join(reader.bodies) == frame(delta(0)) + frame(delta(1))


def numbers_in(body: bytes) -> list[Any]:
    lines = body.decode().split("\n")
    return [json.loads(line[6:])["sequence_number"] for line in lines if line.startswith("data: {")]


async def test_every_event_is_written_once_and_in_order() -> None:
    reader = Reader()
    writer = SSEWriter(reader.send)

    for number in range(500):
        if writer.take([delta(number, "x" * 100)]):
            await writer.flush()
    await writer.close()

    assert numbers_in(b"".join(reader.bodies)) == [*range(500)]


@pytest.mark.parametrize("code", ["server_error", "odd\r\ncode é"])
async def test_trailers_name_the_failure_of_a_response_where_they_are_taken(code: str) -> None:
    reader, stream = Reader(), machine()
    writer = SSEWriter(reader.send, has_trailers=True)
    writer.take(stream.start())
    stream.settle(Status.FAILED, now=1, failure=ResponseFailure(code, "It failed."))
    writer.take(stream.end())

    await writer.close()
    await writer.close()

    told = [(b"x-error-code", ascii(code)[1:-1].encode())]
    assert reader.got[0] == {**HEAD, "trailers": True}
    assert [message["type"] for message in reader.got[-2:]] == [
        "http.response.body",
        "http.response.trailers",
    ]
    assert reader.got[-1]["headers"] == told
    assert reader.bodies[-1].endswith(b"data: [DONE]\n\n")


async def test_trailers_of_a_response_that_went_well_are_empty() -> None:
    reader, stream = Reader(), machine()
    writer = SSEWriter(reader.send, has_trailers=True)
    writer.take(stream.start())
    stream.settle(Status.COMPLETED, now=1)
    writer.take(stream.end())

    await writer.close()

    assert reader.got[-1] == {"type": "http.response.trailers", "headers": []}


@pytest.mark.parametrize("size", [0, 1, 65_000, 70_000, 300_000])
async def test_events_of_any_size_are_written_as_their_frames(size: int) -> None:
    reader, stream = Reader(), machine()
    writer = SSEWriter(reader.send)
    events = [*stream.start(), *stream.text_delta("é" * size)]
    stream_end = stream.settle(Status.COMPLETED, now=1)
    events += [*stream_end, *stream.end()]

    writer.take(events)
    await writer.close()

    whole = b"".join(map(frame, events)) + b"data: [DONE]\n\n"
    assert b"".join(reader.bodies) == whole
    # The line of data and the blank line after it come together.
    assert all(body.endswith(b"\n\n") or b"\n\n" not in body[-2:] for body in reader.bodies)
    assert not any(body.startswith(b"\n") for body in reader.bodies)
