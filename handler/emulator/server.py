"""An HTTP server on 127.0.0.1, as a task of an event loop that is somebody else's."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import uvicorn
from starlette.types import ASGIApp

from handler.local import HOST, listening


class LocalServer:
    """Serves an ASGI app at `root`, from `start` to `stop`."""

    def __init__(self, app: ASGIApp, port: int = 0) -> None:
        """Take what to serve; port 0 is any free one. Nothing listens yet."""
        self.root = ""
        self._port = port
        self._listening = ExitStack()
        self._server = _Server(
            uvicorn.Config(
                app,
                interface="asgi3",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # it calls a stream that breaks off a mistake of the app's
                access_log=False,
                server_header=False,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=1,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen from now on; raises `SettingsError` where that cannot be."""
        listener = self._listening.enter_context(listening(self._port))
        self.root = f"http://{HOST}:{listener.getsockname()[1]}"
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        """Take no more requests, and cut those that do not end soon."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._listening.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs the event loop."""
        yield
