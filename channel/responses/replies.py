"""Replies of turns that failed before anything was said of them."""

import logging
from typing import Final

from channel.agent import TurnError
from channel.faults import log_fault
from channel.http import JSONReply, error_reply, request_id
from channel.responses.protocol.errors import RequestError


NO_RETRY: Final = {"x-should-retry": "false"}

_LOG: Final = logging.getLogger(__name__)


def failed(cause: BaseException) -> JSONReply:
    """Return the error of an agent that failed before its first event; it has run, so no retry."""
    if isinstance(cause, RequestError):
        raise cause
    if isinstance(cause, TurnError):
        return error_reply(
            cause.message,
            status=cause.status,
            param=cause.param,
            code=cause.code,
            headers=NO_RETRY,
        )
    log_fault(_LOG, "agent failed", cause)
    said = f"The agent failed to answer. Request id: {request_id.get()}"
    return error_reply(said, status=500, headers=NO_RETRY)
