"""The tenant secret: one for all environments, whoever is first."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from channel.isolation import IsolationKeys
from channel.ports import StoreError
from infra.dynamodb.client import Table, create_table
from infra.dynamodb.secret import TenantSecret
from infra.dynamodb.store import DynamoDBResponseStore
from tests.infra.turns import add, texts


pytestmark = pytest.mark.anyio

SECRET_KEY = {"pk": {"S": "cfg#tenant"}, "sk": {"S": "!"}}


def test_environments_that_start_together_end_with_the_same_secret(moto_client: Any) -> None:
    create_table(moto_client, "race")

    with ThreadPoolExecutor(8) as threads:
        read = list(
            threads.map(lambda _: anyio.run(TenantSecret(Table(moto_client, "race"))), range(8))
        )

    assert len(read[0]) == 32
    assert read == [read[0]] * 8


async def test_the_secret_is_read_once(moto_client: Any) -> None:
    create_table(moto_client, "once")
    secret = TenantSecret(Table(moto_client, "once"))
    first = await secret()

    moto_client.delete_item(TableName="once", Key=SECRET_KEY)

    assert await secret() == first


async def test_history_outlives_a_process(moto_client: Any, ann: IsolationKeys) -> None:
    create_table(moto_client, "outlives")
    response_id = await add(DynamoDBResponseStore(moto_client, "outlives"), ann)

    assert await texts(DynamoDBResponseStore(moto_client, "outlives"), ann, response_id) == [
        "Hello!"
    ]


@pytest.mark.parametrize(
    "row", [{"v": {"N": "2"}, "d": {"B": b"s" * 32}}, {"v": {"N": "1"}, "d": {"B": b"short"}}]
)
async def test_a_secret_that_is_not_understood_is_never_replaced(
    moto_client: Any, row: dict[str, Any]
) -> None:
    create_table(moto_client, "strange")
    moto_client.put_item(TableName="strange", Item={**SECRET_KEY, **row})

    with pytest.raises(StoreError):
        await TenantSecret(Table(moto_client, "strange"))()
