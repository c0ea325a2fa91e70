"""The init of a runtime: the handler that Lambda names, loaded; and its failure, reported."""

import asyncio
import inspect
import sys
import traceback
from importlib import import_module
from typing import Any, Final

from starlette.applications import Starlette

from handler.mount import LambdaHandler
from handler.runtime_api import Failure, RuntimeApi, RuntimeApiError
from handler.runtime_client import Line
from infra.settings import RuntimeSettings, SettingsError


_ASGI_PARAMETERS: Final = 3


class InitError(Exception):
    """The init failed; `failure` is what Lambda is told, and the owner reads in the logs."""

    def __init__(self, kind: str, message: str, trace: tuple[str, ...] = ()) -> None:
        """Take the report."""
        super().__init__(message)
        self.failure = Failure(kind, message, trace)


def load_handler(settings: RuntimeSettings) -> LambdaHandler:
    """Return what `_HANDLER` names (`module.attribute`): a `LambdaHandler`, or an ASGI app.

    Raises `InitError`, whatever went wrong.
    """
    if settings.task_root is not None and settings.task_root not in sys.path:
        sys.path.insert(0, settings.task_root)
    module_name, _, name = settings.handler.replace("/", ".").rpartition(".")
    if not (module_name and name):
        msg = f"The handler is {settings.handler!r}, but it must be module.attribute."
        raise InitError("Runtime.HandlerNotFound", msg)
    try:
        return _handler(getattr(import_module(module_name), name), settings.handler)
    except InitError:
        raise
    except SettingsError as error:  # one sentence says it all
        raise InitError("SettingsError", str(error)) from error
    except BaseException as error:
        trace = tuple(traceback.format_tb(error.__traceback__))
        raise InitError(type(error).__name__, str(error), trace) from error


def _handler(found: Any, reference: str) -> LambdaHandler:
    if isinstance(found, LambdaHandler):
        return found
    if _is_asgi(found):
        return LambdaHandler(found)
    msg = (
        f"The handler {reference} is of type {type(found).__name__}; the streaming loop serves an "
        "ASGI app, or a LambdaHandler (handler.mount) around one."
    )
    raise InitError("Runtime.HandlerNotFound", msg)


def _is_asgi(found: Any) -> bool:
    if isinstance(found, Starlette):
        return True
    call = found if inspect.isfunction(found) else getattr(found, "__call__", None)  # noqa: B004
    if not inspect.iscoroutinefunction(call):
        return False
    return len(inspect.signature(call).parameters) == _ASGI_PARAMETERS


def report_init_error(settings: RuntimeSettings, error: InitError) -> None:
    """Tell Lambda and the log."""
    failure = error.failure
    sys.stderr.write("".join([f"{failure.type}: {failure.message}\n", *failure.trace]))
    sys.stderr.flush()
    asyncio.run(_tell(settings, failure))


async def _tell(settings: RuntimeSettings, failure: Failure) -> None:
    line = Line(settings.api_address)
    try:
        await line.ask(RuntimeApi(settings.api_address).init_error(failure))
    except (OSError, RuntimeApiError):
        sys.stderr.write("The Runtime API could not be told of it.\n")
    finally:
        line.drop()
