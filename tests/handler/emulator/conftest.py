"""Fixtures of the tests of the local function URL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handler.emulator.serving import Gate


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.close()


@pytest.fixture
def other_gate(tmp_path: Path) -> Iterator[Gate]:
    folder = tmp_path / "other"
    folder.mkdir()
    made = Gate(folder)
    yield made
    made.close()
