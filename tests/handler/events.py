"""Lambda events of every door that the buffered mount serves, made from one request."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Context:
    """What is used of Lambda's context object."""

    aws_request_id: str = "6b1f2c1e-0000-4000-8000-000000000001"
    function_name: str = "responses"
    memory_limit_in_mb: int = 512
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:000000000000:function:responses"

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


def function_url(
    method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> dict[str, Any]:
    """A function URL's event: payload 2.0, always from the stage `$default`."""
    path, _, query = path.partition("?")
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {"host": "abc.lambda-url.us-east-1.on.aws", **(headers or {})},
        "requestContext": {
            "accountId": "anonymous",
            "domainName": "abc.lambda-url.us-east-1.on.aws",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "test",
            },
            "requestId": "id",
            "routeKey": "$default",
            "stage": "$default",
        },
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def http_api(
    method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> dict[str, Any]:
    """An HTTP API's event: payload 2.0, with a text body."""
    event = function_url(method, path, headers, body)
    domain = "abc.execute-api.us-east-1.amazonaws.com"
    return {
        **event,
        "routeKey": f"{method} /{{proxy+}}",
        "headers": {**event["headers"], "host": domain},
        "requestContext": {**event["requestContext"], "domainName": domain},
        "body": body.decode(),
        "isBase64Encoded": False,
    }


def rest_api(
    method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> dict[str, Any]:
    """A REST API's event: payload 1.0."""
    path, _, query = path.partition("?")
    headers = {"Host": "api.example.com", **(headers or {})}
    pairs = [pair.partition("=")[::2] for pair in query.split("&") if pair]
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": dict(pairs) or None,
        "multiValueQueryStringParameters": {name: [value] for name, value in pairs} or None,
        "pathParameters": {"proxy": path.lstrip("/")},
        "requestContext": {
            "resourcePath": "/{proxy+}",
            "httpMethod": method,
            "path": f"/prod{path}",
            "stage": "prod",
            "requestId": "id",
            "identity": {"sourceIp": "192.0.2.1"},
        },
        "body": body.decode() or None,
        "isBase64Encoded": False,
    }


def load_balancer(
    method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> dict[str, Any]:
    """A load balancer's event, without multi-value headers."""
    path, _, query = path.partition("?")
    arn = "arn:aws:elasticloadbalancing:us-east-1:000000000000:targetgroup/t/1"
    return {
        "requestContext": {"elb": {"targetGroupArn": arn}},
        "httpMethod": method,
        "path": path,
        "queryStringParameters": dict(
            pair.partition("=")[::2] for pair in query.split("&") if pair
        ),
        "headers": {"host": "lb.example.com", "x-forwarded-for": "192.0.2.1", **(headers or {})},
        "body": body.decode(),
        "isBase64Encoded": False,
    }


DOORS = (function_url, http_api, rest_api, load_balancer)
