"""`lambda-responses url` as people start it, and what it says."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from openai import OpenAI

from handler.emulator.command import banner, environ, serve_until_cancelled
from handler.emulator.options import Faults, Function
from infra.settings import Settings
from tests.handler.emulator.serving import ROUTES, is_running


@contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command on a free port; give the process and its base URL once it says so."""
    arguments = ["url", "--port", "0", *options]
    command = [sys.executable, "-c", f"from handler.cli import main; main({arguments})"]
    process = subprocess.Popen(
        command, env={"DEMO_DELAY_MS": "0"}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        yield process, first.rpartition(" ")[2].strip()
    finally:
        process.kill()
        process.communicate(timeout=10)


def children(pid: int) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(pid)], check=False, capture_output=True, text=True
    ).stdout
    return [int(child) for child in found.split()]


def test_the_demo_agent_streams_until_ctrl_c() -> None:
    with started("--environments", "2") as (process, base_url):
        client = OpenAI(base_url=base_url, api_key="dev-alpha", max_retries=0)
        first = client.responses.create(model="agent", input="My name is Ann.")
        with client.responses.stream(
            model="agent", input="What is my name?", previous_response_id=first.id
        ) as stream:
            deltas = [each.delta for each in stream if each.type == "response.output_text.delta"]
        client.close()
        environments = children(process.pid)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=10)

    assert len(deltas) > 1
    assert "Ann" in "".join(deltas)
    assert (process.returncode, rest.splitlines()[-1]) == (0, "Stopped.")
    assert environments
    assert not any(is_running(pid) for pid in environments)


def test_the_demo_agent_answers_in_the_background() -> None:
    with started() as (_, base_url), OpenAI(base_url=base_url, api_key="dev-alpha") as client:
        begun = client.responses.create(model="agent", input="My name is Ann.", background=True)
        ended = begun
        while ended.status in ("queued", "in_progress"):
            ended = client.responses.retrieve(begun.id)
        events = [
            *client.responses.create(
                model="agent",
                input="What is my name?",
                previous_response_id=begun.id,
                background=True,
                stream=True,
            )
        ]

    last = events[-1]
    assert (begun.status, ended.status) == ("queued", "completed")
    assert last.type == "response.completed"
    assert "Ann" in last.response.output_text


@pytest.mark.anyio
async def test_an_app_of_ones_own_is_served_until_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings, function = Settings(port=0), Function(handler=ROUTES)
    serving = asyncio.create_task(serve_until_cancelled(settings, function, Faults()))
    async with asyncio.timeout(10):
        said = ""
        while not said:
            await asyncio.sleep(0)
            said = capsys.readouterr().out
    root = said.splitlines()[0].rpartition(" ")[2]
    async with httpx.AsyncClient(base_url=root) as client:
        reply = await client.get("/hello")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await serving

    assert reply.text == "hello"
    assert "GET /hello 200 streamed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "faults", "said"),
    [
        (Function(handler=ROUTES), Faults(), "RESPONSE_STREAM, as on Lambda with 512 MB, 300 s\n"),
        (
            Function(handler=ROUTES, streams=False, environments=2, freezes=True),
            Faults(),
            "BUFFERED, as on Lambda with 512 MB, 300 s, 2 environments, processes frozen while idle\n",
        ),
        (
            Function(handler=ROUTES, concurrency=8, is_snap_start=True, timeout_s=1.5),
            Faults(),
            "512 MB, 1.5 s, 8 invocations at a time in each (Managed Instances), SnapStart\n",
        ),
        (Function(handler=ROUTES), Faults(), "faults   none\n"),
        (
            Function(handler=ROUTES),
            Faults(cut_after_bytes=10, refuse_after_bytes=20, refuse_status=400),
            "replies are cut after 10 bytes; 400 after 20 bytes of a reply\n",
        ),
        (
            Function(handler=ROUTES),
            Faults(bytes_per_s=1000, notices_disconnects=True),
            "replies are read at 1000 bytes a second; the function notices clients that go away\n",
        ),
    ],
)
def test_the_banner_says_what_is_emulated(function: Function, faults: Faults, said: str) -> None:
    shown = banner("http://127.0.0.1:8100", Settings(), function, faults)

    assert shown.startswith("lambda-responses is listening on http://127.0.0.1:8100\n")
    assert said in shown
    assert "dev-alpha" not in shown


def test_the_banner_of_the_stock_handler_names_base_url_and_keys() -> None:
    function = Function(handler="handler.buffered.handler")

    shown = banner("http://127.0.0.1:8100", Settings(), function, Faults())

    assert shown.startswith("lambda-responses is listening on http://127.0.0.1:8100/v1\n")
    assert "dev-alpha (alpha) and dev-beta (beta)" in shown
    assert "channel.agents.demo:agent" in shown


@pytest.mark.parametrize("given", [None, "RESPONSE_STREAM"])
def test_the_function_expects_the_mode_of_its_url_unless_told_otherwise(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv("FUNCTION_URL_MODE", given)

    told = environ(Settings(), Function(handler=ROUTES, streams=False))

    assert told["FUNCTION_URL_MODE"] == (given or "BUFFERED")


def test_a_function_that_does_not_start_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from handler.cli import main; main(['url', '--port', '0'])"],
        env={"AGENT": "no.such:agent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("The function could not be started: The setting AGENT")
    assert len(done.stderr.splitlines()) == 1
