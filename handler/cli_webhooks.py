"""The command `lambda-responses webhooks`: who is told of background responses, and what did not arrive."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import click

from channel.responses.webhooks import EVENT_TYPES
from infra.dynamodb.webhooks import WebhookTable
from infra.settings import Settings


_TABLE = click.option("--table", metavar="NAME", help="Default: TABLE_NAME.")
_REGION = click.option("--region", metavar="NAME", help="Default: AWS_REGION.")


@click.group()
def webhooks() -> None:
    """Create, list and delete webhook endpoints, and list what they did not take."""


@webhooks.command()
@click.option("--principal", metavar="NAME", required=True, help="Whose background responses.")
@click.option("--url", metavar="URL", required=True, help="What is posted to, by https.")
@click.option(
    "--events",
    metavar="TYPES",
    default=",".join(EVENT_TYPES.values()),
    help="By comma, such as response.completed,response.failed; default: all four.",
)
@click.option(
    "--allow-private", is_flag=True, help="For local development: http, private addresses."
)
@_TABLE
@_REGION
def create(
    principal: str,
    url: str,
    events: str,
    table: str | None,
    region: str | None,
    *,
    allow_private: bool,
) -> None:
    """Register an endpoint, and print its signing secret, this once."""
    event_types = [event_type.strip() for event_type in events.split(",")]
    with _open(table, region) as (rows, _):
        allow_private = allow_private or Settings.from_env().webhooks_allow_private
        endpoint = asyncio.run(
            rows.register(principal, url, event_types, allow_private=allow_private)
        )
    click.echo(endpoint.secret)
    said = f"The signing secret of {endpoint.id}, an endpoint of {principal}."
    click.echo(f"{said} It is not shown again: give it to the receiver.", err=True)


@webhooks.command(name="list")
@_TABLE
@_REGION
def list_all(table: str | None, region: str | None) -> None:
    """List the endpoints, the disabled ones too."""
    with _open(table, region) as (rows, _):
        found = asyncio.run(rows.all_endpoints())
    for each in found:
        state = "disabled" if each.is_disabled else "enabled"
        types = "all" if len(each.event_types) == len(EVENT_TYPES) else ",".join(each.event_types)
        day = time.strftime("%Y-%m-%d", time.gmtime(each.created_at))
        click.echo(f"{each.id}  {each.principal:24} {day}  {state:8}  {types}  {each.url}")
    if not found:
        said = "There are no webhook endpoints yet: lambda-responses webhooks create makes one."
        click.echo(said, err=True)


@webhooks.command()
@click.argument("endpoint_id", metavar="ID")
@_TABLE
@_REGION
def delete(endpoint_id: str, table: str | None, region: str | None) -> None:
    """Delete the endpoint with this id (see `list`)."""
    _change(table, region, endpoint_id, "Deleted", lambda rows: rows.delete(endpoint_id))


@webhooks.command()
@click.argument("endpoint_id", metavar="ID")
@_TABLE
@_REGION
def disable(endpoint_id: str, table: str | None, region: str | None) -> None:
    """Send nothing to the endpoint with this id, until it is enabled."""
    _change(table, region, endpoint_id, "Disabled", lambda rows: rows.disable(endpoint_id))


@webhooks.command()
@click.argument("endpoint_id", metavar="ID")
@_TABLE
@_REGION
def enable(endpoint_id: str, table: str | None, region: str | None) -> None:
    """Send to the endpoint with this id again."""

    def enabled(rows: WebhookTable) -> Coroutine[Any, Any, bool]:
        return rows.disable(endpoint_id, is_disabled=False)

    _change(table, region, endpoint_id, "Enabled", enabled)


@webhooks.command()
@click.option("--principal", metavar="NAME", help="Default: all that have endpoints.")
@_TABLE
@_REGION
def dead(principal: str | None, table: str | None, region: str | None) -> None:
    """List the events of the last week that an endpoint did not take, and why."""
    with _open(table, region) as (rows, _):
        found = asyncio.run(rows.dead_letters(principal))
    for each in found:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(each.at))
        tries = f"{each.attempts} attempt{'' if each.attempts == 1 else 's'}"
        click.echo(
            f"{at}  {each.principal:24} {each.endpoint_id}  {tries}  {each.reason}  {each.body}"
        )
    if not found:
        click.echo("There are no dead letters of the last week.", err=True)


@contextmanager
def _open(table: str | None, region: str | None) -> Iterator[tuple[WebhookTable, str]]:
    from handler.cli import open_table  # noqa: PLC0415 - which imports this module

    with open_table(table, region) as (client, name):
        yield WebhookTable(client, name), name


def _change(
    table: str | None,
    region: str | None,
    endpoint_id: str,
    done: str,
    change: Callable[[WebhookTable], Coroutine[Any, Any, bool]],
) -> None:
    with _open(table, region) as (rows, name):
        if not asyncio.run(change(rows)):
            msg = f"There is no webhook endpoint {endpoint_id!r} in the table {name}: `lambda-responses webhooks list` shows their ids."
            raise ValueError(msg)
    click.echo(f"{done} {endpoint_id}.", err=True)
