"""The Runtime API's messages, byte for byte, and its replies in whatever pieces they come."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from handler.runtime_api import (
    END,
    MAX_PRELUDE_BYTES,
    Failure,
    Invocation,
    Reply,
    ReplyHeadError,
    ReplyReader,
    RuntimeApi,
    RuntimeApiError,
    chunk,
    failed_end,
    prelude,
)


API = RuntimeApi("127.0.0.1:9001")
INVOCATION = Invocation("id-1", b"{}")
NAMED = Invocation("id-1", b"{}", invocation_id="attempt-2")
FAILURE = Failure("Runtime.Boom", "It broke.", ("line 1\n", "line 2\n"))
FAILURE_JSON = (
    b'{"errorMessage":"It broke.","errorType":"Runtime.Boom",'
    b'"stackTrace":["line 1\\n","line 2\\n"]}'
)
NULS = b"\0" * 8


def post(path: str, *lines: str, body: bytes) -> bytes:
    head = [f"POST /2018-06-01/runtime{path} HTTP/1.1", "Host: 127.0.0.1:9001", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            API.next(),
            b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n\r\n",
        ),
        (
            API.restore_next(),
            b"GET /2018-06-01/runtime/restore/next HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n\r\n",
        ),
        (
            API.response(INVOCATION, b'{"a":1}'),
            post(
                "/invocation/id-1/response",
                "Content-Type: application/json",
                body=b'{"a":1}',
            ),
        ),
        (
            API.response(NAMED, "grüß".encode()),
            post(
                "/invocation/id-1/response",
                "Lambda-Runtime-Invocation-Id: attempt-2",
                "Content-Type: application/json",
                body="grüß".encode(),
            ),
        ),
        (
            API.streamed_response(INVOCATION),
            (
                b"POST /2018-06-01/runtime/invocation/id-1/response HTTP/1.1\r\n"
                b"Host: 127.0.0.1:9001\r\n"
                b"Content-Type: application/vnd.awslambda.http-integration-response\r\n"
                b"Lambda-Runtime-Function-Response-Mode: streaming\r\n"
                b"Transfer-Encoding: chunked\r\n"
                b"Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n"
                b"Connection: close\r\n\r\n"
            ),
        ),
        (
            API.streamed_response(NAMED),
            (
                b"POST /2018-06-01/runtime/invocation/id-1/response HTTP/1.1\r\n"
                b"Host: 127.0.0.1:9001\r\n"
                b"Lambda-Runtime-Invocation-Id: attempt-2\r\n"
                b"Content-Type: application/vnd.awslambda.http-integration-response\r\n"
                b"Lambda-Runtime-Function-Response-Mode: streaming\r\n"
                b"Transfer-Encoding: chunked\r\n"
                b"Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n"
                b"Connection: close\r\n\r\n"
            ),
        ),
        (
            API.error(NAMED, FAILURE),
            post(
                "/invocation/id-1/error",
                "Lambda-Runtime-Function-Error-Type: Runtime.Boom",
                "Lambda-Runtime-Invocation-Id: attempt-2",
                "Content-Type: application/vnd.aws.lambda.error+json",
                body=FAILURE_JSON,
            ),
        ),
        (
            API.init_error(FAILURE),
            post(
                "/init/error",
                "Lambda-Runtime-Function-Error-Type: Runtime.Boom",
                "Content-Type: application/vnd.aws.lambda.error+json",
                body=FAILURE_JSON,
            ),
        ),
        (
            API.restore_error(FAILURE),
            post(
                "/restore/error",
                "Lambda-Runtime-Function-Error-Type: Runtime.Boom",
                "Content-Type: application/vnd.aws.lambda.error+json",
                body=FAILURE_JSON,
            ),
        ),
    ],
    ids=[
        *("next", "restore next", "response", "response to an attempt"),
        *("streamed response", "streamed response to an attempt"),
        *("error", "init error", "restore error"),
    ],
)
def test_a_message_is_written_byte_for_byte(written: bytes, expected: bytes) -> None:
    assert written == expected


def test_the_parts_of_a_streamed_reply_are_written_byte_for_byte() -> None:
    head = prelude(200, [(b"Content-Type", b"text/event-stream")])

    written = chunk(head) + chunk(b"data: 1\n\n") + chunk(b"") + END

    assert written == (
        b'49\r\n{"statusCode":200,"headers":{"content-type":"text/event-stream"}}'
        b"\0\0\0\0\0\0\0\0\r\n"
        b"9\r\ndata: 1\n\n\r\n"
        b"0\r\n\r\n"
    )


def test_trailers_hold_the_failure_as_base64() -> None:
    end = failed_end(FAILURE)

    encoded = base64.b64encode(FAILURE_JSON)
    assert end == (
        b"0\r\nLambda-Runtime-Function-Error-Type: Runtime.Boom\r\n"
        b"Lambda-Runtime-Function-Error-Body: " + encoded + b"\r\n\r\n"
    )


def test_a_failure_may_tell_what_is_no_unicode() -> None:
    failure = Failure("OSError", "no such file: \udce9t\udce9", ("open('\udce9')\n",))

    told = json.loads(failure.to_json())

    assert told["errorMessage"] == "no such file: ?t?"
    assert told["stackTrace"] == ["open('?')\n"]


def told_by(*headers: tuple[bytes, bytes], status: int = 200, is_empty: bool = False) -> Any:
    head = prelude(status, headers, is_empty=is_empty)
    assert head.endswith(NULS)
    assert head.count(b"\0") == 8
    return json.loads(head[:-8])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], {}),
        ([(b"X-Mixed-Case", b"A b")], {"x-mixed-case": "A b"}),
        ([(b"vary", b"origin"), (b"Vary", b"accept")], {"vary": "origin, accept"}),
        ([(b"x-empty", b"")], {"x-empty": ""}),
        ([(b"x-tab", b"a\tb")], {"x-tab": "a\tb"}),
        ([(b"x-latin", b"gr\xfc\xdf")], {"x-latin": "grüß"}),
        ([(b"x-utf-8", "grüß".encode())], {"x-utf-8": "grüß"}),
        ([(b"content-length", b"5")], {}),
        ([(b"Transfer-Encoding", b"chunked"), (b"Connection", b"close")], {}),
        ([(b"keep-alive", b"timeout=5"), (b"proxy-authenticate", b"Basic")], {}),
        ([(b"proxy-connection", b"close"), (b"te", b"trailers"), (b"trailer", b"x")], {}),
        ([(b"upgrade", b"websocket"), (b"x-kept", b"1")], {"x-kept": "1"}),
    ],
)
def test_headers_go_into_the_prelude_as_function_urls_take_them(
    headers: list[tuple[bytes, bytes]], expected: dict[str, str]
) -> None:
    assert told_by(*headers) == {"statusCode": 200, "headers": expected}


def test_cookies_are_kept_apart() -> None:
    cookies = [(b"Set-Cookie", b"a=1; Path=/"), (b"x-a", b"1"), (b"set-cookie", b"b=2")]

    told = told_by(*cookies)

    expected = ["a=1; Path=/", "b=2"]
    assert told == {"statusCode": 200, "headers": {"x-a": "1"}, "cookies": expected}


@pytest.mark.parametrize(
    ("status", "is_empty", "length"),
    [
        (200, True, "0"),
        (302, True, "0"),
        (404, True, "0"),
        (204, True, None),
        (304, True, None),
        (200, False, None),
        (204, False, None),
    ],
)
def test_the_length_of_an_empty_body_is_told(
    status: int, is_empty: bool, length: str | None
) -> None:
    headers = told_by((b"content-length", b"7"), status=status, is_empty=is_empty)["headers"]

    assert headers.get("content-length") == length


def prelude_of(size: int) -> bytes:
    spare = size - len(prelude(200, [(b"x", b"")]))
    return prelude(200, [(b"x", b"a" * spare)])


def test_a_prelude_may_have_sixteen_kilobytes_and_not_one_more() -> None:
    largest = prelude_of(MAX_PRELUDE_BYTES)

    assert (len(largest), MAX_PRELUDE_BYTES) == (16384, 16384)
    with pytest.raises(ReplyHeadError) as raised:
        prelude_of(MAX_PRELUDE_BYTES + 1)
    assert str(raised.value) == (
        "The app's status and headers take 16385 bytes, but Lambda allows 16384."
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"", b"1"),
        (b"x y", b"1"),
        (b"x:", b"1"),
        (b"x\r\ny", b"1"),
        (b"x\n", b"1"),
        (b"gr\xfc\xdf", b"1"),
        (b"x", b"1\r\nset-cookie: a=1"),
        (b"x", b"1\n"),
        (b"x", b"\r"),
        (b"x", b"a\0b"),
        (b"set-cookie", b"a=1\n"),
        (b"connection", b"close\r\n"),
    ],
)
def test_what_http_does_not_allow_in_a_header_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(ReplyHeadError, match=r"has a header that HTTP does not allow\.$"):
        prelude(200, [(name, value)])


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=50))
def test_no_byte_of_a_header_can_end_the_prelude_early(value: bytes) -> None:
    allowed = value.translate(None, b"\0\r\n") + b"\x01\x1f\x7f"

    head = prelude(200, [(b"x-a", allowed), (b"set-cookie", allowed)])

    told = json.loads(head[: head.index(b"\0")])
    text: str = told["headers"]["x-a"]
    assert head.index(b"\0") == len(head) - 8
    assert told["cookies"] == [text]
    assert allowed in {text.encode(), text.encode("latin-1", "replace")}


def read(data: bytes, *, at: int = 0) -> Reply | None:
    """Return the reply, fed as two pieces that are cut there."""
    reader = ReplyReader()
    first = reader.feed(data[:at])
    assert first is None
    return reader.feed(data[at:])


COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  b \r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
NO_BODY = b"HTTP/1.1 202 Accepted\r\n\r\n"
ANNOUNCED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + COUNTED
LAST = b"HTTP/1.1 400 Bad Request\r\nconnection: Close\r\ncontent-length: 2\r\n\r\n{}"
KEPT = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"

REPLIES: list[tuple[bytes, Reply]] = [
    (COUNTED, Reply(200, {"content-length": "5", "x-a": "b"}, b"hello")),
    (CHUNKED, Reply(200, {"transfer-encoding": "Chunked"}, b"hello")),
    (CHUNKED.replace(b"X-Trailer: 1\r\n", b""), Reply(200, {"transfer-encoding": "Chunked"}, b"hello")),
    (NO_BODY, Reply(202, {}, b"")),
    (ANNOUNCED, Reply(200, {"content-length": "5", "x-a": "b"}, b"hello")),
    (LAST, Reply(400, {"connection": "Close", "content-length": "2"}, b"{}", is_last=True)),
    (KEPT, Reply(200, {"connection": "keep-alive", "content-length": "0"}, b"")),
]  # fmt: skip
KINDS = ["counted", "chunked", "chunked, no trailer", "no body", "announced", "last", "kept"]


@pytest.mark.parametrize(("data", "expected"), REPLIES, ids=KINDS)
def test_a_reply_is_the_same_wherever_it_is_cut(data: bytes, expected: Reply) -> None:
    for at in range(len(data)):
        assert read(data, at=at) == expected


@pytest.mark.parametrize(("data", "expected"), REPLIES, ids=KINDS)
def test_a_reply_may_come_byte_by_byte(data: bytes, expected: Reply) -> None:
    reader = ReplyReader()

    *before, last = (reader.feed(bytes([byte])) for byte in data)

    assert last == expected
    assert set(before) == {None}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(REPLIES), min_size=1, max_size=4), st.data())
def test_replies_follow_each_other_on_one_connection(
    replies: list[tuple[bytes, Reply]], data: st.DataObject
) -> None:
    reader = ReplyReader()

    for raw, expected in replies:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=5)))
        pieces = [raw[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        *before, last = (reader.feed(piece) for piece in pieces)
        assert last == expected
        assert set(before) <= {None}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6))
def test_chunks_are_joined_whatever_is_in_them(pieces: list[bytes]) -> None:
    body = b"".join(map(chunk, pieces)) + END

    reply = read(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body)

    assert reply is not None
    assert reply.body == b"".join(pieces)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-6\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\na\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1_0\r\na\r\n",
    ],
)
def test_what_is_no_reply_is_an_error(data: bytes) -> None:
    with pytest.raises(RuntimeApiError, match=r"^The Runtime API "):
        ReplyReader().feed(data)


def test_an_invocation_is_read_with_all_that_came_with_it() -> None:
    headers = {
        "lambda-runtime-aws-request-id": "id-1",
        "lambda-runtime-deadline-ms": "1790000000123",
        "lambda-runtime-invoked-function-arn": "arn:aws:lambda:us-east-1:0:function:f",
        "lambda-runtime-trace-id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=1",
        "lambda-runtime-client-context": '{"custom":{"a":"b"}}',
        "lambda-runtime-cognito-identity": '{"cognitoIdentityId":"i"}',
        "lambda-runtime-aws-tenant-id": "tenant-7",
        "lambda-runtime-invocation-id": "attempt-2",
        "content-type": "application/json",
    }

    invocation = Invocation.from_reply(Reply(200, headers, b"{}"))

    assert msgspec.structs.asdict(invocation) == {
        "request_id": "id-1",
        "body": b"{}",
        "deadline_ms": 1790000000123,
        "function_arn": "arn:aws:lambda:us-east-1:0:function:f",
        "trace_id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=1",
        "client_context": '{"custom":{"a":"b"}}',
        "cognito_identity": '{"cognitoIdentityId":"i"}',
        "tenant_id": "tenant-7",
        "invocation_id": "attempt-2",
    }


def test_an_invocation_needs_no_more_than_its_id() -> None:
    invocation = Invocation.from_reply(Reply(200, {"lambda-runtime-aws-request-id": "id-1"}, b""))

    assert invocation == Invocation("id-1", b"")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(403, {"lambda-runtime-aws-request-id": "id-1"}, b"{}"),
        Reply(500, {}, b""),
        Reply(200, {}, b"{}"),
        Reply(200, {"lambda-runtime-aws-request-id": ""}, b"{}"),
        Reply(
            200,
            {"lambda-runtime-aws-request-id": "id-1", "lambda-runtime-deadline-ms": "soon"},
            b"{}",
        ),
    ],
    ids=["refused", "broken", "no id", "empty id", "no deadline"],
)
def test_what_is_no_invocation_is_an_error(reply: Reply) -> None:
    with pytest.raises(RuntimeApiError, match=f"answered {reply.status} instead of an invocation"):
        Invocation.from_reply(reply)
