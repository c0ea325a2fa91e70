"""A model of an OpenAI-compatible upstream: a scripted server on 127.0.0.1, asked by the Responses API."""

import asyncio
from typing import Any

from channel.agents.openai_upstream import upstream_agent
from tests.channel.agents.scripts import Script
from tests.models.openai_server import OpenAIServer


_NO_TOOLS = "A model behind an API has no tools of its own that run here."


class _Upstream:
    unsupported: dict[str, str] = {  # noqa: RUF012 - read only
        "the_agents_own_tool_is_hidden": _NO_TOOLS,
        "the_agents_own_tool_is_shown_where_the_host_shows_tools": _NO_TOOLS,
        "a_tool_that_was_shown_is_remembered": _NO_TOOLS,
        "a_failure_of_the_agents_own_tool_does_not_leak": _NO_TOOLS,
    }

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def agent(self, script: Script) -> tuple[Any, OpenAIServer]:
        server = OpenAIServer(script).start()
        task = asyncio.get_running_loop().create_task(_until_the_end(server))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        agent = upstream_agent("scripted", server.url, api_key="sk", instructions="Be kind.")
        return agent, server


async def _until_the_end(server: OpenAIServer) -> None:
    """Close the server with the loop of its test."""
    with server:
        await asyncio.Event().wait()


SCRIPTED = _Upstream()
