"""One execution environment: an app's event loop and lifespan, which both mounts share."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import ASGIApp

from handler.lifespan import Lifespan


_Result = TypeVar("_Result")


class Environment:
    """An app that was started on an event loop of its own.

    There is no shutdown on Lambda, where an environment is frozen and dropped, but after a SIGTERM;
    `close` is for everybody else.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Start the app; raises what its start-up raised."""
        self.loop = asyncio.new_event_loop()
        self._lifespan = Lifespan(app)
        self.app = self._lifespan.app
        try:
            self.run(self._lifespan.startup())
        except BaseException:
            self.loop.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine on the loop, to its end."""
        asyncio.set_event_loop(self.loop)  # Mangum asks for the current one
        return self.loop.run_until_complete(coroutine)

    def close(self) -> None:
        """Run the shutdown of the app, and close the loop."""
        try:
            self.run(self._lifespan.shutdown())
        finally:
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()
