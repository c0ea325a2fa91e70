"""What whole operations cost, from the request to its reply, as dynalite counts it: reads and writes in units."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from channel.agent import Turn
from channel.host import AgentHost
from channel.isolation import IsolationKeys
from channel.ports import EventBatch
from channel.responses.background.watching import LEASE_S
from channel.responses.channel import ResponsesChannel
from infra.dynamodb.conversations import DynamoDBConversationStore
from infra.dynamodb.idempotency import DynamoDBIdempotencyStore
from infra.dynamodb.runs import DynamoDBRunStore
from infra.dynamodb.store import DynamoDBResponseStore
from tests.channel.asgi import KEYS, Wire, request
from tests.channel.instances import HeldJobs, Instance
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Meter
from tests.infra.prose import question_and_answer
from tests.infra.turns import own_secret


pytestmark = pytest.mark.anyio

ALPHA = IsolationKeys("alpha")

Units = dict[str, list[float]]
"""The units of each call, by operation."""

_Result = TypeVar("_Result")


@pytest.fixture(scope="module")
def metered(dynalite_endpoint: str, dynalite_client: Any) -> Iterator[tuple[Any, Meter]]:
    with engines.connected(None, dynalite_endpoint) as client:
        yield client, Meter(client)


class Runs(DynamoDBRunStore):
    """Says when events were kept, and how often they were looked for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.has_kept = asyncio.Event()
        self.looks = 0
        self.has_looked = asyncio.Event()
        self.looks_wanted = 0

    async def append(
        self, isolation: IsolationKeys, response_id: str, batch: EventBatch, until: float, /
    ) -> None:
        await super().append(isolation, response_id, batch, until)
        self.has_kept.set()

    async def events(
        self, isolation: IsolationKeys, response_id: str, after: int, /, *, is_strong: bool = False
    ) -> Sequence[EventBatch]:
        found = await super().events(isolation, response_id, after, is_strong=is_strong)
        self.looks += 1
        if self.looks == self.looks_wanted:
            self.has_looked.set()
        return found


@dataclass
class Service:
    """An app over the table, whose jobs a test runs; its agent answers with what `answer` has."""

    instance: Instance
    meter: Meter
    jobs: HeldJobs
    runs: Runs
    clock: MovableClock

    async def cost(self, doing: Awaitable[_Result]) -> tuple[_Result, Units]:
        self.meter.take()
        result = await doing
        return result, self.meter.take()

    async def priced(self, doing: Awaitable[_Result]) -> Units:
        _, units = await self.cost(doing)
        return units

    async def begin(self, **fields: Any) -> str:
        begun = await self.instance.begin(input=QUESTION, **fields)
        identifier: str = begun["id"]
        return identifier

    async def work(self) -> None:
        await self.instance.work(self.jobs.held.pop(0))

    async def create(self, **fields: Any) -> dict[str, Any]:
        reply = await self.instance.post("/v1/responses", {"input": QUESTION, **fields})
        assert reply.status == 200, reply.body
        response: dict[str, Any] = reply.json
        return response

    async def ask(self, method: str, path: str, body: Any = None, query: str = "") -> Wire:
        reply = await request(method, f"/v1{path}", body, query=query).run(self.instance.app)
        assert reply.status == 200, reply.body
        return reply


QUESTION, ANSWER = question_and_answer(1)


@pytest.fixture
def service(metered: tuple[Any, Meter], clock: MovableClock) -> Service:
    return opened(metered, clock)


def opened(
    metered: tuple[Any, Meter], clock: MovableClock, agent: Any = None, **options: Any
) -> Service:
    client, meter = metered
    at: Any = {"client": client, "table": engines.TABLE, "secret": own_secret(), "clock": clock}
    jobs, runs = HeldJobs(), Runs(**at)
    channel = ResponsesChannel(
        store=DynamoDBResponseStore(**at),
        conversations=DynamoDBConversationStore(**at),
        runs=runs,
        idempotency=DynamoDBIdempotencyStore(**at),
        jobs=jobs,
        clock=clock,
        keepalive_s=0,
        **options,
    )
    host = AgentHost(agent or answer, channels=[channel], authenticator=KEYS)
    return Service(Instance(host), meter, jobs, runs, clock)


