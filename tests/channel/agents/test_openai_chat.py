"""Chat Completions of an upstream: what a turn becomes there, and what its chunks say."""

import json
from collections.abc import Mapping
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
    TurnError,
    Usage,
)
from channel.agents.openai_wire.chat import request_of
from channel.agents.openai_wire.chat_stream import ChatReader
from channel.agents.openai_wire.dialect import Dialect
from channel.agents.openai_wire.errors import UpstreamError
from channel.agents.openai_wire.options import UpstreamModel
from channel.isolation import IsolationKeys
from tests.channel.agents.test_openai_responses import CLOCK, IMAGE, PATCH, turn_of


MODEL = UpstreamModel("m", "Be kind.")
CHAT = Dialect(is_chat=True)


def body_of(given: Any = "hi", history: Any = (), dialect: Dialect = CHAT, **fields: Any) -> Any:
    return request_of(turn_of(given, history, **fields), MODEL, dialect)


def messages_of(given: Any, history: Any = ()) -> list[dict[str, Any]]:
    """Return the messages after the system's."""
    system: Any
    messages: list[dict[str, Any]]
    system, *messages = body_of(given, history)["messages"]
    assert system["role"] == "system"
    return messages


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "clock", "arguments": arguments}


def output(call_id: str, text: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def tool_call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def tool(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_a_turn_is_asked_with_its_usage() -> None:
    assert body_of() == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_all_instructions_are_one_message_the_first() -> None:
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    given = [{"role": "developer", "content": "Be exact."}, {"role": "user", "content": "Go on."}]

    body = body_of(given, history, instructions="Be polite.")

    assert body["messages"] == [
        {"role": "system", "content": "Be kind.\n\nBe polite.\n\nBe brief.\n\nBe exact."},
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "Go on."},
    ]


def test_without_instructions_there_is_no_system_message() -> None:
    body = request_of(turn_of(), UpstreamModel("m"), CHAT)

    assert [message["role"] for message in body["messages"]] == ["user"]


def test_what_the_model_said_and_called_at_once_is_one_message() -> None:
    history = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "Let me see."},
        call("c1"),
        call("c2"),
    ]

    assert messages_of([output("c2", "two"), output("c1", "one")], history) == [
        {"role": "user", "content": "What time is it?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [tool_call("c1"), tool_call("c2")],
        },
        tool("c1", "one"),
        tool("c2", "two"),
    ]


def test_calls_one_after_the_other_are_messages_of_their_own() -> None:
    history = [call("c1"), output("c1", "one"), call("c1"), output("c1", "two")]

    assert messages_of([], [*history, {"role": "assistant", "content": "Done."}]) == [
        {"role": "assistant", "content": None, "tool_calls": [tool_call("c1")]},
        tool("c1", "one"),
        {"role": "assistant", "content": None, "tool_calls": [tool_call("c1")]},
        tool("c1", "two"),
        {"role": "assistant", "content": "Done."},
    ]


def test_an_output_follows_its_call_whatever_stood_between_them() -> None:
    given = [{"role": "user", "content": "Hurry."}, output("c1", "one")]

    assert messages_of(given, [call("c1")]) == [
        {"role": "assistant", "content": None, "tool_calls": [tool_call("c1")]},
        tool("c1", "one"),
        {"role": "user", "content": "Hurry."},
    ]


def test_an_empty_answer_is_left_out() -> None:
    history = [{"role": "assistant", "content": ""}, {"role": "assistant", "content": "a"}]

    assert messages_of([], [*history, {"role": "assistant", "content": "b"}]) == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def reasoning(encrypted: str | None) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": "Hm."}]
    return {"type": "reasoning", "summary": summary, "encrypted_content": encrypted}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_goes_back_in_the_field_in_which_it_came(field: str) -> None:
    mark = reasoning(f"chat:{field}")
    history = [mark, call("c1"), output("c1", "one"), mark, {"role": "assistant", "content": "a"}]

    sent = messages_of("hi", history)

    assert sent[0] == {
        "role": "assistant",
        "content": None,
        field: "Hm.",
        "tool_calls": [tool_call("c1")],
    }
    assert sent[2] == {"role": "assistant", "content": "a", field: "Hm."}


@pytest.mark.parametrize("encrypted", [None, "sealed", "chat:", "chat:content", "chat:tool_calls"])
def test_reasoning_of_another_kind_of_upstream_stays_here(encrypted: str | None) -> None:
    history = [reasoning(encrypted), {"role": "assistant", "content": "a"}]

    assert messages_of([], history) == [{"role": "assistant", "content": "a"}]


