from itertools import product
from typing import Any

import msgspec
import pytest

from channel.responses.protocol.ids import MAX_ITEMS
from channel.responses.protocol.response import (
    IncompleteDetails,
    Response,
    ResponseFailure,
    ResponseUsage,
    Status,
)
from channel.responses.protocol.said import AgentEventError
from channel.responses.protocol.stream import (
    TRANSITIONS,
    ResponseStream,
)
from tests.channel.responses.protocol.machine import (
    BODY,
    FC_1,
    FC_2,
    MCP_1,
    MCP_2,
    MSG_1,
    MSG_2,
    RS_1,
    initial,
    machine,
    numbers,
    types,
    wire,
)


NOW = 1_700_000_009
FAILURE = ResponseFailure("server_error", "Sorry.")


def text_part(text: str, annotations: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "type": "output_text",
        "text": text,
        "annotations": annotations or [],
        "logprobs": [],
    }


def message(item_id: str, status: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [*parts],
    }


def call_item(item_id: str, call_id: str, name: str, status: str, arguments: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def mcp_item(
    item_id: str,
    status: str,
    arguments: str,
    *,
    output: str | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "mcp_call",
        "status": status,
        "server_label": "agent",
        "name": "search",
        "arguments": arguments,
        "output": output,
        "error": error
        and {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": error}]},
    }


# Status


@pytest.mark.parametrize(("was", "to"), [*product(Status, Status)])
def test_a_response_settles_by_the_table_and_no_other_way(was: Status, to: Status) -> None:
    at_that_status = msgspec.structs.replace(initial(), status=was)
    stream = ResponseStream(at_that_status, body=BODY, position=1)
    is_legal = to in TRANSITIONS[was]

    if is_legal:
        stream.settle(to, now=NOW)
    else:
        with pytest.raises(AgentEventError):
            stream.settle(to, now=NOW)

    assert stream.response.status is (to if is_legal else was)


def test_the_table_names_every_status_and_only_failed_follows_an_outcome() -> None:
    outcomes = {status for status in Status if status.is_terminal}

    assert set(TRANSITIONS) == set(Status)
    assert {status: TRANSITIONS[status] for status in outcomes} == dict.fromkeys(
        outcomes, frozenset({Status.FAILED})
    )
    assert TRANSITIONS[Status.IN_PROGRESS] == outcomes


# Transcripts


def test_a_response_begins_with_created_and_in_progress() -> None:
    stream = ResponseStream(initial(), body=BODY, position=1)

    events = stream.start()

    assert types(events) == ["created", "in_progress"]
    assert numbers(events) == [0, 1]
    assert [event["response"]["status"] for event in wire(events)] == ["in_progress"] * 2


def test_text() -> None:
    stream = machine()

    events = [
        *stream.text_delta("Hel"),
        *stream.text_delta("lo"),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    at = {"item_id": MSG_1, "output_index": 0, "content_index": 0}
    assert wire(events) == [
        {
            "type": "response.output_item.added",
            "sequence_number": 2,
            "output_index": 0,
            "item": message(MSG_1, "in_progress"),
        },
        {
            "type": "response.content_part.added",
            "sequence_number": 3,
            **at,
            "part": text_part(""),
        },
        {
            "type": "response.output_text.delta",
            "sequence_number": 4,
            **at,
            "delta": "Hel",
            "logprobs": [],
        },
        {
            "type": "response.output_text.delta",
            "sequence_number": 5,
            **at,
            "delta": "lo",
            "logprobs": [],
        },
        {
            "type": "response.output_text.done",
            "sequence_number": 6,
            **at,
            "text": "Hello",
            "logprobs": [],
        },
        {
            "type": "response.content_part.done",
            "sequence_number": 7,
            **at,
            "part": text_part("Hello"),
        },
        {
            "type": "response.output_item.done",
            "sequence_number": 8,
            "output_index": 0,
            "item": message(MSG_1, "completed", text_part("Hello")),
        },
    ]


def test_the_terminal_event_carries_the_finished_response() -> None:
    stream = machine()
    stream.text_delta("Hello")
    stream.usage(input_tokens=3, output_tokens=1, cached_tokens=2, reasoning_tokens=1)
    stream.settle(Status.COMPLETED, now=NOW)

    (last,) = stream.end()

    assert last.type == "response.completed"
    assert wire([last])[0]["response"] == {
        "id": f"resp_{BODY}",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "completed_at": NOW,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "output": [message(MSG_1, "completed", text_part("Hello"))],
        "model": "agent",
        "previous_response_id": None,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_tool_calls": None,
        "max_output_tokens": None,
        "text": {"format": {"type": "text"}},
        "reasoning": None,
        "truncation": "disabled",
        "temperature": 1.0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": 4,
        },
        "store": True,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


def test_a_refusal() -> None:
    stream = machine()

    events = [
        *stream.refusal_delta("I "),
        *stream.refusal_delta("won't"),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    at = {"item_id": MSG_1, "output_index": 0, "content_index": 0}
    part = {"type": "refusal", "refusal": "I won't"}
    assert wire(events) == [
        {
            "type": "response.output_item.added",
            "sequence_number": 2,
            "output_index": 0,
            "item": message(MSG_1, "in_progress"),
        },
        {
            "type": "response.content_part.added",
            "sequence_number": 3,
            **at,
            "part": {"type": "refusal", "refusal": ""},
        },
        {"type": "response.refusal.delta", "sequence_number": 4, **at, "delta": "I "},
        {"type": "response.refusal.delta", "sequence_number": 5, **at, "delta": "won't"},
        {"type": "response.refusal.done", "sequence_number": 6, **at, "refusal": "I won't"},
        {"type": "response.content_part.done", "sequence_number": 7, **at, "part": part},
        {
            "type": "response.output_item.done",
            "sequence_number": 8,
            "output_index": 0,
            "item": message(MSG_1, "completed", part),
        },
    ]


def test_text_then_refusal_then_text_are_three_parts_of_one_message() -> None:
    stream = machine()

    events = [
        *stream.text_delta("a"),
        *stream.refusal_delta("b"),
        *stream.text_delta("c"),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    indexes = [event.get("content_index") for event in wire(events)]
    assert types(events) == [
        "output_item.added",
        *("content_part.added", "output_text.delta", "output_text.done", "content_part.done"),
        *("content_part.added", "refusal.delta", "refusal.done", "content_part.done"),
        *("content_part.added", "output_text.delta", "output_text.done", "content_part.done"),
        "output_item.done",
    ]
    assert indexes == [None, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, None]
    assert stream.response.output == [
        message(
            MSG_1,
            "completed",
            text_part("a"),
            {"type": "refusal", "refusal": "b"},
            text_part("c"),
        )
    ]


def test_reasoning_in_two_parts_then_text() -> None:
    stream = machine()

    events = [
        *stream.reasoning_delta("Hm"),
        *stream.reasoning_delta("m."),
        *stream.reasoning_delta("Yes.", new_part=True),
        *stream.text_delta("Yes"),
    ]

    at = {"item_id": RS_1, "output_index": 0}
    first = {"type": "summary_text", "text": "Hmm."}
    second = {"type": "summary_text", "text": "Yes."}
    empty = {"type": "summary_text", "text": ""}
    summary = "response.reasoning_summary_"
    assert wire(events)[:12] == [
        {
            "type": "response.output_item.added",
            "sequence_number": 2,
            "output_index": 0,
            "item": {"id": RS_1, "type": "reasoning", "summary": []},
        },
        {
            "type": f"{summary}part.added",
            "sequence_number": 3,
            **at,
            "summary_index": 0,
            "part": empty,
        },
        {
            "type": f"{summary}text.delta",
            "sequence_number": 4,
            **at,
            "summary_index": 0,
            "delta": "Hm",
        },
        {
            "type": f"{summary}text.delta",
            "sequence_number": 5,
            **at,
            "summary_index": 0,
            "delta": "m.",
        },
        {
            "type": f"{summary}text.done",
            "sequence_number": 6,
            **at,
            "summary_index": 0,
            "text": "Hmm.",
        },
        {
            "type": f"{summary}part.done",
            "sequence_number": 7,
            **at,
            "summary_index": 0,
            "part": first,
        },
        {
            "type": f"{summary}part.added",
            "sequence_number": 8,
            **at,
            "summary_index": 1,
            "part": empty,
        },
        {
            "type": f"{summary}text.delta",
            "sequence_number": 9,
            **at,
            "summary_index": 1,
            "delta": "Yes.",
        },
        {
            "type": f"{summary}text.done",
            "sequence_number": 10,
            **at,
            "summary_index": 1,
            "text": "Yes.",
        },
        {
            "type": f"{summary}part.done",
            "sequence_number": 11,
            **at,
            "summary_index": 1,
            "part": second,
        },
        {
            "type": "response.output_item.done",
            "sequence_number": 12,
            "output_index": 0,
            "item": {"id": RS_1, "type": "reasoning", "summary": [first, second]},
        },
        {
            "type": "response.output_item.added",
            "sequence_number": 13,
            "output_index": 1,
            "item": message(MSG_2, "in_progress"),
        },
    ]


def test_a_new_reasoning_part_at_the_start_is_just_the_first() -> None:
    stream = machine()

    events = stream.reasoning_delta("So", new_part=True)

    assert types(events) == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
    ]


def test_what_a_model_wants_back_ends_its_reasoning_item() -> None:
    stream = machine()

    stream.reasoning_delta("a")
    stream.reasoning_delta("b", encrypted_content="signed-ab")
    stream.reasoning_delta("", encrypted_content="unreadable")
    stream.reasoning_delta("c")
    stream.settle(Status.COMPLETED, now=NOW)
    first, second, third = stream.response.output
    assert [part["text"] for part in first["summary"]] == ["ab"]
    assert first["encrypted_content"] == "signed-ab"
    assert (second["summary"], second["encrypted_content"]) == ([], "unreadable")
    assert [part["text"] for part in third["summary"]] == ["c"]
    assert "encrypted_content" not in third


def test_reasoning_again_after_text_is_an_item_of_its_own() -> None:
    stream = machine()

    stream.reasoning_delta("a")
    stream.text_delta("b")
    stream.reasoning_delta("c")
    stream.settle(Status.COMPLETED, now=NOW)

    assert [item["type"] for item in stream.response.output] == [
        "reasoning",
        "message",
        "reasoning",
    ]


def test_annotations_are_numbered_and_kept_in_the_part() -> None:
    stream = machine()
    first = {
        "type": "url_citation",
        "url": "https://a",
        "title": "A",
        "start_index": 0,
        "end_index": 1,
    }
    second = {**first, "title": "B"}

    events = [
        *stream.text_delta("See A"),
        *stream.annotation(first),
        *stream.annotation(second),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    at = {"item_id": MSG_1, "output_index": 0, "content_index": 0}
    added = "response.output_text.annotation.added"
    assert wire(events)[3:5] == [
        {"type": added, "sequence_number": 5, **at, "annotation_index": 0, "annotation": first},
        {"type": added, "sequence_number": 6, **at, "annotation_index": 1, "annotation": second},
    ]
    assert stream.response.output == [
        message(MSG_1, "completed", text_part("See A", [first, second]))
    ]


def test_annotations_are_numbered_anew_in_another_part() -> None:
    stream = machine()
    note = {"type": "x"}

    stream.text_delta("a")
    stream.annotation(note)
    stream.refusal_delta("no")
    (opened, *_, annotated) = wire(stream.annotation(note))[2:]

    assert opened["type"] == "response.content_part.added"
    assert (annotated["content_index"], annotated["annotation_index"]) == (2, 0)


def test_an_annotation_first_opens_a_text_part() -> None:
    stream = machine()

    events = stream.annotation({"type": "x"})

    assert types(events) == [
        "output_item.added",
        "content_part.added",
        "output_text.annotation.added",
    ]


def test_an_annotation_is_a_copy_that_the_agent_cannot_change_later() -> None:
    stream = machine()
    annotation = {"type": "x", "places": [1]}

    stream.annotation(annotation)
    annotation["places"] = "gone"
    stream.settle(Status.COMPLETED, now=NOW)

    part = stream.response.output[0]["content"][0]
    assert part["annotations"] == [{"type": "x", "places": [1]}]


# Function calls


def test_a_whole_function_call() -> None:
    stream = machine("get_weather")

    events = stream.function_call("get_weather", '{"city":"Rome"}', "call_1")

    assert wire(events) == [
        {
            "type": "response.output_item.added",
            "sequence_number": 2,
            "output_index": 0,
            "item": call_item(FC_1, "call_1", "get_weather", "in_progress", ""),
        },
        {
            "type": "response.function_call_arguments.delta",
            "sequence_number": 3,
            "item_id": FC_1,
            "output_index": 0,
            "delta": '{"city":"Rome"}',
        },
        {
            "type": "response.function_call_arguments.done",
            "sequence_number": 4,
            "item_id": FC_1,
            "output_index": 0,
            "name": "get_weather",
            "arguments": '{"city":"Rome"}',
        },
        {
            "type": "response.output_item.done",
            "sequence_number": 5,
            "output_index": 0,
            "item": call_item(FC_1, "call_1", "get_weather", "completed", '{"city":"Rome"}'),
        },
    ]


def test_a_function_call_without_a_call_id_gets_one() -> None:
    stream = machine("f")

    stream.function_call("f", "{}")
    stream.function_call("f", "{}")
    stream.settle(Status.COMPLETED, now=NOW)

    call_ids = [item["call_id"] for item in stream.response.output]
    assert call_ids == [f"call_{BODY[-20:]}0001", f"call_{BODY[-20:]}0002"]


def test_a_function_call_by_deltas() -> None:
    stream = machine("f")

    events = [
        *stream.function_call_delta("call_1", name="f"),
        *stream.function_call_delta("call_1", '{"a":'),
        *stream.function_call_delta("call_1", "1}"),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    assert types(events) == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert stream.response.output == [call_item(FC_1, "call_1", "f", "completed", '{"a":1}')]


def test_a_second_call_ends_the_first() -> None:
    stream = machine("f", "g")

    events = [
        *stream.function_call_delta("call_1", "1", "f"),
        *stream.function_call_delta("call_2", "2", "g"),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    one = ["output_item.added", "function_call_arguments.delta"]
    done = ["function_call_arguments.done", "output_item.done"]
    assert types(events) == [*one, *done, *one, *done]
    assert stream.response.output == [
        call_item(FC_1, "call_1", "f", "completed", "1"),
        call_item(FC_2, "call_2", "g", "completed", "2"),
    ]


def test_without_parallel_calls_only_the_first_is_said() -> None:
    stream = machine("f", "g", is_parallel=False)

    events = [
        *stream.function_call("f", "1", "call_1"),
        *stream.function_call("g", "2", "call_2"),
        *stream.function_call_delta("call_3", "3", "f"),
        *stream.function_call_delta("call_3", "4"),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    assert numbers(events) == [2, 3, 4, 5]
    assert stream.response.output == [call_item(FC_1, "call_1", "f", "completed", "1")]


def test_without_parallel_calls_a_second_one_ends_the_open_one() -> None:
    stream = machine("f", "g", is_parallel=False)

    stream.function_call_delta("call_1", "1", "f")
    events = [
        *stream.function_call("g", "2", "call_2"),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    assert types(events) == ["function_call_arguments.done", "output_item.done"]
    assert stream.response.output == [call_item(FC_1, "call_1", "f", "completed", "1")]


def test_a_call_amid_text_is_between_two_messages() -> None:
    stream = machine("f")

    stream.text_delta("a")
    stream.function_call("f", "{}", "call_1")
    stream.text_delta("b")
    stream.settle(Status.COMPLETED, now=NOW)

    assert [item["id"] for item in stream.response.output] == [
        MSG_1,
        FC_2,
        f"msg_{BODY}0003",
    ]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("function_call", ("g", "{}", "call_1")),
        ("function_call_delta", ("call_1", "{}", "g")),
    ],
)
def test_a_name_that_is_not_permitted_is_an_error(method: str, arguments: tuple[str, ...]) -> None:
    stream = machine("f")

    with pytest.raises(AgentEventError):
        getattr(stream, method)(*arguments)

    assert stream.settle(Status.COMPLETED, now=NOW) == []
    assert stream.response.output == []


def test_no_call_is_permitted_without_a_policy() -> None:
    stream = ResponseStream(initial(), body=BODY, position=0)

    with pytest.raises(AgentEventError):
        stream.function_call("f", "{}")


# Tools of the agent's own


def test_tools_are_hidden_unless_they_are_shown() -> None:
    stream = machine()

    events = [
        *stream.tool_started("t1", "search", "{}", "agent"),
        *stream.tool_finished("t1", "found"),
        *stream.settle(Status.COMPLETED, now=NOW),
    ]

    assert events == []
    assert stream.response.output == []


def test_what_is_said_before_and_after_a_hidden_tool_are_two_messages() -> None:
    stream = machine()

    stream.text_delta("Let me look.")
    ended = stream.tool_started("t1", "search", "{}", "agent")
    silent = stream.tool_finished("t1", "found")
    stream.text_delta("Found.")
    stream.settle(Status.COMPLETED, now=NOW)

    assert types(ended) == ["output_text.done", "content_part.done", "output_item.done"]
    assert silent == []
    assert [item["type"] for item in stream.response.output] == ["message", "message"]


def test_a_shown_tool() -> None:
    stream = machine(shows_tools=True)

    events = [
        *stream.tool_started("t1", "search", '{"q":1}', "agent"),
        *stream.tool_finished("t1", "found"),
    ]

    at = {"item_id": MCP_1, "output_index": 0}
    assert wire(events) == [
        {
            "type": "response.output_item.added",
            "sequence_number": 2,
            "output_index": 0,
            "item": mcp_item(MCP_1, "in_progress", ""),
        },
        {"type": "response.mcp_call.in_progress", "sequence_number": 3, **at},
        {
            "type": "response.mcp_call_arguments.delta",
            "sequence_number": 4,
            **at,
            "delta": '{"q":1}',
        },
        {
            "type": "response.mcp_call_arguments.done",
            "sequence_number": 5,
            **at,
            "arguments": '{"q":1}',
        },
        {"type": "response.mcp_call.completed", "sequence_number": 6, **at},
        {
            "type": "response.output_item.done",
            "sequence_number": 7,
            "output_index": 0,
            "item": mcp_item(MCP_1, "completed", '{"q":1}', output="found"),
        },
    ]


def test_a_shown_tool_that_fails() -> None:
    stream = machine(shows_tools=True)
    stream.tool_started("t1", "search", "{}", "agent")

    events = stream.tool_finished("t1", error="no net")

    assert types(events) == ["mcp_call.failed", "output_item.done"]
    assert wire(events)[1]["item"] == mcp_item(MCP_1, "failed", "{}", error="no net")


def test_shown_tools_may_overlap_each_other_and_a_message() -> None:
    stream = machine(shows_tools=True)

    stream.tool_started("t1", "search", "{}", "agent")
    stream.tool_started("t2", "search", "{}", "agent")
    stream.text_delta("Searching")
    ended = [*stream.tool_finished("t2", "b"), *stream.tool_finished("t1", "a")]
    went_on = stream.text_delta("…")
    stream.settle(Status.COMPLETED, now=NOW)

    done = [(event["item"]["id"], event["output_index"]) for event in wire(ended)[1::2]]
    assert done == [(MCP_2, 1), (MCP_1, 0)]
    assert types(went_on) == ["output_text.delta"]
    assert [item["status"] for item in stream.response.output] == ["completed"] * 3


@pytest.mark.parametrize("outcome", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_a_tool_cut_off_by_the_end_is_incomplete(outcome: Status) -> None:
    stream = machine(shows_tools=True)
    stream.tool_started("t1", "search", "{}", "agent")

    events = stream.settle(outcome, now=NOW)

    assert types(events) == ["mcp_call.failed", "output_item.done"]
    assert stream.response.output == [mcp_item(MCP_1, "incomplete", "{}")]


def test_tools_beyond_the_cap_do_not_appear() -> None:
    stream = machine(shows_tools=True, max_activities=1)
    stream.tool_started("t1", "search", "{}", "agent")
    stream.tool_finished("t1", "found")

    ignored = [
        *stream.tool_started("t2", "search", "{}", "agent"),
        *stream.tool_started("t3", "search", "{}", "agent"),
        *stream.tool_finished("t3", error="no net"),
        *stream.tool_finished("t2", "found"),
    ]
    stream.text_delta("b")
    stream.settle(Status.COMPLETED, now=NOW)

    assert ignored == []
    assert [item["type"] for item in stream.response.output] == ["mcp_call", "message"]


def test_a_tool_beyond_the_cap_is_still_one_that_can_end_once_only() -> None:
    stream = machine(shows_tools=True, max_activities=1)
    stream.tool_started("t1", "search", "{}", "agent")
    stream.tool_started("t2", "search", "{}", "agent")

    with pytest.raises(AgentEventError):
        stream.tool_started("t2", "search", "{}", "agent")
    with pytest.raises(AgentEventError):
        stream.tool_finished("t3", "found")


def test_the_cap_on_tools_says_nothing_of_functions() -> None:
    stream = machine("f", shows_tools=True, max_activities=1)
    stream.tool_started("t1", "search", "{}", "agent")

    events = [*stream.function_call("f", "{}", "c1"), *stream.function_call("f", "{}", "c2")]

    assert types(events).count("output_item.done") == 2


# Pass-through items


def test_an_output_item_passes_through_with_an_id_and_a_status() -> None:
    stream = machine()
    item = {"type": "web_search_call", "action": {"type": "search", "query": "x"}}

    events = stream.output_item(item)

    whole = {"id": f"ws_{BODY}0001", **item}
    assert wire(events) == [
        {
            "type": "response.output_item.added",
            "sequence_number": 2,
            "output_index": 0,
            "item": whole,
        },
        {
            "type": "response.output_item.done",
            "sequence_number": 3,
            "output_index": 0,
            "item": whole,
        },
    ]


def test_an_output_item_keeps_its_own_id_and_unknown_fields() -> None:
    stream = machine()
    item = {"type": "acme:thing", "id": "mine", "deep": {"a": [None, 1.5, "x"]}}

    stream.output_item(item)
    stream.settle(Status.COMPLETED, now=NOW)

    assert stream.response.output == [item]


@pytest.mark.parametrize("no_id", [{"id": None}, {"id": ""}, {}])
def test_an_output_item_without_an_id_gets_one(no_id: dict[str, Any]) -> None:
    stream = machine()

    stream.output_item({"type": "acme:thing", **no_id})
    stream.settle(Status.COMPLETED, now=NOW)

    assert stream.response.output == [{"type": "acme:thing", "id": f"item_{BODY}0001"}]


def test_an_output_item_closes_the_open_message() -> None:
    stream = machine()
    stream.text_delta("a")

    events = stream.output_item({"type": "acme:thing"})

    assert types(events) == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "output_item.done",
    ]


def test_a_passed_message_is_completed() -> None:
    stream = machine()

    stream.output_item({"type": "message", "role": "assistant", "content": []})
    stream.settle(Status.COMPLETED, now=NOW)

    assert stream.response.output == [message(MSG_1, "completed")]


# Outcomes


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
def test_incomplete(reason: str) -> None:
    stream = machine()
    stream.text_delta("Hel")

    stream.settle(Status.INCOMPLETE, now=NOW, reason=reason)
    (last,) = stream.end()

    assert last.type == "response.incomplete"
    assert stream.response == msgspec.structs.replace(
        initial(),
        status=Status.INCOMPLETE,
        incomplete_details=IncompleteDetails(reason),
        output=[message(MSG_1, "incomplete", text_part("Hel"))],
        usage=ResponseUsage(),
    )


def test_a_call_cut_off_by_the_end_is_incomplete() -> None:
    stream = machine("f")
    stream.function_call_delta("call_1", '{"a"', "f")

    events = stream.settle(Status.INCOMPLETE, now=NOW, reason="max_output_tokens")

    assert types(events) == ["function_call_arguments.done", "output_item.done"]
    assert stream.response.output == [call_item(FC_1, "call_1", "f", "incomplete", '{"a"')]


def test_failed_keeps_the_partial_output() -> None:
    stream = machine()
    stream.text_delta("Hel")

    stream.settle(Status.FAILED, now=NOW, failure=FAILURE)
    (last,) = stream.end()

    assert last.type == "response.failed"
    assert stream.response == msgspec.structs.replace(
        initial(),
        status=Status.FAILED,
        error=FAILURE,
        output=[message(MSG_1, "incomplete", text_part("Hel"))],
    )


def test_cancelled_ends_with_the_failed_event() -> None:
    stream = machine()
    stream.text_delta("Hel")

    stream.settle(Status.CANCELLED, now=NOW)
    (last,) = stream.end()

    assert last.type == "response.failed"
    assert stream.response == msgspec.structs.replace(
        initial(),
        status=Status.CANCELLED,
        output=[message(MSG_1, "incomplete", text_part("Hel"))],
    )


def test_a_completed_response_that_cannot_be_saved_ends_as_failed() -> None:
    stream = machine()
    stream.text_delta("Hello")
    stream.settle(Status.COMPLETED, now=NOW)

    caused = stream.settle(Status.FAILED, now=NOW, failure=FAILURE)
    (last,) = stream.end()

    assert caused == []
    assert (last.type, last.sequence_number) == ("response.failed", 8)
    assert (stream.response.completed_at, stream.response.error) == (None, FAILURE)
    assert stream.response.output == [message(MSG_1, "completed", text_part("Hello"))]


def test_an_agent_that_says_nothing_completes_with_no_output() -> None:
    stream = machine()

    events = [*stream.settle(Status.COMPLETED, now=NOW), *stream.end()]

    assert types(events) == ["completed"]
    assert numbers(events) == [2]
    assert stream.response.output == []


@pytest.mark.parametrize("said", ["text_delta", "refusal_delta", "reasoning_delta"])
def test_an_empty_delta_causes_nothing(said: str) -> None:
    stream = machine()

    assert getattr(stream, said)("") == []
    assert numbers(stream.text_delta("a")) == [2, 3, 4]


def test_usage_adds_up() -> None:
    stream = machine()

    stream.usage(input_tokens=1, output_tokens=2, cached_tokens=3)
    stream.usage(input_tokens=10, output_tokens=20, cache_write_tokens=4, reasoning_tokens=5)
    stream.settle(Status.COMPLETED, now=NOW)

    assert wire(stream.end())[0]["response"]["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 4},
        "output_tokens": 22,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 33,
    }


# Illegal uses: an error, and nothing changed

BAD_TEXT: Any = 5
BAD_ITEM: Any = ["no object"]


def speak(stream: ResponseStream, method: str, arguments: dict[str, Any]) -> None:
    getattr(stream, method)(**arguments)


ILLEGAL: list[tuple[str, dict[str, Any]]] = [
    ("text_delta", {"text": BAD_TEXT}),
    ("refusal_delta", {"text": BAD_TEXT}),
    ("reasoning_delta", {"text": BAD_TEXT}),
    ("reasoning_delta", {"text": BAD_TEXT, "new_part": True}),
    ("annotation", {"annotation": BAD_ITEM}),
    ("annotation", {"annotation": {"type": object()}}),
    ("function_call", {"name": "unknown", "arguments": "{}"}),
    ("function_call", {"name": "f", "arguments": BAD_TEXT}),
    ("function_call", {"name": ["f"], "arguments": "{}"}),
    ("function_call", {"name": "f", "arguments": "{}", "call_id": BAD_TEXT}),
    ("function_call", {"name": "f", "arguments": "{}", "call_id": "used"}),
    ("function_call_delta", {"call_id": "new", "arguments": "{}"}),
    ("function_call_delta", {"call_id": "used", "arguments": "{}"}),
    ("function_call_delta", {"call_id": "", "arguments": "{}", "name": "f"}),
    ("function_call_delta", {"call_id": "new", "arguments": "{}", "name": "unknown"}),
    ("function_call_delta", {"call_id": "new", "arguments": BAD_TEXT, "name": "f"}),
    (
        "tool_started",
        {"call_id": "t1", "name": "n", "arguments": "{}", "server_label": "s"},
    ),
    (
        "tool_started",
        {"call_id": "t2", "name": BAD_TEXT, "arguments": "{}", "server_label": "s"},
    ),
    ("tool_started", {"call_id": "t2", "name": "n", "arguments": None, "server_label": "s"}),
    ("tool_finished", {"call_id": "unknown", "output": "x"}),
    ("tool_finished", {"call_id": "t1", "output": BAD_TEXT}),
    ("output_item", {"item": BAD_ITEM}),
    ("output_item", {"item": {}}),
    ("output_item", {"item": {"type": ""}}),
    ("output_item", {"item": {"type": 5}}),
    ("output_item", {"item": {"type": "x", "id": 5}}),
    ("output_item", {"item": {"type": "x", "self": float}}),
    ("usage", {"input_tokens": "many", "output_tokens": 0}),
    ("usage", {"input_tokens": 1.5, "output_tokens": 0}),
    ("usage", {"input_tokens": None, "output_tokens": 0}),
    ("settle", {"status": Status.QUEUED, "now": NOW}),
    ("settle", {"status": Status.IN_PROGRESS, "now": NOW}),
    ("end", {}),
]


def begun(shows_tools: bool) -> ResponseStream:
    stream = machine("f", shows_tools=shows_tools)
    stream.function_call("f", "{}", "used")
    stream.tool_started("t1", "search", "{}", "agent")
    stream.text_delta("Hel")
    return stream


@pytest.mark.parametrize("shows_tools", [False, True])
@pytest.mark.parametrize(("method", "arguments"), ILLEGAL)
def test_an_illegal_agent_event_is_an_error_and_changes_nothing(
    method: str, arguments: dict[str, Any], shows_tools: bool
) -> None:
    stream, untouched = begun(shows_tools), begun(shows_tools)

    with pytest.raises(AgentEventError):
        speak(stream, method, arguments)

    failed: dict[str, Any] = {"status": Status.FAILED, "now": NOW, "failure": FAILURE}
    assert wire([*stream.settle(**failed), *stream.end()]) == wire(
        [*untouched.settle(**failed), *untouched.end()]
    )


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("text_delta", {"text": "x"}),
        ("refusal_delta", {"text": "x"}),
        ("reasoning_delta", {"text": "x"}),
        ("annotation", {"annotation": {"type": "x"}}),
        ("function_call", {"name": "f", "arguments": "{}"}),
        ("function_call_delta", {"call_id": "c", "arguments": "{}", "name": "f"}),
        ("tool_started", {"call_id": "t", "name": "n", "arguments": "{}", "server_label": "s"}),
        ("tool_finished", {"call_id": "t"}),
        ("output_item", {"item": {"type": "x"}}),
        ("usage", {"input_tokens": 1, "output_tokens": 1}),
        ("settle", {"status": Status.COMPLETED, "now": NOW}),
    ],
)
def test_nothing_can_be_said_once_the_outcome_is_decided(
    method: str, arguments: dict[str, Any]
) -> None:
    stream = machine("f")
    stream.settle(Status.COMPLETED, now=NOW)

    with pytest.raises(AgentEventError):
        speak(stream, method, arguments)

    assert numbers(stream.end()) == [2]


def test_nothing_follows_the_end() -> None:
    stream = machine()
    stream.settle(Status.COMPLETED, now=NOW)
    stream.end()

    with pytest.raises(AgentEventError):
        stream.end()
    with pytest.raises(AgentEventError):
        stream.settle(Status.FAILED, now=NOW, failure=FAILURE)

    assert stream.response.status is Status.COMPLETED


@pytest.mark.parametrize("method", ["text_delta", "output_item", "function_call", "tool_started"])
def test_a_turn_with_too_many_items_fails_with_every_item_closed(method: str) -> None:
    stream = machine("f", shows_tools=True, position=MAX_ITEMS - 1)
    stream.reasoning_delta("the last item that fits")
    arguments: dict[str, dict[str, Any]] = {
        "text_delta": {"text": "x"},
        "output_item": {"item": {"type": "x"}},
        "function_call": {"name": "f", "arguments": "{}"},
        "tool_started": {"call_id": "t", "name": "n", "arguments": "{}", "server_label": "s"},
    }

    with pytest.raises(AgentEventError):
        speak(stream, method, arguments[method])

    events = [*stream.settle(Status.FAILED, now=NOW, failure=FAILURE), *stream.end()]
    assert types(events) == [
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "failed",
    ]
    assert numbers(events) == [5, 6, 7, 8]


# Odd text


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udfff", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\x00\r\n\u2028\x7f", "\x00\r\n\u2028\x7f"),
        ("é😀" * 50_000, "é😀" * 50_000),
    ],
)
def test_odd_text_reaches_the_client_as_unicode(said: str, read: str) -> None:
    stream = machine("f", shows_tools=True)

    stream.text_delta(said)
    stream.refusal_delta(said)
    stream.reasoning_delta(said)
    stream.function_call("f", said, "call_1")
    stream.tool_started("t1", said, said, said)
    stream.tool_finished("t1", said)
    stream.settle(Status.COMPLETED, now=NOW)

    said_text, reasoned, called, tool = wire(stream.end())[0]["response"]["output"]
    assert said_text["content"] == [text_part(read), {"type": "refusal", "refusal": read}]
    assert reasoned["summary"] == [{"type": "summary_text", "text": read}]
    assert called["arguments"] == read
    assert (tool["name"], tool["arguments"], tool["server_label"], tool["output"]) == (read,) * 4


class MarkedText(str):
    """Text of a class of its own, as template engines and model libraries make it."""

    __slots__ = ()


def test_text_of_a_subclass_of_str_is_text() -> None:
    stream = machine()

    first = wire(stream.text_delta(MarkedText("Hel")))
    more = wire(stream.text_delta(MarkedText("lo")))

    assert [first[-1]["delta"], more[-1]["delta"]] == ["Hel", "lo"]


def test_a_call_id_with_a_lone_surrogate_does_not_lose_the_arguments() -> None:
    stream = machine("f")

    stream.function_call("f", '{"a":1}', "call_\ud800")
    stream.settle(Status.COMPLETED, now=NOW)

    assert stream.response.output == [call_item(FC_1, "call_\ufffd", "f", "completed", '{"a":1}')]


def nested(depth: int) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "x"}
    for _ in range(depth):
        item = {"type": "x", "in": item}
    return item


@pytest.mark.parametrize("depth", [150, 300, 450, 600, 900, 940, 970, 2000])
def test_an_item_that_is_accepted_can_be_encoded_and_read_again(depth: int) -> None:
    stream = machine()

    try:
        events = stream.output_item(nested(depth))
    except AgentEventError:
        return
    events += stream.settle(Status.COMPLETED, now=NOW)
    events += stream.end()

    encoded = [msgspec.json.encode(event) for event in events]
    kept = msgspec.json.decode(msgspec.json.encode(stream.response), type=Response)
    assert len(encoded) == 3
    assert kept == stream.response


def test_a_passed_function_call_obeys_the_request_too() -> None:
    stream = machine("f")
    call = {"type": "function_call", "name": "g", "arguments": "{}", "call_id": "call_1"}

    with pytest.raises(AgentEventError):
        stream.output_item(call)
    stream.output_item({**call, "name": "f"})
    with pytest.raises(AgentEventError):
        stream.output_item({**call, "name": "f"})
    stream.output_item({**call, "name": "f", "call_id": None})
    stream.settle(Status.COMPLETED, now=NOW)

    made = f"call_{BODY[-20:]}0002"
    assert stream.response.output == [
        call_item(FC_1, "call_1", "f", "completed", "{}"),
        call_item(FC_2, made, "f", "completed", "{}"),
    ]


def test_a_whole_call_under_the_id_of_an_open_one_is_an_error() -> None:
    stream = machine("f")
    stream.function_call_delta("call_1", '{"a":1}', "f")

    with pytest.raises(AgentEventError):
        stream.function_call("f", '{"a":1}', "call_1")
