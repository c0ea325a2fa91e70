"""`ResponsesChannel`: the routes, each from its HTTP request to an operation and back."""

import asyncio
import logging
import time
from collections.abc import Collection
from time import monotonic
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from channel.agent import OPTION_NAMES, TurnError
from channel.auth import caller_of
from channel.contract import (
    ChannelContext,
    ChannelContribution,
    ChannelResponseHook,
    ChannelRunHook,
    ChannelStreamTransformHook,
)
from channel.deadline import DEADLINE, Deadline
from channel.faults import log_fault
from channel.http import JSONReply, error_reply, read_body, request_id
from channel.jobs import TaskJobs
from channel.memory import InMemoryResponseStore
from channel.memory_runs import InMemoryRunStore
from channel.ports import Clock, Jobs, ResponseStore, RunStore, Telemetry
from channel.responses.background import BACKGROUND, BackgroundTurns
from channel.responses.following import Follower, Position
from channel.responses.observing import Unobserved
from channel.responses.operations import (
    ChannelOptions,
    Page,
    Prepared,
    ResponseIdFactory,
    ResponseOperations,
)
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.shapes import checked
from channel.responses.run import FailedBeforeReplyError, TurnHooks, TurnRun, facts_of
from channel.responses.sse import SSEWriter


_LOG: Final = logging.getLogger(__name__)
_DRAIN_S: Final = 5.0
_NO_RETRY: Final = {"x-should-retry": "false"}


class ResponsesChannel:
    """OpenAI's Responses API below `path`; with `/v1`, the app's URL and `/v1` is a `base_url`.

    `store` keeps the history (default: this process's memory). `allowed_options` are request
    fields that reach the agent besides those it declared itself (`channel.agent.accepts`).
    `shows_tools` makes the agent's own tools visible as `mcp_call` items. `keepalive_s` (0: never)
    and `first_event_grace_s` are seconds. Raises `ValueError` for an unknown option name, and for a
    `response_id_factory` beside a store that keeps minted ids only.
    """

    name = "responses"

    def __init__(
        self,
        *,
        path: str = "/v1",
        store: ResponseStore | None = None,
        model: str = "agent",
        allowed_options: Collection[str] = (),
        shows_tools: bool = False,
        keepalive_s: float = 15.0,
        first_event_grace_s: float = 2.0,
        run_hook: ChannelRunHook | None = None,
        response_hook: ChannelResponseHook | None = None,
        stream_transform_hook: ChannelStreamTransformHook | None = None,
        response_id_factory: ResponseIdFactory | None = None,
        telemetry: Telemetry | None = None,
        clock: Clock = time.time,
        runs: RunStore | None = None,
        jobs: Jobs | None = None,
        has_background: bool = True,
        has_cancellable_streams: bool = False,
        event_retention_s: float = 3600.0,
    ) -> None:
        """Take the owner's decisions."""
        unknown = sorted(set(allowed_options) - OPTION_NAMES)
        if unknown:
            msg = f"allowed_options has {unknown}; the caller options are {sorted(OPTION_NAMES)}"
            raise ValueError(msg)
        self.path = path
        self._store = store or InMemoryResponseStore()
        if response_id_factory and not getattr(self._store, "takes_custom_ids", True):
            msg = "response_id_factory needs a store that keeps ids of your making (aliases=True)"
            raise ValueError(msg)
        self._keepalive_s = keepalive_s
        self._telemetry = telemetry
        self._clock = clock
        self._created = int(clock())
        self._runs = runs or InMemoryRunStore(clock=clock)
        self._jobs = jobs
        self._has_cancellable_streams = has_cancellable_streams
        self._event_retention_s = event_retention_s
        self._options = ChannelOptions(
            name=self.name,
            model=model,
            allowed_options=frozenset(allowed_options),
            shows_tools=shows_tools,
            first_event_grace_s=first_event_grace_s,
            run_hook=run_hook,
            hooks=TurnHooks(stream_transform_hook, response_hook),
            has_background=has_background,
            response_id_factory=response_id_factory,
        )

    def contribute(self, context: ChannelContext, /) -> ChannelContribution:
        """Return the routes."""
        operations = ResponseOperations(context, self._store, self._options, self._clock)
        tasks = TaskJobs()
        background = BackgroundTurns(
            operations,
            self._store,
            self._runs,
            self._jobs or tasks,
            self._clock,
            event_retention_s=self._event_retention_s,
            telemetry=self._telemetry,
        )
        tasks.handlers[BACKGROUND] = background.run
        streams = _Streams(Follower(background, self._runs, self._clock), self._keepalive_s)
        create = _Create(
            operations,
            background,
            streams,
            self._telemetry,
            has_cancellable_streams=self._has_cancellable_streams,
        )
        stored = _Stored(operations, background, streams)
        models = _Models(self._options.model, self._created)
        one = "/responses/{response_id}"
        return ChannelContribution(
            routes=[
                Route("/responses", create, methods=["POST"]),
                Route(one, stored.one, methods=["GET", "DELETE"]),
                Route(f"{one}/cancel", stored.cancel, methods=["POST"]),
                Route(f"{one}/input_items", stored.input_items, methods=["GET"]),
                Route("/models", models.list_all, methods=["GET"]),
                Route("/models/{model:path}", models.retrieve, methods=["GET"]),
            ],
            on_shutdown=[create.drain, tasks.drain],
            jobs={BACKGROUND: background.run},
        )


