"""An agent that keeps something of its own in the table, as users of `DynamoDBHistoryProvider` do."""

from collections.abc import AsyncIterator

from agent_framework import Message

from channel import AgentEvent, Turn
from infra.agent_framework import DynamoDBHistoryProvider


_history = DynamoDBHistoryProvider()


async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
    """Say how many messages were kept before, and keep one more."""
    before = await _history.get_messages("notes")
    await _history.save_messages("notes", [Message("user", [turn.text])])
    yield f"{len(before)} before"
