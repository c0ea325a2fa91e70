"""The local function URL in a process of its own; as a program: `python -m tests.bench.function_url HANDLER N`."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from handler.emulator.function_url import FunctionUrl
from handler.emulator.options import Function
from tests.bench.wire import Served
from tests.infra.engines import ROOT


@contextmanager
def serving(handler: str, concurrency: int = 1) -> Iterator[Served]:
    """Serve the handler by the loop, behind a function URL, to the end."""
    command = [sys.executable, "-m", "tests.bench.function_url", handler, str(concurrency)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            told = json.loads(process.stdout.readline() if process.stdout else "")
            yield Served(told["port"], told["pid"])
        finally:
            process.terminate()


async def _serve(handler: str, concurrency: int) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    function = Function(handler=handler, task_root=ROOT, concurrency=concurrency)
    async with FunctionUrl(function) as url:
        await url.warm_up()
        told = {"port": urlsplit(url.root).port, "pid": url.pids[0]}
        sys.stdout.write(f"{json.dumps(told)}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(asyncio.CancelledError):
        asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
