"""The streaming loop against a Runtime API that tests script, from the first `next` to the exit status."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import snapshot_restore_py as registry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from channel.http import request_id
from handler.mount import LambdaHandler
from handler.runtime_api import RuntimeApiError
from handler.streaming import StreamingLoop, main, run, serve, take_over
from infra.runtime_logs import trace_id
from infra.settings import RuntimeSettings
from tests.handler.events import Context, function_url, http_api
from tests.handler.runtime_server import PATH, Lambda, reply, server
from tests.infra.engines import ROOT


pytestmark = pytest.mark.anyio

NEXT = f"GET {PATH}/invocation/next"


@pytest.fixture(autouse=True)
def _process_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the loop changes of its process: logs, and the trace's variable."""
    root = logging.getLogger()
    before, level = root.handlers, root.level
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-of-the-test")
    yield
    root.handlers = before
    root.setLevel(level)


async def hello(_request: Request) -> StreamingResponse:
    return StreamingResponse(iter(["hel", "lo"]), media_type="text/plain")


HELLO = Starlette(routes=[Route("/", hello)])
URL = function_url("GET", "/")
WHOLE = http_api("GET", "/")


@asynccontextmanager
async def mounted(app: ASGIApp) -> AsyncIterator[LambdaHandler]:
    """The app as a handler; its own event loop is that of another thread."""
    handler = await asyncio.to_thread(LambdaHandler, app)
    try:
        yield handler
    finally:
        await asyncio.to_thread(handler.close)


class Pauses:
    """Pauses that are noted and not made."""

    def __init__(self) -> None:
        self.made: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.made.append(seconds)


@asynccontextmanager
async def looping(
    app: ASGIApp, api: Lambda, *, concurrency: int = 1, pauses: Pauses | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """The loop, serving this app to this Runtime API until the test is done with it."""
    async with server(api.serve) as address, mounted(app) as handler:
        settings = RuntimeSettings(api_address=address, handler="", concurrency=concurrency)
        loop = StreamingLoop(handler, settings, pause=pauses or Pauses())
        task: asyncio.Task[None] = asyncio.create_task(loop.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})


def ended_in_thread(app: ASGIApp, settings: RuntimeSettings) -> int:
    """Start the app, and be its runtime; return the exit status."""
    return run(LambdaHandler(app), settings)


async def exit_status(app: ASGIApp, api: Lambda, **given: Any) -> int:
    async with server(api.serve) as address:
        settings = RuntimeSettings(api_address=address, handler="", **given)
        return await asyncio.to_thread(ended_in_thread, app, settings)


# --- invocation after invocation -----------------------------------------------------------------


async def test_streamed_replies_go_by_connections_of_their_own() -> None:
    api = Lambda()
    async with looping(HELLO, api):
        for _ in range(3):
            api.invoke(URL)
        told = [await api.told.get() for _ in range(3)]

    assert [one.chunks[1:] for one in told] == [[b"hel", b"lo"]] * 3
    assert api.connections == 4


async def test_whole_replies_go_by_the_connection_that_asks_for_the_next() -> None:
    api = Lambda()
    async with looping(HELLO, api):
        for number in range(3):
            api.invoke(WHOLE, f"id-{number}")
        told = [await api.told.get() for _ in range(3)]

    assert [one.target for one in told] == [
        f"POST {PATH}/invocation/id-{number}/response" for number in range(3)
    ]
    assert [json.loads(one.body)["body"] for one in told] == ["hello"] * 3
    assert api.connections == 1


async def test_the_next_invocation_is_asked_for_when_the_app_has_returned() -> None:
    api = Lambda()
    may_return = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await HELLO(scope, receive, send)
        if scope["type"] == "http":
            await may_return.wait()

    async with looping(app, api):
        api.invoke(URL)
        await api.told.get()
        asked = [await api.asked.get()]
        is_early = not api.asked.empty()
        may_return.set()
        asked.append(await api.asked.get())

    assert (asked, is_early) == ([NEXT, NEXT], False)


async def test_an_attempt_at_an_invocation_is_answered_by_its_name() -> None:
    api = Lambda()
    async with looping(HELLO, api):
        for event in (URL, WHOLE, {}):
            api.invoke(event, Invocation_Id="attempt-2")
        told = [await api.told.get() for _ in range(3)]

    names = [one.headers["lambda-runtime-invocation-id"] for one in told]
    assert names == ["attempt-2"] * 3


