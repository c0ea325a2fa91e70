"""Agents of Strands, unmodified."""

from channel.agents.strands.adapter import adapt


__all__ = ["adapt"]
