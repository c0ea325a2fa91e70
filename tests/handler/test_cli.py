"""The command: keys in a table, and one sentence for what is wrong."""

import asyncio
import re
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from channel.auth import Principal
from handler.cli import main
from infra.api_keys import DynamoDBAuthenticator
from infra.dynamodb.client import make_client
from infra.settings import LOCAL_TABLE


Run = Callable[..., Result]


@pytest.fixture
def run(endpoint: str) -> Run:
    environ = {"DYNAMODB_ENDPOINT": endpoint, "TABLE_NAME": "", "AWS_REGION": "us-east-1"}

    def run(*arguments: str, **more: str) -> Result:
        return CliRunner().invoke(main, arguments, env={**environ, **more})

    return run


def owner_of(key: str, endpoint: str) -> Principal | None:
    client = make_client("us-east-1", endpoint)
    try:
        return asyncio.run(DynamoDBAuthenticator(client, LOCAL_TABLE).authenticate(key))
    finally:
        client.close()


def test_a_created_key_is_printed_once_and_gets_in(run: Run, endpoint: str) -> None:
    created = run("keys", "create", "--principal", "acme", "--delegate")
    key = created.stdout.strip()

    assert created.exit_code == 0
    assert owner_of(key, endpoint) == Principal("acme", is_delegate=True)
    assert key not in run("keys", "list").output
    assert created.stderr.startswith("The key of acme. It is not shown again")


def test_a_key_without_a_principal_is_a_tenant_of_its_own(run: Run, endpoint: str) -> None:
    owners = [owner_of(run("keys", "create").stdout.strip(), endpoint) for _ in range(2)]

    names = {owner.name for owner in owners if owner and not owner.is_delegate}
    assert len(names) == 2
    assert all(re.fullmatch(r"tenant-[0-9a-f]{8}", name) for name in names)


def test_a_revoked_key_is_listed_and_gets_in_no_more(run: Run, endpoint: str) -> None:
    key = run("keys", "create", "--principal", "left", "--expires-days", "7").stdout.strip()
    (listed,) = [line for line in run("keys", "list").stdout.splitlines() if " left " in line]
    key_id = listed.split()[0]

    revoked = run("keys", "revoke", key_id)

    (after,) = [line for line in run("keys", "list").stdout.splitlines() if " left " in line]
    assert (revoked.exit_code, revoked.stderr) == (0, f"Revoked {key_id}.\n")
    assert re.search(r"valid until \d{4}-\d\d-\d\d$", listed)
    assert re.search(r"revoked \d{4}-\d\d-\d\d$", after)
    assert owner_of(key, endpoint) is None


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (
            ["keys", "list"],
            {"DYNAMODB_ENDPOINT": ""},
            "Which table? Give --table NAME, or set TABLE_NAME (beside `make run`: DYNAMODB_ENDPOINT).",
        ),
        (
            ["keys", "list", "--table", "my table"],
            {},
            "The setting TABLE_NAME is 'my table', but it must be a DynamoDB table name (3 to 255 letters, digits, dots, dashes and underscores).",
        ),
        (
            ["keys", "revoke", "0123456789abcdef"],
            {},
            "There is no key '0123456789abcdef' in the table lambda-responses: `lambda-responses keys list` shows their ids.",
        ),
        (
            ["keys", "create", "--principal", "a/b"],
            {},
            "'a/b' cannot be a principal: it takes 1 to 128 letters, digits and ._@-, a letter or digit first.",
        ),
        (
            ["run", "--port", "http"],
            {},
            "The setting PORT is 'http', but it must be a whole number from 0 to 65535.",
        ),
        (
            ["run", "--port", "0", "--agent", "nowhere:agent"],
            {},
            "The setting AGENT is 'nowhere:agent', but there is no module 'nowhere' on the Python path.",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    run: Run, arguments: list[str], environ: dict[str, str], said: str
) -> None:
    result = run(*arguments, **environ)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{said}\n")


def test_a_table_that_is_not_there_is_said_with_its_cause(run: Run) -> None:
    result = run("keys", "list", "--table", "elsewhere")

    assert result.exit_code == 2
    assert result.stderr.startswith("The table elsewhere could not be used: An error occurred")
    assert "ResourceNotFoundException" in result.stderr
