"""A local function URL with a client, for one test, and what tests wait for."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from handler.emulator.function_url import FunctionUrl
from handler.emulator.options import Faults, Function


ROUTES = "tests.handler.emulator.apps.routes.app"
WORKER = "tests.handler.emulator.apps.worker.handler"


class Lines:
    """The lines of the logs, as they come."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._came = asyncio.Event()

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._came.set()

    def has(self, part: str) -> bool:
        return any(part in line for line in self._lines)

    async def until(self, part: str) -> None:
        """Wait for a line that holds this."""
        while not self.has(part):
            self._came.clear()
            await self._came.wait()


class Served:
    """A function URL, a client of it, and its logs."""

    def __init__(self, url: FunctionUrl, client: httpx.AsyncClient, lines: Lines) -> None:
        self.url = url
        self.client = client
        self.lines = lines

    async def get(self, path: str, **arguments: Any) -> httpx.Response:
        return await self.client.get(path, **arguments)

    async def invoke(
        self,
        event: Any,
        *,
        function: str = "lambda-responses",
        kind: str = "RequestResponse",
        path: str = "",
        authorization: str = "AWS4-HMAC-SHA256 Credential=local",
    ) -> httpx.Response:
        """Invoke the function by Lambda's API; the event is bytes, or what JSON is made of."""
        path = path or f"/2015-03-31/functions/{quote(function, safe='')}/invocations"
        headers = {"authorization": authorization, "x-amz-invocation-type": kind}
        body = event if isinstance(event, bytes) else msgspec.json.encode(event)
        url = f"{self.url.lambda_endpoint}{path}"
        return await self.client.post(url, content=body, headers=headers)


@asynccontextmanager
async def serving(
    handler: str = ROUTES, faults: Faults | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Serve a function; whatever happens, it takes no longer than this."""
    lines = Lines()
    async with (
        asyncio.timeout(20),
        FunctionUrl(Function(handler=handler, **options), faults=faults, echo=lines.add) as url,
        httpx.AsyncClient(base_url=url.root, timeout=None) as client,
    ):
        yield Served(url, client, lines)


class Gate:
    """Holds an app until it is opened; the app is told of it by a header."""

    def __init__(self, folder: Path) -> None:
        path = folder / "gate"
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDWR)
        self.header = {"gate": str(path)}

    def open(self) -> None:
        """Let the app go on, once."""
        os.write(self._pipe, b"!")

    def close(self) -> None:
        os.close(self._pipe)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until_stopped(pid: int) -> None:
    """Wait until a child process is stopped, as by SIGSTOP."""
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
