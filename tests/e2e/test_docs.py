"""The Python blocks of README and docs run as they stand, against a server as users start it."""

import asyncio
import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.channel.asgi import Wire
from tests.e2e.scenarios import HELLO
from tests.e2e.server import running


ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
LOCAL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    with running() as url:
        yield url


def blocks(name: str) -> list[str]:
    return BLOCK.findall((ROOT / name).read_text())


def test_what_readme_says_first_runs(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = next(block for block in blocks("README.md") if LOCAL in block)

    names: dict[str, Any] = {}
    try:
        exec(first.replace(LOCAL, root), names)
    finally:
        names["client"].close()
        names.clear()
        gc.collect()  # what a block leaves open is this test's, and not one's that runs later

    assert "Ada" in capsys.readouterr().out


def test_the_blocks_of_the_api_page_run_one_after_another(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    said: list[str] = []

    try:
        for block in blocks("docs/api.md"):
            exec(block.replace(LOCAL, root), names)
            said.append(capsys.readouterr().out)
    finally:
        names["client"].close()
        names.clear()
        gc.collect()

    silent, polled, cancelled, resumed, again, talked, window, counted, framed, keyed = said
    assert silent == ""
    assert polled.startswith("completed ")
    assert cancelled == "cancelled\n"
    assert resumed.splitlines()[-1] == "response.completed"
    assert again == ""
    assert "'compaction'" in window
    assert "Ada" in talked
    assert "['message', 'message', 'message', 'message']" in talked
    assert int(counted) > 0
    assert framed.strip()
    assert len(set(keyed.split())) == 1


def test_the_blocks_of_the_channels_page_run_one_after_another(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    try:
        for block in blocks("docs/channels.md"):
            exec(block.replace(LOCAL, root), names)
        said = capsys.readouterr().out
        key = {"authorization": "Bearer a-long-secret"}
        asked = [
            asyncio.run(Wire("POST", "/ask", body=b"Why?", headers=headers).run(names["app"]))
            for headers in (key, {})
        ]
    finally:
        names["client"].close()
        names.clear()
        gc.collect()

    assert said == f"{HELLO}\n"
    assert [wire.status for wire in asked] == [200, 401]
    assert asked[0].json == {"answer": "You asked: Why?"}
