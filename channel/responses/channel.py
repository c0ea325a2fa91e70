"""`ResponsesChannel`: the routes, each from its HTTP request to an operation and back."""

import time
from collections.abc import Collection, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp

from channel.auth import caller_of
from channel.commands import Commands, by_name
from channel.contract import (
    ChannelCommand,
    ChannelContext,
    ChannelContribution,
    ChannelResponseHook,
    ChannelRunHook,
    ChannelStreamTransformHook,
    PlainRoute,
    SessionMode,
    Sockets,
    checked_session_mode,
)
from channel.conversations import ConversationStore
from channel.http import JSONReply
from channel.jobs import JobHandler, TaskJobs
from channel.memory import InMemoryResponseStore
from channel.memory_conversations import InMemoryConversationStore
from channel.memory_idempotency import InMemoryIdempotencyStore
from channel.memory_runs import InMemoryRunStore
from channel.ports import Clock, Jobs, ResponseStore, RunStore, Sealer, Telemetry
from channel.responses.background.following import Follower, Position
from channel.responses.background.turns import BACKGROUND, ENDED, BackgroundTurns
from channel.responses.conversations.routes import Conversations
from channel.responses.creating import Create, Resumed, Streams
from channel.responses.idempotency import Idempotency, IdempotencyStore
from channel.responses.models import Models
from channel.responses.operations import (
    ChannelOptions,
    ResponseIdFactory,
    ResponseOperations,
    option_names,
)
from channel.responses.paging import asked_page
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.shapes import checked
from channel.responses.run import TurnHooks
from channel.responses.serving import Serving
from channel.responses.sockets.endpoint import Limits, MakeSockets, WebSocketEndpoint
from channel.responses.webhooks import Webhooks
from channel.responses.windows.routes import window_routes
from channel.sealing import process_sealer