def test_reasoning_that_led_to_nothing_stays_here() -> None:
    history = [reasoning("chat:reasoning"), {"role": "user", "content": "Go on."}]

    assert messages_of([], history) == [{"role": "user", "content": "Go on."}]


def test_thoughts_in_a_row_are_one() -> None:
    thought = reasoning("chat:reasoning")
    history = [thought, thought, {"role": "assistant", "content": "a"}, thought, call("c1")]

    sent = messages_of([output("c1", "one")], history)

    assert [message.get("reasoning") for message in sent] == ["Hm.Hm.", "Hm.", None]


def test_items_that_chat_completions_do_not_know_are_left_out() -> None:
    kinds = ("web_search_call", "custom_tool_call", "custom_tool_call_output", "acme:note")
    shown = {
        "type": "mcp_call",
        "server_label": "agent",
        "name": "clock",
        "arguments": "{}",
        "output": "noon",
        "id": "mcp_1",
    }

    sent = messages_of("hi", [*({"type": kind} for kind in kinds), shown])

    assert sent == [
        {"role": "assistant", "content": None, "tool_calls": [tool_call("mcp_1")]},
        tool("mcp_1", "noon"),
        {"role": "user", "content": "hi"},
    ]


def test_images_files_and_sounds_are_parts() -> None:
    pdf = "data:application/pdf;base64,aGk="
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
        {"type": "input_image", "image_url": IMAGE},
        {"type": "input_file", "file_data": pdf, "filename": "a.pdf"},
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]

    (message,) = messages_of([{"role": "user", "content": parts}])

    assert message["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": IMAGE}},
        {"type": "file", "file": {"file_data": pdf, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]


def test_a_message_of_texts_is_text() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]

    assert messages_of([{"role": "user", "content": parts}, {"role": "user", "content": []}]) == [
        {"role": "user", "content": "ab"},
        {"role": "user", "content": ""},
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "file_id": "file-1"},
        {"type": "input_file", "file_url": "https://example.com/a.pdf"},
        {"type": "input_video", "video_url": "https://example.com/a.mp4"},
        {"type": "input_image", "image_url": "file:///etc/passwd"},
    ],
)
def test_what_there_is_no_part_for_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(TurnError) as raised:
        body_of([{"role": "user", "content": [part]}])

    assert (raised.value.status, raised.value.param) == (400, "input")


def test_an_output_of_parts_is_their_text_and_nothing_else() -> None:
    text = {"type": "input_text", "text": "one"}

    assert messages_of([output("c1", [text, text])], [call("c1")])[1] == tool("c1", "oneone")
    with pytest.raises(TurnError) as raised:
        body_of([output("c1", [{"type": "input_image", "image_url": IMAGE}])], [call("c1")])
    assert (raised.value.status, raised.value.param) == (400, "input")


@pytest.mark.parametrize(
    ("choice", "count", "mode"),
    [
        ("auto", 1, None),
        ("required", 1, "required"),
        ("none", 0, None),
        ({"type": "function", "name": "clock"}, 1, "required"),
    ],
)
def test_a_choice_of_tools_is_a_word(choice: Any, count: int, mode: str | None) -> None:
    body = body_of(tools=[CLOCK, PATCH], tool_choice=choice)

    assert len(body.get("tools", ())) == count
    assert body.get("tool_choice") == mode


def test_a_choice_of_a_tool_that_is_not_passed_on_is_refused() -> None:
    with pytest.raises(TurnError) as raised:
        body_of(tools=[PATCH], tool_choice={"type": "custom", "name": "patch"})

    assert (raised.value.status, raised.value.param) == (400, "tool_choice")


def test_tools_are_functions() -> None:
    body = body_of(tools=[{**CLOCK, "strict": True}], parallel_tool_calls=False)

    assert body["parallel_tool_calls"] is False
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "clock",
                "description": "Tells the time.",
                "parameters": {"type": "object", "properties": {}},
                "strict": True,
            },
        }
    ]


def test_options_have_other_names() -> None:
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "max_output_tokens": 64,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "low", "format": {"type": "json_object"}},
        "max_tool_calls": 2,
        "top_logprobs": 3,
        "truncation": "auto",
    }

    body = body_of(options=options)

    assert {name: body[name] for name in body.keys() - {"model", "messages"}} == {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "max_tokens": 64,
        "reasoning_effort": "low",
        "verbosity": "low",
        "response_format": {"type": "json_object"},
    }


