from typing import Any

import pytest

from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.input import input_items, require_paired_calls, with_ids
from channel.responses.protocol.items import Item
from tests.channel.responses.protocol.machine import BODY


TEXT = {"type": "input_text", "text": "hi"}
SAID = {"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "22"}


def only(item: dict[str, Any]) -> Item:
    (taken,) = input_items([item])
    return taken


def refused(item: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        input_items([item])
    return caught.value


@pytest.mark.parametrize("nothing", [None, "", []])
def test_no_input_is_no_items(nothing: Any) -> None:
    assert input_items(nothing) == []


@pytest.mark.parametrize(
    ("given", "content"),
    [
        ({"role": "user", "content": "hi"}, [TEXT]),
        ({"role": "system", "content": "hi"}, [TEXT]),
        ({"role": "developer", "content": "hi"}, [TEXT]),
        ({"role": "assistant", "content": "hi"}, [SAID]),
        ({"role": "user", "content": ""}, [{"type": "input_text", "text": ""}]),
        ({"role": "user", "content": []}, []),
        ({"role": "user", "content": [TEXT, TEXT]}, [TEXT, TEXT]),
        ({"role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}, [SAID]),
        (
            {"role": "assistant", "content": [{**SAID, "annotations": None, "logprobs": None}]},
            [SAID],
        ),
        (
            {"role": "assistant", "content": [{**SAID, "annotations": [{"type": "x"}]}]},
            [{**SAID, "annotations": [{"type": "x"}]}],
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            [{"type": "refusal", "refusal": "no"}],
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]},
            [{"type": "input_image", "image_url": "data:x", "detail": "auto"}],
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "f", "detail": "low"}]},
            [{"type": "input_image", "file_id": "f", "detail": "low"}],
        ),
        (
            {"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]},
            [{"type": "input_file", "file_url": "http://x"}],
        ),
        (
            {"role": "user", "content": [{"type": "acme:part", "a": [1, None]}]},
            [{"type": "acme:part", "a": [1, None]}],
        ),
        ({"role": "user", "content": [{**TEXT, "new": {"a": 1}}]}, [{**TEXT, "new": {"a": 1}}]),
    ],
)
@pytest.mark.parametrize("typed", [{}, {"type": "message"}, {"type": None}])
def test_a_message_has_a_type_and_content_as_parts(
    given: dict[str, Any], content: list[dict[str, Any]], typed: dict[str, Any]
) -> None:
    assert only({**given, **typed}) == {**given, "type": "message", "content": content}


def test_a_message_keeps_its_own_and_unknown_fields_but_no_nulls() -> None:
    given = {"role": "assistant", "content": [SAID], "id": "msg_1", "status": "incomplete"}

    assert only({**given, "phase": "final_answer", "x": [None], "name": None}) == {
        **given,
        "type": "message",
        "phase": "final_answer",
        "x": [None],
    }


@pytest.mark.parametrize(
    "item",
    [
        CALL,
        {**CALL, "id": None, "status": None},
        {**CALL, "id": "fc_1", "status": "completed", "new": 1},
        {**CALL, "call_id": "c" * 256},
        OUTPUT,
        {**OUTPUT, "output": ""},
        {**OUTPUT, "output": [TEXT]},
        {"type": "reasoning", "summary": []},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "x"}],
            "encrypted_content": "e",
            "content": None,
        },
        {"type": "compaction", "encrypted_content": "e"},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "mcp_approval_response", "approval_request_id": "a", "approve": True},
        {"type": "acme:thing", "role": 5, "content": {"deep": [[]]}, "id": None},
    ],
)
def test_other_items_stay_as_they_are(item: dict[str, Any]) -> None:
    assert only(item) == item


@pytest.mark.parametrize("untyped", [{"id": "msg_1"}, {"id": "msg_1", "type": None}])
def test_an_untyped_id_is_a_reference(untyped: dict[str, Any]) -> None:
    assert only(untyped) == {"type": "item_reference", "id": "msg_1"}


