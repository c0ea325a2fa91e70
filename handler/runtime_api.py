"""The Lambda Runtime API's messages as values: what the loop writes and what it reads, without I/O.

The rules are those of AWS's page "Using the Lambda runtime API for custom runtimes" and, for the
prelude, of API Gateway's "response transfer mode".
"""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct


MAX_PRELUDE_BYTES: Final = 16 * 1024
"""Within so many bytes of a streamed reply its body must begin."""

STREAMED: Final = "application/vnd.awslambda.http-integration-response"
END: Final = b"0\r\n\r\n"
"""What ends a streamed reply that went well."""

Headers: TypeAlias = Iterable[Sequence[bytes]]

_encode = msgspec.json.Encoder().encode
_VERSION: Final = "/2018-06-01/runtime"
_DELIMITER: Final = b"\0" * 8
_ERROR_TYPE: Final = "Lambda-Runtime-Function-Error-Type"
_ERROR_BODY: Final = "Lambda-Runtime-Function-Error-Body"
_NOT_FORWARDED: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
        "content-length",  # of a body whose end the chunks tell
    }
)
_HAVE_NO_BODY: Final = frozenset({204, 304})
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[^\x00\r\n]*")
_LENGTH: Final = re.compile(r"[0-9]{1,16}")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")


class RuntimeApiError(Exception):
    """The Runtime API said something that no runtime can go on with."""


class ReplyHeadError(ValueError):
    """The app's status and headers cannot be sent through Lambda."""


class Failure(Struct, frozen=True):
    """What is reported of an init or an invocation that failed; `trace` is for the owner's eyes."""

    type: str
    message: str
    trace: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """Return the error document, in the shape that Lambda's own runtimes send."""
        told = {
            "errorMessage": _encodable(self.message),
            "errorType": self.type,
            "stackTrace": [*map(_encodable, self.trace)],
        }
        return _encode(told)


class Reply(Struct, frozen=True):
    """What the Runtime API answered; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_last: bool = False  # of its connection


class Invocation(Struct, frozen=True):
    """One invocation: what came with `next`. `deadline_ms` counts from the epoch."""

    request_id: str
    body: bytes
    deadline_ms: int = 0
    function_arn: str = ""
    trace_id: str | None = None
    client_context: str | None = None
    cognito_identity: str | None = None
    tenant_id: str | None = None
    invocation_id: str | None = None

    @classmethod
    def from_reply(cls, reply: Reply) -> "Invocation":
        """Read what `next` answered; raises `RuntimeApiError` where it is no invocation."""
        headers = reply.headers
        request_id = headers.get("lambda-runtime-aws-request-id")
        deadline = headers.get("lambda-runtime-deadline-ms", "0")
        if reply.status != 200 or not request_id or not deadline.isdecimal():  # noqa: PLR2004 - OK
            msg = f"The Runtime API answered {reply.status} instead of an invocation"
            raise RuntimeApiError(msg)
        return cls(
            request_id,
            reply.body,
            int(deadline),
            headers.get("lambda-runtime-invoked-function-arn", ""),
            headers.get("lambda-runtime-trace-id"),
            headers.get("lambda-runtime-client-context"),
            headers.get("lambda-runtime-cognito-identity"),
            headers.get("lambda-runtime-aws-tenant-id"),
            headers.get("lambda-runtime-invocation-id"),
        )


class RuntimeApi(Struct, frozen=True):
    """The requests that a runtime makes; `address` is `AWS_LAMBDA_RUNTIME_API`."""

    address: str

    def next(self) -> bytes:
        """Ask for the next invocation."""
        return self._head("GET", "/invocation/next") + b"\r\n"

    def restore_next(self) -> bytes:
        """Say that the init is done and the snapshot may be taken; answered after the restore."""
        return self._head("GET", "/restore/next") + b"\r\n"

    def response(self, invocation: Invocation, body: bytes) -> bytes:
        """Answer an invocation with a whole reply."""
        path = f"/invocation/{invocation.request_id}/response"
        return self._post(path, body, "application/json", _attempt(invocation))

    def streamed_response(self, invocation: Invocation) -> bytes:
        """Begin a streamed reply, on a connection of its own; chunks follow, the prelude first."""
        path = f"/invocation/{invocation.request_id}/response"
        return (
            self._head("POST", path)
            + _attempt(invocation)
            + (
                f"Content-Type: {STREAMED}\r\n"
                "Lambda-Runtime-Function-Response-Mode: streaming\r\n"
                "Transfer-Encoding: chunked\r\n"
                f"Trailer: {_ERROR_TYPE}, {_ERROR_BODY}\r\n"
                "Connection: close\r\n\r\n"
            ).encode()
        )

    def error(self, invocation: Invocation, failure: Failure) -> bytes:
        """Answer an invocation with an error; only where no reply has begun."""
        path = f"/invocation/{invocation.request_id}/error"
        return self._error(path, failure, _attempt(invocation))

    def init_error(self, failure: Failure) -> bytes:
        """Say that the init has failed."""
        return self._error("/init/error", failure)

    def restore_error(self, failure: Failure) -> bytes:
        """Say that what runs after a restore has failed."""
        return self._error("/restore/error", failure)

    def _error(self, path: str, failure: Failure, more: bytes = b"") -> bytes:
        kind = f"{_ERROR_TYPE}: {failure.type}\r\n".encode()
        return self._post(
            path, failure.to_json(), "application/vnd.aws.lambda.error+json", kind + more
        )

    def _post(self, path: str, body: bytes, content_type: str, more: bytes = b"") -> bytes:
        length = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n".encode()
        return b"".join((self._head("POST", path), more, length, b"\r\n", body))

    def _head(self, method: str, path: str) -> bytes:
        return f"{method} {_VERSION}{path} HTTP/1.1\r\nHost: {self.address}\r\n".encode()


def prelude(status: int, headers: Headers, *, is_empty: bool = False) -> bytes:
    """Return status and headers as a streamed reply begins with them, and the delimiter.

    Repeated headers are joined and cookies kept apart, as function URLs have them. An empty body is
    announced by its length: clients of a function URL were seen waiting for the end of one. Raises
    `ReplyHeadError` for what cannot be sent, which is to be known before the reply begins.
    """
    fields: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in header_texts(headers):
        if name == "set-cookie":
            cookies.append(value)
        elif name not in _NOT_FORWARDED:
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    if is_empty and status not in _HAVE_NO_BODY:
        fields["content-length"] = "0"
    told: dict[str, Any] = {"statusCode": status, "headers": fields}
    if cookies:
        told["cookies"] = cookies
    encoded = _encode(told) + _DELIMITER
    if len(encoded) > MAX_PRELUDE_BYTES:
        msg = f"The app's status and headers take {len(encoded)} bytes, but Lambda allows {MAX_PRELUDE_BYTES}."
        raise ReplyHeadError(msg)
    return encoded


def header_texts(headers: Headers) -> Iterator[tuple[str, str]]:
    """Yield an app's headers as texts, which is what every door takes; names are lower-case.

    Their bytes may be UTF-8, as browsers send file names, or else are Latin-1, as ASGI frameworks
    write them. Raises `ReplyHeadError` for what HTTP does not allow.
    """
    for raw_name, value in headers:
        name = _header_name(bytes(raw_name))
        if name is None or not _VALUE.fullmatch(value):
            raise ReplyHeadError("The app's reply has a header that HTTP does not allow.")
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        yield name, text


@lru_cache(256)
def _header_name(raw: bytes) -> str | None:
    return raw.decode("ascii").lower() if _NAME.fullmatch(raw) else None


def chunk(data: bytes) -> bytes:
    """Return the data as one chunk; none for no data, since an empty one would be the end."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def failed_end(failure: Failure) -> bytes:
    """Return what ends a streamed reply that failed on the way: the announced trailers."""
    body = base64.b64encode(failure.to_json()).decode()
    return f"0\r\n{_ERROR_TYPE}: {failure.type}\r\n{_ERROR_BODY}: {body}\r\n\r\n".encode()


