"""Tests of the agent, through the real host, without a server; they call its model."""

from channel.testing import ask


AGENT = "agent.assistant:agent"


def test_it_looks_at_the_clock() -> None:
    reply = ask(AGENT, "What time is it in Tokyo?")

    assert reply.status == "completed"
    assert [tool.name for tool in reply.tools] == ["clock"]


def test_it_remembers() -> None:
    first = ask(AGENT, "My name is Ada.")

    assert "Ada" in first.ask("What is my name?").text
