"""From a turn's items to LangChain's messages."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)

from channel.agent import Turn
from channel.agents.langgraph.reasoning import block_of, kept_of
from channel.agents.media import Media, media_of
from channel.agents.reading import (
    instructions_of,
    is_instruction,
    output_of,
    parts_of,
    unsupported,
    with_own_tools,
)
from channel.responses.protocol.items import Item


TakesUrl = Callable[[Media], bool]
"""Whether a model is given the URL of an image or a file, which nothing in this process fetches."""

INSTRUCTIONS_ID = "instructions"
"""The id of the system message that holds the request's instructions."""


def messages_of(turn: Turn, items: Iterable[Item], takes_url: TakesUrl) -> list[BaseMessage]:
    """Return the request's instructions as one system message, then the items as messages.

    A message has the id of its (first) item. What the model said between two inputs is one message.
    Reasoning that brings nothing back, and items that no message can hold, are left out. Raises
    `TurnError` (400, `input`) for content that models do not take in this way.
    """
    texts = instructions_of(turn)
    messages: list[BaseMessage] = []
    if texts:
        messages.append(SystemMessage("\n\n".join(texts), id=INSTRUCTIONS_ID))
    names: dict[str, str] = {}
    said: list[Item] = []
    for item in with_own_tools(items):
        if _is_said(item):
            said.append(item)
            if item["type"] == "function_call":
                names[item["call_id"]] = item["name"]
        elif (message := _heard(item, names, takes_url)) is not None:
            messages += _answer(said)
            messages.append(message)
            said = []
    return messages + _answer(said)


def _is_said(item: Item) -> bool:
    is_message = item.get("type") == "message" and item.get("role") == "assistant"
    return is_message or item.get("type") in ("reasoning", "function_call")


def _heard(item: Item, names: Mapping[str, str], takes_url: TakesUrl) -> BaseMessage | None:
    match item:
        case {"type": "message"} if not is_instruction(item):
            content = _content(parts_of(item), takes_url)
            return HumanMessage(content=content, id=item.get("id"))
        case {"type": "function_call_output", "call_id": str(call_id)}:
            parts = parts_of(item)
            return ToolMessage(
                content=_content(parts, takes_url) if parts else output_of(item),
                tool_call_id=call_id,
                name=names.get(call_id),
                id=item.get("id"),
            )
        case _:
            return None


def _content(parts: Iterable[Mapping[str, Any]], takes_url: TakesUrl) -> Any:
    blocks = [_block(part, takes_url) for part in parts]
    if all(block["type"] == "text" for block in blocks):
        return "".join(block["text"] for block in blocks)
    return blocks


def _block(part: Mapping[str, Any], takes_url: TakesUrl) -> dict[str, Any]:
    if (media := media_of(part)) is not None:
        return _media_block(media, takes_url)
    if isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise unsupported("content of this type")


def _media_block(media: Media, takes_url: TakesUrl) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "image" if media.is_image else "file"}
    if media.filename:
        block["filename"] = media.filename
    if media.url is not None and takes_url(media):
        return {**block, "url": media.url}
    data = media.content()
    encoded = b64encode(data.content).decode()
    return {**block, "base64": encoded, "mime_type": data.media_type}


def _answer(items: list[Item]) -> list[BaseMessage]:
    """Return what the model said between two inputs as one message, or none."""
    blocks: list[dict[str, Any]] = []
    calls: list[ToolCall] = []
    provider = None
    for item in items:
        match item["type"]:
            case "reasoning" if (kept := kept_of(item)) is not None:
                blocks.append(block_of(kept, item))
                provider = kept.provider or provider
            case "function_call":
                calls.append(_call(item))
            case "message":
                texts = (part.get("text") or part.get("refusal") for part in parts_of(item))
                blocks.append({"type": "text", "text": "".join(filter(None, texts))})
    if not blocks and not calls:
        return []
    content: Any = blocks
    metadata: dict[str, Any] = {}
    if provider is not None:
        # LangChain's own form names its version, and holds the calls as well.
        content = [*blocks, *({**call, "type": "tool_call"} for call in calls)]
        metadata = {"output_version": "v1", "model_provider": provider}
    elif all(block["type"] == "text" for block in blocks):
        content = "\n\n".join(block["text"] for block in blocks)
    first = items[0].get("id")
    return [AIMessage(content=content, tool_calls=calls, response_metadata=metadata, id=first)]


def _call(item: Item) -> ToolCall:
    try:
        arguments = json.loads(item.get("arguments") or "{}")
    except ValueError:  # the model wrote no JSON; nothing else can be given back to it
        arguments = {}
    return ToolCall(
        name=item["name"],
        args=arguments if isinstance(arguments, dict) else {},
        id=item["call_id"],
        type="tool_call",
    )
