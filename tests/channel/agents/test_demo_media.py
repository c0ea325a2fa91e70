from base64 import b64encode
from typing import Any

import pytest

from channel.agent import TurnError
from channel.agents.demo_media import describe_media, pixel_size
from channel.responses.protocol.items import Item


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4) + (480).to_bytes(4) + b"\x08\6\0\0\0"
GIF = b"GIF89a" + (20).to_bytes(2, "little") + (10).to_bytes(2, "little") + b"\0\0\0"
FRAME = b"\xff\xff\xc2\0\x11\x08" + (30).to_bytes(2) + (50).to_bytes(2) + b"\3"
JPEG = b"\xff\xd8\xff\x01\xff\xe0\0\x04JF" + FRAME
VP8X = b"\0\0\0\0" + (99).to_bytes(3, "little") + (199).to_bytes(3, "little")
VP8L = b"\x2f" + (99 | 199 << 14).to_bytes(4, "little") + bytes(5)
VP8 = b"\0\0\0\x9d\1\x2a" + (100).to_bytes(2, "little") + (200).to_bytes(2, "little")


def webp(kind: bytes, data: bytes) -> bytes:
    return b"RIFF\0\0\0\0WEBP" + kind + b"\0\0\0\0" + data


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{b64encode(content).decode()}"


def user(**part: Any) -> list[Item]:
    return [{"type": "message", "role": "user", "content": [part]}]


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (PNG, (640, 480)),
        (GIF, (20, 10)),
        (JPEG, (50, 30)),
        (webp(b"VP8X", VP8X), (100, 200)),
        (webp(b"VP8L", VP8L), (100, 200)),
        (webp(b"VP8 ", VP8), (100, 200)),
        (webp(b"ALPH", VP8), None),
        (PNG[:20], None),
        (GIF[:8], None),
        (JPEG[:12], None),
        (b"\xff\xd8 no segment here", None),
        (b"RIFF\0\0\0\0WEBPVP8X", None),
        (b"text", None),
    ],
)
def test_the_header_of_an_image_tells_its_size(image: bytes, size: tuple[int, int] | None) -> None:
    assert pixel_size(image) == size


def test_an_image_in_a_data_url_is_described() -> None:
    items = user(type="input_image", image_url=data_url(PNG, "image/png"))

    assert describe_media(items) == [
        f"You sent an image: image/png, {len(PNG)} bytes, 640 x 480 pixels."
    ]


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (
            {"filename": "a.txt", "file_data": data_url(b"hello", "text/plain;charset=utf-8")},
            "You sent a file: a.txt, text/plain, 5 bytes.",
        ),
        (
            {"file_data": b64encode(b"hello" * 20).decode()},
            "You sent a file: application/octet-stream, 100 bytes.",
        ),
        ({"file_data": "data:,a%20b"}, "You sent a file: text/plain, 3 bytes."),
        (
            {"file_id": "file-1", "filename": "a.pdf"},
            "You sent a file: a.pdf, file id file-1 (I never fetch anything, so I know no more).",
        ),
        (
            {"file_url": "http://169.254.169.254/x"},
            "You sent a file: URL http://169.254.169.254/x (I never fetch anything, so I know no more).",
        ),
    ],
)
def test_a_file_is_described_or_only_named(part: dict[str, str], sentence: str) -> None:
    assert describe_media(user(type="input_file", **part)) == [sentence]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"image_url": "HTTPS://example.com/a.png"}, "URL HTTPS://example.com/a.png"),
        ({"file_id": "file-1"}, "file id file-1"),
    ],
)
def test_an_image_elsewhere_is_only_named(part: dict[str, str], name: str) -> None:
    [sentence] = describe_media(user(type="input_image", **part))

    assert sentence == f"You sent an image: {name} (I never fetch anything, so I know no more)."


def test_an_image_that_a_tool_gave_is_described_too() -> None:
    part = {"type": "input_image", "image_url": data_url(GIF, "image/gif")}
    items = [{"type": "function_call_output", "call_id": "call_1", "output": [part]}]

    assert describe_media(items) == ["You sent an image: image/gif, 13 bytes, 20 x 10 pixels."]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"type": "input_image", "image_url": "data:image/png;base64,%%%"}, "invalid_base64_image"),
        ({"type": "input_image", "image_url": "data:image/png;base64,abc"}, "invalid_base64_image"),
        ({"type": "input_image", "image_url": "data:image/png;base64,"}, "empty_image_file"),
        ({"type": "input_image", "image_url": "data:image/png"}, "invalid_image_url"),
        ({"type": "input_image", "image_url": "file:///etc/passwd"}, "invalid_image_url"),
        ({"type": "input_file", "file_data": "data:text/plain;base64,!"}, "invalid_value"),
        ({"type": "input_file", "file_data": "data:text/plain"}, "invalid_value"),
        ({"type": "input_file", "file_data": "é"}, "invalid_value"),
    ],
)
def test_broken_data_is_the_clients_error(part: dict[str, str], code: str) -> None:
    with pytest.raises(TurnError) as caught:
        describe_media(user(**part))

    assert (caught.value.code, caught.value.status, caught.value.param) == (code, 400, "input")


def test_plain_text_has_no_media() -> None:
    assert describe_media([{"type": "message", "role": "user", "content": "hi"}]) == []
    assert describe_media(user(type="input_text", text="hi")) == []
