"""`FunctionUrl`: a function URL on 127.0.0.1, with execution environments behind it."""

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from secrets import token_bytes, token_hex
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

from handler.emulator.client import Client, read_body
from handler.emulator.invocation import Invocation, Record
from handler.emulator.options import Faults, Function
from handler.emulator.sandbox import Sandbox
from handler.emulator.url_events import HTTPRequest, url_event
from handler.local import HOST, listening
from handler.runtime_api import Failure


MAX_EVENT_BYTES: Final = 6 * 1024 * 1024
_KEPT: Final = 10_000  # records, and lines
_JSON: Final = b"application/json"
_TOO_LARGE: Final = (
    b'{"Message":"Request must be smaller than 6291456 bytes for the InvokeFunction operation"}'
)
_THROTTLED: Final = (
    b'{"Reason":"ConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}'
)
_encode = msgspec.json.Encoder().encode


class FunctionUrl:
    """Serves a function's URL from `async with` to its end.

    `root` is where; `faults` may be changed between requests; `invocations` and `logs` tell what
    happened, the oldest first. `echo` gets each line of the logs as it comes.
    """

    def __init__(
        self,
        function: Function,
        *,
        faults: Faults | None = None,
        port: int = 0,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        """Take what to serve; nothing is started yet."""
        self.function = function
        self.faults = faults or Faults()
        self.root = ""
        self.invocations: deque[Record] = deque(maxlen=_KEPT)
        self.logs: deque[str] = deque(maxlen=_KEPT)
        self._port = port
        self._echo = echo
        self._sandboxes: list[Sandbox] = []
        self._listening = ExitStack()
        self._server = _Server(
            uvicorn.Config(
                self._serve,
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

    async def __aenter__(self) -> Self:
        """Listen; environments are started as requests need them."""
        listener = self._listening.enter_context(listening(self._port))
        self.root = f"http://{HOST}:{listener.getsockname()[1]}"
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the environments, and the server."""
        self._server.should_exit = True
        await asyncio.gather(*(sandbox.stop() for sandbox in self._sandboxes))
        if self._serving is not None:
            await self._serving
        self._listening.close()

    @property
    def pids(self) -> list[int]:
        """The processes of the environments that take invocations."""
        usable = [sandbox for sandbox in self._sandboxes if sandbox.is_usable]
        return [sandbox.pid for sandbox in usable if sandbox.pid is not None]

    async def warm_up(self) -> Failure | None:
        """Start an environment before a request needs it; return why that failed, if it did."""
        sandbox = self._add()
        await sandbox.warm_up()
        return sandbox.failure

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, MAX_EVENT_BYTES)
        if body is None:
            return
        request, begun = _request(scope, body), time.monotonic()
        record = Record(request_id=str(UUID(bytes=token_bytes(16), version=4)))
        try:
            await self._answer(request, record, receive, send)
        except Exception:
            self._log(traceback.format_exc())
            raise
        self._log(_report(request, record, time.monotonic() - begun))

    async def _answer(
        self, request: HTTPRequest, record: Record, receive: Receive, send: Send
    ) -> None:
        client = Client(send, record)
        trace_id = f"Root=1-{int(request.at):08x}-{token_hex(12)}"
        event = _encode(url_event(request, record.request_id, trace_id, self.function.region))
        if len(event) > MAX_EVENT_BYTES:
            return await client.say(413, _TOO_LARGE, _JSON)
        sandbox = self._with_room()
        if sandbox is None:
            return await client.say(429, _THROTTLED, _JSON)
        self.invocations.append(record)
        invocation = Invocation(record, event, trace_id, self.faults)
        sandbox.invoke(invocation)
        leaving = asyncio.create_task(_notice(receive, invocation))
        try:
            await client.answer(invocation, streams=self.function.streams)
        finally:
            leaving.cancel()
            invocation.close()
        return None

    def _with_room(self) -> Sandbox | None:
        self._sandboxes = [one for one in self._sandboxes if not one.has_ended]
        usable = [one for one in self._sandboxes if one.is_usable]
        with_room = next((one for one in usable if one.has_room), None)
        if with_room or len(usable) >= self.function.environments or self._server.should_exit:
            return with_room
        return self._add()

    def _add(self) -> Sandbox:
        sandbox = Sandbox(self.function, self._log)
        self._sandboxes.append(sandbox)
        return sandbox

    def _log(self, line: str) -> None:
        self.logs.append(line)
        if self._echo is not None:
            self._echo(line)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs the event loop."""
        yield


def _request(scope: Scope, body: bytes) -> HTTPRequest:
    headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
    ]
    return HTTPRequest(
        method=scope["method"],
        path=scope["raw_path"].decode("latin-1"),
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        body=body,
        client_ip=scope["client"][0],
        at=time.time(),
    )


def _report(request: HTTPRequest, record: Record, took_s: float) -> str:
    said = [record.request_id, request.method, request.path, str(record.status)]
    if record.mode:
        said += [record.mode, f"{record.size} bytes"]
    said += [f"{took_s * 1000:.1f} ms"]
    failures = [one for one in (record.error, record.trailers) if one is not None]
    return " ".join(["REPORT", *said, *(f"{one.type}: {one.message}" for one in failures)])


async def _notice(receive: Receive, invocation: Invocation) -> None:
    """Break the reply off when the client goes away, where that is to be noticed."""
    if invocation.faults.notices_disconnects:
        await receive()  # there is nothing else to come
        invocation.fail(Failure("Emulator.ClientGone", "The client went away."))
