"""Ids: `resp_<body>` for a response, `<prefix>_<body><index>` for the items of its turn, `conv_<name>`.

A body is 52 hex digits that the store minted; what they mean is the store's business. An item id
holds the body of its turn and the item's index among the turn's input and output items, so an item
is found by its id alone.
"""

import re
from typing import Final, NamedTuple


RESPONSE_PREFIX: Final = "resp_"
CONVERSATION_PREFIX: Final = "conv_"
BODY_DIGITS: Final = 52
MAX_ITEMS: Final = 0x10000

_BODY = re.compile(r"[0-9a-f]{52}\Z")
_CONVERSATION = re.compile(r"conv_([0-9a-f]{20})\Z")
_ITEM = re.compile(r"[a-z]{1,8}_([0-9a-f]{52})([0-9a-f]{4})\Z")

_ITEM_PREFIXES: Final = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "compaction": "cmp",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcpl",
    "mcp_approval_request": "mcpr",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "web_search_call": "ws",
    "file_search_call": "fs",
    "code_interpreter_call": "ci",
    "image_generation_call": "ig",
}


class ItemPlace(NamedTuple):
    """Where an item is: the body of its turn, and its position among input and output items."""

    body: str
    position: int


def response_id(body: str) -> str:
    """Return the response id of a minted body."""
    return RESPONSE_PREFIX + body


def response_body(identifier: str) -> str | None:
    """Return the minted body inside a response id, or None where it has none."""
    body = identifier.removeprefix(RESPONSE_PREFIX)
    if body is identifier or len(body) == len(identifier) or not _BODY.match(body):
        return None
    return body


def conversation_id(name: str) -> str:
    """Return the id of the conversation that a store gave this name, 20 hex digits."""
    return CONVERSATION_PREFIX + name


def conversation_name(identifier: str) -> str | None:
    """Return the name inside a conversation id, or None where it has none."""
    match = _CONVERSATION.match(identifier)
    return match[1] if match else None


def item_id(item_type: str, body: str, index: int) -> str:
    """Return the id of the item at `index` of the turn `body`."""
    return f"{_ITEM_PREFIXES.get(item_type, 'item')}_{body}{index:04x}"


def call_id(body: str, index: int) -> str:
    """Return a call id for a function call that came without one: `call_` and 24 digits."""
    return f"call_{body[-20:]}{index:04x}"


def item_place(identifier: str) -> ItemPlace | None:
    """Return where an item is by its id, or None where we did not mint the id."""
    match = _ITEM.match(identifier)
    return ItemPlace(match[1], int(match[2], 16)) if match else None
