"""The openai package reads every stream event and every response; slow to import, so kept apart."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from openai.types.responses import (
    CompactedResponse,
    InputTokenCountResponse,
    Response as OpenAIResponse,
    ResponseCompactionItem,
    ResponseStreamEvent,
)
from pydantic import TypeAdapter

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    ToolFinished,
    ToolStarted,
    Turn,
    Usage,
)
from channel.responses.protocol.response import Status
from tests.channel.asgi import create, creating, hosted, request
from tests.channel.responses.protocol.machine import initial


pytestmark = pytest.mark.anyio

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CITATION = {
    "type": "url_citation",
    "url": "https://example.com",
    "title": "Example",
    "start_index": 0,
    "end_index": 1,
}
TOOLS = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in "fg"]


async def everything(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield ReasoningDelta("Hm")
    yield ReasoningDelta("m", new_part=True)
    yield ToolStarted("t1", "search", '{"q":1}')
    yield ToolStarted("t2", "search")
    yield "See "
    yield "example"
    yield Annotation(CITATION)
    yield RefusalDelta("No")
    yield ToolFinished("t1", "found")
    yield ToolFinished("t2", error="no net")
    yield ToolStarted("t3", "search")
    yield OutputItem({"type": "compaction", "encrypted_content": "x"})
    yield FunctionCall("f", "{}")
    yield FunctionCallDelta("c2", '{"a"', "g")
    yield Usage(3, 4, 1, 1, 2)
    match turn.text:
        case "incomplete":
            yield Finish("max_output_tokens")
        case "failed":
            raise RuntimeError


def strictly(kind: Any, given: Any) -> Any:
    """Return what the package's type makes of it, written out as JSON again."""
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    built = adapter.validate_json(json.dumps(given), strict=True)
    return json.loads(adapter.dump_json(built, exclude_unset=True, warnings="error"))


@pytest.mark.parametrize("outcome", ["completed", "incomplete", "failed"])
async def test_every_stream_event_is_one_of_the_packages(outcome: str) -> None:
    app = hosted(everything, shows_tools=True)

    wire = await creating(stream=True, input=outcome, tools=TOOLS).run(app)

    assert wire.types[-1] == outcome
    assert len({*wire.types}) == 23  # all but the other two outcomes
    for event in wire.events:
        assert strictly(EVENTS, event) == event


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}},
        {
            "tools": TOOLS,
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}],
            },
        },
        {"reasoning": {"effort": "low"}, "text": {"verbosity": "low"}},
        {"metadata": {"k": "v"}, "instructions": "Be brief.", "service_tier": "flex"},
        {"truncation": "auto", "max_output_tokens": 16, "temperature": 1, "top_p": 1},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "p", "max_tool_calls": 2},
    ],
)
async def test_every_response_is_one_of_the_packages(fields: dict[str, Any]) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "ok"

    response = await create(hosted(agent), **fields)

    assert strictly(OpenAIResponse, response) == response
    assert OpenAIResponse.model_validate(response).output_text == "ok"


@pytest.mark.parametrize("status", Status)
def test_a_response_of_any_status_is_one_of_the_packages(status: Status) -> None:
    response = msgspec.structs.replace(initial(), status=status)
    given = json.loads(msgspec.json.encode(response))

    assert strictly(OpenAIResponse, given) == given


async def test_a_count_and_a_compacted_window_are_the_packages() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "In short."
        yield Usage(3, 4, 1, 1, 2)

    app, body = hosted(agent), {"model": "m", "input": [{"role": "user", "content": "hi"}]}

    count = (await request("POST", "/v1/responses/input_tokens", body).run(app)).json
    window = (await request("POST", "/v1/responses/compact", body).run(app)).json

    assert strictly(InputTokenCountResponse, count) == count
    assert strictly(ResponseCompactionItem, window["output"][1]) == window["output"][1]
    # The package has no type for a user's message among output items, though its text names them.
    bare = {**window, "output": window["output"][1:]}
    assert strictly(CompactedResponse, bare) == bare


async def test_a_stream_that_begins_with_a_compaction_is_the_packages() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "In short."

    app = hosted(agent)
    first = await create(app, input="word " * 1000)

    wire = await creating(
        stream=True,
        previous_response_id=first["id"],
        context_management=[{"type": "compaction", "compact_threshold": 1000}],
    ).run(app)

    kinds = [item["type"] for item in wire.events[-1]["response"]["output"]]
    assert kinds == ["compaction", "message"]
    for event in wire.events:
        assert strictly(EVENTS, event) == event
