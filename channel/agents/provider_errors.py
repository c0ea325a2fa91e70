"""Errors of model providers as what a client may know of them; told by their attributes, not their classes."""

from collections.abc import Iterator
from typing import Any, Final

from channel.agent import TurnError


_TOO_MANY: Final = 429
_UNAVAILABLE: Final = frozenset({502, 503, 504, 529})
_REJECTED: Final = frozenset({400, 413, 422})
_BUSY: Final = (
    "ThrottlingException", "TooManyRequestsException", "ModelNotReadyException",
    "ModelThrottledException",  # a class of Strands
)  # fmt: skip
_DOWN: Final = ("ServiceUnavailableException", "ModelTimeoutException")
_TOO_LONG: Final = (
    "contextlength",
    "contextwindow",
    "inputistoolong",
    "toomanytokens",
    "promptistoolong",
)


def turn_error_of(error: BaseException) -> TurnError | None:
    """Return what a client may know of a provider's error; None of any other, which stays hidden.

    Known are: too many requests, an input that is too long for the model, a provider that is not
    available. An error's causes are looked at, too, since frameworks wrap what their client raised.
    """
    for each in _causes(error):
        if isinstance(each, TurnError):
            return each
        status, code = _status(each), _code(each)
        if status == _TOO_MANY or code in _BUSY or type(each).__name__ in _BUSY:
            message = "The model has too many requests now. Please try again later."
            return TurnError(message, code="rate_limit_exceeded", status=429)
        if _is_too_long(each, status, code):
            message = "The input is too long for the model's context window."
            return TurnError(message, code="context_length_exceeded", status=400, param="input")
        if status in _UNAVAILABLE or code in _DOWN:
            message = "The model is not available now. Please try again later."
            return TurnError(message, code="server_error", status=503)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        response = response.get("ResponseMetadata") or {}
        status = response.get("HTTPStatusCode") if isinstance(response, dict) else None
    else:
        status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _code(error: BaseException) -> str:
    """Return the error's code: botocore keeps it in the parsed reply, others have an attribute."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict) and isinstance(response.get("Error"), dict):
        said = str(response["Error"].get("Code") or "")
        return said[:1].upper() + said[1:]  # within a stream it begins with a small letter
    code = getattr(error, "code", None)
    return code if isinstance(code, str) else ""


def _is_too_long(error: BaseException, status: int | None, code: str) -> bool:
    if code == "context_length_exceeded" or "ContextWindow" in type(error).__name__:
        return True
    if status not in _REJECTED and code != "ValidationException":  # which has none in a stream
        return False
    letters = "".join(filter(str.isalpha, str(error).lower()))
    return any(words in letters for words in _TOO_LONG)
