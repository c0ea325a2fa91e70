"""Fixtures of the storage tests: engines, a clock that is moved by hand, tenants."""

from collections.abc import Iterator
from typing import Any

import pytest

from channel.isolation import IsolationKeys
from handler.embedded import make_atomic
from infra.dynamodb.client import create_table
from tests.infra import engines
from tests.infra.hooks import Meter


class MovableClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def ann() -> IsolationKeys:
    return IsolationKeys("ann")


@pytest.fixture(scope="session")
def dynalite_endpoint() -> Iterator[str]:
    try:
        with engines.dynalite() as endpoint:
            yield endpoint
    except engines.NoEngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def dynalite_client(dynalite_endpoint: str) -> Iterator[Any]:
    with engines.connected(None, dynalite_endpoint) as client:
        create_table(client, engines.TABLE)
        yield client


@pytest.fixture(scope="module")
def metered(dynalite_endpoint: str, dynalite_client: Any) -> Iterator[tuple[Any, Meter]]:
    """Return a client of the engine with its table, and what counts its units."""
    with engines.connected(None, dynalite_endpoint) as client:
        yield client, Meter(client)


@pytest.fixture(scope="session")
def fragile_client(dynalite_endpoint: str) -> Iterator[Any]:
    """Return a client that tries each call once."""
    with engines.connected(None, dynalite_endpoint, attempts=1) as client:
        yield client


@pytest.fixture(scope="module")
def moto_client() -> Iterator[Any]:
    from moto import mock_aws  # noqa: PLC0415 - slow to import

    make_atomic()
    with mock_aws(), engines.connected("eu-west-1", None) as client:
        create_table(client, engines.TABLE)
        yield client
