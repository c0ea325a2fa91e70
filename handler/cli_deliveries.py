"""The command `lambda-responses deliveries`: replies that did not arrive at another channel."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click
from msgspec.structs import replace

from channel.delivering import Deliveries
from channel.delivery import Undelivered, UndeliveredStore, token_of
from channel.ports import Job, StoreError
from channel.pushing import RETRY
from infra.dynamodb.undelivered import DynamoDBUndeliveredStore
from infra.invoke import SelfInvoker, make_lambda_client
from infra.settings import Settings


_AT_WORK_S: Final = 20 * 60.0  # longer than Lambda keeps a job, and a worker tries
_UNITS: Final = ((24 * 3600, "d"), (3600, "h"), (60, "min"))
_PRINCIPAL = click.option("--principal", metavar="NAME", required=True, help="Whose replies.")
_IDS = click.argument("ids", metavar="ID...", nargs=-1, required=True)
_TABLE = click.option("--table", metavar="NAME", help="Default: TABLE_NAME.")
_REGION = click.option("--region", metavar="NAME", help="Default: AWS_REGION.")


@click.group()
def deliveries() -> None:
    """List, retry and drop the replies of the last week that did not arrive."""


@deliveries.command(name="list")
@_PRINCIPAL
@click.option("--text", "with_text", is_flag=True, help="The replies, too.")
@_TABLE
@_REGION
def list_all(principal: str, table: str | None, region: str | None, *, with_text: bool) -> None:
    """List what did not arrive: where, after how many attempts, how long ago, and why."""
    with _open(table, region) as (store, _):
        found = asyncio.run(_all_of(store, principal))
    now = time.time()
    for each in found:
        click.echo(_line(each, now))
        if with_text:
            # As a literal: the text of a model does not command a terminal.
            click.echo(f"  {each.delivery.text!r}")
    if not found:
        click.echo(f"There are no undelivered replies of {principal}.", err=True)


@deliveries.command()
@_IDS
@_PRINCIPAL
@click.option(
    "--function",
    metavar="NAME",
    help="The deployed one, as NAME:ALIAS, or its ARN. Default: this process, with its PUSH_CHANNELS.",
)
@_TABLE
@_REGION
def retry(
    ids: tuple[str, ...],
    principal: str,
    function: str | None,
    table: str | None,
    region: str | None,
) -> None:
    """Have the deployed function try the deliveries with these ids again, or try them here (see `list`)."""
    with _open(table, region) as (store, name):
        asyncio.run(_require(store, name, principal, ids))
        settings = Settings.from_env(AWS_REGION=region, TABLE_NAME=name)
        if function is None:
            _retry_here(settings, store, principal, ids)
            return
        jobs = SelfInvoker(
            lambda: make_lambda_client(settings.region, settings.lambda_endpoint), function
        )
        for each in ids:
            try:
                asyncio.run(jobs.start(Job(RETRY, {"principal": principal, "id": each})))
            except StoreError as error:
                msg = f"The function {function} could not be invoked: {error.__cause__ or error}"
                raise ValueError(msg) from error
            click.echo(f"{function} tries {each} again.", err=True)


def _retry_here(
    settings: Settings, store: UndeliveredStore, principal: str, ids: Sequence[str]
) -> None:
    from handler.app import delivery_options  # noqa: PLC0415 - only here
    from infra.dynamodb.client import make_client  # noqa: PLC0415 - as above

    if settings.dynamodb_endpoint is not None:
        settings = replace(settings, webhooks_allow_private=True)  # as beside `make run`
    client = make_client(settings.region, settings.dynamodb_endpoint)
    options = delivery_options(settings, client) if settings.push_channels else None
    if options is None:
        msg = "Nothing here can deliver: give --function NAME, or set PUSH_CHANNELS as the server has it."
        raise ValueError(msg)
    here = Deliveries((), options)
    try:
        for each in ids:
            asyncio.run(here.pushing.retry({"principal": principal, "id": each}, None))
            arrived = asyncio.run(_is_gone(store, principal, each))
            click.echo(f"{each} has {'arrived' if arrived else 'not arrived'}.", err=True)
    finally:
        client.close()


async def _is_gone(store: UndeliveredStore, principal: str, delivery_id: str) -> bool:
    return await store.get(principal, delivery_id) is None


@deliveries.command()
@_IDS
@_PRINCIPAL
@_TABLE
@_REGION
def drop(ids: tuple[str, ...], principal: str, table: str | None, region: str | None) -> None:
    """Forget the deliveries with these ids (see `list`)."""
    with _open(table, region) as (store, name):
        asyncio.run(_require(store, name, principal, ids))
        for each in ids:
            asyncio.run(store.drop(principal, each))
            click.echo(f"Dropped {each}.", err=True)


@contextmanager
def _open(table: str | None, region: str | None) -> Iterator[tuple[UndeliveredStore, str]]:
    from handler.cli import open_table  # noqa: PLC0415 - which imports this module

    with open_table(table, region) as (client, name):
        yield DynamoDBUndeliveredStore(client, name), name


async def _all_of(store: UndeliveredStore, principal: str) -> Sequence[Undelivered]:
    return await store.all_of(principal)


async def _require(store: UndeliveredStore, table: str, principal: str, ids: Sequence[str]) -> None:
    """Raise `ValueError` for the first id that there is none of: then nothing is done."""
    for each in ids:
        if await store.get(principal, each) is None:
            msg = f"There is no undelivered reply {each!r} of {principal} in the table {table}: `lambda-responses deliveries list` shows their ids."
            raise ValueError(msg)


def _line(undelivered: Undelivered, now: float) -> str:
    attempts = f"{undelivered.attempts} attempt{'' if undelivered.attempts == 1 else 's'}"
    return "  ".join(
        [
            undelivered.delivery.id,
            f"{_printable(token_of(undelivered.identity)):32}",
            attempts,
            f"{_age(now - undelivered.at)} ago",
            _state(undelivered, now),
            undelivered.reason,
        ]
    )


def _state(undelivered: Undelivered, now: float) -> str:
    """Return what becomes of it: nothing any more, where nobody can be at work on it still."""
    if undelivered.is_dead:
        return "dead"
    return "being tried" if now - undelivered.at < _AT_WORK_S else "interrupted"


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _age(age_s: float) -> str:
    for unit_s, unit in _UNITS:
        if age_s >= unit_s:
            return f"{age_s // unit_s:.0f} {unit}"
    return f"{max(age_s, 0):.0f} s"