async def answer(turn: Turn) -> AsyncIterator[str]:
    for word in ANSWER.split():
        yield f"{word} "


# Background responses


async def test_a_background_response_costs_four_writes_from_its_start_to_its_end(
    service: Service,
) -> None:
    response_id, begun = await service.cost(service.begin())
    worked = await service.priced(service.work())
    retrieved = await service.priced(service.ask("GET", f"/responses/{response_id}"))

    print("begin", begun, "work", worked, "get", retrieved)


async def test_a_poll_of_one_that_runs_costs_a_strong_read_and_half_a_unit(
    service: Service,
) -> None:
    response_id = await service.begin()
    queued = await service.priced(service.ask("GET", f"/responses/{response_id}"))
    await service.runs.claim(ALPHA, response_id, "worker", service.clock.now + LEASE_S)
    running = await service.priced(service.ask("GET", f"/responses/{response_id}"))
    print("queued", queued, "running", running)


async def test_stream(service: Service) -> None:
    wire = request("POST", "/v1/responses", {"input": QUESTION, "background": True, "stream": True})
    wire.hang_up()
    begun = await service.priced(wire.run(service.instance.app))
    worked = await service.priced(service.work())
    print("begin", begun, "work", worked)


async def test_cancel(service: Service) -> None:
    response_id = await service.begin()
    print("cancel", await service.priced(service.ask("POST", f"/responses/{response_id}/cancel")))
    response_id = await service.begin()
    service.clock.now += 3600
    print("gone", await service.priced(service.ask("GET", f"/responses/{response_id}")))


async def test_delete(service: Service) -> None:
    response = await service.create()
    print("del", await service.priced(service.ask("DELETE", f"/responses/{response['id']}")))
    print("del2", await service.priced(service.instance.delete(response["id"])))
    print("unknown", await service.priced(service.instance.get("resp_" + "01" + "0" * 50)))
    response_id = await service.begin()
    await service.work()
    print("del bg", await service.priced(service.ask("DELETE", f"/responses/{response_id}")))


async def test_conv(service: Service) -> None:
    made, units = await service.cost(service.ask("POST", "/conversations", {"metadata": {"a": "b"}}))
    path = f"/conversations/{made.json['id']}"
    print("conv create", units)
    print("get", await service.priced(service.ask("GET", path)))
    print("upd", await service.priced(service.ask("POST", path, {"metadata": {}})))
    item = {"type": "message", "role": "user", "content": QUESTION}
    print("add", await service.priced(service.ask("POST", f"{path}/items", {"items": [item]})))
    for n in range(30):
        units = await service.priced(service.create(conversation=made.json["id"]))
        if n in (0, 9, 29):
            print("turn", n, units)
    for q in ("", "order=asc", "limit=100"):
        print("page", q, await service.priced(service.ask("GET", f"{path}/items", query=q)))
    one = (await service.ask("GET", f"{path}/items")).json["data"][0]["id"]
    print("item", await service.priced(service.ask("GET", f"{path}/items/{one}")))
    print("item del", await service.priced(service.ask("DELETE", f"{path}/items/{one}")))
    print("bg", await service.priced(service.begin(conversation=made.json["id"])), await service.priced(service.work()))
    d = await service.priced(service.ask("DELETE", path))
    print("delete", d, {k: sum(v) for k, v in d.items()})


async def test_keyed(service: Service) -> None:
    def keyed():
        return request("POST", "/v1/responses", {"input": QUESTION}, headers={"idempotency-key": "k"}).run(service.instance.app)
    print("keyed", await service.priced(keyed()))
    print("replay", await service.priced(keyed()))
    print("create", await service.priced(service.create()))
    r = await service.create()
    print("tokens", await service.priced(service.ask("POST", "/responses/input_tokens", {"previous_response_id": r["id"]})))
    print("compact", await service.priced(service.ask("POST", "/responses/compact", {"model": "m", "previous_response_id": r["id"]})))
