"""Agents of Pydantic AI, unmodified."""

from channel.agents.pydantic_ai.adapter import adapt


__all__ = ["adapt"]
