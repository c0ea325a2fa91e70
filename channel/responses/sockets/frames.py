"""Frames of a WebSocket: what a client says, checked; and what it reads, events and errors, one message each.

A client's frame is `{"type": "response.create", …}` with the body of `POST /responses` beside it
(OpenAI's guide "WebSocket mode"; Open Responses 2026-04-24).
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

from channel.http import MAX_BODY_BYTES, reply_to
from channel.responses.protocol.errors import RequestError, error_body
from channel.responses.protocol.events import OutputTextDelta, StreamEvent
from channel.responses.protocol.shapes import decoding_error, missing


DEFAULT_LANE: Final = ""
"""The lane of frames without a `stream_id`, whose messages carry none."""
CREATE: Final = "response.create"

_MAX_BATCH_BYTES: Final = 16 * 1024
_DUE_S: Final = 0.1
_SERVER_ERROR: Final = 500
_TEXT: Final = 2048
# Open Responses wants a code of every error; these stand in where OpenAI has none.
_CODES: Final = {404: "not_found", 429: "rate_limit_exceeded", 503: "service_unavailable"}
_STREAM_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,256}\Z")
_TRUE, _FALSE, _NULL = Raw(b"true"), Raw(b"false"), Raw(b"null")
_ENVELOPE: Final = frozenset({"type", "stream_id", "generate", "stream", "stream_options"})
_fields_of = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode

SendMessage: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Sends one text message of UTF-8; raises `OSError` where nobody reads any more."""


class Frame(Struct, frozen=True):
    """A `response.create`: `body` is that of `POST /responses`, which is still to be checked.

    Without `generates` it is a warm-up, which the agent does not see.
    """

    body: bytes
    lane: str = DEFAULT_LANE
    generates: bool = True
    previous_response_id: str | None = None


class Refusal(Struct, frozen=True):
    """A frame that is not served: the message that says why, in the lane that it came in."""

    message: bytes
    lane: str = DEFAULT_LANE


