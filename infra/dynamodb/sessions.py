"""`DynamoDBSessionStore`: one small row for each session, which says what is at its head.

That is a response (`rid`), or the token of the time when the session was forgotten (`tok`).
"""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from channel.isolation import IsolationKeys
from channel.ports import Clock, NewToken, random_hex
from channel.sessions import Forgotten, Head
from infra.dynamodb import keys
from infra.dynamodb.client import Client, ConditionFailedError, Table
from infra.dynamodb.rows import AttributeValues, seconds
from infra.dynamodb.secret import TenantSecret
from infra.dynamodb.store import MONTH_S


# One's own response is there where an attempt before this one seemed to fail.
_IS_NEW: Final = "attribute_not_exists(pk) OR #ttl < :now OR rid = :rid"
_IS_STILL_THERE: Final = "(rid = :after OR rid = :rid) AND #ttl >= :now"
_IS_STILL_FORGOTTEN: Final = "(tok = :after OR rid = :rid) AND #ttl >= :now"
_TTL: Final = {"#ttl": "ttl"}
_TOKEN_BYTES: Final = 8


class DynamoDBSessionStore:
    """The `SessionStore` in one table; it works in any number of threads, loops and processes."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
        new_token: NewToken = random_hex,
        retention_s: float = MONTH_S,
    ) -> None:
        """Take a client of `make_client`; without a `secret`, the table's own is used.

        A session is kept for `retention_s` after its last move.
        """
        self._table = Table(client, table)
        self._secret = secret or TenantSecret(self._table)
        self._clock = clock
        self._new_token = new_token
        self._retention_s = retention_s

    async def head(self, isolation: IsolationKeys, session_key: str, /) -> Head:
        """Return what is at the head (1 RRU)."""
        row = await self._table.get(await self._partition(isolation, session_key), keys.ONLY_ROW)
        return self._head(row or {})

    async def move(
        self, isolation: IsolationKeys, session_key: str, response_id: str, /, *, after: Head
    ) -> bool:
        """Make a response the head where `after` is it still (1 WRU either way)."""
        rid = {"S": response_id}
        item = await self._item(isolation, session_key, rid=rid)
        values: AttributeValues = {":rid": rid, ":now": {"N": str(int(self._clock()))}}
        condition = _IS_NEW
        if isinstance(after, Forgotten):
            condition, values[":after"] = _IS_STILL_FORGOTTEN, {"S": after.token}
        elif after is not None:
            condition, values[":after"] = _IS_STILL_THERE, {"S": after}
        try:
            await self._table.put(item, condition, values=values, names=_TTL)
        except ConditionFailedError:
            return False
        return True

    async def forget(self, isolation: IsolationKeys, session_key: str, /) -> bool:
        """Let nothing that began before become the head; False where no response was it (1 WRU)."""
        token = {"S": self._new_token(_TOKEN_BYTES)}
        before = await self._table.replace(await self._item(isolation, session_key, tok=token))
        return isinstance(self._head(before), str)

    def _head(self, row: AttributeValues) -> Head:
        if not row or int(row["ttl"]["N"]) < int(self._clock()):
            return None
        if "tok" in row:
            return Forgotten(row["tok"]["S"])
        head: str = row["rid"]["S"]
        return head

    async def _item(
        self, isolation: IsolationKeys, session_key: str, **head: AttributeValues
    ) -> AttributeValues:
        return {
            "pk": {"S": await self._partition(isolation, session_key)},
            "sk": {"S": keys.ONLY_ROW},
            **head,
            "ttl": seconds(self._clock() + self._retention_s),
        }

    async def _partition(self, isolation: IsolationKeys, session_key: str) -> str:
        return keys.session_partition(keys.tenant_tag(await self._secret(), isolation), session_key)
