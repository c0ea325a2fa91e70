"""JSON schemas that Bedrock enforces, and the word that it always wants."""

from typing import Any

import pytest

from channel.agents.converse.schema import closed, is_enforceable


OPEN: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**OPEN, "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        CLOSED,
        {"type": "array", "items": CLOSED},
        {"anyOf": [CLOSED, {"type": "null"}]},
        {**CLOSED, "properties": {"minimum": {"type": "number", "enum": [1, 2]}}},
        {"$ref": "#/$defs/A", "$defs": {"A": CLOSED}},
        {"type": "string", "format": "date"},
    ],
)
def test_plain_schemas_are_enforced(schema: dict[str, Any]) -> None:
    assert is_enforceable(schema)


@pytest.mark.parametrize(
    "schema",
    [
        OPEN,
        {**OPEN, "additionalProperties": True},
        {**OPEN, "type": ["object", "null"]},
        {"type": "array", "items": OPEN},
        {"anyOf": [OPEN]},
        {**CLOSED, "properties": {"a": {"type": "number", "minimum": 1}}},
        {"$defs": {"A": {"type": "array", "maxItems": 3}}},
        {"type": "string", "pattern": "^a"},
        {"not": {"type": "string"}},
    ],
)
def test_others_are_not(schema: dict[str, Any]) -> None:
    assert not is_enforceable(schema)


def test_objects_are_closed_at_every_depth() -> None:
    schema = {
        "type": "object",
        "properties": {
            "one": OPEN,
            "many": {"type": "array", "items": OPEN},
            "either": {"anyOf": [OPEN, {"type": "null"}]},
            "type": {"type": "string"},
        },
        "required": ["one"],
        "$defs": {"A": OPEN},
    }

    assert closed(schema) == {
        "type": "object",
        "properties": {
            "one": CLOSED,
            "many": {"type": "array", "items": CLOSED},
            "either": {"anyOf": [CLOSED, {"type": "null"}]},
            "type": {"type": "string"},
        },
        "required": ["one"],
        "$defs": {"A": CLOSED},
        "additionalProperties": False,
    }


def test_what_a_schema_says_itself_stays() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "string"}}

    assert closed(schema) == schema


def test_schemas_that_are_none_are_left_alone() -> None:
    schema = {"type": "object", "properties": {"a": True}, "anyOf": [True], "items": None}

    assert closed(schema) == {**schema, "additionalProperties": False}
    assert not is_enforceable(schema)
