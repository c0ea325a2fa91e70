"""`ChatCompletionsChannel`: `POST /chat/completions`, from its HTTP request to a turn and back."""

import time
from collections.abc import Collection, Sequence
from functools import partial
from time import monotonic

from starlette.types import Receive, Scope, Send

from channel.chat.replies import ChunkWriter, named, whole
from channel.chat.requests import ChatRequest, parse
from channel.commands import by_name
from channel.contract import (
    ChannelCommand,
    ChannelContext,
    ChannelContribution,
    ChannelResponseHook,
    ChannelRunHook,
    ChannelStreamTransformHook,
    PlainRoute,
    SessionMode,
    checked_session_mode,
)
from channel.http import read_body
from channel.ports import Clock, Telemetry
from channel.responses.observing import Observer
from channel.responses.operations import option_names
from channel.responses.protocol.errors import RequestError
from channel.responses.replies import WholeReply, failed
from channel.responses.run import FailedBeforeReplyError, TurnRun
from channel.responses.stateless import StatelessTurns


class ChatCompletionsChannel:
    """OpenAI's Chat Completions below `path`, for clients that speak nothing else; nothing is stored.

    `allowed_options` are request fields, by their names in the Responses API, that reach the agent
    besides those it declared itself (`channel.agent.accepts`). `keepalive_s` (0: never) and
    `first_event_grace_s` are seconds. `commands` are what users may type (`channel.commands`).
    `session_mode` says whether a request carries the chat that it names as a session: with `auto` it
    does, with `required` it must (409). Either way nothing goes on where that chat was.

    Raises `ValueError` for an unknown option name or session mode, and for two commands of one name.
    """

    name = "chat_completions"

    def __init__(
        self,
        *,
        path: str = "/v1",
        model: str = "agent",
        allowed_options: Collection[str] = (),
        keepalive_s: float = 15.0,
        first_event_grace_s: float = 2.0,
        run_hook: ChannelRunHook | None = None,
        response_hook: ChannelResponseHook | None = None,
        stream_transform_hook: ChannelStreamTransformHook | None = None,
        telemetry: Telemetry | None = None,
        clock: Clock = time.time,
        commands: Sequence[ChannelCommand] = (),
        session_mode: SessionMode = "auto",
    ) -> None:
        """Take the owner's decisions."""
        self.path = path
        self._commands = tuple(by_name(commands).values())
        self._keepalive_s = keepalive_s
        self._turns = partial(
            StatelessTurns,
            name=self.name,
            model=model,
            allowed_options=option_names(allowed_options),
            first_event_grace_s=first_event_grace_s,
            run_hook=run_hook,
            response_hook=response_hook,
            stream_transform_hook=stream_transform_hook,
            telemetry=telemetry,
            clock=clock,
            commands=self._commands,
            session_mode=checked_session_mode(session_mode),
        )

    def contribute(self, context: ChannelContext, /) -> ChannelContribution:
        """Return the route."""
        turns = self._turns(context)
        route = PlainRoute("/chat/completions", _Completions(turns, self._keepalive_s), ["POST"])
        return ChannelContribution(
            routes=[route], on_shutdown=[turns.drain], commands=self._commands
        )


class _Completions:
    """The route, as an ASGI app: the reply is JSON or SSE, by the body's `stream` alone."""

    def __init__(self, turns: StatelessTurns, keepalive_s: float) -> None:
        self._turns = turns
        self._keepalive_s = keepalive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = monotonic()
        body = await read_body(scope, receive)
        asked = parse(body)
        try:
            turn = await self._turns.begin(scope, asked.create, asked.items, body=body)
            await self._turns.serve(
                turn,
                self._observer(asked, turn, scope, send),
                receive,
                started_at=started_at,
                is_stream=bool(asked.create.stream),
            )
        except RequestError as error:
            raise named(error) from None
        except FailedBeforeReplyError as error:
            await failed(named(error.cause)).send_to(send)

    def _observer(self, asked: ChatRequest, turn: TurnRun, scope: Scope, send: Send) -> Observer:
        if not asked.create.stream:
            return WholeReply(partial(whole, turn), send)
        return ChunkWriter(
            send,
            turn,
            includes_usage=asked.includes_usage,
            keepalive_s=self._keepalive_s,
            has_trailers="http.response.trailers" in scope.get("extensions", ()),
        )
