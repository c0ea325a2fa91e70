"""Salvage: wherever a stream was cut off, what it had said is there, and nothing else."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given, settings, strategies as st

from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.items import Item, output_text
from channel.responses.protocol.response import Response, Status
from channel.responses.protocol.said import AgentEventError
from channel.responses.protocol.salvage import salvaged
from channel.responses.protocol.stream import ResponseStream, ToolPolicy, queue
from tests.channel.responses.protocol.machine import BODY, MSG_1, initial, machine
from tests.channel.responses.protocol.test_stream_invariants import (
    AGENT_EVENTS,
    OUTCOMES,
    Said,
    run,
)


SAID = st.lists(AGENT_EVENTS, max_size=12)


def stored(events: Sequence[StreamEvent]) -> list[bytes]:
    """Return the events as they are stored."""
    return [msgspec.json.encode(event) for event in events]


def stream_of(shows_tools: bool) -> ResponseStream:
    policy = ToolPolicy(frozenset({"f", "g"}))
    return ResponseStream(initial(), body=BODY, position=2, tools=policy, shows_tools=shows_tools)


def of_type(events: Sequence[dict[str, Any]], end: str) -> dict[int, dict[str, Any]]:
    """Return the events of a type, by output index."""
    return {each["output_index"]: each for each in events if each["type"] == f"response.{end}"}


def open_message(text: str, **fields: Any) -> Item:
    return {
        "id": MSG_1,
        "type": "message",
        "status": "incomplete",
        "role": "assistant",
        "content": [output_text(text)],
        **fields,
    }


@settings(max_examples=60, deadline=None)
@given(said=SAID, outcomes=OUTCOMES, shows_tools=st.booleans(), data=st.data())
def test_a_stream_that_is_cut_anywhere_has_said_the_beginning_of_its_output(
    said: list[Said], outcomes: list[Status], shows_tools: bool, data: Any
) -> None:
    stream = stream_of(shows_tools)
    events = stored(run(stream, said, outcomes))
    cut = data.draw(st.integers(0, len(events)))

    found = salvaged(events[:cut])

    delivered = [json.loads(event) for event in events[:cut]]
    added = of_type(delivered, "output_item.added")
    done = of_type(delivered, "output_item.done")
    begun = of_type(delivered, "content_part.added")
    expected = [index for index in sorted(added) if index in done or index in begun]
    assert len(found) == len(expected)
    for index, item in zip(expected, found, strict=True):
        final = stream.response.output[index]
        if index in done:
            assert item == final
        else:
            inside = [each for each in delivered if each.get("output_index") == index]
            _check_open_message(item, final, inside)


def _check_open_message(item: Item, final: Item, inside: list[dict[str, Any]]) -> None:
    assert {**item, "content": [], "status": ""} == {**final, "content": [], "status": ""}
    assert item["status"] == "incomplete"
    assert len(item["content"]) <= len(final["content"])
    for position, part in enumerate(item["content"]):
        whole = final["content"][position]
        field = "text" if part["type"] == "output_text" else "refusal"
        here = [each for each in inside if each.get("content_index") == position]
        deltas = [each["delta"] for each in here if "delta" in each]
        assert part[field] == "".join(deltas)
        assert whole[field].startswith(part[field])
        annotations = [each["annotation"] for each in here if "annotation" in each]
        assert part.get("annotations", []) == annotations
        assert {**part, field: "", "annotations": []} == {**whole, field: "", "annotations": []}


@settings(max_examples=60, deadline=None)
@given(said=SAID, shows_tools=st.booleans())
def test_it_is_what_the_turn_would_have_been_stored_as_had_it_been_cancelled_then(
    said: list[Said], shows_tools: bool
) -> None:
    stream = stream_of(shows_tools)
    events = stream.start()
    for method, arguments in said:
        try:
            events += getattr(stream, method)(**arguments)
        except AgentEventError:
            continue
    told = stored(events)

    is_done = of_type([json.loads(event) for event in told], "output_item.done")
    stream.settle(Status.CANCELLED, now=1)

    assert salvaged(told) == [
        item
        for index, item in enumerate(stream.response.output)
        if index in is_done or item["type"] == "message"
    ]


@settings(max_examples=60, deadline=None)
@given(said=SAID, data=st.data())
def test_events_that_come_again_are_not_said_twice(said: list[Said], data: Any) -> None:
    whole = stored(run(stream_of(True), said, [Status.COMPLETED]))
    events = whole[: data.draw(st.integers(0, len(whole)))]
    end = data.draw(st.integers(0, len(events)))
    begin = data.draw(st.integers(0, end))

    assert salvaged([*events[:end], *events[begin:]]) == salvaged(events)


def test_of_a_queued_turn_there_is_nothing() -> None:
    queued = Response(id="resp_1", created_at=1, model="agent", status=Status.QUEUED)

    assert salvaged([]) == []
    assert salvaged(stored(queue(queued))) == []


def test_an_open_message_has_the_text_so_far() -> None:
    stream = machine()
    events = [*stream.text_delta("Hel"), *stream.text_delta("lo")]

    assert salvaged(stored(events)) == [open_message("Hello")]


def test_an_open_refusal_is_kept_too() -> None:
    stream = machine()
    events = [*stream.text_delta("No"), *stream.refusal_delta("I ca"), *stream.refusal_delta("n't")]

    content = [output_text("No"), {"type": "refusal", "refusal": "I can't"}]
    assert salvaged(stored(events)) == [open_message("", content=content)]


def test_the_annotations_of_an_open_message_are_kept() -> None:
    stream = machine()
    events = [*stream.text_delta("See"), *stream.annotation({"type": "x"})]

    content = [output_text("See", [{"type": "x"}])]
    assert salvaged(stored(events)) == [open_message("", content=content)]


def test_an_open_call_is_no_call() -> None:
    stream = machine("f")
    events = [*stream.text_delta("Let me see."), *stream.function_call_delta("c1", '{"a', "f")]

    (message,) = salvaged(stored(events))

    assert message == open_message("Let me see.", status="completed")


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    stream = machine()
    events = [event for _ in range(20_000) for event in stream.text_delta("word " * 10)]

    (message,) = salvaged(stored(events))

    assert message == open_message("word " * 200_000)
