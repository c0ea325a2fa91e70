"""`DynamoDBIdempotencyStore`: one small row for each key that was used, claimed by one conditional write."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import ceil
from typing import Final

import msgspec

from channel.isolation import IsolationKeys
from channel.ports import Clock
from channel.responses.idempotency import Claim, Entry, Verdict, judged
from channel.sessions import BeganAt
from infra.dynamodb import keys
from infra.dynamodb.client import Client, ConditionFailedError, Table
from infra.dynamodb.rows import AttributeValues
from infra.dynamodb.secret import TenantSecret


# One's own token is there where an attempt before this one seemed to fail.
_IS_FREE: Final = "attribute_not_exists(pk) OR #ttl < :now OR tok = :tok"
_IS_OWN: Final = "tok = :tok"
_IS_UNFINISHED: Final = "tok = :tok AND (attribute_not_exists(rid) OR attribute_exists(held))"
_TTL: Final = {"#ttl": "ttl"}
_ATTEMPTS: Final = 3

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(BeganAt).decode


class DynamoDBIdempotencyStore:
    """The `IdempotencyStore` in one table; it works in any number of threads, loops and processes."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
    ) -> None:
        """Take a client of `make_client`; without a `secret`, the table's own is used."""
        self._table = Table(client, table)
        self._secret = secret or TenantSecret(self._table)
        self._clock = clock

    async def claim(self, isolation: IsolationKeys, key: str, entry: Entry, /) -> Claim:
        """Keep the entry where the key is unused or its time is over (1 WRU either way).

        Where the engine does not say what is in the way, that is read (1 RRU).
        """
        partition = await self._partition(isolation, key)
        item = _item(partition, entry)
        for _ in range(_ATTEMPTS):
            now = int(self._clock())
            try:
                await self._table.put(
                    item,
                    _IS_FREE,
                    values={":now": {"N": str(now)}, ":tok": item["tok"]},
                    names=_TTL,
                    returns=True,
                )
            except ConditionFailedError as error:
                found = error.found or await self._table.get(partition, keys.ONLY_ROW)
                claim = judged(_entry(found) if found else None, entry, now)
                if claim.verdict is not Verdict.FIRST:
                    return claim
                # What was in the way was released between the write and the read.
            else:
                return Claim(Verdict.FIRST)
        return Claim(Verdict.IN_PROGRESS)

    async def note(self, isolation: IsolationKeys, key: str, entry: Entry, /) -> None:
        """Keep the entry in place of the claim with its token (1 WRU)."""
        item = _item(await self._partition(isolation, key), entry)
        with suppress(ConditionFailedError):
            await self._table.put(item, _IS_OWN, values={":tok": item["tok"]})

    async def finish(
        self, isolation: IsolationKeys, key: str, token: str, response_id: str, until: float, /
    ) -> None:
        """Keep the result of a claim until then (1 WRU)."""
        partition = await self._partition(isolation, key)
        with suppress(ConditionFailedError):
            await self._table.update(
                partition,
                keys.ONLY_ROW,
                "SET rid = :rid, #ttl = :ttl REMOVE held",
                values={
                    ":rid": {"S": response_id},
                    ":ttl": _seconds(until),
                    ":tok": {"S": token},
                },
                names=_TTL,
                condition=_IS_OWN,
            )

    async def release(self, isolation: IsolationKeys, key: str, token: str, /) -> None:
        """Let the key of a claim be used again (1 WRU)."""
        partition = await self._partition(isolation, key)
        with suppress(ConditionFailedError):
            await self._table.delete(
                partition,
                keys.ONLY_ROW,
                condition=_IS_UNFINISHED,
                values={":tok": {"S": token}},
            )

    async def _partition(self, isolation: IsolationKeys, key: str) -> str:
        return keys.idempotency_partition(keys.tenant_tag(await self._secret(), isolation), key)


def _item(partition: str, entry: Entry) -> AttributeValues:
    item: AttributeValues = {
        "pk": {"S": partition},
        "sk": {"S": keys.ONLY_ROW},
        "h": {"B": entry.body_hash},
        "tok": {"S": entry.token},
        "ttl": _seconds(entry.until),
    }
    if entry.response_id is not None:
        item["rid"] = {"S": entry.response_id}
    if entry.held_until is not None:
        item["held"] = _seconds(entry.held_until)
    if entry.began_at is not None:
        item["at"] = {"B": _encode(entry.began_at)}
    return item


def _entry(item: AttributeValues) -> Entry:
    return Entry(
        item["h"]["B"],
        item["tok"]["S"],
        float(item["ttl"]["N"]),
        item["rid"]["S"] if "rid" in item else None,
        float(item["held"]["N"]) if "held" in item else None,
        _decode(item["at"]["B"]) if "at" in item else None,
    )


def _seconds(time_s: float) -> dict[str, str]:
    return {"N": str(ceil(time_s))}
