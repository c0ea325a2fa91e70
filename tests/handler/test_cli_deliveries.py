"""The command `deliveries`: replies that did not arrive, and one sentence for what is wrong."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result

from channel.delivery import Delivery, Undelivered
from channel.isolation import IsolationKeys
from channel.targets import ChannelIdentity
from handler.cli import main
from infra.dynamodb.client import create_table, make_client
from infra.dynamodb.undelivered import DynamoDBUndeliveredStore
from infra.dynamodb.webhooks import WebhookTable
from infra.settings import LOCAL_TABLE
from tests.infra import engines
from tests.infra.test_invoke import Lambda, aws


__all__ = ["aws"]  # a fixture

Run = Callable[..., Result]

FIRST, SECOND = f"dlv_{1:032x}", f"dlv_{2:032x}"
UNKNOWN = "There is no undelivered reply '{}' of {} in the table lambda-responses: `lambda-responses deliveries list` shows their ids."


@pytest.fixture
def run(endpoint: str) -> Run:
    environ = {"DYNAMODB_ENDPOINT": endpoint, "TABLE_NAME": "", "AWS_REGION": "us-east-1"}

    def run(*arguments: str, **more: str) -> Result:
        return CliRunner().invoke(main, ["deliveries", *arguments], env={**environ, **more})

    return run


@pytest.fixture
def store(endpoint: str) -> Iterator[DynamoDBUndeliveredStore]:
    client = make_client("us-east-1", endpoint)
    yield DynamoDBUndeliveredStore(client, LOCAL_TABLE)
    client.close()


def keep(
    store: DynamoDBUndeliveredStore,
    principal: str,
    delivery_id: str = FIRST,
    *,
    ago_s: float = 0,
    attempts: int = 5,
    is_dead: bool = True,
    to: ChannelIdentity = ChannelIdentity("telegram", "42:7"),  # noqa: B008 - frozen
) -> None:
    delivery = Delivery(
        id=delivery_id,
        response_id="resp_1",
        status="completed",
        text="Hello,\nZoë!\x1b[2J",
        channel="responses",
        principal=principal,
        keys=IsolationKeys(principal),
        created_at=0,
    )
    kept = Undelivered(
        delivery=delivery,
        identity=to,
        reason="HTTP 500",
        attempts=attempts,
        at=time.time() - ago_s,
        is_dead=is_dead,
    )
    asyncio.run(store.keep(kept))


def kept_ids(store: DynamoDBUndeliveredStore, principal: str) -> list[str]:
    return [each.delivery.id for each in asyncio.run(store.all_of(principal))]


def test_nothing_is_listed_where_there_is_nothing(run: Run, endpoint: str) -> None:
    client = make_client("us-east-1", endpoint)
    create_table(client, "empty")
    client.close()

    listed = run("list", "--principal", "acme", "--table", "empty")

    assert (listed.exit_code, listed.stdout) == (0, "")
    assert listed.stderr == "There are no undelivered replies of acme.\n"


def test_undelivered_replies_say_where_how_often_when_and_why(
    run: Run, store: DynamoDBUndeliveredStore
) -> None:
    keep(store, "told", SECOND, ago_s=60, attempts=1, is_dead=False)
    keep(store, "told", FIRST, ago_s=2 * 24 * 3600 + 5)
    keep(store, "another")

    listed = run("list", "--principal", "told")

    assert listed.stdout.splitlines() == [
        f"{FIRST}  {'telegram:42:7':32}  5 attempts  2 d ago  dead  HTTP 500",
        f"{SECOND}  {'telegram:42:7':32}  1 attempt  1 min ago  being tried  HTTP 500",
    ]


def test_a_delivery_that_nobody_can_be_at_work_on_any_more_was_interrupted(
    run: Run, store: DynamoDBUndeliveredStore
) -> None:
    keep(store, "cut", ago_s=1300, attempts=0, is_dead=False)

    assert "  0 attempts  21 min ago  interrupted  " in run("list", "--principal", "cut").stdout


@pytest.mark.parametrize(
    ("ago_s", "said"),
    [(-60, "0 s"), (59 * 60, r"59 min"), (3600, "1 h"), (23 * 3600, "23 h"), (86_400, "1 d")],
)
def test_an_age_is_in_the_largest_unit_that_it_fills(
    run: Run, store: DynamoDBUndeliveredStore, ago_s: float, said: str
) -> None:
    keep(store, "aged", ago_s=ago_s)

    assert f"  {said} ago  " in run("list", "--principal", "aged").stdout


def test_a_text_is_shown_where_it_is_asked_for_and_commands_no_terminal(
    run: Run, store: DynamoDBUndeliveredStore
) -> None:
    keep(store, "wordy")

    assert "Zoë" not in run("list", "--principal", "wordy").stdout
    _, text = run("list", "--principal", "wordy", "--text").stdout.splitlines()

    assert text == r"  'Hello,\nZoë!\x1b[2J'"


def test_dropped_replies_are_gone(run: Run, store: DynamoDBUndeliveredStore) -> None:
    keep(store, "left", FIRST)
    keep(store, "left", SECOND)

    dropped = run("drop", FIRST, SECOND, "--principal", "left")

    assert (dropped.exit_code, dropped.stdout) == (0, "")
    assert dropped.stderr == f"Dropped {FIRST}.\nDropped {SECOND}.\n"
    assert kept_ids(store, "left") == []


def test_where_one_is_unknown_nothing_is_done(
    run: Run, store: DynamoDBUndeliveredStore, aws: Lambda
) -> None:
    keep(store, "some")

    for arguments in (["drop"], ["retry", "--function", "agent:live"]):
        result = run(*arguments, FIRST, SECOND, "--principal", "some", LAMBDA_ENDPOINT=aws.endpoint)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"{UNKNOWN.format(SECOND, 'some')}\n"

    assert kept_ids(store, "some") == [FIRST]
    assert aws.asked == []


def test_another_principals_is_unknown(run: Run, store: DynamoDBUndeliveredStore) -> None:
    keep(store, "owner")

    result = run("drop", FIRST, "--principal", "thief")

    assert (result.exit_code, result.stderr) == (2, f"{UNKNOWN.format(FIRST, 'thief')}\n")
    assert kept_ids(store, "owner") == [FIRST]


def test_a_retry_is_a_job_of_the_deployed_function_and_changes_nothing_by_itself(
    run: Run, store: DynamoDBUndeliveredStore, aws: Lambda
) -> None:
    keep(store, "again", FIRST)
    keep(store, "again", SECOND)

    result = run(
        *("retry", FIRST, SECOND, "--principal", "again", "--function", "agent:live"),
        LAMBDA_ENDPOINT=aws.endpoint,
    )

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"agent:live tries {FIRST} again.\nagent:live tries {SECOND} again.\n"
    assert [(path, kind) for path, kind, _ in aws.asked] == [
        ("/2015-03-31/functions/agent%3Alive/invocations", "Event")
    ] * 2
    assert [json.loads(body) for _, _, body in aws.asked] == [
        {"kind": "delivery.retry", "payload": {"principal": "again", "id": each}}
        for each in (FIRST, SECOND)
    ]
    assert sorted(kept_ids(store, "again")) == [FIRST, SECOND]


def test_a_function_that_is_not_there_is_said_with_its_cause(
    run: Run, store: DynamoDBUndeliveredStore, aws: Lambda
) -> None:
    keep(store, "lost")
    aws.refuse(404, "ResourceNotFoundException")

    result = run(
        *("retry", FIRST, "--principal", "lost", "--function", "elsewhere"),
        LAMBDA_ENDPOINT=aws.endpoint,
    )

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("The function elsewhere could not be invoked: ")
    assert "ResourceNotFoundException" in result.stderr


@contextmanager
def receiving(status: int) -> Iterator[tuple[str, list[bytes]]]:
    """Reply to each post with a status; give the URL, and what was posted."""
    posted: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_given: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/replies", posted
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "outcome"), [(204, "arrived"), (410, "not arrived")])
def test_without_a_function_it_is_tried_here(
    run: Run, store: DynamoDBUndeliveredStore, endpoint: str, status: int, outcome: str
) -> None:
    client = make_client("us-east-1", endpoint)
    hooks = WebhookTable(client, LOCAL_TABLE)
    with receiving(status) as (url, posted):
        hook = asyncio.run(hooks.register("here", url, allow_private=True))
        keep(store, "here", to=ChannelIdentity("webhook", hook.id))

        tried = run("retry", FIRST, "--principal", "here", PUSH_CHANNELS="webhook")

    client.close()
    assert (tried.exit_code, tried.stderr.splitlines()[-1]) == (0, f"{FIRST} has {outcome}.")
    assert len(posted) == 1
    assert kept_ids(store, "here") == ([] if status == 204 else [FIRST])


def test_without_a_function_and_without_channels_nothing_can_deliver(
    run: Run, store: DynamoDBUndeliveredStore
) -> None:
    keep(store, "nowhere")

    tried = run("retry", FIRST, "--principal", "nowhere", PUSH_CHANNELS="")

    assert (tried.exit_code, tried.stdout) == (2, "")
    assert "give --function NAME, or set PUSH_CHANNELS" in tried.stderr


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["list"], "--principal"),
        (["drop", "--principal", "acme"], "ID"),
        (["retry", "--principal", "acme"], "ID"),
    ],
)
def test_what_is_missing_is_named(run: Run, arguments: list[str], missing: str) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert re.search(rf"Missing (option|argument) '{missing}", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (
            [],
            {"DYNAMODB_ENDPOINT": ""},
            "Which table? Give --table NAME, or set TABLE_NAME (beside `make run`: DYNAMODB_ENDPOINT).\n",
        ),
        (["--table", "elsewhere"], {}, "ResourceNotFoundException"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(
    run: Run, arguments: list[str], environ: dict[str, str], said: str
) -> None:
    result = run("list", "--principal", "acme", *arguments, **environ)

    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_the_zip_has_none_of_it() -> None:
    makefile = (engines.ROOT / "Makefile").read_text()

    found = re.search(r"^LOCAL_ONLY := (.*)$", makefile, re.MULTILINE)

    assert found is not None
    assert "cli_deliveries.py" in found[1].split()
