"""Media: what the demo agent can say about images and files. Nothing is ever fetched."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from channel.agents.demo_words import clip
from channel.agents.media import Data, Media, media_of
from channel.responses.protocol.items import Item


PNG_HEADER, GIF_HEADER, WEBP_HEADER = 24, 10, 30  # bytes, up to and with the size
JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_BARE_MARKERS: Final = frozenset({0x01, *range(0xD0, 0xDA)})


def describe_media(items: Iterable[Item]) -> list[str]:
    """Describe each image and file of the items in a sentence.

    Raises `TurnError` for a `data:` URL that cannot be read and for an image URL of another scheme
    than http, https and data.
    """
    return [sentence for item in items for part in _parts(item) for sentence in _describe(part)]


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
    media = media_of(part)
    if media is not None:
        yield f"You sent {'an image' if media.is_image else 'a file'}: {_seen(media)}."


def _seen(media: Media) -> str:
    name = f"{media.filename}, " if media.filename else ""
    if media.data is not None:
        return name + _facts(media.data)
    if media.url:
        return name + _named("URL", media.url)
    return name + _named("file id", media.file_id)


def _facts(data: Data) -> str:
    facts = f"{data.media_type}, {len(data.content)} bytes"
    size = pixel_size(data.content)
    return f"{facts}, {size[0]} x {size[1]} pixels" if size else facts


def _named(what: str, value: object) -> str:
    return f"{what} {clip(str(value))} (I never fetch anything, so I know no more)"


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
