"""The project's app as the benchmark serves it: memory store, a fixed key, the bench agent."""

from starlette.applications import Starlette

from channel.auth import FixedKeys, Principal
from channel.host import AgentHost
from channel.responses.channel import ResponsesChannel
from tests.bench.agents import echo


KEY = "bench-key"


def _served(channel: ResponsesChannel) -> Starlette:
    keys = FixedKeys({KEY: Principal("bench")})
    return AgentHost(echo, channels=[channel], authenticator=keys).app


app = _served(ResponsesChannel())
beating_app = _served(ResponsesChannel(keepalive_s=1))
"""The same with a keep-alive each second."""
