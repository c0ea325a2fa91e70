"""Over HTTP (uvicorn on loopback, a raw socket as client): events a second, and the first event."""

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench import ours
from tests.bench.report import Row


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
        ports = {name: stack.enter_context(_server(app)) for name, app in _SERVERS.items()}
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
    rates: dict[str, list[float]] = {name: [] for name in ports}
    firsts: dict[str, list[float]] = {name: [] for name in ports}
    for round_number in range(ROUNDS):
        for name, port in ports.items():
            with _connected(port) as client:
                samples = [_stream(client, body) for _ in range(STREAMS)]
            if round_number:
                rates[name].append(
                    sum(events for events, _, _ in samples) / sum(s for _, s, _ in samples)
                )
                firsts[name].append(statistics.median(first * 1e6 for _, _, first in samples))
    return (
        {name: statistics.median(values) for name, values in rates.items()},
        {name: statistics.median(values) for name, values in firsts.items()},
    )


def _stream(client: socket.socket, body: bytes) -> tuple[int, float, float]:
    """Return the events of one stream, its seconds, and the seconds to its first event."""
    head = (
        "POST /v1/responses HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {ours.KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    begun = time.perf_counter()
    client.sendall(head.encode() + body)
    read, first = bytearray(), 0.0
    while not read.endswith(b"\r\n0\r\n\r\n"):
        piece = client.recv(1 << 18)
        if not piece:
            raise ConnectionError(bytes(read[:300]))
        read += piece
        if not first and b"event: response.created" in read:
            first = time.perf_counter() - begun
    return read.count(b"\nevent: "), time.perf_counter() - begun, first


@contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


@contextmanager
def _server(app: str) -> Iterator[int]:
    """Serve the app on a free port, and stop the process at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port)]
    options = ["--loop", "asyncio", "--http", "h11", "--no-access-log", "--log-level", "error"]
    process = subprocess.Popen([*command, *options])
    try:
        _wait_for(port, process)
        yield port
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
