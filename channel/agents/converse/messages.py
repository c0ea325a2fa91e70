"""Items of the Responses API as messages of Bedrock's Converse API (Strands has the same): pure.

Facts: the AWS API reference, "Converse" and the structures that its page links to.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, TypeAlias

from channel.agents.converse.media import DocumentNames, media_block
from channel.agents.media import media_of
from channel.agents.reading import parts_of, unsupported, with_own_tools
from channel.responses.protocol.items import Item


Block: TypeAlias = dict[str, Any]
"""One content block: a mapping with one key, such as `{"text": …}` or `{"toolUse": {…}}`."""
Message: TypeAlias = dict[str, Any]
"""`{"role": "user" | "assistant", "content": [Block, …]}`"""

ATTACHED: Final = "The documents are attached."
"""Stands beside documents that come without a text, which Converse refuses."""
BEGINNING: Final = "(The beginning of the conversation is left out.)"
"""Stands before an assistant's message that comes first, which most models refuse."""
NO_OUTPUT: Final = "(no output)"
"""Stands for an empty output of a call: Converse refuses blank texts."""

_SIGNATURE: Final = "converse.signature:"
_REDACTED: Final = "converse.redacted:"
_TOOL_USE_ID: Final = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_-]")
_LONGEST_NAME: Final = 64


def messages_of(items: Sequence[Item], *, replays_reasoning: bool = True) -> list[Message]:
    """Return the conversation as messages whose roles alternate, beginning with a user's.

    The outputs of calls stand at the beginning of the message after that of the calls, wherever
    they were; tools that the agent ran itself are among them, where they were shown. Left out are
    instructions (`reading.instructions_of` has them), reasoning that did not come from Converse,
    and items of kinds that it has no block for. Raises `TurnError` (400) for an image or a file
    that it does not take, and for parts of a kind that it does not know.
    """
    items = [*with_own_tools(items)]
    answers = _answers(items)
    building = _Building(replays_reasoning=replays_reasoning)
    for position, item in enumerate(items):
        building.add(item, answers.get(position))
    return building.messages


def tool_use_id(call_id: str) -> str:
    """Return the call id as Converse takes it: the same one, or a digest of a longer or odd one."""
    if _TOOL_USE_ID.fullmatch(call_id):
        return call_id
    return f"call_{sha256(call_id.encode(errors='replace')).hexdigest()[:40]}"


def tool_name(name: str) -> str:
    """Return the name of a function as Converse takes it."""
    return _NOT_IN_NAMES.sub("_", name)[:_LONGEST_NAME] or "_"


def signed(signature: str) -> str:
    """Return as `encrypted_content` the signature of reasoning."""
    return _SIGNATURE + signature


def redacted(content: bytes) -> str:
    """Return as `encrypted_content` reasoning that only its model can read."""
    return _REDACTED + b64encode(content).decode()


def reasoning_block(item: Item) -> Block | None:
    """Return a reasoning item as the block that it was, or None of one that did not come from here.

    Raises `TurnError` (400) for a summary that is not text.
    """
    encrypted = item.get("encrypted_content")
    if not isinstance(encrypted, str):
        return None
    if encrypted.startswith(_SIGNATURE):
        signature = encrypted.removeprefix(_SIGNATURE)
        return {
            "reasoningContent": {
                "reasoningText": {"text": _summary_of(item), "signature": signature}
            }
        }
    if encrypted.startswith(_REDACTED):
        try:
            content = b64decode(encrypted.removeprefix(_REDACTED), validate=True)
        except ValueError:
            return None
        return {"reasoningContent": {"redactedContent": content}}
    return None


