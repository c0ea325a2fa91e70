"""Several instances of one app over the same stores, whose jobs run where and when a test says."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp

from channel.deadline import Deadline
from channel.host import AgentHost
from channel.memory import InMemoryResponseStore
from channel.memory_conversations import InMemoryConversationStore
from channel.memory_idempotency import InMemoryIdempotencyStore
from channel.memory_runs import InMemoryRunStore
from channel.ports import Job
from channel.responses.channel import ResponsesChannel
from tests.channel.asgi import KEYS, Wire, request


class HeldJobs:
    """Jobs that are started when a test takes them."""

    def __init__(self) -> None:
        self.held: list[Job] = []
        self.failure: Exception | None = None

    async def start(self, job: Job, /) -> None:
        if self.failure is not None:
            raise self.failure
        self.held.append(job)


class Instance:
    """One instance: its app, and a worker."""

    def __init__(self, host: AgentHost) -> None:
        self.app: ASGIApp = host.app
        self._jobs = host.jobs

    async def work(self, job: Job, deadline: Deadline | None = None) -> None:
        await self._jobs[job.kind](job.payload, deadline)

    async def post(self, path: str, body: Any = None, *, key: str = "key-alpha") -> Wire:
        return await request("POST", path, body, key=key).run(self.app)

    async def get(self, response_id: str, *, query: str = "", key: str = "key-alpha") -> Wire:
        path = f"/v1/responses/{response_id}"
        return await request("GET", path, query=query, key=key).run(self.app)

    async def cancel(self, response_id: str, *, key: str = "key-alpha") -> Wire:
        return await self.post(f"/v1/responses/{response_id}/cancel", key=key)

    async def delete(self, response_id: str, *, key: str = "key-alpha") -> Wire:
        return await request("DELETE", f"/v1/responses/{response_id}", key=key).run(self.app)

    async def list_items(self, conversation_id: str) -> list[dict[str, Any]]:
        """Return the first hundred items of a conversation, oldest first."""
        path, query = f"/v1/conversations/{conversation_id}/items", "limit=100&order=asc"
        reply = await request("GET", path, query=query, key="key-alpha").run(self.app)
        assert reply.status == 200, reply.body
        items: list[dict[str, Any]] = reply.json["data"]
        return items

    async def begin(self, **fields: Any) -> dict[str, Any]:
        """Create a background response and return it as it was acknowledged."""
        reply = await self.post("/v1/responses", {"input": "hi", "background": True, **fields})
        assert reply.status == 200, reply.body
        response: dict[str, Any] = reply.json
        return response


class Instances:
    """Two instances, `a` and `b`, over one pair of stores (default: memory)."""

    def __init__(
        self, agent: Callable[..., Any], *, store: Any = None, runs: Any = None, **options: Any
    ) -> None:
        self.jobs = HeldJobs()
        clock = {"clock": options["clock"]} if "clock" in options else {}
        self.store = store or InMemoryResponseStore(**clock)
        self.runs = runs or InMemoryRunStore(**clock)
        shared: dict[str, Any] = {"idempotency": InMemoryIdempotencyStore(**clock)}
        if isinstance(self.store, InMemoryResponseStore):
            shared["conversations"] = InMemoryConversationStore(self.store, **clock)
        self.options = {"keepalive_s": 0, **shared, **options}
        self._agent = agent
        self.a, self.b = self.another(), self.another()

    def another(self) -> Instance:
        channel = ResponsesChannel(store=self.store, runs=self.runs, jobs=self.jobs, **self.options)
        return Instance(AgentHost(self._agent, channels=[channel], authenticator=KEYS))

    def working(self, on: Instance, deadline: Deadline | None = None) -> "asyncio.Task[None]":
        """Let an instance take the oldest job."""
        return asyncio.create_task(on.work(self.jobs.held.pop(0), deadline))
