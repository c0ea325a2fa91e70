"""Secrets on moto's Secrets Manager, and on a small client where their reading fails."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from infra.dynamodb.client import make_aws_client
from infra.secrets import MAX_AGE_S, Secret, SecretError, make_secrets_client
from tests.infra.conftest import MovableClock


pytestmark = pytest.mark.anyio

REGION = "eu-west-1"


@pytest.fixture(scope="module")
def manager() -> Iterator[Any]:
    from moto import mock_aws  # noqa: PLC0415 - slow to import

    with mock_aws():
        client = make_aws_client("secretsmanager", REGION)
        yield client
        client.close()


class Client:
    """Gives the next of these values; raises those that are exceptions."""

    def __init__(self, *values: str | Exception) -> None:
        self._values = iter(values)
        self.made = 0
        self.asked: list[str] = []

    def make(self) -> "Client":
        self.made += 1
        return self

    def get_secret_value(self, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments["SecretId"])
        value = next(self._values)
        if isinstance(value, Exception):
            raise value
        return {"SecretString": value}


def denied() -> ClientError:
    told = {"Error": {"Code": "AccessDeniedException", "Message": "sk-secret detail"}}
    return ClientError(told, "GetSecretValue")


def secret_of(client: Client, clock: MovableClock | None = None) -> Secret:
    return Secret("key", client.make, field="OPENAI_API_KEY", clock=clock or MovableClock())


@pytest.mark.parametrize(
    "value",
    [
        "sk-1",
        " sk-1\n",
        json.dumps({"anything": "sk-1"}),
        json.dumps({"OPENAI_API_KEY": "sk-1", "other": "sk-2"}),
    ],
)
async def test_a_secret_is_text_or_a_field_of_an_object(manager: Any, value: str) -> None:
    made = manager.create_secret(Name=f"key-{hash(value)}", SecretString=value)

    for name in (made["Name"], made["ARN"]):
        assert await Secret(name, lambda: manager, field="OPENAI_API_KEY")() == "sk-1"


@pytest.mark.parametrize(
    "value", ["", "{}", '{"a": "1", "b": "2"}', '{"a": 1}', "{broken", '{"a": ""}']
)
async def test_what_is_no_text_is_an_error_that_does_not_show_it(value: str) -> None:
    with pytest.raises(SecretError) as raised:
        await secret_of(Client(value))()

    assert not value or value not in str(raised.value)


async def test_nothing_is_made_or_read_before_the_first_use() -> None:
    client = Client("sk-1")

    secret = secret_of(client)

    assert (client.made, client.asked) == (0, [])
    assert await secret() == "sk-1"
    assert (client.made, client.asked) == (1, ["key"])


async def test_a_secret_is_read_once_and_again_when_it_may_have_been_rotated() -> None:
    client, clock = Client("sk-1", "sk-2"), MovableClock()
    secret = secret_of(client, clock)

    first = [await secret(), await secret()]
    clock.now += MAX_AGE_S
    later = [await secret(), await secret()]

    assert (first, later) == (["sk-1", "sk-1"], ["sk-2", "sk-2"])
    assert (client.made, len(client.asked)) == (1, 2)


async def test_an_older_text_serves_while_a_new_one_cannot_be_read() -> None:
    client, clock = Client("sk-1", denied(), "sk-2"), MovableClock()
    secret = secret_of(client, clock)
    said = [await secret()]

    for _ in range(2):
        clock.now += MAX_AGE_S
        said.append(await secret())

    assert said == ["sk-1", "sk-1", "sk-2"]


async def test_a_secret_that_cannot_be_read_is_logged_by_its_code_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unreachable = ConnectTimeoutError(endpoint_url="https://somewhere")
    secret = secret_of(Client(denied(), unreachable, "sk-1"))

    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            with pytest.raises(SecretError):
                await secret()

    assert await secret() == "sk-1"
    codes = [
        vars(record)["aws_error"] for record in caplog.records if record.name == "infra.secrets"
    ]
    assert codes == ["AccessDeniedException", "ConnectTimeoutError"]
    assert "sk-" not in caplog.text


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("key", REGION),
        ("arn:aws:secretsmanager:us-east-2:123456789012:secret:key-AbCdEf", "us-east-2"),
    ],
)
def test_a_client_is_of_the_region_that_the_arn_names(name: str, region: str) -> None:
    client = make_secrets_client(name, REGION)

    assert client.meta.region_name == region
    client.close()


def test_a_secret_does_not_show_its_text() -> None:
    assert "sk-1" not in repr(secret_of(Client("sk-1")))
