"""One invocation: from its event to the app or the worker, and to the answer that Lambda gets.

An app is given the time that its door has, less a margin in which it should end by itself
(`channel.deadline`); what is left of the margin then is for an app that does not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp

from channel.deadline import TimeLeft
from channel.faults import log_fault
from channel.ports import Clock
from channel.responses.protocol.errors import RequestError, error_body
from channel.responses.stepping import begun
from handler.context import LambdaContext, context_of
from handler.events import (
    DoorSettings,
    HTTPEvent,
    HTTPEvents,
    UnknownEventError,
    error_headers,
)
from handler.exchange import STREAM_ERROR, BufferedReply, Inbox, ReplyToEvent, StreamedReply
from handler.mount import Worker
from handler.runtime_api import (
    Failure,
    Invocation,
    Reply,
    ReplyHeadError,
    RuntimeApi,
    RuntimeApiError,
)
from handler.runtime_client import Line
from infra.settings import RuntimeSettings


_LOG: Final = logging.getLogger(__name__)
_STOP_S: Final = 1.5
"""Seconds that an app has to end where the process is to, of the two between SIGTERM and SIGKILL."""
_SETTLING_S: Final = 900.0
"""Seconds that Lambda may take to read a reply and to answer it; no invocation takes longer."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Dispatcher:
    """Answers invocations of one app and one worker, any number at a time."""

    def __init__(
        self,
        app: ASGIApp,
        worker: Worker | None,
        doors: DoorSettings,
        settings: RuntimeSettings,
        clock: Clock,
    ) -> None:
        """Take whom to ask."""
        self._app = app
        self._worker = worker
        self._margin_s = doors.margin_s
        self._events = HTTPEvents(doors, may_stream=True)
        self._settings = settings
        self._api = RuntimeApi(settings.api_address)
        self._clock = clock

    async def answer(self, invocation: Invocation, line: Line) -> Reply:
        """Answer an invocation, streamed on a connection of its own or whole on the line.

        Returns what the Runtime API made of it; raises `OSError` where that broke off. Whatever else
        goes wrong is the answer, an error.
        """
        try:
            return await self._answer(invocation, line)
        except _FailedError as failed:
            failure = failed.failure
        except ReplyHeadError as error:
            failure = Failure(type(error).__name__, str(error))
        except (OSError, RuntimeApiError):
            raise
        except Exception as error:  # noqa: BLE001 - or else it ended the process, and others' invocations
            log_fault(_LOG, "invocation failed", error)
            said = f"The invocation failed. Request id: {invocation.request_id}"
            failure = Failure(type(error).__name__, said)
        return await line.ask(self._api.error(invocation, failure))

    async def _answer(self, invocation: Invocation, line: Line) -> Reply:
        context = context_of(invocation, self._settings, self._clock)
        event = _event(invocation)
        request = self._events.read(event, context)
        if request is None:
            answer = await self._work(event, context)
            return await line.ask(self._api.response(invocation, answer))
        reply = await self._reply(request, invocation, line)
        try:
            return await self._serve(request, reply, invocation, line)
        finally:
            reply.drop()

    async def _serve(
        self, request: HTTPEvent, reply: ReplyToEvent, invocation: Invocation, line: Line
    ) -> Reply:
        try:
            scope, body = request.scope, request.body
        except RequestError as error:
            await _say(reply, error.status, error.message, error.code, invocation)
            return await reply.settle(None)
        if request.streams:
            scope["extensions"]["http.response.trailers"] = {}
        inbox = Inbox(body, reply.is_over)
        run = _called(self._app, scope, inbox.receive, reply.send)
        task, is_late = await _within(run, request.time_left)
        failure = None
        if not reply.is_whole:
            failure = await _explained(task, reply, invocation, is_late=is_late)
        elif task.done() and (late := _error_of(task)):
            log_fault(_LOG, "the app failed after its reply", late)
        limit_s = request.time_left.last_words_s if is_late and request.time_left else _SETTLING_S
        return await _settled(reply, failure, line, limit_s)

    async def _reply(self, request: HTTPEvent, invocation: Invocation, line: Line) -> ReplyToEvent:
        try:
            streams = request.streams
        except OSError as error:  # of the callable that was asked, and not of the Runtime API
            raise RuntimeError("streams") from error
        if not streams:
            return BufferedReply(self._api, invocation, request, line)
        return StreamedReply(self._api, invocation, await line.another())

    async def _work(self, event: Any, context: LambdaContext) -> bytes:
        if self._worker is None:
            unknown = UnknownEventError(event)
            raise _FailedError(type(unknown).__name__, str(unknown))
        left = TimeLeft.within(context.get_remaining_time_in_millis() / 1000, self._margin_s)
        task, is_late = await _within(_called(self._worker, event, context), left)
        if is_late:
            raise _FailedError("Runtime.Timeout", "The worker ran out of time.")
        if failure := _error_of(task):
            log_fault(_LOG, "worker failed", failure)
            said = f"The worker failed. Request id: {context.aws_request_id}"
            raise _FailedError(type(failure).__name__, said) from failure
        try:
            return _encode(task.result())
        except (TypeError, ValueError, RecursionError) as error:
            said = "What the worker returned cannot be told as JSON."
            raise _FailedError("Runtime.MarshalError", said) from error


