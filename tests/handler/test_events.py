"""Events as HTTP requests: which door, which mode, what scope; and those that are none, or broken."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import URL, QueryParams
from starlette.requests import Request

from channel.deadline import DEADLINE, Deadline, TimeLeft
from channel.responses.protocol.errors import RequestError
from handler.events import (
    MAX_REPLY_BYTES,
    Door,
    DoorSettings,
    HTTPEvent,
    HTTPEvents,
    LambdaEvent,
    UnknownEventError,
    answer,
    error_answer,
)
from tests.e2e.lambda_events import EVENTS
from tests.handler.events import Context, function_url, http_api, load_balancer, rest_api


Make = Callable[..., LambdaEvent]

DOOR_OF = {
    "function URL": Door.FUNCTION_URL,
    "HTTP API": Door.HTTP_API,
    "REST API": Door.REST_API,
    "load balancer": Door.LOAD_BALANCER,
}


def http_api_of_version_1(
    method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> LambdaEvent:
    """An HTTP API's event with payload 1.0: a REST API's, with a version and a domain."""
    event = rest_api(method, path, headers, body)
    domain = {"domainName": "abc.execute-api.us-east-1.amazonaws.com"}
    return {"version": "1.0", **event, "requestContext": {**event["requestContext"], **domain}}


ALL: dict[str, tuple[Make, Door]] = {
    **{kind: (make, DOOR_OF[kind.partition(",")[0]]) for kind, make in EVENTS.items()},
    "HTTP API, version 1.0": (http_api_of_version_1, Door.HTTP_API),
}
MAKES = [make for make, _ in ALL.values()]

SQS = {
    "Records": [
        {
            "messageId": "m",
            "body": "text",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-1:0:q",
        }
    ]
}
EVENT_BRIDGE = {
    "version": "0",
    "id": "i",
    "detail-type": "Scheduled Event",
    "source": "aws.events",
    "detail": {},
}
CONNECT = {
    "headers": {"Host": "abc.execute-api.us-east-1.amazonaws.com"},
    "multiValueHeaders": {"Host": ["abc.execute-api.us-east-1.amazonaws.com"]},
    "requestContext": {
        "routeKey": "$connect",
        "eventType": "CONNECT",
        "connectionId": "c=",
        "domainName": "abc.execute-api.us-east-1.amazonaws.com",
        "stage": "prod",
    },
    "isBase64Encoded": False,
}
EDGE = {
    "Records": [
        {
            "cf": {
                "config": {"eventType": "origin-request"},
                "request": {"uri": "/", "method": "GET", "querystring": "", "headers": {}},
            }
        }
    ]
}
DESTINATION = {
    "version": "1.0",
    "timestamp": "2026-11-25T00:00:00.000Z",
    "requestContext": {"requestId": "r", "condition": "Success", "approximateInvokeCount": 1},
    "requestPayload": {},
    "responsePayload": {},
}
NO_REQUESTS: dict[str, Any] = {
    "SQS": SQS,
    "EventBridge": EVENT_BRIDGE,
    "WebSocket": CONNECT,
    "Lambda@Edge": EDGE,
    "destination": DESTINATION,
    "of our own": {"kind": "responses.background", "id": "resp_1"},
    "nothing": {},
    "no context": {"version": "2.0", "requestContext": None},
    "context of text": {"version": "2.0", "requestContext": "http"},
    "list": [1, 2],
    "text": "ping",
    "number": 7,
    "null": None,
}


def read(
    event: Any,
    settings: DoorSettings = DoorSettings(),  # noqa: B008 - frozen
    context: Any = None,
    *,
    may_stream: bool = True,
) -> HTTPEvent:
    request = HTTPEvents(settings, may_stream=may_stream).read(event, context or Context())
    assert request is not None
    return request


# --- doors and modes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "door"), ALL.values(), ids=ALL)
def test_a_request_is_known_by_its_door(make: Make, door: Door) -> None:
    request = read(make("POST", "/v1/responses", {}, b"{}"))

    assert request.door is door


def test_a_function_url_behind_a_domain_of_its_own_is_one_still() -> None:
    event = function_url("GET", "/", {"host": "api.example.com"})

    assert read(event).door is Door.FUNCTION_URL


@pytest.mark.parametrize("event", NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_other_events_are_no_requests(event: Any) -> None:
    assert HTTPEvents(DoorSettings(), may_stream=True).read(event, Context()) is None


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("rest_api_streams", [True, False])
@pytest.mark.parametrize("url_streams", [True, False])
@pytest.mark.parametrize(("make", "door"), ALL.values(), ids=ALL)
def test_who_streams_is_what_the_callable_says_or_else_the_settings(
    make: Make, door: Door, url_streams: bool, rest_api_streams: bool, said: bool | None
) -> None:
    event = make("GET", "/", {}, b"")
    asked: list[LambdaEvent] = []

    def streams(given: LambdaEvent) -> bool | None:
        asked.append(given)
        return said

    settings = DoorSettings(
        url_streams=url_streams, rest_api_streams=rest_api_streams, streams=streams
    )
    request = read(event, settings)

    inferred = {Door.FUNCTION_URL: url_streams, Door.REST_API: rest_api_streams}.get(door, False)
    assert request.streams is (inferred if said is None else said)
    assert request.streams is request.streams
    assert asked == [event]


@pytest.mark.parametrize("make", MAKES, ids=ALL)
def test_where_replies_are_whole_nobody_streams_and_nobody_is_asked(make: Make) -> None:
    def streams(_: LambdaEvent) -> bool:
        raise AssertionError

    request = read(
        make("GET", "/", {}, b""),
        DoorSettings(rest_api_streams=True, streams=streams),
        may_stream=False,
    )

    assert request.streams is False


# --- time ----------------------------------------------------------------------------------------


def lambda_gives(seconds: float) -> SimpleNamespace:
    return SimpleNamespace(get_remaining_time_in_millis=lambda: int(seconds * 1000))


@pytest.mark.parametrize(
    ("make", "streams", "lambda_s", "limit_s"),
    [
        (function_url, True, 900, 900),
        (function_url, False, 900, 900),
        (http_api, False, 900, 29),
        (http_api, False, 10, 10),
        (rest_api, True, 900, 900),
        (rest_api, False, 900, 28),
        (rest_api, False, 10, 10),
        (load_balancer, False, 900, 45),
        (load_balancer, False, 10, 10),
    ],
)
def test_a_request_has_the_time_of_its_door_less_the_margin(
    make: Make, streams: bool, lambda_s: float, limit_s: float
) -> None:
    settings = DoorSettings(streams=lambda _: streams, margin_s=4.0, load_balancer_s=45.0)

    request = read(make("GET", "/"), settings, lambda_gives(lambda_s))

    assert request.time_left == TimeLeft(limit_s - 4.0, 4.0)
    deadline = request.scope[DEADLINE]
    assert isinstance(deadline, Deadline)
    assert deadline.ends_at - time.monotonic() == pytest.approx(request.time_left.turn_s, abs=5)
    assert deadline.margin_s == request.time_left.margin_s


def test_a_margin_is_at_most_half_of_the_time() -> None:
    request = read(function_url("GET", "/"), DoorSettings(margin_s=5.0), lambda_gives(3))

    assert request.time_left == TimeLeft(1.5, 1.5)


def test_without_a_limit_nothing_ends_a_turn() -> None:
    no_limit = SimpleNamespace()

    by_url = read(function_url("GET", "/"), context=no_limit)
    by_http_api = read(http_api("GET", "/"), context=no_limit)

    assert (by_url.time_left, by_http_api.time_left) == (None, TimeLeft(24.0, 5.0))
    assert DEADLINE not in by_url.scope


# --- the scope -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKES, ids=ALL)
def test_the_scope_is_complete_through_every_door(make: Make) -> None:
    headers = {"Authorization": "Bearer k", "X-Forwarded-Proto": "https", "Accept": "a/b"}
    event = make("POST", "/v1/responses/resp_1?limit=2&after=a", headers, b"{}")
    context = Context()

    scope = read(event, context=context).scope

    assert (scope["type"], scope["method"], scope["http_version"]) == ("http", "POST", "1.1")
    assert (scope["path"], scope["raw_path"]) == ("/v1/responses/resp_1", b"/v1/responses/resp_1")
    assert scope["root_path"] == ""
    assert dict(QueryParams(scope["query_string"])) == {"limit": "2", "after": "a"}
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert scope["extensions"] == {}
    assert (scope["aws.event"], scope["aws.context"]) == (event, context)
    assert (scope["scheme"], scope["client"]) == ("https", ("192.0.2.1", 0))
    assert isinstance(scope["headers"], list)
    assert {type(header) for header in scope["headers"]} == {tuple}
    assert {(b"authorization", b"Bearer k"), (b"accept", b"a/b")} <= set(scope["headers"])


@pytest.mark.parametrize("make", MAKES, ids=ALL)
def test_a_framework_reads_the_scope(make: Make) -> None:
    event = make("get", "/v1/models?x=%C3%BC", {"Cookie": "a=1; b=2"}, b"")

    request = Request(read(event).scope)

    assert (request.method, request.cookies) == ("GET", {"a": "1", "b": "2"})
    assert URL(str(request.url)).path == "/v1/models"


def test_cookies_of_their_own_field_are_a_header() -> None:
    event = {**function_url("GET", "/"), "cookies": ["a=1", "b=2"]}

    assert (b"cookie", b"a=1; b=2") in read(event).scope["headers"]


@pytest.mark.parametrize("make", MAKES, ids=ALL)
def test_a_path_is_read_and_kept_as_it_was_sent(make: Make) -> None:
    scope = read(make("GET", "/v1/gr%C3%BC%C3%9F%2Fdich", {}, b"")).scope

    assert (scope["path"], scope["raw_path"]) == (
        "/v1/grüß/dich",
        b"/v1/gr%C3%BC%C3%9F%2Fdich",
    )


@pytest.mark.parametrize(
    ("stage", "sent", "path"),
    [
        ("prod", "/prod/v1/models", "/v1/models"),
        ("prod", "/prod/prod/x", "/prod/x"),
        ("prod", "/prod/", "/"),
        ("prod", "/prod", "/"),
        ("prod", "/production/x", "/production/x"),
        ("prod", "/v1/prod/x", "/v1/prod/x"),
        ("$default", "/v1/models", "/v1/models"),
        ("$default", "/$default/models", "/$default/models"),
        (None, "/None/models", "/None/models"),
    ],
)
def test_the_stage_of_an_http_api_is_no_part_of_the_path(
    stage: str | None, sent: str, path: str
) -> None:
    event = http_api("GET", sent)
    event["requestContext"]["stage"] = stage

    scope = read(event).scope

    assert (scope["path"], scope["raw_path"]) == (path, path.encode())


def test_the_stage_of_a_rest_api_is_not_in_its_path() -> None:
    assert read(rest_api("GET", "/prod/x")).scope["path"] == "/prod/x"


def test_a_path_may_be_missing() -> None:
    event = {**load_balancer("GET", "/"), "path": ""}

    scope = read(event).scope

    assert (scope["path"], scope["raw_path"]) == ("/", b"/")


# --- the body ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKES, ids=ALL)
@pytest.mark.parametrize("body", [b"", '{"input": "grüß dich"}'.encode()])
def test_a_body_is_read_through_every_door(make: Make, body: bytes) -> None:
    assert read(make("POST", "/", {}, body)).body == body


@pytest.mark.parametrize("is_encoded", [True, False])
@pytest.mark.parametrize("body", [None, ""])
def test_a_body_may_be_missing(body: str | None, is_encoded: bool) -> None:
    event = {**rest_api("GET", "/"), "body": body, "isBase64Encoded": is_encoded}

    assert read(event).body == b""


def test_bytes_that_are_no_text_come_as_base64() -> None:
    assert read(function_url("POST", "/", {}, b"\xff\0")).body == b"\xff\0"


BROKEN_BODIES: dict[str, dict[str, Any]] = {
    "no base64": {"body": "no base64!", "isBase64Encoded": True},
    "half of base64": {"body": "YWJ", "isBase64Encoded": True},
    "base64 in lines": {"body": "YWJj\nYWJj", "isBase64Encoded": True},
    "base64 of another alphabet": {"body": "__--", "isBase64Encoded": True},
    "no ASCII": {"body": "grüß", "isBase64Encoded": True},
    "an object": {"body": {"a": 1}, "isBase64Encoded": False},
    "an encoded object": {"body": {"a": 1}, "isBase64Encoded": True},
    "a number": {"body": 7},
    "half a character": {"body": "\ud83d", "isBase64Encoded": False},
}


@pytest.mark.parametrize("broken", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
@pytest.mark.parametrize("make", MAKES, ids=ALL)
def test_a_broken_body_is_the_clients_fault(make: Make, broken: dict[str, Any]) -> None:
    request = read({**make("POST", "/", {}, b""), **broken})

    with pytest.raises(RequestError) as raised:
        _ = request.body

    assert (raised.value.status, raised.value.code) == (400, "invalid_request")
    assert raised.value.message == "The request could not be read: its body."


# --- what cannot be read -------------------------------------------------------------------------

BROKEN: dict[str, LambdaEvent] = {
    "URL, headers of a list": {**function_url("GET", "/"), "headers": ["a"]},
    "URL, headers of null": {**function_url("GET", "/"), "headers": None},
    "URL, a header of null": {**function_url("GET", "/"), "headers": {"a": None}},
    "URL, a header of half a character": {**function_url("GET", "/"), "headers": {"a": "\ud83d"}},
    "URL, a port that is none": {**function_url("GET", "/"), "headers": {"host": "h:port"}},
    "URL, query of null": {**function_url("GET", "/"), "rawQueryString": None},
    "URL, query of an object": {**function_url("GET", "/"), "rawQueryString": {}},
    "URL, cookies of numbers": {**function_url("GET", "/"), "cookies": [1]},
    "URL, http of null": {
        **function_url("GET", "/"),
        "requestContext": {"domainName": "a.lambda-url.b.on.aws", "http": None},
    },
    "URL, no method": {
        **function_url("GET", "/"),
        "requestContext": {"http": {"path": "/", "sourceIp": "192.0.2.1"}},
    },
    "URL, a method of null": {
        **function_url("GET", "/"),
        "requestContext": {"http": {"method": None, "path": "/", "sourceIp": "192.0.2.1"}},
    },
    "URL, a path of a number": {**function_url("GET", "/"), "rawPath": 7},
    "REST API, headers of a list": {**rest_api("GET", "/"), "headers": ["a"]},
    "REST API, many headers of text": {**rest_api("GET", "/"), "multiValueHeaders": "a"},
    "REST API, a query of text": {**rest_api("GET", "/"), "multiValueQueryStringParameters": "a"},
    "REST API, a path of null": {**rest_api("GET", "/"), "path": 7},
    "REST API, a method of null": {**rest_api("GET", "/"), "httpMethod": None},
    "HTTP API 1.0, no path": {
        name: value for name, value in http_api_of_version_1("GET", "/").items() if name != "path"
    },
    "load balancer, no headers": {
        name: value for name, value in load_balancer("GET", "/").items() if name != "headers"
    },
    "load balancer, a query of a list": {
        **load_balancer("GET", "/"),
        "queryStringParameters": ["a"],
    },
    "load balancer, many headers of null": {**load_balancer("GET", "/"), "multiValueHeaders": None},
}


@pytest.mark.parametrize("event", BROKEN.values(), ids=BROKEN)
def test_a_request_that_cannot_be_read_is_answered_in_its_doors_format(event: LambdaEvent) -> None:
    request = read(event)

    with pytest.raises(RequestError) as raised:
        _ = request.scope
    reply = error_answer(request, raised.value.message, status=400, code=raised.value.code)

    assert raised.value.status == 400
    assert (reply["statusCode"], reply["isBase64Encoded"]) == (400, False)
    assert json.loads(reply["body"]) == {
        "error": {
            "message": "The request could not be read: its method, path and headers.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_request",
        }
    }


# --- whole replies -------------------------------------------------------------------------------

JSON = [(b"content-type", b"application/json")]


@pytest.mark.parametrize(
    ("make", "limit", "shown"),
    [
        (function_url, MAX_REPLY_BYTES, "this function URL can carry (6 MB)"),
        (http_api, MAX_REPLY_BYTES, "this HTTP API can carry (6 MB)"),
        (rest_api, MAX_REPLY_BYTES, "this REST API can carry (6 MB)"),
        (load_balancer, 1024 * 1024, "this load balancer can carry (1 MB)"),
    ],
)
def test_a_reply_may_be_as_large_as_its_door_carries_and_no_larger(
    make: Make, limit: int, shown: str
) -> None:
    request = read(make("GET", "/"))
    around = len(json.dumps(answer(request, 200, JSON, b"x"), separators=(",", ":"))) - 1

    fits = answer(request, 200, JSON, b"x" * (limit - around))
    exceeds = answer(request, 200, JSON, b"x" * (limit - around + 1))

    assert (fits["statusCode"], exceeds["statusCode"]) == (200, 500)
    error = json.loads(exceeds["body"])["error"]
    assert error["code"] == "reply_too_large"
    assert error["message"] == f"The reply is larger than {shown}."


def test_what_json_makes_of_a_reply_counts() -> None:
    request = read(http_api("GET", "/"))

    assert answer(request, 200, JSON, b'"' * (MAX_REPLY_BYTES // 2 + 1))["statusCode"] == 500
    assert answer(request, 200, JSON, b"\x01" * (MAX_REPLY_BYTES // 6 + 1))["statusCode"] == 500
    assert answer(request, 200, JSON, b"x" * (MAX_REPLY_BYTES // 2 + 1))["statusCode"] == 200


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (b"application/json", b'{"id":"resp_42","x":"'),
        (b"text/event-stream", b'event: response.created\ndata: {"response":{"id": "resp_42"'),
        (b"application/octet-stream", b'{"id":"resp_42","x":"'),
    ],
)
def test_a_stored_response_too_large_for_its_door_is_named(
    content_type: bytes, body: bytes
) -> None:
    request = read(load_balancer("GET", "/"))

    reply = answer(request, 200, [(b"content-type", content_type)], body + b"x" * 1024 * 1024)

    message = json.loads(reply["body"])["error"]["message"]
    assert message.endswith(
        " A stored response can be retrieved by its id, resp_42, where replies are streamed."
    )
    assert reply["headers"]["x-should-retry"] == "false"


def test_a_reply_of_bytes_is_base64() -> None:
    reply = answer(read(function_url("GET", "/")), 200, [(b"content-type", b"a/b")], b"\xff")

    assert (reply["isBase64Encoded"], base64.b64decode(reply["body"])) == (True, b"\xff")


def test_a_load_balancer_of_many_values_gets_many_values() -> None:
    event = EVENTS["load balancer, many values"]("GET", "/", {}, b"")

    reply = answer(read(event), 200, [*JSON, (b"set-cookie", b"a"), (b"set-cookie", b"b")], b"{}")

    assert reply["multiValueHeaders"]["set-cookie"] == ["a", "b"]
    assert "headers" not in reply


# --- unknown events ------------------------------------------------------------------------------

SUPPORTED = (
    "Supported are HTTP requests through a function URL, HTTP API, REST API, load balancer; for other "
    "events a worker can be registered, and none is."
)


@pytest.mark.parametrize(
    ("event", "got"),
    [
        (SQS, "an object with the fields [Records]"),
        ({}, "an object with the fields []"),
        (EVENT_BRIDGE, "an object with the fields [detail, detail-type, id, source, version]"),
        ([1], "a value of type list"),
        ("ping", "a value of type str"),
        (None, "a value of type NoneType"),
        (
            {f"field{number:02}": "a secret" for number in range(20)},
            f"an object with the fields [{', '.join(f'field{number:02}' for number in range(12))}, …]",
        ),
    ],
)
def test_an_unknown_event_is_named_by_its_fields_and_never_by_its_values(
    event: Any, got: str
) -> None:
    assert str(UnknownEventError(event)) == f"The event is {got}. {SUPPORTED}"
