"""DynamoDB engines for tests: dynalite in a process of its own, moto in this one."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.dynamodb.client import make_client


TABLE = "responses"
"""The table that all tests of an engine share; each has tenant tags of a secret of its own."""

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / ".tools" / "dynalite" / "node_modules" / "dynalite"
RUNNER = ROOT / "tests" / "tools" / "dynalite.js"
INSTALL = (
    *("install", "dynalite@4", "--no-audit", "--no-fund", "--prefix", ".tools/dynalite"),
    *("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"),
)


class NoEngineError(Exception):
    """An engine cannot be had on this machine; says why."""


@contextmanager
def dynalite() -> Iterator[str]:
    """Run dynalite on loopback, installed where need be, and yield its endpoint."""
    node = shutil.which("node")
    if node is None:
        raise NoEngineError("dynalite needs node, which is not on this machine")
    _install()
    with subprocess.Popen(
        [node, RUNNER, PACKAGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            if not port:
                raise NoEngineError("dynalite did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _install() -> None:
    if PACKAGE.exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise NoEngineError("dynalite is installed by npm, which is not on this machine")
    PACKAGE.parents[1].mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            [npm, *INSTALL], cwd=ROOT, check=True, capture_output=True, timeout=120, text=True
        )
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[0]
        raise NoEngineError(f"npm could not install dynalite ({reason[:120]})") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NoEngineError(f"npm could not install dynalite ({type(error).__name__})") from error


@contextmanager
def connected(region: str | None, endpoint: str | None, *, attempts: int = 4) -> Iterator[Any]:
    """Make a client, and close its connections at the end."""
    client = make_client(region, endpoint, attempts=attempts)
    try:
        yield client
    finally:
        client.close()


if __name__ == "__main__":  # what `make` runs as it sets up, so that the tests need not
    try:
        _install()
    except NoEngineError as missing:
        sys.stdout.write(f"Without dynalite, since {missing}: the tests on it will be skipped.\n")
