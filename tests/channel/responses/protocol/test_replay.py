"""The replay of a response: as it was told, and as the openai package reads it."""

import json
from collections.abc import Sequence
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import assume, given, settings, strategies as st
from openai import OpenAI
from openai.types.responses import ParsedResponse

from channel.responses.protocol.events import OutputItemAdded, OutputItemDone, StreamEvent
from channel.responses.protocol.items import Item
from channel.responses.protocol.replay import replayed
from channel.responses.protocol.response import Response, ResponseFailure, Status
from channel.responses.protocol.stream import ResponseStream, ToolPolicy, ending, queue
from channel.responses.sse import frame
from tests.channel.responses.protocol import test_stream_invariants as invariants
from tests.channel.responses.protocol.machine import BODY, initial, machine, types, wire


NOW = 1_700_000_009
CITATION = {"type": "url_citation", "url": "https://example.com", "title": "Example"}


def told(
    status: Status = Status.COMPLETED, *, background: bool = False
) -> tuple[list[StreamEvent], Response]:
    """Return the events of a turn that said everything there is, each text whole, and its response."""
    begun = initial()
    events: list[StreamEvent] = []
    if background:
        begun = msgspec.structs.replace(begun, background=True, status=Status.QUEUED)
        events += queue(begun)
    policy = ToolPolicy(frozenset({"f", "g"}))
    stream = ResponseStream(begun, body=BODY, position=1, tools=policy, shows_tools=True)
    events += stream.start()
    events += stream.reasoning_delta("Hm")
    events += stream.reasoning_delta("mm", new_part=True)
    events += stream.reasoning_delta("", encrypted_content="signed")
    for call_id, output, error in (("t1", "found", None), ("t2", None, "no net"), ("t3", "", None)):
        events += stream.tool_started(call_id, "search", '{"q":1}', "agent")
        events += stream.tool_finished(call_id, output, error)
    events += stream.text_delta("See example 🌍")
    events += stream.annotation(CITATION)
    events += stream.annotation({"type": "other", "n": [1]})
    events += stream.refusal_delta("No")
    events += stream.output_item({"type": "compaction", "encrypted_content": "x"})
    events += stream.output_item({"type": "acme:thing", "n": 1})
    events += stream.annotation(CITATION)
    events += stream.function_call("f", "")
    events += stream.function_call("g", '{"a":1}', "c2")
    events += stream.usage(input_tokens=3, output_tokens=4)
    events += stream.text_delta("and")
    failure = ResponseFailure("server_error", "Sorry.") if status is Status.FAILED else None
    reason = "content_filter" if status is Status.INCOMPLETE else None
    events += stream.settle(status, now=NOW, reason=reason, failure=failure)
    return events + stream.end(), stream.response


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("status", [status for status in Status if status.is_terminal])
def test_a_stream_whose_texts_came_whole_is_replayed_event_by_event(
    status: Status, background: bool
) -> None:
    events, response = told(status, background=background)

    assert replayed(response) == events


def test_what_came_in_pieces_is_replayed_as_one_delta() -> None:
    stream = machine("f")
    for text in ("Hel", "lo"):
        stream.text_delta(text)
    stream.function_call_delta("c1", '{"a"', "f")
    stream.function_call_delta("c1", ":1}")
    stream.settle(Status.COMPLETED, now=NOW)

    events = wire(replayed(stream.response))

    assert [event["delta"] for event in events if "delta" in event] == ["Hello", '{"a":1}']


def test_tools_that_ran_side_by_side_are_replayed_one_after_another() -> None:
    stream = machine(shows_tools=True)
    stream.tool_started("t1", "one", "{}", "agent")
    stream.tool_started("t2", "two", "{}", "agent")
    stream.tool_finished("t1", "done")
    stream.settle(Status.COMPLETED, now=NOW)  # cuts the second off

    events = replayed(stream.response)

    of_a_tool = ["output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta"]
    of_a_tool += ["mcp_call_arguments.done"]
    assert types(events) == [
        *("created", "in_progress"),
        *(*of_a_tool, "mcp_call.completed", "output_item.done"),
        *(*of_a_tool, "mcp_call.failed", "output_item.done"),
        "completed",
    ]


def test_a_response_that_said_nothing_is_replayed() -> None:
    stream = machine()
    stream.settle(Status.COMPLETED, now=NOW)

    assert types(replayed(stream.response)) == ["created", "in_progress", "completed"]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.IN_PROGRESS])
def test_a_response_that_has_not_ended_cannot_be_replayed(status: Status) -> None:
    with pytest.raises(ValueError, match="ended"):
        replayed(msgspec.structs.replace(initial(), status=status))


