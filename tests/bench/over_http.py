"""Over HTTP (uvicorn on loopback, a raw socket as client): events a second, and the first event."""

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench import wire
from tests.bench.report import Row
from tests.bench.wire import Served


ROUNDS = 12
STREAMS = 12

_SERVERS = {
    "ours": "tests.bench.ours:app",
    "starlette": "tests.bench.floor:app",
    "bare": "tests.bench.floor:bare_app",
}


def measure() -> list[Row]:
    """Return the rows: throughput against bare ASGI, the first event against Starlette."""
    with ExitStack() as stack:
        ports = {name: stack.enter_context(served(app)).port for name, app in _SERVERS.items()}
        rows = []
        for model, bar in (("burst", 2.0), ("yielding", 0.7)):
            rates, firsts = _sample(ports, model)
            what = f"events/s over HTTP, {model} agent"
            rows.append(
                Row(what, rates["ours"], rates["bare"], bar=bar, unit="/s", more_is_better=True)
            )
            bound = 1.3 if model == "burst" else None
            what = f"first event over HTTP, {model} agent"
            rows.append(Row(what, firsts["ours"], firsts["starlette"], bar=bound))
        return rows


def _sample(ports: dict[str, int], model: str) -> tuple[dict[str, float], dict[str, float]]:
    body = json.dumps({"model": model, "input": "hi", "stream": True}).encode()
    asked = wire.request("POST", "/v1/responses", body)
    rates: dict[str, list[float]] = {name: [] for name in ports}
    firsts: dict[str, list[float]] = {name: [] for name in ports}
    for round_number in range(ROUNDS):
        for name, port in ports.items():
            with wire.connected(port) as client:
                reads = [
                    wire.stream(client, asked, b"event: response.created") for _ in range(STREAMS)
                ]
            if round_number:
                rates[name].append(
                    sum(read.events for read in reads) / sum(read.seconds for read in reads)
                )
                firsts[name].append(statistics.median(read.first_s * 1e6 for read in reads))
    return (
        {name: statistics.median(values) for name, values in rates.items()},
        {name: statistics.median(values) for name, values in firsts.items()},
    )


@contextmanager
def served(app: str) -> Iterator[Served]:
    """Serve the app by uvicorn on a free port, and stop the process at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port)]
    options = ["--loop", "asyncio", "--http", "h11", "--no-access-log", "--log-level", "error"]
    process = subprocess.Popen([*command, *options])
    try:
        _wait_for(port, process)
        yield Served(port, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise ChildProcessError(process.args)
