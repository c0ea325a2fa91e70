"""The composition root: which parts the settings ask for, through every door."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from channel.memory_sessions import InMemorySessionStore
from handler.app import create_app, create_host
from handler.local import engine
from handler.mount import LambdaHandler
from infra.api_keys import create_key
from infra.dynamodb.client import make_client
from infra.settings import LOCAL_TABLE, Settings, SettingsError
from tests.handler.events import DOORS, Context, function_url


Door = Callable[..., dict[str, Any]]

CREATE = {"model": "agent", "input": "Hello!"}


@contextmanager
def mounted(settings: Settings) -> Iterator[LambdaHandler]:
    mount = LambdaHandler(create_app(settings))
    try:
        yield mount
    finally:
        mount.close()
        asyncio.set_event_loop(None)


def post(door: Door, body: object, key: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return door("POST", "/v1/responses", headers, json.dumps(body).encode())


@pytest.mark.parametrize("door", DOORS)
def test_a_response_is_created_and_continued_through_every_door(door: Door) -> None:
    with mounted(Settings(has_development_keys=True)) as handler:
        first = handler(post(door, CREATE, "dev-alpha"), Context())
        again = {**CREATE, "previous_response_id": json.loads(first["body"])["id"]}
        second = handler(post(door, {**again, "stream": True}, "dev-alpha"), Context())
        foreign = handler(post(door, again, "dev-beta"), Context())

    assert [first["statusCode"], second["statusCode"], foreign["statusCode"]] == [200, 200, 400]
    assert not first["isBase64Encoded"]
    assert not second["isBase64Encoded"]
    assert second["body"].startswith("event: response.created\n")
    assert json.loads(foreign["body"])["error"]["code"] == "previous_response_not_found"


def test_a_reply_carries_the_invocations_id() -> None:
    with mounted(Settings(has_development_keys=True)) as handler:
        answer = handler(post(function_url, CREATE, "dev-alpha"), Context("invocation-1"))

    assert answer["headers"]["x-request-id"] == "invocation-1"


@pytest.mark.parametrize(("is_on", "names"), [(False, []), (True, ["reset", "help"])])
def test_there_are_commands_where_the_settings_ask_for_them(is_on: bool, names: list[str]) -> None:
    assert [*create_host(Settings(commands=is_on)).commands] == names


@pytest.mark.parametrize("is_on", [False, True])
def test_a_chat_goes_on_where_the_settings_ask_for_it(is_on: bool) -> None:
    with engine(Settings()) as local:
        client = make_client(local.region, local.dynamodb_endpoint)
        key = asyncio.run(create_key(client, LOCAL_TABLE, "acme", is_delegate=True))
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        headers["x-agent-chat-isolation-key"] = "chat"
        settings = replace(local, has_development_keys=False, chat_sessions=is_on)
        answers = []
        for _ in range(2):  # two instances
            with mounted(settings) as handler:
                event = function_url("POST", "/v1/responses", headers, json.dumps(CREATE).encode())
                answers.append(json.loads(handler(event, Context())["body"]))
        client.close()

    one, two = answers
    assert two["previous_response_id"] == (one["id"] if is_on else None)


@pytest.mark.parametrize("is_on", [False, True])
def test_without_a_table_the_chats_are_in_memory(is_on: bool) -> None:
    host = create_host(Settings(has_development_keys=True, chat_sessions=is_on))

    assert isinstance(host.sessions, InMemorySessionStore) is is_on


@pytest.mark.parametrize("key", ["dev-alpha", "anything"])
def test_with_nothing_configured_nobody_gets_in_but_the_health_check(key: str) -> None:
    settings = Settings.from_env({"AWS_LAMBDA_FUNCTION_NAME": "f"})
    with mounted(settings) as handler:
        refused = handler(post(function_url, CREATE, key), Context())
        ready = handler(function_url("GET", "/readiness"), Context())

    assert (refused["statusCode"], ready["statusCode"]) == (401, 200)


def test_with_a_table_its_keys_get_in_and_the_development_keys_do_not() -> None:
    with engine(Settings()) as local:
        client = make_client(local.region, local.dynamodb_endpoint)
        key = asyncio.run(create_key(client, LOCAL_TABLE, "acme"))
        settings = replace(local, has_development_keys=False, on_lambda=True)
        with mounted(settings) as handler:
            answers = [
                handler(post(function_url, CREATE, given), Context())
                for given in (key, "dev-alpha")
            ]
        client.close()

    assert [answer["statusCode"] for answer in answers] == [200, 401]


def test_a_key_that_is_no_development_key_is_refused() -> None:
    with mounted(Settings(has_development_keys=True)) as handler:
        answer = handler(post(function_url, CREATE, "dev-gamma"), Context())

    assert answer["statusCode"] == 401


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (
            "no_such_module:agent",
            "The setting AGENT is 'no_such_module:agent', but there is no module 'no_such_module' on the Python path.",
        ),
        (
            "json:decoder",
            "The setting AGENT is 'json:decoder', but that is module, and an agent is an async def over a Turn, or one of Microsoft Agent Framework, OpenAI Agents SDK, Pydantic AI, Strands, LangGraph.",
        ),
    ],
)
def test_an_agent_that_cannot_be_loaded_is_one_sentence(reference: str, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        create_app(Settings(agent=reference))

    assert str(raised.value) == said


def imported_by(environ: dict[str, str]) -> set[str]:
    """Return the modules of a fresh interpreter that has built the app of this environment."""
    code = "import sys, handler.app; handler.app.host_from_environment().app; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=True)
    return set(run.stdout.decode().split())


def test_what_the_settings_do_not_need_is_not_imported() -> None:
    loaded = imported_by({"AGENT": "tests.handler.own_agent:agent"})

    unneeded = {"boto3", "botocore", "channel.agents.demo", "aws_lambda_powertools", "uvicorn"}
    assert not loaded & {*unneeded, "openai", "pydantic", "click", "moto"}


def test_lambda_with_a_table_imports_neither_openai_nor_pydantic() -> None:
    environ = {"AWS_LAMBDA_FUNCTION_NAME": "f", "TABLE_NAME": "table", "AWS_REGION": "eu-west-1"}
    loaded = imported_by(environ)

    assert {"botocore", "aws_lambda_powertools"} <= loaded
    assert not loaded & {"openai", "pydantic", "uvicorn", "click", "moto"}
