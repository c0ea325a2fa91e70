"""What the demo agent has heard: the user's texts, and the tools called since the last of them."""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct

from channel.agent import Turn
from channel.agents.demo_words import count
from channel.responses.protocol.items import Item, text_of


READ_CHARACTERS: Final = 4_000


class ToolOutput(Struct, frozen=True):
    """The output that the client gave for a call; the name is empty if the call is unknown."""

    name: str
    text: str


class Conversation(Struct, frozen=True):
    """The conversation up to now; `said` holds the beginning of each text, oldest first."""

    said: Sequence[str]
    called: frozenset[str] = frozenset()
    outputs: Sequence[ToolOutput] = ()
    instructions: str = ""

    @property
    def asked(self) -> str:
        """The user's last text, which may be older than this turn when the turn brings outputs."""
        return self.said[-1] if self.said else ""


def read(turn: Turn) -> Conversation:
    """Read history and input."""
    items = turn.items
    recent = [*_after_last_user_message(items)]
    return Conversation(
        said=[text_of(item)[:READ_CHARACTERS] for item in items if _is_message(item, "user")],
        called=frozenset(item["name"] for item in recent if item.get("type") == "function_call"),
        outputs=[*_outputs(items, recent)],
        instructions=_instructions(turn, items),
    )


def input_words(turn: Turn) -> int:
    """Count the words that a model would be given."""
    texts = [turn.instructions or "", *(_words_of(item) for item in turn.items)]
    return sum(count(text) for text in texts)


def output_of(item: Item) -> str:
    """Return the text of a `function_call_output`, whose output is a string or parts."""
    return _text_in(item, "output")


def _after_last_user_message(items: Sequence[Item]) -> Sequence[Item]:
    for index in range(len(items) - 1, -1, -1):
        if _is_message(items[index], "user"):
            return items[index + 1 :]
    return items


def _outputs(items: Sequence[Item], recent: Sequence[Item]) -> Iterator[ToolOutput]:
    names = {i.get("call_id"): i["name"] for i in items if i.get("type") == "function_call"}
    for item in recent:
        if item.get("type") == "function_call_output":
            yield ToolOutput(names.get(item.get("call_id"), ""), output_of(item))


def _instructions(turn: Turn, items: Sequence[Item]) -> str:
    given = [text_of(i) for i in items if _is_message(i, "system", "developer")]
    return "\n".join(text for text in (turn.instructions, *given) if text)


def _is_message(item: Item, *roles: str) -> bool:
    return item.get("type") == "message" and item.get("role") in roles


def _words_of(item: Item) -> str:
    return " ".join(_text_in(item, key) for key in ("content", "summary", "arguments", "output"))


def _text_in(item: Item, key: str) -> str:
    # Items of unknown types pass through the channel unchecked, so these may hold anything.
    value = item.get(key)
    return text_of({"content": value}) if isinstance(value, str | list) else ""
