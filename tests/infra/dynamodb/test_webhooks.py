"""Webhook endpoints and dead letters in a table, on two engines."""

import re
from base64 import b64decode
from typing import Any

import pytest

from channel.ports import StoreError
from channel.responses.webhooks import DeadLetter, Endpoint
from infra.dynamodb.client import create_table
from infra.dynamodb.webhooks import DEAD_LETTER_S, MAX_ENDPOINTS, WebhookTable
from tests.infra.conftest import MovableClock


pytestmark = pytest.mark.anyio

URL = "https://example.com/hook"
ALL = ("response.completed", "response.failed", "response.incomplete", "response.cancelled")


@pytest.fixture(params=["moto", "dynalite"])
def client(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_client")


@pytest.fixture
def rows(client: Any, clock: MovableClock, request: pytest.FixtureRequest) -> WebhookTable:
    """Return a table of the test's own: listings are of all principals."""
    name = re.sub(r"[^a-z_]", "", request.node.originalname)[:255]
    create_table(client, name)
    clean(client, name)
    return WebhookTable(client, name, clock=clock)


def clean(client: Any, name: str) -> None:
    for item in client.scan(TableName=name)["Items"]:
        client.delete_item(TableName=name, Key={"pk": item["pk"], "sk": item["sk"]})


def letter(**fields: Any) -> DeadLetter:
    made: dict[str, Any] = {
        "principal": "acme",
        "endpoint_id": "we_1",
        "event_id": "evt_1",
        "event_type": "response.failed",
        "body": '{"id":"evt_1"}',
        "reason": "HTTP 500",
        "attempts": 5,
        "at": 1_800_000_000.25,
    }
    return DeadLetter(**{**made, **fields})


async def test_a_registered_endpoint_is_its_principals(
    rows: WebhookTable, clock: MovableClock
) -> None:
    made = await rows.register("acme", URL)

    assert made == Endpoint(
        id=made.id,
        principal="acme",
        url=URL,
        secret=made.secret,
        event_types=ALL,
        created_at=int(clock.now),
    )
    assert re.fullmatch(r"we_[0-9a-f]{24}", made.id)
    assert len(b64decode(made.secret.removeprefix("whsec_"))) == 32
    assert await rows.endpoints("acme") == [made]
    for other in ("acm", "acme2", "ACME", "acme#", "acme%23", "other", ""):
        assert await rows.endpoints(other) == []


async def test_principals_never_meet_whatever_their_names(rows: WebhookTable) -> None:
    names = ["a", "a#b", "a%23b", "a@b", "a.b", "ä", "a|b", "#", "dead#a", "hook#a"]

    made = {name: await rows.register(name, URL) for name in names}
    for name in names:
        await rows.bury(letter(principal=name))

    for name in names:
        assert await rows.endpoints(name) == [made[name]]
        assert await rows.dead_letters(name) == [letter(principal=name)]


async def test_all_are_listed_by_principal_oldest_first(
    rows: WebhookTable, clock: MovableClock
) -> None:
    made = []
    for principal in ("b", "a", "b", "a"):
        made.append(await rows.register(principal, URL))
        clock.now += 1

    assert await rows.all_endpoints() == [made[1], made[3], made[0], made[2]]
    assert await rows.endpoints("b") == [made[0], made[2]]


async def test_a_choice_of_events_is_kept_once_each(rows: WebhookTable) -> None:
    chosen = ["response.failed", "response.completed", "response.failed"]

    await rows.register("acme", URL, chosen)

    (found,) = await rows.endpoints("acme")
    assert found.event_types == ("response.completed", "response.failed")


@pytest.mark.parametrize(
    ("principal", "url", "event_types", "reason"),
    [
        ("", URL, ALL, "cannot be a principal"),
        ("a b", URL, ALL, "cannot be a principal"),
        ("a\n", URL, ALL, "cannot be a principal"),
        ("a" * 129, URL, ALL, "cannot be a principal"),
        ("acme/ann", URL, ALL, "no slash"),
        ("acme", "http://example.com/", ALL, "begins with https://"),
        ("acme", "https://169.254.169.254/", ALL, "not a public address"),
        ("acme", "https://example.com/".ljust(2049, "a"), ALL, "at most 2048 characters"),
        ("acme", URL, [], "The events of an endpoint are of response.completed, response.failed"),
        ("acme", URL, ["response.completed", "batch.completed"], "The events of an endpoint"),
    ],
)
async def test_what_is_not_allowed_is_refused_with_its_reason_and_stored_nowhere(
    rows: WebhookTable, principal: str, url: str, event_types: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        await rows.register(principal, url, event_types)

    assert await rows.all_endpoints() == []


async def test_local_development_may_register_what_is_private(rows: WebhookTable) -> None:
    await rows.register("acme", "http://127.0.0.1:9000/", allow_private=True)

    (found,) = await rows.endpoints("acme")
    assert found.url == "http://127.0.0.1:9000/"


async def test_a_principal_has_so_many_endpoints_and_others_have_theirs(
    rows: WebhookTable,
) -> None:
    made = [await rows.register("acme", URL) for _ in range(MAX_ENDPOINTS)]

    with pytest.raises(ValueError, match="has 10 webhook endpoints already"):
        await rows.register("acme", URL)
    await rows.register("other", URL)
    await rows.delete(made[0].id)
    await rows.register("acme", URL)

    assert len(await rows.endpoints("acme")) == MAX_ENDPOINTS


async def test_a_deleted_endpoint_is_gone(rows: WebhookTable) -> None:
    gone, stays = await rows.register("acme", URL), await rows.register("acme", URL)

    assert await rows.delete(gone.id) is True
    assert await rows.delete(gone.id) is False
    assert await rows.all_endpoints() == [stays]


async def test_a_disabled_endpoint_is_kept_and_comes_back(rows: WebhookTable) -> None:
    made = await rows.register("acme", URL)

    assert await rows.disable(made.id) is True
    assert [each.is_disabled for each in await rows.endpoints("acme")] == [True]
    assert await rows.disable(made.id, is_disabled=False) is True
    assert await rows.endpoints("acme") == [made]


@pytest.mark.parametrize("endpoint_id", ["", "we_", "we_" + "0" * 24, "!", "we_x#y", "../x"])
async def test_only_an_endpoint_that_exists_is_changed(
    rows: WebhookTable, endpoint_id: str
) -> None:
    await rows.register("acme", URL)

    assert await rows.delete(endpoint_id) is False
    assert await rows.disable(endpoint_id) is False


async def test_an_endpoint_whose_creation_was_cut_off_can_be_deleted(
    rows: WebhookTable, client: Any
) -> None:
    made = await rows.register("acme", URL)
    client.delete_item(
        TableName=rows._table._name, Key={"pk": {"S": "hook#acme"}, "sk": {"S": made.id}}
    )

    assert await rows.all_endpoints() == []
    assert await rows.disable(made.id) is False
    assert await rows.delete(made.id) is True
    assert await rows.delete(made.id) is False


async def test_dead_letters_are_listed_oldest_first_and_none_hides_another(
    rows: WebhookTable,
) -> None:
    letters = [
        letter(),
        letter(endpoint_id="we_2"),
        letter(event_id="evt_2", reason="TimeoutError", attempts=0),
        letter(at=1_800_000_001.5),
    ]
    for each in reversed(letters):
        await rows.bury(each)

    found = await rows.dead_letters("acme")

    assert sorted(found[:3], key=repr) == sorted(letters[:3], key=repr)
    assert found[3] == letters[3]
    assert await rows.endpoints("acme") == []


async def test_the_dead_letters_of_all_are_those_of_who_has_endpoints(
    rows: WebhookTable,
) -> None:
    await rows.register("acme", URL)
    await rows.register("other", URL)
    theirs = letter(principal="other", at=1_799_999_999.0)
    for each in (letter(), theirs, letter(principal="left")):
        await rows.bury(each)

    assert await rows.dead_letters() == [theirs, letter()]
    assert await rows.dead_letters("left") == [letter(principal="left")]


async def test_a_dead_letter_is_kept_for_a_week(
    rows: WebhookTable, client: Any, clock: MovableClock
) -> None:
    await rows.bury(letter())

    (item,) = client.scan(TableName=rows._table._name)["Items"]
    assert item["ttl"] == {"N": str(1_800_000_000 + DEAD_LETTER_S)}
    clock.now += DEAD_LETTER_S
    assert await rows.dead_letters("acme") == [letter()]
    clock.now += 1
    assert await rows.dead_letters("acme") == []


async def test_what_the_function_writes_is_apart_from_what_it_must_not_write(
    rows: WebhookTable, client: Any
) -> None:
    """A policy can tell rows apart by the beginning of their partition only."""
    await rows.register("acme", URL)
    await rows.bury(letter())

    items = client.scan(TableName=rows._table._name)["Items"]

    assert sorted(item["pk"]["S"] for item in items) == ["cfg#hooks", "dead#acme", "hook#acme"]


async def test_a_table_that_fails_is_a_store_error(moto_client: Any) -> None:
    missing = WebhookTable(moto_client, "no-such-table")

    for call in (
        missing.register("acme", URL),
        missing.endpoints("acme"),
        missing.all_endpoints(),
        missing.delete("we_" + "0" * 24),
        missing.disable("we_" + "0" * 24),
        missing.bury(letter()),
        missing.dead_letters(),
    ):
        with pytest.raises(StoreError):
            await call
