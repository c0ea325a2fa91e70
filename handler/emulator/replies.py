"""What a runtime posted, as a function URL reads it: status, headers and body. No I/O."""

import base64
import re
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from handler.runtime_api import MAX_PRELUDE_BYTES


_DELIMITER: Final = bytes(8)
_NOT_FORWARDED: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade"})
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[^\x00\r\n]*")
_Status = Annotated[int, Meta(ge=200, le=599)]
_Shape = TypeVar("_Shape")


class BadReplyError(Exception):
    """A reply that is not what the function URL expects; `kind` is short, the message says what is wrong."""

    def __init__(self, kind: str, message: str) -> None:
        """Name it."""
        super().__init__(message)
        self.kind = kind


class Head(Struct, frozen=True):
    """Status and headers as the client gets them."""

    status: int
    headers: list[tuple[bytes, bytes]]


class _Prelude(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    status_code: _Status = 200
    headers: dict[str, str] = {}
    multi_value_headers: dict[str, list[str]] = {}
    cookies: list[str] = []


class _Proxy(Struct, frozen=True, rename="camel"):
    status_code: _Status
    headers: dict[str, str | int | float | bool] = {}
    cookies: list[str] = []
    body: str | None = None
    is_base64_encoded: bool = False


class PreludeReader:
    """Reads the beginning of a streamed reply as it comes in pieces."""

    def __init__(self) -> None:
        """Begin before its first byte."""
        self._unread = bytearray()

    def feed(self, data: bytes) -> tuple[Head, bytes] | None:
        """Take what arrived; return status and headers once they are there, and what came after them.

        Raises `BadReplyError`.
        """
        self._unread += data
        end = self._unread.find(_DELIMITER, 0, MAX_PRELUDE_BYTES)
        if end >= 0:
            return _head(bytes(self._unread[:end])), bytes(self._unread[end + len(_DELIMITER) :])
        if len(self._unread) >= MAX_PRELUDE_BYTES:
            said = f"The first {MAX_PRELUDE_BYTES} bytes hold no end of the prelude (8 NULs)."
            raise BadReplyError("Prelude.TooLarge", said)
        return None

    def end(self) -> BadReplyError:
        """Return what is wrong with a reply that ends before its prelude does."""
        return BadReplyError("Prelude.Missing", "The reply ended within its prelude.")


def whole_reply(posted: bytes) -> tuple[Head, bytes]:
    """Read a reply that was not streamed; raises `BadReplyError`.

    JSON without a `statusCode` is the body itself, as function URLs infer it.
    """
    try:
        found = msgspec.json.decode(posted)
    except msgspec.MsgspecError as error:
        raise BadReplyError("Reply.NotJSON", f"The reply is not JSON: {error}.") from error
    if not isinstance(found, dict) or "statusCode" not in found:
        return Head(200, [(b"content-type", b"application/json")]), posted
    reply = _decoded(found, _Proxy, "Reply.Malformed", "reply")
    headers = {name: _text(value) for name, value in reply.headers.items()}
    if not any(name.lower() == "content-type" for name in headers):
        headers["content-type"] = "application/json"
    body = (reply.body or "").encode()
    if reply.is_base64_encoded:
        try:
            body = base64.b64decode(body, validate=True)
        except ValueError as error:
            raise BadReplyError("Reply.NotBase64", "The reply's body is not base64.") from error
    # The length that the app named may be that of the text before it was encoded.
    lines = [*_lines(headers), *_cookies(reply.cookies)]
    lines = [line for line in lines if line[0] != b"content-length"]
    return Head(reply.status_code, [*lines, (b"content-length", b"%d" % len(body))]), body


def _head(encoded: bytes) -> Head:
    try:
        found = msgspec.json.decode(encoded)
    except msgspec.MsgspecError as error:
        raise BadReplyError("Prelude.NotJSON", f"The prelude is not JSON: {error}.") from error
    prelude = _decoded(found, _Prelude, "Prelude.Malformed", "prelude")
    several = {name.lower() for name in prelude.multi_value_headers}
    single = {name: text for name, text in prelude.headers.items() if name.lower() not in several}
    lines = [_remapped(line) for line in _lines(single)]
    for name, texts in prelude.multi_value_headers.items():
        lines += [line for text in texts for line in _lines({name: text})]
    return Head(prelude.status_code, [*lines, *_cookies(prelude.cookies)])


def _remapped(line: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Rename the length of a body that comes in chunks, as Lambda does; that of an empty one may stay."""
    is_length = line[0] == b"content-length" and line[1] != b"0"
    return (b"x-amzn-remapped-content-length", line[1]) if is_length else line


def _lines(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    lines = []
    for name, value in headers.items():
        if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise BadReplyError("Reply.BadHeader", f"The header {name!r} is none that HTTP allows.")
        if name.lower() not in _NOT_FORWARDED:
            lines.append((name.lower().encode(), value.strip(" \t").encode("latin-1", "replace")))
    return lines


def _cookies(cookies: list[str]) -> list[tuple[bytes, bytes]]:
    return [line for cookie in cookies for line in _lines({"set-cookie": cookie})]


def _decoded(found: Any, shape: type[_Shape], kind: str, what: str) -> _Shape:
    try:
        return msgspec.convert(found, shape)
    except msgspec.ValidationError as error:
        raise BadReplyError(kind, f"The {what} is not what Lambda takes: {error}.") from error


def _text(value: str | float | bool) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
