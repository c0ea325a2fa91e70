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
from starlette.types import Receive, Scope, Send

from channel.agent import OPTION_NAMES, TurnError
from channel.auth import caller_of
from channel.contract import (
    ChannelContext,
    ChannelContribution,
    ChannelResponseHook,
    ChannelRunHook,
    ChannelStreamTransformHook,
)
from channel.deadline import DEADLINE
from channel.faults import log_fault
from channel.http import JSONReply, error_reply, read_body, request_id
from channel.memory import InMemoryResponseStore
from channel.ports import Clock, ResponseStore, Telemetry, TurnFacts
from channel.responses.observing import Observer, Unobserved
from channel.responses.operations import (
    ChannelOptions,
    Page,
    ResponseIdFactory,
    ResponseOperations,
)
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.shapes import checked
from channel.responses.run import FailedBeforeReplyError, TurnHooks, TurnRun
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
        self._options = ChannelOptions(
            name=self.name,
            model=model,
            allowed_options=frozenset(allowed_options),
            shows_tools=shows_tools,
            first_event_grace_s=first_event_grace_s,
            run_hook=run_hook,
            hooks=TurnHooks(stream_transform_hook, response_hook),
            response_id_factory=response_id_factory,
        )

    def contribute(self, context: ChannelContext, /) -> ChannelContribution:
        """Return the routes."""
        operations = ResponseOperations(context, self._store, self._options, self._clock)
        create = _Create(operations, self._keepalive_s, self._telemetry)
        stored = _Stored(operations)
        models = _Models(self._options.model, self._created)
        one = "/responses/{response_id}"
        return ChannelContribution(
            routes=[
                Route("/responses", create, methods=["POST"]),
                Route(one, stored.one, methods=["GET", "DELETE"]),
                Route(f"{one}/input_items", stored.input_items, methods=["GET"]),
                Route("/models", models.list_all, methods=["GET"]),
                Route("/models/{model:path}", models.retrieve, methods=["GET"]),
            ],
            on_shutdown=[create.drain],
        )


class _Create:
    """`POST /responses`, as an ASGI app: the reply is JSON or SSE, by the body's `stream` alone."""

    def __init__(
        self,
        operations: ResponseOperations,
        keepalive_s: float,
        telemetry: Telemetry | None,
    ) -> None:
        self._operations = operations
        self._keepalive_s = keepalive_s
        self._telemetry = telemetry
        self._running: set[asyncio.Task[Any]] = set()

    async def drain(self) -> None:
        """Let the turns that a stopping server has cancelled store what they are."""
        if self._running:
            await asyncio.wait(self._running, timeout=_DRAIN_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = monotonic()
        body = await read_body(scope, receive)
        request, turn = await self._operations.create(
            caller_of(scope),
            body,
            request_id=request_id.get(),
            deadline=scope.get(DEADLINE),
        )
        is_stream = bool(request.stream)
        observer = self._observer(scope, send) if is_stream else _JSONWriter(turn, send)
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
                facts = _facts(turn, outcome, started_at, is_stream=is_stream)
                self._telemetry.turn_finished(facts)

    def _observer(self, scope: Scope, send: Send) -> Observer:
        has_trailers = "http.response.trailers" in scope.get("extensions", ())
        return SSEWriter(send, keepalive_s=self._keepalive_s, has_trailers=has_trailers)


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

    def __init__(self, operations: ResponseOperations) -> None:
        self._operations = operations

    async def one(self, request: Request) -> JSONReply:
        if request.method == "DELETE":
            caller = caller_of(request.scope)
            return JSONReply(await self._operations.delete(caller, _response_id(request)))
        return await self._retrieve(request)

    async def _retrieve(self, request: Request) -> JSONReply:
        if request.query_params.get("stream") in ("true", "1"):
            msg = "This response cannot be streamed: it was not created with 'background' and 'stream'."
            raise RequestError(msg, param="stream", code="invalid_value")
        caller = caller_of(request.scope)
        return JSONReply(await self._operations.retrieve(caller, _response_id(request)))

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


def _facts(turn: TurnRun, outcome: str, started_at: float, *, is_stream: bool) -> TurnFacts:
    first, usage = turn.first_event_at, turn.response.usage
    return TurnFacts(
        outcome=outcome,
        duration_ms=(monotonic() - started_at) * 1000,
        first_event_ms=None if first is None else (first - started_at) * 1000,
        input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        stream=is_stream,
    )
