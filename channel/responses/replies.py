"""Replies that are not streams: of a turn that is over, and of one that failed before anything was said."""

import logging
from collections.abc import Callable
from typing import Final

from starlette.types import Send

from channel.agent import TurnError
from channel.faults import log_fault
from channel.http import JSONReply, error_reply, request_id
from channel.responses.observing import Unobserved
from channel.responses.protocol.errors import RequestError


NO_RETRY: Final = {"x-should-retry": "false"}

_LOG: Final = logging.getLogger(__name__)


class WholeReply(Unobserved):
    """The observer that replies once, when the turn is over, with what `make` returns then."""

    def __init__(self, make: Callable[[], JSONReply], send: Send) -> None:
        """Send nothing yet."""
        super().__init__()
        self._make = make
        self._send = send
        self._is_closed = False

    async def close(self) -> None:
        """Send the reply."""
        if not self._is_closed:
            self._is_closed = True
            await self._make().send_to(self._send)


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
