"""The client of Amazon Bedrock's runtime: slow to answer, and its streams end where another thread says so."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from infra.dynamodb.client import MAX_CONNECTIONS
from infra.settings import SettingsError


READ_TIMEOUT_S: Final = 900
"""Seconds that a model may be silent: a function ends after as many, and a turn at its deadline."""


class ModelStream:
    """The event stream of a reply, which a thread reads and closes and another one may shut down."""

    def __init__(self, events: Any, connection: Any) -> None:
        """Take botocore's event stream and the reply of urllib3 that it reads."""
        self._events = events
        self._connection = connection

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read the events; raises botocore's errors, also for those in the stream."""
        yield from self._events

    def shutdown(self) -> None:
        """End a read that waits in another thread; `close` would wait for it."""
        with suppress(OSError, RuntimeError, ValueError):  # it is over, or its connection is
            self._connection.shutdown()

    def close(self) -> None:
        """Let go of the connection, which is used again only after the end of the stream."""
        self._events.close()


def make_bedrock_client(
    region: str | None, endpoint: str | None = None, *, attempts: int = 3
) -> Any:
    """Return a client of `bedrock-runtime` whose streams are `ModelStream`s.

    An endpoint over plain http is a local server, which takes any credentials. Raises
    `SettingsError` where no region is known.
    """
    # Imported here, since it takes longer than everything else together.
    import botocore.session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import NoRegionError  # noqa: PLC0415

    is_local = endpoint is not None and endpoint.startswith("http://")
    config = Config(
        connect_timeout=5,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": attempts},
        tcp_keepalive=True,
        max_pool_connections=MAX_CONNECTIONS,
    )
    try:
        client = botocore.session.Session().create_client(
            "bedrock-runtime",
            region_name="us-east-1" if is_local else region,
            endpoint_url=endpoint,
            aws_access_key_id="local" if is_local else None,
            aws_secret_access_key="local" if is_local else None,
            config=config,
        )
    except NoRegionError as error:
        msg = "The setting AGENT names a Bedrock model, which needs a region: set AWS_REGION or BEDROCK_REGION."
        raise SettingsError(msg) from error
    client.meta.events.register("after-call.bedrock-runtime.ConverseStream", _with_model_stream)
    return client


def _with_model_stream(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
    if "stream" in parsed:
        parsed["stream"] = ModelStream(parsed["stream"], http_response.raw)
