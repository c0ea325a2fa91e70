"""Stream events as chunks, and the completion that they add up to: no I/O."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    KeptState,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    ToolFinished,
    ToolStarted,
    Usage,
)
from channel.chat.chunks import Chunks, completion
from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.response import Response, ResponseFailure, Status
from channel.responses.protocol.stream import ResponseStream, ToolPolicy
from channel.responses.saying import say
from tests.channel.chat.wire import deltas_of, message_of, required, said


BODY = "0123456789abc" * 4
NOW = 1_700_000_000
CITATION = {
    "type": "url_citation",
    "url": "https://example.com/",
    "title": "Example",
    "start_index": 1,
    "end_index": 3,
}
NO_TOKENS = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
    "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0, "cache_write_tokens": 0},
    "completion_tokens_details": {
        "accepted_prediction_tokens": 0,
        "audio_tokens": 0,
        "reasoning_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def told(*events: AgentEvent) -> tuple[list[StreamEvent], Response]:
    """Return the stream events that these agent events cause, and the response at its end."""
    stream = ResponseStream(
        Response(id=f"resp_{BODY}", created_at=NOW, model="m"),
        body=BODY,
        position=1,
        tools=ToolPolicy(frozenset({"f", "g"})),
    )
    caused = stream.start()
    for event in events:
        caused += say(stream, event, lambda: NOW)
    if not stream.is_settled:
        caused += stream.settle(Status.COMPLETED, now=NOW)
    return [*caused, *stream.end()], stream.response


def chunked(*events: AgentEvent, includes_usage: bool = False) -> list[dict[str, Any]]:
    chunks = Chunks(includes_usage=includes_usage)
    caused, _ = told(*events)
    made = [chunk for event in caused for chunk in chunks.of(event)]
    return [required(json.loads(msgspec.json.encode(chunk))) for chunk in made]


def whole(*events: AgentEvent) -> dict[str, Any]:
    _, response = told(*events)
    return required(json.loads(msgspec.json.encode(completion(response))))


def message(*events: AgentEvent) -> dict[str, Any]:
    return message_of(whole(*events))


def added_up(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a client makes of the chunks."""
    made: dict[str, Any] = {"annotations": [], "tool_calls": []}
    for delta in deltas_of(chunks):
        for name in ("role", "content", "refusal", "reasoning_content"):
            if name in delta:
                made[name] = made.get(name, "") + delta[name]
        made["annotations"] += delta.get("annotations", [])
        for piece in delta.get("tool_calls", []):
            if piece["index"] == len(made["tool_calls"]):
                call = {name: value for name, value in piece.items() if name != "index"}
                made["tool_calls"].append(call)
            else:
                function = made["tool_calls"][piece["index"]]["function"]
                function["arguments"] += piece["function"]["arguments"]
    return made


# The frame


def test_a_completion_is_whole() -> None:
    assert whole("Hello", " you.") == {
        "id": f"chatcmpl-{BODY}",
        "object": "chat.completion",
        "created": NOW,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello you.",
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": NO_TOKENS,
        "service_tier": "default",
    }


def test_chunks_are_whole() -> None:
    frame = {
        "id": f"chatcmpl-{BODY}",
        "object": "chat.completion.chunk",
        "created": NOW,
        "model": "m",
        "service_tier": "default",
    }

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        rest = {"logprobs": None, "finish_reason": finish_reason}
        return {**frame, "choices": [{"index": 0, "delta": delta, **rest}]}

    assert chunked("Hello", " you.") == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hello"}),
        chunk({"content": " you."}),
        chunk({}, "stop"),
    ]


def test_usage_comes_last_and_is_null_before() -> None:
    *others, last = chunked("hi", Usage(7, 3, 2, 1, 1), includes_usage=True)

    assert [chunk["usage"] for chunk in others] == [None] * 3
    assert last["choices"] == []
    assert last["usage"] == whole("hi", Usage(7, 3, 2, 1, 1))["usage"]
    assert last["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 2, "cache_write_tokens": 1},
        "completion_tokens_details": {
            **NO_TOKENS["completion_tokens_details"],  # type: ignore[dict-item]
            "reasoning_tokens": 1,
        },
    }


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (["hi"], "stop"),
        ([], "stop"),
        (["hi", Finish("max_output_tokens")], "length"),
        (["hi", Finish("content_filter")], "content_filter"),
        ([FunctionCall("f", "{}")], "tool_calls"),
        (["hi", FunctionCall("f", "{}")], "tool_calls"),
        ([FunctionCallDelta("c", '{"a', "f"), Finish("max_output_tokens")], "length"),
        ([RefusalDelta("No.")], "stop"),
    ],
)
def test_an_ending_has_its_reason(events: list[AgentEvent], reason: str) -> None:
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunked(*events)]

    assert reasons == [None] * (len(reasons) - 1) + [reason]
    assert whole(*events)["choices"][0]["finish_reason"] == reason


