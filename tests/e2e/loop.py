"""The streaming loop as a door: a process of its own behind the emulated Runtime API, given raw events."""

import asyncio
import base64
import json
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from channel.ports import random_hex
from handler.emulator.function_url import FunctionUrl
from handler.emulator.invocation import Invocation, Record
from handler.emulator.options import Faults, Function
from handler.emulator.replies import PreludeReader
from handler.emulator.sandbox import Sandbox
from tests.e2e.doors import Door, MakeEvent, Reply
from tests.infra.engines import ROOT


_Result = TypeVar("_Result")
_PATIENCE_S: Final = 30
DEVELOPMENT: Final[Mapping[str, str]] = {"AWS_SAM_LOCAL": "true", "KEEPALIVE_S": "0"}
"""The environment of the stock app with a store in memory and the development keys."""


class Background:
    """An event loop in a thread of its own: what runs there goes on while the test waits for a socket."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()


@contextmanager
def background() -> Iterator[Background]:
    """An event loop beside the test."""
    beside = Background()
    try:
        yield beside
    finally:
        beside.close()


@contextmanager
def function_url(function: Function, faults: Faults | None = None) -> Iterator[FunctionUrl]:
    """Serve a function's URL beside the test, which may block."""
    url = FunctionUrl(function, faults=faults)
    with background() as beside:
        beside.run(url.__aenter__())
        try:
            yield url
        finally:
            beside.run(url.__aexit__(None, None, None))


@contextmanager
def stock_function(environ: Mapping[str, str], *, timeout_s: float = 300.0) -> Iterator["Runtime"]:
    """Run the stock app under the loop; give what takes events."""
    function = Function(
        handler="handler.buffered.handler",
        environ={**DEVELOPMENT, **environ},
        task_root=ROOT,
        timeout_s=timeout_s,
    )
    with background() as beside:
        logs: list[str] = []
        sandbox = Sandbox(function, logs.append)
        try:
            yield Runtime(beside, sandbox, logs)
        finally:
            beside.run(sandbox.stop())


class Runtime:
    """A running execution environment."""

    def __init__(self, beside: Background, sandbox: Sandbox, logs: list[str]) -> None:
        self._beside = beside
        self._sandbox = sandbox
        self.logs = logs

    def invoke(self, event: Any) -> tuple[Record, bytes]:
        """Have an event answered; return what became of it, and the bytes of the reply."""
        return self._beside.run(self._invoke(json.dumps(event).encode()))

    def door(self, make_event: MakeEvent) -> Door:
        """Return the door of the kind that these events come from."""

        def ask(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
            record, posted = self.invoke(make_event(method, target, headers, body))
            assert record.error is None, record
            assert record.answered == 202
            return _streamed(posted) if record.mode == "streamed" else _whole(posted)

        return ask

    async def _invoke(self, event: bytes) -> tuple[Record, bytes]:
        record = Record(request_id=random_hex(16))
        invocation = Invocation(record, event, "Root=1-0-0", Faults())
        self._sandbox.invoke(invocation)
        posted = bytearray()
        try:
            await invocation.has_begun.wait()
            while record.error is None and (piece := await invocation.read()):
                posted += piece
            await invocation.is_over.wait()
        finally:
            invocation.close()
        return record, bytes(posted)


def _streamed(posted: bytes) -> Reply:
    found = PreludeReader().feed(posted)
    assert found is not None
    head, body = found
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    return Reply(head.status, headers, body)


def _whole(posted: bytes) -> Reply:
    answer = json.loads(posted)
    headers = {name.lower(): value for name, value in answer["headers"].items()}
    body = answer["body"].encode()
    if answer["isBase64Encoded"]:
        body = base64.b64decode(body, validate=True)
    return Reply(answer["statusCode"], headers, body)
