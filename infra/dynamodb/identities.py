"""`DynamoDBIdentityStore`: one row for the identities that a caller has in channels."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from channel.delivery import NOTHING_LINKED, Linked
from channel.isolation import IsolationKeys
from channel.ports import Clock, StoreError
from channel.targets import ChannelIdentity
from infra.dynamodb import blobs, keys
from infra.dynamodb.client import Client, ConditionFailedError, Table
from infra.dynamodb.rows import AttributeValues, seconds
from infra.dynamodb.secret import TenantSecret
from infra.dynamodb.store import MONTH_S


_PREFIX: Final = "c#"
_IS_NEW_OR_ALIVE: Final = "attribute_not_exists(pk) OR #ttl >= :now"
_IS_NEW_OR_EXPIRED: Final = "attribute_not_exists(pk) OR #ttl < :now"
_TTL: Final = {"#ttl": "ttl"}
_ATTEMPTS: Final = 8

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ChannelIdentity).decode


class CorruptIdentityError(StoreError):
    """A stored identity is not what was written."""

    is_passing = False


class DynamoDBIdentityStore:
    """The `IdentityStore` in one table; it works in any number of threads, loops and processes.

    What is linked is kept for `retention_s` after the last identity was recorded. A row takes what
    DynamoDB lets it: at most 64 channels whose identities have 350 KB together. The channels are
    the host's own, and so is that limit to keep.
    """

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        retention_s: float = MONTH_S,
        clock: Clock = time.time,
    ) -> None:
        """Take a client of `make_client`; without a `secret`, the table's own is used."""
        self._table = Table(client, table)
        self._secret = secret or TenantSecret(self._table)
        self._retention_s = retention_s
        self._clock = clock

    async def record(self, isolation: IsolationKeys, identity: ChannelIdentity, /) -> Linked:
        """Link an identity in place of its channel's, as the active one; return what was known before.

        1 WRU for each KB of all that is linked; two more writes where that has expired, once.
        A write that was made, but seemed to fail and was repeated, finds itself as what was before.
        """
        partition = await self._partition(isolation)
        for _ in range(_ATTEMPTS):
            now = self._clock()
            item = _item(partition, identity, now + self._retention_s)
            try:
                return _linked(await self._add(item, identity.channel, now))
            except ConditionFailedError:
                # What has expired goes as a whole, lest the new expiry bring it back.
                if await self._replace(item, now):
                    return NOTHING_LINKED
            # Another identity was recorded in between, in place of what had expired.
        raise StoreError("Too many identities of one caller are recorded at the same time.")

    async def linked(self, isolation: IsolationKeys, /) -> Linked:
        """Return what is known: 1 RRU for each 4 KB of it."""
        return _linked(await self._row(await self._partition(isolation)))

    async def unlink(self, isolation: IsolationKeys, channel: str, /) -> bool:
        """Forget the identity of a channel (a read and a write); False where there is none."""
        partition = await self._partition(isolation)
        for attempt in range(_ATTEMPTS):
            row = await self._row(partition)
            if _PREFIX + channel not in row:
                # It may have been our own write that removed it, though it seemed to fail.
                return attempt > 0
            try:
                await self._remove(partition, channel, is_active=_active(row) == channel)
            except ConditionFailedError:
                continue  # what is active has changed, or the identity is gone
            return True
        raise StoreError("An identity is recorded again and again while it is unlinked.")

    async def _add(self, item: AttributeValues, channel: str, now: float) -> AttributeValues:
        """Add an identity to the row, or begin it; return the row as it was."""
        name = _PREFIX + channel
        return await self._table.upsert(
            item["pk"]["S"],
            keys.ONLY_ROW,
            "SET #channel = :identity, act = :act, #ttl = :ttl",
            values={
                ":identity": item[name],
                ":act": item["act"],
                ":ttl": item["ttl"],
                ":now": seconds(now),
            },
            names={"#channel": name, **_TTL},
            condition=_IS_NEW_OR_ALIVE,
        )

    async def _replace(self, item: AttributeValues, now: float) -> bool:
        """Put the row in place of one that has expired; False where there is none such any more."""
        try:
            await self._table.put(
                item, _IS_NEW_OR_EXPIRED, values={":now": seconds(now)}, names=_TTL
            )
        except ConditionFailedError:
            return False
        return True

    async def _remove(self, partition: str, channel: str, *, is_active: bool) -> None:
        state = "act = :channel" if is_active else "(attribute_not_exists(act) OR act <> :channel)"
        await self._table.update(
            partition,
            keys.ONLY_ROW,
            "REMOVE #channel, act" if is_active else "REMOVE #channel",
            values={":channel": {"S": channel}},
            names={"#channel": _PREFIX + channel},
            condition=f"attribute_exists(#channel) AND {state}",
        )

    async def _row(self, partition: str) -> AttributeValues:
        """Return the row, empty where there is none or it has expired."""
        row = await self._table.get(partition, keys.ONLY_ROW)
        return row if row is not None and blobs.is_alive(row, self._clock()) else {}

    async def _partition(self, isolation: IsolationKeys) -> str:
        return keys.identities_partition(keys.tenant_tag(await self._secret(), isolation))


def _item(partition: str, identity: ChannelIdentity, until: float) -> AttributeValues:
    """Return the row of an identity alone."""
    named = ChannelIdentity(identity.channel, identity.native_id, dict(identity.attributes))
    return {
        "pk": {"S": partition},
        "sk": {"S": keys.ONLY_ROW},
        _PREFIX + identity.channel: {"B": _encode(named)},
        "act": {"S": identity.channel},
        "ttl": seconds(until),
    }


def _linked(row: AttributeValues) -> Linked:
    names = sorted([name for name in row if name.startswith(_PREFIX)])
    identities = [_identity(row[name]["B"]) for name in names]
    return Linked({each.channel: each for each in identities}, _active(row))


def _active(row: AttributeValues) -> str | None:
    return row["act"]["S"] if "act" in row else None


def _identity(data: bytes) -> ChannelIdentity:
    try:
        return _decode(data)
    except msgspec.DecodeError as error:
        raise CorruptIdentityError("A stored identity cannot be decoded.") from error
