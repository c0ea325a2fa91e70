import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item
from channel.responses.protocol.requests import (
    CreateResponse,
    parse,
    permitted_names,
)
from channel.responses.protocol.shapes import MAX_NESTING


F = {"type": "function", "name": "f"}
C = {"type": "compaction", "compact_threshold": 1000}
WHOLE_F = {**F, "description": None, "parameters": None, "strict": None}


def taken_from(body: bytes) -> dict[str, Any]:
    """Return the fields that were taken, without those that are absent."""
    request, _ = parse(body)
    names = CreateResponse.__struct_fields__
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def parsed(**fields: Any) -> dict[str, Any]:
    return taken_from(json.dumps({"input": "hi", **fields}).encode())


def refused(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(body)
    return caught.value


def refused_fields(**fields: Any) -> RequestError:
    return refused(json.dumps({"input": "hi", **fields}).encode())


# What is taken


def test_input_is_optional_where_nothing_is_run() -> None:
    request, items = parse(b"{}", requires_input=False)

    assert (request.model, items) == (None, [])
    assert refused(b"{}").param == "input"


def test_context_management_takes_a_threshold_or_none() -> None:
    bare = {"type": "compaction"}

    request, _ = parse(json.dumps({"input": "hi", "context_management": [C, bare]}).encode())

    assert request.context_management == [C, bare]


def test_a_string_is_one_user_message() -> None:
    _, items = parse(b'{"input":"hi"}')

    assert items == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    ]


def test_every_known_field_is_taken_as_it_was_given() -> None:
    fields: dict[str, Any] = {
        "model": "m",
        "instructions": "Be brief.",
        "previous_response_id": "resp_1",
        "store": False,
        "background": False,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
        "tools": [WHOLE_F],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tool_calls": 1,
        "max_output_tokens": 16,
        "temperature": 2,
        "top_p": 0.5,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "top_logprobs": 20,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "truncation": "auto",
        "metadata": {"k": "v"},
        "service_tier": "flex",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "user": "u",
    }

    assert parsed(**fields) == fields


@pytest.mark.parametrize("name", sorted(CreateResponse.__struct_fields__))
def test_null_is_the_same_as_absent(name: str) -> None:
    assert parsed(**{name: None}) == parsed()


def test_unknown_fields_are_ignored() -> None:
    assert parsed(background_options={"a": 1}, image=[], moderation="x", **{"": 0}) == parsed()


@pytest.mark.parametrize("empty", [{"prompt": {}}])
def test_empty_unsupported_fields_do_no_harm(empty: dict[str, Any]) -> None:
    assert parsed(**empty) == {**parsed(), **empty}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("conv_1", "conv_1"), ({"id": "conv_1", "more": 1}, "conv_1"), ("", ""), (None, None)],
)
def test_a_conversation_is_named_or_an_object_with_its_name(
    given: Any, expected: str | None
) -> None:
    request, _ = parse(json.dumps({"input": "hi", "conversation": given}).encode())

    assert request.conversation_id == expected


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        (3, "conversation", "invalid_type"),
        (["conv_1"], "conversation", "invalid_type"),
        ({"id": 3}, "conversation.id", "invalid_type"),
        ({}, "conversation.id", "missing_required_parameter"),
    ],
)
def test_a_conversation_that_is_named_wrongly_is_refused(given: Any, param: str, code: str) -> None:
    error = refused_fields(conversation=given)

    assert (error.status, error.param, error.code) == (400, param, code)


def test_a_conversation_needs_no_input_and_excludes_a_previous_response() -> None:
    _, items = parse(b'{"conversation":"conv_1"}')
    error = refused_fields(conversation={"id": "conv_1"}, previous_response_id="resp_1")

    assert items == []
    assert (error.status, error.param, error.code) == (
        400,
        "previous_response_id",
        "mutually_exclusive_parameters",
    )


def test_a_previous_response_needs_no_input() -> None:
    _, items = parse(b'{"previous_response_id":"resp_1"}')

    assert items == []


def test_the_last_of_duplicate_keys_counts() -> None:
    request, _ = parse(b'{"input":"a","model":"x","model":"y"}')

    assert request.model == "y"