class _Building:
    """The messages so far, and what waits for the next one."""

    def __init__(self, *, replays_reasoning: bool) -> None:
        self.messages: list[Message] = []
        self._replays_reasoning = replays_reasoning
        self._names = DocumentNames()
        self._thoughts: list[Block] = []  # no message may end with reasoning
        self._unanswered: list[tuple[str, Item]] = []

    def add(self, item: Item, answer: Item | None) -> None:
        match item.get("type"), item.get("role"):
            case "message", "user":
                self._say("user", self._user_blocks(item))
            case "message", "assistant":
                self._say("assistant", _texts(_said(part) for part in parts_of(item)))
            case "reasoning", _ if self._replays_reasoning:
                block = reasoning_block(item)
                self._thoughts += [block] if block else []
            case "function_call", _ if answer is not None:
                called = _tool_use(item)
                self._say("assistant", [called])
                self._unanswered.append((called["toolUse"]["toolUseId"], answer))
            case "function_call_output", _ if self._unanswered:
                self._say("user", [])

    def _say(self, role: str, blocks: list[Block]) -> None:
        if role == "user":
            blocks = [*self._results(), *blocks]
        if not blocks:
            return
        if role == "assistant":
            if not self.messages:
                self.messages.append({"role": "user", "content": [{"text": BEGINNING}]})
            blocks = [*self._thoughts, *blocks]
        self._thoughts = []
        if self.messages and self.messages[-1]["role"] == role:
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": role, "content": blocks})

    def _results(self) -> list[Block]:
        answers, self._unanswered = self._unanswered, []
        return [
            {"toolResult": {"toolUseId": used, "content": self._output(answer)}}
            for used, answer in answers
        ]

    def _output(self, answer: Item) -> list[Block]:
        output = answer.get("output")
        blocks = _texts([output]) if isinstance(output, str) else self._blocks(answer)
        return blocks or [{"text": NO_OUTPUT}]

    def _user_blocks(self, item: Item) -> list[Block]:
        blocks = self._blocks(item)
        kinds = {kind for block in blocks for kind in block}
        if "document" in kinds and "text" not in kinds:
            blocks.append({"text": ATTACHED})
        return blocks

    def _blocks(self, item: Item) -> list[Block]:
        blocks: list[Block] = []
        for part in parts_of(item):
            if (media := media_of(part)) is not None:
                blocks.append(media_block(media, self._names))
            elif isinstance(part.get("text"), str):
                blocks += _texts([part["text"]])
            else:
                raise unsupported(f"content of the type {part.get('type')!r}")
        return blocks


def _answers(items: Sequence[Item]) -> dict[int, Item]:
    """Return the output of each call, by the call's position: ids may come again."""
    open_calls: dict[str, int] = {}
    answers: dict[int, Item] = {}
    for position, item in enumerate(items):
        call_id = item.get("call_id", "")
        if item.get("type") == "function_call":
            open_calls[call_id] = position
        elif item.get("type") == "function_call_output" and call_id in open_calls:
            answers[open_calls[call_id]] = item
    return answers


def _summary_of(item: Item) -> str:
    texts = [part.get("text") or "" for part in item.get("summary") or ()]
    if not all(isinstance(text, str) for text in texts):
        raise unsupported("a summary that is not text")
    return "".join(texts)


def _tool_use(item: Item) -> Block:
    call_id, name = item.get("call_id"), item.get("name")
    if not (isinstance(call_id, str) and isinstance(name, str)):
        raise unsupported("a call without an id or a name")
    return {
        "toolUse": {
            "toolUseId": tool_use_id(call_id),
            "name": tool_name(name),
            "input": _arguments(item.get("arguments") or "{}"),
        }
    }


def _arguments(text: Any) -> dict[str, Any]:
    """Return the arguments as an object, even where a model has written something else."""
    try:
        arguments = json.loads(text)
    except (TypeError, ValueError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {"arguments": text}


def _said(part: Mapping[str, Any]) -> str:
    said = part.get("text") or part.get("refusal")
    return said if isinstance(said, str) else ""


def _texts(texts: Iterable[str]) -> list[Block]:
    """Return text blocks, without the blank ones, which Converse refuses."""
    return [{"text": text} for text in texts if text.strip()]
