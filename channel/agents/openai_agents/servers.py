"""MCP servers of the OpenAI Agents SDK: connected while a turn needs them, and no longer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from agents.mcp import MCPServer


_LOG: Final = logging.getLogger(__name__)
_LIMIT_S: Final = 10.0
"""How long a server may take to connect, and to clean up."""


class Servers:
    """Connects an agent's MCP servers for its turns; turns at the same time share the connections.

    Servers that the user has connected are left alone.
    """

    def __init__(self) -> None:
        """Begin with no connection."""
        self._lock = asyncio.Lock()
        self._users = 0
        self._connections: list[_Connection] = []

    @asynccontextmanager
    async def connected(self, servers: Iterable[MCPServer]) -> AsyncIterator[None]:
        """Hold the connections; raises what the connecting to the first one that fails raises."""
        wanted = list(dict.fromkeys(servers))
        if not wanted:
            yield
            return
        async with self._lock:
            if not self._users:
                self._connections = await _connect([e for e in wanted if not _is_connected(e)])
            self._users += 1
        try:
            yield
        finally:
            async with self._lock:
                self._users -= 1
                if not self._users:
                    connections, self._connections = self._connections, []
                    await _leave(connections)


class _Connection:
    """A connection in a task of its own: what connects a server must also clean up after it."""

    def __init__(self, server: MCPServer) -> None:
        self._server: Any = server  # the SDK leaves its methods untyped
        self._leave = asyncio.Event()
        self.made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._hold())

    def leave(self) -> None:
        """Have it cleaned up, also while it connects."""
        if self.made.done():
            self._leave.set()
        else:
            self.task.cancel()

    async def _hold(self) -> None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                await self._server.connect()
            self.made.set_result(None)
            await self._leave.wait()
        except Exception as error:  # noqa: BLE001 - it is raised where the connection is waited for
            self.made.set_exception(error)
        finally:
            await self._clean_up()
            self.made.cancel()  # where a library cancelled its own connecting

    async def _clean_up(self) -> None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                await self._server.cleanup()
        except Exception as error:  # noqa: BLE001 - the turn is over, and has nothing to do with it
            _LOG.warning("an MCP server was not closed: %s", type(error).__name__)


async def _connect(servers: Sequence[MCPServer]) -> "list[_Connection]":
    connections = [_Connection(server) for server in servers]
    try:
        if connections:
            made = {each.made for each in connections}
            done, _ = await asyncio.wait(made, return_when=asyncio.FIRST_EXCEPTION)
            for each in done:
                _raise_failure(each)
    except BaseException:  # also of a turn that is cancelled
        await _leave(connections)
        raise
    return connections


async def _leave(connections: "Sequence[_Connection]") -> None:
    for each in connections:
        each.leave()
    if connections:
        await asyncio.wait({each.task for each in connections})
    for each in connections:
        if each.made.done() and not each.made.cancelled():
            each.made.exception()  # seen: the first one was raised


def _raise_failure(made: "asyncio.Future[None]") -> None:
    if made.cancelled():
        msg = "an MCP server's connecting was cancelled"
        raise ConnectionError(msg)
    made.result()


def _is_connected(server: MCPServer) -> bool:
    session: Any = getattr(server, "session", None)
    return session is not None
