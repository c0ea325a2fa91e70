"""An agent of a few lines and no model: call yours where this one looks for words.

It has no settings; whatever you read of the environment is one.
"""

from collections.abc import AsyncIterator
from time import gmtime, strftime, time

from channel import AgentEvent, ToolFinished, ToolStarted, Turn


def clock(utc_offset_hours: float) -> str:
    """Tell the time of day at an offset from UTC, in hours."""
    return strftime("%H:%M", gmtime(time() + utc_offset_hours * 3600))


async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
    """Tell the time, or what was said before."""
    if "time" in turn.text:
        yield ToolStarted("clock-1", "clock", '{"utc_offset_hours": 9}')
        told = clock(9)
        yield ToolFinished("clock-1", told)
        yield f"It is {told} in Tokyo."
        return
    parts = [
        part for item in turn.history if item.get("role") == "user" for part in item["content"]
    ]
    said = [part["text"] for part in parts if "text" in part]
    yield "You said: "
    for text in [*said, turn.text]:
        yield f"{text} "
