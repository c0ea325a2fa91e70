"""Agents and workflows of Microsoft Agent Framework, unmodified."""

from channel.agents.agent_framework.adapter import adapt


__all__ = ["adapt"]
