"""`sam local start-api` with a table: an engine where the containers reach it, and warm containers."""

import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from handler.local import HOST, engine
from infra.settings import Settings, SettingsError


BUILD_FOLDER: Final = ".aws-sam/local"


# What runs sam and docker is excluded from coverage: `make start-api` tries it where they are.
def start_api(settings: Settings, extra: Sequence[str]) -> int:  # pragma: no cover
    """Build, and serve on 127.0.0.1 until Ctrl-C; raises `SettingsError` where a tool is missing."""
    for tool, use in (("sam", "pip install aws-sam-cli"), ("docker", "see docs.docker.com")):
        if shutil.which(tool) is None:
            msg = f"start-api needs {tool}, which is not installed ({use})."
            raise SettingsError(msg)
    architecture = "arm64" if platform.machine() in {"arm64", "aarch64"} else "x86_64"
    built = subprocess.run(build_command(architecture), check=False)
    if built.returncode:
        return built.returncode
    bind, reach = _engine_hosts()
    with engine(settings, bind) as local, tempfile.TemporaryDirectory() as folder:
        endpoint = (local.dynamodb_endpoint or "").replace(bind, reach)
        variables = Path(folder, "variables.json")
        found = {"DYNAMODB_ENDPOINT": endpoint, "TABLE_NAME": local.table_name}
        variables.write_text(json.dumps({"Parameters": found}))
        sys.stdout.write(f"The table's engine is {endpoint} for the containers.\n")
        sys.stdout.write(
            "The keys are dev-alpha, dev-beta and dev-agency (a delegate); a streamed reply comes whole.\n"
        )
        sys.stdout.flush()
        return _serve(serve_command(architecture, local, variables, extra))


def build_command(architecture: str) -> list[str]:
    """Return the build for this machine: a container of another architecture would not run here."""
    overrides = ["--parameter-overrides", f"Architecture={architecture}"]
    return ["sam", "build", "--build-dir", BUILD_FOLDER, *overrides]


def serve_command(
    architecture: str, settings: Settings, variables: Path, extra: Sequence[str]
) -> list[str]:
    """Return the server; warm containers, since a cold one per request takes half a second."""
    return [
        *["sam", "local", "start-api", "--template", f"{BUILD_FOLDER}/template.yaml"],
        *["--parameter-overrides", f"Architecture={architecture}"],
        *["--host", HOST, "--port", str(settings.port)],
        *["--region", settings.region or ""],  # where the embedded engine has the table
        *["--warm-containers", "EAGER", "--env-vars", str(variables)],
        *extra,
    ]


def _engine_hosts() -> tuple[str, str]:  # pragma: no cover
    """Return where the engine listens, and by which name containers reach it.

    A Linux container reaches its host by the bridge's address; Docker Desktop forwards a name.
    """
    if sys.platform != "linux":
        return HOST, "host.docker.internal"
    inspect = ["docker", "network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}"]
    found = subprocess.run(inspect, capture_output=True, text=True, check=False)
    gateway = found.stdout.strip()
    if found.returncode or not gateway:
        msg = f"start-api found no Docker bridge network: {found.stderr.strip() or 'it has no gateway'}."
        raise SettingsError(msg)
    return gateway, gateway


def _serve(command: Sequence[str]) -> int:  # pragma: no cover
    with subprocess.Popen(command) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        while True:
            try:
                return server.wait()
            except KeyboardInterrupt:  # the terminal has told sam, too, which stops its containers
                continue
