"""Fixtures of all tests."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from channel.faults import SENSITIVE
from infra.logs import FRAMEWORKS, LOGGERS


# A change is judged by the same examples as the one before it; `--hypothesis-profile=explore` finds new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """Undo what a test, or what it starts, makes of the project's loggers."""
    loggers = [*map(logging.getLogger, (*LOGGERS, *FRAMEWORKS)), SENSITIVE]
    before = [(each, each.level, each.handlers, each.propagate) for each in loggers]
    yield
    for each, level, handlers, propagate in before:
        each.setLevel(level)
        each.handlers = handlers
        each.propagate = propagate
