"""The wire of WebSocket mode: what is read of a client, and the messages that it gets."""

import asyncio
import json
from typing import Any

import pytest

from channel.ports import StoreError
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.response import Status
from channel.responses.protocol.stream import ResponseStream
from channel.responses.sockets.frames import (
    Frame,
    FrameWriter,
    Refusal,
    error_message,
    fault_message,
    read,
)
from tests.channel.responses.protocol.machine import initial


pytestmark = pytest.mark.anyio

HELLO = {"type": "response.create", "input": "hi"}


def frame(**fields: Any) -> Frame:
    read_frame = read(json.dumps({**HELLO, **fields}))
    assert isinstance(read_frame, Frame), read_frame
    return read_frame


def refused(data: str | bytes, **options: Any) -> dict[str, Any]:
    read_frame = read(data, **options)
    assert isinstance(read_frame, Refusal), read_frame
    envelope: dict[str, Any] = json.loads(read_frame.message)
    assert envelope.pop("type") == "error"
    assert envelope.get("stream_id", "") == read_frame.lane
    assert isinstance(envelope["error"]["code"], str)
    assert isinstance(envelope["error"]["message"], str)
    return envelope


def test_a_frame_is_the_body_of_a_create_request_beside_what_is_only_here() -> None:
    read_frame = frame(
        model="m", temperature=0.5, store=False, stream_id="a.b-C_1", previous_response_id="resp_1"
    )

    body = {"input": "hi", "model": "m", "temperature": 0.5, "store": False, "stream": True}
    assert json.loads(read_frame.body) == {**body, "previous_response_id": "resp_1"}
    assert (read_frame.lane, read_frame.generates) == ("a.b-C_1", True)
    assert read_frame.previous_response_id == "resp_1"


@pytest.mark.parametrize(
    "ignored",
    [
        {"stream": False},
        {"stream": "what"},
        {"stream_options": {"include_obfuscation": True}},
        {"stream_options": 7},
        {"generate": None},
    ],
)
def test_what_is_implicit_is_ignored(ignored: dict[str, Any]) -> None:
    assert frame(**ignored) == frame()


def test_numbers_and_unknown_fields_pass_as_they_were_written() -> None:
    given = read('{"type":"response.create","input":"hi","x":1e400,"y":[ 1.10 ]}')

    assert isinstance(given, Frame)
    assert given.body == b'{"input":"hi","x":1e400,"y":[ 1.10 ],"stream":true}'


def test_background_false_passes_and_a_warm_up_is_one() -> None:
    assert json.loads(frame(background=False).body)["background"] is False
    assert frame(generate=False).generates is False
    assert "generate" not in json.loads(frame(generate=False).body)


@pytest.mark.parametrize("previous", [None, 7, ["resp_1"], {}])
def test_a_previous_response_that_is_no_text_is_left_to_the_request(previous: Any) -> None:
    read_frame = frame(previous_response_id=previous)

    assert read_frame.previous_response_id is None
    assert json.loads(read_frame.body)["previous_response_id"] == previous


@pytest.mark.parametrize(
    ("data", "status", "code", "param"),
    [
        ("", 400, "invalid_json", None),
        ("{", 400, "invalid_json", None),
        ("hello", 400, "invalid_json", None),
        ('{"type":"response.create","input":"hi"} {}', 400, "invalid_json", None),
        ("[]", 400, "invalid_type", None),
        ("null", 400, "invalid_type", None),
        ('"response.create"', 400, "invalid_type", None),
        ("{}", 400, "missing_required_parameter", "type"),
        ('{"input":"hi"}', 400, "missing_required_parameter", "type"),
        ('{"type":null}', 400, "invalid_value", "type"),
        ('{"type":["response.create"]}', 400, "invalid_value", "type"),
        ('{"type":"response.cancel"}', 400, "invalid_value", "type"),
        ('{"type":"response.steer","input":"hi"}', 400, "invalid_value", "type"),
        (
            '{"type":"response.create","background":true}',
            400,
            "unsupported_parameter",
            "background",
        ),
        ('{"type":"response.create","generate":"no"}', 400, "invalid_type", "generate"),
        ('{"type":"response.create","generate":0}', 400, "invalid_type", "generate"),
        ('{"type":"\\ud800"}', 400, "invalid_json", None),
        ("[" * 200_000, 400, "invalid_type", None),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", 400, "invalid_value", None),
    ],
)
def test_a_malformed_frame_is_refused_with_its_reason(
    data: str, status: int, code: str, param: str | None
) -> None:
    envelope = refused(data)

    assert (envelope["status"], envelope["error"]["code"]) == (status, code)
    assert envelope["error"]["param"] == param
    assert envelope["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("data", [b"", b'{"type":"response.create","input":"hi"}', b"\xff"])
def test_a_binary_frame_is_refused(data: bytes) -> None:
    assert refused(data)["error"]["code"] == "invalid_frame"


@pytest.mark.parametrize("text", ["a" * 101, "ä" * 51])
def test_a_frame_that_is_too_large_is_refused(text: str) -> None:
    envelope = refused(text, max_bytes=100)

    assert (envelope["status"], envelope["error"]["code"]) == (413, "request_too_large")
    assert "100 bytes" in envelope["error"]["message"]


@pytest.mark.parametrize("stream_id", ["a", "A9_.-", "x" * 256])
def test_a_stream_id_names_a_lane(stream_id: str) -> None:
    assert frame(stream_id=stream_id).lane == stream_id


@pytest.mark.parametrize("stream_id", ["", "a b", "ä", "x" * 257, "a\n", "a/b", None, 7, ["a"], {}])
def test_another_stream_id_is_refused_and_not_echoed(stream_id: Any) -> None:
    envelope = refused(json.dumps({**HELLO, "stream_id": stream_id}))

    assert "stream_id" not in envelope
    assert envelope["error"]["code"] == "invalid_stream_id"
    assert envelope["error"]["param"] == "stream_id"


def test_a_refusal_is_told_in_the_lane_that_the_frame_named() -> None:
    assert refused('{"stream_id":"a"}')["stream_id"] == "a"


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (RequestError("no", code="x", param="p"), 400, "x", "invalid_request_error"),
        (RequestError("no"), 400, "invalid_request", "invalid_request_error"),
        (RequestError("no", status=404), 404, "not_found", "invalid_request_error"),
        (RequestError("no", status=429), 429, "rate_limit_exceeded", "rate_limit_error"),
        (StoreError("secret"), 503, "service_unavailable", "server_error"),
        (LookupError("secret"), 500, "server_error", "server_error"),
    ],
)
def test_every_error_has_a_status_and_a_code_and_no_secret(
    error: Exception, status: int, code: str, kind: str
) -> None:
    message = error_message(error, "lane")
    envelope = json.loads(message)

    assert list(envelope) == ["type", "status", "error", "stream_id"]
    assert (envelope["status"], envelope["stream_id"]) == (status, "lane")
    assert (envelope["error"]["code"], envelope["error"]["type"]) == (code, kind)
    assert b"secret" not in message


