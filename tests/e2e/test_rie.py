"""Under AWS's own emulator: the bytes that a caller of the loop gets, and of the mounts in Lambda's own runtime."""

import base64
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

import pytest

from handler.app import create_app
from infra.settings import Settings
from tests.e2e import rie
from tests.e2e.doors import Client, Door, MakeEvent, Reply, comparable, direct
from tests.e2e.lambda_events import EVENTS
from tests.e2e.loop import DEVELOPMENT
from tests.e2e.rie import DELIMITER, LAMBDAS_OWN, LOOP, Answer, Emulator
from tests.e2e.rie_apps import MEGABYTES, PIECE
from tests.e2e.scenarios import (
    SCENARIOS,
    Scenario,
    a_body_that_is_no_json_or_too_large_is_refused,
)
from tests.handler.events import function_url, http_api, load_balancer, rest_api
from tests.infra.engines import NoEngineError


APPS: Final = "tests.e2e.rie_apps.app"
LARGE: Final = PIECE * (MEGABYTES * 1024 * 1024 // len(PIECE))
SECRET: Final = "nobody shall read this"
AT_A_TIME: Final = 8


@pytest.fixture(scope="module")
def loop() -> Iterator[Emulator]:
    try:
        with rie.running(LOOP, APPS) as emulator:
            yield emulator
    except NoEngineError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def instance() -> Iterator[Emulator]:
    """The loop, as on Managed Instances: several invocations at a time."""
    try:
        with rie.managed_instance(APPS, AT_A_TIME) as emulator:
            yield emulator
    except NoEngineError as missing:
        pytest.skip(str(missing))


# --- the loop ------------------------------------------------------------------------------------


def test_a_streamed_reply_is_its_prelude_the_delimiter_and_its_body(loop: Emulator) -> None:
    answer = loop.invoke(function_url("POST", "/echo?limit=2", body=b"\0hi"))

    prelude, body = answer.body.split(DELIMITER)
    assert prelude == b'{"statusCode":200,"headers":{"content-type":"application/json"}}'
    assert json.loads(body) == {"method": "POST", "query": "limit=2", "body": "AGhp"}


def test_megabytes_of_every_byte_arrive_as_they_were_sent(loop: Emulator) -> None:
    answer = loop.invoke(function_url("GET", "/large"))

    assert answer.streamed == LARGE


def test_a_body_without_a_byte_is_announced(loop: Emulator) -> None:
    answer = loop.invoke(function_url("GET", "/empty"))

    assert answer.body == b'{"statusCode":200,"headers":{"content-length":"0"}}' + DELIMITER


def test_a_status_and_cookies_are_in_the_prelude_and_hop_by_hop_headers_are_not(
    loop: Emulator,
) -> None:
    answer = loop.invoke(function_url("GET", "/missing"))

    assert answer.prelude == {
        "statusCode": 404,
        "headers": {"content-type": "text/plain", "vary": "origin, accept"},
        "cookies": ["a=1; Path=/", "b=2; HttpOnly"],
    }
    assert answer.streamed == b"gone"


@pytest.mark.parametrize(
    ("make_event", "more"),
    [(http_api, {}), (rest_api, {"multiValueHeaders": {}}), (load_balancer, {})],
)
def test_a_door_that_streams_nothing_gets_the_whole_reply_as_json(
    loop: Emulator, make_event: Callable[..., Any], more: Mapping[str, Any]
) -> None:
    answer = loop.invoke(make_event("POST", "/echo", None, b"hi"))

    assert answer.json == {
        "statusCode": 200,
        "headers": {"content-type": "application/json"},
        "body": '{"method": "POST", "query": "", "body": "aGk="}',
        "isBase64Encoded": False,
        **more,
    }


def test_megabytes_of_every_byte_are_base64_where_nothing_is_streamed(loop: Emulator) -> None:
    answer = loop.invoke(http_api("GET", "/large")).json

    assert answer["isBase64Encoded"]
    assert base64.b64decode(answer["body"]) == LARGE


@pytest.mark.parametrize("make_event", [function_url, http_api])
def test_an_app_that_fails_before_its_reply_is_a_500_that_tells_no_more(
    loop: Emulator, make_event: MakeEvent
) -> None:
    reply = reply_in(loop.invoke(make_event("GET", "/fails", {}, b"")))

    request_id = reply.headers["x-request-id"]
    assert (reply.status, reply.headers["x-should-retry"]) == (500, "false")
    assert reply.error["type"] == "server_error"
    assert reply.error["message"].endswith(f"Request id: {request_id}")
    assert f"{request_id}\tthe app failed: AppError" in loop.log
    assert SECRET not in loop.log


def test_an_app_that_fails_on_the_way_has_said_what_it_said_and_the_next_is_served(
    loop: Emulator,
) -> None:
    cut = loop.invoke(function_url("GET", "/fails-on-the-way"))
    after = loop.invoke(function_url("GET", "/missing"))

    assert (cut.prelude["statusCode"], cut.streamed) == (200, b"half")
    assert after.streamed == b"gone"


def test_an_event_that_nobody_takes_is_an_error_of_the_function(loop: Emulator) -> None:
    answer = loop.invoke({"Records": []})

    assert answer.json["errorType"] == "UnknownEventError"
    assert answer.json["errorMessage"].startswith(
        "The event is an object with the fields [Records]. Supported are HTTP requests through a "
    )


def test_a_handler_that_cannot_be_imported_fails_the_init_with_its_cause() -> None:
    try:
        with rie.running(LOOP, "handler.buffered.handler", AGENT="nowhere:agent") as emulator:
            answer = emulator.invoke(function_url("GET", "/readiness"))
            log = emulator.log
    except NoEngineError as missing:
        pytest.skip(str(missing))

    said = (
        "The setting AGENT is 'nowhere:agent', but there is no module 'nowhere' on the Python path."
    )
    assert answer.status == 502
    assert answer.json == {"errorType": "SettingsError", "errorMessage": said, "stackTrace": []}
    assert f"SettingsError: {said}" in log


# --- on Managed Instances ------------------------------------------------------------------------


def test_a_managed_instance_streams_the_same_bytes_and_says_so(instance: Emulator) -> None:
    answer = instance.invoke(function_url("GET", "/large"))

    assert answer.headers["content-type"] == "application/vnd.awslambda.http-integration-response"
    assert answer.headers["lambda-runtime-function-response-mode"] == "streaming"
    assert answer.body == b'{"statusCode":200,"headers":{}}' + DELIMITER + LARGE


def test_a_managed_instance_answers_whole_where_nothing_is_streamed(instance: Emulator) -> None:
    answer = instance.invoke(http_api("GET", "/missing"))

    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["lambda-runtime-function-response-mode"] == "buffered"
    assert (answer.json["statusCode"], answer.json["body"]) == (404, "gone")


def test_trailers_tell_lambda_of_a_failure_on_the_way(instance: Emulator) -> None:
    answer = instance.invoke(function_url("GET", "/fails-on-the-way"))

    assert answer.headers["error-type"] == "Runtime.StreamError"
    assert answer.json.keys() == {"errorType", "errorMessage", "stackTrace"}
    assert answer.json["errorType"] == "Runtime.StreamError"
    assert "Request id: " in answer.json["errorMessage"]
    assert SECRET not in instance.log


def test_as_many_streams_as_allowed_go_on_at_once_and_more_are_refused(instance: Emulator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gate, ThreadPoolExecutor(AT_A_TIME) as pool:
        gate.settimeout(10)
        event = function_url("POST", "/gated", body=b"127.0.0.1:%d" % gate.getsockname()[1])
        answering = [pool.submit(instance.invoke, event) for _ in range(AT_A_TIME)]
        inside = [gate.accept()[0] for _ in answering]
        refused = [instance.invoke(event) for _ in range(2)]
        for each in inside:
            each.sendall(b"and out")
            each.close()
        answers = [each.result() for each in answering]

    assert [answer.streamed for answer in answers] == [b"in and out"] * AT_A_TIME
    assert [(answer.status, answer.json) for answer in refused] == [
        (400, {"errorType": "Runtime.Unavailable"})
    ] * 2


# --- the product ---------------------------------------------------------------------------------


STREAMED: Final = {**DEVELOPMENT, "FUNCTION_URL_MODE": "RESPONSE_STREAM"}
MOUNTS: Final = {
    "the loop, streamed": (LOOP, "handler.buffered.handler", "function URL"),
    "the loop, whole": (LOOP, "handler.buffered.handler", "HTTP API"),
    "the loop that took over, streamed": (LAMBDAS_OWN, "handler.takeover.handler", "function URL"),
    "Mangum in Lambda's own runtime": (LAMBDAS_OWN, "handler.buffered.handler", "HTTP API"),
}


@pytest.fixture(scope="module")
def doors() -> Iterator[Mapping[str, Door]]:
    """The stock app with a store in memory, under each mount, and without any."""
    try:
        with ExitStack() as stack:
            app = create_app(Settings(has_development_keys=True, keepalive_s=0))
            opened = {"ASGI": stack.enter_context(direct(app))}
            emulators: dict[Any, Emulator] = {}
            for name, (runtime, handler, events) in MOUNTS.items():
                if (runtime, handler) not in emulators:
                    started = stack.enter_context(rie.running(runtime, handler, **STREAMED))
                    emulators[runtime, handler] = started
                opened[name] = door(emulators[runtime, handler], EVENTS[events])
            yield opened
    except NoEngineError as missing:
        pytest.skip(str(missing))


def door(emulator: Emulator, make_event: MakeEvent) -> Door:
    def ask(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        return reply_in(emulator.invoke(make_event(method, target, headers, body)))

    return ask


def reply_in(answer: Answer) -> Reply:
    """Return the reply that Lambda's door would make of it."""
    if DELIMITER in answer.body:
        prelude = answer.prelude
        return Reply(prelude["statusCode"], prelude["headers"], answer.streamed)
    told = answer.json
    assert not told["isBase64Encoded"]
    return Reply(told["statusCode"], told["headers"], told["body"].encode())


CASES: Final = [
    pytest.param(name, scenario, id=f"{name}-{scenario.__name__}")
    for name in MOUNTS
    for scenario in SCENARIOS
    # What is too large, Lambda itself refuses.
    if scenario is not a_body_that_is_no_json_or_too_large_is_refused
]


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_a_scenario_is_the_same_under_the_emulator(
    doors: Mapping[str, Door], name: str, scenario: Scenario
) -> None:
    reference, client = Client(doors["ASGI"]), Client(doors[name])

    scenario(reference)
    scenario(client)

    assert comparable(client.replies) == comparable(reference.replies)
