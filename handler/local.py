"""The local server: uvicorn on 127.0.0.1, an embedded DynamoDB engine and two development keys."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from socket import IPPROTO_TCP, TCP_NODELAY, create_server, socket

import uvicorn
from botocore.exceptions import BotoCoreError, ClientError
from msgspec.structs import replace

from handler.app import DEVELOPMENT_KEYS, create_app
from handler.embedded import embedded_engine
from infra.dynamodb.client import create_table, make_client
from infra.logs import log_readably
from infra.settings import LOCAL_TABLE, Settings, SettingsError, published_table


HOST = "127.0.0.1"
DEMO_DELAY_S = 0.03


def serve(settings: Settings) -> None:
    """Serve until Ctrl-C; raises `SettingsError` where that cannot work."""
    if settings.log_sensitive is None:
        # One's own machine and one's own words: an agent's traceback is what is wanted here.
        settings = replace(settings, log_sensitive=True)
    log_readably(settings)
    with listening(settings.port) as listener, engine(settings) as local:
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(local), log_level="warning", lifespan="on", timeout_graceful_shutdown=2
            )
        )
        sys.stdout.write(banner(local, listener.getsockname()[1]))
        sys.stdout.flush()
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn has shut down and passes the signal on
            sys.stdout.write("\nStopped.\n")


@contextmanager
def listening(port: int) -> Iterator[socket]:
    """Listen from now on, so that nobody who reads the banner is too early."""
    try:
        listener = create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        msg = f"The setting PORT is {port}, but that port cannot be used ({reason}): name a free one, or 0 for any."
        raise SettingsError(msg) from error
    with listener:
        # asyncio only does this for sockets that it made; without it, each reply to a kept-alive
        # connection waits 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        yield listener


@contextmanager
def engine(settings: Settings, host: str = HOST) -> Iterator[Settings]:
    """Start a DynamoDB engine in this process, unless the settings name one, and make the table."""
    local = replace(
        settings,
        table_name=settings.table_name or LOCAL_TABLE,
        region=settings.region or "us-east-1",  # no engine looks at it, but moto wants a real one
        has_development_keys=True,
        webhooks_allow_private=True,
        demo_delay_s=DEMO_DELAY_S if settings.demo_delay_s is None else settings.demo_delay_s,
    )
    if settings.dynamodb_endpoint is not None:
        _make_table(local)
        with published_table(local):
            yield local
        return
    with embedded_engine(host) as endpoint:
        local = replace(local, dynamodb_endpoint=endpoint)
        _make_table(local)
        with published_table(local):
            yield local


def _make_table(settings: Settings) -> None:
    try:
        create_table(
            make_client(settings.region, settings.dynamodb_endpoint, attempts=1),
            settings.table_name or LOCAL_TABLE,
        )
    except (BotoCoreError, ClientError) as error:
        msg = f"The setting DYNAMODB_ENDPOINT is {settings.dynamodb_endpoint!r}, but no table could be made there: {str(error).splitlines()[0]}"
        raise SettingsError(msg) from error


def development_keys() -> str:
    """Return the keys, each with its principal, and what they are for."""
    *tenants, agency = [f"{key} ({who.name})" for key, who in DEVELOPMENT_KEYS.items()]
    return f"{' and '.join(tenants)}: tenants apart from each other; {agency}: a delegate"


def banner(settings: Settings, port: int) -> str:
    """Return what the server says at its start."""
    base_url = f"http://{HOST}:{port}/v1"
    return f"""\
lambda-responses is listening on {base_url}

  agent  {settings.agent}
  keys   {development_keys()}
  data   {settings.dynamodb_endpoint}, table {settings.table_name}

With curl:

  curl -s {base_url}/responses -H 'Authorization: Bearer dev-alpha' \\
    -H 'Content-Type: application/json' -d '{{"model": "{settings.model_name}", "input": "Hello!"}}'

With Python (pip install openai):

  from openai import OpenAI

  client = OpenAI(base_url="{base_url}", api_key="dev-alpha")
  first = client.responses.create(model="{settings.model_name}", input="My name is Ann.")
  with client.responses.stream(
      model="{settings.model_name}", input="What is my name?", previous_response_id=first.id
  ) as stream:
      for event in stream:
          if event.type == "response.output_text.delta":
              print(event.delta, end="", flush=True)

Ctrl-C stops the server. The embedded engine forgets everything then; DYNAMODB_ENDPOINT names one that does not.
"""
