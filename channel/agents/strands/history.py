"""The conversation of a turn as messages of Strands, which are Converse's with a little more."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from channel.agent import Turn
from channel.agents.converse.messages import Block, Message, messages_of, tool_use_id
from channel.agents.reading import unsupported
from channel.responses.protocol.items import Item


_SIGNATURE: Final = "strands.call:"


def conversation_of(turn: Turn) -> list[Message]:
    """Return the messages of a turn; raises `TurnError` (400) where there is none, and for odd content."""
    messages = messages_of(turn.items)
    if not messages:
        raise unsupported("an input without a message of the user")
    signatures = _signatures(turn.items)
    return [
        {**message, "content": [_whole(block, signatures) for block in message["content"]]}
        for message in messages
    ]


def split_conversation(
    before: Sequence[Any], conversation: Sequence[Message]
) -> tuple[list[Message], list[Message]]:
    """Return what an agent remembers, after what it was made with, and what it is still to be asked.

    Results of tools belong to the calls that it remembers. Roles alternate.
    """
    known, asked = list(conversation), list[Message]()
    if known[-1]["role"] == "user" and not any("toolResult" in b for b in known[-1]["content"]):
        asked = [known.pop()]
    given = [{**message} for message in before]
    if given and known and given[-1]["role"] == known[0]["role"]:
        given[-1]["content"] = [*given[-1]["content"], *known.pop(0)["content"]]
    return [*given, *known], asked


def signed_call(signature: str) -> str:
    """Return as `encrypted_content` what a model wants back with a call, such as Gemini's signature."""
    return _SIGNATURE + signature


def _signatures(items: Sequence[Item]) -> dict[str, str]:
    """Return the signatures of calls by the call's id; each is in the reasoning before its call."""
    found: dict[str, str] = {}
    for reasoning, call in pairwise(items):
        encrypted = str(reasoning.get("encrypted_content") or "")
        if encrypted.startswith(_SIGNATURE) and call.get("type") == "function_call":
            found[tool_use_id(call["call_id"])] = encrypted.removeprefix(_SIGNATURE)
    return found


def _whole(block: Block, signatures: dict[str, str]) -> Block:
    """Return a block with what Strands adds: some of its models want to know how a tool ended."""
    if "toolResult" in block:
        return {"toolResult": {"status": "success", **block["toolResult"]}}
    used = block.get("toolUse")
    if used is not None and used["toolUseId"] in signatures:
        return {"toolUse": {**used, "reasoningSignature": signatures[used["toolUseId"]]}}
    return block
