"""What a client learns of an upstream's errors, and what it does not."""

from typing import Any

import pytest

from channel.agents.openai_wire.errors import (
    UpstreamError,
    known_error,
    unavailable,
    upstream_error,
)


SECRET = "secret detail of org-1 and sk-1"


def refused(status: int, code: str = "", param: str = "") -> UpstreamError:
    return UpstreamError(SECRET, code=code, status=status, param=param)


@pytest.mark.parametrize(
    "error",
    [
        refused(401, "invalid_api_key"),
        refused(403),
        refused(404, "model_not_found", "model"),
        refused(400, "model_not_found"),
        refused(400, "", "model"),
        refused(400, "unsupported_value", "stream"),
        refused(400, "", "stream_options.include_usage"),
        refused(429, "insufficient_quota"),
        refused(429, "billing_hard_limit_reached"),
        refused(500),
        UpstreamError(SECRET),
    ],
)
def test_what_is_not_the_callers_fault_is_nobodys_business(error: UpstreamError) -> None:
    assert known_error(error) is None


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (refused(429), 429, "rate_limit_exceeded", None),
        (refused(503), 503, "server_error", None),
        (refused(529), 503, "server_error", None),
        (refused(400, "context_length_exceeded", "messages"), 400, "context_length_exceeded", "input"),
        (
            UpstreamError("This model's maximum context length is 8 tokens.", status=400),
            400,
            "context_length_exceeded",
            "input",
        ),
        (refused(400, "unsupported_value", "temperature"), 400, "unsupported_value", "temperature"),
        (refused(400, "unsupported_parameter", "max_tokens"), 400, "unsupported_parameter", "max_output_tokens"),
        (refused(400, "unsupported_value", "reasoning_effort"), 400, "unsupported_value", "reasoning.effort"),
        (refused(400, "invalid_json_schema", "response_format"), 400, "invalid_json_schema", "text.format"),
        (
            refused(400, "invalid_function_parameters", "tools[0].function.parameters"),
            400,
            "invalid_function_parameters",
            "tools",
        ),
        (refused(400, "invalid_image_url", "input[0].content[1].image_url"), 400, "invalid_image_url", "input"),
        (refused(400, SECRET, SECRET), 400, "invalid_prompt", None),
        (refused(422), 400, "invalid_prompt", None),
        (refused(413), 400, "invalid_prompt", None),
        (UpstreamError(SECRET, code="invalid_prompt"), 400, "invalid_prompt", None),
    ],
)  # fmt: skip
def test_what_the_caller_can_change_is_told_with_its_field(
    error: UpstreamError, status: int, code: str, param: str | None
) -> None:
    known = known_error(error)

    assert known is not None
    assert (known.status, known.code, known.param) == (status, code, param)
    assert "secret" not in f"{known.message} {known.code} {known.param}"


def test_an_upstream_that_is_away_is_told_like_one_that_is_down() -> None:
    assert (unavailable().status, unavailable().code) == (503, "server_error")


@pytest.mark.parametrize(
    ("told", "code", "status"),
    [
        ({"code": "rate_limit_exceeded", "message": SECRET}, "rate_limit_exceeded", 429),
        ({"code": "server_error", "message": SECRET}, "server_error", 503),
        ({"type": "overloaded_error", "code": None, "message": SECRET}, "overloaded_error", 503),
        ({"type": "BadRequestError", "code": 400, "message": SECRET}, "BadRequestError", 400),
        ({"code": "502", "message": SECRET}, "502", 502),
        ({"message": SECRET}, "", None),
        ({"code": [], "param": {}}, "", None),
        (SECRET, "", None),
        (None, "", None),
    ],
)
def test_an_error_in_a_stream_is_read_whatever_its_shape(
    told: Any, code: str, status: int | None
) -> None:
    error = upstream_error(told)

    assert (error.code, error.status_code, error.param) == (code, status, "")
