"""What becomes of a turn: a stream of chunks, a completion, or an error in this API's words."""

from collections.abc import Sequence
from copy import copy
from time import monotonic
from typing import Any, Final, TypeVar

import msgspec
from starlette.types import Send

from channel.agent import TurnError
from channel.chat.chunks import Chunks, completion
from channel.http import JSONReply
from channel.responses.protocol.errors import RequestError, error_body
from channel.responses.protocol.events import (
    KeptEvent,
    OutputTextDelta,
    ResponseFailed,
    StreamEvent,
)
from channel.responses.protocol.response import Status
from channel.responses.replies import NO_RETRY
from channel.responses.run import TurnRun
from channel.responses.sse import DUE_S, MAX_BATCH_BYTES, SSEWriter


_Error = TypeVar("_Error", bound=BaseException)

_NAMES: Final = {
    "input": "messages",
    "instructions": "messages",
    "max_output_tokens": "max_completion_tokens",
    "reasoning": "reasoning_effort",
    "reasoning.effort": "reasoning_effort",
    "text": "response_format",
    "text.format": "response_format",
    "text.format.name": "response_format.json_schema.name",
    "text.format.schema": "response_format.json_schema.schema",
    "text.format.type": "response_format.type",
    "text.verbosity": "verbosity",
}
"""What fields of the Responses API, which agents name in their errors, are called here."""

_ANSWERED: Final = (Status.COMPLETED, Status.INCOMPLETE)
_encode = msgspec.json.Encoder().encode


class ChunkWriter(SSEWriter):
    """Writes a turn as chunks; its keep-alives are comments, which every reader of SSE passes over.

    A turn that failed ends with `{"error": …}` and without `[DONE]`: who does not look for the one
    shall not find the other.
    """

    def __init__(
        self,
        send: Send,
        turn: TurnRun,
        *,
        includes_usage: bool,
        keepalive_s: float,
        has_trailers: bool,
    ) -> None:
        """Write to this `send`."""
        super().__init__(send, keepalive_s=keepalive_s, has_trailers=has_trailers)
        self._turn = turn
        self._chunks = Chunks(includes_usage=includes_usage)

    def take(self, events: Sequence[StreamEvent | KeptEvent], /) -> bool:
        """Add what the events cause; return whether it should be flushed now."""
        is_due, size = False, 0
        for event in events:
            self._taken = event
            for chunk in self._chunks.of(event):
                size = self._add(_encode(chunk))
            if isinstance(event, OutputTextDelta) and not self._has_delta:
                self._has_delta = is_due = True
            elif isinstance(event, ResponseFailed):
                size = self._add(_encode(_body(_failure(self._turn))))
        if is_due or self._size + size > MAX_BATCH_BYTES:
            return True
        return len(self.ready) > 1 and monotonic() - self._written_at > DUE_S

    async def close(self) -> None:
        """Write what is ready and end the stream; nothing follows, and a second call does nothing."""
        if not isinstance(self._taken, ResponseFailed):
            await super().close()
        elif not self._is_closing:
            await self.cut()

    def _add(self, data: bytes) -> int:
        frame = b"data: %b\n\n" % data
        self.ready.append(frame)
        self._size += len(frame)
        return len(frame)

    def _keepalive(self, _last_number: int) -> bytes:
        return b": keepalive\n\n"


def whole(turn: TurnRun) -> JSONReply:
    """Return the reply of a turn that is over: nothing was sent, so one that failed is an error."""
    if turn.response.status in _ANSWERED:
        return JSONReply(completion(turn.response))
    failure = _failure(turn)
    return JSONReply(_body(failure), status=failure.status, headers=NO_RETRY)


def named(error: _Error) -> _Error:
    """Return an error that names the field that is wrong by its name here; others as they are."""
    if not isinstance(error, RequestError | TurnError) or error.param not in _NAMES:
        return error
    told = copy(error)  # an agent may raise one error again and again
    told.param = _NAMES[error.param]
    told.message = error.message.replace(f"'{error.param}'", f"'{told.param}'")
    return told


def _failure(turn: TurnRun) -> TurnError:
    """Return why a turn failed, with the HTTP status that goes with it."""
    failure = turn.response.error
    if failure is None:
        return TurnError("The turn was cancelled.")
    if turn.is_late:
        return TurnError(failure.message, code="timeout", status=504)
    told = turn.told_error
    if told is None or told.code != failure.code:  # a hook had the last word
        return TurnError(failure.message, code=failure.code)
    error = TurnError(failure.message, code=told.code, status=told.status, param=told.param)
    return named(error)


def _body(error: TurnError) -> dict[str, Any]:
    return error_body(error.message, status=error.status, param=error.param, code=error.code)