def read(data: str | bytes, max_bytes: int = MAX_BODY_BYTES) -> Frame | Refusal:
    """Return the frame that a client has sent, text or binary, or why it is refused."""
    if isinstance(data, bytes):
        said = "A frame must be text: one JSON object."
        return refusal(RequestError(said, code="invalid_frame"))
    if len(data) > max_bytes or len(raw := data.encode(errors="surrogatepass")) > max_bytes:
        said = f"The frame is too large: it may have at most {max_bytes} bytes."
        return refusal(RequestError(said, code="request_too_large", status=413))
    try:
        fields = _fields_of(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return refusal(decoding_error(error))
    lane = DEFAULT_LANE
    try:
        lane = _lane(fields)
        return _frame(fields, lane)
    except RequestError as error:
        return refusal(error, lane)


def refusal(error: Exception, lane: str = DEFAULT_LANE) -> Refusal:
    """Return the refusal that tells this error."""
    return Refusal(error_message(error, lane), lane)


def error_message(error: Exception, lane: str = DEFAULT_LANE) -> bytes:
    """Return the message of an error, with what an HTTP reply would say; one that is ours is logged."""
    reply = reply_to(error)
    return _envelope(reply.status, msgspec.json.decode(reply.body)["error"], lane)


def fault_message(said: str, lane: str = DEFAULT_LANE, code: str = "server_error") -> bytes:
    """Return the message of an error of ours (500)."""
    return _envelope(
        _SERVER_ERROR, error_body(said, status=_SERVER_ERROR, code=code)["error"], lane
    )


def _lane(fields: dict[str, Raw]) -> str:
    if "stream_id" not in fields:
        return DEFAULT_LANE
    lane = _text(fields["stream_id"])
    if lane is None or not _STREAM_ID.match(lane):
        said = "Invalid 'stream_id': expected 1 to 256 letters, digits, _, . and -."
        raise RequestError(said, param="stream_id", code="invalid_stream_id")
    return lane


def _frame(fields: dict[str, Raw], lane: str) -> Frame:
    if "type" not in fields:
        raise missing("type")
    if _text(fields["type"]) != CREATE:
        said = f"Invalid value for 'type': expected '{CREATE}'."
        raise RequestError(said, param="type", code="invalid_value")
    if fields.get("background") == _TRUE:
        said = "Unsupported parameter: 'background' is not supported over a WebSocket."
        raise RequestError(said, param="background", code="unsupported_parameter")
    generate = fields.get("generate", _TRUE)
    if generate not in (_TRUE, _FALSE, _NULL):
        said = "Invalid type for 'generate': expected a boolean."
        raise RequestError(said, param="generate", code="invalid_type")
    body = {name: value for name, value in fields.items() if name not in _ENVELOPE}
    previous = _text(fields.get("previous_response_id", _NULL))
    return Frame(_encode({**body, "stream": _TRUE}), lane, generate != _FALSE, previous)


def _text(value: Raw) -> str | None:
    """Return a field that is text, or None where it is something else."""
    try:
        return msgspec.json.decode(value, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _envelope(status: int, error: dict[str, Any], lane: str) -> bytes:
    default = "server_error" if status >= _SERVER_ERROR else "invalid_request"
    code = error.get("code") or _CODES.get(status, default)
    # What a client wrote may be in them, at any length.
    cut = {name: text[:_TEXT] for name, text in error.items() if text is not None}
    envelope = {"type": "error", "status": status, "error": {**error, **cut, "code": code}}
    return _encode({**envelope, "stream_id": lane} if lane else envelope)


class FrameWriter:
    """The observer of a turn on a connection: each stream event is one message, in the order they came.

    Events of a named lane carry its `stream_id`. Where one is larger than `max_bytes`, nothing of
    the turn is sent from there on but, at its end, an error that names the response.
    """

    def __init__(
        self, send: SendMessage, lane: str = DEFAULT_LANE, *, max_bytes: int | None = None
    ) -> None:
        """Send messages by `send`, one at a time."""
        self._send = send
        self._lane = lane
        self._tail = b',"stream_id":%b}' % _encode(lane) if lane else b""
        self._max_bytes = max_bytes
        self._lock = asyncio.Lock()
        self.ready: list[bytes] = []
        self._size = 0
        self._has_delta = False
        self._response_id = ""
        self._is_cut = False
        self._is_closed = False
        self._is_gone = False
        self._written_at = monotonic()
        self.on_gone: Callable[[], None] | None = None

    def take(self, events: Sequence[StreamEvent], /) -> bool:
        """Add events to what is ready; return whether it should be sent now."""
        is_due = False
        for event in events:
            data = _encode(event)
            if self._tail:
                data = data[:-1] + self._tail
            if self._max_bytes is not None:
                data = self._cut(event, data)
            if data and not self._is_gone:
                self.ready.append(data)
                self._size += len(data)
            if type(event) is OutputTextDelta and not self._has_delta:
                self._has_delta = is_due = True
        if is_due or self._size > _MAX_BATCH_BYTES:
            return True
        return len(self.ready) > 1 and monotonic() - self._written_at > _DUE_S

    async def flush(self) -> None:
        """Send what is ready."""
        async with self._lock:
            try:
                while self.ready:
                    # One that was not sent whole is never sent again.
                    data = self.ready.pop(0)
                    self._size -= len(data)
                    await self._send(data)
            except OSError:
                self._lose_client()
            finally:
                self._written_at = monotonic()

    async def written(self) -> None:
        """Wait until nothing is on its way out."""
        async with self._lock:
            pass

    async def close(self) -> None:
        """Send what is ready, which ends with the terminal event; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_cut and not self._is_gone:
            self.ready.append(self._too_large())
        await self.flush()

    def abandon(self) -> None:
        """Do nothing: there is no timer and no task."""

    def _cut(self, event: StreamEvent, data: bytes) -> bytes:
        if not self._response_id and hasattr(event, "response"):
            self._response_id = event.response.id
        self._is_cut = self._is_cut or (self._max_bytes or 0) < len(data)
        return b"" if self._is_cut else data

    def _too_large(self) -> bytes:
        said = (
            f"An event of response '{self._response_id}' is larger than this connection can carry "
            f"({(self._max_bytes or 0) // 1024} KB), so its stream was cut there. The response went "
            "on to its end: where it is stored, it can be retrieved by its id over HTTP."
        )
        return fault_message(said, self._lane, "event_too_large")

    def _lose_client(self) -> None:
        self._is_gone = True
        self.ready.clear()
        self._size = 0
        if self.on_gone is not None:
            self.on_gone()
