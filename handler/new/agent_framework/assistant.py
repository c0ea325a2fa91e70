"""An agent of Microsoft's Agent Framework.

Its settings, in the environment: OPENAI_API_KEY; OPENAI_BASE_URL, where the model is not OpenAI's;
MODEL, which is gpt-5-mini unless it says otherwise.
"""

from os import getenv
from time import gmtime, strftime, time

from agent_framework import Agent
from agent_framework.openai import OpenAIChatClient


def clock(utc_offset_hours: float) -> str:
    """Tell the time of day at an offset from UTC, in hours."""
    return strftime("%H:%M", gmtime(time() + utc_offset_hours * 3600))


agent = Agent(
    OpenAIChatClient(model=getenv("MODEL", "gpt-5-mini")),
    "Answer in a sentence or two. Look at the clock when you are asked for the time.",
    tools=[clock],
)
