"""Images and files of a message as values; `data:` URLs are decoded, and nothing is ever fetched."""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from channel.agent import TurnError


class Data(Struct, frozen=True):
    """The content of a `data:` URL."""

    media_type: str
    content: bytes


class Media(Struct, frozen=True):
    """An image or a file that a message holds: its content, or else where its model may find it."""

    is_image: bool
    data: Data | None = None
    url: str | None = None
    file_id: str | None = None
    filename: str | None = None
    detail: str = "auto"

    def content(self) -> Data:
        """Return the content, for a model that needs it.

        Raises `TurnError` (400, `input`) where the request holds only a URL or a file id: nothing
        here fetches what a request names.
        """
        if self.data is not None:
            return self.data
        if self.is_image:
            raise _error("This agent takes an image only as a data: URL.", "invalid_image_url")
        raise _error("This agent takes a file only by its content, `file_data`.", "invalid_value")


def media_of(part: Mapping[str, Any]) -> Media | None:
    """Return what an `input_image` or `input_file` part holds, or None of any other part.

    Raises `TurnError` (400, `input`) for content that cannot be read and for URLs of other schemes
    than http, https and data.
    """
    match part.get("type"):
        case "input_image":
            return _image(part)
        case "input_file":
            return _file(part)
        case _:
            return None


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


def _image(part: Mapping[str, Any]) -> Media:
    url, detail = part.get("image_url"), part.get("detail") or "auto"
    if not url:
        return Media(is_image=True, file_id=part.get("file_id"), detail=detail)
    if _is_web(url):
        return Media(is_image=True, url=url, detail=detail)
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
    return Media(is_image=True, data=data, detail=detail)


def _file(part: Mapping[str, Any]) -> Media:
    filename = part.get("filename")
    if file_data := part.get("file_data"):
        return Media(is_image=False, data=_file_data(file_data), filename=filename)
    url = part.get("file_url")
    if url and not _is_web(url):
        raise _error("A file URL must be an https: or http: URL.", "invalid_value")
    return Media(is_image=False, url=url, file_id=part.get("file_id"), filename=filename)


def _file_data(text: str) -> Data:
    try:
        if text[:5].lower() == "data:":
            return parse_data_url(text)
        return Data("application/octet-stream", decode_base64(text))
    except ValueError:
        raise _error("`file_data` must be a data URL or base64.", "invalid_value") from None


def _is_web(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def _error(message: str, code: str) -> TurnError:
    return TurnError(message, code=code, status=400, param="input")