async def test_a_deadline_is_that_of_the_wall_clock() -> None:
    api = Lambda()
    left: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            left.append(scope["aws.context"].get_remaining_time_in_millis())
        await HELLO(scope, receive, send)

    async with server(api.serve) as address, mounted(app) as handler:
        settings = RuntimeSettings(api_address=address, handler="")
        loop = StreamingLoop(handler, settings, clock=lambda: 1000.0)
        task = asyncio.create_task(loop.run())
        api.invoke(URL, deadline_ms=1_030_000)
        await api.told.get()
        task.cancel()
        await asyncio.wait({task})

    assert left == [30_000]


# --- what goes wrong -----------------------------------------------------------------------------


async def test_a_connection_that_fails_is_made_again_after_longer_and_longer_pauses() -> None:
    api, pauses = Lambda(), Pauses()
    async with looping(HELLO, api, pauses=pauses):
        for _ in range(2):
            for _ in range(4):
                api.answer_next(b"")
            api.invoke(WHOLE)
            await api.told.get()

    assert pauses.made == [0.1, 0.2, 0.4, 0.8] * 2


async def test_a_runtime_api_that_stays_away_ends_the_loop() -> None:
    api, pauses = Lambda(), Pauses()
    async with looping(HELLO, api, pauses=pauses) as task:
        for _ in range(5):
            api.answer_next(b"")
        await asyncio.wait({task})

    assert isinstance(task.exception(), OSError)
    assert pauses.made == [0.1, 0.2, 0.4, 0.8]
    assert api.connections == 5


