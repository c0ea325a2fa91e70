"""The ASGI side of one HTTP invocation: `receive`, and the reply on its way to the Runtime API.

Which reply it is, streamed or whole, depends on the event's door; `settle` ends either, and learns
what became of it.
"""

import asyncio
from typing import Final, Protocol

import msgspec
from starlette.types import Message

from handler.events import MAX_REPLY_BYTES, HTTPEvent, answer
from handler.runtime_api import (
    END,
    Failure,
    Invocation,
    Reply,
    RuntimeApi,
    chunk,
    failed_end,
    prelude,
)
from handler.runtime_client import Connection, Line


STREAM_ERROR: Final = "Runtime.StreamError"
_ERROR_CODE: Final = b"x-error-code"  # of a turn that failed, as the channel's trailers tell it
_encode = msgspec.json.Encoder().encode


class AppProtocolError(RuntimeError):
    """The app sent what ASGI does not allow there."""

    def __init__(self, message: Message) -> None:
        """Name what was sent."""
        super().__init__(f"The app sent {message['type']!r} where ASGI does not allow it.")


class Inbox:
    """The app's `receive`: the request, and `http.disconnect` once the reply is over."""

    def __init__(self, body: bytes, is_over: asyncio.Event) -> None:
        """Hold the request's body."""
        self._body: bytes | None = body
        self._is_over = is_over

    async def receive(self) -> Message:
        """Return the next message."""
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._is_over.wait()
        return {"type": "http.disconnect"}


class ReplyToEvent(Protocol):
    """Where an app's reply goes. `is_over` is set at its end, and where it breaks off."""

    is_over: asyncio.Event

    @property
    def has_begun(self) -> bool:
        """Whether the status is out of our hands."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether the app has said all of it."""
        ...

    async def send(self, message: Message, /) -> None:
        """Take an ASGI message; raises `OSError` where nobody reads."""
        ...

    def discard(self) -> None:
        """Forget what the app said of a reply that has not begun."""
        ...

    async def settle(self, failure: Failure | None, /) -> Reply:
        """End the reply; return what the Runtime API made of it. Raises `OSError`."""
        ...

    def drop(self) -> None:
        """Keep nothing of it, however far it got; an app that was left to itself may still send."""
        ...


class StreamedReply:
    """A reply on a connection of its own: the prelude in a chunk of its own, then what the app sends.

    The app waits in `send` while Lambda takes no more.
    """

    def __init__(self, api: RuntimeApi, invocation: Invocation, connection: Connection) -> None:
        """Take what the reply answers, and its connection; nothing is written yet."""
        self._api = api
        self._invocation = invocation
        self._connection = connection
        self._start: Message | None = None
        self._is_body_whole = False
        self.has_begun = False
        self.is_whole = False
        self.is_over = asyncio.Event()

    async def send(self, message: Message) -> None:
        """Take an ASGI message.

        Raises `OSError` where Lambda takes no more, and `ReplyHeadError` before anything is written.
        """
        kind = message["type"]
        if self._connection.is_answered:
            raise ConnectionResetError
        if kind == "http.response.start" and self._start is None:
            self._start = message
        elif kind == "http.response.body" and self._start is not None and not self._is_body_whole:
            await self._write(message, self._start)
        elif kind == "http.response.trailers" and self._is_body_whole and not self.is_whole:
            await self._end(_told_failure(message))
        else:
            raise AppProtocolError(message)

    def discard(self) -> None:
        """Forget what the app said of a reply that has not begun."""
        self._start, self._is_body_whole = None, False

    async def settle(self, failure: Failure | None) -> Reply:
        """End the reply where the app did not; return what the Runtime API made of it."""
        if not self.has_begun:
            raise ConnectionResetError
        if not (self.is_whole or self._connection.is_answered):
            await self._end(failure)
        return await self._connection.reply()

    def drop(self) -> None:
        """Close the connection: where the reply was not ended, that is how Lambda learns of it."""
        self._is_body_whole = True
        self.is_over.set()
        # Soon: the next invocation is asked for first.
        asyncio.get_running_loop().call_soon(self._connection.close)

    async def _write(self, message: Message, start: Message) -> None:
        data, has_more = message.get("body", b""), message.get("more_body", False)
        self._is_body_whole = not has_more
        ends = not has_more and not start.get("trailers")
        rest = chunk(data) + (END if ends else b"")
        if not self.has_begun:
            head = prelude(
                start["status"], start.get("headers", ()), is_empty=not (data or has_more)
            )
            begin = self._api.streamed_response(self._invocation) + chunk(head)
            # What there is no more of goes out at once; else the head is not kept waiting.
            begin, rest = (begin + rest, b"") if ends else (begin, rest)
            self.has_begun = True
            # Whatever ends the connection ends the reply, also while the app is silent.
            await self._connection.begin(begin, self.is_over.set)
        if rest:
            await self._connection.write(rest)
        if ends:
            self._finish()

    async def _end(self, failure: Failure | None) -> None:
        await self._connection.write(END if failure is None else failed_end(failure))
        self._finish()

    def _finish(self) -> None:
        self.is_whole = True
        self.is_over.set()


class BufferedReply:
    """A whole reply, in the shape of the event's door; written once the app is done."""

    has_begun = False

    def __init__(
        self, api: RuntimeApi, invocation: Invocation, event: HTTPEvent, line: Line
    ) -> None:
        """Take what the reply answers, and the line that it goes by."""
        self._api = api
        self._invocation = invocation
        self._event = event
        self._line = line
        self._start: Message | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self.is_over = asyncio.Event()

    @property
    def is_whole(self) -> bool:
        """Whether the app has said all of it."""
        return self.is_over.is_set()

    async def send(self, message: Message) -> None:
        """Take an ASGI message."""
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
        elif kind == "http.response.body" and self._start is not None and not self.is_over.is_set():
            self._take(message.get("body", b""))
            if not message.get("more_body", False):
                self.is_over.set()
        else:
            raise AppProtocolError(message)

    def discard(self) -> None:
        """Forget what the app said."""
        self._start, self._pieces, self._size = None, [], 0
        self.is_over.clear()

    async def settle(self, _failure: Failure | None) -> Reply:
        """Write the reply; return what the Runtime API made of it. Raises `OSError`."""
        start = self._start or {}
        headers = [(bytes(name), bytes(value)) for name, value in start.get("headers", ())]
        document = answer(self._event, start["status"], headers, b"".join(self._pieces))
        return await self._line.ask(self._api.response(self._invocation, _encode(document)))

    def drop(self) -> None:
        """Keep nothing; the line is not this reply's."""
        self._pieces = []
        self.is_over.set()

    def _take(self, data: bytes) -> None:
        # What no door can carry need not be kept; the app goes on, since its turn is to be stored.
        if self._size <= MAX_REPLY_BYTES:
            self._pieces.append(data)
        self._size += len(data)


def _told_failure(trailers: Message) -> Failure | None:
    code = dict(trailers.get("headers", ())).get(_ERROR_CODE)
    if code is None:
        return None
    said = code.decode("latin-1")
    return Failure(STREAM_ERROR, f"The response failed: {said}. The stream tells how.")