def test_function_tools_get_the_fields_that_an_echo_needs_and_other_tools_stay() -> None:
    mcp = {"type": "mcp", "server_label": "x", "headers": {"a": 1}}

    assert parsed(tools=[F, {**F, "strict": True, "new": 1}, mcp])["tools"] == [
        WHOLE_F,
        {**WHOLE_F, "strict": True, "new": 1},
        mcp,
    ]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, {"format": {"type": "text"}}),
        ({"verbosity": None}, {"format": {"type": "text"}}),
        ({"format": {}}, {"format": {"type": "text"}}),
        ({"format": {"type": "json_object"}}, {"format": {"type": "json_object"}}),
        (
            {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
            {
                "format": {
                    "type": "json_schema",
                    "name": "n",
                    "schema": {"type": "object"},
                    "description": None,
                    "strict": None,
                }
            },
        ),
    ],
)
def test_text_formats(given: dict[str, Any], taken: dict[str, Any]) -> None:
    assert parsed(text=given)["text"] == taken


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, {"effort": None, "summary": None}),
        ({"effort": "xhigh"}, {"effort": "xhigh", "summary": None}),
        (
            {"generate_summary": "concise", "mode": "x"},
            {"generate_summary": "concise", "mode": "x", "effort": None, "summary": "concise"},
        ),
    ],
)
def test_reasoning_is_echoed_with_both_keys(given: dict[str, Any], taken: dict[str, Any]) -> None:
    assert parsed(reasoning=given)["reasoning"] == taken


# Which functions may be called


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("auto", {"f", "g"}),
        ("required", {"f", "g"}),
        ("none", set()),
        ({"type": "function", "name": "f"}, {"f"}),
        ({"type": "function", "name": "other"}, set()),
        ({"type": "allowed_tools", "mode": "none", "tools": [F]}, set()),
        ({"type": "allowed_tools", "mode": "auto", "tools": [F]}, {"f"}),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "other"}, {"type": "mcp"}],
            },
            set(),
        ),
        ({"type": "mcp", "server_label": "x"}, {"f", "g"}),
    ],
)
def test_tool_choice_is_a_hard_constraint(choice: str | dict[str, Any], names: set[str]) -> None:
    tools = [F, {"type": "function", "name": "g"}, {"type": "mcp", "name": "h"}]

    assert permitted_names(tools, choice) == names


def test_no_tool_choice_makes_the_names_fail() -> None:
    odd = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": []}]}

    try:
        choice = parsed(tools=[F], tool_choice=odd)["tool_choice"]
    except RequestError:
        return
    assert permitted_names([F], choice) == frozenset()


# What is refused, by `param`


