"""`AGENT=bedrock:<model id>` as users run it: the local server, the `openai` package, and Bedrock's wire behind."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall

from tests.channel.agents.scripts import Call, Say, Spend, Think
from tests.e2e.server import running
from tests.models.bedrock_server import BedrockServer, Cut, Refuse, ServerScript, Throw


MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
CLOCK = FunctionToolParam(
    type="function",
    name="clock",
    description="Tells the time.",
    parameters={
        "type": "object",
        "properties": {"zone": {"type": "string"}},
        "required": ["zone"],
        "additionalProperties": False,
    },
    strict=True,
)


@contextmanager
def served(script: ServerScript) -> Iterator[tuple[OpenAI, BedrockServer]]:
    bedrock = BedrockServer(script)
    local = running(
        AGENT=f"bedrock:{MODEL}",
        AGENT_INSTRUCTIONS="Be kind.",
        BEDROCK_ENDPOINT=bedrock.endpoint,
    )
    with (
        bedrock.in_thread(),
        local as root,
        OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as client,
    ):
        yield client, bedrock


def words(*said: str) -> tuple[Any, ...]:
    return (Say(said), Spend(7, 3))


def test_a_model_streams_calls_tools_and_remembers_three_turns() -> None:
    script = [
        (
            Think(("It ", "depends."), "signed"),
            Call("clock", {"zone": "UTC"}, "tooluse_1"),
            Spend(5, 4),
        ),
        words("It is ", "noon."),
        words("You asked for the time."),
    ]
    with served(script) as (client, bedrock):
        with client.responses.stream(
            model="any", input="What time is it?", tools=[CLOCK], reasoning={"effort": "low"}
        ) as stream:
            kinds = [event.type for event in stream]
            first = stream.get_final_response()
        (call,) = (item for item in first.output if isinstance(item, ResponseFunctionToolCall))
        with client.responses.stream(
            model="any",
            previous_response_id=first.id,
            tools=[CLOCK],
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "12:00"}],
        ) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
            second = stream.get_final_response()
        third = client.responses.create(
            model="any", previous_response_id=second.id, input="What did I ask for?"
        )

    assert "response.reasoning_summary_text.delta" in kinds
    assert (call.name, json.loads(call.arguments)) == ("clock", {"zone": "UTC"})
    assert deltas == ["It is ", "noon."]
    assert third.output_text == "You asked for the time."
    assert third.usage is not None
    assert third.usage.total_tokens == 10
    assert [len(asked.body["messages"]) for asked in bedrock.asked] == [1, 3, 5]
    assert bedrock.seen[2].texts == [
        ("system", "Be kind."),
        ("user", "What time is it?"),
        ("tool", "12:00"),
        ("assistant", "It is noon."),
        ("user", "What did I ask for?"),
    ]
    assert bedrock.seen[2].signatures == ["signed"]


def test_errors_of_the_model_are_the_packages_errors() -> None:
    script: ServerScript = [
        (Refuse(400, "ValidationException", "prompt is too long: 9 tokens > 8 maximum"),),
        (Say(("Well, ",)), Throw("throttlingException", "secret detail")),
        (Say(("Well, ",)), Cut()),
    ]
    with served(script) as (client, _):
        with pytest.raises(openai.BadRequestError) as too_long:
            client.responses.create(model="any", input="a long story")
        busy = client.responses.create(model="any", input="hi")
        events = [*client.responses.create(model="any", input="hi", stream=True)]

    assert too_long.value.code == "context_length_exceeded"
    assert busy.error is not None
    assert (busy.status, busy.error.code) == ("failed", "rate_limit_exceeded")
    assert "secret" not in busy.error.message
    assert events[-1].type == "response.failed"
    assert events[-1].response.output_text == "Well, "
    assert events[-1].response.error is not None
    assert events[-1].response.error.code == "server_error"
