"""The Responses API of an upstream: what a turn becomes there, and what its events say."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from channel.agent import (
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
    TurnError,
    Usage,
)
from channel.agents.openai_wire.dialect import Dialect
from channel.agents.openai_wire.errors import UpstreamError
from channel.agents.openai_wire.options import UpstreamModel
from channel.agents.openai_wire.responses import request_of
from channel.agents.openai_wire.responses_stream import ResponsesReader
from channel.isolation import IsolationKeys
from channel.responses.protocol.input import input_items, with_ids


MODEL = UpstreamModel("m", "Be kind.")
ANY = Dialect()
IMAGE = "data:image/png;base64,aGk="
CLOCK = {
    "type": "function",
    "name": "clock",
    "description": "Tells the time.",
    "parameters": {"type": "object", "properties": {}},
    "strict": None,
}
PATCH = {"type": "custom", "name": "patch", "format": {"type": "text"}}


def turn_of(given: Any = "hi", history: Sequence[Any] = (), **fields: Any) -> Turn:
    """Return a turn as the host makes it, with ids."""
    taken: set[str] = set()
    before = with_ids(input_items([*history]), "b", taken)
    return Turn(input=with_ids(input_items(given), "b", taken), history=before, **fields)


def body_of(turn: Turn, model: UpstreamModel = MODEL, dialect: Dialect = ANY) -> Any:
    return request_of(turn, model, dialect)


def test_the_upstream_stores_nothing_and_gives_its_reasoning_along() -> None:
    body = body_of(turn_of())

    assert body == {
        "model": "m",
        "instructions": "Be kind.",
        "input": [{"type": "message", "role": "user", "content": "hi"}],
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }


def test_instructions_of_the_request_come_after_the_agents_own() -> None:
    asked = turn_of(instructions="Be brief.")

    assert body_of(asked)["instructions"] == "Be kind.\n\nBe brief."
    assert body_of(asked, UpstreamModel("m"))["instructions"] == "Be brief."
    assert "instructions" not in body_of(turn_of(), UpstreamModel("m"))


def test_instructions_at_the_beginning_are_one_and_later_ones_stay_where_they_are() -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be exact."},
        {"role": "user", "content": "hi"},
    ]

    body = body_of(turn_of([{"role": "developer", "content": "Hurry."}], history))

    assert body["instructions"] == "Be kind.\n\nBe brief.\n\nBe exact."
    assert body["input"] == [
        {"type": "message", "role": "user", "content": "hi"},
        {"type": "message", "role": "system", "content": "Hurry."},
    ]


def test_texts_of_a_message_are_one() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]

    assert body_of(turn_of([{"role": "user", "content": parts}]))["input"][0]["content"] == "ab"


def test_no_id_of_ours_leaves() -> None:
    history = [
        {"role": "user", "content": "What time is it?"},
        {"type": "reasoning", "summary": [], "encrypted_content": "sealed"},
        {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "12:00"},
        {"role": "assistant", "content": "It is noon.", "phase": "final_answer"},
    ]

    body = body_of(turn_of("Thanks.", history))

    assert body["input"] == [
        {"type": "message", "role": "user", "content": "What time is it?"},
        {"type": "reasoning", "summary": [], "encrypted_content": "sealed"},
        {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "12:00"},
        {"type": "message", "role": "assistant", "content": "It is noon.", "phase": "final_answer"},
        {"type": "message", "role": "user", "content": "Thanks."},
    ]


def test_an_answer_goes_back_as_its_text() -> None:
    parts = [
        {"type": "output_text", "text": "Well, ", "annotations": [{"type": "url_citation"}]},
        {"type": "refusal", "refusal": "no."},
    ]
    history = [{"role": "assistant", "content": parts}, {"role": "assistant", "content": []}]

    sent = body_of(turn_of("hi", history))["input"]

    assert sent[0] == {"type": "message", "role": "assistant", "content": "Well, no."}
    assert len(sent) == 2


@pytest.mark.parametrize(
    ("after", "is_sent"),
    [
        ({"role": "assistant", "content": "Hello."}, True),
        ({"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{}"}, True),
        ({"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": ""}, True),
        ({"role": "user", "content": "Go on."}, False),
    ],
)
def test_reasoning_goes_back_with_what_it_led_to(after: dict[str, Any], is_sent: bool) -> None:
    reasoning: Any = {"type": "reasoning", "summary": [], "encrypted_content": "sealed"}

    sent = body_of(turn_of([], [reasoning, after]))["input"]

    assert [item["type"] for item in sent].count("reasoning") == is_sent


@pytest.mark.parametrize(
    ("encrypted", "dialect"),
    [
        (None, Dialect()),
        ("chat:reasoning_content", Dialect()),
        ("sealed", Dialect(is_forgetful=True)),
        ("sealed", Dialect(without=frozenset({"include"}))),
    ],
)
def test_reasoning_that_this_upstream_cannot_read_stays_here(
    encrypted: str | None, dialect: Dialect
) -> None:
    reasoning: Any = {"type": "reasoning", "summary": [], "encrypted_content": encrypted}
    history = [reasoning, {"role": "assistant", "content": "Hello."}]

    sent = body_of(turn_of("hi", history), dialect=dialect)["input"]

    assert [item["type"] for item in sent] == ["message", "message"]


def test_images_and_files_are_passed_on_as_they_are() -> None:
    parts: list[Any] = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
        {"type": "input_image", "image_url": IMAGE},
        {"type": "input_image", "file_id": "file-1", "image_url": None},
        {
            "type": "input_file",
            "file_data": "data:application/pdf;base64,aGk=",
            "filename": "a.pdf",
        },
        {"type": "input_file", "file_url": "https://example.com/a.pdf"},
        {"type": "input_file", "file_id": "file-2"},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]

    (message,) = body_of(turn_of([{"role": "user", "content": parts}]))["input"]

    assert message["content"] == [
        *parts[:2],
        {**parts[2], "detail": "auto"},
        {"type": "input_image", "file_id": "file-1", "detail": "auto"},
        *parts[4:],
    ]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"type": "input_image", "image_url": "file:///etc/passwd"}, "invalid_image_url"),
        ({"type": "input_image", "image_url": "data:image/png;base64,!"}, "invalid_base64_image"),
        ({"type": "input_file", "file_url": "file:///etc/passwd"}, "invalid_value"),
        ({"type": "input_file", "file_data": "!"}, "invalid_value"),
    ],
)
def test_an_upstream_is_given_no_url_that_names_its_own_files(
    part: dict[str, Any], code: str
) -> None:
    with pytest.raises(TurnError) as raised:
        body_of(turn_of([{"role": "user", "content": [part]}]))

    assert (raised.value.status, raised.value.code, raised.value.param) == (400, code, "input")


def test_an_output_may_be_parts() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": IMAGE}]
    outputs = [
        {"type": "function_call_output", "call_id": "c", "output": each}
        for each in (parts, parts[:1])
    ]

    sent = body_of(turn_of(outputs, [call]))["input"]

    assert sent[1]["output"] == [parts[0], {**parts[1], "detail": "auto"}]
    assert sent[2]["output"] == "a"


def test_items_that_only_their_maker_knows_are_left_out() -> None:
    kinds = ("web_search_call", "mcp_approval_request", "image_generation_call", "acme:note")
    history = [{"type": kind} for kind in kinds]
    shown = {
        "type": "mcp_call",
        "server_label": "agent",
        "name": "weather",
        "arguments": "{}",
        "output": "sunny",
    }

    sent = body_of(turn_of("hi", [*history, shown]))["input"]

    assert [item["type"] for item in sent] == ["function_call", "function_call_output", "message"]
    assert sent[1]["output"] == "sunny"


def test_custom_tools_make_their_round_trip() -> None:
    call = {
        "type": "custom_tool_call",
        "call_id": "c",
        "name": "patch",
        "input": "x",
        "status": "completed",
    }
    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}

    body = body_of(turn_of([output], [call], tools=[PATCH]))

    assert body["input"] == [{k: v for k, v in call.items() if k != "status"}, output]
    assert body["tools"] == [PATCH]


@pytest.mark.parametrize(
    ("choice", "names", "mode"),
    [
        ("auto", ["clock", "patch"], None),
        ("required", ["clock", "patch"], "required"),
        ("none", [], None),
        ({"type": "function", "name": "clock"}, ["clock"], "required"),
        ({"type": "custom", "name": "patch"}, ["patch"], "required"),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "custom", "name": "patch"}],
            },
            ["patch"],
            None,
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "clock"}],
            },
            ["clock"],
            "required",
        ),
    ],
)
def test_a_choice_of_tools_is_what_every_upstream_understands(
    choice: Any, names: list[str], mode: str | None
) -> None:
    body = body_of(turn_of(tools=[CLOCK, PATCH, {"type": "web_search"}], tool_choice=choice))

    assert [tool["name"] for tool in body.get("tools", ())] == names
    assert body.get("tool_choice") == mode


def test_a_choice_of_a_tool_that_is_not_passed_on_is_refused() -> None:
    with pytest.raises(TurnError) as raised:
        body_of(turn_of(tools=[{"type": "web_search"}], tool_choice={"type": "web_search"}))

    assert (raised.value.status, raised.value.param) == (400, "tool_choice")


@pytest.mark.parametrize(
    ("strict", "sent"), [(None, {}), (True, {"strict": True}), (False, {"strict": False})]
)
def test_whether_a_tool_is_strict_is_as_the_caller_says(strict: bool | None, sent: Any) -> None:
    (tool,) = body_of(turn_of(tools=[{**CLOCK, "strict": strict}]))["tools"]

    assert tool == {**{k: v for k, v in CLOCK.items() if k != "strict"}, **sent}


def test_tools_of_the_upstream_go_before_the_callers() -> None:
    search = {"type": "web_search"}

    body = body_of(
        turn_of(tools=[CLOCK], parallel_tool_calls=False), UpstreamModel("m", None, [search])
    )

    assert [tool["type"] for tool in body["tools"]] == ["web_search", "function"]
    assert body["parallel_tool_calls"] is False


def test_options_are_passed_on() -> None:
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 64,
        "max_tool_calls": 2,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "reasoning": {"effort": "low", "summary": "auto", "generate_summary": "auto"},
        "text": {
            "verbosity": "low",
            "format": {
                "type": "json_schema",
                "name": "n",
                "schema": {},
                "strict": None,
                "description": None,
            },
        },
    }

    body = body_of(
        turn_of(options={**options, "top_logprobs": 3, "include": ["x"], "truncation": "auto"})
    )

    assert {name: body[name] for name in options} == {
        **options,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "schema": {}}},
    }
    assert body["include"] == ["reasoning.encrypted_content"]
    assert not body.keys() & {"top_logprobs", "truncation"}


def test_nothing_about_the_caller_leaves_unless_it_was_accepted() -> None:
    asked = turn_of(
        metadata={"secret": "m"},
        safety_identifier="secret",
        response_id="resp_secret",
        isolation_keys=IsolationKeys("secret"),
    )

    assert "secret" not in json.dumps(body_of(asked))
    assert body_of(turn_of(options={"user": "u", "service_tier": "flex"})).items() >= {
        ("user", "u"),
        ("service_tier", "flex"),
    }


def test_the_key_of_a_cache_is_the_tenants_own() -> None:
    options = {"prompt_cache_key": "k"}
    asked = [
        turn_of(options=options, isolation_keys=IsolationKeys(name)) for name in ("a", "a", "b")
    ]

    first, again, other = (body_of(turn)["prompt_cache_key"] for turn in asked)

    assert first == again != other
    assert len(first) == 64
    assert body_of(turn_of(options=options))["prompt_cache_key"] not in ("k", first)


def test_what_an_upstream_does_not_take_is_left_out() -> None:
    body = body_of(
        turn_of(options={"prompt_cache_key": "k"}),
        dialect=Dialect(without=frozenset({"include", "prompt_cache_key"})),
    )

    assert body.keys() == {"model", "instructions", "input", "stream", "store"}


# --- its stream ----------------------------------------------------------------------------------


def read(*events: Mapping[str, Any], usage: Any = None, **response: Any) -> list[Any]:
    """Return what the events say, and then that the response is completed."""
    reader = ResponsesReader()
    over = {"status": "completed", "output": [], "usage": usage, **response}
    said: list[Any] = []
    for event in (*events, {"type": "response.completed", "response": over}):
        said += reader.take(event)
    return [*said, *reader.end()]


def event(kind: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "output_index": index, **fields}


def item(kind: str, index: int = 0, *, done: bool = True, **fields: Any) -> dict[str, Any]:
    what = "output_item.done" if done else "output_item.added"
    return event(what, index, item={"type": kind, "id": f"up_{index}", **fields})


CITED = {"type": "url_citation", "url": "https://example.com", "start_index": 0, "end_index": 2}
MESSAGE = {
    "type": "message",
    "content": [
        {"type": "output_text", "text": "Hello.", "annotations": [CITED]},
        {"type": "refusal", "refusal": "No."},
    ],
}


def test_text_refusals_and_annotations_are_told_as_they_come() -> None:
    said = read(
        event("created", response={}),
        item("message", done=False),
        event("output_text.delta", delta="Hel"),
        event("output_text.delta", delta="lo."),
        event("output_text.annotation.added", annotation=CITED),
        event("refusal.delta", delta="No."),
        item("message", content=MESSAGE["content"]),
        {"type": "keepalive"},
        event("something.new", delta="?"),
    )

    assert said == ["Hel", "lo.", Annotation(CITED), RefusalDelta("No.")]


def test_what_comes_whole_is_told_whole() -> None:
    whole = ["Hello.", Annotation(CITED), RefusalDelta("No.")]
    cited_late = read(
        event("output_text.delta", delta="Hello."), event("output_item.done", item=MESSAGE)
    )

    assert read(event("output_item.done", item=MESSAGE)) == whole
    assert read(output=[MESSAGE]) == whole
    assert read(event("output_item.done", item=MESSAGE), output=[MESSAGE]) == whole
    assert cited_late == ["Hello.", Annotation(CITED)]


def test_reasoning_ends_with_what_the_model_wants_back() -> None:
    said = read(
        item("reasoning", done=False),
        event("reasoning_summary_part.added", summary_index=0),
        event("reasoning_summary_text.delta", delta="First."),
        event("reasoning_summary_part.added", summary_index=1),
        event("reasoning_summary_text.delta", delta="Second."),
        event("reasoning_summary_text.delta", delta=" More."),
        item(
            "reasoning",
            summary=[{"text": "First."}, {"text": "Second."}],
            encrypted_content="sealed",
        ),
    )

    assert said[1:] == [
        ReasoningDelta("Second.", new_part=True),
        ReasoningDelta(" More."),
        ReasoningDelta(encrypted_content="sealed"),
    ]
    assert said[0].text == "First."


def test_reasoning_is_told_once_though_there_are_two_texts_of_it() -> None:
    both = [
        event("reasoning_text.delta", delta="raw"),
        event("reasoning_summary_text.delta", delta="summary"),
        event("reasoning_text.delta", delta=" raw"),
    ]

    assert read(*both, item("reasoning", summary=[{"text": "summary"}])) == [
        ReasoningDelta("raw"),
        ReasoningDelta(" raw"),
    ]
    assert read(event("reasoning.delta", delta="raw")) == [ReasoningDelta("raw")]
    assert read(item("reasoning", summary=[{"text": "a"}, {"text": "b"}])) == [
        ReasoningDelta("a", new_part=True),
        ReasoningDelta("b", new_part=True),
    ]
    assert read(item("reasoning", summary=[], content=[{"text": "raw"}])) == [
        ReasoningDelta("raw", new_part=True)
    ]


def test_two_thoughts_in_a_row_are_two_parts() -> None:
    said = read(
        item("reasoning", 0, done=False),
        event("reasoning_summary_text.delta", 0, delta="one"),
        item("reasoning", 0, summary=[]),
        item("reasoning", 1, done=False),
        event("reasoning_summary_part.added", 1, summary_index=0),
        event("reasoning_summary_text.delta", 1, delta="two"),
    )

    assert said[-1] == ReasoningDelta("two", new_part=True)


CALL: dict[str, Any] = {"call_id": "c1", "name": "clock", "arguments": '{"a": 1}'}
OTHER: dict[str, Any] = {"call_id": "c2", "name": "clock", "arguments": '{"b": 2}'}


def test_a_call_is_told_as_it_is_written() -> None:
    said = read(
        item("function_call", done=False, **{**CALL, "arguments": ""}),
        event("function_call_arguments.delta", delta='{"a"'),
        event("function_call_arguments.delta", delta=": 1}"),
        item("function_call", **CALL),
    )

    assert said == [
        FunctionCallDelta("c1", "", "clock"),
        FunctionCallDelta("c1", '{"a"'),
        FunctionCallDelta("c1", ": 1}"),
    ]


def test_calls_that_are_written_by_turns_are_told_one_after_the_other() -> None:
    said = read(
        item("function_call", 0, done=False, **{**CALL, "arguments": ""}),
        item("function_call", 1, done=False, **{**OTHER, "arguments": ""}),
        event("function_call_arguments.delta", 0, delta='{"a"'),
        event("function_call_arguments.delta", 1, delta='{"b": 2}'),
        item("function_call", 1, **OTHER),
        event("function_call_arguments.delta", 0, delta=": 1}"),
        item("function_call", 0, **CALL),
    )

    assert said == [
        FunctionCallDelta("c1", "", "clock"),
        FunctionCallDelta("c1", '{"a"'),
        FunctionCallDelta("c1", ": 1}"),
        FunctionCall("clock", '{"b": 2}', "c2"),
    ]


def test_a_call_may_come_whole_and_without_an_id() -> None:
    begun = item("function_call", done=False, **{**CALL, "arguments": ""})

    assert read(item("function_call", **CALL)) == [FunctionCall("clock", '{"a": 1}', "c1")]
    assert read(item("function_call", **{**CALL, "call_id": ""})) == [
        FunctionCall("clock", '{"a": 1}')
    ]
    assert read(begun, item("function_call", **CALL)) == [
        FunctionCallDelta("c1", "", "clock"),
        FunctionCallDelta("c1", '{"a": 1}'),
    ]


def test_calls_that_a_limit_has_cut_off_stay_open() -> None:
    reader = ResponsesReader()
    said: list[Any] = []
    for each in (
        item("function_call", 0, done=False, **{**CALL, "arguments": ""}),
        item("function_call", 1, done=False, **{**OTHER, "arguments": ""}),
        event("function_call_arguments.delta", 1, delta='{"b"'),
        event("incomplete", response={"status": "incomplete"}),
    ):
        said += reader.take(each)

    assert said == [FunctionCallDelta("c1", "", "clock"), FunctionCallDelta("c2", '{"b"', "clock")]
    assert [*reader.end()] == [Finish("max_output_tokens")]


def test_tools_that_the_upstream_ran_are_items_of_the_output() -> None:
    search: dict[str, Any] = {"status": "completed", "action": {"type": "search", "query": "q"}}

    said = read(
        item("web_search_call", done=False, **search),
        item("web_search_call", **search),
        item("custom_tool_call", 1, call_id="c", name="patch", input="x"),
    )

    assert said == [
        OutputItem({"type": "web_search_call", **search}),
        OutputItem({"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "x"}),
    ]


def test_tools_that_it_ran_by_mcp_are_its_own_and_hidden() -> None:
    call: dict[str, Any] = {"server_label": "docs", "name": "find", "arguments": "{}"}

    said = read(
        item("mcp_list_tools", 0, tools=[{"name": "find"}]),
        item("mcp_call", 1, **call, output="found"),
        item("mcp_call", 2, **call, error={"message": "secret detail"}),
        item("compaction", 3, encrypted_content="x"),
        item("function_call_output", 4, call_id="c", output="x"),
    )

    assert said == [
        ToolStarted("up_1", "find", "{}", "docs"),
        ToolFinished("up_1", "found"),
        ToolStarted("up_2", "find", "{}", "docs"),
        ToolFinished("up_2", error="The tool failed."),
    ]


def test_usage_comes_with_its_details() -> None:
    counts = {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3},
        "output_tokens": 9.0,
        "output_tokens_details": {"reasoning_tokens": 4},
    }

    assert read(usage=counts) == [Usage(20, 9, 5, 3, 4)]
    assert read(usage={"input_tokens": 1, "output_tokens": None}) == [Usage(1, 0)]
    assert read(usage=None) == []


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("max_output_tokens", "max_output_tokens"),
        ("content_filter", "content_filter"),
        ("anything", "max_output_tokens"),
        (None, "max_output_tokens"),
    ],
)
def test_a_limit_ends_the_answer_early(reason: str | None, finish: str) -> None:
    details = {"reason": reason} if reason else None

    said = read(status="incomplete", incomplete_details=details, usage={"input_tokens": 1})

    assert said == [Usage(1), Finish(finish)]


def test_a_failed_response_counts_what_it_took() -> None:
    reader = ResponsesReader()
    error = {"code": "rate_limit_exceeded", "message": "secret detail"}
    told = iter(
        reader.take(event("failed", response={"error": error, "usage": {"input_tokens": 3}}))
    )

    first = next(told)
    with pytest.raises(UpstreamError) as raised:
        next(told)

    assert first == Usage(3)
    assert (raised.value.code, raised.value.status_code) == ("rate_limit_exceeded", 429)


@pytest.mark.parametrize(
    "told",
    [
        {"type": "error", "code": "server_error", "message": "secret detail"},
        {"type": "error", "error": {"code": "server_error", "message": "secret detail"}},
    ],
)
def test_an_error_event_is_a_failure(told: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError) as raised:
        [*ResponsesReader().take(told)]

    assert (raised.value.code, raised.value.status_code) == ("server_error", 503)


def test_a_stream_that_just_ends_was_cut_off() -> None:
    reader = ResponsesReader()
    assert [*reader.take(event("output_text.delta", delta="Well, "))] == ["Well, "]

    with pytest.raises(UpstreamError, match="ended before the answer did"):
        reader.end()
