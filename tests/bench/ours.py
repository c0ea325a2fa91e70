"""The project's app as the benchmark serves it: memory store, a fixed key, the bench agent."""

from channel.auth import FixedKeys, Principal
from channel.host import AgentHost
from channel.responses.channel import ResponsesChannel
from tests.bench.agents import echo


KEY = "bench-key"

app = AgentHost(
    echo,
    channels=[ResponsesChannel()],
    authenticator=FixedKeys({KEY: Principal("bench")}),
).app
