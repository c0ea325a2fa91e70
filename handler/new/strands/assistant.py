"""An agent of Strands, on Amazon Bedrock.

Its settings, in the environment: AWS's own (AWS_REGION, AWS_PROFILE, …), and MODEL, the id of a
model or of an inference profile. On Lambda, AgentPolicyArns must name a policy that allows
bedrock:InvokeModelWithResponseStream.
"""

from os import getenv
from time import gmtime, strftime, time

from strands import Agent, tool
from strands.models import BedrockModel


@tool
def clock(utc_offset_hours: float) -> str:
    """Tell the time of day at an offset from UTC, in hours."""
    return strftime("%H:%M", gmtime(time() + utc_offset_hours * 3600))


agent = Agent(
    BedrockModel(model_id=getenv("MODEL", "global.anthropic.claude-sonnet-4-6")),
    system_prompt="Answer in a sentence or two. Look at the clock when you are asked for the time.",
    tools=[clock],
)
