"""What a client did wrong, as an exception that knows its HTTP reply; and the error body of every reply."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final


INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"

TYPE_BY_STATUS: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class RequestError(Exception):
    """A request that cannot be served, by the client's fault: a 4xx with `param`.

    The message is shown to the client as it is. A status that is none of an error is 500.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        # Hooks and commands raise it, too: what tells of a failure must not fail itself.
        self.message = sayable(message) or "The request is not accepted."
        self.param = sayable(param)
        self.code = sayable(code)
        self.status = error_status(status)
        self.headers = headers


def sayable(text: object) -> str | None:
    """Return text that can go onto the wire, or None of what is no text."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else None


def error_status(status: object) -> int:
    """Return an HTTP status from 400 to 599; anything else is 500."""
    return status if isinstance(status, int) and 400 <= status <= 599 else 500  # noqa: PLR2004 - HTTP's


def error_type(status: int) -> str:
    """Return OpenAI's `error.type` for an HTTP status."""
    if status >= 500:  # noqa: PLR2004 - the first server error
        return SERVER_ERROR
    return TYPE_BY_STATUS.get(status, INVALID_REQUEST)


def error_body(
    message: str, *, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`: all four keys, as OpenAI's SDKs read them."""
    said = message.encode(errors="replace").decode()
    return {"error": {"message": said, "type": error_type(status), "param": param, "code": code}}


def response_not_found(response_id: str) -> RequestError:
    """Return the 404 that an unknown, foreign, expired, deleted or malformed response id gets alike."""
    return RequestError(f"Response with id '{response_id}' not found.", status=404)


def conversation_not_found(conversation_id: str, param: str | None = None) -> RequestError:
    """Return the 404 that an unknown, foreign, deleted or malformed conversation id gets alike."""
    msg = f"Conversation with id '{conversation_id}' not found."
    return RequestError(msg, param=param, status=404)


def conversation_locked() -> RequestError:
    """Return the 400 for a conversation in which a turn is running.

    OpenAI's SDKs repeat no 400 by themselves; who does so later may find it free.
    """
    return RequestError(
        "A turn of this conversation is running. Please try again in a few seconds.",
        param="conversation",
        code="conversation_locked",
        headers={"retry-after": "3"},
    )


def history_too_large(param: str | None) -> RequestError:
    """Return the 400 for a history that is too large to go on with, named by `param`."""
    return RequestError(
        "The conversation history is too large to be continued. Please begin a new one.",
        param=param,
        code="context_length_exceeded",
    )


def previous_response_not_found(response_id: str) -> RequestError:
    """Return the 400 for a `previous_response_id` whose history is not whole, or not the caller's."""
    return RequestError(
        f"Previous response with id '{response_id}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
