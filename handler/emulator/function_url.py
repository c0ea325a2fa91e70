"""`FunctionUrl`: a function URL on 127.0.0.1, with execution environments behind it."""

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import msgspec
from starlette.types import Receive, Scope, Send

from handler.emulator.client import Client, read_body
from handler.emulator.environments import KEPT, Environments
from handler.emulator.event_queue import EventQueue, FailedJob
from handler.emulator.invocation import (
    Invocation,
    Record,
    new_request_id,
    new_trace_id,
    report,
)
from handler.emulator.invoke_api import InvokeApi
from handler.emulator.options import Faults, Function
from handler.emulator.server import LocalServer
from handler.emulator.url_events import HTTPRequest, url_event
from handler.runtime_api import Failure


MAX_EVENT_BYTES: Final = 6 * 1024 * 1024
_JSON: Final = b"application/json"
_TOO_LARGE: Final = (
    b'{"Message":"Request must be smaller than 6291456 bytes for the InvokeFunction operation"}'
)
_THROTTLED: Final = (
    b'{"Reason":"ConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}'
)
_encode = msgspec.json.Encoder().encode


class FunctionUrl:
    """Serves a function's URL from `async with` to its end, and Lambda's API for the function itself.

    `root` is where the URL is, and `lambda_endpoint` where the API is (the function's setting
    `LAMBDA_ENDPOINT`). `faults` may be changed between requests; `invocations`, `failed_jobs` and
    `logs` tell what happened, the oldest first. `echo` gets each line of the logs as it comes.
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
        self.logs: deque[str] = deque(maxlen=KEPT)
        self._echo = echo
        self._environments = Environments(function, faults or Faults(), self._log)
        self._queue = EventQueue(self._environments, function.retry_after_s, self._log)
        self._url = LocalServer(self._serve, port)
        # On a port of its own: every path of the URL is the function's.
        self._api = LocalServer(InvokeApi(function, self._environments, self._queue, self._log))

    async def __aenter__(self) -> Self:
        """Listen; environments are started as requests need them."""
        self._url.start()
        self._api.start()
        self._environments.lambda_endpoint = self.lambda_endpoint
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the environments, and the servers."""
        await self._queue.stop()
        await asyncio.gather(self._environments.stop(), self._url.stop(), self._api.stop())

    @property
    def root(self) -> str:
        """Where the function's URL is; empty before it is served."""
        return self._url.root

    @property
    def lambda_endpoint(self) -> str:
        """Where Lambda's API is; empty before it is served."""
        return self._api.root

    @property
    def faults(self) -> Faults:
        """What goes wrong with the invocations to come."""
        return self._environments.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._environments.faults = faults

    @property
    def invocations(self) -> deque[Record]:
        """What became of the invocations, those of jobs included."""
        return self._environments.invocations

    @property
    def failed_jobs(self) -> deque[FailedJob]:
        """The events of asynchronous invocations that were given up."""
        return self._queue.failed

    @property
    def pids(self) -> list[int]:
        """The processes of the environments that take invocations."""
        return self._environments.pids

    async def warm_up(self) -> Failure | None:
        """Start an environment before a request needs it; return why that failed, if it did."""
        return await self._environments.warm_up()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, MAX_EVENT_BYTES)
        if body is None:
            return
        request, begun = _request(scope, body), time.monotonic()
        record = Record(request_id=new_request_id())
        try:
            await self._answer(request, record, receive, send)
        except Exception:
            self._log(traceback.format_exc())
            raise
        told = [request.method, request.path, str(record.status)]
        self._log(report(record, told, time.monotonic() - begun))

    async def _answer(
        self, request: HTTPRequest, record: Record, receive: Receive, send: Send
    ) -> None:
        client = Client(send, record)
        trace_id = new_trace_id(request.at)
        event = _encode(url_event(request, record.request_id, trace_id, self.function.region))
        if len(event) > MAX_EVENT_BYTES:
            return await client.say(413, _TOO_LARGE, _JSON)
        invocation = self._environments.invoke(record, event, trace_id)
        if invocation is None:
            return await client.say(429, _THROTTLED, _JSON)
        leaving = asyncio.create_task(_notice(receive, invocation))
        try:
            await client.answer(invocation, streams=self.function.streams)
        finally:
            leaving.cancel()
            invocation.close()
        return None

    def _log(self, line: str) -> None:
        self.logs.append(line)
        if self._echo is not None:
            self._echo(line)


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


async def _notice(receive: Receive, invocation: Invocation) -> None:
    """Break the reply off when the client goes away, where that is to be noticed."""
    if invocation.faults.notices_disconnects:
        await receive()  # there is nothing else to come
        invocation.fail(Failure("Emulator.ClientGone", "The client went away."))
