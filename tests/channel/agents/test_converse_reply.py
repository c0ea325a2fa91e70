"""What a Converse stream says as agent events: blocks, their order, usage, citations, and how it ends."""

from typing import Any

import pytest

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from channel.agents.converse.messages import redacted, signed
from channel.agents.converse.reply import Reply, ReplyError, annotation_of, usage_of


Events = list[dict[str, Any]]


def block(*deltas: dict[str, Any], start: dict[str, Any] | None = None) -> Events:
    begun = [{"contentBlockStart": {"start": start, "contentBlockIndex": 0}}] if start else []
    went_on = [{"contentBlockDelta": {"delta": each, "contentBlockIndex": 0}} for each in deltas]
    return [*begun, *went_on, {"contentBlockStop": {"contentBlockIndex": 0}}]


def reasoned(**delta: Any) -> dict[str, Any]:
    return {"reasoningContent": delta}


def stop(reason: str = "end_turn", **usage: int) -> Events:
    spent = {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10, **usage}
    return [{"messageStop": {"stopReason": reason}}, {"metadata": {"usage": spent}}]


def heard(*events: dict[str, Any]) -> list[AgentEvent]:
    reply = Reply()
    said = [said for event in events for said in reply.take(event)]
    return [*said, *reply.end()]


def test_text_and_the_usage_that_comes_after_the_end() -> None:
    begun = {"messageStart": {"role": "assistant"}}

    assert heard(begun, *block({"text": "Hel"}, {"text": "lo"}), *stop()) == [
        TextDelta("Hel"),
        TextDelta("lo"),
        Usage(7, 3),
    ]


def test_calls_are_told_piece_by_piece() -> None:
    start = {"toolUse": {"toolUseId": "1", "name": "clock"}}
    pieces = [{"toolUse": {"input": piece}} for piece in ('{"zone"', ': "UTC"}')]

    assert heard(*block(*pieces, start=start), *stop("tool_use"))[:-1] == [
        FunctionCallDelta("1", name="clock"),
        FunctionCallDelta("1", '{"zone"'),
        FunctionCallDelta("1", ': "UTC"}'),
    ]


@pytest.mark.parametrize("deltas", [[], [{"toolUse": {"input": ""}}]])
def test_a_call_without_arguments_has_an_empty_object(deltas: Events) -> None:
    start = {"toolUse": {"toolUseId": "1", "name": "clock"}}

    said = heard(*block(*deltas, start=start), *stop("tool_use"))[:-1]

    assert "".join(each.arguments for each in said if isinstance(each, FunctionCallDelta)) == "{}"


def test_tools_that_bedrock_runs_itself_are_hidden() -> None:
    use = {"toolUse": {"toolUseId": "1", "name": "nova_grounding", "type": "server_tool_use"}}
    result = {"toolResult": {"toolUseId": "1", "type": "nova_grounding_result"}}

    assert heard(
        *block({"toolUse": {"input": "{}"}}, start=use),
        *block({"toolResult": [{"text": "secret"}]}, start=result),
        *block({"text": "Hi"}),
        *stop(),
    ) == [TextDelta("Hi"), Usage(7, 3)]


def test_reasoning_ends_with_its_signature() -> None:
    thought = block(
        reasoned(text="Hm, "),
        reasoned(text="so."),
        reasoned(signature="ab"),
        reasoned(signature="c"),
    )

    assert heard(*thought, *block({"text": "Hi"}), *stop())[:-1] == [
        ReasoningDelta("Hm, "),
        ReasoningDelta("so."),
        ReasoningDelta(encrypted_content=signed("abc")),
        TextDelta("Hi"),
    ]


def test_reasoning_may_be_redacted_or_a_signature_alone() -> None:
    hidden = block(reasoned(redactedContent=b"\0"), reasoned(redactedContent=b"\1"))

    assert heard(*hidden, *block(reasoned(signature="abc")), *stop())[:-1] == [
        ReasoningDelta(encrypted_content=redacted(b"\0\1")),
        ReasoningDelta(encrypted_content=signed("abc")),
    ]


def test_blocks_of_unsigned_reasoning_are_parts_of_one_item() -> None:
    thoughts = [*block(reasoned(text="Hm."), reasoned(text="")), *block(reasoned(text="So."))]

    assert heard(*thoughts, *block({"text": "Hi"}), *block(reasoned(text="Then.")), *stop())[
        :-1
    ] == [
        ReasoningDelta("Hm."),
        ReasoningDelta("So.", new_part=True),
        TextDelta("Hi"),
        ReasoningDelta("Then."),
    ]


