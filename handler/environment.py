"""One execution environment: an app's event loop and lifespan, which both mounts share."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.types import ASGIApp

from channel.faults import log_fault
from handler.lifespan import NAME, Lifespan


_LOG: Final = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class Environment:
    """An app that was started on an event loop of its own.

    There is no shutdown on Lambda, where an environment is frozen and dropped, but after a SIGTERM;
    `close` is for everybody else.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Start the app; raises what its start-up raised."""
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(_log_unhandled)
        self._lifespan = Lifespan(app)
        self.app = self._lifespan.app
        try:
            self.run(self._lifespan.startup())
        except BaseException:
            self.loop.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine on the loop, to its end, also where something else ends the loop."""
        asyncio.set_event_loop(self.loop)  # Mangum asks for the current one
        task = self.loop.create_task(coroutine)
        try:
            return self.loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                # A task has raised SystemExit, say: what was begun here must not go on by itself.
                task.cancel()
                self.loop.run_until_complete(asyncio.wait({task}))
            raise

    def close(self) -> None:
        """Run the shutdown of the app, and close the loop."""
        try:
            self.run(self._lifespan.shutdown())
        finally:
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()


def _log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no one awaits: its type and place, where asyncio would log its text."""
    task = context.get("task")
    if isinstance(task, asyncio.Task) and task.get_name() == NAME:
        return  # a process that just ends, as most do, shuts no app down
    error = context.get("exception")
    if isinstance(error, BaseException):
        log_fault(_LOG, "a task failed that nobody waits for", error)
    else:
        _LOG.error("asyncio: %s", context.get("message"))
