import pytest

from channel.responses.protocol.errors import (
    RequestError,
    error_body,
    previous_response_not_found,
    response_not_found,
)


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (405, "invalid_request_error"),
        (409, "invalid_request_error"),
        (413, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_body_has_all_four_keys(status: int, error_type: str) -> None:
    assert error_body("No.", status=status) == {
        "error": {"message": "No.", "type": error_type, "param": None, "code": None}
    }


def test_an_error_body_names_the_parameter_and_the_code() -> None:
    assert error_body("No.", status=400, param="model", code="model_not_found") == {
        "error": {
            "message": "No.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def facts(error: RequestError) -> tuple[str, int, str | None, str | None]:
    return error.message, error.status, error.param, error.code


def test_an_unknown_response_is_a_404() -> None:
    assert facts(response_not_found("resp_1")) == (
        "Response with id 'resp_1' not found.",
        404,
        None,
        None,
    )


def test_an_unknown_previous_response_is_a_400() -> None:
    assert facts(previous_response_not_found("resp_1")) == (
        "Previous response with id 'resp_1' not found.",
        400,
        "previous_response_id",
        "previous_response_not_found",
    )


def test_the_text_of_a_request_error_is_its_message() -> None:
    assert str(RequestError("No.")) == "No."