WRONG_TYPES: list[tuple[str, Any, str]] = [
    ("model", 5, "model"),
    ("input", 5, "input"),
    ("input", {"role": "user"}, "input"),
    ("input", [5], "input[0]"),
    ("input", ["a"], "input[0]"),
    ("instructions", ["x"], "instructions"),
    ("previous_response_id", 5, "previous_response_id"),
    ("conversation", 5, "conversation"),
    ("prompt", "pmpt_1", "prompt"),
    ("store", "yes", "store"),
    ("store", 1, "store"),
    ("background", 0, "background"),
    ("stream", "true", "stream"),
    ("stream_options", True, "stream_options"),
    ("tools", {}, "tools"),
    ("tools", ["f"], "tools[0]"),
    ("tools", [{"type": "function", "name": 5}], "tools[0].name"),
    ("tools", [F, {**F, "parameters": []}], "tools[1].parameters"),
    ("tools", [{**F, "description": 5}], "tools[0].description"),
    ("tools", [{**F, "strict": "yes"}], "tools[0].strict"),
    ("tools", [{"type": 5}], "tools[0].type"),
    ("tool_choice", 5, "tool_choice"),
    ("tool_choice", {"type": "function", "name": 5}, "tool_choice.name"),
    ("parallel_tool_calls", "no", "parallel_tool_calls"),
    ("max_tool_calls", "1", "max_tool_calls"),
    ("max_tool_calls", 1.5, "max_tool_calls"),
    ("max_output_tokens", "16", "max_output_tokens"),
    ("temperature", "hot", "temperature"),
    ("top_p", [], "top_p"),
    ("presence_penalty", "x", "presence_penalty"),
    ("frequency_penalty", {}, "frequency_penalty"),
    ("top_logprobs", 0.5, "top_logprobs"),
    ("text", "json", "text"),
    ("text", {"format": "json"}, "text.format"),
    (
        "text",
        {"format": {"type": "json_schema", "name": 5, "schema": {}}},
        "text.format.name",
    ),
    (
        "text",
        {"format": {"type": "json_schema", "name": "n", "schema": []}},
        "text.format.schema",
    ),
    ("reasoning", "high", "reasoning"),
    ("reasoning", {"effort": 5}, "reasoning.effort"),
    ("reasoning", {"summary": {}}, "reasoning.summary"),
    ("include", "x", "include"),
    ("include", [None], "include[0]"),
    ("truncation", 5, "truncation"),
    ("context_management", {}, "context_management"),
    ("context_management", ["compaction"], "context_management[0]"),
    ("context_management", [{"type": 5}], "context_management[0].type"),
    ("context_management", [{"compact_threshold": 1000}], "context_management[0].type"),
    (
        "context_management",
        [C, {**C, "compact_threshold": 1000.5}],
        "context_management[1].compact_threshold",
    ),
    ("metadata", [], "metadata"),
    ("metadata", {"k": 5}, "metadata"),
    ("service_tier", 5, "service_tier"),
    ("safety_identifier", 5, "safety_identifier"),
    ("prompt_cache_key", [], "prompt_cache_key"),
    ("user", 5, "user"),
]


@pytest.mark.parametrize(("name", "value", "param"), WRONG_TYPES)
def test_a_wrong_type_is_refused_by_its_name(name: str, value: Any, param: str) -> None:
    error = refused_fields(**{name: value})

    assert (error.status, error.param) == (400, param)
    assert error.code in ("invalid_type", "missing_required_parameter")
    assert f"'{param}'" in error.message


def test_the_table_of_wrong_types_has_every_field() -> None:
    elsewhere = {"response_target"}  # any JSON here: `channel.targets` reads it
    fields = {*CreateResponse.__struct_fields__, "input"}
    assert {name for name, _, _ in WRONG_TYPES} == fields - elsewhere


WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"max_output_tokens": 15}, "max_output_tokens"),
    ({"max_output_tokens": -1}, "max_output_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"truncation": "left"}, "truncation"),
    ({"truncation": "a - at `$.input`"}, "truncation"),
    ({"context_management": [{"type": "pruning"}]}, "context_management[0].type"),
    (
        {"context_management": [{**C, "compact_threshold": 999}]},
        "context_management[0].compact_threshold",
    ),
    ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"safety_identifier": "s" * 65}, "safety_identifier"),
    ({"prompt_cache_key": "p" * 65}, "prompt_cache_key"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": ""}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "f\n"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "n" * 65}]}, "tools[0].name"),
    ({"tools": [F], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {}}, "tool_choice"),
    ({"tool_choice": ""}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    (
        {"tools": [F], "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": [F]}},
        "tool_choice.mode",
    ),
    (
        {"tools": [F], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
        "tool_choice.tools",
    ),
    ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"name": "n"}}}, "text.format.type"),
    (
        {"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}},
        "text.format.name",
    ),
]


@pytest.mark.parametrize(("fields", "param"), WRONG_VALUES)
def test_a_value_out_of_its_limits_is_refused_by_its_name(
    fields: dict[str, Any], param: str
) -> None:
    error = refused_fields(**fields)

    assert (error.status, error.param, error.code) == (400, param, "invalid_value")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [F], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [F], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.mode"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
    ],
)
def test_a_missing_field_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    error = refused_fields(**fields)

    assert (error.status, error.param, error.code, error.message) == (
        400,
        param,
        "missing_required_parameter",
        f"Missing required parameter: '{param}'.",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", {"id": "pmpt_1"})],
)
def test_what_is_not_supported_is_said(name: str, value: Any) -> None:
    error = refused_fields(**{name: value})

    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")


