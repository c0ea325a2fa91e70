"""Lambda's API as a function calls it: what is taken, what is refused, and what an answer looks like."""

import asyncio
import json
from functools import partial
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError

from channel.ports import Job, StoreError
from handler.emulator.invoke_api import MAX_ASYNCHRONOUS_BYTES, MAX_SYNCHRONOUS_BYTES
from infra.invoke import SelfInvoker, make_lambda_client
from tests.handler.emulator.serving import WORKER, Gate, serving


pytestmark = pytest.mark.anyio

NAME = "lambda-responses"


@pytest.mark.parametrize(
    "name",
    [
        NAME,
        f"{NAME}:live",
        f"{NAME}:$LATEST",
        f"000000000000:function:{NAME}",
        f"arn:aws:lambda:us-east-1:000000000000:function:{NAME}:7",
    ],
)
async def test_the_function_answers_by_any_of_its_names(name: str) -> None:
    async with serving(WORKER) as served:
        reply = await served.invoke({"name": "a"}, function=name)
        (pid,) = served.url.pids

    (record,) = served.url.invocations
    assert (reply.status_code, reply.headers["x-amz-executed-version"]) == (200, "$LATEST")
    assert reply.json() == {
        "event": {"name": "a"},
        "request": record.request_id,
        "process": pid,
    }
    assert reply.headers["x-amzn-requestid"] == record.request_id
    assert (record.kind, record.pid, record.status) == ("RequestResponse", pid, 200)


async def test_without_a_payload_the_event_is_an_empty_object() -> None:
    async with serving(WORKER) as served:
        reply = await served.invoke(b"")

    assert reply.json()["event"] == {}


async def test_what_the_function_raises_is_a_function_error() -> None:
    async with serving(WORKER) as served:
        reply = await served.invoke({"does": "fail", "name": "a"})

    (record,) = served.url.invocations
    assert (reply.status_code, reply.headers["x-amz-function-error"]) == (200, "Unhandled")
    assert reply.json() == {
        "errorType": "LookupError",
        "errorMessage": f"The worker failed. Request id: {record.request_id}",
    }


async def test_a_streamed_reply_is_passed_on_as_it_is() -> None:
    request = {"http": {"method": "GET", "path": "/hello", "sourceIp": "127.0.0.1"}}
    event = {
        "version": "2.0",
        "rawPath": "/hello",
        "rawQueryString": "",
        "headers": {"host": "local.lambda-url.us-east-1.on.aws"},
        "requestContext": {"domainName": "local.lambda-url.us-east-1.on.aws", **request},
        "isBase64Encoded": False,
    }
    async with serving(WORKER) as served:
        reply = await served.invoke(event)

    assert reply.content.startswith(b'{"statusCode":200,')
    assert reply.content.endswith(bytes(8) + b"hello")


async def test_an_invocation_that_nobody_has_room_for_is_throttled(gate: Gate) -> None:
    async with serving(WORKER) as served, asyncio.TaskGroup() as group:
        group.create_task(served.invoke({"name": "a", **gate.header}))
        await served.lines.until("working on a")
        reply = await served.invoke({"name": "b"})
        gate.open()

    assert reply.status_code == 429
    assert reply.headers["x-amzn-errortype"] == "TooManyRequestsException"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"function": "other:live"}, (404, "ResourceNotFoundException")),
        ({"function": "no name"}, (404, "ResourceNotFoundException")),
        ({"path": "/2015-03-31/functions"}, (404, "UnknownOperationException")),
        ({"path": "/v1/responses"}, (404, "UnknownOperationException")),
        ({"authorization": "Bearer dev-alpha"}, (403, "MissingAuthenticationTokenException")),
        ({"kind": "DryRun"}, (400, "InvalidParameterValueException")),
        ({"event": b"{"}, (400, "InvalidRequestContentException")),
        ({"event": b"\xff"}, (400, "InvalidRequestContentException")),
        (
            {"event": bytes(MAX_ASYNCHRONOUS_BYTES + 1), "kind": "Event"},
            (413, "RequestTooLargeException"),
        ),
        ({"event": bytes(MAX_SYNCHRONOUS_BYTES + 1)}, (413, "RequestTooLargeException")),
    ],
    ids=str,
)
async def test_what_lambda_would_refuse_is_refused_and_runs_nothing(
    given: dict[str, Any], expected: tuple[int, str]
) -> None:
    async with serving(WORKER) as served:
        reply = await served.invoke(**{"event": b"{}", **given})

    assert (reply.status_code, reply.headers["x-amzn-errortype"]) == expected
    assert reply.json().keys() == {"Type", "Message"}
    assert not served.url.invocations
    assert not served.url.pids


async def test_an_asynchronous_payload_may_be_as_large_as_lambda_takes_it() -> None:
    frame = len(json.dumps({"name": ""}))
    async with serving(WORKER) as served:
        reply = await served.invoke({"name": "x" * (MAX_ASYNCHRONOUS_BYTES - frame)}, kind="Event")
        await served.lines.until("REPORT")

    assert reply.status_code == 202
    assert served.url.invocations[0].error is None


async def test_a_request_that_breaks_off_invokes_nothing() -> None:
    async with serving(WORKER) as served:
        endpoint = httpx.URL(served.url.lambda_endpoint)
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        path = f"/2015-03-31/functions/{NAME}/invocations"
        writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await served.invoke({"name": "a"})

    assert len(served.url.invocations) == 1


async def test_a_job_reaches_the_worker_by_the_client_that_a_function_has() -> None:
    async with serving(WORKER) as served:
        make = partial(make_lambda_client, None, served.url.lambda_endpoint)
        await SelfInvoker(make, f"{NAME}:live").start(Job("mine", {"of": "Ann"}))
        await served.lines.until("REPORT")
        again = await served.invoke({"name": "a"})
        with pytest.raises(StoreError) as raised:
            await SelfInvoker(make, "other").start(Job("mine", {}))

    record = served.url.invocations[0]
    assert (record.kind, record.error, record.pid) == ("Event", None, again.json()["process"])
    cause = raised.value.__cause__
    assert isinstance(cause, ClientError)
    arn = "arn:aws:lambda:us-east-1:000000000000:function:other"
    assert cause.response["Error"] == {
        "Code": "ResourceNotFoundException",
        "Message": f"Function not found: {arn}",
    }


async def test_the_function_is_told_where_lambda_is_unless_its_owner_says_otherwise() -> None:
    async with serving() as served:
        told = (await served.get("/environ")).json()
    async with serving(environ={"LAMBDA_ENDPOINT": "http://127.0.0.1:1"}) as other:
        told_by_owner = (await other.get("/environ")).json()

    assert told["LAMBDA_ENDPOINT"] == served.url.lambda_endpoint != served.url.root
    assert told_by_owner["LAMBDA_ENDPOINT"] == "http://127.0.0.1:1"


async def test_no_path_of_the_url_is_lambdas() -> None:
    async with serving(WORKER) as served:
        reply = await served.client.post(f"/2015-03-31/functions/{NAME}/invocations", json={})

    assert (reply.status_code, reply.text) == (404, "Not Found")
    assert [record.kind for record in served.url.invocations] == ["URL"]