def test_an_image_is_an_item() -> None:
    pieces = [{"image": {"source": {"bytes": piece}}} for piece in (b"h", b"i")]

    assert heard(*block(*pieces, start={"image": {"format": "png"}}), *stop())[:-1] == [
        OutputItem(
            {
                "type": "image_generation_call",
                "status": "completed",
                "output_format": "png",
                "result": "aGk=",
            }
        )
    ]


def test_a_citation_is_of_the_text_of_its_block() -> None:
    source = {
        "title": "A",
        "location": {"web": {"url": "https://a.example", "domain": "a.example"}},
    }

    said = heard(
        *block({"text": "First. "}),
        *block({"text": "It is so"}, {"citation": source}, {"citation": source}),
        *stop(),
    )

    expected = {
        "type": "url_citation",
        "url": "https://a.example",
        "title": "A",
        "start_index": 7,
        "end_index": 15,
    }
    assert said[2:4] == [Annotation(expected), Annotation(expected)]


def test_indexes_of_citations_begin_anew_in_each_message() -> None:
    source = {"source": "https://a.example", "location": {"searchResultLocation": {}}}
    start = {"toolUse": {"toolUseId": "1", "name": "clock"}}

    said = heard(
        *block({"text": "First. "}),
        *block(start=start),
        *block({"text": "So"}, {"citation": source}),
        *stop(),
    )

    (told,) = (each.annotation for each in said if isinstance(each, Annotation))
    assert (told["start_index"], told["end_index"]) == (0, 2)


@pytest.mark.parametrize(
    ("citation", "expected"),
    [
        (
            {"title": "report", "location": {"documentPage": {"documentIndex": 2, "start": 1}}},
            ("report", "report", 2),
        ),
        (
            {"source": "kb-1", "location": {"searchResultLocation": {"searchResultIndex": 1}}},
            ("kb-1", "kb-1", 1),
        ),
        ({}, ("", "", 0)),
    ],
)
def test_a_citation_of_a_document_names_it(
    citation: dict[str, Any], expected: tuple[str, str, int]
) -> None:
    told = annotation_of(citation, 0, 5)

    assert told["type"] == "file_citation"
    assert (told["file_id"], told["filename"], told["index"]) == expected


def test_tokens_of_the_cache_are_input_tokens() -> None:
    counted = {
        "inputTokens": 10,
        "outputTokens": 3,
        "totalTokens": 128,
        "cacheReadInputTokens": 100,
        "cacheWriteInputTokens": 15,
        "cacheDetails": [{"ttl": "5m", "inputTokens": 15}],
    }

    assert usage_of(counted) == Usage(
        input_tokens=125, output_tokens=3, cached_tokens=100, cache_write_tokens=15
    )


@pytest.mark.parametrize("reason", ["end_turn", "stop_sequence", "tool_use"])
def test_a_reply_that_ends_by_itself_is_complete(reason: str) -> None:
    assert heard(*stop(reason)) == [Usage(7, 3)]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("max_tokens", "max_output_tokens"),
        ("model_context_window_exceeded", "max_output_tokens"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
    ],
)
def test_a_reply_that_was_stopped_is_incomplete(reason: str, finish: str) -> None:
    assert heard(*stop(reason)) == [Usage(7, 3), Finish(finish)]


@pytest.mark.parametrize(
    "reason", ["malformed_model_output", "malformed_tool_use", "of a later day"]
)
def test_a_reply_that_is_not_valid_is_a_failure_whose_tokens_count(reason: str) -> None:
    reply = Reply()

    said = [said for event in stop(reason) for said in reply.take(event)]

    assert said == [Usage(7, 3)]
    with pytest.raises(ReplyError):
        [*reply.end()]


def test_a_stream_that_was_cut_is_a_failure() -> None:
    with pytest.raises(ReplyError):
        heard(*block({"text": "Hi"}))


def test_what_is_not_known_says_nothing() -> None:
    assert heard(
        {"contentBlockDelta": {"delta": {"SDK_UNKNOWN_MEMBER": {}}}},
        {"somethingNew": {}},
        *stop(),
    ) == [Usage(7, 3)]