def test_the_limit_has_the_name_that_the_upstream_takes() -> None:
    dialect = Dialect(is_chat=True, max_tokens="max_completion_tokens")

    body = body_of(dialect=dialect, options={"max_output_tokens": 64})

    assert body["max_completion_tokens"] == 64
    assert "max_tokens" not in body


def test_json_by_a_schema() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    plain = {"name": "n", "schema": {"type": "object"}}

    bare = body_of(options={"text": {"format": {**schema, "strict": None, "description": None}}})
    full = body_of(options={"text": {"format": {**schema, "strict": True, "description": "d"}}})
    text = body_of(options={"text": {"format": {"type": "text"}}})

    assert bare["response_format"] == {"type": "json_schema", "json_schema": plain}
    assert full["response_format"]["json_schema"] == {**plain, "strict": True, "description": "d"}
    assert "response_format" not in text


def test_nothing_about_the_caller_leaves_unless_it_was_accepted() -> None:
    body = body_of(
        metadata={"secret": "m"},
        safety_identifier="secret",
        isolation_keys=IsolationKeys("secret"),
        options={"prompt_cache_key": "secret"},
    )

    assert "secret" not in json.dumps(body)
    assert len(body["prompt_cache_key"]) == 64
    assert body_of(options={"user": "u", "service_tier": "flex"}).items() >= {
        ("user", "u"),
        ("service_tier", "flex"),
    }


def test_what_an_upstream_does_not_take_is_left_out() -> None:
    dialect = Dialect(is_chat=True, without=frozenset({"stream_options", "parallel_tool_calls"}))

    body = body_of(dialect=dialect, tools=[CLOCK], parallel_tool_calls=False)

    assert body.keys() == {"model", "messages", "stream", "tools"}


# --- its stream ----------------------------------------------------------------------------------


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [choice], **fields}


def read(*deltas: Mapping[str, Any], finish: str = "stop", usage: Any = None) -> list[Any]:
    """Return what the deltas say, and then how the answer ends."""
    reader = ChatReader()
    chunks = [*map(chunk, deltas), chunk({}, finish), {"choices": [], "usage": usage}]
    said = [each for part in chunks for each in reader.take(part)]
    return [*said, *reader.end()]


def piece(
    index: int | None, arguments: str, call_id: str | None = None, name: str | None = None
) -> Any:
    where = {} if index is None else {"index": index}
    identity = {} if call_id is None else {"id": call_id}
    function = {"arguments": arguments, **({} if name is None else {"name": name})}
    return {"tool_calls": [{**where, **identity, "type": "function", "function": function}]}


def test_text_and_refusals_are_told_as_they_come() -> None:
    said = read(
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo."},
        {"content": None, "refusal": "No."},
    )

    assert said == ["Hel", "lo.", RefusalDelta("No.")]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_marked_with_the_field_in_which_it_came(field: str) -> None:
    said = read({field: "H"}, {field: "m."}, {field: "", "content": "Hello."})

    assert said == [
        ReasoningDelta("H"),
        ReasoningDelta("m."),
        ReasoningDelta(encrypted_content=f"chat:{field}"),
        "Hello.",
    ]


def test_reasoning_in_both_fields_is_told_once() -> None:
    said = read({"reasoning": "Hm.", "reasoning_content": "Hm."}, piece(0, "{}", "c1", "clock"))

    assert said == [
        ReasoningDelta("Hm."),
        ReasoningDelta(encrypted_content="chat:reasoning_content"),
        FunctionCallDelta("c1", "{}", "clock"),
    ]


def test_an_answer_may_be_nothing_but_reasoning() -> None:
    assert read({"reasoning": "Hm."}, finish="length") == [
        ReasoningDelta("Hm."),
        ReasoningDelta(encrypted_content="chat:reasoning"),
        Finish("max_output_tokens"),
    ]


def test_parts_as_mistrals_models_tell_them() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}

    said = read({"content": [thinking]}, {"content": [{"type": "text", "text": "Hello."}]})

    assert said == [ReasoningDelta("Hm."), "Hello."]


def test_a_call_is_told_as_it_is_written() -> None:
    said = read(
        piece(0, "", "c1", "clock"), piece(0, '{"a"'), piece(0, ": 1}"), finish="tool_calls"
    )

    assert said == [
        FunctionCallDelta("c1", "", "clock"),
        FunctionCallDelta("c1", '{"a"'),
        FunctionCallDelta("c1", ": 1}"),
    ]