def test_a_failed_response_has_no_ending() -> None:
    stream = ResponseStream(
        Response(id=f"resp_{BODY}", created_at=NOW, model="m"), body=BODY, position=1
    )
    chunks = Chunks(includes_usage=True)
    events = [*stream.start(), *stream.text_delta("hi")]
    events += stream.settle(Status.FAILED, now=NOW, failure=ResponseFailure("server_error", "x"))

    made = [chunk for event in (*events, *stream.end()) for chunk in chunks.of(event)]

    assert [chunk.choices[0].finish_reason for chunk in made] == [None, None]


# What is said


def test_an_answer_without_text_is_empty_and_calls_alone_have_none() -> None:
    assert message()["content"] == ""
    assert message(FunctionCall("f", "{}", "c"))["content"] is None
    assert message("hi", FunctionCall("f", "{}", "c"))["content"] == "hi"


def test_two_messages_are_two_paragraphs() -> None:
    events: list[AgentEvent] = [
        "Let me",
        " see.",
        ToolStarted("t", "look"),
        ToolFinished("t", "x"),
        "It is",
        " 18.",
    ]

    assert said(chunked(*events)) == message(*events)["content"] == "Let me see.\n\nIt is 18."


def test_two_parts_of_a_message_are_one_text() -> None:
    events: list[AgentEvent] = ["Well, ", RefusalDelta("no"), "yes"]

    assert message(*events)["content"] == "Well, yes"
    assert message(*events)["refusal"] == "no"


def test_reasoning_is_told_beside_the_answer() -> None:
    events: list[AgentEvent] = [
        *(ReasoningDelta("Hm"), ReasoningDelta("."), ReasoningDelta("So.", new_part=True)),
        *("hi", ReasoningDelta("Done.")),
    ]

    assert message(*events)["reasoning_content"] == "Hm.\n\nSo.\n\nDone."
    assert message(*events)["content"] == "hi"
    assert added_up(chunked(*events))["reasoning_content"] == "Hm.\n\nSo.\n\nDone."
    assert "reasoning_content" not in message("hi")


def test_a_refusal_is_told_as_one() -> None:
    chunks = chunked(RefusalDelta("I am "), RefusalDelta("sorry."))

    assert [delta.get("refusal") for delta in deltas_of(chunks)] == [None, "I am ", "sorry.", None]
    assert message(RefusalDelta("I am "), RefusalDelta("sorry.")) == {
        "role": "assistant",
        "content": None,
        "refusal": "I am sorry.",
        "annotations": [],
    }


def test_a_citation_is_found_at_its_place_in_the_whole_text() -> None:
    events: list[AgentEvent] = [
        *("One.", ToolStarted("t", "look"), ToolFinished("t", "x"), "Two.", Annotation(CITATION)),
        *(RefusalDelta("no"), "Six", Annotation(CITATION)),
    ]

    cited = message(*events)["annotations"]

    places = [
        (each["url_citation"]["start_index"], each["url_citation"]["end_index"]) for each in cited
    ]
    text = message(*events)["content"]
    assert [text[start:end] for start, end in places] == ["wo", "ix"]
    assert cited[0] == {
        "type": "url_citation",
        "url_citation": {
            **{name: CITATION[name] for name in ("url", "title")},
            "start_index": 7,
            "end_index": 9,
        },
    }
    assert added_up(chunked(*events))["annotations"] == cited


@pytest.mark.parametrize(
    "annotation",
    [
        {"type": "file_citation", "file_id": "file_1", "index": 1, "filename": "a"},
        {"type": "url_citation"},
        {"type": "url_citation", "url": "https://example.com/", "start_index": "1"},
        {},
    ],
)
def test_an_annotation_that_has_no_place_is_left_out(annotation: dict[str, Any]) -> None:
    assert message("hi", Annotation(annotation))["annotations"] == []


# Calls


def test_a_call_is_told_in_pieces() -> None:
    chunks = chunked(
        FunctionCallDelta("c1", name="f"),
        *(FunctionCallDelta("c1", '{"a":'), FunctionCallDelta("c1", "1}")),
        FunctionCall("g", "{}", "c2"),
    )

    pieces = [piece for delta in deltas_of(chunks) for piece in delta.get("tool_calls", ())]
    assert pieces == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]


