"""HTTP requests as a function URL's events: payload 2.0 of AWS's page "Invoking Lambda function URLs". No I/O."""

import base64
import re
import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

from msgspec import Struct


URL_ID: Final = "local"
_TEXT: Final = re.compile(
    r"text/.*|application/(json|xml|javascript|[^;]*\+(json|xml)) *(;.*)?", re.IGNORECASE
)
"""What is passed on as it is; a form comes as base64, too."""
_NOT_FORWARDED: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "host", "cookie", "content-length"),
    }
)


class HTTPRequest(Struct, frozen=True, kw_only=True):
    """A request as it arrived; `path` is still percent-encoded, and `at` counts seconds from the epoch."""

    method: str
    path: str
    query: str = ""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    client_ip: str = "127.0.0.1"
    at: float = 0.0


def url_event(request: HTTPRequest, request_id: str, trace_id: str, region: str) -> dict[str, Any]:
    """Return the event of a request, as a URL without authentication makes it."""
    domain = f"{URL_ID}.lambda-url.{region}.on.aws"
    headers = _headers(request, domain, trace_id)
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": request.path,
        "rawQueryString": request.query,
        "headers": headers,
        "requestContext": _context(request, domain, request_id, headers.get("user-agent", "")),
        "isBase64Encoded": False,
    }
    if cookies := _cookies(request):
        event["cookies"] = cookies
    if request.query:
        event["queryStringParameters"] = _joined(
            parse_qsl(request.query, keep_blank_values=True), ","
        )
    if request.body:
        event["body"], event["isBase64Encoded"] = _body(
            request.body, headers.get("content-type", "")
        )
    return event


def _context(request: HTTPRequest, domain: str, request_id: str, user_agent: str) -> dict[str, Any]:
    return {
        "accountId": "anonymous",
        "apiId": URL_ID,
        "domainName": domain,
        "domainPrefix": URL_ID,
        "http": {
            "method": request.method,
            "path": request.path,
            "protocol": "HTTP/1.1",
            "sourceIp": request.client_ip,
            "userAgent": user_agent,
        },
        "requestId": request_id,
        "routeKey": "$default",
        "stage": "$default",
        "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(request.at)),
        "timeEpoch": int(request.at * 1000),
    }


def _headers(request: HTTPRequest, domain: str, trace_id: str) -> dict[str, str]:
    given = _joined([(name.lower(), value) for name, value in request.headers], ",")
    headers = {name: value for name, value in given.items() if name not in _NOT_FORWARDED}
    came_by = [given["x-forwarded-for"]] if "x-forwarded-for" in given else []
    if request.body:
        headers["content-length"] = str(len(request.body))
    return {
        **headers,
        "host": domain,
        "x-amzn-trace-id": trace_id,
        "x-forwarded-for": ", ".join([*came_by, request.client_ip]),
        "x-forwarded-port": "443",
        "x-forwarded-proto": "https",
    }


def _cookies(request: HTTPRequest) -> list[str]:
    sent = [value for name, value in request.headers if name.lower() == "cookie"]
    return [cookie.strip() for value in sent for cookie in value.split(";") if cookie.strip()]


def _joined(pairs: list[tuple[str, str]], by: str) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]}{by}{value}" if name in joined else value
    return joined


def _body(body: bytes, content_type: str) -> tuple[str, bool]:
    if _TEXT.fullmatch(content_type):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(body).decode(), True
