"""The take-over at the import of a handler: what it does where there is no Runtime API to take over."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

from handler.app import host_from_environment
from handler.mount import LambdaHandler
from infra.logs import LOGGERS
from tests.handler.events import Context, function_url


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """The import sets the logs of its process up, and its app is made once."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(each, each.level, each.handlers, each.propagate) for each in loggers]
    host_from_environment.cache_clear()
    yield
    host_from_environment.cache_clear()
    sys.modules.pop("handler.takeover", None)
    for each, level, handlers, propagate in before:
        each.setLevel(level)
        each.handlers = handlers
        each.propagate = propagate


def test_without_a_runtime_api_the_handler_is_an_ordinary_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_LAMBDA_RUNTIME_API", raising=False)

    handler: LambdaHandler = import_module("handler.takeover").handler

    answer = handler(function_url("GET", "/readiness"), Context())
    handler.close()
    asyncio.set_event_loop(None)
    assert isinstance(handler, LambdaHandler)
    assert answer["statusCode"] == 200