MESSAGE: Item = {
    "id": "msg_1",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}],
}
CALL: Item = {"id": "fc_1", "type": "function_call", "call_id": "c1", "name": "f"}
TOOL: Item = {"id": "mcp_1", "type": "mcp_call", "name": "f", "arguments": "", "server_label": "s"}


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"type": "message"},
        {**MESSAGE, "id": None},
        {**MESSAGE, "phase": "final_answer"},
        {**MESSAGE, "role": "user"},
        {**MESSAGE, "status": "in_progress"},
        {**MESSAGE, "content": "Hi"},
        {**MESSAGE, "content": []},
        {**MESSAGE, "content": ["Hi"]},
        {**MESSAGE, "content": [*MESSAGE["content"], {"type": "output_audio", "data": "x"}]},
        {**MESSAGE, "content": [{"type": "output_text", "text": "Hi"}]},
        {**MESSAGE, "content": [{**MESSAGE["content"][0], "logprobs": [{"token": "Hi"}]}]},
        {"id": "rs_1", "type": "reasoning", "summary": []},
        {"id": "rs_1", "type": "reasoning", "summary": ["Hm"]},
        {
            "id": "rs_1",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "Hm"}],
            "content": [],
        },
        CALL,
        {**CALL, "arguments": {}},
        {**CALL, "arguments": "{}", "status": None},
        {**TOOL, "output": {}},
        {**TOOL, "output": None, "status": "failed", "error": "no net"},
        {**TOOL, "output": None, "status": "failed", "error": {"content": ["no net"]}},
        {"id": "x", "type": "mcp_list_tools", "tools": []},
    ],
)
def test_an_item_of_another_shape_is_replayed_as_a_whole(item: Item) -> None:
    output = [item, MESSAGE]
    response = msgspec.structs.replace(initial(), status=Status.COMPLETED, output=output)

    events = replayed(response)

    assert events[2:4] == [OutputItemAdded(2, 0, item), OutputItemDone(3, 0, item)]
    assert events[-2] == OutputItemDone(9, 1, MESSAGE)
    assert [event.sequence_number for event in events] == [*range(len(events))]


class Scripted(httpx2.BaseTransport):
    """Answers every request with the stream it was given last."""

    def __init__(self) -> None:
        self.events: Sequence[StreamEvent] = ()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = b"".join(map(frame, self.events))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)


WIRE = Scripted()
SDK = OpenAI(api_key="none", max_retries=0, http_client=httpx2.Client(transport=WIRE))


def read_by_the_package(events: Sequence[StreamEvent]) -> tuple[list[Any], ParsedResponse[None]]:
    """Return the events that `responses.stream` gave, and its final response; raises what it does."""
    WIRE.events = events
    with SDK.responses.stream(model="agent", input="Hi") as stream:
        return [*stream], stream.get_final_response()


def plain(response: ParsedResponse[None]) -> Any:
    """Return what the package read, without what it parsed itself."""
    return without_parsed(response.model_dump(mode="json", exclude_unset=True, warnings=False))


def without_parsed(value: Any) -> Any:
    match value:
        case dict():
            own = ("parsed", "parsed_arguments")
            return {name: without_parsed(each) for name, each in value.items() if name not in own}
        case list():
            return [*map(without_parsed, value)]
        case _:
            return value


# The package's types do not know an agent's own annotations; it reads them all the same.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(invariants.AGENT_EVENTS, max_size=12),
    outcomes=invariants.OUTCOMES,
    is_parallel=st.booleans(),
    shows_tools=st.booleans(),
    background=st.booleans(),
)
def test_every_replay_is_a_legal_stream_that_ends_with_the_stored_response(
    said: list[invariants.Said],
    outcomes: list[Status],
    is_parallel: bool,
    shows_tools: bool,
    background: bool,
) -> None:
    policy = ToolPolicy(frozenset({"f", "g"}), is_parallel)
    begun = msgspec.structs.replace(initial(), background=background)
    stream = ResponseStream(begun, body=BODY, position=2, tools=policy, shows_tools=shows_tools)
    invariants.run(stream, said, outcomes)
    stored = stream.response
    names = [item["id"] for item in stored.output]
    assume(len({*names}) == len(names))  # of an agent's own: the package refuses equal ones

    events = replayed(stored)

    assert events[-1] == ending(len(events) - 1, stored)
    on_wire = wire(events)
    assert [event["sequence_number"] for event in on_wire] == [*range(len(events))]
    invariants._check_items(on_wire)
    invariants._check_deltas(on_wire)
    invariants._check_parts(on_wire)
    if stored.status is Status.COMPLETED:
        read, final = read_by_the_package(events)
        assert len(read) == len(events)
        assert plain(final) == json.loads(msgspec.json.encode(stored))
    else:
        with pytest.raises(RuntimeError, match=r"response\.completed"):
            read_by_the_package(events)
