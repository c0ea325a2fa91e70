"""The test's end of the line to an agent in another process (`tests.e2e.gated_agents`)."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class Gate:
    """Hears what the agent says, and lets it go on."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.agents = 0
        """How many have come: each run of an agent is one."""
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None

    async def heard(self) -> str:
        """Return the next thing that the agent says."""
        async with asyncio.timeout(20):
            return await self._said.get()

    async def until(self, what: str) -> None:
        while await self.heard() != what:
            pass

    def open(self) -> None:
        """Let the agent take one step."""
        assert self._writer is not None
        self._writer.write(b".")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.agents += 1
        try:
            while line := await reader.readline():
                self._said.put_nowait(line.decode().strip())
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def gate() -> AsyncIterator[Gate]:
    """Listen for an agent."""
    with tempfile.TemporaryDirectory() as folder:
        at = Gate(str(Path(folder, "gate")))
        server = await asyncio.start_unix_server(at.serve, at.path)
        try:
            yield at
        finally:
            server.close()
