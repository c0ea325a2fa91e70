"""Fixtures of the end-to-end tests: moto's DynamoDB in this process, reached over a socket."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeAlias

import pytest

from infra.settings import Settings
from tests.infra import engines


Connect: TypeAlias = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def connect() -> Iterator[Connect]:
    """Start the engine with its table; give what makes clients of it."""
    from handler.local import engine  # noqa: PLC0415 - slow to import

    with engine(Settings(table_name=engines.TABLE)) as local:
        yield partial(engines.connected, local.region, local.dynamodb_endpoint)
