"""The execution environments of a function: started as invocations need them, up to a limit."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from handler.emulator.invocation import Invocation, Record
from handler.emulator.options import Faults, Function
from handler.emulator.sandbox import Sandbox
from handler.runtime_api import Failure


KEPT: Final = 10_000
"""Records, and lines of logs, that are kept: the last ones."""


class Environments:
    """Have events answered, each by an environment that has room.

    `faults` are those of the next invocations; `invocations` tells what became of the ones before,
    the oldest first. `lambda_endpoint` is where the function finds Lambda's API.
    """

    def __init__(self, function: Function, faults: Faults, log: Callable[[str], None]) -> None:
        """Take what to run; `log` gets each line that an environment writes."""
        self.faults = faults
        self.invocations: deque[Record] = deque(maxlen=KEPT)
        self.lambda_endpoint = ""
        self._function = function
        self._log = log
        self._sandboxes: list[Sandbox] = []
        self._has_room = asyncio.Event()
        self._is_stopping = False

    @property
    def pids(self) -> list[int]:
        """The processes of the environments that take invocations."""
        usable = [sandbox for sandbox in self._sandboxes if sandbox.is_usable]
        return [sandbox.pid for sandbox in usable if sandbox.pid is not None]

    def invoke(self, record: Record, event: bytes, trace_id: str) -> Invocation | None:
        """Have an event answered; None where all environments are busy, and there may be no more."""
        sandbox = self._with_room()
        if sandbox is None:
            return None
        self.invocations.append(record)
        invocation = Invocation(record, event, trace_id, self.faults)
        sandbox.invoke(invocation)
        return invocation

    async def invoke_in_turn(self, record: Record, event: bytes, trace_id: str) -> Invocation:
        """Have an event answered as soon as there is room for it."""
        while (invocation := self.invoke(record, event, trace_id)) is None:
            self._has_room.clear()
            await self._has_room.wait()
        return invocation

    async def warm_up(self) -> Failure | None:
        """Start an environment before it is needed; return why that failed, if it did."""
        sandbox = self._add()
        await sandbox.warm_up()
        return sandbox.failure

    async def stop(self) -> None:
        """End the environments; there are no others from now on."""
        self._is_stopping = True
        await asyncio.gather(*(sandbox.stop() for sandbox in self._sandboxes))

    def _with_room(self) -> Sandbox | None:
        self._sandboxes = [one for one in self._sandboxes if not one.has_ended]
        usable = [one for one in self._sandboxes if one.is_usable]
        with_room = next((one for one in usable if one.has_room), None)
        if with_room or len(usable) >= self._function.environments or self._is_stopping:
            return with_room
        return self._add()

    def _add(self) -> Sandbox:
        # What the function was told of an endpoint by its owner goes first.
        environ = {"LAMBDA_ENDPOINT": self.lambda_endpoint, **self._function.environ}
        sandbox = Sandbox(replace(self._function, environ=environ), self._log, self._has_room.set)
        self._sandboxes.append(sandbox)
        return sandbox
