"""What a client learns of a provider's error: by its attributes, its causes, and never its text."""

from typing import Any

import pytest

from channel.agent import TurnError
from channel.agents.provider_errors import turn_error_of


class _ApiError(Exception):
    def __init__(self, text: str = "secret detail", **attributes: Any) -> None:
        super().__init__(text)
        self.__dict__.update(attributes)


class _Reply:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class ContextWindowOverflow(Exception):  # noqa: N818 - named as a framework names its own
    pass


def _aws(code: str, status: int = 400, text: str = "secret detail") -> _ApiError:
    reply = {
        "Error": {"Code": code, "Message": text},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return _ApiError(text, response=reply)


def _streamed(code: str, text: str = "secret detail") -> _ApiError:
    """Return an error of AWS in the middle of a stream, which has no status."""
    return _ApiError(text, response={"Error": {"Code": code, "Message": text}})


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (_ApiError(status_code=429), 429, "rate_limit_exceeded"),
        (_ApiError(response=_Reply(429)), 429, "rate_limit_exceeded"),
        (_aws("ThrottlingException", 400), 429, "rate_limit_exceeded"),
        (_ApiError(status_code=503), 503, "server_error"),
        (_ApiError(status_code=529), 503, "server_error"),
        (_aws("ServiceUnavailableException", 400), 503, "server_error"),
        (_streamed("throttlingException"), 429, "rate_limit_exceeded"),
        (_streamed("serviceUnavailableException"), 503, "server_error"),
        (
            _streamed("validationException", "prompt is too long: 9 tokens > 8 maximum"),
            400,
            "context_length_exceeded",
        ),
        (_ApiError(code="context_length_exceeded"), 400, "context_length_exceeded"),
        (ContextWindowOverflow(), 400, "context_length_exceeded"),
        (_aws("ValidationException", 400, "Input is too long."), 400, "context_length_exceeded"),
        (
            _ApiError("maximum context length is 8192 tokens", status_code=400),
            400,
            "context_length_exceeded",
        ),
    ],
)
def test_a_known_error_is_told(error: Exception, status: int, code: str) -> None:
    told = turn_error_of(error)

    assert told is not None
    assert (told.status, told.code) == (status, code)
    assert "secret" not in told.message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("429"),
        _ApiError(status_code=401),
        _ApiError(status_code=500),
        _ApiError("context length", status_code=500),
        _ApiError(status_code="429"),
        _ApiError(response={}),
        _aws("AccessDeniedException", 403),
    ],
)
def test_any_other_error_stays_hidden(error: Exception) -> None:
    assert turn_error_of(error) is None


@pytest.mark.parametrize("how", ["__cause__", "__context__"])
def test_an_error_is_known_by_its_cause(how: str) -> None:
    error = RuntimeError()
    setattr(error, how, _ApiError(status_code=429))

    told = turn_error_of(error)

    assert told is not None
    assert told.code == "rate_limit_exceeded"


def test_a_turn_error_among_the_causes_is_told_as_it_is() -> None:
    known = TurnError("Please say less.", code="too_much", status=400)
    wrapping = RuntimeError()
    wrapping.__cause__ = known

    assert turn_error_of(wrapping) is known


def test_errors_that_are_each_others_cause_end_the_search() -> None:
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first

    assert turn_error_of(first) is None
