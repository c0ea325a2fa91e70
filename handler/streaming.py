"""The streaming loop: a Lambda runtime that asks for invocation after invocation and has each answered.

`python -m handler.streaming` runs it; `handler/exec-wrapper` starts it in the place of the managed
runtime's own, and `take_over` inside of that. Nothing of an invocation goes on after its reply: the
next one is asked for when the app has returned.
"""

import asyncio
import logging
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from msgspec.structs import replace

from channel.http import request_id
from channel.ports import Clock
from handler.dispatch import Dispatcher
from handler.init import InitError, load_handler, report_init_error
from handler.mount import LambdaHandler
from handler.runtime_api import Invocation, Reply, RuntimeApi, RuntimeApiError
from handler.runtime_client import Line
from handler.snapstart import SnapStartError, wait_for_restore
from infra.runtime_logs import log_like_lambda, trace_id
from infra.settings import RuntimeSettings, SettingsError, publish_trace_id


_LOG: Final = logging.getLogger("handler.streaming")  # as which it is not run
_ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.1


class StreamingLoop:
    """Serves a handler's app and worker until it is cancelled, or the Runtime API is gone."""

    def __init__(
        self,
        handler: LambdaHandler,
        settings: RuntimeSettings,
        *,
        clock: Clock = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take what to serve; nothing is asked of the Runtime API yet."""
        self._dispatcher = Dispatcher(
            handler.environment.app, handler.worker, handler.doors, settings, clock
        )
        self._settings = settings
        self._api = RuntimeApi(settings.api_address)
        self._pause = pause

    async def run(self) -> NoReturn:
        """Serve as many invocations at a time as Lambda sends, which is one but on Managed Instances.

        Raises `RuntimeApiError` or `OSError` where the Runtime API cannot be used any more.
        """
        try:
            async with asyncio.TaskGroup() as pollers:
                for _ in range(self._settings.concurrency):
                    pollers.create_task(self._poll())
        except* (RuntimeApiError, OSError) as several:
            raise several.exceptions[0] from None
        raise AssertionError("a poller returned")

    async def _poll(self) -> NoReturn:
        line = Line(self._settings.api_address)
        loop = asyncio.get_running_loop()
        try:
            while True:
                loop.call_soon(line.prepare)  # once the next invocation is asked for
                invocation = Invocation.from_reply(await self._next(line))
                self._publish(invocation)
                try:
                    _check(await self._dispatcher.answer(invocation, line))
                except OSError as error:
                    _LOG.warning("the reply broke off: %s", type(error).__name__)
        finally:
            line.drop()

    async def _next(self, line: Line) -> Reply:
        """Ask for the next invocation, however long it takes: the process may be frozen meanwhile."""
        for attempt in range(_ATTEMPTS - 1):
            try:
                return await line.ask(self._api.next())
            except OSError:
                await self._pause(_FIRST_PAUSE_S * 2**attempt)
        return await line.ask(self._api.next())

    def _publish(self, invocation: Invocation) -> None:
        """Name the invocation for the logs of all that it causes."""
        request_id.set(invocation.request_id)
        trace_id.set(invocation.trace_id or "")
        if self._settings.concurrency == 1:  # the variable is the process's, not the invocation's
            publish_trace_id(invocation.trace_id)


def _check(reply: Reply) -> None:
    """Note a reply that Lambda refused; raises `RuntimeApiError` where it wants this process to end."""
    if reply.status >= 500:  # noqa: PLR2004 - "non-recoverable", says the Runtime API
        msg = f"The Runtime API answered {reply.status} to a reply"
        raise RuntimeApiError(msg)
    if reply.status >= 400:  # noqa: PLR2004
        _LOG.error("Lambda refused the reply: status %d", reply.status)


async def serve(handler: LambdaHandler, settings: RuntimeSettings) -> int:
    """Serve invocations until SIGTERM; return the exit status of the process.

    Raises `RuntimeApiError` or `OSError` where the Runtime API cannot be used any more.
    """
    _stop_at_sigterm()
    try:
        await StreamingLoop(handler, settings).run()
    except asyncio.CancelledError:
        return 0


def run(handler: LambdaHandler, settings: RuntimeSettings) -> int:
    """Serve invocations, then run the app's shutdown; return the exit status of the process."""
    try:
        if settings.is_snap_start:
            wait_for_restore(RuntimeApi(settings.api_address), handler.environment.run)
        return handler.environment.run(serve(handler, settings))
    except SnapStartError as error:
        return _stopped(str(error), error.exit_status)
    except (RuntimeApiError, OSError) as error:
        return _stopped(f"the Runtime API cannot be used any more: {error}", 1)
    finally:
        handler.close()


def take_over(handler: LambdaHandler) -> LambdaHandler:
    """Serve instead of Lambda's own runtime, from within its import of the handler; never returns.

    Where there is no Runtime API, the handler is returned as it is.
    """
    try:
        settings = RuntimeSettings.from_env()
    except SettingsError:
        return handler
    import multiprocessing  # noqa: PLC0415 - the other mount has no use for it

    log_like_lambda(settings)
    if multiprocessing.parent_process() is not None:
        # On Managed Instances, Lambda's own runtime imports the handler in as many processes as
        # there may be invocations: one is each one's part.
        settings = replace(settings, concurrency=1)
    sys.exit(run(handler, settings))


def main() -> int:
    """Be the runtime of this process; return its exit status."""
    try:
        settings = RuntimeSettings.from_env()
    except SettingsError as error:
        return _stopped(str(error), 2)
    log_like_lambda(settings)
    try:
        handler = load_handler(settings)
    except InitError as error:
        report_init_error(settings, error)
        return 1
    return run(handler, settings)


def _stop_at_sigterm() -> None:
    task = asyncio.current_task()
    if task is not None and threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _stopped(why: str, exit_status: int) -> int:
    sys.stderr.write(f"lambda-responses stops: {why}\n")
    sys.stderr.flush()
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
