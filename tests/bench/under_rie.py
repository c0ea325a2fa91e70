"""Under AWS's emulator: the loop against Lambda's own runtime, and many streams at once."""

import json
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from tests.bench import ours, wire
from tests.bench.raw import REPLY
from tests.bench.report import Row
from tests.e2e import rie
from tests.e2e.rie import LAMBDAS_OWN, LOOP
from tests.handler.events import function_url, http_api


ROUNDS: Final = 26
CALLS: Final = 40
AT_A_TIME: Final = 8

_ASKED: Final = b'{"model": "echo", "input": "hi there"}'
_HEADERS: Final = {
    "content-type": "application/json",
    "authorization": f"Bearer {ours.KEY}",
}
_BY_URL: Final = function_url("POST", "/v1/responses", _HEADERS, _ASKED)
_BY_HTTP_API: Final = http_api("POST", "/v1/responses", _HEADERS, _ASKED)


@dataclass(frozen=True)
class Side:
    """A runtime with a handler, what it is asked, and what it has to say."""

    runtime: Sequence[str]
    handler: str
    event: Mapping[str, Any]
    said: bytes = b"hi there"


@dataclass(frozen=True)
class Took:
    """Microseconds of one invocation: at the median, and of the slowest in a hundred."""

    p50: float
    p99: float


SIDES: Final[Mapping[str, Side]] = {
    "loop, whole": Side(LOOP, "tests.bench.ours.app", _BY_HTTP_API),
    "Mangum": Side(LAMBDAS_OWN, "tests.bench.by_mangum.handler", _BY_HTTP_API),
    "loop, streamed": Side(LOOP, "tests.bench.ours.app", _BY_URL),
    "loop, bare": Side(LOOP, "tests.bench.raw.app", _BY_URL, b"ok"),
    "bare": Side(LAMBDAS_OWN, "tests.bench.raw.handler", _BY_URL, b"ok"),
}


def measure() -> list[Row]:
    """Return the rows: whole replies of one app, and streamed ones, for which Lambda has nothing."""
    took = _sample()
    return [
        *_rows("JSON reply, whole, by Mangum's", took["loop, whole"], took["Mangum"], 0.9),
        *_rows("bare reply, streamed, by a bare handler's", took["loop, bare"], took["bare"], 1.5),
        *_rows("JSON reply, streamed, by a bare handler's", took["loop, streamed"], took["bare"]),
    ]


def measure_instance() -> list[Row]:
    """Return the row of streams at the same time, on Managed Instances."""
    return [_at_once()]


def _rows(what: str, ours: Took, floor: Took, bar: float | None = None) -> list[Row]:
    return [
        Row(f"{what} (p50)", ours.p50, floor.p50, bar=bar),
        Row(f"{what} (p99)", ours.p99, floor.p99),
    ]


def _sample() -> dict[str, Took]:
    samples: dict[str, list[list[float]]] = {name: [] for name in SIDES}
    with ExitStack() as stack:
        clients = {}
        for name, side in SIDES.items():
            emulator = stack.enter_context(rie.running(side.runtime, side.handler))
            clients[name] = stack.enter_context(wire.connected(emulator.port))
        for _ in range(ROUNDS):
            for name, client in clients.items():
                samples[name].append(_invoke(client, SIDES[name]))
    return {name: _took(rounds[1:]) for name, rounds in samples.items()}


def _invoke(client: socket.socket, side: Side) -> list[float]:
    asked = wire.request("POST", rie.PATH, json.dumps(side.event).encode())
    took = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        reply = wire.exchange(client, asked)
        took.append((time.perf_counter() - begun) * 1e6)
        if side.said not in reply:
            raise AssertionError(reply)
    return took


def _took(rounds: list[list[float]]) -> Took:
    every = sorted(sample for samples in rounds for sample in samples)
    return Took(statistics.median(map(statistics.median, rounds)), every[len(every) * 99 // 100])


def _at_once() -> Row:
    event = json.dumps(function_url("GET", "/second")).encode()
    asked = wire.request("POST", rie.PATH, event)

    def ask(client: socket.socket) -> None:
        if wire.exchange(client, asked).count(REPLY) != 10:
            raise AssertionError("a stream is not whole")

    with ExitStack() as stack:
        emulator = stack.enter_context(rie.managed_instance("tests.bench.raw.app", AT_A_TIME))
        clients = [stack.enter_context(wire.connected(emulator.port)) for _ in range(AT_A_TIME)]
        ask(clients[0])
        begun = time.perf_counter()
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(ask, clients))
        took = time.perf_counter() - begun
    what = f"{AT_A_TIME} streams of a second at once, Managed Instances"
    return Row(what, took * 1000, 1000, bar=1.1, unit="ms")