def test_calls_are_whole_in_a_completion() -> None:
    calls = message(FunctionCall("f", '{"a":1}', "c1"), FunctionCall("g", "", "c2"))["tool_calls"]

    assert calls == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]


def test_a_call_that_a_hook_has_written_is_told_whole() -> None:
    _, response = told(FunctionCall("f", "{}", "c1"))
    written = [{**response.output[0], "arguments": "[1]", "note": "of a hook"}]

    changed = completion(msgspec.structs.replace(response, output=written))

    assert message_of(changed)["tool_calls"][0]["function"]["arguments"] == "[1]"


# What comes whole, and what has no place


def test_an_item_that_comes_whole_is_told() -> None:
    answer = {
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "output_text", "text": "Hello", "annotations": [CITATION]},
            {"type": "output_text", "text": " you."},
            {"type": "refusal", "refusal": "But no."},
            {"type": "acme:picture", "url": "x"},
        ],
    }
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    events: list[AgentEvent] = ["First.", OutputItem(thought), OutputItem(answer)]

    assert message(*events) == {
        "role": "assistant",
        "content": "First.\n\nHello you.",
        "refusal": "But no.",
        "annotations": [
            {
                "type": "url_citation",
                "url_citation": {
                    **{name: CITATION[name] for name in ("url", "title")},
                    "start_index": 9,
                    "end_index": 11,
                },
            }
        ],
        "reasoning_content": "Hm.",
    }
    assert {**added_up(chunked(*events)), "tool_calls": []} == {
        **message(*events),
        "tool_calls": [],
    }


@pytest.mark.parametrize(
    "event",
    [
        OutputItem({"type": "image_generation_call", "result": "AA=="}),
        OutputItem({"type": "acme:note", "content": "a text", "summary": 1}),
        OutputItem({"type": "message", "role": "assistant", "content": [1, {"type": "refusal"}]}),
        OutputItem({"type": "message", "role": "assistant", "content": None}),
        OutputItem({"type": "reasoning", "summary": "text alone", "content": [1]}),
        KeptState({"a": 1}),
        ToolStarted("t", "look"),
    ],
)
def test_what_has_no_place_is_left_out(event: AgentEvent) -> None:
    assert message("hi", event) == message("hi")
    assert said(chunked("hi", event)) == "hi"


def test_the_text_of_a_message_may_come_alone() -> None:
    event = OutputItem({"type": "message", "role": "assistant", "content": "all"})

    assert message(event)["content"] == said(chunked(event)) == "all"


# A stream and a completion say the same


_TEXTS = st.text(max_size=5)
_EVENTS = st.one_of(
    _TEXTS,
    st.builds(RefusalDelta, _TEXTS),
    st.builds(ReasoningDelta, _TEXTS, st.booleans()),
    st.just(Annotation(CITATION)),
    st.builds(FunctionCall, st.sampled_from("fg"), _TEXTS),
    st.just(OutputItem({"type": "message", "role": "assistant", "content": [{"type": "refusal"}]})),
    st.builds(
        lambda text: OutputItem(
            {"type": "message", "content": [{"type": "output_text", "text": text}]}
        ),
        _TEXTS,
    ),
    st.builds(
        lambda text: OutputItem({"type": "reasoning", "summary": [{"text": text}]}),
        _TEXTS,
    ),
    st.builds(Usage, st.integers(0, 9), st.integers(0, 9)),
)


@settings(max_examples=300)
@given(st.lists(_EVENTS, max_size=12), st.sampled_from([None, "max_output_tokens"]))
def test_chunks_add_up_to_the_completion(events: list[AgentEvent], reason: str | None) -> None:
    events = [*events, *([Finish(reason)] if reason else [])]
    chunks, body = chunked(*events, includes_usage=True), whole(*events)

    expected = message_of(body)
    streamed = added_up(chunks)
    empty: dict[str, Any] = {
        "reasoning_content": "",
        "tool_calls": [],
        "refusal": None,
        "content": "",
    }
    for name in ("role", "content", "refusal", "reasoning_content", "annotations", "tool_calls"):
        blank = empty.get(name)
        assert (streamed.get(name) or blank) == (expected.get(name) or blank)
    assert chunks[-1]["usage"] == body["usage"]
    assert chunks[-2]["choices"][0]["finish_reason"] == body["choices"][0]["finish_reason"]
    assert {chunk["id"] for chunk in chunks} == {body["id"]}
