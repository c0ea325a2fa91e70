"""The codec: a stored turn to and from compressed bytes, and those bytes to and from chunks. Pure.

A turn is JSON, deflated with a preset dictionary that ends with the bodies of the turn's and its
parent's ids: what the row's own key says already costs next to nothing in the payload. The first
byte is the version of all this.
"""

import zlib
from hashlib import sha256
from hmac import compare_digest
from typing import Final

import msgspec

from channel.ports import StoredTurn, StoreError, TurnTooLargeError
from channel.room import HistoryRoom
from infra.dynamodb import dictionary


VERSION: Final = b"\x01"
CHUNK_BYTES: Final = 240 * 1024
"""The largest payload of one row; DynamoDB allows 400 KB for a row with everything in it."""
MAX_BYTES: Final = 6 * 1024 * 1024
MAX_DECODED_BYTES: Final = 64 * 1024 * 1024

_SMALL_BYTES: Final = 16 * 1024
_BEST: Final = 9
_FAST: Final = 1  # beyond the dictionary's reach, more effort costs much and gains little

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredTurn).decode


class CorruptTurnError(StoreError):
    """Stored bytes are not what was written, or another version wrote them."""

    is_passing = False


def encode(turn: StoredTurn, body: str, parent: str | None) -> bytes:
    """Return the turn's bytes, for its own body and its parent's; raises `TurnTooLargeError`."""
    plain = _encode(turn)
    if len(plain) > MAX_DECODED_BYTES:
        raise TurnTooLargeError(f"The turn has {len(plain)} bytes.")
    level = _BEST if len(plain) <= _SMALL_BYTES else _FAST
    deflate = zlib.compressobj(level, zdict=_dictionary(body, parent))
    data = VERSION + deflate.compress(plain) + deflate.flush()
    if len(data) > MAX_BYTES:
        raise TurnTooLargeError(f"The turn has {len(data)} compressed bytes.")
    return data


def decode(
    data: bytes, body: str, parent: str | None, room: HistoryRoom | None = None
) -> StoredTurn:
    """Return the turn of `encode` with the same bodies; raises `CorruptTurnError`.

    One that is a part of a history takes of its room, before it is parsed: raises
    `HistoryTooLargeError`.
    """
    if data[:1] != VERSION:
        raise CorruptTurnError("A stored turn has an unknown version.")
    inflate = zlib.decompressobj(zdict=_dictionary(body, parent))
    try:
        most = room.limit(MAX_DECODED_BYTES) if room else MAX_DECODED_BYTES
        # With one byte more, what is too large is told from what just fits; 0 would be no limit.
        plain = inflate.decompress(data[1:], most + 1)
        if len(plain) > MAX_DECODED_BYTES:
            raise CorruptTurnError("A stored turn is larger than any that was stored.")
        if room:
            room.take(len(plain))
        if inflate.eof and not inflate.unused_data:
            return _decode(plain)
    except (zlib.error, msgspec.DecodeError) as error:
        raise CorruptTurnError("A stored turn cannot be decoded.") from error
    raise CorruptTurnError("A stored turn is cut off, or has more after its end.")


def checksum(data: bytes) -> bytes:
    """Return what proves that chunks are whole and belong together."""
    return sha256(data).digest()


def least_size(data: bytes, chunks: int) -> int:
    """Return how many bytes there are at least, once decoded, of data in one row or in chunks."""
    return len(data) if not chunks else (chunks - 1) * CHUNK_BYTES


def split(data: bytes) -> list[bytes]:
    """Return the chunks of the data: none where it fits into one row."""
    if len(data) <= CHUNK_BYTES:
        return []
    return [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]


def join(chunks: list[bytes], expected: bytes) -> bytes:
    """Return the data of `split`; raises `CorruptTurnError` where the checksum is another."""
    data = b"".join(chunks)
    if not compare_digest(checksum(data), expected):
        raise CorruptTurnError("The chunks of a stored turn do not belong together.")
    return data


def _dictionary(body: str, parent: str | None) -> bytes:
    return dictionary.V1 + f"{parent or ''}{body}".encode()
