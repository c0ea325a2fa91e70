"""The body of `POST /chat/completions` as what a Responses create has."""

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from channel.chat.requests import ChatRequest, parse
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.requests import CreateResponse, parse as parse_create
from channel.responses.protocol.shapes import MAX_NESTING
from tests.channel.chat.wire import HI


F = {"type": "function", "function": {"name": "f"}}
FLAT_F = {"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}
SCHEMA = {"type": "object", "properties": {}}


def parsed(**fields: Any) -> ChatRequest:
    return parse(json.dumps({"messages": HI, **fields}).encode())


def taken(**fields: Any) -> dict[str, Any]:
    """Return the fields of the create that were taken."""
    create = parsed(**fields).create
    names = CreateResponse.__struct_fields__
    return {name: value for name in names if (value := getattr(create, name)) is not None}


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(**fields)
    assert caught.value.status == 400
    return caught.value


# What is taken


def test_every_field_that_means_the_same_is_taken() -> None:
    fields: dict[str, Any] = {
        "model": "m",
        "stream": True,
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.5,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "metadata": {"k": "v"},
        "service_tier": "flex",
        "safety_identifier": "s" * 128,
        "prompt_cache_key": "p",
        "user": "u",
    }

    assert taken(**fields) == {**fields, "tools": [], "tool_choice": "auto"}


def test_fields_of_other_names_are_taken() -> None:
    fields = taken(max_completion_tokens=5, reasoning_effort="low", verbosity="high")

    assert fields["max_output_tokens"] == 5
    assert fields["reasoning"] == {"effort": "low", "summary": None}
    assert fields["text"] == {"format": {"type": "text"}, "verbosity": "high"}


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 5}, 5),
    ],
)
def test_the_old_name_of_the_limit_counts_without_the_new_one(
    fields: dict[str, Any], tokens: int
) -> None:
    assert taken(**fields)["max_output_tokens"] == tokens


def test_a_bare_request_has_defaults() -> None:
    assert taken() == {"tools": [], "tool_choice": "auto"}
    assert parsed().includes_usage is False


@pytest.mark.parametrize(
    ("options", "includes"),
    [(None, False), ({}, False), ({"include_usage": None}, False), ({"include_usage": True}, True)],
)
def test_usage_in_a_stream_is_asked_for(options: Any, includes: bool) -> None:
    assert parsed(stream=True, stream_options=options).includes_usage is includes


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1, "store": True, "prediction": {"type": "content", "content": "x"}},
        {"prompt_cache_retention": "24h", "a_field_of_next_year": {"x": 1}},
        {"n": 1, "modalities": ["text"], "logprobs": False, "top_logprobs": 0, "logit_bias": {}},
        {"stop": None, "functions": [], "function_call": None, "audio": None, "moderation": None},
        {"web_search_options": None, "tools": None, "tool_choice": None, "response_format": None},
        {"stream": None, "stream_options": None, "parallel_tool_calls": None, "max_tokens": None},
    ],
)
def test_what_asks_for_nothing_and_what_is_only_a_wish_is_passed_over(
    fields: dict[str, Any],
) -> None:
    assert taken(**fields) == taken()


# Tools


def test_functions_are_declared() -> None:
    whole = {"name": "g", "description": "d", "parameters": SCHEMA, "strict": True}

    fields = taken(tools=[F, {"type": "function", "function": whole}, {"function": {"name": "h"}}])

    assert fields["tools"] == [FLAT_F, {"type": "function", **whole}, {**FLAT_F, "name": "h"}]


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_choice_that_is_a_word_is_itself(choice: str) -> None:
    assert taken(tools=[F], tool_choice=choice)["tool_choice"] == choice


def test_a_choice_of_tools_names_them() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}

    one = taken(tools=[F], tool_choice=named)
    some = taken(tools=[F], tool_choice=allowed)

    flat = {"type": "function", "name": "f"}
    assert one["tool_choice"] == flat
    assert some["tool_choice"] == {"type": "allowed_tools", "mode": "required", "tools": [flat]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [F, {"type": "function"}]}, "tools[1].function"),
        ({"tools": [{"function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [F], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none"}}},
            "tool_choice.allowed_tools.mode",
        ),
    ],
)
def test_a_wrong_tool_or_choice_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


# Structured output


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_a_bare_format_is_itself(kind: str) -> None:
    assert taken(response_format={"type": kind})["text"] == {"format": {"type": kind}}


def test_a_schema_is_flattened_as_the_responses_api_has_it() -> None:
    schema = {"name": "answer", "schema": SCHEMA, "strict": True}

    text = taken(response_format={"type": "json_schema", "json_schema": schema})["text"]

    flat = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
    assert text == {"format": {**flat, "description": None}}
    body = json.dumps({"input": "hi", "text": {"format": flat}}).encode()
    assert parse_create(body)[0].text == text


def test_a_schema_may_permit_anything() -> None:
    text = taken(response_format={"type": "json_schema", "json_schema": {"name": "a"}})["text"]

    assert text["format"]["schema"] == {}


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({"type": "grammar"}, "response_format.type"),
        ({}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.name"),
        (
            {"type": "json_schema", "json_schema": {"name": "a b"}},
            "response_format.json_schema.name",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": 1}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_wrong_format_is_named(response_format: dict[str, Any], param: str) -> None:
    assert refused(response_format=response_format).param == param


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("logit_bias", {"50256": -100}),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("moderation", {"model": "omni-moderation-latest"}),
        ("stop", "\n"),
        ("stop", ["\nObservation"]),
        ("web_search_options", {}),
    ],
)
def test_what_the_answer_would_silently_be_without_is_refused(name: str, value: Any) -> None:
    error = refused(**{name: value})

    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert f"'{name}'" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"model": 1}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"verbosity": "loud"}, "verbosity"),
        ({"reasoning_effort": 1}, "reasoning_effort"),
        ({"safety_identifier": "s" * 129}, "safety_identifier"),
    ],
)
def test_a_wrong_value_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


def test_messages_are_required() -> None:
    with pytest.raises(RequestError) as caught:
        parse(b'{"model": "m"}')

    assert (caught.value.param, caught.value.code) == ("messages", "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"hi"', b"\xff", b'{"messages": [{"role": "user", "content": "\\ud8'),
        b'{"messages": ' + b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1) + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse(body)

    assert caught.value.status == 400


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    [
        *("messages", "tools", "tool_choice", "response_format", "stream_options", "metadata"),
        *("n", "stop", "modalities", "max_tokens", "model", "role", "content", "type"),
    ]
)


@settings(max_examples=300)
@given(st.dictionaries(_FIELDS, _JSON))
def test_whatever_comes_is_taken_or_refused(fields: dict[str, Any]) -> None:
    for body in (fields, {"messages": [fields]}, {"messages": [{"role": "user", **fields}]}):
        try:
            parse(json.dumps(body).encode())
        except RequestError as error:
            assert error.status == 400  # noqa: PT017 - the other outcome is good, too
