"""The Runtime API of one execution environment, served on 127.0.0.1.

Paths, states and errors are those of AWS's page "Using the Lambda runtime API for custom runtimes",
and of the sandbox in AWS's Runtime Interface Emulator.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import h11
import msgspec

from handler.emulator.connection import Connection, fields
from handler.emulator.invocation import Invocation
from handler.emulator.options import Function
from handler.emulator.relay import ACCEPTED, BROKEN_OFF, TOO_LARGE, TRUNCATED, failure_in, relay
from handler.runtime_api import Failure


MAX_BUFFERED_BYTES: Final = 6 * 1024 * 1024 + 100
MAX_STREAMED_BYTES: Final = 200 * 1024 * 1024
_INVOCATION_ID: Final = "lambda-runtime-invocation-id"
_ERRORS: Final = {
    TRUNCATED: ("TruncatedHTTPRequest", "HTTP request detected as truncated"),
    TOO_LARGE: ("RequestEntityTooLarge", "Exceeded maximum allowed payload size."),
}


class RuntimeApiServer:
    """Hands invocations to the runtime that asks for them, and its replies to who waits for them.

    `on_idle` is called whenever the runtime has nothing to do.
    """

    def __init__(self, function: Function, on_idle: Callable[[], None]) -> None:
        """Take whose runtime is served; nothing listens yet."""
        self._function = function
        self._on_idle = on_idle
        self._offered: asyncio.Queue[Invocation] = asyncio.Queue()
        self._taken: list[Invocation] = []
        self._idle_pollers = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.is_ready = asyncio.Event()
        """Set when the runtime's init is done."""
        self.is_restored = asyncio.Event()
        """To be set when the environment is restored from its snapshot (SnapStart)."""
        self.is_gone = False
        self.failure: Failure | None = None
        """What the runtime reported of its init, or of its restore."""

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    async def close(self) -> None:
        """Take no more, and end all connections."""
        self._vanish()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def offer(self, invocation: Invocation) -> None:
        """Have an invocation answered."""
        self._offered.put_nowait(invocation)

    def fail_all(self, failure: Failure) -> None:
        """Fail the invocations that are here."""
        while not self._offered.empty():
            self._offered.get_nowait().fail(failure)
        for invocation in self._taken:
            invocation.fail(failure)

    def _vanish(self) -> None:
        self.is_gone = True
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        connection = Connection(reader, writer)
        try:
            while (request := await connection.request()) is not None:
                await self._serve(request, connection)
        except (OSError, h11.RemoteProtocolError):
            connection.reset()
        except asyncio.CancelledError:  # by `_vanish`; asyncio's server takes it for a mistake
            writer.transport.abort()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, request: h11.Request, connection: Connection) -> None:
        path = request.target.decode("latin-1").removeprefix("/2018-06-01/runtime/").split("/")
        match request.method, path:
            case b"GET", ["invocation", "next"]:
                await self._next(connection)
            case b"POST", ["invocation", request_id, "response"]:
                await self._response(fields(request), connection, request_id)
            case b"POST", ["invocation", request_id, "error"]:
                await self._error(fields(request), connection, request_id)
            case b"POST", ["init", "error"]:
                await self._environment_error(fields(request), connection)
            case b"GET", ["restore", "next"] if self._function.is_snap_start:
                await self._restore(connection)
            case b"POST", ["restore", "error"] if self._function.is_snap_start:
                await self._environment_error(fields(request), connection)
            case _:
                await _refuse(connection, 404, "NotFound", "404 page not found")

    async def _next(self, connection: Connection) -> None:
        await connection.whole_body()
        if self._idle_pollers == self._function.concurrency:
            said = f"More than {self._function.concurrency} ask for the next invocation."
            return await _refuse(connection, 400, "Runtime.TooManyIdleRuntimes", said)
        self._forget_what_is_over()
        if self._taken and self._function.concurrency == 1:
            return await _refuse_transition(connection, "Running", "Ready")
        self._idle_pollers += 1
        try:
            self.is_ready.set()
            if self._idle_pollers == self._function.concurrency and self._offered.empty():
                self._on_idle()
            invocation = await connection.while_open(self._offered.get())
        finally:
            self._idle_pollers -= 1
        self._taken.append(invocation)
        invocation.is_taken.set()
        await connection.answer(200, invocation.event, self._head(invocation))
        return None

    def _forget_what_is_over(self) -> None:
        is_alone = self._function.concurrency == 1
        for invocation in self._taken:
            # A runtime that asks for the next one has left its reply, even if that is not seen yet.
            if invocation.is_cut or (is_alone and invocation.has_begun.is_set()):
                invocation.fail(BROKEN_OFF)
        self._taken = [one for one in self._taken if not one.is_over.is_set()]

    def _running(self, headers: dict[str, str], request_id: str) -> Invocation | None:
        # An event that is tried again keeps its request id, and the first try may still be answered.
        named = headers.get(_INVOCATION_ID)
        for one in self._taken:
            is_it = one.record.request_id == request_id and named in (
                None,
                one.record.invocation_id,
            )
            if is_it and not one.is_over.is_set():
                return one
        return None

    def _head(self, invocation: Invocation) -> dict[str, str]:
        function = self._function
        arn = f"arn:aws:lambda:{function.region}:000000000000:function:{function.name}"
        return {
            "lambda-runtime-aws-request-id": invocation.record.request_id,
            "lambda-runtime-deadline-ms": str(int((time.time() + function.timeout_s) * 1000)),
            "lambda-runtime-invoked-function-arn": arn,
            "lambda-runtime-trace-id": invocation.trace_id,
            _INVOCATION_ID: invocation.record.invocation_id,
        }

    async def _response(
        self, headers: dict[str, str], connection: Connection, request_id: str
    ) -> None:
        invocation = self._running(headers, request_id)
        if invocation is None:
            return await _refuse(connection, 400, "InvalidRequestID", "Invalid request ID")
        if invocation.has_begun.is_set():
            return await _refuse_transition(connection, "InvocationResponse", "InvocationResponse")
        mode = headers.get("lambda-runtime-function-response-mode")
        if mode not in (None, "streaming"):
            said = "Invalid function response mode"
            invocation.fail(Failure("Runtime.InvalidResponseModeHeader", said))
            return await _refuse(connection, 400, "InvalidFunctionResponseMode", said)
        content_type = headers.get("content-type", "")
        invocation.begin("streamed" if mode else "buffered", content_type, connection.reset)
        limit = MAX_STREAMED_BYTES if mode and self._function.streams else MAX_BUFFERED_BYTES
        try:
            status = await relay(connection, invocation, limit)
            if status == ACCEPTED:
                return await _accept(connection)
            return await _refuse(connection, status, *_ERRORS.get(status, _ERRORS[TRUNCATED]))
        finally:
            if invocation.faults.is_gone:
                self._vanish()

    async def _error(
        self, headers: dict[str, str], connection: Connection, request_id: str
    ) -> None:
        body = await connection.whole_body(MAX_BUFFERED_BYTES)
        invocation = self._running(headers, request_id)
        if invocation is None:
            return await _refuse(connection, 400, "InvalidRequestID", "Invalid request ID")
        if invocation.has_begun.is_set():
            return await _refuse_transition(connection, "InvocationResponse", "InvocationError")
        invocation.record.answered = ACCEPTED
        invocation.fail(failure_in(headers, body))
        return await _accept(connection)

    async def _environment_error(self, headers: dict[str, str], connection: Connection) -> None:
        self.failure = failure_in(headers, await connection.whole_body(MAX_BUFFERED_BYTES))
        await _accept(connection)

    async def _restore(self, connection: Connection) -> None:
        await connection.whole_body()
        self.is_ready.set()
        self._on_idle()
        await connection.while_open(self.is_restored.wait())
        await connection.answer(200, b"")


async def _accept(connection: Connection) -> None:
    await connection.answer(ACCEPTED, b'{"status":"OK"}\n')


async def _refuse(connection: Connection, status: int, kind: str, message: str) -> None:
    body = msgspec.json.encode({"errorMessage": message, "errorType": kind})
    await connection.answer(status, body)


async def _refuse_transition(connection: Connection, state: str, wanted: str) -> None:
    said = f"Transition from {state} to {wanted} is not allowed."
    await _refuse(connection, 403, "InvalidStateTransition", said)
