"""JSON schemas as Bedrock enforces them: which it takes, and the word that it always wants.

Facts: the page "Structured outputs" of the Bedrock user guide.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final


_REFUSED: Final = frozenset(
    {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
        "minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems", "contains",
        "minProperties", "maxProperties", "patternProperties", "propertyNames",
        "if", "then", "else", "not", "oneOf", "dependentRequired", "dependentSchemas",
    }
)  # fmt: skip
_OF_SCHEMAS: Final = ("items", "additionalProperties")
_OF_LISTS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_OF_NAMES: Final = ("properties", "$defs", "definitions")


def is_enforceable(schema: Mapping[str, Any]) -> bool:
    """Return whether Bedrock enforces the schema as it is: objects are closed, and no odd word occurs.

    A schema that says less could be enforced in part, but that is not what was asked for.
    """
    return all(map(_is_plain, _schemas(schema)))


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with `additionalProperties: false` at each object that does not say."""
    made = {name: _closed(name, value) for name, value in schema.items()}
    if _is_object(made):
        made.setdefault("additionalProperties", False)
    return made


def _closed(name: str, value: Any) -> Any:
    if name in _OF_SCHEMAS and isinstance(value, Mapping):
        return closed(value)
    if name in _OF_LISTS and isinstance(value, list):
        return [closed(each) if isinstance(each, Mapping) else each for each in value]
    if name in _OF_NAMES and isinstance(value, Mapping):
        return {
            key: closed(each) if isinstance(each, Mapping) else each for key, each in value.items()
        }
    return value


def _schemas(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield schema
    inner = [schema.get(name) for name in _OF_SCHEMAS]
    for name in _OF_LISTS:
        inner += schema.get(name) or ()
    for name in _OF_NAMES:
        inner += (schema.get(name) or {}).values()
    for each in inner:
        if isinstance(each, Mapping):
            yield from _schemas(each)


def _is_plain(schema: Mapping[str, Any]) -> bool:
    is_closed = not _is_object(schema) or schema.get("additionalProperties") is False
    return is_closed and _REFUSED.isdisjoint(schema)


def _is_object(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)
