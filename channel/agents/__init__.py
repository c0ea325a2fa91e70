"""Agents: those that ship with the project, and one adapter for each framework; imported only when used."""
