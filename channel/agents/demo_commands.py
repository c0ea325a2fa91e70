"""Commands: lines such as `demo: refuse` that make the demo agent do what real models seldom do."""

import json
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from msgspec import Struct

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    OutputItem,
    RefusalDelta,
    ToolFinished,
    ToolStarted,
)
from channel.agents.demo_words import count, pieces
from channel.responses.protocol.items import output_text


MAX_WAIT_S: Final = 600
MAX_COUNT: Final = 10_000
PREFIX: Final = "demo:"
READ_CHARACTERS: Final = 4_000
HELP_QUESTIONS: Final = frozenset({"help", "help me", "what can you do"})

HELP: Final = """\
I am the demo agent: no model, just a few rules, and the same answer every time.
- I remember: “My name is Ada”, “Remember that the code is 42”, “What is my name?”, “What did I tell you?”
- I call your function tools when you name them or tool_choice says so, and I use their outputs.
- I fill any JSON schema of text.format, describe images and files, and think when reasoning is set.
- These lines make me do rarer things: “demo: refuse”, “demo: cite”, “demo: tool”, “demo: item”, \
“demo: filter”, “demo: fail”, “demo: fail at once”, “demo: count 100”, “demo: wait 5” (seconds)."""


class Pause(Struct, frozen=True):
    """Wait before going on; for the demo agent itself, never yielded to the host."""

    seconds: float


Step: TypeAlias = AgentEvent | Pause
Command: TypeAlias = Callable[[], Iterator[Step]]


def find(text: str) -> Command | None:
    """Return what the first command line of a text asks for."""
    text = text[:READ_CHARACTERS]
    if text.strip(" \t\n.!?").lower() in HELP_QUESTIONS:
        return _help
    lines = (line.strip(" \t.!").lower() for line in text.splitlines())
    commands = (_command(line.removeprefix(PREFIX)) for line in lines if line.startswith(PREFIX))
    return next(filter(None, commands), None)


def _command(said: str) -> Command | None:
    *name, last = said.split() or [""]
    if not last.isdecimal():
        return COMMANDS.get(" ".join([*name, last]))
    number = int(last[:9])
    return {"wait": lambda: _wait(number), "count": lambda: _count(number)}.get(" ".join(name))


def _help() -> Iterator[Step]:
    yield from pieces(HELP)


def _refuse() -> Iterator[Step]:
    for piece in pieces("I am sorry, but I was told to refuse this."):
        yield RefusalDelta(piece)


def _fail() -> Iterator[Step]:
    yield from pieces("I will fail in the middle of ")
    yield from _fail_at_once()


def _fail_at_once() -> Iterator[Step]:
    raise RuntimeError("the demo agent was told to fail")
    yield  # a generator, so that it fails when it is run


def _cite() -> Iterator[Step]:
    before, cited = "As they say, ", "this domain is for use in examples"
    yield from pieces(before + cited)
    yield Annotation(
        {
            "type": "url_citation",
            "url": "https://example.com/",
            "title": "Example Domain",
            "start_index": len(before),
            "end_index": len(before) + len(cited),
        }
    )
    yield "."


def _tool() -> Iterator[Step]:
    text = "how many words is this"
    yield ToolStarted("call_demo_tool", "count_words", json.dumps({"text": text}))
    yield ToolFinished("call_demo_tool", output=str(count(text)))
    yield from pieces(f"I ran a tool of my own: count_words found {count(text)} words.")


def _item() -> Iterator[Step]:
    content = [output_text("This message is an output item that was passed through whole.")]
    yield OutputItem({"type": "message", "role": "assistant", "content": content})


def _filter() -> Iterator[Step]:
    yield from pieces("This answer is cut by the ")
    yield Finish("content_filter")


def _wait(seconds: int) -> Iterator[Step]:
    seconds = min(seconds, MAX_WAIT_S)
    yield "Waiting… "
    yield Pause(seconds)
    yield from pieces(f"that took {seconds} seconds.")


def _count(last: int) -> Iterator[Step]:
    yield from (f"{number} " for number in range(1, min(last, MAX_COUNT) + 1))


COMMANDS: Final[dict[str, Command]] = {
    "help": _help,
    "refuse": _refuse,
    "fail": _fail,
    "fail at once": _fail_at_once,
    "cite": _cite,
    "tool": _tool,
    "item": _item,
    "filter": _filter,
}
