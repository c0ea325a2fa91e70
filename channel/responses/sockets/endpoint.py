"""WebSocket mode as the channel has it: what one connection may do, and what is imported once one is there."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from msgspec import Struct
from starlette.types import Receive, Scope, Send

from channel.contract import Sockets
from channel.http import MAX_BODY_BYTES
from channel.ports import Clock, Jobs, Telemetry
from channel.responses.operations import ResponseOperations


_DRAIN_S: Final = 5.0
MB: Final = 1024 * 1024


class Limits(Struct, frozen=True, kw_only=True):
    """What one connection may do; the first three are OpenAI's."""

    connection_s: float = 3600.0
    named_lanes: int = 32
    in_flight: int = 16
    frame_bytes: int = MAX_BODY_BYTES
    frames_per_s: float = 16.0
    burst: int = 64
    waiting: int = 64
    waiting_bytes: int = 12 * MB
    chain_bytes: int = 32 * MB
    """Local turns that are kept in memory, of all lanes together: where they are more, the chain that
    was continued first is forgotten; one that is longer by itself cannot be continued."""
    refusals: int = 32
    """Refusals that wait for the turns before them; more are told at once, out of their turn."""


MakeSockets: TypeAlias = Callable[
    [ResponseOperations, Jobs, Clock, Limits, Telemetry | None], Sockets
]
"""Makes what serves the connections of a gateway (`channel.responses.sockets.gateway.Gateway`)."""


_Serve: TypeAlias = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


class WebSocketEndpoint:
    """`ResponsesWebSocket`, imported with the first connection: on Lambda, there is none."""

    def __init__(
        self, operations: ResponseOperations, limits: Limits, telemetry: Telemetry | None
    ) -> None:
        """Serve no connection yet."""
        self._operations = operations
        self._limits = limits
        self._telemetry = telemetry
        self._serve: _Serve | None = None
        self._running: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection until it is closed, by either side."""
        if self._serve is None:
            self._serve = self._imported()
        task = asyncio.create_task(self._serve(scope, receive, send))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await task

    async def drain(self) -> None:
        """Let the turns that a stopping server has cut store what they are."""
        if self._running:
            await asyncio.wait(self._running, timeout=_DRAIN_S)

    def _imported(self) -> _Serve:
        from channel.responses.sockets.frame_turns import FrameTurns  # noqa: PLC0415 - see above
        from channel.responses.sockets.websocket import ResponsesWebSocket  # noqa: PLC0415 - see above

        return ResponsesWebSocket(FrameTurns(self._operations, self._telemetry), self._limits)
