"""Checking JSON against a shape, with the client's words for what is wrong and where."""

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from channel.responses.protocol.errors import RequestError


MAX_NESTING: Final = 100
"""Levels of arrays and objects in what is taken in; what is stored must be readable again."""

NAME: Final = r"^[a-zA-Z0-9_-]{1,64}\Z"
"""The pattern of the names of functions and schemas."""

_Shape = TypeVar("_Shape")

_WHERE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`\Z")
_JSON_NAMES: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "null": "null",
    "object": "an object",
    "array": "an array",
}
_NAME = re.compile(r"`([^`]*)`")


def is_nested_deeper(data: bytes, levels: int) -> bool:
    """Return whether JSON text has more levels of arrays and objects than that."""
    # Almost every text has fewer brackets than levels permitted, so this costs two counts.
    if data.count(b"[") + data.count(b"{") <= levels:
        return False
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > levels:
            return True
    return False


# The closing quote is optional: looking for one again from every quote inside of a string that has
# none would take quadratic time.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")


def decoded(body: bytes, decode: Callable[[bytes], _Shape]) -> _Shape:
    """Return a JSON body as `decode` reads it; raises `RequestError` (400) where it cannot be taken."""
    if is_nested_deeper(body, MAX_NESTING):
        msg = f"The JSON body is nested more than {MAX_NESTING} levels deep."
        raise RequestError(msg, code="invalid_value")
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise decoding_error(error) from None


def checked(value: object, shape: type[_Shape], where: str) -> _Shape:
    """Return the value as the shape; raises `RequestError` whose `param` is `where` and the path below."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error), where) from None


def decoding_error(error: Exception) -> RequestError:
    """Return the 400 for a body that is not JSON, or not of the right types."""
    if isinstance(error, msgspec.ValidationError):
        return _validation_error(str(error), "")
    if isinstance(error, RecursionError):
        return RequestError("The JSON body is nested too deeply.", code="invalid_value")
    return RequestError("The body of the request is not valid JSON.", code="invalid_json")


def missing(where: str) -> RequestError:
    """Return the 400 for a required field that is absent."""
    return RequestError(
        f"Missing required parameter: '{where}'.",
        param=where,
        code="missing_required_parameter",
    )


def _validation_error(message: str, prefix: str) -> RequestError:
    found = _WHERE.search(message)
    path = found[1].replace("[...]", "") if found else ""
    param = ".".join(part for part in (prefix, path) if part and not path.startswith("["))
    if path.startswith("["):
        param = prefix + path
    what = message[: found.start()] if found else message
    # The one pattern that shapes have is that of names (`NAME`).
    what = re.sub(r" matching regex .*", " of 1 to 64 letters, digits, _ and -", what)
    absent = re.search(r"missing required field `(\w+)`", what)
    if absent:
        return missing(f"{param}.{absent[1]}" if param else absent[1])
    is_type = ", got `" in what
    said = f"{what[:1].lower()}{_NAME.sub(_in_words, what)[1:]}"
    at = f" for '{param}'" if param else ""
    return RequestError(
        f"Invalid {'type' if is_type else 'value'}{at}: {said}.",
        param=param or None,
        code="invalid_type" if is_type else "invalid_value",
    )


def _in_words(name: Any) -> str:
    return " or ".join(_JSON_NAMES.get(part, part) for part in name[1].split(" | "))
