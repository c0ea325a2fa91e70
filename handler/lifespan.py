"""The ASGI lifespan of one app: run once and held open in a task of its own."""

import asyncio
import logging
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send


NAME: Final = "lifespan"
"""Of the task that holds an app's lifespan open."""

_LOG: Final = logging.getLogger(__name__)


class Lifespan:
    """Starts an app and stops it again, on the running event loop.

    An app without a lifespan is one that ends, or raises, before it has asked what to do. What the
    start-up put into the state is given to every request of `app`, as ASGI servers do.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Take the app; nothing runs yet."""
        self._app = app
        self._state: dict[str, Any] = {}
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Run the start-up; raises what it raised."""
        self._running = asyncio.create_task(self._run(), name=NAME)
        await self._ask(self._running, "lifespan.startup")

    async def shutdown(self) -> None:
        """Run the shutdown; raises what it raised."""
        if self._running is not None and not self._running.done():
            await self._ask(self._running, "lifespan.shutdown")
            await self._running

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app, with the state of the start-up."""
        await self._app({**scope, "state": self._state.copy()}, receive, send)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self._state}
        await self._app(scope, self._to_app.get, self._from_app.put)

    async def _ask(self, running: asyncio.Task[None], what: str) -> None:
        await self._to_app.put({"type": what})
        answer = asyncio.create_task(self._from_app.get())
        await asyncio.wait({answer, running}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done() and answer.result()["type"] == f"{what}.complete":
            return
        answer.cancel()
        if not self._to_app.empty():
            _LOG.info("the app has no lifespan", extra={"error": repr(type(running.exception()))})
            return
        await running  # raises the cause
        msg = f"The app ended without {what}.complete."
        raise RuntimeError(msg)
