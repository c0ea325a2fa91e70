"""The client: tuned, lazy, and its errors translated once."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from channel.ports import StoreError, call_limit_s
from infra.dynamodb.client import ConditionFailedError, Table, call, create_table
from tests.infra import engines


pytestmark = pytest.mark.anyio


@pytest.fixture
def unreachable() -> Iterator[Any]:
    with engines.connected(None, "http://127.0.0.1:1", attempts=1) as client:
        yield client


def test_the_client_gives_up_within_seconds_and_keeps_its_connections(unreachable: Any) -> None:
    with engines.connected("eu-west-1", "http://127.0.0.1:1") as client:
        config = client.meta.config

    assert (config.connect_timeout, config.read_timeout, config.tcp_keepalive) == (1, 3, True)
    assert config.retries["mode"] == "standard"
    assert config.retries["total_max_attempts"] == 4


def test_a_local_engine_has_one_region_whatever_is_asked_for_and_aws_the_one_that_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    for endpoint, region in ((None, "eu-west-1"), ("http://127.0.0.1:1", "us-east-1")):
        with engines.connected("eu-west-1", endpoint) as client:
            assert client.meta.region_name == region


def test_nothing_heavy_is_imported_before_a_client_is_made() -> None:
    program = (
        "import sys, infra.dynamodb.store, infra.dynamodb.client, infra.api_keys, channel.memory\n"
        "print([m for m in ('boto3', 'botocore') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=engines.ROOT,
    )

    assert done.stdout.strip() == "[]"


async def test_an_engine_that_is_not_there_is_a_store_error(unreachable: Any) -> None:
    with pytest.raises(StoreError) as raised:
        await Table(unreachable, engines.TABLE).get("pk", "sk")

    assert raised.value.__cause__ is not None
    assert "127.0.0.1" not in str(raised.value)


async def test_a_table_that_is_not_there_is_a_store_error(moto_client: Any) -> None:
    with pytest.raises(StoreError) as raised:
        await Table(moto_client, "no-such-table").query("pk")

    assert not isinstance(raised.value, ConditionFailedError)


async def test_a_condition_that_does_not_hold_has_its_own_error(moto_client: Any) -> None:
    rows = Table(moto_client, engines.TABLE)
    item = {"pk": {"S": "once"}, "sk": {"S": "!"}}
    await rows.put(item, "attribute_not_exists(pk)")

    with pytest.raises(ConditionFailedError):
        await rows.put(item, "attribute_not_exists(pk)")
    with pytest.raises(ConditionFailedError):
        await rows.update("never", "!", "SET a = :a", values={":a": {"S": "a"}})

    await rows.delete("once", "!")
    await rows.put(item, "attribute_not_exists(pk)")


def test_a_table_is_made_once_and_expires_its_rows(moto_client: Any) -> None:
    create_table(moto_client, "twice")
    create_table(moto_client, "twice")

    expiry = moto_client.describe_time_to_live(TableName="twice")["TimeToLiveDescription"]
    assert expiry == {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}


def test_an_engine_that_makes_no_tables_says_why(unreachable: Any) -> None:
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - slow to import

    with pytest.raises(BotoCoreError):
        create_table(unreachable, "table")


class Stuck:
    """A client whose first calls hang until the test is over."""

    def __init__(self, hanging: int) -> None:
        self.calls = 0
        self._hanging = hanging
        self.over = threading.Event()

    def get_item(self, **_arguments: Any) -> dict[str, Any]:
        self.calls += 1
        if self.calls <= self._hanging:
            self.over.wait(10)
        return {"Item": {"sk": {"S": "there"}}}


async def short_call(client: Stuck) -> object:
    token = call_limit_s.set(0.02)
    try:
        return (await call(client.get_item))["Item"]
    except StoreError as error:
        return str(error)
    finally:
        client.over.set()
        call_limit_s.reset(token)


@pytest.mark.parametrize(
    ("hanging", "answer", "calls"),
    [
        (0, {"sk": {"S": "there"}}, 1),
        (1, {"sk": {"S": "there"}}, 2),
        (9, "DynamoDB did not answer in the little time there was.", 2),
    ],
)
async def test_where_time_is_short_a_call_that_hangs_is_made_once_more(
    hanging: int, answer: object, calls: int
) -> None:
    client = Stuck(hanging)

    assert await short_call(client) == answer
    assert client.calls == calls
