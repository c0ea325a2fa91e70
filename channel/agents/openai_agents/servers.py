"""MCP servers of the OpenAI Agents SDK: connected while a turn needs them, and no longer."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from agents.mcp import MCPServer, MCPServerManager


class Servers:
    """Connects an agent's MCP servers for its turns; turns at the same time share the connections.

    Servers that the user has connected are left alone.
    """

    def __init__(self) -> None:
        """Begin with no connection."""
        self._lock = asyncio.Lock()
        self._users = 0
        self._manager: MCPServerManager | None = None

    @asynccontextmanager
    async def connected(self, servers: Iterable[MCPServer]) -> AsyncIterator[None]:
        """Hold the connections; raises what the connecting to the first one that fails raises."""
        wanted = list(servers)
        if not wanted:
            yield
            return
        async with self._lock:
            if self._manager is None:
                self._manager = await _connect([each for each in wanted if not _is_connected(each)])
            self._users += 1
        try:
            yield
        finally:
            async with self._lock:
                self._users -= 1
                if not self._users:
                    manager, self._manager = self._manager, None
                    await manager.cleanup_all()


async def _connect(servers: list[MCPServer]) -> MCPServerManager:
    # A task for each server: what connects it must also clean up after it.
    manager = MCPServerManager(
        servers, strict=True, suppress_cancelled_error=False, connect_in_parallel=True
    )
    await manager.connect_all()
    return manager


def _is_connected(server: MCPServer) -> bool:
    session: Any = getattr(server, "session", None)
    return session is not None
