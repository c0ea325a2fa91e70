"""Chat Completions at the ASGI interface; whatever comes back builds the `openai` package's types, strictly."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from starlette.types import ASGIApp

from channel.chat.channel import ChatCompletionsChannel
from channel.host import AgentHost
from channel.responses.channel import ResponsesChannel
from tests.channel.asgi import KEYS, Wire, request


UNTYPED = {"reasoning_content", "annotations"}
"""What the package's types do not know: reasoning, and annotations of a chunk."""
HI = [{"role": "user", "content": "hi"}]
DONE = "data: [DONE]"


def served(agent: Any, **options: Any) -> ASGIApp:
    """Return the app of a host with both channels, of which this one has the options."""
    chat = ChatCompletionsChannel(**{"keepalive_s": 0, **options})
    responses = ResponsesChannel(keepalive_s=0)
    return AgentHost(agent, channels=[responses, chat], authenticator=KEYS).app


def asking(*, key: str | None = "key-alpha", **fields: Any) -> Wire:
    """Return a request; its one message is `hi` unless the fields say otherwise."""
    body = {"model": "agent", "messages": HI, **fields}
    return request("POST", "/v1/chat/completions", body, key=key)


async def completed(app: ASGIApp, **fields: Any) -> dict[str, Any]:
    """Ask for a completion and return it."""
    wire = await asking(**fields).run(app)
    assert wire.status == 200, wire.body
    return required(wire.json)


async def streamed(app: ASGIApp, **fields: Any) -> list[dict[str, Any]]:
    """Ask for a stream and return its chunks."""
    wire = await asking(stream=True, **fields).run(app)
    return chunks_of(wire)


def chunks_of(wire: Wire) -> list[dict[str, Any]]:
    """Return the chunks of a stream that was completed."""
    *chunks, done = frames_of(wire)
    assert done == DONE
    return [required(json.loads(chunk.removeprefix("data: "))) for chunk in chunks]


def frames_of(wire: Wire) -> list[str]:
    """Return the frames of a stream, each of one line."""
    assert wire.status == 200, wire.body
    assert wire.headers["content-type"] == "text/event-stream; charset=utf-8"
    *frames, rest = wire.body.decode().split("\n\n")
    assert rest == ""
    assert not any("\n" in frame for frame in frames)
    return frames


def deltas_of(chunks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def said(chunks: Sequence[Mapping[str, Any]]) -> str:
    return "".join(delta.get("content") or "" for delta in deltas_of(chunks))


def message_of(completion: Mapping[str, Any]) -> dict[str, Any]:
    (choice,) = completion["choices"]
    message: dict[str, Any] = choice["message"]
    return message


def required(body: dict[str, Any]) -> dict[str, Any]:
    """Return a completion or a chunk, of which the package's type loses nothing and adds nothing."""
    kind = ChatCompletionChunk if body["object"] == "chat.completion.chunk" else ChatCompletion
    model = kind.model_validate_json(json.dumps(body), strict=True)
    told = model.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings="error")
    assert told == body
    assert set(_extras(model)) <= UNTYPED
    return body


def _extras(value: object) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from _extras(getattr(value, name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _extras(each)
