"""Reasoning that a model wants back: from its content blocks to an item's text, and back to a block."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from channel.agent import ReasoningDelta
from channel.responses.protocol.items import Item


TYPES: Final = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_content"})
"""Content blocks that hold reasoning: Anthropic's and Google's, OpenAI's and LangChain's, Bedrock's."""


class Kept(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A block without its text, which the item's summary has; clients bring it, so it is checked."""

    type: Literal["thinking", "redacted_thinking", "reasoning", "reasoning_content"]
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    encrypted_content: str | None = None
    extras: dict[str, str] | None = None
    provider: str | None = None
    """Of a block in LangChain's own form (version v1), whose model it is."""


class Thought:
    """One block of reasoning, as it grows."""

    def __init__(self, block: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Begin with its first piece; `metadata` is the message's response metadata."""
        self._type = block["type"]
        self._index = block.get("index")
        self._part: Any = 0
        # A signature holds for the text of its block alone, so each block is a part of its own.
        self._begins_part = True
        self._fields: dict[str, Any] = {}
        if metadata.get("output_version") == "v1":
            self._fields["provider"] = metadata.get("model_provider")

    def goes_on_with(self, block: Mapping[str, Any]) -> bool:
        """Return whether the piece belongs to this block."""
        return (self._type, self._index) == (block["type"], block.get("index"))

    def add(self, block: Mapping[str, Any]) -> Iterator[ReasoningDelta]:
        """Take a piece of the block."""
        inner = block.get("reasoning_content")
        inner = inner if isinstance(inner, Mapping) else {}
        self._keep({**inner, **block})
        for part in block.get("summary") or ():
            self._begins_part |= part.get("index", self._part) != self._part
            self._part = part.get("index", self._part)
            yield from self._delta(part.get("text"))
        for text in (block.get("thinking"), block.get("reasoning"), inner.get("text")):
            yield from self._delta(text)

    def _delta(self, text: object) -> Iterator[ReasoningDelta]:
        if isinstance(text, str) and text:
            yield ReasoningDelta(text, new_part=self._begins_part)
            self._begins_part = False

    def _keep(self, block: Mapping[str, Any]) -> None:
        for name in ("data", "id", "encrypted_content"):
            if isinstance(block.get(name), str):
                self._fields[name] = block[name]
        if isinstance(block.get("signature"), str):
            self._fields["signature"] = self._fields.get("signature", "") + block["signature"]
        extras = block.get("extras")
        if isinstance(extras, Mapping):
            texts = {name: text for name, text in extras.items() if isinstance(text, str)}
            self._fields["extras"] = {**self._fields.get("extras", {}), **texts}

    def wanted_back(self) -> str | None:
        """Return what the model wants back with the text, or None of reasoning that is only shown."""
        extras = self._fields.get("extras") or {}
        secrets = [self._fields.get(name) for name in ("signature", "data", "encrypted_content")]
        if not any([*secrets, extras.get("signature"), extras.get("encrypted_content")]):
            return None
        return msgspec.json.encode(Kept(self._type, **self._fields)).decode()


def kept_of(item: Item) -> Kept | None:
    """Return what a reasoning item brings back, or None of one that came from elsewhere."""
    try:
        return msgspec.json.decode(item.get("encrypted_content") or "", type=Kept)
    except msgspec.DecodeError:
        return None


def block_of(kept: Kept, item: Item) -> dict[str, Any]:
    """Return the content block that the model made."""
    parts = [part.get("text") or "" for part in item.get("summary") or ()]
    text = parts[-1] if parts else ""
    fields = {
        name: value
        for name in ("signature", "data", "id", "encrypted_content", "extras")
        if (value := getattr(kept, name)) is not None
    }
    match kept.type:
        case "thinking":
            return {"type": kept.type, "thinking": text, **fields}
        case "redacted_thinking":
            return {"type": kept.type, **fields}
        case "reasoning_content":
            return {"type": kept.type, kept.type: {"text": text, **fields}}
    if kept.provider is not None:
        return {"type": kept.type, "reasoning": text, **fields}
    summary = [{"type": "summary_text", "text": part} for part in parts]
    return {"type": kept.type, "summary": summary, **fields}
