"""Messages as items: every role and every part, and calls that belong to their outputs."""

import json
from typing import Any

import pytest

from channel.chat.requests import parse
from channel.responses.protocol import ids
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.input import require_paired_calls
from channel.responses.protocol.items import Item, message


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
OUTPUT = {"role": "tool", "tool_call_id": "call_1", "content": "18"}
MADE = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
ANSWERED = {"type": "function_call_output", "call_id": "call_1", "output": "18"}
PNG = "data:image/png;base64,AA=="


def items_of(*messages: dict[str, Any]) -> list[Item]:
    return parse(json.dumps({"messages": messages}).encode()).items


def instructions_of(*messages: dict[str, Any]) -> str | None:
    return parse(json.dumps({"messages": messages}).encode()).create.instructions


def refused(*messages: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        items_of(*messages)
    assert caught.value.status == 400
    return caught.value


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*parts]}


# Roles


@pytest.mark.parametrize("content", ["hi", [{"type": "text", "text": "hi"}]])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_text_and_one_part_of_it_are_the_same(role: str, content: Any) -> None:
    assert items_of({"role": role, "content": content}) == [message(role, "hi")]


def test_the_first_messages_of_system_and_developer_are_the_instructions() -> None:
    given: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, text("kind.")]},
        {"role": "system", "content": ""},
        {"role": "user", "content": "hi"},
    ]

    assert instructions_of(*given) == "Be brief.\n\nBe kind."
    assert items_of(*given) == [message("user", "hi")]


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_later_ones_stay_where_they_are(role: str) -> None:
    given = [{"role": "user", "content": "hi"}, {"role": role, "content": "Now be loud."}]

    assert instructions_of(*given) is None
    assert items_of(*given) == [message("user", "hi"), message(role, "Now be loud.")]


def test_instructions_may_be_all_that_there_is() -> None:
    given = {"role": "system", "content": "Greet the user."}

    assert (instructions_of(given), items_of(given)) == ("Greet the user.", [])


def test_a_name_of_a_message_is_passed_over() -> None:
    assert items_of({"role": "user", "name": "ann", "content": "hi"}) == [message("user", "hi")]


# Parts


@pytest.mark.parametrize(
    ("image", "detail"),
    [({"url": PNG}, "auto"), ({"url": PNG, "detail": "low"}, "low"), (PNG, "auto")],
)
def test_an_image_is_an_image(image: Any, detail: str) -> None:
    (item,) = items_of(user(text("Look:"), {"type": "image_url", "image_url": image}))

    assert item["content"] == [
        {"type": "input_text", "text": "Look:"},
        {"type": "input_image", "image_url": PNG, "detail": detail},
    ]


def test_an_image_on_the_web_is_passed_on_by_its_url() -> None:
    url = "https://example.com/a.png"

    (item,) = items_of(user({"type": "image_url", "image_url": {"url": url}}))

    assert item["content"][0]["image_url"] == url


@pytest.mark.parametrize(
    "file", [{"file_data": "data:,x", "filename": "x.txt"}, {"file_id": "file_1"}]
)
def test_a_file_is_a_file(file: dict[str, str]) -> None:
    (item,) = items_of(user({"type": "file", "file": {**file, "other": None}}))

    assert item["content"] == [{"type": "input_file", **file}]


def test_a_file_without_data_is_refused() -> None:
    error = refused(user(text("Read:"), {"type": "file", "file": {"filename": "x.txt"}}))

    assert error.param == "messages[0].content[1].file.file_data"


@pytest.mark.parametrize("kind", ["input_audio", "video_url", "refusal", "output_text"])
def test_a_part_of_another_kind_is_refused(kind: str) -> None:
    error = refused({"role": "user", "content": "hi"}, user({"type": kind, kind: {"data": "AA"}}))

    assert (error.param, error.code) == ("messages[1].content[0].type", "invalid_value")


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_only_users_and_tools_show_images(role: str) -> None:
    error = refused({"role": role, "content": [{"type": "image_url", "image_url": {"url": PNG}}]})

    assert error.param == "messages[0].content[0].type"


# What the assistant said


def test_a_refusal_is_a_refusal_in_both_its_places() -> None:
    part = {"type": "refusal", "refusal": "No."}
    item = {"type": "message", "role": "assistant", "content": [part]}

    assert items_of({"role": "assistant", "content": None, "refusal": "No."}) == [item]
    assert items_of({"role": "assistant", "content": [part]}) == [item]


def test_what_was_said_comes_before_what_was_called() -> None:
    assert items_of({**CALLS, "content": "Let me see."}, OUTPUT) == [
        *(message("assistant", "Let me see."), MADE, ANSWERED)
    ]


