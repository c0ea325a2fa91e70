"""A model of Amazon Bedrock. It has no tools of its own; those of its clients, it calls.

Its settings, in the environment: AWS's own (AWS_REGION, AWS_PROFILE, …), and MODEL, the id of a
model or of an inference profile. On Lambda, AgentPolicyArns must name a policy that allows
bedrock:InvokeModelWithResponseStream; without code of your own, AGENT=bedrock:<model id> does.
"""

from os import getenv

from channel.agents.bedrock import converse_agent
from infra.bedrock import make_bedrock_client


agent = converse_agent(
    getenv("MODEL", "global.anthropic.claude-sonnet-4-6"),
    make_bedrock_client(getenv("AWS_REGION")),
    instructions="Answer in a sentence or two. Look at the clock when you are asked for the time.",
)