class _FailedError(Exception):
    """An invocation that is answered by an error."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


def _event(invocation: Invocation) -> Any:
    try:
        return _decode(invocation.body)
    except (ValueError, RecursionError) as error:  # msgspec's, UTF-8's, and of too many brackets
        raise _FailedError("Runtime.UnmarshalError", "The event is not JSON.") from error


async def _within(
    run: Coroutine[Any, Any, Any], left: TimeLeft | None
) -> tuple[asyncio.Task[Any], bool]:
    """Run to the end, or until its time is over; return the task, and whether it was cut.

    One that does not end when it is cancelled is left to itself.
    """
    task = begun(run)
    task.add_done_callback(_notice)
    try:
        if not task.done():
            await _ended(task, left.app_s if left else None)
        is_late = not task.done()
        if left is not None and is_late:
            task.cancel()
            await asyncio.wait({task}, timeout=left.cancelled_s)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=_STOP_S)
        raise
    return task, is_late


async def _ended(task: asyncio.Task[Any], timeout_s: float | None) -> None:
    """Wait as `asyncio.wait` does, which can do more and takes twice as long: of every invocation."""
    loop = asyncio.get_running_loop()
    is_over = loop.create_future()

    def end(_task: asyncio.Task[Any] | None = None) -> None:
        if not is_over.done():
            is_over.set_result(None)

    task.add_done_callback(end)
    timer = loop.call_later(timeout_s, end) if timeout_s is not None else None
    try:
        await is_over
    finally:
        if timer is not None:
            timer.cancel()


async def _settled(
    reply: ReplyToEvent, failure: Failure | None, line: Line, limit_s: float
) -> Reply:
    """End the reply, but not for ever: who does not read it, takes no end of it either."""

    def cut() -> None:
        reply.drop()
        line.drop()

    timer = asyncio.get_running_loop().call_later(limit_s, cut)
    try:
        return await reply.settle(failure)
    finally:
        timer.cancel()


async def _called(function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    try:
        return await function(*arguments)
    except (SystemExit, KeyboardInterrupt) as error:
        # Of the app alone: asyncio would end the process by them, and others' invocations.
        msg = f"The app raised {type(error).__name__}."
        raise RuntimeError(msg) from error


def _notice(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # or else asyncio logs the text of one that nobody waits for any more


async def _explained(
    task: asyncio.Task[Any], reply: ReplyToEvent, invocation: Invocation, *, is_late: bool
) -> Failure | None:
    """Say what became of a reply that the app did not end: in its place, or else by its trailers."""
    status, said, code = 500, "The server had an error while processing your request.", None
    error = None if is_late else _error_of(task)
    if is_late:
        _LOG.error("the app ran out of time and did not end by itself")
        status, said, code = 504, "The server ran out of time.", "timeout"
    elif reply.has_begun and reply.is_over.is_set():
        return None  # Lambda takes no more of it, and the app had to notice
    elif isinstance(error, ReplyHeadError) and not reply.has_begun:
        raise error
    elif error is not None:
        log_fault(_LOG, "the app failed", error)
    elif reply.has_begun:
        return None  # it returned without the last message, which is an end, too
    else:
        _LOG.error("the app returned without a reply")
    if reply.has_begun:
        return Failure(STREAM_ERROR, f"{said} Request id: {invocation.request_id}")
    await _say(reply, status, said, code, invocation)
    return None


async def _say(
    reply: ReplyToEvent, status: int, said: str, code: str | None, invocation: Invocation
) -> None:
    """Reply with an error in OpenAI's shape instead of what the app has said so far."""
    message = said if status < 500 else f"{said} Request id: {invocation.request_id}"  # noqa: PLR2004
    body = _encode(error_body(message, status=status, code=code))
    name = (b"x-request-id", invocation.request_id.encode("latin-1", "replace"))
    reply.discard()
    headers = [*error_headers(body), name]
    await reply.send({"type": "http.response.start", "status": status, "headers": headers})
    await reply.send({"type": "http.response.body", "body": body})


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()
