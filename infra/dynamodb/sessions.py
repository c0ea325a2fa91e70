"""`DynamoDBSessionStore`: one small row for each session, which names the response at its head."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from channel.isolation import IsolationKeys
from channel.ports import Clock
from infra.dynamodb import keys
from infra.dynamodb.client import Client, ConditionFailedError, Table
from infra.dynamodb.rows import AttributeValues, seconds
from infra.dynamodb.secret import TenantSecret
from infra.dynamodb.store import MONTH_S


# One's own response is there where an attempt before this one seemed to fail.
_IS_NEW: Final = "attribute_not_exists(pk) OR #ttl < :now OR rid = :rid"
_IS_STILL_THERE: Final = "(rid = :after OR rid = :rid) AND #ttl >= :now"
_IS_ALIVE: Final = "attribute_exists(pk) AND #ttl >= :now"
_TTL: Final = {"#ttl": "ttl"}


class DynamoDBSessionStore:
    """The `SessionStore` in one table; it works in any number of threads, loops and processes."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
        retention_s: float = MONTH_S,
    ) -> None:
        """Take a client of `make_client`; without a `secret`, the table's own is used.

        A session is kept for `retention_s` after its last move.
        """
        self._table = Table(client, table)
        self._secret = secret or TenantSecret(self._table)
        self._clock = clock
        self._retention_s = retention_s

    async def head(self, isolation: IsolationKeys, session_key: str, /) -> str | None:
        """Return the id of the response at the head, or None (1 RRU)."""
        row = await self._table.get(await self._partition(isolation, session_key), keys.ONLY_ROW)
        if row is None or int(row["ttl"]["N"]) < int(self._clock()):
            return None
        head: str = row["rid"]["S"]
        return head

    async def move(
        self, isolation: IsolationKeys, session_key: str, response_id: str, /, *, after: str | None
    ) -> bool:
        """Make a response the head where `after` is it still (1 WRU either way)."""
        now, rid = self._clock(), {"S": response_id}
        item: AttributeValues = {
            "pk": {"S": await self._partition(isolation, session_key)},
            "sk": {"S": keys.ONLY_ROW},
            "rid": rid,
            "ttl": seconds(now + self._retention_s),
        }
        values: AttributeValues = {":rid": rid, ":now": {"N": str(int(now))}}
        if after is not None:
            values[":after"] = {"S": after}
        condition = _IS_NEW if after is None else _IS_STILL_THERE
        try:
            await self._table.put(item, condition, values=values, names=_TTL)
        except ConditionFailedError:
            return False
        return True

    async def forget(self, isolation: IsolationKeys, session_key: str, /) -> bool:
        """Let the session have no head; False where it had none (1 WRU)."""
        partition = await self._partition(isolation, session_key)
        try:
            await self._table.delete(
                partition,
                keys.ONLY_ROW,
                condition=_IS_ALIVE,
                values={":now": {"N": str(int(self._clock()))}},
                names=_TTL,
            )
        except ConditionFailedError:
            return False
        return True

    async def _partition(self, isolation: IsolationKeys, session_key: str) -> str:
        return keys.session_partition(keys.tenant_tag(await self._secret(), isolation), session_key)
