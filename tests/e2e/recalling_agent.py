"""An agent that says what it was given, and sums that up when it is asked to."""

from collections.abc import AsyncIterator

from channel.agent import AgentEvent, Turn, Usage
from channel.responses.protocol.items import text_of
from channel.responses.windows.compaction import REQUEST


async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
    texts = [
        f"{item['role']}: {text_of(item)[:120]}" if item["type"] == "message" else item["type"]
        for item in turn.items
    ]
    if turn.text == REQUEST:
        yield f"{len(texts) - 1} items, the first of {texts[0][:16]}"
    else:
        yield " | ".join(texts)
    yield Usage(len(texts), 1)
