"""`POST /responses`, and the streams that it and `GET` reply with."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from types import MappingProxyType
from typing import Final, NamedTuple

from starlette.types import Receive, Scope, Send

from channel.auth import Caller, caller_of
from channel.deadline import DEADLINE, Deadline
from channel.http import JSONReply, error_reply, read_body, request_id
from channel.ports import StoreError
from channel.responses.background.following import Follower, Position
from channel.responses.background.turns import BackgroundTurns
from channel.responses.idempotency import (
    HEADER,
    REPLAYED,
    Claimed,
    Idempotency,
    Replay,
    result_not_stored,
)
from channel.responses.operations import Prepared, ResponseOperations
from channel.responses.protocol.replay import replayed
from channel.responses.protocol.requests import parse
from channel.responses.replies import NO_RETRY, WholeReply, failed
from channel.responses.run import FailedBeforeReplyError, TurnRun
from channel.responses.serving import Serving
from channel.responses.sse import SSEWriter
from channel.sessions import BeganAt


_KEY_HEADER: Final = HEADER.encode()


class _Exchange(NamedTuple):
    caller: Caller
    body: bytes
    deadline: Deadline | None
    scope: Scope
    receive: Receive
    send: Send
    started_at: float

    @property
    def limit_s(self) -> float | None:
        """Seconds that its reply may take from now on."""
        if self.deadline is None:
            return None
        return self.deadline.ends_at + self.deadline.margin_s - monotonic()


class Streams:
    """SSE replies, and what they follow where they are of background responses."""

    def __init__(self, follower: Follower, keepalive_s: float) -> None:
        """Write a keep-alive event after that many seconds without another."""
        self.follower = follower
        self._keepalive_s = keepalive_s

    def writer(
        self, scope: Scope, send: Send, headers: Mapping[str, str] = MappingProxyType({})
    ) -> SSEWriter:
        """Return a writer of an SSE reply with these headers besides its own."""
        has_trailers = "http.response.trailers" in scope.get("extensions", ())
        return SSEWriter(
            send, keepalive_s=self._keepalive_s, has_trailers=has_trailers, headers=headers
        )


class Create:
    """`POST /responses`, as an ASGI app: the reply is JSON or SSE, by the body's `stream` alone."""

    def __init__(
        self,
        operations: ResponseOperations,
        background: BackgroundTurns,
        streams: Streams,
        idempotency: Idempotency,
        serving: Serving,
        *,
        has_cancellable_streams: bool,
    ) -> None:
        """Take what serves it."""
        self._operations = operations
        self._background = background
        self._streams = streams
        self._idempotency = idempotency
        self._serving = serving
        self._has_cancellable_streams = has_cancellable_streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started_at = monotonic()
        body = await read_body(scope, receive)
        exchange = _Exchange(
            caller_of(scope), body, scope.get(DEADLINE), scope, receive, send, started_at
        )
        key: bytes | None = None
        for name, value in scope["headers"]:
            if name == _KEY_HEADER:
                key = value
        if key is None:
            await self._serve(exchange, None)
            return
        begun = await self._idempotency.begin(
            exchange.caller.keys,
            key.decode("latin-1"),
            body,
            find=partial(self._is_kept, exchange),
            limit_s=exchange.limit_s,
        )
        if isinstance(begun, Replay):
            await self._replay(exchange, begun)
            return
        async with begun:
            await self._serve(exchange, begun)

    async def _serve(self, exchange: _Exchange, claimed: Claimed | None) -> None:
        deadline, send = exchange.deadline, exchange.send
        prepared = await self._operations.prepare(exchange.caller, exchange.body, deadline=deadline)
        if claimed is not None:
            await _note(claimed, prepared)
        if prepared.response.background:
            await self._begin(exchange, prepared, claimed)
            return
        turn = self._operations.turn(prepared, request_id=request_id.get(), deadline=deadline)
        if claimed is not None:
            turn.on_kept(lambda: claimed.conclude(turn.response, is_kept=turn.is_kept))
        is_stream, receive = bool(prepared.request.stream), exchange.receive
        if is_stream and self._has_cancellable_streams and prepared.response.store:
            receive = await self._background.cancellable(prepared, deadline, receive)
        observer = (
            self._streams.writer(exchange.scope, send)
            if is_stream
            else WholeReply(partial(_whole, turn), send)
        )
        try:
            await self._serving.run(
                turn, observer, receive, started_at=exchange.started_at, is_stream=is_stream
            )
        except FailedBeforeReplyError as error:
            await failed(error.cause).send_to(send)

    async def _begin(
        self, exchange: _Exchange, prepared: Prepared, claimed: Claimed | None
    ) -> None:
        response = await self._background.begin(prepared, request_id.get())
        if claimed is not None:
            await claimed.conclude(response, is_kept=True)
        if not prepared.request.stream:
            await JSONReply(response).send_to(exchange.send)
            return
        writer = self._streams.writer(exchange.scope, exchange.send)
        await self._follow(exchange, Position(exchange.caller.keys, response.id), writer)

    async def _follow(self, exchange: _Exchange, position: Position, writer: SSEWriter) -> None:
        await self._streams.follower.follow(position, writer, exchange.receive, exchange.deadline)

    async def _is_kept(self, exchange: _Exchange, response_id: str) -> bool:
        """Return whether the turn of this request, as it came before, is stored."""
        keys, (request, _) = exchange.caller.keys, parse(exchange.body)
        if request.store is False and (conversation := request.conversation_id) is not None:
            return await self._operations.has_turn(keys, conversation, response_id)
        return await self._background.look(keys, response_id) is not None

    async def _replay(self, exchange: _Exchange, replay: Replay) -> None:
        """Give the first result again, as it is now."""
        request, _ = parse(exchange.body)
        keys, response_id = exchange.caller.keys, replay.response_id
        if request.store is False:
            raise result_not_stored()
        response = await self._background.retrieve(exchange.caller, response_id)
        if self._operations.sessions is not None:
            await self._operations.sessions.advance_replayed(keys, replay.began_at, response)
        headers = {REPLAYED: "true"}
        if not request.stream:
            await JSONReply(response, headers=headers).send_to(exchange.send)
            return
        is_over = response.status.is_terminal
        # The events themselves, where they are kept: a client may resume this stream by their numbers.
        has_events = response.background and await self._streams.follower.has_events(
            exchange.caller.keys, response_id
        )
        writer = self._streams.writer(exchange.scope, exchange.send, headers)
        if is_over and not has_events:
            writer.take(replayed(response))
            await writer.close()
            return
        position = Position(exchange.caller.keys, response_id, is_over=is_over)
        await self._follow(exchange, position, writer)


