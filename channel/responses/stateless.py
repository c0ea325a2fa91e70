"""`StatelessTurns`: for a channel of another protocol, turns as the Responses channel runs them, of which nothing is kept."""

import time
from collections.abc import Collection, Sequence

from msgspec.structs import replace
from starlette.types import Receive, Scope

from channel.auth import caller_of
from channel.commands import by_name
from channel.contract import (
    ChannelCommand,
    ChannelContext,
    ChannelResponseHook,
    ChannelRunHook,
    ChannelStreamTransformHook,
    SessionMode,
    checked_session_mode,
)
from channel.deadline import DEADLINE
from channel.http import request_id
from channel.memory import InMemoryResponseStore
from channel.ports import Clock, Telemetry
from channel.responses.observing import Observer
from channel.responses.operations import ChannelOptions, ResponseOperations, option_names
from channel.responses.protocol.items import Item
from channel.responses.protocol.requests import CreateResponse
from channel.responses.run import TurnHooks, TurnRun
from channel.responses.serving import Serving
from channel.responses.windows.context import CREATE
from channel.sealing import process_sealer


class StatelessTurns:
    """Begins turns and runs them: hooks, grace, deadline, a client that goes, telemetry.

    `name` is the channel's. `allowed_options` are request fields that reach the agent besides those
    it declared itself; raises `ValueError` for an unknown one. `commands` answer in place of the
    agent; the channel contributes the same ones. `session_mode` says whether a request carries the
    hint of a session; no head of one is read or moved.
    """

    def __init__(
        self,
        context: ChannelContext,
        *,
        name: str,
        model: str = "agent",
        allowed_options: Collection[str] = (),
        first_event_grace_s: float = 2.0,
        run_hook: ChannelRunHook | None = None,
        response_hook: ChannelResponseHook | None = None,
        stream_transform_hook: ChannelStreamTransformHook | None = None,
        telemetry: Telemetry | None = None,
        clock: Clock = time.time,
        commands: Sequence[ChannelCommand] = (),
        session_mode: SessionMode = "auto",
    ) -> None:
        """Run the context's target."""
        options = ChannelOptions(
            name=name,
            model=model,
            allowed_options=option_names(allowed_options),
            shows_tools=False,
            first_event_grace_s=first_event_grace_s,
            run_hook=run_hook,
            hooks=TurnHooks(stream_transform_hook, response_hook),
            has_background=False,
            sealer=process_sealer(),
            response_id_factory=None,
            commands=by_name(commands),
            session_mode=checked_session_mode(session_mode),
        )
        store = InMemoryResponseStore(clock=clock)  # it gives ids, and keeps nothing
        self._operations = ResponseOperations(context, store, options, clock)
        self._serving = Serving(telemetry)

    async def drain(self) -> None:
        """Wait for the turns that a stopping server has cancelled."""
        await self._serving.drain()

    async def begin(
        self, scope: Scope, request: CreateResponse, items: Sequence[Item], *, body: bytes = b"{}"
    ) -> TurnRun:
        """Return the turn of an HTTP request, asked for as `POST /responses` would ask.

        `items` are in normal form (`channel.responses.protocol.items`); `body` is the JSON that a
        run hook gets as `protocol_request`. Raises `RequestError`, whose `param` is a name of the
        Responses API.
        """
        prepared = await self._operations.look(
            caller_of(scope), body, replace(request, store=False), items, operation=CREATE
        )
        deadline = scope.get(DEADLINE)
        return self._operations.turn(prepared, request_id=request_id.get(), deadline=deadline)

    async def serve(
        self,
        turn: TurnRun,
        observer: Observer,
        receive: Receive,
        *,
        started_at: float,
        is_stream: bool = False,
    ) -> None:
        """Run the turn to its end; its request came in then (`time.monotonic`).

        Raises `FailedBeforeReplyError`: nothing was said yet, and the reply to it is the caller's
        (`channel.responses.replies.failed`).
        """
        await self._serving.run(turn, observer, receive, started_at=started_at, is_stream=is_stream)
