"""The composition root: settings in, one Starlette app out. Only here is it known which `infra` classes there are.

What a configuration does not need is not imported, which is most of a cold start: hence the imports
inside the functions.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

from starlette.applications import Starlette

from channel.auth import Authenticator, DenyAll, FixedKeys, Principal
from channel.chat.channel import ChatCompletionsChannel
from channel.commands import HELP, RESET
from channel.delivering import own_destinations
from channel.delivery import ChannelPush, DeliveryOptions, IdentityStore, UndeliveredStore
from channel.host import AgentHost
from channel.isolation import IsolationKeys
from channel.ports import Jobs, Telemetry
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.response import Response
from channel.responses.webhooks import Webhooks
from handler.agents import agent_of
from infra.settings import Settings


DEVELOPMENT_KEYS: Final = {
    "dev-alpha": Principal("alpha"),
    "dev-beta": Principal("beta"),
    "dev-agency": Principal("agency", is_delegate=True),
}


@cache
def host_from_environment() -> AgentHost:
    """Build the host of this process, once, and set its logs up; raises `SettingsError`."""
    settings = Settings.from_env()
    if settings.on_lambda:
        from infra.telemetry import log_as_json

        log_as_json(settings)
    else:
        from infra.logs import log_readably

        log_readably(settings)
    return create_host(settings)


def create_app(settings: Settings) -> Starlette:
    """Build an app; raises `SettingsError` where the settings cannot be met."""
    return create_host(settings).app


def create_host(settings: Settings) -> AgentHost:
    """Build a host; raises `SettingsError` where the settings cannot be met."""
    client = _client(settings)
    secret = _secret(settings, client)
    stores = {} if secret is None else _stores(settings, client, secret)  # default: memory
    sessions = stores.pop("sessions", None)
    if settings.chat_sessions and sessions is None:
        from channel.memory_sessions import InMemorySessionStore

        sessions = InMemorySessionStore()
    shared: dict[str, Any] = {
        "model": settings.model_name,
        "allowed_options": settings.caller_options,
        "keepalive_s": settings.keepalive_s,
        "first_event_grace_s": settings.first_event_grace_s,
        "telemetry": _telemetry(settings),
        "commands": (RESET, HELP) if settings.commands else (),
    }
    responses = ResponsesChannel(
        **stores,
        **shared,
        shows_tools=settings.show_tools,
        jobs=_jobs(settings),
        has_background=settings.has_background,
        has_cancellable_streams=settings.cancellable_streams,
        event_retention_s=settings.event_retention_minutes * 60.0,
        webhooks=_webhooks(settings, client),
        gateway=_gateway(settings, client),
    )
    return AgentHost(
        agent_of(settings),
        channels=[responses, ChatCompletionsChannel(**shared)],
        authenticator=_authenticator(settings, client),
        cors_origins=settings.cors_origins,
        delivery=delivery_options(settings, client, secret),
        sessions=sessions,
    )


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


def _secret(settings: Settings, client: Any) -> Any:
    """Return what reads the secret of the table, once for all that is partitioned by it."""
    if settings.table_name is None:
        return None
    from infra.dynamodb.client import Table
    from infra.dynamodb.secret import TenantSecret

    return TenantSecret(Table(client, settings.table_name))


def _stores(settings: Settings, client: Any, secret: Any) -> dict[str, Any]:
    from channel.sealing import SecretSealer
    from infra.dynamodb.conversations import DynamoDBConversationStore
    from infra.dynamodb.idempotency import DynamoDBIdempotencyStore
    from infra.dynamodb.runs import DynamoDBRunStore
    from infra.dynamodb.store import DynamoDBResponseStore

    table = settings.table_name or ""
    retention_s = settings.retention_days * 24 * 3600.0
    sessions: dict[str, Any] = {}
    if settings.chat_sessions:
        from infra.dynamodb.sessions import DynamoDBSessionStore

        sessions["sessions"] = DynamoDBSessionStore(
            client, table, secret=secret, retention_s=retention_s
        )
    return {
        **sessions,
        "store": DynamoDBResponseStore(
            client,
            table,
            secret=secret,
            retention_s=retention_s,
            strict_reads=settings.strict_reads,
        ),
        "conversations": DynamoDBConversationStore(
            client, table, secret=secret, retention_s=retention_s
        ),
        "runs": DynamoDBRunStore(client, table, secret=secret),
        "sealer": SecretSealer(secret),
        "idempotency": DynamoDBIdempotencyStore(client, table, secret=secret),
    }


def _webhooks(settings: Settings, client: Any) -> Webhooks | None:
    table = settings.table_name
    if table is None:
        return None

    def make() -> Webhooks:
        from infra.dynamodb.webhooks import WebhookTable
        from infra.webhook_deliveries import WebhookDeliveries
        from infra.webhook_sender import WebhookSender

        sender = WebhookSender(allow_private=settings.webhooks_allow_private)
        return WebhookDeliveries(WebhookTable(client, table), sender)

    return _LateWebhooks(make)


def delivery_options(settings: Settings, client: Any, secret: Any = None) -> DeliveryOptions | None:
    """Return what delivers; None where a reply goes back and nowhere else, which then costs nothing.

    Without a `secret` the table's own is read.
    """
    channels = _push_channels(settings, client)
    if not (channels or settings.caller_targets):
        return None
    identities: IdentityStore
    undelivered: UndeliveredStore
    if settings.table_name is None:
        from channel.memory_delivery import InMemoryIdentityStore, InMemoryUndeliveredStore

        identities, undelivered = InMemoryIdentityStore(), InMemoryUndeliveredStore()
    else:
        from infra.dynamodb.identities import DynamoDBIdentityStore
        from infra.dynamodb.undelivered import DynamoDBUndeliveredStore

        table = settings.table_name
        retention_s = settings.retention_days * 24 * 3600.0
        identities = DynamoDBIdentityStore(client, table, secret=secret, retention_s=retention_s)
        undelivered = DynamoDBUndeliveredStore(client, table)
    return DeliveryOptions(
        identities=identities,
        undelivered=undelivered,
        push_channels=channels,
        jobs=_jobs(settings),
        authorize=own_destinations(channels) if settings.caller_targets else None,
    )


def _push_channels(settings: Settings, client: Any) -> list[ChannelPush]:
    """Return the channels of `PUSH_CHANNELS`; webhooks are none where no table has their endpoints."""
    channels: list[ChannelPush] = []
    for kind, place in settings.push_channels:
        if kind == "eventbridge":
            from infra.push_channels.eventbridge import EventBridgePush, make_events_client

            make_events = partial(make_events_client, place, settings.region)
            channels.append(EventBridgePush(make_events, place))
        elif kind == "sns":
            from infra.push_channels.sns import SNSPush, make_sns_client

            channels.append(SNSPush(partial(make_sns_client, place), place))
        elif settings.table_name is not None:
            from infra.dynamodb.webhooks import WebhookTable
            from infra.push_channels.webhook import WebhookPush
            from infra.webhook_sender import WebhookSender

            sender = WebhookSender(allow_private=settings.webhooks_allow_private)
            channels.append(WebhookPush(WebhookTable(client, settings.table_name), sender))
    return channels


class _LateWebhooks:
    """Webhooks that are imported when the first background turn ends: few environments see one."""

    def __init__(self, make: Callable[[], Webhooks]) -> None:
        self._made = cache(make)

    async def notify(
        self,
        keys: IsolationKeys,
        principal: str,
        response: Response,
        /,
        *,
        deadline_s: float | None = None,
    ) -> None:
        await self._made().notify(keys, principal, response, deadline_s=deadline_s)


def _gateway(settings: Settings, client: Any) -> Any:
    if settings.table_name is None or settings.websocket_endpoint is None:
        return None
    from channel.responses.sockets.gateway import Gateway
    from infra.dynamodb.connections import DynamoDBConnectionStore
    from infra.push import ManagementPush, make_management_client

    connections = DynamoDBConnectionStore(client, settings.table_name)
    make = partial(make_management_client, settings.region, settings.websocket_endpoint)
    return Gateway(connections, ManagementPush(make))


def _jobs(settings: Settings) -> Jobs | None:
    if not settings.on_lambda:
        return None  # a task of the process, which is there after the reply
    from infra.invoke import SelfInvoker, make_lambda_client

    make_client = partial(make_lambda_client, settings.region, settings.lambda_endpoint)
    return SelfInvoker(make_client, settings.function)


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
