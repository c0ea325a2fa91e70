import json
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from channel.agents.demo_schema import NoInstanceError, instance


TEXTS = st.sampled_from(
    ["", "Ada, 36, lives in Paris", 'say "hi" to ada@example.com on 2026-05-17']
)
NAMES = st.sampled_from(["name", "city", "age", "tags", "next", "is_open", "amount"])
PATTERNS = [
    "^[a-z]+$",
    r"^\d{3}-\d{4}$",
    "^@[a-zA-Z0-9_]+$",
    "(foo|bar)+",
    "^.{2,}$",
    r"[^a-z]\.x?",
]
FORMATS = [
    "date",
    "date-time",
    "time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
]


def is_valid(value: Any, schema: Any) -> bool:
    checker = Draft202012Validator.FORMAT_CHECKER
    wire = json.loads(json.dumps(value, allow_nan=False))
    return cast("bool", Draft202012Validator(schema, format_checker=checker).is_valid(wire))


@st.composite
def number_schemas(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": draw(st.sampled_from(["integer", "number"]))}
    if draw(st.booleans()):
        schema["multipleOf"] = draw(st.sampled_from([1, 2, 5, 0.5, 0.01]))
    low = draw(st.integers(-1_000, 1_000))
    if lower := draw(st.sampled_from([None, "minimum", "exclusiveMinimum"])):
        schema[lower] = low
    if upper := draw(st.sampled_from([None, "maximum", "exclusiveMaximum"])):
        schema[upper] = low + draw(st.integers(11, 50))
    return schema


@st.composite
def string_schemas(draw: st.DrawFn) -> dict[str, Any]:
    match draw(st.sampled_from(["plain", "length", "pattern", "format"])):
        case "length":
            low = draw(st.integers(0, 20))
            return {"type": "string", "minLength": low, "maxLength": low + draw(st.integers(0, 9))}
        case "pattern":
            return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
        case "format":
            return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
    return {"type": draw(st.sampled_from(["string", ["string", "null"], ["null", "string"]]))}


CONSTANTS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=5))
LEAVES = st.one_of(
    number_schemas(),
    string_schemas(),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
    st.builds(lambda value: {"const": value}, CONSTANTS),
    st.lists(CONSTANTS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.just({"$ref": "#/$defs/Tree"}),
    st.just({"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
)


@st.composite
def array_schemas(draw: st.DrawFn, items: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    low = draw(st.integers(0, 3))
    schema = {"type": "array", "items": draw(items), "minItems": low}
    if draw(st.booleans()):
        schema["maxItems"] = low + draw(st.integers(0, 2))
    return schema


def object_schemas(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, values, max_size=4).map(strict_object)


def strict_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        object_schemas(inner),
        array_schemas(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
    ),
    max_leaves=12,
)
TREE = strict_object(
    {
        "value": {"type": "integer"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
        "parent": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]},
    }
)


@settings(max_examples=150, deadline=None)
@given(schema=object_schemas(SCHEMAS), text=TEXTS)
def test_an_instance_is_valid_under_any_schema_of_structured_outputs(
    schema: dict[str, Any], text: str
) -> None:
    whole = {**schema, "$defs": {"Tree": TREE}}

    assert is_valid(instance(whole, text), whole)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {"properties": {"a": {"type": "integer"}}},
        {"minimum": 3},
        {"maximum": -3},
        {"type": "number", "exclusiveMinimum": 1e20},
        {"items": {"type": "null"}},
        {"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.2},
        {"type": "number", "minimum": 0.25, "multipleOf": 0.1},
        {"type": "string", "pattern": "^a{2,9}$", "minLength": 5},
        {"type": "string", "pattern": "b$", "minLength": 5},
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 1},
        {"type": "object", "minProperties": 2},
        {"type": "object", "properties": {"a": True, "b": True}, "required": ["c"], "minProperties": 2},
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
        {"allOf": [{"type": "number", "minimum": 1}, {"type": "integer", "minimum": 4}, True]},
        {"allOf": [{"type": "string", "maxLength": 9}, {"type": "string", "maxLength": 3}]},
        {"allOf": [{"enum": [1, 2, 3]}, {"enum": [3, 4]}]},
        {"allOf": [{"anyOf": [{"type": "null"}]}, {"anyOf": [{"type": "null"}, {"const": 1}]}]},
        {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": {"minimum": 1, "type": "integer"}, "b": {"maximum": 9}}},
        {"allOf": [{"properties": {"a": {"minimum": 2}}, "required": ["a"]}, {"properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]}], "type": "object"},
        {"type": ["string", "null"], "anyOf": [{"type": "null"}, {"type": "integer"}]},
        {"type": "string", "enum": [1, True, "a"]},
        {"type": ["boolean", "integer", "array", "object", "null"], "enum": ["a", 3]},
        {"oneOf": [False, {"type": "object", "properties": {"kind": {"const": "x"}}, "required": ["kind"]}]},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "boolean"}}},
        {"$ref": "#/allOf/0", "allOf": [{"type": "boolean"}]},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
    ],
)  # fmt: skip
def test_an_instance_is_valid_under_the_rarer_keywords(schema: Any) -> None:
    assert is_valid(instance(schema, "Ada is 36"), schema)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "unheard-of"},
        {"type": "string", "enum": [1]},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "minLength": 10**9},
        {"type": "string", "format": "uuid", "maxLength": 3},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "integer", "multipleOf": 0},
        {"type": "array", "minItems": 10**9, "items": {"type": "null"}},
        {"type": "array", "minItems": 2, "uniqueItems": True, "items": {"type": "null"}},
        {"type": "array", "minItems": 1, "items": False},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/missing"},
        {"$ref": 3},
        {"properties": 3},
        {"allOf": 3},
        {"minimum": "3"},
        {"anyOf": []},
    ],
)
def test_a_schema_without_a_small_instance_is_an_error(schema: Any) -> None:
    with pytest.raises(NoInstanceError):
        instance(schema)


