"""Tests of the agent, through the real host, without a server; they call its model."""

from channel.testing import ask


AGENT = "agent.assistant:agent"
CLOCK = {
    "type": "function",
    "name": "clock",
    "description": "Tell the time of day at an offset from UTC, in hours.",
    "parameters": {
        "type": "object",
        "properties": {"utc_offset_hours": {"type": "number"}},
        "required": ["utc_offset_hours"],
        "additionalProperties": False,
    },
}


def test_it_asks_its_client_for_the_time() -> None:
    reply = ask(AGENT, "What time is it in Tokyo?", tools=[CLOCK])

    assert [call.name for call in reply.calls] == ["clock"]
    assert "21:45" in reply.give("21:45").text


def test_it_remembers() -> None:
    first = ask(AGENT, "My name is Ada.")

    assert "Ada" in first.ask("What is my name?").text
