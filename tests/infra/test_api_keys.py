"""API keys: created once, listed, revoked, and never stored."""

import re
from typing import Any

import pytest

from channel.auth import Principal
from channel.ports import StoreError
from infra import api_keys
from infra.api_keys import ApiKey, DynamoDBAuthenticator, create_key, list_keys, revoke_key
from infra.dynamodb.client import create_table
from tests.infra import engines
from tests.infra.conftest import MovableClock


pytestmark = pytest.mark.anyio

TABLE = engines.TABLE


class Counted:
    """A client that counts its reads."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_item(self, **arguments: Any) -> dict[str, Any]:
        self.reads += 1
        found: dict[str, Any] = self._client.get_item(**arguments)
        return found


async def test_a_key_is_its_principals(moto_client: Any, clock: MovableClock) -> None:
    plain = await create_key(moto_client, TABLE, "acme", clock=clock)
    delegate = await create_key(moto_client, TABLE, "a.b_c@d-1", is_delegate=True, clock=clock)
    authenticator = DynamoDBAuthenticator(moto_client, TABLE, clock=clock)

    assert re.fullmatch(r"lr_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", plain)
    assert await authenticator.authenticate(plain) == Principal("acme")
    assert await authenticator.authenticate(delegate) == Principal("a.b_c@d-1", is_delegate=True)


async def test_the_table_never_holds_a_key(moto_client: Any) -> None:
    key = await create_key(moto_client, TABLE, "acme")
    _, key_id, secret = key.split("_", 2)

    row = moto_client.get_item(
        TableName=TABLE, Key={"pk": {"S": f"key#{key_id}"}, "sk": {"S": "!"}}
    )["Item"]

    assert secret not in str(row)
    assert len(row["h"]["B"]) == 32


@pytest.mark.parametrize(
    "name", ["", "a/b", "/", "-a", ".a", "a b", "a\n", "ä", "a" * 129, "a#b", "a\x00"]
)
async def test_a_name_that_could_be_another_tenants_is_refused(moto_client: Any, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a principal"):
        await create_key(moto_client, TABLE, name)


@pytest.mark.parametrize(
    "key",
    ["", "lr_", "lr__", "sk-abc", "{key}x", "{key}\n", "x{key}", " {key}", "{upper}", "lr_\x00"],
)
async def test_what_does_not_look_like_a_key_is_refused_without_a_read(
    moto_client: Any, key: str
) -> None:
    good = await create_key(moto_client, TABLE, "acme")
    client = Counted(moto_client)
    presented = key.format(key=good, upper=good.upper())

    assert await DynamoDBAuthenticator(client, TABLE).authenticate(presented) is None
    assert client.reads == 0


async def test_a_wrong_secret_or_an_unknown_id_is_refused(moto_client: Any) -> None:
    key = await create_key(moto_client, TABLE, "acme")
    other = await create_key(moto_client, TABLE, "other")
    authenticator = DynamoDBAuthenticator(moto_client, TABLE)

    mixed = key[:20] + other[20:]
    unknown = "lr_" + "0" * 16 + key[19:]

    assert await authenticator.authenticate(key) == Principal("acme")
    assert await authenticator.authenticate(mixed) is None
    assert await authenticator.authenticate(unknown) is None


async def test_a_good_key_is_read_once_a_minute(moto_client: Any, clock: MovableClock) -> None:
    client = Counted(moto_client)
    key = await create_key(client, TABLE, "acme", clock=clock)
    authenticator = DynamoDBAuthenticator(client, TABLE, clock=clock)

    for _ in range(3):
        await authenticator.authenticate(key)
    assert client.reads == 1

    clock.now += api_keys.CACHE_S
    await authenticator.authenticate(key)
    assert client.reads == 2


async def test_a_revoked_key_is_refused_within_a_minute(
    moto_client: Any, clock: MovableClock
) -> None:
    key = await create_key(moto_client, TABLE, "acme", clock=clock)
    authenticator = DynamoDBAuthenticator(moto_client, TABLE, clock=clock)
    await authenticator.authenticate(key)

    assert await revoke_key(moto_client, TABLE, key.split("_")[1], clock=clock) is True

    clock.now += api_keys.CACHE_S
    assert await authenticator.authenticate(key) is None
    assert await DynamoDBAuthenticator(moto_client, TABLE).authenticate(key) is None


async def test_a_key_expires_also_from_the_cache(moto_client: Any, clock: MovableClock) -> None:
    key = await create_key(moto_client, TABLE, "a", expires_at=int(clock.now) + 10, clock=clock)
    authenticator = DynamoDBAuthenticator(moto_client, TABLE, clock=clock)
    assert await authenticator.authenticate(key) == Principal("a")

    clock.now += 10

    assert await authenticator.authenticate(key) is None


async def test_the_cache_is_bounded(moto_client: Any) -> None:
    client = Counted(moto_client)
    keys = [await create_key(client, TABLE, "acme") for _ in range(3)]
    authenticator = DynamoDBAuthenticator(client, TABLE, max_cached=2)

    for key in (*keys, keys[2], keys[1], keys[0]):
        assert await authenticator.authenticate(key) == Principal("acme")

    assert client.reads == 4


async def test_all_keys_are_listed_oldest_first(moto_client: Any, clock: MovableClock) -> None:
    create_table(moto_client, "listed")
    first = await create_key(moto_client, "listed", "first", clock=clock)
    clock.now += 1
    second = await create_key(
        moto_client, "listed", "second", is_delegate=True, expires_at=2_000_000_000, clock=clock
    )
    await revoke_key(moto_client, "listed", first.split("_")[1], clock=clock)

    created = int(clock.now) - 1
    assert await list_keys(moto_client, "listed") == [
        ApiKey(first.split("_")[1], Principal("first"), created, revoked_at=created + 1),
        ApiKey(
            second.split("_")[1],
            Principal("second", is_delegate=True),
            created + 1,
            expires_at=2_000_000_000,
        ),
    ]


async def test_a_key_whose_creation_was_cut_off_is_not_listed(moto_client: Any) -> None:
    create_table(moto_client, "cut")
    moto_client.put_item(TableName="cut", Item={"pk": {"S": "cfg#keys"}, "sk": {"S": "0" * 16}})

    assert await list_keys(moto_client, "cut") == []


@pytest.mark.parametrize("key_id", ["", "0" * 16, "!", "../x"])
async def test_only_a_key_that_exists_is_revoked(moto_client: Any, key_id: str) -> None:
    assert await revoke_key(moto_client, TABLE, key_id) is False


async def test_a_table_that_fails_is_a_store_error_not_a_refusal(moto_client: Any) -> None:
    key = await create_key(moto_client, TABLE, "acme")

    with pytest.raises(StoreError):
        await DynamoDBAuthenticator(moto_client, "no-such-table").authenticate(key)