class ResponsesChannel:
    """OpenAI's Responses API below `path`; with `/v1`, the app's URL and `/v1` is a `base_url`.

    `store` keeps the history (default: this process's memory). `allowed_options` are request
    fields that reach the agent besides those it declared itself (`channel.agent.accepts`).
    `shows_tools` makes the agent's own tools visible as `mcp_call` items. `keepalive_s` (0: never)
    and `first_event_grace_s` are seconds.

    `runs` keeps who runs the background responses, and their events for `event_retention_s` after
    the longest that a turn can take; `jobs` starts their workers (default: tasks of this process,
    which on Lambda would not run). With `has_cancellable_streams` a stream can be cancelled by its
    id as well. `idempotency` keeps the keys of the header `Idempotency-Key`. `websocket_limits` is
    what a WebSocket connection may do; `gateway` is where those are kept that this process does not
    hold itself.
    `conversations` keeps conversations, whose turns are in `store` (default: this process's memory
    where that is in it, too, and none elsewhere). `sealer` makes compactions one tenant's own
    (default: by a secret of this process, which no other process reads). `commands` are what users
    may type in place of a message to the agent (`channel.commands`). `session_mode`: with `auto`, a
    request uses a session where it names one (and its chat goes on, where the host has `sessions`);
    with `required` it must (409 `session_required`); with `disabled` it has none.

    Raises `ValueError` for an unknown option name or session mode, for two commands of one name, and
    for a `response_id_factory` beside a store that keeps minted ids only.
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
        idempotency: IdempotencyStore | None = None,
        webhooks: Webhooks | None = None,
        jobs: Jobs | None = None,
        has_background: bool = True,
        has_cancellable_streams: bool = False,
        event_retention_s: float = 3600.0,
        conversations: ConversationStore | None = None,
        sealer: Sealer | None = None,
        websocket_limits: Limits | None = None,
        gateway: MakeSockets | None = None,
        commands: Sequence[ChannelCommand] = (),
        session_mode: SessionMode = "auto",
    ) -> None:
        """Take the owner's decisions."""
        self.path = path
        self._store = store or InMemoryResponseStore(clock=clock)
        if conversations is None and isinstance(self._store, InMemoryResponseStore):
            conversations = InMemoryConversationStore(self._store, clock=clock)
        self._conversations = conversations
        if response_id_factory and not getattr(self._store, "takes_custom_ids", True):
            msg = "response_id_factory needs a store that keeps ids of your making (aliases=True)"
            raise ValueError(msg)
        self._keepalive_s = keepalive_s
        self._telemetry = telemetry
        self._clock = clock
        self._created = int(clock())
        self._webhooks = webhooks
        self._idempotency = idempotency or InMemoryIdempotencyStore(clock=clock)
        self._runs = runs or InMemoryRunStore(clock=clock)
        self._jobs = jobs
        self._has_cancellable_streams = has_cancellable_streams
        self._event_retention_s = event_retention_s
        self._websocket_limits = websocket_limits or Limits()
        self._gateway = gateway
        self._options = ChannelOptions(
            name=self.name,
            model=model,
            allowed_options=option_names(allowed_options),
            shows_tools=shows_tools,
            first_event_grace_s=first_event_grace_s,
            run_hook=run_hook,
            hooks=TurnHooks(stream_transform_hook, response_hook),
            has_background=has_background,
            sealer=sealer or process_sealer(),
            response_id_factory=response_id_factory,
            commands=by_name(commands),
            session_mode=checked_session_mode(session_mode),
        )

    def contribute(self, context: ChannelContext, /) -> ChannelContribution:
        """Return the routes."""
        sessions = context.sessions if self._options.session_mode != "disabled" else None
        operations = ResponseOperations(
            context,
            self._store,
            self._options,
            self._clock,
            self._conversations,
            sessions=sessions,
        )
        conversations = self._conversations and Conversations(self._conversations, operations)
        tasks = TaskJobs()
        background = BackgroundTurns(
            operations,
            self._store,
            self._runs,
            self._jobs or tasks,
            self._clock,
            event_retention_s=self._event_retention_s,
            webhooks=self._webhooks,
            telemetry=self._telemetry,
        )
        streams = Streams(Follower(background, self._runs, self._clock), self._keepalive_s)
        serving = Serving(self._telemetry)
        create = Create(
            operations,
            background,
            streams,
            Idempotency(self._idempotency, clock=self._clock),
            serving,
            has_cancellable_streams=self._has_cancellable_streams,
        )
        stored = _Stored(operations, background, streams)
        models = Models(self._options.model, self._created, operations.windows.limit)
        websocket = WebSocketEndpoint(operations, self._websocket_limits, self._telemetry)
        jobs: dict[str, JobHandler] = {BACKGROUND: background.run, ENDED: background.tell}
        sockets = self._sockets(operations, self._jobs or tasks)
        if sockets is not None:
            jobs |= sockets.jobs
        tasks.handlers |= jobs
        one = "/responses/{response_id}"
        return ChannelContribution(
            routes=[
                PlainRoute("/responses", create, methods=["POST"]),
                PlainRoute("/responses", _no_websocket, methods=["GET"]),
                WebSocketRoute("/responses", websocket),
                *window_routes(operations, self._telemetry),
                PlainRoute(one, stored.one, methods=["GET", "DELETE"]),
                PlainRoute(f"{one}/cancel", stored.cancel, methods=["POST"]),
                PlainRoute(f"{one}/input_items", stored.input_items, methods=["GET"]),
                *(conversations.routes if conversations else ()),
                *_command_routes(operations.commands),
                PlainRoute("/models", models.list_all, methods=["GET"]),
                PlainRoute("/models/{model:path}", models.retrieve, methods=["GET"]),
            ],
            on_shutdown=[serving.drain, websocket.drain, tasks.drain],
            jobs=jobs,
            sockets=sockets,
            commands=[*self._options.commands.values()],
        )

    def _sockets(self, operations: ResponseOperations, jobs: Jobs) -> Sockets | None:
        if self._gateway is None:
            return None
        limits, telemetry = self._websocket_limits, self._telemetry
        return self._gateway(operations, jobs, self._clock, limits, telemetry)


def _command_routes(commands: Commands | None) -> list[PlainRoute]:
    return [PlainRoute("/commands", commands.listed, ["GET"])] if commands else []


async def _no_websocket(request: Request) -> JSONReply:
    """Tell who asks for WebSocket mode through a door that has none, as a function URL."""
    if request.headers.get("upgrade", "").lower() != "websocket":
        raise HTTPException(405, headers={"allow": "POST"})
    msg = "WebSocket mode is not at this URL: use the WebSocket API beside it, where there is one."
    raise RequestError(
        msg, status=426, code="websocket_not_supported", headers={"upgrade": "websocket"}
    )


class _Stored:
    """The routes of stored responses."""

    def __init__(
        self, operations: ResponseOperations, background: BackgroundTurns, streams: Streams
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
            return Resumed(self._streams, Position(caller.keys, response_id, after, is_over))
        return JSONReply(await self._background.retrieve(caller, response_id))

    async def cancel(self, request: Request) -> JSONReply:
        caller = caller_of(request.scope)
        return JSONReply(await self._background.cancel(caller, _response_id(request)))

    async def input_items(self, request: Request) -> JSONReply:
        page = asked_page(request.query_params)
        caller = caller_of(request.scope)
        return JSONReply(await self._operations.input_items(caller, _response_id(request), page))


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
