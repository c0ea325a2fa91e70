"""The kinds of Lambda event that one request can arrive as: text or base64, single or many values."""

import base64
from collections.abc import Mapping
from typing import Final

from tests.e2e.doors import LambdaEvent, MakeEvent
from tests.handler.events import function_url, http_api, load_balancer, rest_api


def as_text(make_event: MakeEvent) -> MakeEvent:
    """Return the door with its bodies as text, as Lambda's doors send what is UTF-8."""

    def event(method: str, target: str, headers: Mapping[str, str], body: bytes) -> LambdaEvent:
        made = make_event(method, target, headers, body)
        return {**made, "body": body.decode(), "isBase64Encoded": False}

    return event


def as_base64(make_event: MakeEvent) -> MakeEvent:
    """Return the door with its bodies as base64."""

    def event(method: str, target: str, headers: Mapping[str, str], body: bytes) -> LambdaEvent:
        made = make_event(method, target, headers, body)
        return {**made, "body": base64.b64encode(body).decode(), "isBase64Encoded": True}

    return event


def without_body(make_event: MakeEvent) -> MakeEvent:
    """Return the door as it is for a request without a body: payload 2.0 leaves the field out."""

    def event(method: str, target: str, headers: Mapping[str, str], body: bytes) -> LambdaEvent:
        made = make_event(method, target, headers, body)
        if not body:
            made = {name: value for name, value in made.items() if name != "body"}
            made["isBase64Encoded"] = False
        return made

    return event


def load_balancer_of_many_values(
    method: str, target: str, headers: Mapping[str, str], body: bytes
) -> LambdaEvent:
    """A load balancer's event with multi-value headers, which leaves the single ones out."""
    made = load_balancer(method, target, headers, body)
    single, query = made.pop("headers"), made.pop("queryStringParameters")
    return {
        **made,
        "multiValueHeaders": {name: [value] for name, value in single.items()},
        "multiValueQueryStringParameters": {name: [value] for name, value in query.items()},
    }


def rest_api_of_many_values(
    method: str, target: str, headers: Mapping[str, str], body: bytes
) -> LambdaEvent:
    """A REST API's event whose single values are left out."""
    made = rest_api(method, target, headers, body)
    return {**made, "headers": None, "queryStringParameters": None}


EVENTS: Final[Mapping[str, MakeEvent]] = {
    "function URL": without_body(as_text(function_url)),
    "function URL, base64": function_url,
    "HTTP API": without_body(http_api),
    "HTTP API, base64": as_base64(http_api),
    "REST API": rest_api,
    "REST API, base64": as_base64(rest_api),
    "REST API, many values": rest_api_of_many_values,
    "load balancer": load_balancer,
    "load balancer, base64": as_base64(load_balancer),
    "load balancer, many values": as_base64(load_balancer_of_many_values),
}
