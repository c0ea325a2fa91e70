"""What workers and readers of events are told of an invocation."""

import pytest

from handler.context import context_of
from handler.runtime_api import Invocation, ReplyReader
from infra.settings import RuntimeSettings


SETTINGS = RuntimeSettings(
    api_address="127.0.0.1:9001",
    handler="app.handler",
    function_name="f",
    function_version="7",
    memory_mb=512,
    log_group="/aws/lambda/f",
    log_stream="2026/11/25/[7]abc",
)


def test_a_context_tells_what_lambdas_own_does() -> None:
    invocation = Invocation(
        "id-1",
        b"{}",
        deadline_ms=10_500,
        function_arn="arn:aws:lambda:us-east-1:0:function:f",
        client_context='{"custom":{"a":"b"}}',
        cognito_identity='{"cognitoIdentityId":"i"}',
        tenant_id="tenant-7",
    )

    context = context_of(invocation, SETTINGS, lambda: 10.0)

    assert context.aws_request_id == "id-1"
    assert (context.function_name, context.function_version) == ("f", "7")
    assert context.invoked_function_arn == "arn:aws:lambda:us-east-1:0:function:f"
    assert context.memory_limit_in_mb == 512
    assert (context.log_group_name, context.log_stream_name) == (
        "/aws/lambda/f",
        "2026/11/25/[7]abc",
    )
    assert context.client_context == {"custom": {"a": "b"}}
    assert context.identity == {"cognitoIdentityId": "i"}
    assert context.tenant_id == "tenant-7"


@pytest.mark.parametrize(("now", "left"), [(10.0, 500), (10.2504, 250), (10.5, 0), (99.0, 0)])
def test_the_time_that_is_left_runs_down_to_nothing(now: float, left: int) -> None:
    invocation = Invocation("id-1", b"{}", deadline_ms=10_500)

    context = context_of(invocation, SETTINGS, lambda: now)

    assert context.get_remaining_time_in_millis() == left


@pytest.mark.parametrize(
    "given", [None, "", "no JSON", "[1]", '"text"', "null", "[" * 100_000, "ÿ"]
)
def test_what_callers_send_instead_of_an_object_is_nothing(given: str | None) -> None:
    invocation = Invocation("id-1", b"{}", client_context=given, cognito_identity=given)

    context = context_of(invocation, SETTINGS, lambda: 0.0)

    assert (context.client_context, context.identity) == (None, None)


def test_the_client_context_is_utf_8() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nLambda-Runtime-Aws-Request-Id: id-1\r\n"
        b"Lambda-Runtime-Client-Context: " + '{"custom":{"a":"grüß"}}'.encode() + b"\r\n\r\n"
    )
    reply = ReplyReader().feed(head)
    assert reply is not None

    context = context_of(Invocation.from_reply(reply), SETTINGS, lambda: 0.0)

    assert context.client_context == {"custom": {"a": "grüß"}}
