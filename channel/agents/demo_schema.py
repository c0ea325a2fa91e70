"""Instances of a JSON schema, filled from the user's text where that is easy.

Knows what OpenAI's structured outputs allow and what function tools commonly add to it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final
from urllib.parse import unquote

from channel.agents.demo_pattern import PatternError, matching
from channel.agents.demo_values import FORMATS, SpokenValues


Schema = Mapping[str, Any]

GENEROUS_STEPS: Final = 300
MAX_STEPS: Final = 5_000
MAX_DEPTH: Final = 60
MAX_LENGTH: Final = 10_000
MAX_VALUES: Final = 1_000
KINDS_BY_KEYWORD: Final = {
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "minItems": "array",
    "minimum": "number",
    "exclusiveMinimum": "number",
    "maximum": "number",
    "exclusiveMaximum": "number",
    "multipleOf": "number",
}


class NoInstanceError(Exception):
    """No valid value was found: there is none, or it is out of the demo agent's reach."""


def instance(schema: Schema, text: str = "") -> Any:
    """Return a JSON value that is valid under the schema.

    Raises `NoInstanceError`; a schema without a small instance ends in it, too, in bounded time.
    """
    try:
        return _Maker(schema, text).make(schema)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as malformed:
        # The schema is the client's text: any keyword may hold any JSON value.
        raise NoInstanceError from malformed


