"""One execution environment: the process that Lambda would start, and its Runtime API."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import handler
from handler.emulator.invocation import Invocation
from handler.emulator.options import Function
from handler.emulator.runtime_api import RuntimeApiServer
from handler.runtime_api import Failure


_WRAPPER: Final = Path(handler.__path__[0], "exec-wrapper")
_STOP_S: Final = 2.0
"""What Lambda leaves a process between SIGTERM and SIGKILL."""
_READ_BYTES: Final = 64 * 1024


class Sandbox:
    """Runs a function's process, from its first invocation until it ends or is stopped.

    `log` gets each line that the process writes; `on_room` is called after each invocation.
    """

    def __init__(
        self,
        function: Function,
        log: Callable[[str], None],
        on_room: Callable[[], None] | None = None,
    ) -> None:
        """Take what to run; nothing is started yet."""
        self._function = function
        self._log = log
        self._on_room = on_room
        self._api = RuntimeApiServer(function, self._rest)
        self._life: asyncio.Task[None] | None = None
        self._group: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._load = 0
        self.pid: int | None = None
        self.failure: Failure | None = None
        """Why the process ended, or is about to."""

    @property
    def is_usable(self) -> bool:
        """Whether it takes invocations, now or later."""
        return self.failure is None and not self._api.is_gone

    @property
    def has_room(self) -> bool:
        """Whether it takes another invocation now."""
        return self.is_usable and self._load < self._function.concurrency

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left of it."""
        return self._life is not None and self._life.done()

    async def warm_up(self) -> None:
        """Start the process, and wait for the end of its init; `failure` says whether it failed."""
        if self._life is None:
            self._life = asyncio.create_task(self._live())
        ready = asyncio.create_task(self._api.is_ready.wait())
        await asyncio.wait({ready, self._life}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()

    def invoke(self, invocation: Invocation) -> None:
        """Have an invocation answered, in its own time; whatever goes wrong is its failure."""
        self._load += 1
        task = asyncio.create_task(self._run(invocation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End the process, as Lambda ends an environment."""
        if self._life is None:
            return
        self.failure = self.failure or Failure("Sandbox.Stopped", "The environment was stopped")
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        await asyncio.wait({self._life}, timeout=_STOP_S)
        self._signal(signal.SIGKILL)
        await asyncio.gather(self._life, *self._tasks)

    async def _run(self, invocation: Invocation) -> None:
        try:
            await self.warm_up()
            if self.failure is not None:
                return invocation.fail(self.failure)
            invocation.record.pid = self.pid
            self._signal(signal.SIGCONT)
            self._api.is_restored.set()
            self._api.offer(invocation)
            await self._watch(invocation)
        finally:
            self._load -= 1
            if self._on_room is not None:
                self._on_room()

    async def _watch(self, invocation: Invocation) -> None:
        limit_s, now = self._function.timeout_s, asyncio.get_running_loop().time
        try:
            # What an app does after its reply must end within that time, too.
            async with asyncio.timeout(limit_s) as limit:
                await invocation.is_taken.wait()
                limit.reschedule(now() + limit_s)
                await invocation.is_over.wait()
        except TimeoutError:
            failure = Failure("Sandbox.Timedout", f"Task timed out after {limit_s:.2f} seconds")
            if self._function.concurrency == 1:
                self._kill(failure)
            invocation.fail(failure)  # a Managed Instance goes on with its others

    async def _live(self) -> None:
        await self._api.start()
        init_s, later = self._function.init_timeout_s, asyncio.get_running_loop().call_later
        late = later(init_s, self._check_init)
        ended = Failure("Runtime.Stopped", "The process was stopped")
        try:
            ended = await self._run_process()
        finally:
            late.cancel()
            if self.failure is None:
                self.failure = self._api.failure or ended
                self._log(f"{self.failure.type}: {self.failure.message}")
            self._api.fail_all(self.failure)
            await self._api.close()

    async def _run_process(self) -> Failure:
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(),
                env=_environment(self._function, self._api.address),
                cwd=self._function.task_root,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Failure("Runtime.InvalidEntrypoint", str(error))
        self.pid = self._group = process.pid
        if self.failure is not None:  # it was stopped meanwhile
            self._signal(signal.SIGKILL)
        reading = asyncio.create_task(self._read_log(process))
        status = await process.wait()
        self._signal(signal.SIGKILL)  # whatever it has started
        self._group = None
        await asyncio.wait({reading}, timeout=_STOP_S)
        reading.cancel()
        return Failure("Runtime.ExitError", f"Runtime exited with status {status}")

    async def _read_log(self, process: Process) -> None:
        rest = b""
        while process.stdout and (data := await process.stdout.read(_READ_BYTES)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._log(line.decode(errors="replace"))
        if rest:
            self._log(rest.decode(errors="replace"))

    def _check_init(self) -> None:
        if not self._api.is_ready.is_set():
            said = f"The init took longer than {self._function.init_timeout_s:g} seconds"
            self._kill(Failure("Sandbox.Timedout", said))

    def _rest(self) -> None:
        is_snapshot = self._function.is_snap_start and not self._api.is_restored.is_set()
        if is_snapshot or self._function.freezes:
            self._signal(signal.SIGSTOP)

    def _kill(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
            self._log(f"{failure.type}: {failure.message}")
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._group is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._group, number)


def _command() -> list[str]:
    if os.access(_WRAPPER, os.X_OK):
        # What Lambda calls a wrapper with: its own command line, which the loop takes the place of.
        return [str(_WRAPPER), sys.executable, "/var/runtime/bootstrap.py"]
    return [sys.executable, "-m", "handler.streaming"]


def _environment(function: Function, address: str) -> dict[str, str]:
    several = function.concurrency > 1
    init = "lambda-managed-instances" if several else "on-demand"
    python = f"python3.{sys.version_info.minor}"
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        **function.environ,
        "_HANDLER": function.handler,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{python}",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "1" if function.is_snap_start else "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start" if function.is_snap_start else init,
        "AWS_LAMBDA_LOG_FORMAT": "JSON" if several or function.logs_json else "Text",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": "local",
        "AWS_LAMBDA_RUNTIME_API": address,
        "AWS_REGION": function.region,
        "AWS_DEFAULT_REGION": function.region,
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "LAMBDA_TASK_ROOT": str(function.task_root),
        **({"AWS_LAMBDA_MAX_CONCURRENCY": str(function.concurrency)} if several else {}),
    }
