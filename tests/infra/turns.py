"""Turns as the channel would store them, for the storage tests."""

from base64 import b64encode
from collections.abc import Awaitable, Callable
from random import Random
from secrets import token_bytes
from typing import Any

from channel.isolation import IsolationKeys
from channel.ports import Branch, ResponseStore, StoredTurn
from channel.responses.protocol import ids
from channel.responses.protocol.items import Item, message
from channel.responses.protocol.response import Response, ResponseUsage, Status


def own_secret() -> Callable[[], Awaitable[bytes]]:
    """Return a secret of this test's own, which keeps its rows apart from those of others."""
    made = token_bytes(32)

    async def secret() -> bytes:
        return made

    return secret


def turn(
    branch: Branch, text: str = "Hello!", *, question: str = "Hi", **fields: Any
) -> StoredTurn:
    """Return a turn of a question and an answer, with ids as the channel makes them."""
    body = branch.body
    asked: Item = {
        **message("user", question),
        "id": ids.item_id("message", body, 0),
        "status": "completed",
    }
    said: Item = {
        "id": ids.item_id("message", body, 1),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": message("assistant", text)["content"],
    }
    response: dict[str, Any] = {
        "id": ids.response_id(body),
        "created_at": 1_800_000_000,
        "model": "agent",
        "status": Status.COMPLETED,
        "completed_at": 1_800_000_003,
        "output": [said],
        "previous_response_id": branch.turns[-1].response.id if branch.turns else None,
        "usage": ResponseUsage(input_tokens=1234, output_tokens=214, total_tokens=1448),
    }
    return StoredTurn([asked], Response(**{**response, **fields}))


async def add(
    store: ResponseStore,
    keys: IsolationKeys,
    previous_response_id: str | None = None,
    text: str = "Hello!",
    **fields: Any,
) -> str:
    """Continue a response with one more turn, and return the id of the new response."""
    branch = await store.branch(keys, previous_response_id)
    assert branch is not None
    kept = turn(branch, text, **fields)
    await store.save(keys, branch, kept)
    return kept.response.id


async def chain(
    store: ResponseStore, keys: IsolationKeys, length: int, after: str | None = None
) -> list[str]:
    """Add a chain of turns whose texts are their numbers, and return their response ids."""
    added: list[str] = []
    for number in range(length):
        after = await add(store, keys, after, str(number))
        added.append(after)
    return added


async def texts(store: ResponseStore, keys: IsolationKeys, response_id: str) -> list[str] | None:
    """Return the answers of a chain, oldest first."""
    turns = await store.turns(keys, response_id)
    return None if turns is None else [answer(each) for each in turns]


def answer(kept: StoredTurn) -> str:
    """Return the text of a turn's answer."""
    text: str = kept.response.output[0]["content"][0]["text"]
    return text


def noise(length: int, seed: int = 0) -> str:
    """Return text that hardly compresses: base64 of random bytes."""
    return b64encode(Random(seed).randbytes(length)).decode()[:length]
