"""API keys in the table: `lr_<id>_<secret>`, of which only the SHA-256 of the secret is stored.

A key's row has a partition of its own, so that looking one up, also for somebody who guesses, costs
one read on no partition in particular. The partition `cfg#keys` merely names the keys, for listing.
"""

import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from msgspec import Struct

from channel.auth import Principal
from channel.ports import Clock, NewToken, random_hex
from infra.dynamodb import keys
from infra.dynamodb.client import Client, ConditionFailedError, Table
from infra.dynamodb.rows import AttributeValues


CACHE_S: Final = 60.0
CACHED_KEYS: Final = 1024

_ID_BYTES: Final = 8
_SECRET_BYTES: Final = 32
_KEY = re.compile(r"lr_([0-9a-f]{16})_([A-Za-z0-9_-]{43})\Z")
_KEY_ID = re.compile(r"[0-9a-f]{16}\Z")
# Without a slash: that is where a delegate's own users begin.
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}\Z")


class ApiKey(Struct, frozen=True):
    """What is known of a key; times are Unix seconds."""

    id: str
    principal: Principal
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    def is_valid(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class _Known(Struct, frozen=True):
    key: ApiKey
    until: float


class DynamoDBAuthenticator:
    """The `Authenticator` over the keys of a table; a good key is trusted for a minute without a read."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        clock: Clock = time.time,
        max_cached: int = CACHED_KEYS,
    ) -> None:
        """Take a client of `make_client`."""
        self._table = Table(client, table)
        self._clock = clock
        self._max_cached = max_cached
        self._known: dict[bytes, _Known] = {}

    async def authenticate(self, key: str, /) -> Principal | None:
        """Return whose key it is, or None; what does not look like a key is refused without a read."""
        match = _KEY.match(key)
        if match is None:
            return None
        digest = _digest(key)
        known = self._known.get(digest)
        if known is None or known.until <= self._clock():
            known = await self._look_up(match[1], match[2], digest)
        if known is None or not known.key.is_valid(self._clock()):
            return None
        return known.key.principal

    async def _look_up(self, key_id: str, secret: str, digest: bytes) -> _Known | None:
        self._known.pop(digest, None)
        item = await self._table.get(keys.api_key_partition(key_id), keys.ONLY_ROW)
        if item is None or not compare_digest(item["h"]["B"], _digest(secret)):
            return None
        if len(self._known) >= self._max_cached:
            del self._known[next(iter(self._known))]
        self._known[digest] = known = _Known(_parse(key_id, item), self._clock() + CACHE_S)
        return known


async def create_key(
    client: Client,
    table: str,
    principal: str,
    *,
    is_delegate: bool = False,
    expires_at: int | None = None,
    clock: Clock = time.time,
    new_token: NewToken = random_hex,
) -> str:
    """Make a key for a principal and return it: it cannot be shown again.

    Raises `ValueError` for a name that is not allowed, and `StoreError`.
    """
    if not _PRINCIPAL.match(principal):
        raise ValueError(
            f"{principal!r} cannot be a principal: it takes 1 to 128 letters, digits and ._@-, "
            "a letter or digit first."
        )
    key_id = new_token(_ID_BYTES)
    secret = urlsafe_b64encode(bytes.fromhex(new_token(_SECRET_BYTES))).rstrip(b"=").decode()
    item: AttributeValues = {
        "pk": {"S": keys.api_key_partition(key_id)},
        "sk": {"S": keys.ONLY_ROW},
        "h": {"B": _digest(secret)},
        "p": {"S": principal},
        "dg": {"BOOL": is_delegate},
        "ca": {"N": str(int(clock()))},
    }
    if expires_at is not None:
        item["exp"] = {"N": str(expires_at)}
    rows = Table(client, table)
    # The name first: a key that works but is not listed could not be found and revoked.
    await rows.put({"pk": {"S": keys.API_KEYS_PARTITION}, "sk": {"S": key_id}})
    try:
        await rows.put(item, "attribute_not_exists(pk) OR h = :h", values={":h": item["h"]})
    except ConditionFailedError as error:  # pragma: no cover - 64 random bits met twice
        raise RuntimeError("The random id of the new key exists already.") from error
    return f"lr_{key_id}_{secret}"


async def list_keys(client: Client, table: str) -> list[ApiKey]:
    """Return all keys, oldest first, the revoked and expired ones too."""
    rows = Table(client, table)
    found: list[ApiKey] = []
    for named in await rows.query(keys.API_KEYS_PARTITION, is_strong=True):
        key_id = named["sk"]["S"]
        item = await rows.get(keys.api_key_partition(key_id), keys.ONLY_ROW)
        if item is not None:
            found.append(_parse(key_id, item))
    return sorted(found, key=lambda key: (key.created_at, key.id))


async def revoke_key(client: Client, table: str, key_id: str, *, clock: Clock = time.time) -> bool:
    """Revoke a key for good; False where there is none. Caches forget it within a minute."""
    if not _KEY_ID.match(key_id):
        return False
    try:
        await Table(client, table).update(
            keys.api_key_partition(key_id),
            keys.ONLY_ROW,
            "SET rev = if_not_exists(rev, :now)",
            values={":now": {"N": str(int(clock()))}},
        )
    except ConditionFailedError:
        return False
    return True


def _parse(key_id: str, item: AttributeValues) -> ApiKey:
    return ApiKey(
        key_id,
        Principal(item["p"]["S"], is_delegate=item["dg"]["BOOL"]),
        int(item["ca"]["N"]),
        _number(item, "exp"),
        _number(item, "rev"),
    )


def _number(item: Mapping[str, dict[str, str]], name: str) -> int | None:
    return int(item[name]["N"]) if name in item else None


def _digest(text: str) -> bytes:
    return sha256(text.encode()).digest()