async def _note(claimed: Claimed, prepared: Prepared) -> None:
    """Note the response of a turn that is kept, before it is begun."""
    if not (prepared.response.store or prepared.hold is not None):
        return
    try:
        session = prepared.session
        began_at = None if session is None else BeganAt(session.head)
        await claimed.note(prepared.response.id, began_at)
    except BaseException:
        if prepared.hold is not None:
            with suppress(StoreError):
                await prepared.hold.release()
        raise


class Resumed:
    """The stream of a background response from some position on, as an ASGI app."""

    def __init__(self, streams: Streams, position: Position) -> None:
        """Follow from there."""
        self._streams = streams
        self._position = position

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        writer, deadline = self._streams.writer(scope, send), scope.get(DEADLINE)
        await self._streams.follower.follow(self._position, writer, receive, deadline)


def _whole(turn: TurnRun) -> JSONReply:
    """Return the JSON reply of a finished turn: 200 also for a failed one that was kept in time."""
    failure = turn.response.error
    said = failure.message if failure else ""
    if not turn.is_kept:
        return error_reply(said, status=500, headers=NO_RETRY)
    if turn.is_late:
        if turn.response.store:
            said += f"; what there is of the response is kept as '{turn.response.id}'."
        return error_reply(said, status=504, code="timeout", headers=NO_RETRY)
    return JSONReply(turn.response)