class _Maker:
    """Makes values from the top down; a branch that fails is left for the next alternative."""

    def __init__(self, root: Schema, text: str) -> None:
        self._root = root
        self._spoken = SpokenValues(text)
        self._steps = 0
        self._depth = 0

    def make(self, schema: Any, name: str = "", refs: Sequence[str] = ("#",)) -> Any:
        """Make a value for the property of this name; `refs` are the references being followed."""
        self._steps += 1
        if self._steps > MAX_STEPS or self._depth > MAX_DEPTH:
            raise NoInstanceError
        self._depth += 1
        try:
            return self._make(schema, name, refs)
        finally:
            self._depth -= 1

    def _make(self, schema: Any, name: str, refs: Sequence[str]) -> Any:
        if schema is True:
            return self._spoken.string(name)
        if not isinstance(schema, Mapping):
            raise NoInstanceError
        if "$ref" in schema:
            return self._referenced(schema, name, refs)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                rest = _without(schema, keyword)
                choices = (_merged(rest, branch) for branch in self._ordered(schema[keyword]))
                return _first(lambda choice: self.make(choice, name, refs), choices)
        if "allOf" in schema:
            return self.make(_merged_all(schema), name, refs)
        return self._plain(schema, name, refs)

    @property
    def _is_frugal(self) -> bool:
        # References among many definitions multiply: once a value has become large, the rest of
        # it is made as small as the schema allows.
        return self._steps > GENEROUS_STEPS

    def _ordered(self, branches: Sequence[Any]) -> Sequence[Any]:
        return sorted(branches, key=_is_reference) if self._is_frugal else branches

    def _referenced(self, schema: Schema, name: str, refs: Sequence[str]) -> Any:
        reference = schema["$ref"]
        # A smallest instance never holds a reference inside itself, so a second visit is a dead end.
        if reference in refs:
            raise NoInstanceError
        merged = _merged(_resolved(self._root, reference), _without(schema, "$ref", "$defs"))
        return self.make(merged, name, [*refs, reference])

    def _plain(self, schema: Schema, name: str, refs: Sequence[str]) -> Any:
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._spoken.choice(_allowed_values(schema))
        return _first(lambda kind: self._of_kind(kind, schema, name, refs), _kinds(schema))

    def _of_kind(self, kind: str, schema: Schema, name: str, refs: Sequence[str]) -> Any:
        match kind:
            case "null":
                return None
            case "boolean":
                return not self._spoken.is_mentioned("no")
            case "integer" | "number":
                return self._number(schema, is_integer=kind == "integer")
            case "string":
                return self._string(schema, name)
            case "array":
                return self._array(schema, name, refs)
            case "object":
                return self._object(schema, refs)
        raise NoInstanceError

    def _object(self, schema: Schema, refs: Sequence[str]) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = dict.fromkeys(schema.get("required", ()))
        # Hand-written tools often leave `required` out and mean all of them.
        wanted = required if "required" in schema or self._is_frugal else properties
        made: dict[str, Any] = {}
        for name in dict.fromkeys([*(name for name in properties if name in wanted), *required]):
            try:
                made[name] = self.make(_property(schema, name), name, refs)
            except NoInstanceError:
                if name in required:
                    raise
        self._add_properties(made, schema, refs)
        return made

    def _add_properties(self, made: dict[str, Any], schema: Schema, refs: Sequence[str]) -> None:
        missing = schema.get("minProperties", 0) - len(made)
        if missing > 0:
            optional = [name for name in schema.get("properties", ()) if name not in made]
            for name in [*optional, *_new_names(made, missing)][:missing]:
                made[name] = self.make(_property(schema, name), name, refs)

    def _array(self, schema: Schema, name: str, refs: Sequence[str]) -> list[Any]:
        prefix = schema.get("prefixItems", ())
        low = schema.get("minItems", 0)
        wanted = max(low, len(prefix), 0 if self._is_frugal else 1)
        made: list[Any] = []
        try:
            for index in range(min(wanted, schema.get("maxItems", math.inf))):
                item = prefix[index] if index < len(prefix) else schema.get("items", True)
                made.append(self.make(item, name, refs))
        except NoInstanceError:
            if len(made) < low:
                raise
        if schema.get("uniqueItems"):
            made = _unique(made)
        if len(made) < low:
            raise NoInstanceError
        return made

    def _string(self, schema: Schema, name: str) -> str:
        low, high = schema.get("minLength", 0), schema.get("maxLength", MAX_LENGTH)
        if low > min(high, MAX_LENGTH):
            raise NoInstanceError
        if schema.get("format") in FORMATS:
            text = self._spoken.formatted(schema["format"])
        elif "pattern" in schema:
            text = _matching(schema["pattern"], low)
        else:
            text = self._spoken.string(name)[:high].ljust(low, ".")
        if not low <= len(text) <= high:
            raise NoInstanceError
        return text

    def _number(self, schema: Schema, *, is_integer: bool) -> float:
        def fits(number: float) -> bool:
            is_right = math.isfinite(number) and (not is_integer or number == int(number))
            return is_right and _is_within(number, schema) and _is_multiple(number, schema)

        if (spoken := self._spoken.number(fits)) is not None:
            return spoken
        for candidate in _numbers(schema, is_integer=is_integer):
            if fits(candidate):
                return candidate
        raise NoInstanceError


def _is_reference(schema: Any) -> bool:
    return isinstance(schema, Mapping) and "$ref" in schema


def _first(make: Callable[[Any], Any], choices: Iterator[Any] | Sequence[Any]) -> Any:
    for choice in choices:
        try:
            return make(choice)
        except NoInstanceError:
            continue
    raise NoInstanceError


def _resolved(root: Schema, reference: str) -> Any:
    """Follow a JSON pointer below the root; nothing outside the schema is ever looked up."""
    if not reference.startswith("#"):
        raise NoInstanceError
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise NoInstanceError
    return found


def _kinds(schema: Schema) -> list[str]:
    kinds = schema.get("type")
    if kinds is None:
        return [
            next((KINDS_BY_KEYWORD[key] for key in schema if key in KINDS_BY_KEYWORD), "string")
        ]
    listed = [kinds] if isinstance(kinds, str) else [*kinds]
    return sorted(listed, key=lambda kind: kind == "null")


def _allowed_values(schema: Schema) -> list[Any]:
    kinds = _kinds(schema) if "type" in schema else None
    values = schema["enum"][:MAX_VALUES]
    allowed = [v for v in values if kinds is None or any(_is_a(v, kind) for kind in kinds)]
    if not allowed:
        raise NoInstanceError
    return allowed


