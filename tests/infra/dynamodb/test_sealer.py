"""Seals by a table's tenant secret: every environment opens what any of them sealed."""

from typing import Any

import pytest

from channel.isolation import IsolationKeys
from channel.ports import StoreError
from channel.sealing import SecretSealer
from infra.dynamodb.client import Table, create_table
from infra.dynamodb.secret import TenantSecret
from infra.dynamodb.store import DynamoDBResponseStore
from tests.infra.turns import add


pytestmark = pytest.mark.anyio


def sealer(client: Any, table: str) -> SecretSealer:
    """Return the sealer of another environment: it has read nothing yet."""
    return SecretSealer(TenantSecret(Table(client, table)))


async def test_every_environment_opens_the_seals_of_a_table(
    moto_client: Any, ann: IsolationKeys
) -> None:
    create_table(moto_client, "seals")

    text = await sealer(moto_client, "seals").seal(ann, b"data")
    other = sealer(moto_client, "seals")

    assert await other.open(ann, text) == b"data"
    assert await other.open(IsolationKeys("bob"), text) is None


async def test_another_table_does_not_open_them(moto_client: Any, ann: IsolationKeys) -> None:
    for name in ("ours", "theirs"):
        create_table(moto_client, name)

    text = await sealer(moto_client, "ours").seal(ann, b"data")

    assert await sealer(moto_client, "theirs").open(ann, text) is None


async def test_the_secret_is_the_one_of_the_history(moto_client: Any, ann: IsolationKeys) -> None:
    create_table(moto_client, "shared")
    await add(DynamoDBResponseStore(moto_client, "shared"), ann)

    await sealer(moto_client, "shared").seal(ann, b"data")

    secrets = moto_client.query(
        TableName="shared",
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": "cfg#tenant"}},
    )
    assert secrets["Count"] == 1


async def test_a_table_that_is_not_there_is_a_store_error(
    moto_client: Any, ann: IsolationKeys
) -> None:
    with pytest.raises(StoreError):
        await sealer(moto_client, "nowhere").open(ann, "x")
