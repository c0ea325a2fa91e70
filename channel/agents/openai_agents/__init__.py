"""Agents of the OpenAI Agents SDK, unmodified."""

from channel.agents.openai_agents.adapter import adapt


__all__ = ["adapt"]
