"""Fixtures of the command line's tests: the engine of `make run`, with its table."""

from collections.abc import Iterator

import pytest

from handler.local import engine
from infra.settings import Settings


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with engine(Settings()) as local:
        assert local.dynamodb_endpoint is not None
        yield local.dynamodb_endpoint
