"""The demo agent: no network, no model, the same answer every time; it shows all that a client can see.

Say "help" to it. It is also an example of an agent: `agent` below is all that the host calls.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from channel.agent import (
    Agent,
    AgentEvent,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    Turn,
    TurnError,
    Usage,
    accepts,
)
from channel.agents import demo_commands, demo_tools
from channel.agents.demo_commands import Pause, Step
from channel.agents.demo_conversation import Conversation, input_words, read
from channel.agents.demo_media import describe_media
from channel.agents.demo_memory import recall
from channel.agents.demo_schema import NoInstanceError, instance
from channel.agents.demo_words import clip, count, pieces, quote


EFFORTS_OF_TWO_PARTS: Final = frozenset({"high", "xhigh", "max"})
UPPER_CASE: Final = re.compile(r"\bupper[ -]?case\b", re.IGNORECASE)
OUTPUT_CHARACTERS: Final = 1_000


def demo_agent(
    delay_s: float = 0.0, *, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
) -> Agent:
    """Return a demo agent that waits for `delay_s` before each word but the first."""

    @accepts("text", "reasoning", "max_output_tokens")
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        has_begun = False
        for step in _limited(_steps(turn), turn):
            if isinstance(step, Pause):
                await sleep(step.seconds)
                continue
            if delay_s and has_begun and _words(step):
                await sleep(delay_s)
            has_begun = True
            yield step

    return agent


agent: Final = demo_agent()


def _steps(turn: Turn) -> Iterator[Step]:
    """Decide on the whole answer, then yield it: what is wrong with a request comes out first."""
    conversation = read(turn)
    if command := demo_commands.find(turn.text):
        yield from command()
        return
    seen = describe_media(turn.input)
    calls = demo_tools.calls(turn, conversation)
    text = "" if calls else _text(turn, conversation, seen)
    yield from _thoughts(turn, conversation, calls)
    yield from demo_tools.streamed(calls)
    yield from pieces(text)


def _limited(steps: Iterable[Step], turn: Turn) -> Iterator[Step]:
    """Pass steps on up to `max_output_tokens`, a word being a token, and tell the usage at the end."""
    limit = turn.options.get("max_output_tokens")
    output_tokens = reasoning_tokens = 0
    ending: Finish | None = None
    for step in steps:
        tokens = _words(step)
        if limit is not None and output_tokens + tokens > limit:
            ending = Finish("max_output_tokens")
        elif isinstance(step, Finish):
            ending = step
        if ending:
            break
        output_tokens += tokens
        reasoning_tokens += tokens if isinstance(step, ReasoningDelta) else 0
        yield step
    yield Usage(
        input_tokens=input_words(turn),
        output_tokens=output_tokens,
        reasoning_tokens=reasoning_tokens,
    )
    if ending:
        yield ending


def _words(step: Step) -> int:
    match step:
        case str(text) | TextDelta(text=text) | RefusalDelta(text=text) | ReasoningDelta(text=text):
            return count(text)
        case FunctionCall(arguments=arguments) | FunctionCallDelta(arguments=arguments):
            return count(arguments)
        case OutputItem(item=item):
            return sum(count(part.get("text", "")) for part in item.get("content", ()))
        case _:
            return 0


def _thoughts(
    turn: Turn, conversation: Conversation, calls: list[FunctionCall]
) -> Iterator[ReasoningDelta]:
    reasoning = turn.options.get("reasoning") or {}
    effort = reasoning.get("effort")
    if effort == "none" or not (effort or reasoning.get("summary")):
        return
    heard = f"I look at {len(turn.items)} items; the user last said {quote(conversation.asked)}."
    yield from map(ReasoningDelta, pieces(heard))
    if effort in EFFORTS_OF_TWO_PARTS:
        names = ", ".join(call.name for call in calls)
        first, *rest = pieces(f"So I will {f'call {names}' if calls else 'answer'}.")
        yield ReasoningDelta(first, new_part=True)
        yield from map(ReasoningDelta, rest)


def _text(turn: Turn, conversation: Conversation, seen: list[str]) -> str:
    match (turn.options.get("text") or {}).get("format"):
        case {"type": "json_schema", "schema": schema}:
            return json.dumps(_instance(schema, conversation.asked), ensure_ascii=False)
        case {"type": "json_object"}:
            answer = {"answer": _prose(conversation, seen)}
            return json.dumps(answer, ensure_ascii=False)
        case _:
            prose = _prose(conversation, seen)
            return prose.upper() if UPPER_CASE.search(conversation.instructions) else prose


def _instance(schema: Mapping[str, Any], text: str) -> Any:
    try:
        return instance(schema, text)
    except NoInstanceError:
        raise TurnError(
            "The demo agent finds no instance of this JSON schema.",
            code="invalid_json_schema",
            status=400,
            param="text.format.schema",
        ) from None


def _prose(conversation: Conversation, seen: list[str]) -> str:
    used = [
        f"The tool {output.name} answered: {clip(output.text, OUTPUT_CHARACTERS)}"
        for output in conversation.outputs
    ]
    answers = used or recall(conversation.said)
    return " ".join([*seen, *(answers or _greeting(conversation)), *_obedience(conversation)])


def _greeting(conversation: Conversation) -> Iterator[str]:
    said = conversation.said
    if conversation.asked:
        yield f"Hello! You said: {quote(conversation.asked)}."
    if len(said) > 1:
        yield f"I have heard {len(said)} messages from you; the one before was {quote(said[-2])}."
    else:
        yield f"I have heard {len(said)} message{'' if said else 's'} from you. Say “help” for more."


def _obedience(conversation: Conversation) -> Iterator[str]:
    if conversation.instructions:
        words = count(conversation.instructions)
        yield f"(I was given instructions of {words} words; I only obey “Answer in upper case”.)"
