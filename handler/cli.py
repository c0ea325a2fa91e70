"""The command `lambda-responses`: the local server, and the API keys of a deployed table."""

import asyncio
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import click
from botocore.exceptions import NoRegionError

from channel.ports import StoreError
from handler.cli_deliveries import deliveries
from handler.cli_new import new
from handler.cli_webhooks import webhooks
from infra import api_keys
from infra.dynamodb.client import make_client
from infra.settings import Settings, SettingsError


class CommandError(click.ClickException):
    """One sentence, and exit code 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence alone."""
        click.echo(self.format_message(), file=file or sys.stderr)


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what is wrong with a setting into its sentence."""
    try:
        yield
    except SettingsError as error:
        raise CommandError(str(error)) from error


_DAY_S: Final = 24 * 3600
_TABLE = click.option("--table", metavar="NAME", help="Default: TABLE_NAME.")
_REGION = click.option("--region", metavar="NAME", help="Default: AWS_REGION.")
_COUNT: Final = click.IntRange(1)
_PORT = click.option("--port", metavar="N", help="Of 127.0.0.1; 0 = any free one.")


@click.group()
@click.version_option(package_name="lambda-responses")
def main() -> None:
    """Your Python agent behind the OpenAI Responses API, on AWS Lambda."""


@main.command()
@_PORT
@click.option("--agent", metavar="MODULE:ATTRIBUTE", help="Default: AGENT, or the demo agent.")
def run(port: str | None, agent: str | None) -> None:
    """Serve locally, with an embedded table and two development keys."""
    from handler.local import serve  # noqa: PLC0415 - the other commands need no server

    sys.path.insert(0, "")  # an agent in the current folder, as with `python -m`
    with sentences():
        serve(Settings.from_env(PORT=port, AGENT=agent))


@main.command(context_settings={"ignore_unknown_options": True})
@_PORT
@click.argument("sam_arguments", nargs=-1, type=click.UNPROCESSED)
def start_api(port: str | None, sam_arguments: tuple[str, ...]) -> None:
    """Build, and serve by `sam local start-api` with a table; further arguments go to sam."""
    from handler.start_api import start_api as serve  # noqa: PLC0415 - see above

    with sentences():
        settings = Settings.from_env(PORT=port or "3000")
        sys.exit(serve(settings, sam_arguments))


@main.command()
@_PORT
@click.option("--handler", default="handler.buffered.handler", help="Or an ASGI app of your own.")
@click.option("--agent", metavar="MODULE:ATTRIBUTE", help="Default: AGENT, or the demo agent.")
@click.option("--mode", type=click.Choice(["RESPONSE_STREAM", "BUFFERED"]), help="The URL's.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1, 900), default=300, metavar="S")
@click.option("--memory", "memory_mb", type=_COUNT, default=512, metavar="MB", help="Only told.")
@click.option("--environments", type=_COUNT, default=10, metavar="N", help="At most; then 429.")
@click.option("--concurrency", type=_COUNT, default=1, metavar="N", help="Invocations in each.")
@click.option("--snap-start", "is_snap_start", is_flag=True, help="Start from a snapshot.")
@click.option("--freeze", "freezes", is_flag=True, help="Stop the process between invocations.")
@click.option("--cut-after", "cut_after_bytes", type=_COUNT, metavar="BYTES", help="Cut replies.")
@click.option("--refuse-after", "refuse_after_bytes", type=_COUNT, metavar="BYTES")
@click.option("--refuse-status", type=click.IntRange(400, 599), default=413, metavar="STATUS")
@click.option("--slow", "bytes_per_s", type=_COUNT, metavar="BYTES_PER_S", help="Read slowly.")
@click.option("--notice-disconnects", "notices_disconnects", is_flag=True, help="Lambda does not.")
def url(port: str | None, agent: str | None, mode: str | None, **chosen: Any) -> None:
    """Serve a function URL as Lambda would: by the streaming loop, with faults on demand."""
    from handler.emulator.command import serve  # noqa: PLC0415 - see above

    if mode is not None:
        chosen["streams"] = mode == "RESPONSE_STREAM"
    with sentences():
        serve(Settings.from_env(PORT=port or "8100", AGENT=agent), chosen)


@main.command()
@click.argument("path", default="template.yaml", type=click.Path(dir_okay=False, path_type=Path))
def check_template(path: Path) -> None:
    """Check that the doors of a SAM template expect what their functions send."""
    from handler.template_check import TemplateError, check_template as check  # noqa: PLC0415

    try:
        check(path)
    except (OSError, TemplateError) as error:
        raise CommandError(str(error)) from error
    click.echo(f"{path}: doors and functions agree on streaming.", err=True)


main.add_command(new)
main.add_command(webhooks)
main.add_command(deliveries)


@main.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.option("--principal", metavar="NAME", help="Whose key it is; default: a new tenant.")
@click.option("--delegate", is_flag=True, help="May name end users of its own by headers.")
@click.option("--expires-days", type=click.IntRange(1, 36500), metavar="N", help="Default: never.")
@_TABLE
@_REGION
def create(
    principal: str | None,
    expires_days: int | None,
    table: str | None,
    region: str | None,
    *,
    delegate: bool,
) -> None:
    """Create a key and print it, this once: the table keeps a hash."""
    with open_table(table, region) as (client, name):
        owner = principal or f"tenant-{secrets.token_hex(4)}"
        expires_at = int(time.time()) + expires_days * _DAY_S if expires_days else None
        key = asyncio.run(
            api_keys.create_key(client, name, owner, is_delegate=delegate, expires_at=expires_at)
        )
    click.echo(key)
    click.echo(f"The key of {owner}. It is not shown again; keep it as a secret.", err=True)


@keys.command(name="list")
@_TABLE
@_REGION
def list_all(table: str | None, region: str | None) -> None:
    """List the keys, the revoked and expired ones too."""
    with open_table(table, region) as (client, name):
        found = asyncio.run(api_keys.list_keys(client, name))
    for key in found:
        kind = "delegate" if key.principal.is_delegate else "-"
        click.echo(
            f"{key.id}  {key.principal.name:24} {kind:8}  {_day(key.created_at)}  {_state(key)}"
        )
    if not found:
        click.echo("There are no keys yet: lambda-responses keys create makes one.", err=True)


@keys.command()
@click.argument("key_id", metavar="ID")
@_TABLE
@_REGION
def revoke(key_id: str, table: str | None, region: str | None) -> None:
    """Revoke the key with this id (see `list`); it is refused within a minute."""
    with open_table(table, region) as (client, name):
        is_revoked = asyncio.run(api_keys.revoke_key(client, name, key_id))
    if not is_revoked:
        msg = f"There is no key {key_id!r} in the table {name}: `lambda-responses keys list` shows their ids."
        raise CommandError(msg)
    click.echo(f"Revoked {key_id}.", err=True)


@contextmanager
def open_table(table: str | None, region: str | None) -> Iterator[tuple[Any, str]]:
    """Give a client and the table's name, and turn what goes wrong with them into a sentence."""
    with sentences():
        settings = Settings.from_env(TABLE_NAME=table, AWS_REGION=region)
    if settings.table_name is None:
        raise CommandError(
            "Which table? Give --table NAME, or set TABLE_NAME (beside `make run`: DYNAMODB_ENDPOINT)."
        )
    try:
        yield make_client(settings.region, settings.dynamodb_endpoint), settings.table_name
    except NoRegionError as error:
        raise CommandError("Which region? Give --region NAME, or set AWS_REGION.") from error
    except StoreError as error:
        msg = f"The table {settings.table_name} could not be used: {error.__cause__ or error}"
        raise CommandError(msg) from error
    except ValueError as error:
        raise CommandError(str(error)) from error


def _state(key: api_keys.ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if key.is_valid(time.time()) else 'expired'} {_day(key.expires_at)}"


def _day(at: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
