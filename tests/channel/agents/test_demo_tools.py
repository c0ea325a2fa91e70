from typing import Any

import pytest

from channel.agent import FunctionCall, FunctionCallDelta, Turn, TurnError
from channel.agents.demo_conversation import read
from channel.agents.demo_tools import calls, streamed
from channel.responses.protocol.items import Item, message


WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
        "required": ["city"],
    },
}
STOCK = {"type": "function", "name": "stockPrice", "parameters": None}
SEARCH = {"type": "function", "name": "search", "description": "Look things up in the archive"}
TOOLS = [WEATHER, STOCK, SEARCH, {"type": "web_search"}]


def called(text: str | list[Item], **fields: Any) -> list[str]:
    return [call.name for call in made(text, **fields)]


def made(text: str | list[Item], **fields: Any) -> list[FunctionCall]:
    items = [message("user", text)] if isinstance(text, str) else text
    turn = Turn(**{"input": items, "tools": TOOLS, "response_id": "resp_0123", **fields})
    return calls(turn, read(turn))


def call_item(name: str) -> Item:
    return {"type": "function_call", "call_id": f"call_{name}", "name": name, "arguments": "{}"}


def output_item(name: str) -> Item:
    return {"type": "function_call_output", "call_id": f"call_{name}", "output": "1"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Please call get_weather", ["get_weather"]),
        ("What's the weather in Oslo?", ["get_weather"]),
        ("How is it in the city currently, any weather?", ["get_weather"]),
        ("What is the stock price of apples?", ["stockPrice"]),
        ("run stockPrice", ["stockPrice"]),
        ("Search for cats", ["search"]),
        ("what things are in your archive", ["search"]),
        ("What does the stock cost?", []),
        ("Hello", []),
        ("", []),
    ],
)
def test_a_text_asks_for_a_tool_by_its_name_or_its_words(text: str, names: list[str]) -> None:
    assert called(text) == names


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("none", []),
        ("auto", []),
        ("required", ["get_weather"]),
        ({"type": "function", "name": "search"}, ["search"]),
        ({"type": "function", "name": "unknown"}, []),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "search"}]}, []),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"name": "search"}]}, ["search"]),
        ({"type": "mcp", "server_label": "x"}, []),
    ],
)
def test_tool_choice_forces_a_call(choice: Any, names: list[str]) -> None:
    assert called("Hello", tool_choice=choice) == names


def test_tool_choice_limits_what_is_asked_for() -> None:
    text = "Call get_weather and search"
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "search"}]}

    assert called(text, tool_choice="none") == []
    assert called(text, tool_choice=allowed) == ["search"]
    assert called(text, tool_choice="required") == ["get_weather", "search"]
    assert called(text, tool_choice="required", tools=[]) == []


def test_calls_that_may_not_be_parallel_are_made_one_after_the_other() -> None:
    said = [message("user", "Call get_weather and search")]
    first = [call_item("get_weather"), output_item("get_weather")]
    second = [call_item("search"), output_item("search")]

    assert called(said, parallel_tool_calls=False) == ["get_weather"]
    assert called([*said, *first], parallel_tool_calls=False) == ["search"]
    assert called([*said, *first, *second], parallel_tool_calls=False) == []


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "name": "get_weather"}]
)
def test_a_call_with_an_output_is_not_made_again(choice: Any) -> None:
    said = [message("user", "Call get_weather"), call_item("get_weather")]

    assert called([output_item("get_weather")], history=said, tool_choice=choice) == []
    assert called([output_item("get_weather")], tool_choice=choice) == []


def test_a_new_text_asks_anew() -> None:
    before = [message("user", "Weather?"), call_item("get_weather"), output_item("get_weather")]

    assert called("And the weather now?", history=before) == ["get_weather"]


def test_arguments_are_taken_from_the_text_and_call_ids_differ() -> None:
    calls_made = made("search the weather in New York", history=[call_item("search")])

    assert calls_made == [
        FunctionCall("get_weather", '{"city": "New York"}', "call_0123_2"),
        FunctionCall("search", "{}", "call_0123_3"),
    ]


def test_arguments_are_always_an_object() -> None:
    tools = [{"type": "function", "name": "odd", "parameters": {"type": "string"}}]

    assert made("call odd", tools=tools)[0].arguments == "{}"


def test_parameters_without_arguments_are_the_clients_error() -> None:
    tools = [{"type": "function", "name": "odd", "parameters": {"allOf": [False]}}]

    with pytest.raises(TurnError) as caught:
        made("call odd", tools=tools)

    assert (caught.value.status, caught.value.param) == (400, "tools")


def test_the_first_call_is_streamed_in_pieces_and_the_others_whole() -> None:
    first, second = FunctionCall("a", '{"b": 1}', "call_1"), FunctionCall("c", "{}", "call_2")

    assert [*streamed([first, second])] == [
        FunctionCallDelta("call_1", name="a"),
        FunctionCallDelta("call_1", '{"b": '),
        FunctionCallDelta("call_1", "1}"),
        second,
    ]
    assert [*streamed([])] == []


def test_a_tool_named_with_signs_only_is_called_by_its_name() -> None:
    tools = [{"type": "function", "name": "--", "parameters": {}}]

    assert called("Hello", tools=tools) == []
    assert called("use -- now", tools=tools) == ["--"]