def test_a_schema_that_doubles_at_every_level_ends_in_an_error() -> None:
    definitions = {
        f"d{n}": strict_object(
            {"a": {"$ref": f"#/$defs/d{n + 1}"}, "b": {"$ref": f"#/$defs/d{n + 1}"}}
        )
        for n in range(40)
    }

    with pytest.raises(NoInstanceError):
        instance({"$ref": "#/$defs/d0", "$defs": {**definitions, "d40": {"type": "null"}}})


def test_many_definitions_that_refer_to_each_other_have_an_instance() -> None:
    names = [f"d{n}" for n in range(12)]
    optional = [{"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]} for name in names]
    node = strict_object(dict(zip(names, optional, strict=True)))
    schema = {"$ref": "#/$defs/d0", "$defs": dict.fromkeys(names, node)}

    assert is_valid(instance(schema), schema)


def test_a_deeply_nested_schema_ends_in_an_error() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(5_000):
        schema = {"anyOf": [schema]}

    with pytest.raises(NoInstanceError):
        instance(schema)


def test_properties_take_their_values_from_the_text() -> None:
    schema = strict_object(
        {
            "city": {"type": "string"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1},
            "threshold": {"type": "number"},
            "when": {"type": "string", "format": "date"},
            "email": {"type": "string", "format": "email"},
            "link": {"type": "string", "format": "uri"},
            "note": {"type": "string"},
            "color": {"type": "string"},
        }
    )
    text = (
        "Weather in New York for 3 days above 2.5 fahrenheit from 2026-05-17, color: deep blue, "
        'mail "it is hot" to ada@example.com and see https://example.org/a?b=1.'
    )

    assert instance(schema, text) == {
        "city": "New York",
        "unit": "fahrenheit",
        "days": 3,
        "threshold": 2.5,
        "when": "2026-05-17",
        "email": "ada@example.com",
        "link": "https://example.org/a?b=1",
        "note": "it is hot",
        "color": "deep blue",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("city", "what about the weather in paris tomorrow", "paris"),
        ("location", "Weather at noon near San Francisco?", "San Francisco"),
        ("city", "nowhere at all", "nowhere at all"),
        ("name", "a dog named Rex", "Rex"),
        ("first_name", "the first name is Ada", "Ada"),
        ("query", "", "query"),
        ("", "", "text"),
    ],
)
def test_a_string_takes_what_the_text_says_of_its_name(name: str, text: str, value: str) -> None:
    schema = {"type": "object", "properties": {name: {"type": "string"}}}

    assert instance(schema, text) == {name: value}


def test_a_number_of_the_text_is_used_once_and_only_where_it_fits() -> None:
    schema = strict_object(
        {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"maximum": 5}}
    )

    assert instance(schema, "add 2.5 and 7 and 40 and 3") == {"a": 7, "b": 40, "c": 2.5}
