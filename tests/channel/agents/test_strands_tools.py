"""What a value lacks under a JSON schema, found without ever taking long."""

from typing import Any

import pytest

from channel.agents.strands.tools import misfit


PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}},
        "near": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "size": {"$ref": "#/$defs/size~1m2"},
        "kind": {"const": "town"},
        "note": {"type": ["string", "null"]},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"size/m2": {"type": "integer"}},
}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"city": "Rome"}, None),
        ({"city": "Rome", "tags": ["old"], "size": 3.0, "kind": "town", "note": None}, None),
        ({"city": "Rome", "near": 1}, None),  # alternatives are not looked into
        ("Rome", "The answer must be of the type object."),
        ({}, "The answer lacks ['city']."),
        ({"city": 1}, "The answer.city must be of the type string."),
        ({"city": "Rome", "town": 1}, "The answer must not have ['town']."),
        ({"city": "Rome", "tags": ["odd"]}, "The answer.tags[0] must be one of ['old', 'new']."),
        ({"city": "Rome", "size": True}, "The answer.size must be of the type integer."),
        ({"city": "Rome", "size": 1.5}, "The answer.size must be of the type integer."),
        ({"city": "Rome", "kind": "city"}, "The answer.kind must be one of ['town']."),
    ],
)
def test_what_does_not_fit_is_said(value: Any, wrong: str | None) -> None:
    assert misfit(value, PLACE) == wrong


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": 1},
        {"type": "odd"},
        {"properties": []},
        {"required": 1, "items": True, "type": None},
        True,
    ],
)
def test_a_schema_that_says_nothing_is_fitted_by_everything(schema: Any) -> None:
    assert misfit({"a": [1]}, schema) is None
