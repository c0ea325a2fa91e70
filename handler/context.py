"""`LambdaContext`: what the events' readers and workers are told of an invocation."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from channel.ports import Clock
from handler.runtime_api import Invocation
from infra.settings import RuntimeSettings


class LambdaContext(Struct, frozen=True, kw_only=True):
    """The attributes of the context object that Lambda's own runtime makes.

    `client_context` and `identity` are JSON objects as Lambda sent them, or None.
    """

    aws_request_id: str
    function_name: str
    function_version: str
    invoked_function_arn: str
    memory_limit_in_mb: int
    log_group_name: str
    log_stream_name: str
    client_context: Mapping[str, Any] | None
    identity: Mapping[str, Any] | None
    tenant_id: str | None
    deadline_ms: int
    clock: Clock

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda ends the invocation."""
        return max(0, self.deadline_ms - int(self.clock() * 1000))


def context_of(invocation: Invocation, settings: RuntimeSettings, clock: Clock) -> LambdaContext:
    """Return the context of an invocation."""
    return LambdaContext(
        aws_request_id=invocation.request_id,
        function_name=settings.function_name,
        function_version=settings.function_version,
        invoked_function_arn=invocation.function_arn,
        memory_limit_in_mb=settings.memory_mb,
        log_group_name=settings.log_group,
        log_stream_name=settings.log_stream,
        client_context=_object(invocation.client_context),
        identity=_object(invocation.cognito_identity),
        tenant_id=invocation.tenant_id,
        deadline_ms=invocation.deadline_ms,
        clock=clock,
    )


def _object(given: str | None) -> Mapping[str, Any] | None:
    """Return a JSON object; None for nothing, and for what is none: callers may send anything there."""
    if not given:
        return None
    try:
        # Headers are read as Latin-1, and JSON is UTF-8.
        return msgspec.json.decode(given.encode("latin-1"), type=dict[str, Any])
    except (ValueError, RecursionError):
        return None
