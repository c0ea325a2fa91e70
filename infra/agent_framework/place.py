"""Where an agent of Agent Framework keeps things by itself: the table, and the current caller's part of it."""

import time
from collections.abc import Awaitable, Callable
from functools import cache, cached_property
from typing import Any

from channel.isolation import IsolationKeys, get_current_isolation_keys
from channel.ports import Clock
from infra.dynamodb import keys
from infra.dynamodb.client import Client, Table, make_client
from infra.dynamodb.rows import AttributeValues
from infra.dynamodb.secret import TenantSecret
from infra.settings import Settings, SettingsError


Isolation = Callable[[], IsolationKeys | None]
"""Returns whose data this is; None, and keys without a user, are refused."""


class Place:
    """The table of the environment, or the one given; looked up when it is needed, and not before."""

    def __init__(
        self,
        *,
        table: str | None = None,
        client: Client | None = None,
        isolation: Isolation = get_current_isolation_keys,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
        retention_s: float | None = None,
    ) -> None:
        """Take what is given in place of what the environment says (`infra.settings`)."""
        self._given_table = table
        self._given_client = client
        self._isolation = isolation
        self._given_secret = secret
        self._given_retention_s = retention_s
        self.clock = clock

    async def tenant(self) -> str:
        """Return the tag of the current caller; raises `ValueError` where there is none."""
        isolation = self._isolation()
        if isolation is None:
            raise ValueError(
                "No isolation keys are set here: the host sets them while it runs an agent, and "
                "elsewhere channel.isolation.set_current_isolation_keys does."
            )
        keys.require_user(isolation)
        return keys.tenant_tag(await self._secret(), isolation)

    @cached_property
    def table(self) -> Table:
        """The table; raises `SettingsError` where the environment names none."""
        name = self._given_table or self._settings.table_name
        if name is None:
            raise SettingsError(
                "The setting TABLE_NAME is not set, but an agent keeps history or checkpoints in "
                "DynamoDB: set it to a table's name, or give that as `table`."
            )
        client = self._given_client
        if client is None:
            client = _client(self._settings.region, self._settings.dynamodb_endpoint)
        return Table(client, name)

    def expires_at(self) -> int:
        """Return until when what is written now is kept, in Unix seconds."""
        return int(self.clock() + self.retention_s)

    @cached_property
    def retention_s(self) -> float:
        """Seconds that what is written is kept."""
        if self._given_retention_s is not None:
            return self._given_retention_s
        return self._settings.retention_days * 24 * 3600.0

    async def last(self, partition: str, between: keys.SortKeys) -> AttributeValues | None:
        """Return the last row of a range, as it is now."""
        items = await self.table.query(partition, between, is_strong=True, last=1)
        return items[0] if items else None

    @cached_property
    def _secret(self) -> Callable[[], Awaitable[bytes]]:
        return self._given_secret or TenantSecret(self.table)

    @cached_property
    def _settings(self) -> Settings:
        return Settings.from_env()


@cache
def _client(region: str | None, endpoint: str | None) -> Any:
    return make_client(region, endpoint)
