"""A reply on its way from the runtime's connection to the client, with the faults that are injected."""

import asyncio
import base64
from contextlib import suppress
from typing import Any, Final

import h11
import msgspec

from handler.emulator.connection import Connection
from handler.emulator.invocation import Invocation
from handler.emulator.options import Faults
from handler.runtime_api import Failure


_FAILURE_TYPE: Final = "lambda-runtime-function-error-type"
_FAILURE_BODY: Final = "lambda-runtime-function-error-body"
ACCEPTED: Final = 202
TRUNCATED: Final = 400
TOO_LARGE: Final = 413
BROKEN_OFF: Final = Failure("Runtime.TruncatedResponse", "The reply broke off.")
_CUT: Final = 0
"""In the place of a status: the connection is reset."""


async def relay(connection: Connection, invocation: Invocation, limit: int) -> int:
    """Pass a reply on, as fast as it is taken; return the status with which it is to be answered.

    Raises `OSError` where there is nobody to answer.
    """
    try:
        status = await _pass_on(connection, invocation, limit)
    except OSError:
        invocation.is_cut = True
        raise
    except h11.RemoteProtocolError:
        invocation.is_cut = True
        return TRUNCATED
    invocation.release()
    if status == ACCEPTED:
        invocation.end(failure_in(connection.trailers) if connection.trailers else None)
    elif status == TOO_LARGE:
        said = f"The reply is larger than the {limit} bytes that are allowed."
        invocation.fail(Failure("Function.ResponseSizeTooLarge", said))
    else:
        invocation.fail(BROKEN_OFF)
    if status == _CUT:
        raise ConnectionResetError
    invocation.record.answered = status
    return status


async def _pass_on(connection: Connection, invocation: Invocation, limit: int) -> int:
    faults, record = invocation.faults, invocation.record
    stop, status = _stop(faults, limit)
    if faults.gate is not None:
        await faults.gate.wait()
    async for data in connection.body():
        wanted = data[: stop - record.size]
        record.size += len(wanted)
        await invocation.deliver(wanted)
        if record.size == stop:
            return status
        if faults.bytes_per_s is not None:
            await asyncio.sleep(len(data) / faults.bytes_per_s)
    return ACCEPTED


def _stop(faults: Faults, limit: int) -> tuple[int, int]:
    """Return after how many bytes the reply is stopped, and with which status."""
    stops = [(limit + 1, TOO_LARGE)]
    if faults.refuse_after_bytes is not None:
        stops.append((faults.refuse_after_bytes, faults.refuse_status))
    if faults.cut_after_bytes is not None:
        stops.append((faults.cut_after_bytes, _CUT))
    return min(stops)


def failure_in(headers: dict[str, str], body: bytes | None = None) -> Failure:
    """Return the failure that an error report tells, or trailers do (which have no body)."""
    kind = headers.get(_FAILURE_TYPE, "")
    with suppress(ValueError, msgspec.MsgspecError):
        if body is None:
            body = base64.b64decode(headers.get(_FAILURE_BODY, ""), validate=True)
        told = msgspec.json.decode(body, type=dict[str, Any])
        return Failure(kind or str(told.get("errorType", "")), str(told.get("errorMessage", "")))
    return Failure(kind, "")
