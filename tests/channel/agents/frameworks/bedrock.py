"""Bedrock's Converse API: the real client against a server that speaks its wire, and a scripted model in it."""

from collections.abc import Mapping
from typing import Any, Final

from channel.agents.bedrock import converse_agent
from infra.bedrock import make_bedrock_client
from tests.channel.agents.scripts import Model, Script, Scripted
from tests.models.bedrock_server import BedrockServer


MODEL_ID: Final = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"


_UNSUPPORTED: Final = {
    "reasoning_tokens_are_counted": (
        "The usage of Converse has the tokens of reasoning among those of the output, uncounted."
    ),
    **dict.fromkeys(
        (
            "the_agents_own_tool_is_hidden",
            "the_agents_own_tool_is_shown_where_the_host_shows_tools",
            "a_tool_that_was_shown_is_remembered",
            "a_failure_of_the_agents_own_tool_does_not_leak",
        ),
        "A model has no tools of its own: who wants them has an agent of a framework.",
    ),
}


class _Bedrock:
    unsupported: Mapping[str, str] = _UNSUPPORTED

    def agent(self, script: Script) -> tuple[Any, Model]:
        server = BedrockServer(script)
        client = make_bedrock_client(None, server.endpoint, attempts=1)
        server.start(at_end=client.close)
        return converse_agent(MODEL_ID, client, instructions="Be kind."), server


SCRIPTED: Final[Scripted] = _Bedrock()
