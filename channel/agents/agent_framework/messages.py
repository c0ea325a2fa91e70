"""Items of a turn as Agent Framework's messages; what its reasoning wants back, as one opaque text. Pure."""

from collections.abc import Iterable, Sequence
from mimetypes import guess_type
from typing import Any, Final

import msgspec
from agent_framework import Content, Message

from channel.agents.media import Media, media_of
from channel.agents.reading import is_instruction, output_of, parts_of, with_own_tools
from channel.responses.protocol.items import Item


OUTPUT_KIND: Final = "model_output_kind"
REFUSAL: Final = "refusal"
"""The property, and its value, by which the framework tells a refusal from other text."""
RAW_REASONING: Final = "reasoning_text"
"""The property by which it tells reasoning itself from a summary of it."""

_ANY_IMAGE: Final = "image/*"
_ANY_FILE: Final = "application/octet-stream"


class Thought(msgspec.Struct, frozen=True):
    """One block of reasoning: its text, and what the model wants back with it."""

    id: str | None = None
    text: str = ""
    data: str | None = None
    is_raw: bool = False

    def content(self) -> Content:
        """Return the reasoning as the framework has it."""
        raw = {RAW_REASONING: True} if self.is_raw else None
        return Content.from_text_reasoning(
            id=self.id, text=self.text, protected_data=self.data, additional_properties=raw
        )


class _Back(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes back with a reasoning item beside its text, which is that of its last part."""

    data: str
    id: str | None = None
    is_raw: bool = False
    has_text: bool = True


def wanted_back(thought: Thought) -> str | None:
    """Return what the model wants back with the reasoning, as text; None where it wants nothing."""
    if thought.data is None:
        return None
    back = _Back(thought.data, thought.id, thought.is_raw, bool(thought.text))
    return msgspec.json.encode(back).decode()


def messages_of(items: Iterable[Item]) -> list[Message]:
    """Return the items as messages, what one side says or calls in a row as one message.

    System and developer messages are left out: they are instructions. So is reasoning with nothing
    that its model wants back, and approvals: what is open of them is the agent's own business
    (`pauses`). Raises `TurnError` (400) for media that cannot be given.
    """
    messages: list[Message] = []
    for item in with_own_tools(items):
        role, contents = _contents(item)
        if not contents:
            continue
        if role != "user" and messages and messages[-1].role == role:
            messages[-1].contents.extend(contents)
        else:
            messages.append(Message(role, contents))
    return messages


def add_to_answer(messages: list[Message], contents: Sequence[Content]) -> None:
    """Add to what the agent said last, in place."""
    if messages and messages[-1].role == "assistant":
        messages[-1].contents.extend(contents)
    else:
        messages.append(Message("assistant", list(contents)))


def _contents(item: Item) -> tuple[str, list[Content]]:
    match item:
        case {"type": "message", "role": "assistant"}:
            return "assistant", _said(item)
        case {"type": "message"} if not is_instruction(item):
            return "user", _given(item)
        case {"type": "function_call", "call_id": str(call_id), "name": str(name)}:
            arguments = item.get("arguments") or "{}"
            return "assistant", [Content.from_function_call(call_id, name, arguments=arguments)]
        case {"type": "function_call_output", "call_id": str(call_id)}:
            result: Any = _given(item) if parts_of(item) else output_of(item)
            return "tool", [Content.from_function_result(call_id, result=result)]
        case {"type": "reasoning"}:
            return "assistant", _reasoning(item)
        case _:
            return "", []


def _said(item: Item) -> list[Content]:
    contents: list[Content] = []
    for part in parts_of(item):
        if isinstance(text := part.get("text"), str):
            contents.append(Content.from_text(text))
        elif isinstance(refusal := part.get("refusal"), str):
            contents.append(
                Content.from_text(refusal, additional_properties={OUTPUT_KIND: REFUSAL})
            )
    return contents


def _given(item: Item) -> list[Content]:
    contents: list[Content] = []
    for part in parts_of(item):
        media = media_of(part)
        if media is not None:
            contents.append(_media(media))
        elif isinstance(text := part.get("text"), str):
            contents.append(Content.from_text(text))
    return contents


def _media(media: Media) -> Content:
    """Return the medium; a URL is passed on, since the framework itself fetches none."""
    # How OpenAI's clients are told what to make of it; to others these properties mean nothing.
    named = {"image_detail": media.detail} if media.is_image else {"content_type": "input_file"}
    hints = {"openai": named}
    if media.data is None and media.url:
        kind = _ANY_IMAGE if media.is_image else _ANY_FILE
        media_type = guess_type(media.url.partition("?")[0])[0] or kind
        return Content.from_uri(
            media.url, media_type=media_type, name=media.filename, additional_properties=hints
        )
    data = media.content()
    media_type = data.media_type
    if media_type == _ANY_FILE and media.filename:
        media_type = guess_type(media.filename)[0] or media_type
    return Content.from_data(
        data.content, media_type, name=media.filename, additional_properties=hints
    )


def _reasoning(item: Item) -> list[Content]:
    """Return the reasoning as its model knows it; nothing where only text is left, which none takes."""
    try:
        back = msgspec.json.decode(item.get("encrypted_content") or "null", type=_Back)
    except msgspec.DecodeError:
        return []
    parts = item.get("summary") or [{}]
    text = (parts[-1].get("text") or "") if back.has_text else ""
    return [Thought(back.id, text, back.data, back.is_raw).content()]