class _Streams:
    """SSE replies, and what they follow where they are of background responses."""

    def __init__(self, follower: Follower, keepalive_s: float) -> None:
        self.follower = follower
        self._keepalive_s = keepalive_s

    def writer(self, scope: Scope, send: Send) -> SSEWriter:
        has_trailers = "http.response.trailers" in scope.get("extensions", ())
        return SSEWriter(send, keepalive_s=self._keepalive_s, has_trailers=has_trailers)


class _Create:
    """`POST /responses`, as an ASGI app: the reply is JSON or SSE, by the body's `stream` alone."""

    def __init__(
        self,
        operations: ResponseOperations,
        background: BackgroundTurns,
        streams: _Streams,
        telemetry: Telemetry | None,
        *,
        has_cancellable_streams: bool,
    ) -> None:
        self._operations = operations
        self._background = background
        self._streams = streams
        self._telemetry = telemetry
        self._has_cancellable_streams = has_cancellable_streams
        self._running: set[asyncio.Task[Any]] = set()

    async def drain(self) -> None:
        """Let the turns that a stopping server has cancelled store what they are."""
        if self._running:
            await asyncio.wait(self._running, timeout=_DRAIN_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = monotonic()
        body = await read_body(scope, receive)
        deadline: Deadline | None = scope.get(DEADLINE)
        prepared = await self._operations.prepare(caller_of(scope), body, deadline=deadline)
        if prepared.response.background:
            await self._begin(prepared, deadline, scope, receive, send)
            return
        turn = self._operations.turn(prepared, request_id=request_id.get(), deadline=deadline)
        is_stream = bool(prepared.request.stream)
        if is_stream and self._has_cancellable_streams and prepared.response.store:
            receive = await self._background.cancellable(prepared, deadline, receive)
        observer = self._streams.writer(scope, send) if is_stream else _JSONWriter(turn, send)
        outcome, task = "cancelled", asyncio.current_task()
        try:
            run = turn.run(observer, receive)
            if task is not None:
                self._running.add(task)
            # A stream waits often, and every wait costs by the depth of what is awaited: a task of
            # its own is not as deep as all the layers above.
            await (asyncio.create_task(run) if is_stream else run)
            outcome = str(turn.response.status)
        except FailedBeforeReplyError as error:
            outcome = "failed"
            await _failed(error.cause).send_to(send)
            return
        finally:
            if task is not None:
                self._running.discard(task)
            if self._telemetry is not None:
                facts = facts_of(turn, outcome, started_at, is_stream=is_stream)
                self._telemetry.turn_finished(facts)

    async def _begin(
        self,
        prepared: Prepared,
        deadline: Deadline | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        response = await self._background.begin(prepared, request_id.get())
        if not prepared.request.stream:
            await JSONReply(response).send_to(send)
            return
        writer = self._streams.writer(scope, send)
        position = Position(prepared.asked.caller.keys, response.id)
        await self._streams.follower.follow(position, writer, receive, deadline)


class _Resumed:
    """The stream of a background response from some position on, as an ASGI app."""

    def __init__(self, streams: _Streams, position: Position) -> None:
        self._streams = streams
        self._position = position

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer, deadline = self._streams.writer(scope, send), scope.get(DEADLINE)
        await self._streams.follower.follow(self._position, writer, receive, deadline)


class _JSONWriter(Unobserved):
    """Replies with the response once its turn is over."""

    def __init__(self, turn: TurnRun, send: Send) -> None:
        super().__init__()
        self._turn = turn
        self._send = send
        self._is_closed = False

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await _whole(self._turn).send_to(self._send)


class _Stored:
    """The routes of stored responses."""

    def __init__(
        self, operations: ResponseOperations, background: BackgroundTurns, streams: _Streams
    ) -> None:
        self._operations = operations
        self._background = background
        self._streams = streams

    async def one(self, request: Request) -> ASGIApp:
        caller, response_id = caller_of(request.scope), _response_id(request)
        if request.method == "DELETE":
            await self._background.delete(caller, response_id)
            return JSONReply({"id": response_id, "object": "response", "deleted": True})
        if request.query_params.get("stream") in ("true", "1"):
            after = _starting_after(request.query_params)
            response = await self._streams.follower.opened(caller, response_id)
            is_over = response.status.is_terminal
            return _Resumed(self._streams, Position(caller.keys, response_id, after, is_over))
        return JSONReply(await self._background.retrieve(caller, response_id))

    async def cancel(self, request: Request) -> JSONReply:
        caller = caller_of(request.scope)
        return JSONReply(await self._background.cancel(caller, _response_id(request)))

    async def input_items(self, request: Request) -> JSONReply:
        page = _page(request.query_params)
        caller = caller_of(request.scope)
        return JSONReply(await self._operations.input_items(caller, _response_id(request), page))


class _Models:
    """`/models`: one, since there is one agent."""

    def __init__(self, name: str, created: int) -> None:
        self._model = {"id": name, "object": "model", "created": created, "owned_by": "owner"}

    async def list_all(self, _request: Request) -> JSONReply:
        return JSONReply({"object": "list", "data": [self._model]})

    async def retrieve(self, request: Request) -> JSONReply:
        name = request.path_params["model"]
        if name != self._model["id"]:
            msg = f"The model '{name}' does not exist."
            raise RequestError(msg, param="model", code="model_not_found", status=404)
        return JSONReply(self._model)


class _PageQuery(Struct, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


def _page(query: QueryParams) -> Page:
    given: dict[str, Any] = {key: query[key] for key in ("limit", "order") if query.get(key)}
    if given.get("limit", "").isdecimal():
        given["limit"] = int(given["limit"][:9])
    parsed = checked(given, _PageQuery, "")
    return Page(
        limit=parsed.limit,
        order=parsed.order,
        after=query.get("after") or None,
        before=query.get("before") or None,
    )


class _StreamQuery(Struct, frozen=True):
    starting_after: Annotated[int, Meta(ge=0)] = -1


def _starting_after(query: QueryParams) -> int:
    given: Any = query.get("starting_after")
    if not given:
        return -1
    if given.isdecimal():
        given = int(given[:9])
    return checked({"starting_after": given}, _StreamQuery, "").starting_after


def _response_id(request: Request) -> str:
    identifier: str = request.path_params["response_id"]
    return identifier


def _whole(turn: TurnRun) -> JSONReply:
    """Return the JSON reply of a finished turn: 200 also for a failed one that was kept in time."""
    failure = turn.response.error
    said = failure.message if failure else ""
    if not turn.is_kept:
        return error_reply(said, status=500, headers=_NO_RETRY)
    if turn.is_late:
        if turn.response.store:
            said += f"; what there is of the response is kept as '{turn.response.id}'."
        return error_reply(said, status=504, code="timeout", headers=_NO_RETRY)
    return JSONReply(turn.response)


def _failed(cause: BaseException) -> JSONReply:
    """Return the error of an agent that failed before its first event; it has run, so no retry."""
    if isinstance(cause, RequestError):
        raise cause
    if isinstance(cause, TurnError):
        return error_reply(
            cause.message,
            status=cause.status,
            param=cause.param,
            code=cause.code,
            headers=_NO_RETRY,
        )
    log_fault(_LOG, "agent failed", cause)
    said = f"The agent failed to answer. Request id: {request_id.get()}"
    return error_reply(said, status=500, headers=_NO_RETRY)