class ReplyReader:
    """Reads the replies of one connection, of which there is at most one at a time."""

    def __init__(self) -> None:
        """Begin between two replies."""
        self._unread = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> Reply | None:
        """Take what arrived; return the reply once it is complete. Raises `RuntimeApiError`."""
        self._unread += data
        while self._head is None:
            if not self._read_head():
                return None
        status, headers = self._head
        if "chunked" in headers.get("transfer-encoding", "").lower():
            if not self._read_chunks():
                return None
        elif not self._read_counted(headers):
            return None
        body = b"".join(self._pieces)
        self._head, self._pieces = None, []
        is_last = headers.get("connection", "").lower() == "close"
        return Reply(status, headers, body, is_last)

    def _read_head(self) -> bool:
        end = self._unread.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self._unread[:end].decode("latin-1").split("\r\n")
        del self._unread[: end + 4]
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise RuntimeApiError("The Runtime API does not speak HTTP")
        status = int(rest[:3])
        if status >= 200:  # noqa: PLR2004 - what is below only announces
            fields = [line.partition(":") for line in lines]
            self._head = status, {name.lower(): value.strip() for name, _, value in fields}
        return True

    def _read_counted(self, headers: dict[str, str]) -> bool:
        given = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(given):
            raise RuntimeApiError("The Runtime API answered with a length that is no number")
        if len(self._unread) < int(given):
            return False
        self._pieces.append(bytes(self._unread[: int(given)]))
        del self._unread[: int(given)]
        return True

    def _read_chunks(self) -> bool:
        """Take whole chunks; return whether the last was among them. Trailers are passed over."""
        while (line := self._unread.find(b"\r\n")) >= 0:
            size_field = bytes(self._unread[:line]).partition(b";")[0].strip()
            if not _SIZE.fullmatch(size_field):
                raise RuntimeApiError("The Runtime API answered with a broken chunk")
            size = int(size_field, 16)
            if size == 0:
                end = self._unread.find(b"\r\n\r\n", line)
                if end < 0:
                    return False
                del self._unread[: end + 4]
                return True
            begin, end = line + 2, line + 2 + size
            if len(self._unread) < end + 2:
                return False
            self._pieces.append(bytes(self._unread[begin:end]))
            del self._unread[: end + 2]
        return False


def _encodable(text: str) -> str:
    """Return the text without lone surrogates, by which Python names files in other encodings."""
    return text.encode(errors="replace").decode()


def _attempt(invocation: Invocation) -> bytes:
    """Return the header that says which attempt at an invocation is answered, where it has a name."""
    if invocation.invocation_id is None:
        return b""
    return f"Lambda-Runtime-Invocation-Id: {invocation.invocation_id}\r\n".encode()
