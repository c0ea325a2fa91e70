"""`lambda-responses url`: a function URL with an embedded DynamoDB engine, until Ctrl-C."""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import click
from msgspec.structs import replace

from handler.emulator.function_url import FunctionUrl
from handler.emulator.options import Faults, Function
from handler.local import development_keys, engine
from infra.settings import Settings, SettingsError


OWN_HANDLER: Final = "handler.buffered.handler"


def serve(settings: Settings, chosen: Mapping[str, Any]) -> None:
    """Serve until Ctrl-C or SIGTERM; raises `SettingsError` where that cannot work.

    What was `chosen` goes by the names of `Function`'s fields, and of `Faults`'s.
    """
    faults = Faults(**{name: chosen[name] for name in Faults.__struct_fields__ if name in chosen})
    named = {name: chosen[name] for name in Function.__struct_fields__ if name in chosen}
    function = Function(**{"streams": settings.url_streams, **named})
    with engine(settings) as local:
        told = environ(local, function)
        function = replace(function, environ=told, region=local.region or function.region)
        with suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(serve_until_cancelled(local, function, faults))
        click.echo("\nStopped.")


async def serve_until_cancelled(settings: Settings, function: Function, faults: Faults) -> None:
    """Serve a function that is told all that it needs; SIGTERM and SIGHUP cancel, too."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with FunctionUrl(function, faults=faults, port=settings.port, echo=click.echo) as url:
        failure = await url.warm_up()
        if failure is not None:
            msg = f"The function could not be started: {failure.message}"
            raise SettingsError(msg)
        click.echo(banner(url.root, settings, function, faults))
        await asyncio.Event().wait()


def environ(settings: Settings, function: Function) -> dict[str, str]:
    """Return what the function inherits, and what its environments share."""
    return {
        "FUNCTION_URL_MODE": _mode(function),
        "LOG_SENSITIVE": "1",  # one's own machine and one's own words
        "WEBHOOKS_ALLOW_PRIVATE": "1",  # and one's own receivers
        **os.environ,  # noqa: TID251 - passed on, not read
        "AGENT": settings.agent,
        "AWS_SAM_LOCAL": "1",  # the development keys
        "DEMO_DELAY_MS": f"{(settings.demo_delay_s or 0) * 1000:g}",
        "DYNAMODB_ENDPOINT": settings.dynamodb_endpoint or "",
        "TABLE_NAME": settings.table_name or "",
    }


def banner(root: str, settings: Settings, function: Function, faults: Faults) -> str:
    """Return what the command says at its start."""
    is_own = function.handler == OWN_HANDLER
    base_url = f"{root}/v1" if is_own else root
    told = f"""\
lambda-responses is listening on {base_url}

  handler  {function.handler}, served by the streaming loop
  url      {_mode(function)}, as on Lambda with {_lambda(function)}
  faults   {_faults(faults)}
"""
    if not is_own:
        return f"{told}\nCtrl-C stops it.\n"
    return f"""\
{told}  agent    {settings.agent}
  keys     {development_keys()}
  data     {settings.dynamodb_endpoint}, table {settings.table_name}

With curl:

  curl -sN {base_url}/responses -H 'Authorization: Bearer dev-alpha' -H 'Content-Type: application/json' \\
    -d '{{"model": "{settings.model_name}", "input": "Hello!", "stream": true}}'

Ctrl-C stops it. The embedded engine forgets everything then; DYNAMODB_ENDPOINT names one that does not.
"""


def _mode(function: Function) -> str:
    return "RESPONSE_STREAM" if function.streams else "BUFFERED"


def _lambda(function: Function) -> str:
    said = [f"{function.memory_mb} MB", f"{function.timeout_s:g} s"]
    if function.environments > 1:
        said.append(f"{function.environments} environments")
    if function.concurrency > 1:
        said.append(f"{function.concurrency} invocations at a time in each (Managed Instances)")
    said += ["SnapStart"] if function.is_snap_start else []
    said += ["processes frozen while idle"] if function.freezes else []
    return ", ".join(said)


def _faults(faults: Faults) -> str:
    said = []
    if faults.cut_after_bytes is not None:
        said.append(f"replies are cut after {faults.cut_after_bytes} bytes")
    if faults.refuse_after_bytes is not None:
        said.append(f"{faults.refuse_status} after {faults.refuse_after_bytes} bytes of a reply")
    if faults.bytes_per_s is not None:
        said.append(f"replies are read at {faults.bytes_per_s:g} bytes a second")
    if faults.notices_disconnects:
        said.append("the function notices clients that go away")
    return "; ".join(said) or "none"
