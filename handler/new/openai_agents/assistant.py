"""An agent of the OpenAI Agents SDK.

Its settings, in the environment: OPENAI_API_KEY; OPENAI_BASE_URL, where the model is not OpenAI's;
MODEL, which is gpt-5-mini unless it says otherwise.
"""

from os import getenv
from time import gmtime, strftime, time

from agents import Agent, function_tool


@function_tool
def clock(utc_offset_hours: float) -> str:
    """Tell the time of day at an offset from UTC, in hours."""
    return strftime("%H:%M", gmtime(time() + utc_offset_hours * 3600))


agent = Agent(
    name="Assistant",
    instructions="Answer in a sentence or two. Look at the clock when you are asked for the time.",
    model=getenv("MODEL", "gpt-5-mini"),
    tools=[clock],
)
