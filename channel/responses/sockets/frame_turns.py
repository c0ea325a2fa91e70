"""`FrameTurns`: one frame's turn, from the request to its last message; the same over every transport."""

from contextlib import suppress
from time import monotonic

from starlette.types import Receive

from channel.auth import Caller
from channel.deadline import Deadline
from channel.http import ClientGoneError, new_request_id, request_id
from channel.isolation import reset_current_isolation_keys, set_current_isolation_keys
from channel.ports import Telemetry
from channel.responses.operations import Prepared, ResponseOperations
from channel.responses.protocol.response import Status
from channel.responses.run import facts_of
from channel.responses.sockets.connection import Ending
from channel.responses.sockets.frames import Frame, FrameWriter, SendMessage, error_message
from channel.responses.sockets.local_turns import LocalTurns


class FrameTurns:
    """Runs the turns of frames: each is told by stream events, or by one error where it did not begin."""

    def __init__(
        self,
        operations: ResponseOperations,
        telemetry: Telemetry | None = None,
        *,
        max_message_bytes: int | None = None,
    ) -> None:
        """Send no message that is larger than that."""
        self._operations = operations
        self._telemetry = telemetry
        self._max_message_bytes = max_message_bytes

    async def run(
        self,
        caller: Caller,
        frame: Frame,
        local: LocalTurns,
        send: SendMessage,
        receive: Receive,
        *,
        deadline: Deadline | None = None,
        identifier: str | None = None,
    ) -> Ending:
        """Run a frame's turn to its end, whatever that is; raises nothing but a cancellation.

        `receive` returns `http.disconnect` when the client is gone. `identifier` is a request id.
        """
        id_token = request_id.set(identifier or new_request_id())
        keys_token = set_current_isolation_keys(caller.keys)
        try:
            prepared = await self._operations.prepare(
                caller, frame.body, deadline=deadline, local=local, generates=frame.generates
            )
            return await self._run(prepared, frame, send, receive, deadline)
        except Exception as error:  # noqa: BLE001 - told, and the connection goes on
            return await _told(error, frame, send)
        finally:
            reset_current_isolation_keys(keys_token)
            request_id.reset(id_token)

    async def _run(
        self,
        prepared: Prepared,
        frame: Frame,
        send: SendMessage,
        receive: Receive,
        deadline: Deadline | None,
    ) -> Ending:
        started_at, outcome = monotonic(), "cancelled"
        turn = self._operations.turn(
            prepared, request_id=request_id.get(), deadline=deadline, is_committed=True
        )
        writer = FrameWriter(send, frame.lane, max_bytes=self._max_message_bytes)
        try:
            await turn.run(writer, receive)
            outcome = str(turn.response.status)
        except ClientGoneError:
            pass
        finally:
            if self._telemetry is not None:
                facts = facts_of(turn, outcome, started_at, is_stream=True)
                self._telemetry.turn_finished(facts)
        has_failed = turn.response.status not in (Status.COMPLETED, Status.INCOMPLETE)
        is_local = not turn.response.store and prepared.hold is None  # or a conversation has it
        return Ending(has_failed, is_local, frame.previous_response_id)


async def _told(error: Exception, frame: Frame, send: SendMessage) -> Ending:
    message = error_message(error, frame.lane)
    with suppress(OSError):  # the transport knows by itself that nobody reads
        await send(message)
    return Ending(has_failed=True, previous_response_id=frame.previous_response_id)