def test_a_background_response_has_to_be_stored() -> None:
    error = refused_fields(background=True, store=False)

    assert (error.status, error.param, error.code) == (400, "background", "unsupported_parameter")


@pytest.mark.parametrize("limit", [{"metadata": {f"{i:064}": "v" * 512 for i in range(16)}}])
def test_the_limits_themselves_are_permitted(limit: dict[str, Any]) -> None:
    assert parsed(**limit)["metadata"] == limit["metadata"]


# Hostile bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b"{",
        b'{"input":"a"}}',
        b'{"input":"a"} x',
        b"{'input':'a'}",
        b'{"input":NaN}',
        b'{"input":"a\n"}',
        b'{"input":"a\x00"}',
        b'{"input":"\xff\xfe"}',
        b'{"input":"\xed\xa0\x80"}',
        b'\xff\xfe{\x00"\x00',
        rb'{"input":"\ud800"}',
        rb'{"input":"\udc00\ud800"}',
        rb'{"input":"\u12"}',
        b'{"input":"a","temperature":1e999}',
        b'{"input":"a","max_output_tokens":1e999}',
        b'{"input":"a","top_logprobs":' + b"9" * 5000 + b"}",
        b'{"input":[{"type":"x","n":-1e999}]}',
        b'{"input":' + b"[" * 20_000,
        b'{"input":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"x":' + b"[" * 101 + b"]" * 101 + b',"input":"a"}',
        b"]" * 200,
        b"}" * 200 + b"[" * 200,
    ],
    ids=range(29),
)
def test_a_hostile_body_is_a_400(body: bytes) -> None:
    error = refused(body)

    assert error.status == 400
    json.dumps(error.message).encode()


def test_an_unterminated_string_is_refused_in_linear_time() -> None:
    # Hours, if every quote of it were a start of the string again.
    body = b'{"input":"' + b'\\"' * 300_000 + b"[" * (MAX_NESTING + 1)

    assert refused(body).code in ("invalid_json", "invalid_value")


def test_a_nul_in_a_string_is_text() -> None:
    _, items = parse(rb'{"input":"a\u0000b"}')

    assert items[0]["content"][0]["text"] == "a\0b"


def test_nesting_is_permitted_up_to_the_limit() -> None:
    levels = MAX_NESTING - 3  # the body, the input and the item take one each
    deep = b'{"input":[{"type":"x","a":' + b"[" * levels + b"]" * levels + b"}]}"

    _, items = parse(deep)

    assert msgspec.json.decode(msgspec.json.encode(items)) == items
    assert refused(deep.replace(b'"a":', b'"a":[').replace(b"}]}", b"]}]}")).code == "invalid_value"


def test_brackets_in_text_are_not_nesting() -> None:
    said = '\\"[{' * 500 + '\\\\"'

    _, items = parse(json.dumps({"input": said}).encode())

    assert items[0]["content"][0]["text"] == said


# Whatever the fields hold


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["auto", "function", "message", "user", "f", "allowed_tools", "json_schema"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "role",
                    "content",
                    "name",
                    "tools",
                    "mode",
                    "id",
                    "call_id",
                    "output",
                    "text",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from([*CreateResponse.__struct_fields__, "input"]), JSON, max_size=4
)


def outcome_of(body: bytes) -> RequestError | tuple[CreateResponse, list[Item]]:
    try:
        return parse(body)
    except RequestError as error:
        return error


@settings(max_examples=60, deadline=None)
@given(fields=FIELDS)
def test_a_body_is_parsed_or_refused_and_what_is_parsed_can_be_written(
    fields: dict[str, Any],
) -> None:
    outcome = outcome_of(json.dumps({"input": "hi", **fields}).encode())

    if isinstance(outcome, RequestError):
        assert outcome.status == 400
        assert json.loads(msgspec.json.encode(outcome.message)) == outcome.message
        return
    request, items = outcome
    tools = request.tools or []
    names = permitted_names(tools, request.tool_choice or "auto")
    assert names <= {tool.get("name") for tool in tools}
    assert msgspec.json.decode(msgspec.json.encode(items), type=list[Item]) == items
    assert msgspec.json.decode(msgspec.json.encode(request), type=type(request)) == request
