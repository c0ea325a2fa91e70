"""One invocation between its two ends: the runtime that answers it and the client that waits for it.

A reply goes through piece by piece: the runtime's next one is read when the client has taken the last.
"""

import asyncio
from collections.abc import Callable, Sequence
from secrets import token_bytes, token_hex
from typing import Literal, TypeAlias
from uuid import UUID

import anyio
from msgspec import Struct

from handler.emulator.options import Faults
from handler.runtime_api import Failure


Mode: TypeAlias = Literal["streamed", "buffered"]
Kind: TypeAlias = Literal["URL", "RequestResponse", "Event"]
"""What an invocation came by: the function's URL, or Lambda's API with this invocation type."""


class Record(Struct, kw_only=True):
    """What became of an invocation."""

    request_id: str
    kind: Kind = "URL"
    delivery: int = 1
    """How many times its event was delivered, this one included."""
    pid: int | None = None
    """The process of the environment that had it."""
    mode: Mode | None = None
    content_type: str | None = None
    size: int = 0
    """Bytes of the reply that were read, the prelude of a streamed one included."""
    trailers: Failure | None = None
    """What a streamed reply said at its end of a failure."""
    error: Failure | None = None
    """Why the invocation failed: what the function reported, or else what was found."""
    answered: int | None = None
    """The status with which the runtime's reply was answered."""
    status: int | None = None
    """The status that the client got; there is none where nobody waited."""

    @property
    def invocation_id(self) -> str:
        """Names this delivery, where `request_id` is the same for all of an event."""
        return f"{self.request_id}-{self.delivery}"


class BrokenOffError(Exception):
    """The invocation failed, and its record says why."""


class Invocation:
    """An event on its way to the runtime, and the reply on its way back."""

    def __init__(self, record: Record, event: bytes, trace_id: str, faults: Faults) -> None:
        """Take what the runtime is told, and where to note what becomes of it."""
        self.record = record
        self.event = event
        self.trace_id = trace_id
        self.faults = faults
        self.is_taken = asyncio.Event()
        """Set when the runtime has it, or never will."""
        self.has_begun = asyncio.Event()
        """Set when there is a reply, or there will be none."""
        self.is_over = asyncio.Event()
        self.is_cut = False
        """Whether the runtime broke its reply off; whether it lives on is to be seen."""
        self._break_off: Callable[[], None] | None = None
        self._send, self._receive = anyio.create_memory_object_stream[bytes](0)

    def begin(self, mode: Mode, content_type: str, break_off: Callable[[], None]) -> None:
        """Begin the reply; `break_off` is called should the invocation fail before its end."""
        self.record.mode, self.record.content_type = mode, content_type
        self._break_off = break_off
        self.has_begun.set()

    async def deliver(self, data: bytes) -> None:
        """Hand over more of the reply once it is wanted; raises `ConnectionResetError` if it never is."""
        if not data:
            return
        try:
            await self._send.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ConnectionResetError from None

    def end(self, trailers: Failure | None = None) -> None:
        """End the reply."""
        if not self.is_over.is_set():
            self.record.trailers = trailers
            self._finish()

    def fail(self, failure: Failure) -> None:
        """End the invocation where it went wrong; the first failure counts."""
        if self.is_over.is_set():
            return
        self.record.error = failure
        break_off = self._break_off
        self._finish()
        if break_off is not None:
            break_off()

    def release(self) -> None:
        """Leave the connection of the reply to whoever reads it."""
        self._break_off = None

    async def read(self) -> bytes:
        """Return the next piece of the reply, empty at its end; raises `BrokenOffError`."""
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            if self.record.error is not None:
                raise BrokenOffError from None
            return b""

    async def whole(self) -> bytes:
        """Return the reply, once it is there to its end; raises `BrokenOffError`."""
        await self.has_begun.wait()
        posted = bytearray()
        while piece := await self.read():
            posted += piece
        return bytes(posted)

    def close(self) -> None:
        """Take no more of the reply."""
        self._receive.close()

    def _finish(self) -> None:
        self._send.close()
        self._break_off = None
        for event in (self.is_taken, self.has_begun, self.is_over):
            event.set()


def new_request_id() -> str:
    """Return a request id, as Lambda makes them."""
    return str(UUID(bytes=token_bytes(16), version=4))


def new_trace_id(at: float) -> str:
    """Return a trace id of X-Ray's for something that begins then (Unix seconds)."""
    return f"Root=1-{int(at):08x}-{token_hex(12)}"


def report(record: Record, what: Sequence[str], took_s: float) -> str:
    """Return the line that tells what became of an invocation; `what` says which it was."""
    said = [record.request_id, *what]
    if record.mode:
        said += [record.mode, f"{record.size} bytes"]
    said += [f"{took_s * 1000:.1f} ms"]
    failures = [one for one in (record.error, record.trailers) if one is not None]
    return " ".join(["REPORT", *said, *(f"{one.type}: {one.message}" for one in failures)])
