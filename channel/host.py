"""`AgentHost`: one target, its channels and who may call them, as one Starlette app."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp

from channel.agent import Agent, AgentEvent
from channel.auth import READINESS_PATH, Authentication, Authenticator, DenyAll
from channel.commands import by_name
from channel.contract import (
    Channel,
    ChannelCommand,
    ChannelContribution,
    ChannelRequest,
    HostedRunResult,
    PlainRoute,
    Sockets,
)
from channel.delivering import Deliveries
from channel.delivery import DeliveryOptions
from channel.faults import log_fault
from channel.http import ErrorReplies, RequestIds
from channel.identities import identity_routes
from channel.isolation import IsolationKeys
from channel.jobs import JobHandler
from channel.loading import as_agent
from channel.sessions import SessionStore, session_required
from channel.turns import turn_of


_LOG: Final = logging.getLogger(__name__)

_Callback = Callable[[], Awaitable[None]]


class AgentHost:
    """Hosts an agent behind channels; `app` is what a server or a Lambda handler serves.

    Without an `authenticator` nobody gets in but the health check. `cors_origins` are the web
    origins whose pages may call the app from a browser. With `delivery`, replies can go elsewhere
    than they came from. With `sessions`, a request of a delegate that names a chat, and nothing to
    continue, goes on where that chat was (a client of OpenAI's may expect it to start afresh).
    """

    def __init__(
        self,
        target: Any,
        *,
        channels: Sequence[Channel],
        authenticator: Authenticator | None = None,
        cors_origins: Sequence[str] = (),
        delivery: DeliveryOptions | None = None,
        sessions: SessionStore | None = None,
    ) -> None:
        """Take the target (a function over a turn, or a framework's agent) and its channels.

        Raises `TypeError` for a target that is no agent.
        """
        self.target: Agent = as_agent(target)
        self.channels = tuple(channels)
        self.authenticator: Authenticator = authenticator or DenyAll()
        self._cors_origins = tuple(cors_origins)
        self.sessions = sessions
        self.deliveries = None if delivery is None else Deliveries(self.channels, delivery)

    @cached_property
    def app(self) -> Starlette:
        """The app, built once."""
        contributions = [*zip(self.channels, self._contributions, strict=True)]
        return _App(
            routes=[*_routes(contributions), *self._identities()],
            middleware=self._middleware(),
            lifespan=_lifespan(self._contributions, self._closing()),
        )

    @cached_property
    def jobs(self) -> Mapping[str, JobHandler]:
        """What runs the jobs that the channels start, by kind."""
        own = self.deliveries.pushing.jobs if self.deliveries is not None else {}
        channels = {kind: run for each in self._contributions for kind, run in each.jobs.items()}
        return {**own, **channels}

    @property
    def sockets(self) -> Sockets | None:
        """What takes the WebSocket connections of a gateway: the first channel's that has it."""
        found = (each.sockets for each in self._contributions)
        return next((sockets for sockets in found if sockets is not None), None)

    @property
    def commands(self) -> Mapping[str, ChannelCommand]:
        """What users may type, by name, over all channels; each recognises its own."""
        return by_name(command for each in self._contributions for command in each.commands)

    @cached_property
    def _contributions(self) -> list[ChannelContribution]:
        made = [channel.contribute(self) for channel in self.channels]
        by_name(command for each in made for command in each.commands)  # one name, one command
        return made

    def serve(self, host: str = "127.0.0.1", port: int = 8000, **config: Any) -> None:
        """Serve the app until interrupted; `config` goes to uvicorn (the `local` extra)."""
        try:
            import uvicorn  # noqa: PLC0415 - optional
        except ImportError:
            msg = "serve() needs uvicorn: pip install 'lambda-responses[local]'"
            raise RuntimeError(msg) from None
        uvicorn.run(self.app, host=host, port=port, **config)

    def run_stream(self, request: ChannelRequest, /) -> AsyncIterator[AgentEvent]:
        """Run the target (`ChannelContext.run_stream`)."""
        if request.lacks_session:
            raise session_required()
        return self.target(turn_of(request))

    async def run(self, request: ChannelRequest, /) -> HostedRunResult[Sequence[AgentEvent]]:
        """Run the target to its end (`ChannelContext.run`)."""
        said = [event async for event in self.run_stream(request)]
        return HostedRunResult(said, request.session)

    async def reset_session(self, keys: IsolationKeys, session_key: str, /) -> bool:
        """Let the next turn of a session start afresh (`ChannelContext.reset_session`)."""
        return self.sessions is not None and await self.sessions.forget(keys, session_key)

    def _identities(self) -> list[BaseRoute]:
        if self.deliveries is None or self.deliveries.path is None:
            return []
        return _below(self.deliveries.path, identity_routes(self.deliveries))

    def _closing(self) -> list[_Callback]:
        """Return what is to be let go of after the channels."""
        closing: list[_Callback] = []
        if self.deliveries is not None:
            closing.append(self.deliveries.pushing.drain)
        if (close := getattr(self.target, "aclose", None)) is not None:
            closing.append(close)
        return closing

    def _middleware(self) -> list[Middleware]:
        stack = [Middleware(RequestIds)]
        if self._cors_origins:
            stack.append(_cors(self._cors_origins))
        return [
            *stack,
            Middleware(ErrorReplies),
            Middleware(Authentication, authenticator=self.authenticator),
        ]


class _App(Starlette):
    def build_middleware_stack(self) -> ASGIApp:
        # Without Starlette's own two layers for errors: `ErrorReplies` answers for all of them.
        # A slash too many is an unknown URL, not a redirect to where the `Host` header says.
        self.router.redirect_slashes = False
        app: ASGIApp = self.router
        for middleware, args, kwargs in reversed(self.user_middleware):
            app = middleware(app, *args, **kwargs)
        return app


def _routes(contributions: Iterable[tuple[Channel, ChannelContribution]]) -> list[BaseRoute]:
    # Readiness comes first, so that no channel shadows it.
    routes: list[BaseRoute] = [Route(READINESS_PATH, _readiness, methods=["GET"])]
    for channel, contribution in contributions:
        routes += _below(channel.path, contribution.routes)
    return routes


def _below(path: str, given: Sequence[BaseRoute | PlainRoute]) -> list[BaseRoute]:
    routes = [_compiled(path, route) if isinstance(route, PlainRoute) else route for route in given]
    if not path:
        return routes
    # One match instead of a mount's two; the routes are the same. The mount takes what is left.
    plain: list[BaseRoute] = []
    others: list[BaseRoute] = []
    for route, as_given in zip(routes, given, strict=True):
        if isinstance(as_given, PlainRoute):
            plain.append(route)
        elif type(route) is Route:
            methods = sorted(route.methods or ())
            plain.append(Route(path + route.path, route.endpoint, methods=methods))
        elif type(route) is WebSocketRoute:
            plain.append(WebSocketRoute(path + route.path, route.endpoint))
        else:
            others.append(route)
    return [*plain, Mount(path, routes=others)] if others else [*plain]


def _compiled(path: str, route: PlainRoute) -> Route:
    return Route(path + route.path, route.endpoint, methods=[*route.methods])


async def _readiness(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


def _cors(origins: Sequence[str]) -> Middleware:
    from starlette.middleware.cors import CORSMiddleware  # noqa: PLC0415 - only where it is on

    return Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        # Browsers do not count `authorization` under a wildcard; Starlette echoes what was asked.
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "x-should-retry", "idempotent-replayed"],
        max_age=600,
    )


def _lifespan(
    contributions: Sequence[ChannelContribution], closing: Sequence[_Callback]
) -> Callable[[Starlette], Any]:
    startup = [callback for each in contributions for callback in each.on_startup]
    shutdown = [callback for each in contributions for callback in each.on_shutdown]
    shutdown += closing

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await _run_all(startup, "startup")
        yield
        await _run_all(shutdown, "shutdown")

    return lifespan


async def _run_all(callbacks: Iterable[_Callback], phase: str) -> None:
    """Run every callback even if one raises; log each failure by name, then raise the first."""
    failures: list[Exception] = []
    for callback in callbacks:
        try:
            await callback()
        except Exception as error:  # noqa: BLE001 - raised again below
            name = getattr(callback, "__qualname__", repr(callback))
            log_fault(_LOG, f"{phase} callback {name} failed", error)
            failures.append(error)
    if failures:
        raise failures[0]
