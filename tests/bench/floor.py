"""The floors: OpenAI's full event order on Starlette and msgspec, or on bare ASGI, and nothing else.

No validation, no history, no keys, no errors: what is left is the price of the wire itself.
"""

import time
from collections.abc import AsyncIterator
from os import urandom
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response as HTTPResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.bench.agents import SOURCES


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


async def _create(request: Request) -> HTTPResponse:
    body = _decode(await request.body())
    if body.get("stream"):
        return StreamingResponse(_frames(body), media_type="text/event-stream")
    reply = _resource(body, "completed", [_message(_text(body["input"]))])
    return HTTPResponse(_encode(reply), media_type="application/json")


app = Starlette(routes=[Route("/v1/responses", _create, methods=["POST"])])


async def bare_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve streams on ASGI alone, one event a send."""
    if scope["type"] != "http":
        return
    read = b""
    while True:
        message = await receive()
        read += message.get("body", b"")
        if not message.get("more_body"):
            break
    body = _decode(read)
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for frame in _frames(body):
        await send({"type": "http.response.body", "body": frame, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _frames(body: dict[str, Any]) -> AsyncIterator[bytes]:
    begun = _resource(body, "in_progress", [])
    item = {**_message(""), "status": "in_progress", "content": []}
    at: dict[str, Any] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield _frame("response.created", 0, {"response": begun})
    yield _frame("response.in_progress", 1, {"response": begun})
    yield _frame("response.output_item.added", 2, {"output_index": 0, "item": item})
    yield _frame("response.content_part.added", 3, {**at, "part": _part("")})
    number, pieces = 4, []
    constant = (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
        b'"item_id":"%b","output_index":0,"content_index":0,"logprobs":[],"delta":'
    ) % str(item["id"]).encode()
    async for delta in SOURCES[body["model"]]():
        pieces.append(delta)
        yield b'%b%b,"sequence_number":%d}\n\n' % (constant, _encode(delta), number)
        number += 1
    text = "".join(pieces)
    done = {**item, "status": "completed", "content": [_part(text)]}
    yield _frame("response.output_text.done", number, {**at, "text": text, "logprobs": []})
    yield _frame("response.content_part.done", number + 1, {**at, "part": _part(text)})
    yield _frame("response.output_item.done", number + 2, {"output_index": 0, "item": done})
    ended = _resource(body, "completed", [done])
    yield _frame("response.completed", number + 3, {"response": ended})


def _frame(kind: str, number: int, fields: dict[str, Any]) -> bytes:
    data = _encode({"type": kind, "sequence_number": number, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _resource(body: dict[str, Any], status: str, output: list[Any]) -> dict[str, Any]:
    return {
        "id": "resp_" + urandom(16).hex(),
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": body.get("model"),
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }


def _message(text: str) -> dict[str, Any]:
    return {
        "id": "msg_" + urandom(16).hex(),
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [_part(text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _text(given: Any) -> str:
    if isinstance(given, str):
        return given
    for item in reversed(given):
        if item.get("role") == "user":
            content = item["content"]
            return str(content if isinstance(content, str) else content[-1]["text"])
    return ""
