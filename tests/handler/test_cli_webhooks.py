"""The command `webhooks`: endpoints in a table, and one sentence for what is wrong."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from channel.responses.webhooks import DeadLetter, Endpoint
from handler.cli import main
from infra.dynamodb.client import create_table, make_client
from infra.dynamodb.webhooks import WebhookTable
from infra.settings import LOCAL_TABLE


Run = Callable[..., Result]

URL = "https://example.com/hook"


@pytest.fixture
def run(endpoint: str) -> Run:
    environ = {"DYNAMODB_ENDPOINT": endpoint, "TABLE_NAME": "", "AWS_REGION": "us-east-1"}

    def run(*arguments: str, **more: str) -> Result:
        return CliRunner().invoke(main, ["webhooks", *arguments], env={**environ, **more})

    return run


@pytest.fixture
def rows(endpoint: str) -> Iterator[WebhookTable]:
    client = make_client("us-east-1", endpoint)
    yield WebhookTable(client, LOCAL_TABLE)
    client.close()


def endpoints(rows: WebhookTable, principal: str) -> list[Endpoint]:
    return asyncio.run(rows.endpoints(principal))


def test_nothing_is_listed_where_there_is_nothing(run: Run, endpoint: str) -> None:
    client = make_client("us-east-1", endpoint)
    create_table(client, "empty")
    client.close()

    listed, dead = run("list", "--table", "empty"), run("dead", "--table", "empty")

    assert (listed.exit_code, listed.stdout) == (dead.exit_code, dead.stdout) == (0, "")
    assert listed.stderr.startswith("There are no webhook endpoints yet")
    assert dead.stderr == "There are no dead letters of the last week.\n"


def test_a_created_endpoint_shows_its_secret_once(run: Run, rows: WebhookTable) -> None:
    created = run("create", "--principal", "acme", "--url", URL)

    (made,) = endpoints(rows, "acme")
    assert (created.exit_code, created.stdout) == (0, f"{made.secret}\n")
    assert created.stderr == (
        f"The signing secret of {made.id}, an endpoint of acme. "
        "It is not shown again: give it to the receiver.\n"
    )
    listed = run("list").stdout
    assert re.search(rf"{made.id}  acme +\d{{4}}-\d\d-\d\d  enabled   all  {URL}", listed)
    assert made.secret not in listed


def test_an_endpoint_is_of_chosen_events_and_may_be_private(run: Run, rows: WebhookTable) -> None:
    chosen = "response.failed, response.completed"
    private = ["--url", "http://127.0.0.1:9000/", "--allow-private"]

    assert run("create", "--principal", "own", *private, "--events", chosen).exit_code == 0

    (made,) = endpoints(rows, "own")
    assert made.event_types == ("response.completed", "response.failed")
    assert f"response.completed,response.failed  {made.url}" in run("list").stdout


def test_an_endpoint_is_disabled_enabled_and_deleted(run: Run, rows: WebhookTable) -> None:
    run("create", "--principal", "left", "--url", URL)
    (made,) = endpoints(rows, "left")

    assert run("disable", made.id).stderr == f"Disabled {made.id}.\n"
    assert re.search(rf"{made.id} .* disabled ", run("list").stdout)
    assert run("enable", made.id).stderr == f"Enabled {made.id}.\n"
    assert re.search(rf"{made.id} .* enabled ", run("list").stdout)
    assert run("delete", made.id).stderr == f"Deleted {made.id}.\n"
    assert made.id not in run("list").stdout


def test_dead_letters_say_what_where_and_why(run: Run, rows: WebhookTable) -> None:
    run("create", "--principal", "dead", "--url", URL)
    at = int(time.time())
    for attempts, principal in ((5, "dead"), (1, "gone")):
        letter = DeadLetter(
            principal=principal,
            endpoint_id="we_1",
            event_id="evt_1",
            event_type="response.failed",
            body='{"id":"evt_1"}',
            reason="HTTP 500",
            attempts=attempts,
            at=at,
        )
        asyncio.run(rows.bury(letter))

    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    said = '  {:24} we_1  {}  HTTP 500  {{"id":"evt_1"}}\n'
    assert run("dead").stdout == when + said.format("dead", "5 attempts")
    assert run("dead", "--principal", "gone").stdout == when + said.format("gone", "1 attempt")


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (
            ["list"],
            {"DYNAMODB_ENDPOINT": ""},
            "Which table? Give --table NAME, or set TABLE_NAME (beside `make run`: DYNAMODB_ENDPOINT).",
        ),
        (
            ["create", "--principal", "acme", "--url", "http://example.com/"],
            {},
            "A URL to post to begins with https://.",
        ),
        (
            ["create", "--principal", "acme", "--url", "https://10.0.0.1/"],
            {},
            "10.0.0.1 is not a public address.",
        ),
        (
            ["create", "--principal", "acme", "--url", URL, "--events", "completed"],
            {},
            "The events of an endpoint are of response.completed, response.failed, response.incomplete, response.cancelled.",
        ),
        *[
            (
                [command, "we_0"],
                {},
                "There is no webhook endpoint 'we_0' in the table lambda-responses: `lambda-responses webhooks list` shows their ids.",
            )
            for command in ("delete", "disable", "enable")
        ],
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    run: Run, arguments: list[str], environ: dict[str, str], said: str
) -> None:
    result = run(*arguments, **environ)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{said}\n")


def test_a_table_that_is_not_there_is_said_with_its_cause(run: Run) -> None:
    result = run("list", "--table", "elsewhere")

    assert result.exit_code == 2
    assert "ResourceNotFoundException" in result.stderr
