"""The composition root: settings in, one Starlette app out. Only here is it known which `infra` classes there are.

What a configuration does not need is not imported, which is most of a cold start: hence the imports
inside the functions.
"""

from functools import cache
from typing import Any, Final

from starlette.applications import Starlette

from channel.agent import Agent, AgentReferenceError, load_agent
from channel.auth import Authenticator, DenyAll, FixedKeys, Principal
from channel.host import AgentHost
from channel.ports import ResponseStore, Telemetry
from channel.responses.channel import ResponsesChannel
from infra.settings import DEFAULT_AGENT, Settings, SettingsError


DEVELOPMENT_KEYS: Final = {"dev-alpha": Principal("alpha"), "dev-beta": Principal("beta")}


@cache
def app_from_environment() -> Starlette:
    """Build the app of this process, once, and set its logs up; raises `SettingsError`."""
    settings = Settings.from_env()
    if settings.on_lambda:
        from infra.telemetry import log_as_json

        log_as_json(settings)
    else:
        from infra.logs import log_readably

        log_readably(settings)
    return create_app(settings)


def create_app(settings: Settings) -> Starlette:
    """Build an app; raises `SettingsError` where the settings cannot be met."""
    client = _client(settings)
    channel = ResponsesChannel(
        store=_store(settings, client),
        model=settings.model_name,
        allowed_options=settings.caller_options,
        shows_tools=settings.show_tools,
        keepalive_s=settings.keepalive_s,
        first_event_grace_s=settings.first_event_grace_s,
        telemetry=_telemetry(settings),
    )
    return AgentHost(
        _agent(settings),
        channels=[channel],
        authenticator=_authenticator(settings, client),
        cors_origins=settings.cors_origins,
    ).app


def _agent(settings: Settings) -> Agent:
    if settings.agent == DEFAULT_AGENT:
        from channel.agents.demo import demo_agent

        return demo_agent(delay_s=settings.demo_delay_s or 0.0)
    try:
        return load_agent(settings.agent)
    except AgentReferenceError as error:
        msg = f"The setting {error}."
        raise SettingsError(msg) from error


def _client(settings: Settings) -> Any:
    if settings.table_name is None:
        return None
    from infra.dynamodb.client import make_client

    client = make_client(settings.region, settings.dynamodb_endpoint)
    if settings.is_snap_start:
        # Its connections are not the restored environment's; the next call makes new ones.
        from snapshot_restore_py import register_before_snapshot

        register_before_snapshot(client.close)
    return client


def _store(settings: Settings, client: Any) -> ResponseStore:
    if settings.table_name is None:
        from channel.memory import InMemoryResponseStore

        return InMemoryResponseStore()
    from infra.dynamodb.store import DynamoDBResponseStore

    return DynamoDBResponseStore(
        client,
        settings.table_name,
        retention_s=settings.retention_days * 24 * 3600.0,
        strict_reads=settings.strict_reads,
    )


def _authenticator(settings: Settings, client: Any) -> Authenticator:
    if settings.has_development_keys:
        return FixedKeys(DEVELOPMENT_KEYS)
    if settings.table_name is None:
        return DenyAll()
    from infra.api_keys import DynamoDBAuthenticator

    return DynamoDBAuthenticator(client, settings.table_name)


def _telemetry(settings: Settings) -> Telemetry | None:
    if not settings.on_lambda:
        return None
    from infra.telemetry import PowertoolsTelemetry

    return PowertoolsTelemetry(service=settings.service, agent=settings.agent)
