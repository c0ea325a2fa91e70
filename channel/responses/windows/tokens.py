"""Input tokens of a turn: the agent's own count where it has one, or else an estimate.

The estimate needs no tokenizer, is the same every time, and fails on nothing. It is the sum of

- text: its UTF-8 bytes divided by 4, rounded up (instructions, messages, reasoning summaries, names
  and arguments of calls, outputs of calls, and the strings and keys in tools and output schemas);
- 4 for each item and for the instructions, 8 for each tool and for a JSON schema of the output;
- an image: 85 in low detail, else 765 (what OpenAI counts for 1024 x 1024 pixels in high detail),
  wherever it is: an image is never opened, and a `data:` URL of one is not text;
- a file: its text where it comes as `data:` of a text type, else 1500;
- an item or a part of an unknown type: its strings and keys as text, and 1 for a number.

What only its maker can read (`encrypted_content`) counts nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from channel.agent import Turn
from channel.contract import settled
from channel.responses.protocol.items import Item
from channel.responses.protocol.said import AgentEventError


BYTES_PER_TOKEN: Final = 4
ITEM_TOKENS: Final = 4
TOOL_TOKENS: Final = 8
LOW_DETAIL_TOKENS: Final = 85
IMAGE_TOKENS: Final = 765
FILE_TOKENS: Final = 1500

_UNREAD: Final = frozenset({"id", "type", "status", "call_id", "encrypted_content"})
_TEXT_TYPES: Final = ("data:text/", "data:application/json")


async def input_tokens(agent: object, turn: Turn) -> int:
    """Return the input tokens of the turn, by the agent's `count_input_tokens(turn)` if it has one.

    That is a function or a coroutine function. What it raises passes through; `AgentEventError`
    where it returns something else than a number of tokens.
    """
    count = getattr(agent, "count_input_tokens", None)
    if not callable(count):
        return estimated_input_tokens(turn)
    counted = await settled(count(turn))
    if type(counted) is not int or counted < 0:
        msg = f"count_input_tokens returned {type(counted).__name__}, which is no number of tokens"
        raise AgentEventError(msg)
    return counted


def estimated_input_tokens(turn: Turn) -> int:
    """Return the estimate for instructions, tools, text format, history and input."""
    return (
        (ITEM_TOKENS + text_tokens(turn.instructions) if turn.instructions else 0)
        + sum(TOOL_TOKENS + _anything(_read(tool)) for tool in turn.tools)
        + _text_format(turn.options.get("text"))
        + sum(map(item_tokens, turn.history))
        + sum(map(item_tokens, turn.input))
    )


def item_tokens(item: Item) -> int:
    """Return the estimate for one item."""
    match item.get("type"):
        case "message":
            tokens = _content(item.get("content"))
        case "function_call":
            tokens = _content(item.get("name")) + _content(item.get("arguments"))
        case "function_call_output":
            tokens = _content(item.get("output"))
        case "reasoning":
            tokens = _content(item.get("summary")) + _content(item.get("content"))
        case _:
            tokens = _anything(_read(item))
    return ITEM_TOKENS + tokens


def text_tokens(text: str) -> int:
    """Return the estimate for a text."""
    size = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
    return -(-size // BYTES_PER_TOKEN)


def _text_format(text: Any) -> int:
    match text:
        case {"format": {"type": "json_schema", "schema": schema}}:
            return TOOL_TOKENS + _anything(schema)
    return 0


def _content(content: object) -> int:
    return sum(map(_part, content)) if isinstance(content, list) else _anything(content)


def _part(part: Any) -> int:
    match part:
        case {"type": "input_image"}:
            return LOW_DETAIL_TOKENS if part.get("detail") == "low" else IMAGE_TOKENS
        case {"type": "input_file"}:
            return _file(part.get("file_data"))
        case {"text": str(text)} | {"refusal": str(text)}:
            return text_tokens(text)
    return _anything(part)


def _file(data: object) -> int:
    if isinstance(data, str) and data.startswith(_TEXT_TYPES):
        base64 = data.partition(",")[2]
        return -(-len(base64) * 3 // (4 * BYTES_PER_TOKEN))
    return FILE_TOKENS


def _read(whole: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key not in _UNREAD}


def _anything(value: object) -> int:
    """Return the tokens in a JSON value: those of its strings and keys, and 1 for a number."""
    match value:
        case str():
            return IMAGE_TOKENS if value.startswith("data:image/") else text_tokens(value)
        case Mapping():
            return sum(text_tokens(str(key)) + _anything(each) for key, each in value.items())
        case list() | tuple():
            return sum(map(_anything, value))
        case None | bool():
            return 0
    return 1
