"""The handler that Lambda names: what is served, and what is said where nothing can be."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.init import InitError, load_handler, report_init_error
from handler.mount import LambdaHandler
from handler.runtime_api import Failure
from infra.settings import RuntimeSettings
from tests.handler.runtime_server import PATH, Lambda, read_request, server


APPS = """
from functools import partial

from starlette.applications import Starlette

from handler.mount import LambdaHandler
from infra.settings import SettingsError


async def function(scope, receive, send):
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


class Callable:
    async def __call__(self, scope, receive, send):
        await function(scope, receive, send)


async def fails(scope, receive, send):
    await receive()
    raise LookupError("no table")


def lambda_function(event, context): ...
async def worker(event, context): ...
def sync(scope, receive, send): ...


starlette = Starlette()
of_a_class = Callable()
a_mapping = {"app": function}
part = partial(function)


def __getattr__(name):
    if name == "unset":
        raise SettingsError("The setting TABLE_NAME is 'x', but it must be longer.")
    if name == "exits":
        raise SystemExit(3)
    if name == "mount":
        return LambdaHandler(function)
    raise AttributeError(f"no {name} here")
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder of code that is imported from, and forgotten again."""
    paths, modules = sys.path[:], set(sys.modules)
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "apps.py").write_text(APPS)
    (tmp_path / "task" / "broken.py").write_text("def broken(:\n")
    (tmp_path / "task" / "raising.py").write_text("nothing = {}\nnothing['my key']\n")
    yield tmp_path
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def loaded(root: Path, handler: str) -> LambdaHandler:
    settings = RuntimeSettings(api_address="h:1", handler=handler, task_root=str(root))
    try:
        return load_handler(settings)
    finally:
        asyncio.set_event_loop(None)


@pytest.mark.parametrize("name", ["function", "of_a_class", "starlette", "mount"])
@pytest.mark.parametrize("module", ["task.apps", "task/apps"])
def test_an_app_or_a_handler_is_loaded(root: Path, module: str, name: str) -> None:
    handler = loaded(root, f"{module}.{name}")

    assert isinstance(handler, LambdaHandler)
    assert sys.path[0] == str(root)
    handler.close()
    asyncio.set_event_loop(None)


def test_a_handler_is_served_as_it_is(root: Path) -> None:
    handler = loaded(root, "task.apps.mount")
    sys.modules["task.apps"].mounted = handler  # type: ignore[attr-defined]

    again = loaded(root, "task.apps.mounted")

    assert again is handler
    assert sys.path.count(str(root)) == 1
    handler.close()
    asyncio.set_event_loop(None)


def test_without_a_folder_the_path_stays_as_it_is() -> None:
    before = sys.path[:]

    with pytest.raises(InitError):
        load_handler(RuntimeSettings(api_address="h:1", handler="no_such_module.app"))

    assert sys.path == before


@pytest.mark.parametrize(
    ("handler", "kind", "message"),
    [
        ("task.nowhere.app", "ModuleNotFoundError", "No module named 'task.nowhere'"),
        ("task.apps.missing", "AttributeError", "no missing here"),
        ("task.broken.app", "SyntaxError", "invalid syntax (broken.py, line 1)"),
        ("task.raising.app", "KeyError", "'my key'"),
        ("task.apps.exits", "SystemExit", "3"),
        ("task.apps.fails", "LookupError", "no table"),
    ],
)
def test_what_cannot_be_loaded_is_an_init_error_with_its_cause(
    root: Path, handler: str, kind: str, message: str
) -> None:
    with pytest.raises(InitError) as raised:
        loaded(root, handler)

    failure = raised.value.failure
    assert (failure.type, failure.message, str(raised.value)) == (kind, message, message)
    assert failure.trace
    assert all(line.startswith("  File ") for line in failure.trace)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lambda_function", "function"),
        ("worker", "function"),
        ("sync", "function"),
        ("Callable", "type"),
        ("a_mapping", "dict"),
        ("part", "partial"),
    ],
)
def test_what_is_no_app_is_named(root: Path, name: str, kind: str) -> None:
    with pytest.raises(InitError) as raised:
        loaded(root, f"task.apps.{name}")

    assert raised.value.failure.type == "Runtime.HandlerNotFound"
    assert raised.value.failure.message == (
        f"The handler task.apps.{name} is of type {kind}; the streaming loop serves an ASGI app, or a "
        "LambdaHandler (handler.mount) around one."
    )


def test_a_wrong_setting_is_its_one_sentence(root: Path) -> None:
    with pytest.raises(InitError) as raised:
        loaded(root, "task.apps.unset")

    said = "The setting TABLE_NAME is 'x', but it must be longer."
    failure = raised.value.failure
    assert (failure.type, failure.message, failure.trace) == ("SettingsError", said, ())


ERROR = InitError("LookupError", "no table", ("  File one\n", "  File two\n"))


async def reported(address: str) -> None:
    settings = RuntimeSettings(api_address=address, handler="")
    await asyncio.to_thread(report_init_error, settings, ERROR)


@pytest.mark.anyio
async def test_an_init_error_is_told_to_lambda_and_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    api = Lambda()

    async with server(api.serve) as address:
        await reported(address)
        told = await api.told.get()

    assert told.target == f"POST {PATH}/init/error"
    assert told.headers["lambda-runtime-function-error-type"] == "LookupError"
    assert json.loads(told.body) == {
        "errorMessage": "no table",
        "errorType": "LookupError",
        "stackTrace": ["  File one\n", "  File two\n"],
    }
    assert "LookupError: no table" in capsys.readouterr().err


@pytest.mark.anyio
async def test_a_runtime_api_that_cannot_be_told_does_not_hide_the_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"220 ESMTP\r\n\r\n")

    async with server(gibberish) as address:
        await reported(address)
    await reported(address)  # nobody is there any more

    said = capsys.readouterr().err
    assert said.count("LookupError: no table") == 2
    assert said.count("  File one\n  File two\n") == 2
    assert said.count("The Runtime API could not be told of it.\n") == 2


@pytest.mark.parametrize("handler", ["app", "", ".app", "app."])
def test_a_handler_that_is_no_name_of_an_attribute_is_told_how_to_be_written(
    root: Path, handler: str
) -> None:
    with pytest.raises(InitError) as raised:
        loaded(root, handler)

    said = f"The handler is {handler!r}, but it must be module.attribute."
    assert raised.value.failure == Failure("Runtime.HandlerNotFound", said)
