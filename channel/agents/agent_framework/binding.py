"""Providers of an Agent Framework agent that want to know which response a run is for."""

from contextlib import AsyncExitStack
from typing import Any

from channel.agent import Turn


async def bind(stack: AsyncExitStack, provider: Any, turn: Turn) -> None:
    """Tell a provider that wants to know which response the run is for, until the end of the run."""
    bind_context = getattr(provider, "bind_request_context", None)
    if not callable(bind_context):
        return
    ids = {"response_id": turn.response_id, "previous_response_id": turn.previous_response_id}
    scope = bind_context(**ids)
    if hasattr(scope, "__aenter__"):
        await stack.enter_async_context(scope)
    else:
        stack.enter_context(scope)