@pytest.mark.parametrize("content", [None, "", [], [text("")]])
def test_calls_without_a_text_are_calls_alone(content: Any) -> None:
    assert items_of({**CALLS, "content": content}, OUTPUT) == [MADE, ANSWERED]


def test_an_empty_answer_says_nothing_and_no_answer_is_refused() -> None:
    assert items_of({"role": "assistant", "content": ""}) == []
    assert refused({"role": "assistant"}).param == "messages[0].content"


def test_reasoning_that_is_given_back_is_passed_over() -> None:
    given = {"role": "assistant", "content": "hi", "reasoning_content": "Hm."}

    assert items_of(given) == [message("assistant", "hi")]


def test_an_audio_answer_is_refused() -> None:
    error = refused({"role": "assistant", "audio": {"id": "audio_1"}})

    assert (error.param, error.code) == ("messages[0].audio", "unsupported_parameter")


# Calls and outputs


def test_the_output_of_a_tool_may_be_parts() -> None:
    shown = {"type": "image_url", "image_url": {"url": PNG}}

    *_, output = items_of(CALLS, {**OUTPUT, "content": [text("18"), shown]})

    assert output["output"] == [
        {"type": "input_text", "text": "18"},
        {"type": "input_image", "image_url": PNG, "detail": "auto"},
    ]


def test_an_output_may_come_later_than_at_once() -> None:
    said = {"role": "user", "content": "Quick!"}

    assert items_of(CALLS, said, OUTPUT) == [MADE, message("user", "Quick!"), ANSWERED]


def test_call_ids_may_be_used_again_once_they_are_answered() -> None:
    assert items_of(CALLS, OUTPUT, CALLS, OUTPUT) == [MADE, ANSWERED] * 2


def test_an_output_without_its_call_is_refused() -> None:
    error = refused({"role": "user", "content": "hi"}, OUTPUT)

    assert (error.param, error.code) == ("messages[1].tool_call_id", "invalid_value")


def test_a_call_without_its_output_is_refused() -> None:
    other = {**CALL, "id": "call_2"}

    error = refused({**CALLS, "tool_calls": [CALL, other]}, OUTPUT)

    assert (error.param, "'call_2'" in error.message) == ("messages[0].tool_calls", True)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"type": "custom"}, "type"),
        ({"id": ""}, "id"),
        ({"id": None}, "id"),
        ({"function": {"name": "f"}}, "function.arguments"),
        ({"function": {"name": 1, "arguments": ""}}, "function.name"),
    ],
)
def test_a_wrong_call_is_refused_by_its_field(changes: dict[str, Any], param: str) -> None:
    error = refused({**CALLS, "tool_calls": [{**CALL, **changes}]}, OUTPUT)

    assert error.param == f"messages[0].tool_calls[0].{param}"


def test_the_deprecated_way_to_call_is_understood_in_what_was_said() -> None:
    called = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    answered = {"role": "function", "name": "f", "content": "18"}

    items = items_of(called, answered, called, {**answered, "content": None})

    ids_of = [item["call_id"] for item in items]
    assert [item["type"] for item in items] == ["function_call", "function_call_output"] * 2
    assert [item["output"] for item in items[1::2]] == ["18", ""]
    assert (ids_of[0], ids_of[2]) == (ids_of[1], ids_of[3])
    assert ids_of[0] != ids_of[2]
    assert refused(answered).param == "messages[0].name"
    assert refused(called, answered, answered).param == "messages[2].name"


@pytest.mark.parametrize(
    "messages",
    [
        *([CALLS, OUTPUT], [CALLS, OUTPUT, CALLS, OUTPUT], [CALLS, OUTPUT, OUTPUT]),
        [{"role": "user", "content": "hi"}],
    ],
)
def test_what_is_taken_here_is_taken_below(messages: list[dict[str, Any]]) -> None:
    require_paired_calls((), items_of(*messages))


def test_there_is_room_for_as_many_messages_as_a_turn_has_for_items() -> None:
    one = {"role": "user", "content": ""}
    most = ids.MAX_ITEMS // 2 - 1

    assert len(items_of(*[one] * most)) == most
    assert refused(*[one] * (most + 1)).param == "messages"


# What is no message


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"content": "hi"}, "messages[0].role"),
        ({"role": "owner", "content": "hi"}, "messages[0].role"),
        ({"role": 1, "content": "hi"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 1}, "messages[0].content"),
        ({"role": "user", "content": ["hi"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].image_url"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"role": "tool", "content": "18"}, "messages[0].tool_call_id"),
        ("hi", "messages[0]"),
    ],
)
def test_what_is_wrong_with_a_message_is_named(given: Any, param: str) -> None:
    assert refused(given).param == param
