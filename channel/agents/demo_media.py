"""Media: what the demo agent can say about images and files. Nothing is ever fetched."""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from channel.agent import TurnError
from channel.agents.demo_words import clip
from channel.responses.protocol.items import Item


PNG_HEADER, GIF_HEADER, WEBP_HEADER = 24, 10, 30  # bytes, up to and with the size
JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_BARE_MARKERS: Final = frozenset({0x01, *range(0xD0, 0xDA)})


class Data(Struct, frozen=True):
    """The content of a `data:` URL."""

    media_type: str
    content: bytes


def describe_media(items: Iterable[Item]) -> list[str]:
    """Describe each image and file of the items in a sentence.

    Raises `TurnError` for a `data:` URL that cannot be read and for an image URL of another scheme
    than http, https and data.
    """
    return [sentence for item in items for part in _parts(item) for sentence in _describe(part)]


def parse_data_url(url: str) -> Data:
    """Parse a `data:` URL (RFC 2397); raises `ValueError` if it is none, or its base64 is broken."""
    head, comma, data = url.partition(",")
    if not comma or not head.lower().startswith("data:"):
        raise ValueError("not a data URL")
    media_type, *parameters = head[len("data:") :].split(";")
    raw = unquote_to_bytes(data)
    content = decode_base64(raw) if "base64" in map(str.lower, parameters) else raw
    return Data(media_type.strip().lower() or "text/plain", content)


def decode_base64(data: str | bytes) -> bytes:
    """Decode base64, which may be wrapped in lines; raises `ValueError`."""
    raw = data.encode() if isinstance(data, str) else data
    return b64decode(raw.translate(None, b" \t\r\n"), validate=True)


def pixel_size(image: bytes) -> tuple[int, int] | None:
    """Return width and height from the header of a PNG, GIF, JPEG or WebP image, if it is one."""
    if image.startswith(b"\x89PNG\r\n\x1a\n") and len(image) >= PNG_HEADER:
        return _pair(image[16:24], "big")
    if image.startswith((b"GIF87a", b"GIF89a")) and len(image) >= GIF_HEADER:
        return _pair(image[6:10], "little")
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP" and len(image) >= WEBP_HEADER:
        return _webp_size(image)
    if image.startswith(b"\xff\xd8"):
        return _jpeg_size(image)
    return None


def _parts(item: Item) -> Iterator[Mapping[str, Any]]:
    content = item.get("output" if item.get("type") == "function_call_output" else "content")
    if isinstance(content, list):
        yield from (part for part in content if isinstance(part, Mapping))


def _describe(part: Mapping[str, Any]) -> Iterator[str]:
    if part.get("type") == "input_image":
        yield f"You sent an image: {_image(part)}."
    elif part.get("type") == "input_file":
        yield f"You sent a file: {_file(part)}."


def _image(part: Mapping[str, Any]) -> str:
    url = part.get("image_url")
    if not url:
        return _named("file id", part.get("file_id"))
    if _is_web(url):
        return _named("URL", url)
    try:
        data = parse_data_url(url)
    except Base64Error:
        raise _error(
            "The base64 of an image's data URL is broken.", "invalid_base64_image"
        ) from None
    except ValueError:
        raise _error(
            "An image URL must be an https:, http: or data: URL.", "invalid_image_url"
        ) from None
    if not data.content:
        raise _error("An image's data URL is empty.", "empty_image_file")
    return _facts(data)


def _file(part: Mapping[str, Any]) -> str:
    name = f"{part['filename']}, " if part.get("filename") else ""
    if file_data := part.get("file_data"):
        return name + _facts(_file_data(file_data))
    if part.get("file_url"):
        return name + _named("URL", part["file_url"])
    return name + _named("file id", part.get("file_id"))


def _file_data(text: str) -> Data:
    try:
        if text[:5].lower() == "data:":
            return parse_data_url(text)
        return Data("application/octet-stream", decode_base64(text))
    except ValueError:
        raise _error("`file_data` must be a data URL or base64.", "invalid_value") from None


def _facts(data: Data) -> str:
    facts = f"{data.media_type}, {len(data.content)} bytes"
    size = pixel_size(data.content)
    return f"{facts}, {size[0]} x {size[1]} pixels" if size else facts


def _named(what: str, value: object) -> str:
    return f"{what} {clip(str(value))} (I never fetch anything, so I know no more)"


def _is_web(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def _error(message: str, code: str) -> TurnError:
    return TurnError(message, code=code, status=400, param="input")


def _pair(pair: bytes, order: Literal["big", "little"]) -> tuple[int, int]:
    half = len(pair) // 2
    return int.from_bytes(pair[:half], order), int.from_bytes(pair[half:], order)


def _webp_size(image: bytes) -> tuple[int, int] | None:
    kind = image[12:16]
    if kind == b"VP8X":
        width, height = _pair(image[24:30], "little")
        return width + 1, height + 1
    if kind == b"VP8L":
        bits = int.from_bytes(image[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = _pair(image[26:30], "little")
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Walk the segments up to the frame header, which holds height and then width."""
    at = 2
    while at + 9 <= len(image) and image[at] == 0xFF:  # noqa: PLR2004 - every marker's first byte
        marker = image[at + 1]
        if marker in JPEG_FRAMES:
            height, width = _pair(image[at + 5 : at + 9], "big")
            return width, height
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte
            at += 1
        elif marker in JPEG_BARE_MARKERS:
            at += 2
        else:
            at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return None
