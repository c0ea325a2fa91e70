"""Bedrock's wire: frames of its event stream, what a request gives to the model, and the rules of Converse."""

import json
import struct
from base64 import b64decode
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any
from zlib import crc32

from tests.channel.agents.scripts import Seen


def frame(kind: str, body: Mapping[str, Any], *, is_exception: bool = False) -> bytes:
    """Return an event, or an exception, as one message of the event stream, with its checksums."""
    message_type = "exception" if is_exception else "event"
    headers = b"".join(
        struct.pack("!B", len(name))
        + name.encode()
        + struct.pack("!BH", 7, len(value))  # a string
        + value.encode()
        for name, value in (
            (f":{message_type}-type", kind),
            (":content-type", "application/json"),
            (":message-type", message_type),
        )
    )
    payload = json.dumps(body).encode()
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    whole = prelude + struct.pack("!I", crc32(prelude)) + headers + payload
    return whole + struct.pack("!I", crc32(whole))


def seen_of(body: Mapping[str, Any]) -> Seen:
    """Return what a request gives to the model."""
    seen = Seen()
    seen.texts = [("system", block["text"]) for block in body.get("system", ()) if "text" in block]
    for message in body["messages"]:
        for block in message["content"]:
            _see(seen, message["role"], block)
    tools = body.get("toolConfig", {}).get("tools", ())
    choice = body.get("additionalModelRequestFields", {}).get("tool_choice", {})
    if choice.get("type") != "none":
        seen.tools = [tool["toolSpec"]["name"] for tool in tools if "toolSpec" in tool]
    text_format = body.get("outputConfig", {}).get("textFormat")
    if text_format:
        seen.schema = json.loads(text_format["structure"]["jsonSchema"]["schema"])
    inference = body.get("inferenceConfig", {})
    seen.max_tokens, seen.temperature = inference.get("maxTokens"), inference.get("temperature")
    return seen


def _see(seen: Seen, role: str, block: Mapping[str, Any]) -> None:
    match block:
        case {"text": text}:
            seen.texts.append((role, text))
        case {"toolResult": {"content": content}}:
            seen.texts += [("tool", part["text"]) for part in content if "text" in part]
        case {"toolUse": {"toolUseId": call_id, "name": name}}:
            seen.calls.append((call_id, name))
        case {"reasoningContent": {"reasoningText": {"signature": signature}}}:
            seen.signatures.append(signature)
        case {"image": {"source": {"bytes": content}}}:
            seen.images.append(b64decode(content))


def violation(body: Mapping[str, Any]) -> str | None:
    """Return a rule of Converse that a request breaks, in words that are not the service's."""
    return next((rule for rule, is_kept in _rules(body) if not is_kept), None)


def _rules(body: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    messages, config = body["messages"], body.get("toolConfig", {})
    blocks = [block for message in messages for block in message["content"]]
    kinds = {kind for block in blocks for kind in block}
    roles = [message["role"] for message in messages]
    names = [block["document"]["name"].lower() for block in blocks if "document" in block]
    texts = [block["text"] for block in (*blocks, *body.get("system", ())) if "text" in block]
    choice = body.get("additionalModelRequestFields", {}).get("tool_choice")
    yield "a conversation begins with the user", roles[:1] == ["user"]
    yield "the roles alternate", all(role != after for role, after in pairwise(roles))
    yield "a message is not empty", all(message["content"] for message in messages)
    yield "a text is not blank", all(text.strip() for text in texts)
    yield "documents have names of their own", len({*names}) == len(names)
    yield "calls of tools need toolConfig", bool(config) or not {"toolUse", "toolResult"} & kinds
    yield "a toolConfig has tools", "toolConfig" not in body or bool(config["tools"])
    yield "the choice of a tool is given once", not (choice and "toolChoice" in config)
    yield (
        "reasoning is not the last",
        not any("reasoningContent" in message["content"][-1] for message in messages),
    )
    yield (
        "the results of tools follow their calls",
        all(map(_answers_directly, pairwise([*messages, {"content": []}]))),
    )


def _answers_directly(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> bool:
    message, after = pair
    called = [b["toolUse"]["toolUseId"] for b in message["content"] if "toolUse" in b]
    results = [b["toolResult"]["toolUseId"] for b in after["content"] if "toolResult" in b]
    first = after["content"][: len(results)]
    return sorted(called) == sorted(results) and all("toolResult" in block for block in first)