def test_calls_that_are_written_by_turns_are_told_one_after_the_other() -> None:
    said = read(
        piece(0, "", "c1", "clock"),
        piece(1, "", "c2", "clock"),
        piece(0, '{"a"'),
        piece(1, '{"b"'),
        piece(0, ": 1}"),
        piece(1, ": 2}"),
    )

    assert said == [
        FunctionCallDelta("c1", "", "clock"),
        FunctionCallDelta("c1", '{"a"'),
        FunctionCallDelta("c1", ": 1}"),
        FunctionCallDelta("c2", '{"b": 2}', "clock"),
    ]


@pytest.mark.parametrize("index", [0, None])
def test_calls_of_the_same_index_are_told_apart_by_their_ids(index: int | None) -> None:
    said = read(
        piece(index, '{"a": 1}', "c1", "clock"),
        piece(index, '{"b"', "c2", "clock"),
        piece(index, ": 2}", "c2"),
    )

    assert said == [
        FunctionCallDelta("c1", '{"a": 1}', "clock"),
        FunctionCallDelta("c2", '{"b": 2}', "clock"),
    ]


def test_a_call_without_an_id_of_its_own_gets_one_of_ours() -> None:
    without = read(piece(0, "{", None, "clock"), piece(0, "}"))
    same = read(piece(0, "{}", "c1", "clock"), piece(1, "{}", "c1", "clock"))

    assert without == [FunctionCall("clock", "{}")]
    assert same == [FunctionCallDelta("c1", "{}", "clock"), FunctionCall("clock", "{}")]


def test_a_name_may_come_late() -> None:
    assert read(piece(0, "", "c1"), piece(0, "{}", "c1", "clock")) == [
        FunctionCallDelta("c1", "{}", "clock")
    ]


def test_text_after_a_call_comes_after_it() -> None:
    first, rest = piece(0, "{", "c1", "clock"), piece(0, "}")
    call_itself = [FunctionCallDelta("c1", "{", "clock"), FunctionCallDelta("c1", "}")]

    assert read(first, {"content": "So "}, rest, {"content": "it is."}) == [
        *call_itself,
        "So it is.",
    ]
    assert read(first, {"content": "\n"}, rest) == call_itself


def test_annotations_are_flat_and_images_are_items() -> None:
    cited = {"url": "https://example.com", "title": "t", "start_index": 0, "end_index": 2}
    image = {"type": "image_url", "image_url": {"url": IMAGE}}
    elsewhere = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}

    said = read(
        {"content": "Hi"},
        {"annotations": [{"type": "url_citation", "url_citation": cited}, {"type": "x", "a": 1}]},
        {"images": [image, elsewhere]},
    )

    assert said == [
        "Hi",
        Annotation({**cited, "type": "url_citation"}),
        Annotation({"type": "x", "a": 1}),
        OutputItem({"type": "image_generation_call", "status": "completed", "result": "aGk="}),
    ]


def test_usage_is_counted_once_though_it_may_come_with_every_chunk() -> None:
    counts = {
        "prompt_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens": 9,
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    reader = ChatReader()
    for part in (
        chunk({"content": "a"}, usage={"prompt_tokens": 20}),
        chunk({}, "stop", usage=counts),
    ):
        [*reader.take(part)]

    assert [*reader.end()] == [Usage(20, 9, 5, 0, 4)]
    assert read(usage=None) == []
    assert read(usage={"prompt_tokens": 1, "prompt_tokens_details": None}) == [Usage(1)]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", []),
        ("tool_calls", []),
        ("eos", []),
        ("length", [Finish("max_output_tokens")]),
        ("model_length", [Finish("max_output_tokens")]),
        ("content_filter", [Finish("content_filter")]),
    ],
)
def test_the_reason_says_how_the_answer_ended(reason: str, expected: list[Any]) -> None:
    assert read({"content": "a"}, finish=reason) == ["a", *expected]


def test_other_choices_are_not_told() -> None:
    other = {"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}
    reader = ChatReader()

    assert [*reader.take({"choices": [other]})] == []
    with pytest.raises(UpstreamError):
        [*reader.end()]


@pytest.mark.parametrize("reason", [None, "error"])
def test_an_answer_without_a_good_end_has_failed(reason: str | None) -> None:
    reader = ChatReader()
    assert [*reader.take(chunk({"content": "Well, "}, reason))] == ["Well, "]

    with pytest.raises(UpstreamError):
        [*reader.end()]


def test_an_error_in_a_chunk_is_a_failure() -> None:
    with pytest.raises(UpstreamError) as raised:
        [*ChatReader().take({"error": {"code": 502, "message": "secret detail"}, "choices": []})]

    assert raised.value.status_code == 502
