"""Streams through the local function URL: how fast, against uvicorn; and what they take of the loop's process."""

import json
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import function_url, over_http, wire
from tests.bench.agents import IDLE_S, KILOBYTES
from tests.bench.raw import CHUNK
from tests.bench.report import Row
from tests.bench.wire import Read, Served
from tests.infra.engines import NoEngineError


ROUNDS: Final = 6
AT_A_TIME: Final = 8

_RAW: Final = "tests.bench.raw"
_OURS: Final = "tests.bench.ours"
_BODY_BYTES: Final = 200_000_000
_MB: Final = 1024  # kilobytes


@dataclass(frozen=True)
class Sides:
    """One app twice: behind the function URL, by the loop, and by uvicorn."""

    url: Served
    uvicorn: Served

    @classmethod
    def of(cls, stack: ExitStack, module: str, app: str = "app") -> "Sides":
        """Serve an app to the end of the stack."""
        url = stack.enter_context(function_url.serving(f"{module}.{app}"))
        return cls(url, stack.enter_context(over_http.served(f"{module}:{app}")))

    def compare(
        self, asked: bytes, told: Callable[[Read], float], times: int = 1
    ) -> tuple[float, float]:
        """Ask both in turn; return the medians of what is told of a reply."""
        samples: list[list[float]] = [[], []]
        for round_number in range(ROUNDS):
            for kept, side in zip(samples, (self.url, self.uvicorn), strict=True):
                with wire.connected(side.port) as client:
                    read = [told(wire.stream(client, asked)) for _ in range(times)]
                if round_number:
                    kept.append(statistics.median(read))
        return statistics.median(samples[0]), statistics.median(samples[1])


def measure() -> list[Row]:
    """Return the rows: time to the first byte, bytes and events, an idle stream, memory, many at once."""
    if not Path("/proc/self/schedstat").exists():
        raise NoEngineError("there is no /proc, which tells CPU time and memory")
    with ExitStack() as stack:
        raw, ours = Sides.of(stack, _RAW), Sides.of(stack, _OURS)
        rows = [
            _first_byte(raw),
            _bytes(raw),
            _events(ours),
            _growth(ours),
            _body(raw),
            _text(ours),
        ]
    with ExitStack() as stack:
        rows.append(_idle(Sides.of(stack, _OURS, "beating_app")))
    return [*rows, _at_once()]


def _first_byte(sides: Sides) -> Row:
    asked = wire.request("GET", "/1")
    took = sides.compare(asked, lambda read: read.first_s * 1e6, times=40)
    return Row("first byte, by uvicorn's", *took)


def _bytes(sides: Sides) -> Row:
    asked = wire.request("GET", "/400")
    rates = sides.compare(asked, lambda read: read.size / read.seconds / 1e6)
    return Row("MB/s of a raw app, by uvicorn's", *rates, unit="MB/s", more_is_better=True)


def _events(sides: Sides) -> Row:
    rates = sides.compare(_responses("yielding"), lambda read: read.events / read.seconds, times=12)
    return Row("events/s, yielding agent, by uvicorn's", *rates, unit="/s", more_is_better=True)


def _growth(sides: Sides) -> Row:
    asked = _responses("echo", store=False)
    with wire.connected(sides.url.port) as client:
        for _ in range(200):
            wire.stream(client, asked)
        before = _memory_kb(sides.url.pid, "VmRSS")
        for _ in range(1000):
            wire.stream(client, asked)
    grown = _memory_kb(sides.url.pid, "VmRSS") - before
    return Row("memory over 1,000 invocations, by 2 MB", grown, 2 * _MB, bar=1.0, unit="KB")


def _body(sides: Sides) -> Row:
    asked = wire.request("GET", f"/{_BODY_BYTES // len(CHUNK) + 1}")
    grown = _peak_kb(sides.url, wire.request("GET", "/10"), asked)
    return Row("memory of a body of 200 MB, by 8 MB", grown, 8 * _MB, bar=1.0, unit="KB")


def _text(sides: Sides) -> Row:
    # What is stored is kept, and here in this process.
    before_that, asked = (_responses(model, store=False) for model in ("yielding", "large"))
    grown = _peak_kb(sides.url, before_that, asked)
    return Row("memory of a stream of 4 MB text, by the text", grown, KILOBYTES, bar=4.0, unit="KB")


def _idle(sides: Sides) -> Row:
    """Compare CPU time per second while the agent waits and keep-alives are sent."""
    asked = _responses("waiting", store=False)
    with wire.connected(sides.url.port) as one, wire.connected(sides.uvicorn.port) as other:
        reading = [
            threading.Thread(target=wire.stream, args=(each, asked)) for each in (one, other)
        ]
        for thread in reading:
            thread.start()
        time.sleep(1)
        pids = (sides.url.pid, sides.uvicorn.pid)
        begun, before = time.perf_counter(), [_cpu_ms(pid) for pid in pids]
        time.sleep(IDLE_S - 2)
        spent = [_cpu_ms(pid) - ms for pid, ms in zip(pids, before, strict=True)]
        seconds = time.perf_counter() - begun
        for thread in reading:
            thread.join()
    loop, floor = (ms / seconds for ms in spent)
    return Row("CPU of an idle stream a second, by uvicorn's", loop, floor, unit="ms")


def _at_once() -> Row:
    asked = wire.request("GET", "/second")

    def ask(port: int) -> None:
        with wire.connected(port) as client:
            wire.stream(client, asked)

    with function_url.serving(f"{_RAW}.app", AT_A_TIME) as url:
        ask(url.port)
        begun = time.perf_counter()
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(ask, [url.port] * AT_A_TIME))
        took = time.perf_counter() - begun
    what = f"{AT_A_TIME} streams of a second at once, by 1 s"
    return Row(what, took * 1000, 1000, bar=1.1, unit="ms")


def _responses(model: str, **more: bool) -> bytes:
    body = {"model": model, "input": "hi", "stream": True, **more}
    return wire.request("POST", "/v1/responses", json.dumps(body).encode())


def _peak_kb(url: Served, before_that: bytes, asked: bytes) -> float:
    """Return by how much the loop's memory grows while it answers, at most."""
    with wire.connected(url.port) as client:
        wire.stream(client, before_that)
        Path(f"/proc/{url.pid}/clear_refs").write_text("5")  # the peak is what there is now
        before = _memory_kb(url.pid, "VmRSS")
        wire.stream(client, asked)
    return _memory_kb(url.pid, "VmHWM") - before


def _memory_kb(pid: int, what: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return float(line.split()[1])
    raise AssertionError(what)


def _cpu_ms(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e6
