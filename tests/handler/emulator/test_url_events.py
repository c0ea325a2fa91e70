"""Requests as a function URL's events."""

import base64
from typing import Any

import pytest

from handler.emulator.url_events import HTTPRequest, url_event


def event(**request: Any) -> dict[str, Any]:
    asked = HTTPRequest(**{"method": "GET", "path": "/", "at": 1583348638.39, **request})
    return url_event(asked, "request-1", "Root=1-5e5fdf9e-1", "eu-central-1")


def test_an_event_is_payload_2_0_of_a_function_url() -> None:
    made = event(
        method="POST",
        path="/my/pa%20th",
        query="parameter1=value1&parameter1=value2&parameter2=va%20lue&empty=",
        headers=[
            ("Host", "127.0.0.1:8100"),
            ("Cookie", "cookie1=1; cookie2=2"),
            ("Header1", "value1"),
            ("header2", "value1"),
            ("Header2", "value2"),
            ("User-Agent", "agent"),
            ("Connection", "keep-alive"),
            ("Content-Type", "text/plain"),
            ("Transfer-Encoding", "chunked"),
        ],
        body="Hello from client ✓".encode(),
        client_ip="192.0.2.1",
    )

    assert made == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/my/pa%20th",
        "rawQueryString": "parameter1=value1&parameter1=value2&parameter2=va%20lue&empty=",
        "cookies": ["cookie1=1", "cookie2=2"],
        "headers": {
            "header1": "value1",
            "header2": "value1,value2",
            "user-agent": "agent",
            "content-type": "text/plain",
            "content-length": "21",
            "host": "local.lambda-url.eu-central-1.on.aws",
            "x-amzn-trace-id": "Root=1-5e5fdf9e-1",
            "x-forwarded-for": "192.0.2.1",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "queryStringParameters": {
            "parameter1": "value1,value2",
            "parameter2": "va lue",
            "empty": "",
        },
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "local",
            "domainName": "local.lambda-url.eu-central-1.on.aws",
            "domainPrefix": "local",
            "http": {
                "method": "POST",
                "path": "/my/pa%20th",
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "agent",
            },
            "requestId": "request-1",
            "routeKey": "$default",
            "stage": "$default",
            "time": "04/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1583348638390,
        },
        "body": "Hello from client ✓",
        "isBase64Encoded": False,
    }


def test_what_a_request_has_not_is_left_out() -> None:
    made = event()

    assert not {"cookies", "queryStringParameters", "body"} & set(made)
    assert made["isBase64Encoded"] is False
    assert "content-length" not in made["headers"]


def test_proxies_on_the_way_stay_named() -> None:
    made = event(headers=[("X-Forwarded-For", "198.51.100.7")], client_ip="192.0.2.1")

    assert made["headers"]["x-forwarded-for"] == "198.51.100.7, 192.0.2.1"


@pytest.mark.parametrize(
    ("content_type", "body", "is_text"),
    [
        ("text/plain", b"a", True),
        ("text/html; charset=utf-8", b"a", True),
        ("application/json", b"{}", True),
        ("Application/JSON; charset=utf-8", b"{}", True),
        ("application/vnd.api+json", b"{}", True),
        ("application/xml", b"<a/>", True),
        ("application/javascript", b"1", True),
        ("application/json", b"\xff", False),
        ("application/x-www-form-urlencoded", b"a=1", False),
        ("multipart/form-data; boundary=text/plain", b"a", False),
        ("application/octet-stream", b"a", False),
        ("image/png", b"\x89PNG", False),
        ("", b"a", False),
    ],
)
def test_a_body_is_text_or_base64(content_type: str, body: bytes, is_text: bool) -> None:
    made = event(method="POST", headers=[("content-type", content_type)], body=body)

    expected = body.decode() if is_text else base64.b64encode(body).decode()
    assert (made["body"], made["isBase64Encoded"]) == (expected, not is_text)
