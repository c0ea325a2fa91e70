"""Sealed text: what a client keeps for us and gives back unchanged, bound to the caller's isolation keys.

A seal is tamper-proof and opaque, not secret: compressed bytes under an HMAC-SHA256 tag whose key is
derived from one secret and the isolation keys. It holds the caller's own text, so nothing is kept
from those who have it; what another caller sealed, or anybody changed, does not open.
"""

import hmac
import json
import zlib
from base64 import b64decode, urlsafe_b64encode
from binascii import Error as NotBase64Error
from collections.abc import Awaitable, Callable
from os import urandom
from typing import Final

from channel.isolation import IsolationKeys


Secret = Callable[[], Awaitable[bytes]]
"""Returns the secret of all seals: at least 32 random bytes, the same in every process."""

_VERSION: Final = b"\x01"
_PURPOSE: Final = b"lambda-responses seal 1 "  # the secret has other uses
_TAG_BYTES: Final = 32
_SECRET_BYTES: Final = 32


def sealed(secret: bytes, keys: IsolationKeys, data: bytes) -> str:
    """Return the data as text (base64url) that opens for these keys only."""
    packed = zlib.compress(data)
    whole = _VERSION + _tag(secret, keys, packed) + packed
    return urlsafe_b64encode(whole).decode()


def unsealed(secret: bytes, keys: IsolationKeys, text: str) -> bytes | None:
    """Return the data of a seal, or None where it is not of these keys, damaged, or no seal at all."""
    try:
        whole = b64decode(text.encode(), altchars=b"-_", validate=True)
    except (NotBase64Error, ValueError):
        return None
    version, tag, packed = whole[:1], whole[1 : 1 + _TAG_BYTES], whole[1 + _TAG_BYTES :]
    if version != _VERSION or not hmac.compare_digest(tag, _tag(secret, keys, packed)):
        return None
    return zlib.decompress(packed)


class SecretSealer:
    """The `Sealer` of one secret, such as the tenant secret of a table."""

    def __init__(self, secret: Secret) -> None:
        """Ask for the secret when it is needed, and not before."""
        self._secret = secret

    async def seal(self, keys: IsolationKeys, data: bytes, /) -> str:
        """Return the data as text that opens for these keys only."""
        return sealed(await self._secret(), keys, data)

    async def open(self, keys: IsolationKeys, text: str, /) -> bytes | None:
        """Return the data of a seal, or None where it does not open."""
        return unsealed(await self._secret(), keys, text)


def process_sealer() -> SecretSealer:
    """Return a sealer with a secret of its own: what it sealed opens in this process only."""
    made = urandom(_SECRET_BYTES)

    async def secret() -> bytes:
        return made

    return SecretSealer(secret)


def _tag(secret: bytes, keys: IsolationKeys, packed: bytes) -> bytes:
    named = json.dumps([keys.user_key, keys.chat_key], separators=(",", ":")).encode()
    key = hmac.digest(secret, _PURPOSE + named, "sha256")
    return hmac.digest(key, packed, "sha256")
