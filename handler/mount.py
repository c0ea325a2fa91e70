"""`LambdaHandler`: an app as what Lambda's own runtime calls, each reply whole, by Mangum.

The streaming loop (`handler.streaming`) serves the same object with replies that stream.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from mangum import Mangum
from msgspec.structs import replace
from starlette.types import ASGIApp

from channel.responses.protocol.errors import RequestError
from handler.app import host_from_environment
from handler.environment import Environment
from handler.events import DoorSettings, HTTPEvents, UnknownEventError, error_answer, within_limit
from handler.worker import JobWorker
from infra.settings import Settings


Worker: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
"""Takes an event that is no HTTP request, and Lambda's context; returns what JSON is made of."""


class LambdaHandler:
    """Serves function URLs, HTTP APIs, REST APIs and load balancers; a `worker` takes other events.

    Whether a door gets streamed replies, where the streaming loop serves this, is what the settings
    say (`FUNCTION_URL_MODE`, `REST_API_MODE`) unless `streams` says otherwise of an event.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        worker: Worker | None = None,
        streams: Callable[[dict[str, Any]], bool | None] | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Start the app, so that its failure is the failure of the init: raises what it raised."""
        self.environment = Environment(app)
        self.worker = worker
        self.doors = replace(_doors(settings or Settings.from_env()), streams=streams)
        self._events = HTTPEvents(self.doors, may_stream=False)
        asyncio.set_event_loop(self.environment.loop)  # or else Mangum makes one of its own
        handlers: Any = self._events.handlers
        self._mangum = Mangum(self.environment.app, lifespan="off", custom_handlers=handlers)

    def __call__(self, event: Any, context: Any) -> Any:
        """Answer one event; raises `UnknownEventError` for one that nobody takes."""
        request = self._events.read(event, context)
        if request is None:
            if self.worker is None:
                raise UnknownEventError(event)
            return self.environment.run(_awaited(self.worker(event, context)))
        # Mangum runs on the current loop of the calling thread.
        asyncio.set_event_loop(self.environment.loop)
        try:
            return within_limit(request, self._mangum(event, context))
        except RequestError as error:
            return error_answer(request, error.message, status=error.status, code=error.code)

    def close(self) -> None:
        """Run the shutdown of the app, and close its loop."""
        self.environment.close()


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


def handler_from_environment() -> LambdaHandler:
    """Return the handler of this process: its app, and a worker for its jobs; raises `SettingsError`."""
    host, settings = host_from_environment(), Settings.from_env()
    worker: Worker = JobWorker(host.jobs, settings.deadline_margin_s)
    if host.sockets is not None:
        from handler.websocket import WebSocketEvents  # noqa: PLC0415 - only where there are any

        worker = WebSocketEvents(host.sockets, host.authenticator, worker)
    return LambdaHandler(host.app, worker=worker, settings=settings)


def _doors(settings: Settings) -> DoorSettings:
    return DoorSettings(
        url_streams=settings.url_streams,
        rest_api_streams=settings.rest_api_streams,
        margin_s=settings.deadline_margin_s,
        load_balancer_s=settings.load_balancer_timeout_s,
    )