def test_what_a_client_wrote_makes_no_error_longer_than_a_few_thousand_characters() -> None:
    assert len(error_message(RequestError("x" * 10**6, param="y" * 10**6))) < 5000


class Wire:
    """Takes messages; fails where it is told to, and waits where its gate is closed."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.error: OSError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, message: bytes) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.messages.append(message)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in self.messages]

    @property
    def types(self) -> list[str]:
        return [event["type"].removeprefix("response.") for event in self.events]


WHOLE = [
    *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
    *("output_text.done", "content_part.done", "output_item.done", "completed"),
]


def tell(writer: FrameWriter, *texts: str) -> None:
    """Say all of a turn to a writer, up to its end."""
    stream = ResponseStream(initial(), body="0" * 52, position=0)
    writer.take(stream.start())
    for text in texts:
        writer.take(stream.text_delta(text))
    writer.take(stream.settle(Status.COMPLETED, now=1))
    writer.take(stream.end())


async def test_each_event_is_one_message_and_nothing_follows_the_terminal_one() -> None:
    wire = Wire()
    writer = FrameWriter(wire.send)

    tell(writer, "Hello")
    await writer.close()
    await writer.close()

    assert wire.types == WHOLE
    assert [event["sequence_number"] for event in wire.events] == [*range(9)]
    assert all("stream_id" not in event for event in wire.events)


async def test_every_event_of_a_named_lane_echoes_it() -> None:
    plain, named = Wire(), Wire()
    for wire, lane in ((plain, ""), (named, "a")):
        writer = FrameWriter(wire.send, lane)
        tell(writer, "Hello")
        await writer.close()

    assert named.events == [{**event, "stream_id": "a"} for event in plain.events]


async def test_the_first_text_is_due_at_once_and_so_is_much_of_it() -> None:
    writer = FrameWriter(Wire().send)
    stream = ResponseStream(initial(), body="0" * 52, position=0)

    due = [writer.take(stream.start())]
    due += [writer.take(stream.text_delta(text)) for text in ("a", "b", "x" * 20_000)]

    assert due == [False, True, False, True]


async def test_a_client_that_reads_slowly_is_waited_for() -> None:
    wire = Wire()
    wire.gate.clear()
    writer = FrameWriter(wire.send)
    tell(writer, "Hello")

    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(writer.written())
    await asyncio.sleep(0)
    assert (closing.done(), waiting.done(), wire.messages) == (False, False, [])
    wire.gate.set()
    await asyncio.gather(closing, waiting)

    assert wire.types == WHOLE


async def test_where_nobody_reads_nothing_is_kept() -> None:
    wire = Wire()
    wire.error = ConnectionResetError()
    writer = FrameWriter(wire.send)
    gone: list[bool] = []
    writer.on_gone = lambda: gone.append(True)

    tell(writer, "Hello")
    await writer.flush()
    tell(writer, "Hello")
    await writer.close()

    assert (gone, writer.ready, wire.messages) == ([True], [], [])


async def test_an_event_that_cannot_be_carried_cuts_the_stream_and_is_told_at_its_end() -> None:
    wire = Wire()
    writer = FrameWriter(wire.send, "a", max_bytes=2000)

    tell(writer, *["x" * 500] * 4)
    await writer.flush()
    before = wire.types
    await writer.close()

    assert before == [*WHOLE[:4], *["output_text.delta"] * 4]
    assert wire.types == [*before, "error"]
    told = wire.events[-1]
    assert (told["status"], told["stream_id"]) == (500, "a")
    assert told["error"]["code"] == "event_too_large"
    assert initial().id in told["error"]["message"]
    assert len(wire.messages[-1]) < 2000


def test_a_fault_of_ours_is_told_in_its_lane() -> None:
    assert json.loads(fault_message("Gone.", "a")) == {
        "type": "error",
        "status": 500,
        "error": {
            "message": "Gone.",
            "type": "server_error",
            "param": None,
            "code": "server_error",
        },
        "stream_id": "a",
    }
