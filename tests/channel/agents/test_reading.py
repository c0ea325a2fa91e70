"""What adapters read of a turn."""

from typing import Any

import pytest

from channel.agent import Turn, TurnError
from channel.agents.reading import (
    Approvals,
    ClientTool,
    JsonFormat,
    client_tools,
    instructions_of,
    json_format,
    output_of,
    parts_of,
    reasoning_effort,
    summary_of,
    tool_mode,
    with_own_tools,
)
from channel.responses.protocol.items import message


PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOLS = [
    {"type": "function", "name": "one", "description": "One.", "parameters": PARAMETERS, "strict": True},
    {"type": "function", "name": "two", "parameters": None},
    {"type": "web_search"},
]  # fmt: skip


def turn(**fields: Any) -> Turn:
    return Turn(**{"input": [], **fields})


def test_the_clients_tools_are_its_functions() -> None:
    one, two = client_tools(turn(tools=TOOLS))

    assert one == ClientTool("one", "One.", PARAMETERS, strict=True)
    assert two == ClientTool("two", "", {"type": "object", "properties": {}}, strict=False)


def test_two_functions_of_one_name_are_the_clients_error() -> None:
    with pytest.raises(TurnError) as caught:
        client_tools(turn(tools=[TOOLS[0], TOOLS[0]]))

    assert (caught.value.status, caught.value.param) == (400, "tools")


@pytest.mark.parametrize(
    ("choice", "names", "mode"),
    [
        ("auto", ["one", "two"], "auto"),
        ("required", ["one", "two"], "required"),
        ("none", [], "none"),
        ({"type": "function", "name": "two"}, ["two"], "required"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "one"}]}, ["one"], "auto"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"name": "one"}]}, ["one"], "required"),
        ({"type": "allowed_tools", "mode": "none", "tools": [{"name": "one"}]}, [], "none"),
        ({"type": "web_search"}, [], "required"),
    ],
)  # fmt: skip
def test_a_choice_permits_some_of_them(choice: Any, names: list[str], mode: str) -> None:
    given = turn(tools=TOOLS, tool_choice=choice)

    assert [tool.name for tool in client_tools(given)] == names
    assert tool_mode(given) == mode


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, None),
        ({}, None),
        ({"format": {"type": "text"}}, None),
        ({"format": {"type": "json_object"}}, JsonFormat()),
        (
            {"format": {"type": "json_schema", "name": "n", "schema": PARAMETERS, "strict": True}},
            JsonFormat(PARAMETERS, "n", strict=True),
        ),
    ],
)
def test_the_wanted_form_is_text_or_json(text: Any, wanted: JsonFormat | None) -> None:
    assert json_format(turn(options={"text": text} if text is not None else {})) == wanted


@pytest.mark.parametrize(
    ("reasoning", "effort"), [(None, None), ({"effort": "low"}, "low"), ({"effort": None}, None)]
)
def test_reasoning_has_an_effort(reasoning: Any, effort: str | None) -> None:
    assert reasoning_effort(turn(options={"reasoning": reasoning})) == effort


def test_instructions_are_the_requests_then_those_of_the_messages() -> None:
    items = [message("system", "b"), message("user", "no"), message("developer", "c")]

    assert instructions_of(turn(instructions="a", history=items[:1], input=items[1:])) == [
        "a",
        "b",
        "c",
    ]
    assert instructions_of(turn(input=[message("system", "")])) == []


def test_the_texts_of_items() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image"}, {"text": "b"}]

    assert output_of({"output": "text"}) == "text"
    assert output_of({"output": parts}) == "ab"
    assert summary_of({"summary": [{"text": "a"}, {"text": "b"}]}) == "ab"
    assert summary_of({"summary": None}) == ""
    assert parts_of({"type": "function_call_output", "output": parts}) == parts
    assert parts_of({"type": "function_call_output", "output": "text"}) == []
    assert parts_of({"type": "message", "content": parts}) == parts


def test_a_tool_that_was_shown_is_a_call_and_its_output() -> None:
    ran = {
        "type": "mcp_call",
        "id": "mcp_1",
        "server_label": "agent",
        "name": "f",
        "arguments": "{}",
    }
    other = {"type": "mcp_call", "server_label": "elsewhere"}
    call = {"type": "function_call", "call_id": "mcp_1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "mcp_1"}

    assert [*with_own_tools([message("user", "a"), {**ran, "output": "x"}, ran, other])] == [
        message("user", "a"),
        call,
        {**output, "output": "x"},
        call,
        {**output, "output": "The tool failed."},
        other,
    ]


REQUEST = {
    "type": "mcp_approval_request",
    "id": "mcpr_1",
    "name": "pay",
    "arguments": "{}",
    "server_label": "agent",
}
ANSWER = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}


def test_an_approval_is_taken_once_by_the_call_that_its_request_is_about() -> None:
    approvals = Approvals(turn(history=[REQUEST], input=[ANSWER]))

    assert approvals.take("pay", '{"to": "mallory"}') is None
    assert approvals.take("pay", "{}", "elsewhere") is None
    assert approvals.take("pay", "{}") == ANSWER
    assert approvals.take("pay", "{}") is None
    approvals.require_none_left()


@pytest.mark.parametrize("history", [[], [{**REQUEST, "id": "mcpr_2"}]])
def test_an_approval_of_nothing_that_was_asked_is_the_clients_error(history: Any) -> None:
    approvals = Approvals(turn(history=history, input=[ANSWER]))

    assert approvals.take("pay", "{}") is None
    with pytest.raises(TurnError, match="mcpr_1"):
        approvals.require_none_left()
