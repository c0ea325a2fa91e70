"""What holds for every stream, whatever the agent says: one property over random agent events."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from hypothesis import given, settings, strategies as st

from channel.responses.protocol.response import Response, ResponseFailure, Status
from channel.responses.protocol.said import AgentEventError
from channel.responses.protocol.stream import ResponseStream, ToolPolicy
from tests.channel.responses.protocol.machine import BODY, initial, wire


class Said(NamedTuple):
    method: str
    arguments: dict[str, Any]


def says(method: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Said]:
    return st.builds(Said, st.just(method), st.fixed_dictionaries(arguments))


TEXT = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=6)
NAME = st.sampled_from(["f", "g", "unknown"])
CALL_ID = st.sampled_from(["c1", "c2", "c3", ""])
TOOL_ID = st.sampled_from(["t1", "t2", "t3"])
COUNT = st.integers(0, 9)
ITEM = st.sampled_from(
    [
        {"type": "acme:thing", "n": 1},
        {"type": "message", "role": "assistant", "content": []},
        {"type": "reasoning", "summary": [], "id": "rs_mine"},
        {},
    ]
)

AGENT_EVENTS = st.one_of(
    says("text_delta", text=TEXT),
    says("refusal_delta", text=TEXT),
    says("reasoning_delta", text=TEXT, new_part=st.booleans()),
    says("annotation", annotation=st.sampled_from([{"type": "x"}, {"type": "y", "n": [1]}])),
    says("function_call", name=NAME, arguments=TEXT, call_id=CALL_ID | st.none()),
    says("function_call_delta", call_id=CALL_ID, arguments=TEXT, name=NAME | st.none()),
    says("tool_started", call_id=TOOL_ID, name=TEXT, arguments=TEXT, server_label=TEXT),
    says("tool_finished", call_id=TOOL_ID, output=TEXT | st.none(), error=TEXT | st.none()),
    says("output_item", item=ITEM),
    says("usage", input_tokens=COUNT, output_tokens=COUNT),
)
OUTCOMES = st.sampled_from([[status] for status in Status if status.is_terminal]).flatmap(
    lambda settled: st.sampled_from([settled, [*settled, Status.FAILED]])
)


def run(stream: ResponseStream, said: Sequence[Said], outcomes: Sequence[Status]) -> list[Any]:
    events: list[Any] = stream.start()
    for method, arguments in said:
        try:
            events += getattr(stream, method)(**arguments)
        except AgentEventError:
            continue
    for outcome in outcomes:
        failure = ResponseFailure("server_error", "Sorry.") if outcome is Status.FAILED else None
        reason = "max_output_tokens" if outcome is Status.INCOMPLETE else None
        events += stream.settle(outcome, now=1, reason=reason, failure=failure)
    return events + stream.end()


@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(AGENT_EVENTS, max_size=12),
    outcomes=OUTCOMES,
    is_parallel=st.booleans(),
    shows_tools=st.booleans(),
)
def test_every_stream_holds_the_invariants(
    said: list[Said], outcomes: list[Status], is_parallel: bool, shows_tools: bool
) -> None:
    policy = ToolPolicy(frozenset({"f", "g"}), is_parallel)
    stream = ResponseStream(initial(), body=BODY, position=2, tools=policy, shows_tools=shows_tools)

    events = wire(run(stream, said, outcomes))

    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    _check_lifecycle(events, outcomes[-1])
    _check_items(events)
    _check_deltas(events)
    _check_parts(events)
    calls = [item for item in stream.response.output if item["type"] == "function_call"]
    assert is_parallel or len(calls) <= 1
    assert {call["name"] for call in calls} <= policy.names
    kept = msgspec.json.decode(msgspec.json.encode(stream.response), type=Response)
    assert kept == stream.response


def _check_lifecycle(events: list[dict[str, Any]], outcome: Status) -> None:
    terminal = {
        Status.COMPLETED: "response.completed",
        Status.INCOMPLETE: "response.incomplete",
    }.get(outcome, "response.failed")
    lifecycle = [event["type"] for event in events if "response" in event]
    assert lifecycle == ["response.created", "response.in_progress", terminal]
    assert [events[0]["type"], events[1]["type"], events[-1]["type"]] == lifecycle
    assert events[-1]["response"]["status"] == outcome


def _check_items(events: list[dict[str, Any]]) -> None:
    added = {
        event["output_index"]: event["item"]
        for event in events
        if event["type"] == "response.output_item.added"
    }
    done = {
        event["output_index"]: event["item"]
        for event in events
        if event["type"] == "response.output_item.done"
    }
    count = sum(event["type"] == "response.output_item.added" for event in events)
    closed = sum(event["type"] == "response.output_item.done" for event in events)
    assert count == closed == len(added)
    assert sorted(added) == sorted(done) == [*range(len(added))]
    for index, item in added.items():
        identity = {key: item.get(key) for key in ("id", "type", "call_id")}
        assert {key: done[index].get(key) for key in identity} == identity
    assert events[-1]["response"]["output"] == [done[index] for index in sorted(done)]
    is_open: set[int] = set()
    for event in events:
        match event["type"]:
            case "response.output_item.added":
                is_open.add(event["output_index"])
            case "response.output_item.done":
                is_open.remove(event["output_index"])
            case _ if "output_index" in event:
                assert event["output_index"] in is_open
                assert event["item_id"] == added[event["output_index"]]["id"]


_WHOLE = {
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.function_call_arguments": "arguments",
    "response.mcp_call_arguments": "arguments",
    "response.reasoning_summary_text": "text",
}


def _check_deltas(events: list[dict[str, Any]]) -> None:
    joined: dict[tuple[Any, ...], str] = defaultdict(str)
    for event in events:
        kind, _, phase = event["type"].rpartition(".")
        if kind not in _WHOLE:
            continue
        place = (
            kind,
            event["output_index"],
            event.get("content_index"),
            event.get("summary_index"),
        )
        if phase == "delta":
            joined[place] += event["delta"]
        elif phase == "done":
            assert event[_WHOLE[kind]] == joined.pop(place, "")
    assert joined == {}


def _check_parts(events: list[dict[str, Any]]) -> None:
    indexes: dict[tuple[str, int], list[int]] = defaultdict(list)
    for event in events:
        kind, _, phase = event["type"].rpartition(".")
        if kind in ("response.content_part", "response.reasoning_summary_part"):
            position = event["content_index" if kind.endswith("content_part") else "summary_index"]
            indexes[phase, event["output_index"]].append(position)
    for (phase, index), positions in indexes.items():
        other = "done" if phase == "added" else "added"
        assert positions == [*range(len(positions))] == indexes[other, index]
