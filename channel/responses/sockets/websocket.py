"""WebSocket mode on a server that holds its connections: an ASGI endpoint on the path of `POST /responses`."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from itertools import count
from math import inf
from time import monotonic
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from channel.auth import Caller, caller_of
from channel.responses.sockets.connection import Called, ConnectionState, farewell
from channel.responses.sockets.endpoint import Limits
from channel.responses.sockets.frame_turns import FrameTurns
from channel.responses.sockets.frames import Frame, read
from channel.responses.sockets.local_memory import LocalMemory


_GOING_AWAY: Final = 1001
"""The close code of a connection whose time is over: clients open another one."""
_LATER_S: Final = 0.05  # or else a timer might come before its time


class ResponsesWebSocket:
    """Serves connections whose upgrade was authenticated (`channel.auth`)."""

    def __init__(self, turns: FrameTurns, limits: Limits) -> None:
        """Run the turns of all connections by `turns`."""
        self._turns = turns
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection until it is closed, by either side."""
        await receive()  # "websocket.connect"
        await send({"type": "websocket.accept"})
        await _Connection(self._turns, self._limits, caller_of(scope), send).serve(receive)


class _Connection:
    """One open connection: its reader, and a task for each frame in flight."""

    def __init__(self, turns: FrameTurns, limits: Limits, caller: Caller, send: Send) -> None:
        self._turns = turns
        self._limits = limits
        self._caller = caller
        self._transport = send
        self._state = ConnectionState.opened(monotonic(), limits)
        self._local = LocalMemory(self._state, limits.chain_bytes)
        self._frames: dict[str, Frame] = {}
        self._names = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._is_ending = False
        self._is_closed = False
        self._gone = asyncio.Event()

    async def serve(self, receive: Receive) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._limits.connection_s + _LATER_S, self._call)
        try:
            while (message := await receive())["type"] != "websocket.disconnect":
                await self._arrive(message)
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            raise
        finally:
            timer.cancel()
            self._is_closed = True
            self._gone.set()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _arrive(self, message: Message) -> None:
        text = message.get("text")
        given = read(message["bytes"] if text is None else text, self._limits.frame_bytes)
        name = str(next(self._names))
        arrived = self._state.arrive(given, name, monotonic(), self._limits)
        if arrived.is_taken and isinstance(given, Frame):
            self._frames[name] = given
        if arrived.told is not None:
            await self._tell(arrived.told)
        self._call()

    def _call(self) -> None:
        now = monotonic()
        for called in self._state.call(now, inf, self._limits):
            self._start(self._run(called))
        is_over = self._state.is_idle and self._state.is_over(now, self._limits)
        if is_over and not self._is_ending:
            self._is_ending = True
            self._start(self._end())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, called: Called) -> None:
        frame = self._frames.pop(called.name)
        local = self._local.of(frame.lane)
        ending = await self._turns.run(self._caller, frame, local, self._send, self._disconnected)
        while told := self._state.settle(called, ending):
            for message in told:
                await self._tell(message)
        self._call()

    async def _end(self) -> None:
        await self._tell(farewell(self._limits))
        if not self._is_closed:
            self._is_closed = True
            await self._transport({"type": "websocket.close", "code": _GOING_AWAY})

    async def _tell(self, message: bytes) -> None:
        with suppress(OSError):  # the reader learns by itself that nobody is there
            await self._send(message)

    async def _send(self, message: bytes) -> None:
        async with self._sending:
            if self._is_closed:
                raise ConnectionResetError
            await self._transport({"type": "websocket.send", "text": message.decode()})

    async def _disconnected(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}
