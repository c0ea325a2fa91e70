"""What `lambda-responses new` writes: served as users serve it, driven by `openai`, tested by its own tests."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from openai import OpenAI
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall

from handler.cli import main
from handler.new import AGENT, FRAMEWORKS, MODELS
from tests.channel.agents.scripts import Call, Say, Seen, Spend, Step
from tests.e2e.server import running
from tests.models.bedrock_server import BedrockServer
from tests.models.openai_server import OpenAIServer


ON_BEDROCK = ("bedrock", "strands")
WITH_MODEL = [each for each in FRAMEWORKS if each != "plain"]

AWS = {
    "AWS_REGION": "eu-central-1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
}

OFFSET = {"utc_offset_hours": 9}
CLOCK = FunctionToolParam(
    type="function",
    name="clock",
    description="Tells the time.",
    parameters={
        "type": "object",
        "properties": {"utc_offset_hours": {"type": "number"}},
        "required": ["utc_offset_hours"],
        "additionalProperties": False,
    },
    strict=True,
)
CALENDAR = FunctionToolParam(
    type="function",
    name="calendar",
    description="Tells whether the user is free.",
    parameters={"type": "object", "properties": {}, "additionalProperties": False},
    strict=False,
)
TOLD: list[Sequence[Step]] = [
    (Call("clock", OFFSET, "call_1"), Spend(9, 3)),
    (Say(("It is ", "21:45.")), Spend(9, 3)),
    (Say(("Nice to meet you.",)), Spend(9, 3)),
    (Say(("Your name is ", "Ada.")), Spend(9, 3)),
]
"""What the model says to the tests of a user, and to a client."""
CALLED: list[Sequence[Step]] = [
    (Call("calendar", {}, "call_2"), Spend(9, 3)),
    (Say(("You are ", "free.")), Spend(9, 3)),
]
"""What it says to a client that has a tool of its own."""


def written(folder: Path, framework: str) -> Path:
    result = CliRunner().invoke(main, ["new", str(folder), "--framework", framework])
    assert result.exit_code == 0, result.output
    return folder


@contextmanager
def model_of(
    framework: str, script: Sequence[Sequence[Step]]
) -> Iterator[tuple[list[Seen], dict[str, str]]]:
    """Start the server of a model; give what it sees, and the environment that leads to it."""
    if framework in ON_BEDROCK:
        with BedrockServer(script).in_thread() as bedrock:
            environ = {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": bedrock.endpoint, **AWS}
            yield bedrock.seen, environ
        return
    with OpenAIServer(script) as server:
        yield server.seen, {"OPENAI_API_KEY": "test", "OPENAI_BASE_URL": server.url}


def streamed(client: OpenAI, **fields: Any) -> tuple[list[str], Any]:
    """Return the pieces of a streamed answer, and its response."""
    with client.responses.stream(model="agent", **fields) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        return pieces, stream.get_final_response()


def texts(seen: Seen) -> Sequence[tuple[str, str]]:
    return [(role, text) for role, text in seen.texts if role != "system"]


@pytest.mark.parametrize("framework", WITH_MODEL)
def test_an_agent_as_it_is_written_streams_uses_tools_and_remembers(
    tmp_path: Path, framework: str
) -> None:
    folder = written(tmp_path, framework)
    with (
        model_of(framework, [*TOLD, *CALLED]) as (seen, environ),
        running(folder, AGENT=AGENT, **environ) as root,
        OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {"input": "What time is it in Tokyo?"}
        if framework in MODELS:
            first = client.responses.create(model="agent", **asked, tools=[CLOCK])
            (call,) = first.output
            assert isinstance(call, ResponseFunctionToolCall)
            output = {"type": "function_call_output", "call_id": call.call_id, "output": "21:45"}
            asked = {"input": [output], "previous_response_id": first.id, "tools": [CLOCK]}
        pieces, told = streamed(client, **asked)
        _, named = streamed(client, input="My name is Ada.", previous_response_id=told.id)
        _, known = streamed(client, input="What is my name?", previous_response_id=named.id)
        _, asking = streamed(
            client, input="Am I free?", previous_response_id=known.id, tools=[CALENDAR]
        )
        free = {"type": "function_call_output", "call_id": "call_2", "output": "free"}
        pieces_free, answered = streamed(
            client, input=[free], previous_response_id=asking.id, tools=[CALENDAR]
        )

    assert len(pieces) > 1
    assert told.output_text == "".join(pieces) == "It is 21:45."
    assert known.output_text == "Your name is Ada."
    assert known.usage is not None
    assert known.usage.total_tokens == 12
    assert "Look at the clock" in "".join(text for role, text in seen[0].texts if role == "system")
    assert seen[0].tools == ["clock"]
    assert [name for _, name in seen[1].calls] == ["clock"]
    (tool_text,) = (text for role, text in seen[1].texts if role == "tool")
    assert ":" in tool_text
    (call,) = asking.output
    assert (call.type, call.name, call.call_id) == ("function_call", "calendar", "call_2")
    assert answered.output_text == "".join(pieces_free) == "You are free."
    assert ("tool", "free") in seen[5].texts
    said = texts(seen[3])
    assert [text for role, text in said if role == "user"] == [
        "What time is it in Tokyo?",
        "My name is Ada.",
        "What is my name?",
    ]
    assert [text for role, text in said if role == "assistant"] == [
        "It is 21:45.",
        "Nice to meet you.",
    ]


def test_the_agent_without_a_framework_streams_uses_its_tool_and_remembers(tmp_path: Path) -> None:
    with (
        running(written(tmp_path, "plain"), AGENT=AGENT, SHOW_TOOLS="1") as root,
        OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as client,
    ):
        _, told = streamed(client, input="What time is it in Tokyo?")
        pieces, known = streamed(client, input="My name is Ada.", previous_response_id=told.id)

    assert [item.type for item in told.output] == ["mcp_call", "message"]
    assert known.output_text == "".join(pieces)
    assert "What time is it in Tokyo?" in known.output_text


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_tests_of_an_agent_as_it_is_written_pass(tmp_path: Path, framework: str) -> None:
    folder = written(tmp_path, framework)
    with model_of(framework, TOLD) as (seen, environ):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "agent"],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert len(seen) == (0 if framework == "plain" else len(TOLD))
