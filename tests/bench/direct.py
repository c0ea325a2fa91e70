"""In process: a Mangum call, and the CPU time of a streamed event, ours and the floor's in turn."""

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from mangum import Mangum
from starlette.types import ASGIApp, Message

from handler.mount import LambdaHandler
from tests.bench import floor, ours
from tests.bench.report import Row


ROUNDS = 15
EVENTS = 210  # of one stream: 200 deltas and the rest of the order

_PLAIN = {"model": "echo", "input": "hi there"}
_HISTORY = {
    "model": "echo",
    "input": [
        {"role": ("user", "assistant")[i % 2], "content": f"turn {i}: " + "lorem ipsum dolor " * 4}
        for i in range(50)
    ]
    + [{"role": "user", "content": "hi there"}],
}


def measure() -> list[Row]:
    """Return the rows, each with the bar that the issue sets."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    rows = [
        Row("Mangum call, small input", *_mangum(_PLAIN, 60), bar=2.0),
        Row("Mangum call, 50 items of input", *_mangum(_HISTORY, 30)),
    ]
    for model, bar in (("burst", 1.3), ("yielding", 1.5)):
        rows.append(Row(f"CPU per streamed event, {model} agent", *_streamed(loop, model), bar=bar))
    return rows


def _mangum(body: dict[str, Any], calls: int) -> tuple[float, float]:
    """Return microseconds a call: ours, the floor's."""
    event = _function_url_event(json.dumps(body))
    mounted = LambdaHandler(ours.app)
    handlers: list[Callable[[Any, Any], dict[str, Any]]] = [
        mounted,
        Mangum(floor.app, lifespan="off"),
    ]
    samples: list[list[float]] = [[], []]
    for round_number in range(ROUNDS):
        for kept, handler in zip(samples, handlers, strict=True):
            begun = time.perf_counter()
            for _ in range(calls):
                reply = handler(event, None)
            took = (time.perf_counter() - begun) / calls * 1e6
            if "hi there" not in reply["body"]:
                raise AssertionError(reply)
            if round_number:
                kept.append(took)
    mounted.close()
    return statistics.median(samples[0]), statistics.median(samples[1])


def _streamed(loop: asyncio.AbstractEventLoop, model: str) -> tuple[float, float]:
    body = json.dumps({"model": model, "input": "hi", "stream": True}).encode()
    samples: list[list[float]] = [[], []]
    for round_number in range(ROUNDS):
        for kept, app in zip(samples, (ours.app, floor.app), strict=True):
            begun = time.process_time()
            for _ in range(10):
                read = loop.run_until_complete(_call(app, body))
            took = (time.process_time() - begun) / 10 / EVENTS * 1e6
            if read.count(b'"response.output_text.delta"') != 200:
                raise AssertionError(read[:300])
            if round_number:
                kept.append(took)
    return statistics.median(samples[0]), statistics.median(samples[1])


async def _call(app: ASGIApp, body: bytes) -> bytes:
    asked, gone = False, asyncio.Event()
    read: list[bytes] = []

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await gone.wait()  # the client stays to the end
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        read.append(message.get("body", b""))

    await app(_scope(body), receive, send)
    return b"".join(read)


def _scope(body: bytes) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/responses",
        "raw_path": b"/v1/responses",
        "query_string": b"",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"authorization", f"Bearer {ours.KEY}".encode()),
        ],
    }


def _function_url_event(body: str) -> dict[str, Any]:
    http = {
        "method": "POST",
        "path": "/v1/responses",
        "protocol": "HTTP/1.1",
        "sourceIp": "1.2.3.4",
    }
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/v1/responses",
        "rawQueryString": "",
        "headers": {
            "host": "x.lambda-url.eu-central-1.on.aws",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "authorization": f"Bearer {ours.KEY}",
            "x-forwarded-proto": "https",
            "x-forwarded-port": "443",
        },
        "requestContext": {"domainName": "x", "requestId": "r", "stage": "$default", "http": http},
        "body": body,
        "isBase64Encoded": False,
    }
