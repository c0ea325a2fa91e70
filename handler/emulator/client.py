"""The client's end of an invocation: the runtime's reply, as a function URL answers with it."""

from contextlib import suppress
from typing import Final

from starlette.types import Receive, Send

from handler.emulator.invocation import BrokenOffError, Invocation, Record
from handler.emulator.replies import BadReplyError, Head, PreludeReader, whole_reply
from handler.runtime_api import STREAMED, Failure


_HAVE_NO_BODY: Final = frozenset({204, 304})
_UNTOLD: Final = Head(200, [(b"content-type", b"application/octet-stream")])
"""Of a reply whose status and headers the function URL does not look for."""


class Client:
    """Whoever waits for the reply; where that breaks off, uvicorn ends the connection."""

    def __init__(self, send: Send, record: Record) -> None:
        """Take ASGI's `send`."""
        self._send = send
        self._record = record

    async def answer(self, invocation: Invocation, *, streams: bool) -> None:
        """Pass the reply on; 502 where there is none to pass on."""
        try:
            await self._pass_on(invocation, streams=streams)
        except BadReplyError as error:
            self._record.error = Failure(error.kind, str(error))
            with suppress(BrokenOffError):
                while await invocation.read():
                    pass  # the runtime is not told of it
        except BrokenOffError:
            pass  # the record says why
        if self._record.status is None:
            await self.say(502, b"Internal Server Error", b"text/plain")

    async def say(self, status: int, body: bytes, content_type: bytes) -> None:
        """Answer in Lambda's own name."""
        length = b"%d" % len(body)
        headers = [(b"content-type", content_type), (b"content-length", length)]
        await self._whole(Head(status, headers), body)

    async def _pass_on(self, invocation: Invocation, *, streams: bool) -> None:
        await invocation.has_begun.wait()
        if self._record.mode == "streamed" and streams:
            await self._stream(invocation)
            return
        posted = await invocation.whole()
        is_proxy = self._record.mode == "buffered"
        # A URL in buffered mode passes a streamed reply on as it is, prelude and all.
        head, body = whole_reply(posted) if is_proxy else (_UNTOLD, posted)
        await self._whole(head, body)

    async def _stream(self, invocation: Invocation) -> None:
        prelude = PreludeReader()
        if self._record.content_type != STREAMED:
            await self._start(_UNTOLD)
        while piece := await invocation.read():
            if self._record.status is None:
                found = prelude.feed(piece)
                if found is None:
                    continue
                head, piece = found
                await self._start(head)
            await self._body(piece)
        if self._record.status is None:
            raise prelude.end()
        await self._body(b"", is_last=True)

    async def _whole(self, head: Head, body: bytes) -> None:
        await self._start(head)
        await self._body(body, is_last=True)

    async def _start(self, head: Head) -> None:
        self._record.status = head.status
        name = (b"x-amzn-requestid", self._record.request_id.encode())
        headers = [*head.headers, name]
        await self._send({"type": "http.response.start", "status": head.status, "headers": headers})

    async def _body(self, data: bytes, *, is_last: bool = False) -> None:
        if self._record.status in _HAVE_NO_BODY:
            data = b""
        if data or is_last:
            message = {"type": "http.response.body", "body": data, "more_body": not is_last}
            await self._send(message)


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """Return the request's body, or a beginning of it that is over the limit; None where it broke off."""
    body = bytearray()
    has_more = True
    while has_more and len(body) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
    return bytes(body)
