"""AWS's own emulator (RIE), which the SAM CLI's package brings along, with a runtime of ours or Lambda's under it.

It hands a reply out whole and as it was written: prelude, delimiter and body. On Managed Instances it
starts nothing but a `bootstrap` in folders of the system's, and as a user of its own.
"""

import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx

from tests.infra.engines import ROOT, NoEngineError


PACKAGE: Final = "aws-sam-cli==1.170.0"
TOOLS: Final = ROOT / ".tools" / "rie"
EMULATOR: Final = TOOLS / f"aws-lambda-rie-{PACKAGE.rpartition('=')[2]}"
PATH: Final = "/2015-03-31/functions/function/invocations"
DELIMITER: Final = b"\0" * 8

LOOP: Final = (str(ROOT / "handler" / "exec-wrapper"), sys.executable, "/var/runtime/bootstrap.py")
"""The streaming loop, as Lambda starts it by `AWS_LAMBDA_EXEC_WRAPPER`."""

LAMBDAS_OWN: Final = (sys.executable, "-m", "awslambdaric")
"""The runtime that Lambda has for Python."""

_ARCHITECTURES: Final = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_START_S: Final = 10.0
# Mounts are this process's own: /var gets the bootstrap. The emulator starts it as a user who may
# not read these files, so the right to read all files outlives the change of user.
_PRIVATELY: Final = (
    *("unshare", "--mount", "setpriv", "--securebits=+no_setuid_fixup"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    *("sh", "-c", 'mount -t overlay overlay -o "lowerdir=$0:/var" /var && exec "$@"'),
)


@dataclass(frozen=True)
class Answer:
    """What the emulator's caller gets."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def json(self) -> Any:
        """The whole of a buffered reply."""
        return json.loads(self.body)

    @property
    def prelude(self) -> dict[str, Any]:
        """The prelude of a streamed reply."""
        prelude: dict[str, Any] = json.loads(self.body.partition(DELIMITER)[0])
        return prelude

    @property
    def streamed(self) -> bytes:
        """The body of a streamed reply."""
        _, delimiter, body = self.body.partition(DELIMITER)
        assert delimiter, self.body
        return body


@dataclass(frozen=True)
class Emulator:
    """A running emulator: its port on 127.0.0.1, and what it and its runtime have written."""

    port: int
    client: httpx.Client
    log_file: Path

    def invoke(self, event: Any) -> Answer:
        """Have an event answered; one at a time, or the emulator dies, but on Managed Instances."""
        answer = self.client.post(PATH, json=event)
        return Answer(answer.status_code, answer.headers, answer.content)

    @property
    def log(self) -> str:
        """All that was written to stdout and stderr."""
        return self.log_file.read_text()


@contextmanager
def running(runtime: Sequence[str], handler: str, **environ: str) -> Iterator[Emulator]:
    """Start the emulator, which starts the runtime at its first invocation."""
    with (
        TemporaryDirectory() as folder,
        _emulator((*runtime, handler), folder, environ) as emulator,
    ):
        yield emulator


@contextmanager
def managed_instance(handler: str, concurrency: int, **environ: str) -> Iterator[Emulator]:
    """Start the emulator as of Managed Instances, with the loop; raises `NoEngineError`."""
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        raise NoEngineError("RIE for Managed Instances needs root, unshare and setpriv")
    environ["AWS_LAMBDA_FUNCTION_HANDLER"] = handler
    environ["AWS_LAMBDA_MAX_CONCURRENCY"] = str(concurrency)
    with TemporaryDirectory() as folder:
        bootstrap = Path(folder, "task", "bootstrap")
        bootstrap.parent.mkdir()
        bootstrap.write_text(f"#!/bin/sh\nexec {shlex.join(LOOP)}\n")
        Path(folder).chmod(0o755)
        bootstrap.chmod(0o755)
        privately = (*_PRIVATELY, folder)
        tried = subprocess.run([*privately, "true"], check=False, capture_output=True, text=True)
        if tried.returncode:
            raise NoEngineError(f"there can be no private mount here ({tried.stderr.strip()})")
        with _emulator(("bootstrap",), folder, environ, privately) as emulator:
            yield emulator


@contextmanager
def _emulator(
    command: Sequence[str],
    folder: str,
    environ: Mapping[str, str],
    before: Sequence[str] = (),
) -> Iterator[Emulator]:
    _install()
    port, api_port = _free_ports()
    flags = ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    flags += ["--runtime-api-address", f"127.0.0.1:{api_port}"]
    log_file = Path(folder, "log")
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            [*before, EMULATOR, *flags, *command],
            cwd=ROOT,
            env={"PATH": os.defpath, "AWS_LAMBDA_FUNCTION_TIMEOUT": "20", **environ},
            stdout=log,
            stderr=log,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            _wait_for(port, process)
            yield Emulator(port, client, log_file)
        finally:
            process.terminate()  # and it ends its runtime


def _free_ports() -> tuple[int, int]:
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as one, socket.create_server(here) as other:
        return one.getsockname()[1], other.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)  # it does not say when it listens
        else:
            return
    raise ChildProcessError(process.args)


def _install() -> None:
    if EMULATOR.exists():
        return
    machine = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        raise NoEngineError(f"RIE does not run on {sys.platform}, {platform.machine()}")
    TOOLS.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=TOOLS) as folder:
        _download(folder)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            name = f"samcli/local/rapid/aws-lambda-rie-{machine}"
            extracted = Path(package.extract(name, folder))
        extracted.chmod(0o755)
        extracted.replace(EMULATOR)


def _download(folder: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--retries",
        "1",
        "--timeout",
        "10",
        "--dest",
        folder,
    ]
    try:
        subprocess.run(
            [*pip, *options, PACKAGE], check=True, capture_output=True, timeout=120, text=True
        )
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NoEngineError(f"pip could not get {PACKAGE} ({reason[:120]})") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NoEngineError(f"pip could not get {PACKAGE} ({type(error).__name__})") from error


if __name__ == "__main__":  # what `make` runs as it sets up, so that the tests need not
    try:
        _install()
    except NoEngineError as missing:
        sys.stdout.write(f"Without RIE, since {missing}: the tests on it will be skipped.\n")