@pytest.mark.parametrize("event", [URL, WHOLE, {}], ids=["streamed", "whole", "error"])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "Lambda refused the reply: status 400"),
        (403, "Lambda refused the reply: status 403"),
        (413, "Lambda refused the reply: status 413"),
        (0, "the reply broke off: ConnectionResetError"),
    ],
)
async def test_a_reply_that_lambda_does_not_take_is_logged_and_the_next_is_served(
    status: int, said: str, event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    api = Lambda()
    api.refusals.append(status)
    async with looping(HELLO, api):
        api.invoke(event)
        await api.told.get()
        api.invoke(WHOLE, "id-2")
        told = await api.told.get()

    assert told.target.endswith("/id-2/response")
    assert said in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("event", [URL, WHOLE, {}], ids=["streamed", "whole", "error"])
async def test_a_container_error_ends_the_process(
    event: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Lambda()
    api.invoke(event)
    api.refusals.append(500)

    status = await exit_status(HELLO, api)

    assert status == 1
    assert capsys.readouterr().err == (
        "lambda-responses stops: the Runtime API cannot be used any more: "
        "The Runtime API answered 500 to a reply\n"
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply(403), "The Runtime API answered 403 instead of an invocation"),
        (reply(200), "The Runtime API answered 200 instead of an invocation"),
        (b"220 ESMTP\r\n\r\n", "The Runtime API does not speak HTTP"),
    ],
)
async def test_a_next_that_is_no_invocation_ends_the_process_and_the_app(
    answer: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Lambda()
    api.answer_next(answer)
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for what in ("startup", "shutdown"):
            asked.append((await receive())["type"])
            await send({"type": f"lifespan.{what}.complete"})

    exit_with = await exit_status(app, api)

    assert (exit_with, asked) == (1, ["lifespan.startup", "lifespan.shutdown"])
    assert capsys.readouterr().err.endswith(f"cannot be used any more: {said}\n")


async def test_apps_and_workers_that_fail_cost_their_invocations_only() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raise LookupError
        await HELLO(scope, receive, send)

    events = [URL, WHOLE, {}, b"no JSON", b"[" * 100_000, b'"\xff"']
    api = Lambda()
    async with looping(app, api):
        for number, event in enumerate(events):
            api.invoke(event, f"id-{number}")
        told = [await api.told.get() for _ in events]

    ways = [one.target.rpartition("/")[2] for one in told]
    assert ways == ["response", "response", "error", "error", "error", "error"]


# --- several at once -----------------------------------------------------------------------------


async def test_as_many_as_lambda_sends_at_once_are_served_at_once() -> None:
    api = Lambda()
    together = asyncio.Barrier(8)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await together.wait()
        await HELLO(scope, receive, send)

    async with looping(app, api, concurrency=8):
        for number in range(16):
            api.invoke([URL, WHOLE][number % 2], f"id-{number}")
        told = [await api.told.get() for _ in range(16)]
        asked = [await api.asked.get() for _ in range(24)]

    answered = {one.target.split("/")[-2] for one in told}
    assert answered == {f"id-{number}" for number in range(16)}
    assert asked == [NEXT] * 24


async def test_each_invocation_has_its_ids_to_itself() -> None:
    api = Lambda()
    together = asyncio.Barrier(2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await HELLO(scope, receive, send)
            return
        said = []
        for _ in range(3):
            await together.wait()
            said += [request_id.get(), trace_id.get()]
        said.append(str(os.getenv("_X_AMZN_TRACE_ID")))
        await JSONResponse(said)(scope, receive, send)

    async with looping(app, api, concurrency=2):
        for number in range(4):
            api.invoke(WHOLE, f"id-{number}", Trace_Id=f"Root={number}")
        told = [await api.told.get() for _ in range(4)]

    for one in told:
        name = one.target.split("/")[-2]
        ids = json.loads(json.loads(one.body)["body"])
        assert ids == [name, name.replace("id-", "Root=")] * 3 + ["Root=1-of-the-test"]


async def test_alone_an_invocation_has_its_trace_in_the_environment() -> None:
    api = Lambda()
    seen: list[tuple[str, str | None]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append((trace_id.get(), os.getenv("_X_AMZN_TRACE_ID")))
        await HELLO(scope, receive, send)

    async with looping(app, api):
        api.invoke(URL, Trace_Id="Root=1")
        api.invoke(URL, Trace_Id="Root=2")
        api.invoke(URL)
        for _ in range(3):
            await api.told.get()

    assert seen == [("Root=1", "Root=1"), ("Root=2", "Root=2"), ("", None)]


async def test_a_container_error_of_one_ends_all() -> None:
    api = Lambda()
    begun, was_cancelled = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/slow":
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                was_cancelled.set()
        await HELLO(scope, receive, send)

    async with looping(app, api, concurrency=2) as task:
        api.invoke(function_url("GET", "/slow"), "id-slow")
        await begun.wait()
        api.refusals.append(500)
        api.invoke(WHOLE, "id-quick")
        await asyncio.wait({task})

    assert isinstance(task.exception(), RuntimeApiError)
    assert was_cancelled.is_set()


# --- the end of the process ----------------------------------------------------------------------


async def test_sigterm_ends_the_loop_well() -> None:
    api = Lambda()
    begun, was_cancelled = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await HELLO(scope, receive, send)
            return
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    async with server(api.serve) as address, mounted(app) as handler:
        settings = RuntimeSettings(api_address=address, handler="")
        serving = asyncio.create_task(serve(handler, settings))
        api.invoke(URL)
        await begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        status = await serving
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    assert (status, was_cancelled.is_set()) == (0, True)


APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for what in ("startup", "shutdown"):
            await receive()
            print(what)
            await send({"type": f"lifespan.{what}.complete"})
        return
    print("serving", flush=True)
    await receive()
    assert (await receive())["type"] == "http.disconnect"


async def other(event, context): ...
"""


async def test_the_process_that_lambda_starts_and_ends(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(APP)
    api = Lambda()
    api.invoke(URL)
    async with server(api.serve) as address:
        environ = {
            "AWS_LAMBDA_RUNTIME_API": address,
            "LAMBDA_TASK_ROOT": str(tmp_path),
            "_HANDLER": "served.app",
            "PYTHONPATH": str(ROOT),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "handler.streaming"),
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        said = [await process.stdout.readline() for _ in range(2)]
        process.terminate()
        out, err = await process.communicate()

    assert ([*said, out], err) == ([b"startup\n", b"serving\n", b"shutdown\n"], b"")
    assert process.returncode == 0


# --- the mounts ----------------------------------------------------------------------------------


def lambdas_environment(
    monkeypatch: pytest.MonkeyPatch, address: str, root: Path, name: str
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", address)
    monkeypatch.setenv("LAMBDA_TASK_ROOT", str(root))
    monkeypatch.setenv("_HANDLER", name)
    monkeypatch.setattr(sys, "path", sys.path[:])


async def test_main_serves_the_handler_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served_by_main.py").write_text(APP)
    api = Lambda()
    api.answer_next(reply(403))
    async with server(api.serve) as address:
        lambdas_environment(monkeypatch, address, tmp_path, "served_by_main.app")
        status = await asyncio.to_thread(main)

    assert status == 1
    assert await api.asked.get() == NEXT


async def test_main_tells_of_a_handler_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "not_served.py").write_text(APP)
    api = Lambda()
    async with server(api.serve) as address:
        lambdas_environment(monkeypatch, address, tmp_path, "not_served.other")
        status = await asyncio.to_thread(main)
        told = await api.told.get()

    assert (status, told.target) == (1, f"POST {PATH}/init/error")
    assert told.headers["lambda-runtime-function-error-type"] == "Runtime.HandlerNotFound"
    assert "Runtime.HandlerNotFound: The handler not_served.other is" in capsys.readouterr().err


def test_main_outside_of_lambda_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_LAMBDA_RUNTIME_API", raising=False)

    assert main() == 2
    assert capsys.readouterr().err == (
        "lambda-responses stops: The variable AWS_LAMBDA_RUNTIME_API is not set: Lambda, or "
        "`lambda-responses url`, runs this.\n"
    )


def mount_and_take_over(app: ASGIApp) -> LambdaHandler:
    handler = LambdaHandler(app)
    try:
        return take_over(handler)
    finally:
        if not handler.environment.loop.is_closed():
            handler.close()


async def test_taking_over_serves_until_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Lambda()
    api.invoke(URL)
    api.refusals.append(500)
    async with server(api.serve) as address:
        monkeypatch.setenv("AWS_LAMBDA_RUNTIME_API", address)
        with pytest.raises(SystemExit) as raised:
            await asyncio.to_thread(mount_and_take_over, HELLO)

    assert raised.value.code == 1
    assert (await api.told.get()).chunks[1:] == [b"hel", b"lo"]


async def test_outside_of_lambda_nothing_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_LAMBDA_RUNTIME_API", raising=False)

    handler = await asyncio.to_thread(mount_and_take_over, HELLO)

    assert isinstance(handler, LambdaHandler)


FORKED = """
import multiprocessing, sys

from handler.mount import LambdaHandler
from handler.streaming import take_over
from served import app


process = multiprocessing.get_context("fork").Process(target=lambda: take_over(LambdaHandler(app)))
process.start()
process.join()
sys.exit(process.exitcode)
"""


async def test_one_of_several_processes_asks_for_one_invocation_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(APP.replace('print("serving", flush=True)', "return"))
    (tmp_path / "forked.py").write_text(FORKED)
    api = Lambda()
    async with server(api.serve) as address:
        environ = {
            "AWS_LAMBDA_RUNTIME_API": address,
            "AWS_LAMBDA_MAX_CONCURRENCY": "8",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, tmp_path / "forked.py", env=environ, stderr=subprocess.PIPE
        )
        api.invoke(WHOLE)
        told = await api.told.get()
        api.answer_next(reply(403))
        _, err = await process.communicate()

    assert json.loads(told.body)["statusCode"] == 500
    assert (process.returncode, api.connections) == (1, 1)
    assert err.endswith(b"The Runtime API answered 403 instead of an invocation\n")


# --- SnapStart -----------------------------------------------------------------------------------


@pytest.fixture
def _hooks_as_before() -> Iterator[None]:
    registered = registry.get_before_snapshot(), registry.get_after_restore()
    saved = [hooks[:] for hooks in registered]
    yield
    for hooks, before in zip(registered, saved, strict=True):
        hooks[:] = before


@pytest.mark.usefixtures("_hooks_as_before")
async def test_an_environment_may_be_warmed_up_by_its_handler_before_the_snapshot() -> None:
    api = Lambda()
    api.answer_next(reply(200))
    api.invoke(URL)
    api.refusals.append(500)
    warm: list[Any] = []

    def restored(settings: RuntimeSettings) -> int:
        handler = LambdaHandler(HELLO)
        registry.register_before_snapshot(lambda: warm.append(handler(WHOLE, Context())["body"]))
        registry.register_after_restore(lambda: asyncio.run(asyncio.sleep(0)))
        return run(handler, settings)

    async with server(api.serve) as address:
        settings = RuntimeSettings(api_address=address, handler="", is_snap_start=True)
        status = await asyncio.to_thread(restored, settings)

    assert (warm, status) == (["hello"], 1)
    assert [await api.asked.get() for _ in range(2)] == [f"GET {PATH}/restore/next", NEXT]
    assert (await api.told.get()).chunks[1:] == [b"hel", b"lo"]


@pytest.mark.usefixtures("_hooks_as_before")
async def test_a_hook_that_fails_ends_the_process_by_its_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    statuses = []
    for register in (registry.register_before_snapshot, registry.register_after_restore):
        registry.get_before_snapshot().clear()
        register(int, "no number")
        api = Lambda()
        api.answer_next(reply(200))
        statuses.append(await exit_status(HELLO, api, is_snap_start=True))

    assert statuses == [64, 65]
    assert capsys.readouterr().err == (
        "lambda-responses stops: a hook before the snapshot failed\n"
        "lambda-responses stops: a hook after the restore failed\n"
    )


async def test_starlette_reads_the_state_of_its_startup() -> None:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"table": "open"}

    async def state(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.table)

    api = Lambda()
    async with looping(Starlette(routes=[Route("/", state)], lifespan=lifespan), api):
        api.invoke(URL)
        told = await api.told.get()

    assert told.chunks[1:] == [b"open"]
