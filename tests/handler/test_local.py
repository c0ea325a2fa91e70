"""The local server: a real process that is reached, that isolates, and that stops."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from handler.local import banner, listening, serve
from infra.settings import Settings, SettingsError


@contextmanager
def started(**environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command on a free port; give the process and its base URL once it says so."""
    command = [sys.executable, "-c", "from handler.cli import main; main(['run'])"]
    process = subprocess.Popen(
        command, env={"PORT": "0", **environ}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        yield process, first.rpartition(" ")[2].strip()
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_the_server_answers_keeps_tenants_apart_and_stops_at_ctrl_c() -> None:
    with started(DEMO_DELAY_MS="0") as (process, base_url), httpx.Client(timeout=10) as client:
        url = f"{base_url}/responses"
        created = client.post(
            url, json={"input": "Hello!"}, headers={"authorization": "Bearer dev-alpha"}
        )
        one = f"{url}/{created.json()['id']}"
        statuses = [
            client.get(one, headers={"authorization": f"Bearer {key}"}).status_code
            for key in ("dev-alpha", "dev-beta", "dev-gamma")
        ]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=10)

    assert created.status_code == 200
    assert statuses == [200, 404, 401]
    assert (process.returncode, rest.splitlines()[-1]) == (0, "Stopped.")


def test_another_agent_of_the_current_folder_is_served() -> None:
    with started(AGENT="tests.handler.own_agent:agent") as (_, base_url):
        answer = httpx.post(
            f"{base_url}/responses",
            json={"input": "hi"},
            headers={"authorization": "Bearer dev-beta"},
            timeout=10,
        )

    assert answer.json()["output"][0]["content"][0]["text"] == "You said: hi"


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(SettingsError) as raised, listening(port):
            pass

    assert str(raised.value) == (
        f"The setting PORT is {port}, but that port cannot be used (address already in use): "
        "name a free one, or 0 for any."
    )


def test_an_engine_that_does_not_answer_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"

    with pytest.raises(SettingsError) as raised:
        serve(Settings(dynamodb_endpoint=endpoint, port=0))

    said = str(raised.value)
    assert said.startswith(f"The setting DYNAMODB_ENDPOINT is '{endpoint}', but no table could")
    assert "\n" not in said


def test_the_banner_shows_a_request_that_is_json_and_a_snippet_that_is_python() -> None:
    said = banner(
        Settings(model_name="support", dynamodb_endpoint="http://e", table_name="t"), 8123
    )

    body = re.search(r"-d '(.*)'", said)
    snippet = re.search(r"  from openai.*flush=True\)", said, re.DOTALL)
    assert body is not None
    assert snippet is not None
    assert json.loads(body[1]) == {"model": "support", "input": "Hello!"}
    compile(re.sub(r"^  ", "", snippet[0], flags=re.MULTILINE), "snippet", "exec")
    assert "http://127.0.0.1:8123/v1" in said
