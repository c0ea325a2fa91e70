"""The trust boundary: a key becomes a `Principal`, and the principal becomes isolation keys."""

from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Protocol

from msgspec import Struct

from channel.isolation import IsolationKeys


class Principal(Struct, frozen=True):
    """Who the key belongs to. A delegate is a backend that speaks for many end users of its own."""

    name: str
    is_delegate: bool = False


class Authenticator(Protocol):
    """Turns a presented key into a principal."""

    async def authenticate(self, key: str, /) -> Principal | None:
        """Return whose key it is, or None where it is nobody's; raises `StoreError`."""
        ...


class DenyAll:
    """Nobody gets in: what a host has that was not configured."""

    async def authenticate(self, _key: str, /) -> Principal | None:
        """Return None."""
        return None


class FixedKeys:
    """A fixed set of keys, such as the development keys of the local server."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        """Take the principals by key."""
        self._principals = {_digest(key): who for key, who in principals.items()}

    async def authenticate(self, key: str, /) -> Principal | None:
        """Return whose key it is, comparing digests in constant time."""
        presented, found = _digest(key), None
        for known, who in self._principals.items():
            if compare_digest(known, presented):
                found = who
        return found


def isolation_keys(principal: Principal, user: str | None, chat: str | None) -> IsolationKeys:
    """Return the keys of a principal's request; `user` and `chat` are what the headers named.

    They count for a delegate only, and name users and chats below its own name: a name holds no
    slash, so `acme/ann` is never another principal.
    """
    if not principal.is_delegate:
        return IsolationKeys(principal.name)
    return IsolationKeys(f"{principal.name}/{user}" if user else principal.name, chat or None)


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogatepass")).digest()