def _is_a(value: Any, kind: str) -> bool:
    types: dict[str, type | tuple[type, ...]] = {
        "null": type(None),
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "string": str,
        "array": list,
        "object": dict,
    }
    is_other_bool = isinstance(value, bool) and kind != "boolean"
    return not is_other_bool and isinstance(value, types.get(kind, ()))


def _property(schema: Schema, name: str) -> Any:
    return schema.get("properties", {}).get(name, schema.get("additionalProperties", True))


def _new_names(taken: Mapping[str, Any], number: int) -> Iterator[str]:
    names = (f"key{index}" for index in range(1, MAX_STEPS))
    return (
        name for name, _ in zip((n for n in names if n not in taken), range(number), strict=False)
    )


def _unique(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]


def _matching(pattern: str, min_length: int) -> str:
    try:
        return matching(pattern, min_length)
    except PatternError:
        raise NoInstanceError from None


def _numbers(schema: Schema, *, is_integer: bool) -> Iterator[float]:
    """Try zero, then what lies just inside the bounds."""
    yield 0
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    start, sign = (low, 1) if math.isfinite(low) else (high, -1)
    step = Fraction(str(schema.get("multipleOf", 1)))
    if is_integer:
        step = Fraction(step.numerator)  # the least number that is a multiple of it and of 1
    first = math.floor(Fraction(str(start)) / step)
    for index in range(-1, 20):
        multiple = step * (first + sign * index)
        yield int(multiple) if multiple.denominator == 1 else float(multiple)
    if not is_integer:
        yield from (start, (low + high) / 2)


def _is_within(number: float, schema: Schema) -> bool:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above = schema.get("exclusiveMinimum", -math.inf)
    below = schema.get("exclusiveMaximum", math.inf)
    return bool(low <= number <= high and above < number < below)


def _is_multiple(number: float, schema: Schema) -> bool:
    step = schema.get("multipleOf")
    if step is None:
        return True
    # Both the decimal on the wire and the float in a validator's hands have to be multiples.
    is_decimal_multiple = Fraction(str(number)) % Fraction(str(step)) == 0
    return is_decimal_multiple and float(number / step).is_integer()


def _without(schema: Schema, *keywords: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in keywords}


def _merged_all(schema: Schema) -> Any:
    merged: Any = _without(schema, "allOf")
    for part in schema["allOf"]:
        merged = _merged(merged, part)
    return merged


def _merged(left: Any, right: Any) -> Any:
    """Return a schema whose instances are valid under both."""
    if left is False or right is False:
        return False
    if left is True or right is True:
        return left if right is True else right
    merged = dict(left)
    for keyword, value in right.items():
        if keyword not in merged or merged[keyword] == value:
            merged[keyword] = value
        elif keyword in {"$ref", "anyOf", "oneOf", "allOf"}:
            merged["allOf"] = [*merged.get("allOf", ()), {keyword: value}]
        else:
            merged[keyword] = _merged_keyword(keyword, merged[keyword], value)
    return merged


def _merged_keyword(keyword: str, left: Any, right: Any) -> Any:
    merge = MERGES.get(keyword)
    return merge(left, right) if merge else right


def _merged_properties(left: Schema, right: Schema) -> dict[str, Any]:
    shared = {name: _merged(left[name], right[name]) for name in left if name in right}
    return {**left, **right, **shared}


def _shared_kinds(left: Any, right: Any) -> list[str]:
    lefts, rights = ([kinds] if isinstance(kinds, str) else [*kinds] for kinds in (left, right))
    shared = [kind for kind in lefts if kind in rights]
    is_integer = {"integer", "number"} <= {*lefts, *rights} and "number" not in shared
    return [*shared, "integer"] if is_integer and "integer" not in shared else shared


MERGES: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    "properties": _merged_properties,
    "required": lambda left, right: [*dict.fromkeys([*left, *right])],
    "enum": lambda left, right: [value for value in left[:MAX_VALUES] if value in right],
    "type": _shared_kinds,
    "items": _merged,
    "additionalProperties": _merged,
}
