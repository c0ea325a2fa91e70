"""What runtimes post, read as a function URL reads it."""

import pytest

from handler.emulator.replies import (
    BadReplyError,
    Head,
    PreludeReader,
    whole_reply,
)
from handler.runtime_api import MAX_PRELUDE_BYTES


END = bytes(8)
JSON = (b"content-type", b"application/json")


def test_a_prelude_is_read_from_pieces_of_any_size() -> None:
    posted = b'{"statusCode":201,"headers":{"X-One":"1"},"cookies":["a=1","b=2"]}' + END + b"body"
    head = Head(201, [(b"x-one", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")])

    for size in range(1, len(posted) + 1):
        reader, found, rest = PreludeReader(), None, b""
        for at in range(0, len(posted), size):
            piece = posted[at : at + size]
            if found is None:
                found = reader.feed(piece)
            else:
                rest += piece

        assert found is not None
        assert (found[0], found[1] + rest) == (head, b"body")


@pytest.mark.parametrize(
    ("prelude", "head"),
    [
        (b"{}", Head(200, [])),
        (
            b'{"headers":{"x":"0","y":"1"},"multiValueHeaders":{"X":["1","2"]}}',
            Head(200, [(b"y", b"1"), (b"x", b"1"), (b"x", b"2")]),
        ),
        (
            b'{"headers":{"content-length":"7"}}',
            Head(200, [(b"x-amzn-remapped-content-length", b"7")]),
        ),
        (b'{"headers":{"content-length":"0"}}', Head(200, [(b"content-length", b"0")])),
        (b'{"headers":{"Connection":"close","x":"\xc3\xbc"}}', Head(200, [(b"x", b"\xfc")])),
    ],
)
def test_a_prelude_says_status_and_headers(prelude: bytes, head: Head) -> None:
    assert PreludeReader().feed(prelude + END) == (head, b"")


@pytest.mark.parametrize(
    ("posted", "kind"),
    [
        (b"data: 1\n\n" + END, "Prelude.NotJSON"),
        (b"[]" + END, "Prelude.Malformed"),
        (b'{"statusCode":"200"}' + END, "Prelude.Malformed"),
        (b'{"statusCode":99}' + END, "Prelude.Malformed"),
        (b'{"body":""}' + END, "Prelude.Malformed"),
        (b'{"headers":{"x":["1"]}}' + END, "Prelude.Malformed"),
        (b'{"headers":{"x y":"1"}}' + END, "Reply.BadHeader"),
        (b'{"cookies":["a\\n"]}' + END, "Reply.BadHeader"),
        (b" " * MAX_PRELUDE_BYTES, "Prelude.TooLarge"),
        (b'{"headers":{"x":"' + b"x" * MAX_PRELUDE_BYTES + b'"}}' + END, "Prelude.TooLarge"),
    ],
)
def test_a_wrong_prelude_has_a_name(posted: bytes, kind: str) -> None:
    with pytest.raises(BadReplyError) as raised:
        PreludeReader().feed(posted)

    assert raised.value.kind == kind


def test_the_end_of_a_prelude_lies_within_16_kilobytes() -> None:
    filler = MAX_PRELUDE_BYTES - len(b'{"headers":{"x":""}}' + END)
    posted = b'{"headers":{"x":"' + b"x" * filler + b'"}}' + END

    assert PreludeReader().feed(posted) == (Head(200, [(b"x", b"x" * filler)]), b"")


def test_a_reply_that_ends_within_its_prelude_has_a_name() -> None:
    reader = PreludeReader()

    assert reader.feed(b"{}" + bytes(7)) is None
    assert reader.end().kind == "Prelude.Missing"


@pytest.mark.parametrize(
    ("posted", "head", "body"),
    [
        (
            b'{"statusCode":201,"headers":{"X-One":"1"},"cookies":["a=1"],"body":"\xc3\xbc"}',
            Head(201, [(b"x-one", b"1"), JSON, (b"set-cookie", b"a=1"), (b"content-length", b"2")]),
            b"\xc3\xbc",
        ),
        (
            b'{"statusCode":200,"headers":{"content-length":"8"},"body":"iVBORw==","isBase64Encoded":true}',
            Head(200, [JSON, (b"content-length", b"4")]),
            b"\x89PNG",
        ),
        (
            b'{"statusCode":204,"headers":{"a":1,"b":true,"c":1.5}}',
            Head(
                204,
                [(b"a", b"1"), (b"b", b"true"), (b"c", b"1.5"), JSON, (b"content-length", b"0")],
            ),
            b"",
        ),
        (b'{"message": "Hello"}', Head(200, [JSON]), b'{"message": "Hello"}'),
        (b'"Hello"', Head(200, [JSON]), b'"Hello"'),
        (b"null", Head(200, [JSON]), b"null"),
    ],
)
def test_a_whole_reply_says_status_headers_and_body(posted: bytes, head: Head, body: bytes) -> None:
    assert whole_reply(posted) == (head, body)


@pytest.mark.parametrize(
    ("posted", "kind"),
    [
        (b"", "Reply.NotJSON"),
        (b"hello", "Reply.NotJSON"),
        (b'{"statusCode":"200"}', "Reply.Malformed"),
        (b'{"statusCode":200,"body":{}}', "Reply.Malformed"),
        (b'{"statusCode":200,"body":"!","isBase64Encoded":true}', "Reply.NotBase64"),
        (b'{"statusCode":200,"headers":{"a:":"1"}}', "Reply.BadHeader"),
    ],
)
def test_a_wrong_whole_reply_has_a_name(posted: bytes, kind: str) -> None:
    with pytest.raises(BadReplyError) as raised:
        whole_reply(posted)

    assert raised.value.kind == kind
