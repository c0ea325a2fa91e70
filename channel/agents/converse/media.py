"""Images and documents as blocks of the Converse API: their formats, and names that it takes."""

import re
from pathlib import PureWindowsPath
from typing import Any, Final
from unicodedata import normalize

from channel.agents.media import Data, Media
from channel.agents.reading import unsupported


IMAGE_FORMATS: Final = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
}
DOCUMENT_FORMATS: Final = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
    "application/json": "txt",
    "application/xml": "txt",
    "application/yaml": "txt",
}
_BY_SUFFIX: Final = {name: name for name in DOCUMENT_FORMATS.values()} | {"htm": "html"}
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9\s()\[\]-]")
_LONGEST_NAME: Final = 180  # of 200, which leaves room for a number


class DocumentNames:
    """The names of the documents of one request: Converse takes few characters, and no name twice."""

    def __init__(self) -> None:
        """Begin without a name."""
        self._taken: set[str] = set()

    def new(self, filename: str | None) -> str:
        """Return a name like the file's, without its suffix, that is not taken yet."""
        base = _plain(PureWindowsPath(filename or "").stem) or "document"
        name, number = base, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{base} ({number})"
        self._taken.add(name.lower())
        return name


def media_block(media: Media, names: DocumentNames) -> dict[str, Any]:
    """Return the block of an image or a file.

    Raises `TurnError` (400) where the request holds no content of it, and for other formats.
    """
    data = media.content()
    if not data.content:
        raise unsupported("an empty file")
    if data.media_type in IMAGE_FORMATS:
        return {"image": _source(IMAGE_FORMATS[data.media_type], data)}
    if media.is_image:
        raise unsupported(f"images of the type {data.media_type} (but PNG, JPEG, GIF and WebP)")
    return {
        "document": {
            **_source(_document_format(media, data), data),
            "name": names.new(media.filename),
        }
    }


def _plain(text: str) -> str:
    """Return the letters and digits of a text, as far as ASCII has them, and what may be between."""
    letters = normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(_NOT_IN_NAMES.sub(" ", letters).split())[:_LONGEST_NAME].strip()


def _document_format(media: Media, data: Data) -> str:
    suffix = (media.filename or "").rpartition(".")[2].lower()
    found = DOCUMENT_FORMATS.get(data.media_type) or _BY_SUFFIX.get(suffix)
    if found is None and data.media_type.startswith("text/"):
        return "txt"
    if found is None:
        raise unsupported(f"files of the type {data.media_type}")
    return found


def _source(kind: str, data: Data) -> dict[str, Any]:
    return {"format": kind, "source": {"bytes": data.content}}
