"""A history that is too large to go on with is a client's error, wherever it would be loaded."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from channel import room
from channel.agent import Turn
from tests.channel.asgi import request
from tests.channel.instances import Instance, Instances


pytestmark = pytest.mark.anyio


async def echo(turn: Turn) -> AsyncIterator[str]:
    yield turn.text


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Instance:
    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", 10_000)
    return Instances(echo).a


def error(param: str | None) -> dict[str, Any]:
    return {
        "error": {
            "message": "The conversation history is too large to be continued. "
            "Please begin a new one.",
            "type": "invalid_request_error",
            "param": param,
            "code": "context_length_exceeded",
        }
    }


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("", {}),
        ("", {"stream": True}),
        ("", {"background": True}),
        ("/input_tokens", {}),
        ("/compact", {"model": "m"}),
    ],
)
async def test_a_response_whose_history_is_too_large_cannot_be_continued(
    instance: Instance, path: str, fields: dict[str, Any]
) -> None:
    last = (await instance.post("/v1/responses", {"input": "a" * 6_000})).json["id"]

    body = {"input": "more", "previous_response_id": last, **fields}
    reply = await instance.post(f"/v1/responses{path}", body)

    assert (reply.status, reply.json) == (400, error("previous_response_id"))


async def test_what_it_was_given_cannot_be_listed(instance: Instance) -> None:
    last = (await instance.post("/v1/responses", {"input": "a" * 6_000})).json["id"]

    path = f"/v1/responses/{last}/input_items"
    reply = await request("GET", path, key="key-alpha").run(instance.app)

    assert (reply.status, reply.json) == (400, error(None))


@pytest.mark.parametrize("path", ["", "/input_tokens"])
async def test_a_conversation_that_is_too_large_cannot_be_gone_on_with_but_listed(
    instance: Instance, path: str
) -> None:
    given = {"items": [{"role": "user", "content": "a" * 12_000}]}
    conversation = (await instance.post("/v1/conversations", given)).json["id"]

    body = {"input": "more", "conversation": conversation}
    reply = await instance.post(f"/v1/responses{path}", body)

    assert (reply.status, reply.json) == (400, error("conversation"))
    assert len(await instance.list_items(conversation)) == 1
    deleted = request("DELETE", f"/v1/conversations/{conversation}", key="key-alpha")
    assert (await deleted.run(instance.app)).status == 200  # it is not locked
