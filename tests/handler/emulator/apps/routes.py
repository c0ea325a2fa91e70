"""One app with a route for each thing that a function may do."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send


PIECE = b"x" * 1024


async def gate(request: Request) -> None:
    """Wait until the test lets the app go on: it writes to the pipe that the request names."""
    await asyncio.to_thread(_read_byte, Path(request.headers["gate"]))


def _read_byte(pipe: Path) -> None:
    with pipe.open("rb", buffering=0) as opened:
        opened.read(1)


async def hello(request: Request) -> PlainTextResponse:
    print(f"hello {request.query_params.get('name', '')}")  # noqa: T201 - a line for the logs
    return PlainTextResponse("hello")


async def event(request: Request) -> JSONResponse:
    return JSONResponse(request.scope["aws.event"])


async def process(_request: Request) -> JSONResponse:
    return JSONResponse(os.getpid())


async def environ(_request: Request) -> JSONResponse:
    return JSONResponse({**os.environ})  # noqa: TID251 - that is the question


async def decorated(_request: Request) -> PlainTextResponse:
    response = PlainTextResponse("made", 201, {"x-one": "1"})
    response.headers.append("x-one", "2")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


async def nothing(request: Request) -> PlainTextResponse:
    return PlainTextResponse(status_code=int(request.path_params["status"]))


async def gated(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"first "
        print(f"at the gate {request.url.query}")  # noqa: T201
        await gate(request)
        yield b"second"

    return StreamingResponse(body())


async def sized(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        print("sending")  # noqa: T201
        for _ in range(int(request.path_params["kilobytes"])):
            yield PIECE
        print("all sent")  # noqa: T201

    return StreamingResponse(body())


async def watching(scope: Scope, receive: Receive, send: Send) -> None:
    """Send a little, then tell when there is nobody any more."""
    await receive()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    message = await receive()
    print(message["type"])  # noqa: T201


async def failing(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError(request.url.path)

    return StreamingResponse(body())


async def blocking(request: Request) -> StreamingResponse:
    """Send what is asked for, and then wait without listening to anything, a deadline included."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(int(request.path_params["kilobytes"])):
            yield PIECE
        _read_byte(Path(request.headers["gate"]))

    return StreamingResponse(body())


async def exiting(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await gate(request)
        os._exit(3)

    return StreamingResponse(body())


_MEETING = asyncio.Barrier(3)


async def meeting(_request: Request) -> JSONResponse:
    await _MEETING.wait()
    return JSONResponse(os.getpid())


class Watching:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await watching(scope, receive, send)


app = Starlette(
    routes=[
        Route("/hello", hello),
        Route("/event", event, methods=["GET", "POST", "PUT"]),
        Route("/process", process),
        Route("/environ", environ),
        Route("/decorated", decorated),
        Route("/nothing/{status}", nothing),
        Route("/gated", gated),
        Route("/sized/{kilobytes}", sized),
        Route("/watching", Watching()),
        Route("/failing", failing),
        Route("/blocking/{kilobytes}", blocking),
        Route("/exiting", exiting),
        Route("/meeting", meeting),
    ]
)
