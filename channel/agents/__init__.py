"""Agents that ship with the project, each imported only when it is named."""
