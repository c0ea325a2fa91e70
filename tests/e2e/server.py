"""The local server as users start it: a process of its own on a free port of 127.0.0.1."""

import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


START_S = 30.0


@contextmanager
def running(folder: Path | None = None, /, **environ: str) -> Iterator[str]:
    """Start `lambda-responses run` in a folder (default: this one); give its root URL once it is ready.

    It is stopped at the end.
    """
    with process(folder, **environ) as (root, _):
        yield root


@contextmanager
def process(
    folder: Path | None = None, /, **environ: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start `lambda-responses run`; give its root URL, and the process, which a test may kill."""
    command = [sys.executable, "-c", "from handler.cli import main; main(['run'])"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env={"PORT": "0", "DEMO_DELAY_MS": "0", **environ},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            root = _root_url(server)
            # It listens before it says so, and answers once its start-up is through.
            httpx.get(f"{root}/readiness", timeout=START_S).raise_for_status()
            yield root, server
        finally:
            server.terminate()
            server.communicate(timeout=10)


def _root_url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(server.stdout, selectors.EVENT_READ)
        assert selector.select(START_S), "the server did not say where it listens"
    first = server.stdout.readline()
    return first.rpartition(" ")[2].strip().removesuffix("/v1")
