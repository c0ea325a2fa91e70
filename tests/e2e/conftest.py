"""Fixtures of the end-to-end tests: moto's DynamoDB in this process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import pytest

from handler.embedded import make_atomic
from infra.dynamodb.client import create_table
from tests.infra import engines


Connect: TypeAlias = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def connect() -> Iterator[Connect]:
    """Start the engine with its table; give what makes clients of it."""
    from moto import mock_aws  # noqa: PLC0415 - slow to import
    from moto.core.models import botocore_stubber  # noqa: PLC0415 - as above

    class Session:
        """Brings to moto what is sent, as late as a socket would: after the hooks of the faults."""

        def send(self, request: Any) -> Any:
            return botocore_stubber("before-send.dynamodb", request)

        def close(self) -> None: ...

    @contextmanager
    def connected(attempts: int = 4) -> Iterator[Any]:
        with engines.connected("eu-west-1", None, attempts=attempts) as client:
            client.meta.events.unregister("before-send", botocore_stubber)
            client._endpoint.http_session.close()
            client._endpoint.http_session = Session()
            yield client

    make_atomic()
    with mock_aws():
        with connected() as client:
            create_table(client, engines.TABLE)
        yield connected


@pytest.fixture(scope="module")
def clients(connect: Connect) -> Iterator[Any]:
    """Return clients of the engine and of Lambda, healthy and fragile (`tests.e2e.faulty`)."""
    from tests.e2e import faulty  # noqa: PLC0415 - imports moto

    with faulty.clients(connect) as made:
        yield made


@pytest.fixture(scope="module")
def dynalite() -> Iterator[tuple[str, Any]]:
    """Start dynalite with the table of the tests; give its endpoint, and a client of it."""
    try:
        with engines.dynalite() as endpoint, engines.connected(None, endpoint) as client:
            create_table(client, engines.TABLE)
            yield endpoint, client
    except engines.NoEngineError as missing:
        pytest.skip(str(missing))