def test_images_in_a_tool_output_get_a_detail() -> None:
    image = {"type": "input_image", "image_url": "data:x"}

    assert only({**OUTPUT, "output": [image]})["output"] == [{**image, "detail": "auto"}]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "type", "missing_required_parameter"),
    ({"content": "hi"}, "type", "missing_required_parameter"),
    ({"type": 5}, "type", "invalid_type"),
    ({"type": ""}, "type", "invalid_type"),
    ({"role": "robot", "content": "hi"}, "role", "invalid_value"),
    ({"role": 5, "content": "hi"}, "role", "invalid_type"),
    ({"role": "user"}, "content", "missing_required_parameter"),
    ({"type": "message", "content": "hi"}, "role", "missing_required_parameter"),
    ({"role": "user", "content": None}, "content", "invalid_type"),
    ({"role": "user", "content": 5}, "content", "invalid_type"),
    ({"role": "user", "content": ["hi"]}, "content[0]", "invalid_type"),
    ({"role": "user", "content": [{}]}, "content[0].type", "missing_required_parameter"),
    ({"role": "user", "content": [TEXT, {"type": 5}]}, "content[1].type", "missing_required_parameter"),
    ({"role": "user", "content": [{"type": "input_text"}]}, "content[0].text", "missing_required_parameter"),
    ({"role": "user", "content": [{"type": "input_text", "text": 5}]}, "content[0].text", "invalid_type"),
    ({"role": "user", "content": [{"type": "input_text", "text": None}]}, "content[0].text", "invalid_type"),
    ({"role": "user", "content": [{"type": "input_image", "image_url": {}}]}, "content[0].image_url", "invalid_type"),
    ({"role": "user", "content": [{"type": "input_file", "file_data": 5}]}, "content[0].file_data", "invalid_type"),
    ({"role": "assistant", "content": [{"type": "refusal"}]}, "content[0].refusal", "missing_required_parameter"),
    ({"role": "user", "content": "hi", "id": 5}, "id", "invalid_type"),
    ({"role": "user", "content": "hi", "id": "i" * 257}, "id", "invalid_value"),
    ({"role": "user", "content": "hi", "status": "done"}, "status", "invalid_value"),
    ({"type": "function_call", "name": "f", "arguments": "{}"}, "call_id", "missing_required_parameter"),
    ({**CALL, "call_id": ""}, "call_id", "invalid_value"),
    ({**CALL, "call_id": "c" * 257}, "call_id", "invalid_value"),
    ({**CALL, "call_id": 5}, "call_id", "invalid_type"),
    ({**CALL, "name": None}, "name", "invalid_type"),
    ({**CALL, "arguments": {}}, "arguments", "invalid_type"),
    ({**OUTPUT, "output": 22}, "output", "invalid_type"),
    ({**OUTPUT, "output": {}}, "output", "invalid_type"),
    ({**OUTPUT, "output": ["22"]}, "output[0]", "invalid_type"),
    ({**OUTPUT, "output": [{"type": "input_text"}]}, "output[0].text", "missing_required_parameter"),
    ({"type": "function_call_output", "call_id": "c1"}, "output", "missing_required_parameter"),
    ({"type": "reasoning"}, "summary", "missing_required_parameter"),
    ({"type": "reasoning", "summary": ["x"]}, "summary[0]", "invalid_type"),
    ({"type": "reasoning", "summary": [{"type": "summary_text"}]}, "summary[0].text", "missing_required_parameter"),
    ({"type": "compaction"}, "encrypted_content", "missing_required_parameter"),
    ({"type": "item_reference"}, "id", "missing_required_parameter"),
    ({"type": "item_reference", "id": ""}, "id", "invalid_value"),
    ({"id": 5}, "id", "invalid_type"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "param", "code"), WRONG)
def test_a_wrong_item_is_refused_by_its_place(item: dict[str, Any], param: str, code: str) -> None:
    error = refused(item)

    assert (error.status, error.param, error.code) == (400, f"input[0].{param}", code)


def test_the_place_counts_the_items() -> None:
    with pytest.raises(RequestError) as caught:
        input_items([{"role": "user", "content": "hi"}, {"role": "user"}])

    assert caught.value.param == "input[1].content"


# Ids


def test_items_get_ids_by_place_and_a_status_where_it_belongs() -> None:
    items: list[Item] = [
        {"type": "message", "role": "user", "content": []},
        {"type": "message", "id": "mine", "status": "incomplete"},
        {**CALL, "id": None},
        OUTPUT,
        {"type": "reasoning", "summary": []},
        {"type": "acme:thing", "id": 5},
    ]

    assert with_ids(items, BODY, set()) == [
        {**items[0], "id": f"msg_{BODY}0000", "status": "completed"},
        items[1],
        {**CALL, "id": f"fc_{BODY}0002", "status": "completed"},
        {**OUTPUT, "id": f"fco_{BODY}0003", "status": "completed"},
        {"type": "reasoning", "summary": [], "id": f"rs_{BODY}0004"},
        {"type": "acme:thing", "id": f"item_{BODY}0005"},
    ]


def test_an_id_that_is_taken_is_replaced() -> None:
    items = [{"type": "x", "id": "old"}, {"type": "x", "id": "new"}, {"type": "x", "id": "new"}]

    identified = with_ids(items, BODY, {"old"})

    assert [item["id"] for item in identified] == [
        f"item_{BODY}0000",
        "new",
        f"item_{BODY}0002",
    ]


def test_the_given_items_are_not_changed() -> None:
    item: Item = {"type": "message"}

    with_ids([item], BODY, set())

    assert item == {"type": "message"}


# Calls and their outputs

CALL_2 = {**CALL, "call_id": "c2"}
OUTPUT_2 = {**OUTPUT, "call_id": "c2"}


@pytest.mark.parametrize(
    ("history", "given"),
    [
        ([], []),
        ([], [CALL, OUTPUT]),
        ([], [CALL, CALL_2, OUTPUT_2, OUTPUT]),
        ([CALL], [OUTPUT]),
        ([CALL, OUTPUT], []),
        ([CALL, OUTPUT, CALL_2], [OUTPUT_2]),
        ([CALL, OUTPUT], [OUTPUT]),
    ],
)
def test_calls_with_their_outputs_pass(history: list[Item], given: list[Item]) -> None:
    require_paired_calls(history, given)


@pytest.mark.parametrize(
    ("history", "given", "message"),
    [
        ([], [OUTPUT], "No tool call found for function call output with call_id c1."),
        ([CALL], [OUTPUT_2], "No tool call found for function call output with call_id c2."),
        ([], [CALL], "No tool output found for function call c1."),
        ([CALL], [], "No tool output found for function call c1."),
        ([CALL, CALL_2], [OUTPUT_2], "No tool output found for function call c1."),
        ([CALL, OUTPUT], [CALL_2], "No tool output found for function call c2."),
    ],
)
def test_a_call_or_an_output_alone_is_refused(
    history: list[Item], given: list[Item], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        require_paired_calls(history, given)

    assert (caught.value.status, caught.value.param, caught.value.message) == (
        400,
        "input",
        message,
    )
