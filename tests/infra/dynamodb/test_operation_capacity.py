"""What whole operations cost, from the request to its reply, as dynalite counts it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from channel.agent import Turn
from channel.host import AgentHost
from channel.isolation import IsolationKeys
from channel.ports import EventBatch
from channel.responses.background.following import IDLE_LOOKS, IDLE_POLL_S
from channel.responses.background.watching import LEASE_S
from channel.responses.channel import ResponsesChannel
from channel.responses.operations import QUEUE_S
from infra.dynamodb.conversations import DynamoDBConversationStore
from infra.dynamodb.idempotency import DynamoDBIdempotencyStore
from infra.dynamodb.runs import DynamoDBRunStore
from infra.dynamodb.store import DynamoDBResponseStore
from infra.dynamodb.webhooks import WebhookTable
from infra.webhook_deliveries import WebhookDeliveries
from tests.channel.asgi import KEYS, Wire, request
from tests.channel.instances import HeldJobs, Instance
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Meter
from tests.infra.prose import question_and_answer
from tests.infra.turns import noise, own_secret


pytestmark = pytest.mark.anyio

ALPHA = IsolationKeys("alpha")
QUESTION, ANSWER = question_and_answer(1)
"""1 KB of text together."""
NOTHING = 0.0
"""What dynalite takes for a Query that finds nothing; AWS takes the least that there is, 0.5 or 1."""
NO_SUCH = "resp_01" + "0" * 50

Units = Mapping[str, list[float]]
"""The units of each call, by operation."""


class Runs(DynamoDBRunStore):
    """Says when events were kept, and when they were looked for so often."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.has_kept, self.has_looked = asyncio.Event(), asyncio.Event()
        self.looks = 0

    async def append(
        self, isolation: IsolationKeys, response_id: str, batch: EventBatch, until: float, /
    ) -> None:
        await super().append(isolation, response_id, batch, until)
        self.has_kept.set()

    async def events(
        self, isolation: IsolationKeys, response_id: str, after: int, /, *, is_strong: bool = False
    ) -> Sequence[EventBatch]:
        found = await super().events(isolation, response_id, after, is_strong=is_strong)
        self.looks -= 1
        if not self.looks:
            self.has_looked.set()
        return found


@dataclass
class Service:
    """An app over the table, whose jobs a test runs; its agent gives an answer of 1 KB, if no other."""

    instance: Instance
    meter: Meter
    jobs: HeldJobs
    runs: Runs
    clock: MovableClock

    async def cost(self, doing: Awaitable[object]) -> Units:
        self.meter.take()
        await doing
        return self.meter.take()

    async def ask(self, method: str, path: str, body: Any = None, query: str = "") -> Any:
        reply = await request(method, f"/v1{path}", body, query=query).run(self.instance.app)
        assert reply.status == 200, reply.body
        return reply.json

    async def create(self, *, key: str | None = None, **fields: Any) -> Any:
        headers = {"idempotency-key": key} if key else {}
        body = {"input": QUESTION, **fields}
        reply = await request("POST", "/v1/responses", body, headers=headers).run(self.instance.app)
        assert reply.status == 200, reply.body
        return reply.json

    async def begin(self, **fields: Any) -> str:
        identifier: str = (await self.create(background=True, **fields))["id"]
        return identifier

    async def begin_stream(self) -> None:
        """Begin a background response whose events are kept, and wait for none of them."""
        body = {"input": QUESTION, "background": True, "stream": True}
        wire = request("POST", "/v1/responses", body)
        wire.hang_up()
        await wire.run(self.instance.app)

    async def work(self) -> None:
        await self.instance.work(self.jobs.held.pop(0))

    async def streamed(self) -> str:
        """Return the id of a background response whose events are kept, and which has ended."""
        await self.begin_stream()
        response_id: str = self.jobs.held[0].payload["response_id"]
        await self.work()
        return response_id


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
    for word in ANSWER.split(" "):
        yield f"{word} "


# Background responses


async def test_a_background_response_costs_four_writes_from_its_start_to_its_end(
    service: Service,
) -> None:
    assert await service.cost(service.begin()) == {"PutItem": [1.0, 1.0]}
    assert await service.cost(service.work()) == {
        "GetItem": [1.0],
        "UpdateItem": [1.0],
        "PutItem": [1.0],
    }


async def test_whom_to_tell_of_its_end_is_half_a_unit_more(
    metered: tuple[Any, Meter], clock: MovableClock
) -> None:
    webhooks = WebhookDeliveries(WebhookTable(metered[0], engines.TABLE), Nobody())
    service = opened(metered, clock, webhooks=webhooks)
    await service.begin()

    assert await service.cost(service.work()) == {
        "GetItem": [1.0],
        "UpdateItem": [1.0],
        "PutItem": [1.0],
        "Query": [NOTHING],
    }


class Nobody:
    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        raise AssertionError(url)


async def test_a_poll_costs_a_strong_read_and_half_a_unit_while_it_waits_and_while_it_runs(
    service: Service,
) -> None:
    response_id = await service.begin()
    target = f"/responses/{response_id}"

    assert await service.cost(service.ask("GET", target)) == {"GetItem": [1.0, 0.5]}
    await service.runs.claim(ALPHA, response_id, "worker", service.clock.now + LEASE_S)
    assert await service.cost(service.ask("GET", target)) == {"GetItem": [1.0, 0.5]}


async def test_a_retrieval_costs_a_unit_for_each_4_kb(
    metered: tuple[Any, Meter], clock: MovableClock
) -> None:
    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield noise(6_000)

    costs = []
    for at in (opened(metered, clock), opened(metered, clock, agent)):
        response_id = await at.begin()
        await at.work()
        costs.append(await at.cost(at.ask("GET", f"/responses/{response_id}")))

    assert costs == [{"GetItem": [1.0]}, {"GetItem": [2.0]}]


async def test_kept_events_cost_one_write_more_for_each_batch(
    metered: tuple[Any, Meter], clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_BATCH_S", "BATCH_S"):
        monkeypatch.setattr(f"channel.responses.background.event_log.{name}", 0.0)

    async def agent(turn: Turn) -> AsyncIterator[str]:
        words = ANSWER.split(" ")
        for first in range(0, 100, 25):
            for word in words[first : first + 25]:
                yield f"{word} "
            await at.runs.has_kept.wait()
            at.runs.has_kept.clear()
        monkeypatch.undo()

    at = opened(metered, clock, agent)
    begun = await at.cost(at.begin_stream())
    at.runs.has_kept.clear()
    with anyio.fail_after(5):
        worked = await at.cost(at.work())

    assert begun["PutItem"] == [1.0] * 3
    assert worked["UpdateItem"] == [1.0]
    # Four of 25 deltas each; then the record, and the last one, in which the whole text is four times.
    assert worked["PutItem"] == [1.0] * 6


async def test_a_full_batch_of_16_kb_costs_two_writes(service: Service) -> None:
    await service.begin_stream()

    worked = await service.cost(service.work())  # its agent does not wait for anything

    assert worked["PutItem"] == [2.0, 1.0, 2.0]


async def test_a_cancel_costs_the_flag_and_the_put_of_the_record(service: Service) -> None:
    response_id = await service.begin()

    cost = await service.cost(service.ask("POST", f"/responses/{response_id}/cancel"))

    assert cost == {
        "UpdateItem": [1.0],
        "PutItem": [1.0],
        "GetItem": [1.0, 0.5, 1.0],
        "Query": [NOTHING],
    }


async def test_a_cancel_of_one_that_runs_costs_the_flag_and_its_workers_put(
    metered: tuple[Any, Meter], clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("channel.responses.background.watching.LOOK_S", 0.01)
    monkeypatch.setattr("channel.responses.background.turns._CANCEL_POLL_S", 0.01)
    has_begun = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "one"
        has_begun.set()
        await asyncio.Event().wait()

    service = opened(metered, clock, agent)
    response_id = await service.begin()
    working = asyncio.create_task(service.work())
    with anyio.fail_after(5):
        await has_begun.wait()
        cost = await service.cost(service.ask("POST", f"/responses/{response_id}/cancel"))
        await working

    assert (cost["UpdateItem"], cost["PutItem"]) == ([1.0], [1.0])


async def test_a_poll_that_finds_the_worker_gone_costs_two_writes_once(service: Service) -> None:
    response_id = await service.begin()
    service.clock.now += QUEUE_S + 1
    target = f"/responses/{response_id}"

    assert await service.cost(service.ask("GET", target)) == {
        "GetItem": [1.0, 0.5, 1.0, 1.0],
        "Query": [NOTHING],
        "PutItem": [1.0],
        "UpdateItem": [1.0],
    }
    assert await service.cost(service.ask("GET", target)) == {"GetItem": [1.0]}


# Streams that are resumed


async def test_a_minute_of_following_a_stream_that_says_nothing_costs_66_units(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls, looks = 60 / IDLE_POLL_S, 60 / IDLE_POLL_S / IDLE_LOOKS
    for name in ("POLL_S", "IDLE_POLL_S"):
        monkeypatch.setattr(f"channel.responses.background.following.{name}", 0.0)
    await service.begin_stream()
    response_id = service.jobs.held[0].payload["response_id"]
    await service.runs.claim(ALPHA, response_id, "worker", service.clock.now + LEASE_S)
    wire = request("GET", f"/v1/responses/{response_id}", query="stream=true")
    service.runs.has_looked.clear()
    service.runs.looks = 1 + int(polls) + 1  # the first one finds the first events

    async def minute() -> None:
        following = wire.start(service.instance.app)
        await service.runs.has_looked.wait()
        wire.hang_up()
        await following

    with anyio.fail_after(10):
        cost = await service.cost(minute())

    record, run, own, *weak = cost["GetItem"]
    assert (record, run, own) == (1.0, 0.5, 1.0)
    assert weak == [0.5] * int(looks)
    first, *idle = cost["Query"]
    assert first == 0.5
    assert polls < len(idle) <= polls + 2  # one may be on its way
    assert {*idle} == {NOTHING}
    assert polls * 0.5 + sum(weak) == 66.0


async def test_a_replay_of_500_events_costs_half_a_unit_for_each_4_kb(
    metered: tuple[Any, Meter], clock: MovableClock
) -> None:
    async def agent(turn: Turn) -> AsyncIterator[str]:
        words = f"{ANSWER} " * 4
        for word in words.split(" ")[:491]:
            yield f"{word} "

    service = opened(metered, clock, agent)
    response_id = await service.streamed()

    replies: list[Wire] = []
    costs = []
    for after in ("", "&starting_after=450"):
        query = f"stream=true{after}"
        wire = request("GET", f"/v1/responses/{response_id}", query=query)
        costs.append(await service.cost(wire.run(service.instance.app)))
        replies.append(wire)

    assert [len(reply.events) for reply in replies] == [500, 49]
    whole, rest = costs
    assert whole == {"GetItem": [1.0, 1.0], "Query": [1.0]}
    assert rest == {"GetItem": [1.0, 1.0], "Query": [0.5]}


# Deletions


async def test_a_deletion_costs_what_is_deleted(service: Service) -> None:
    alone = (await service.create())["id"]
    await service.begin()
    background = service.jobs.held[0].payload["response_id"]
    await service.work()
    streamed = await service.streamed()

    costs = []
    for each in (alone, background, streamed, streamed, NO_SUCH):
        cost = await service.cost(service.instance.delete(each))
        costs.append({operation: sorted(units) for operation, units in cost.items()})

    row = {"GetItem": [1.0], "UpdateItem": [1.0]}
    assert costs == [
        {**row, "Query": [NOTHING]},
        {**row, "Query": [1.0], "DeleteItem": [1.0]},
        # The run and three batches of events.
        {**row, "Query": [1.0], "DeleteItem": [1.0, 1.0, 2.0, 2.0]},
        # What a deletion that was cut off may have left is looked for.
        {"GetItem": [1.0, 1.0], "Query": [NOTHING]},
        {"GetItem": [1.0, 1.0], "Query": [NOTHING]},
    ]


# Conversations


async def test_a_conversation_costs_one_unit_to_make_to_read_and_to_change(
    service: Service,
) -> None:
    given = {"type": "message", "role": "user", "content": QUESTION}
    path = f"/conversations/{(await service.ask('POST', '/conversations', {}))['id']}"

    costs = [
        await service.cost(service.ask(*asked))
        for asked in (
            ("POST", "/conversations", {"metadata": {"topic": "units"}}),
            ("POST", "/conversations", {"items": [given]}),
            ("GET", path),
            ("POST", path, {"metadata": {"topic": "prices"}}),
            ("POST", f"{path}/items", {"items": [given]}),
        )
    ]

    assert costs == [
        {"PutItem": [1.0]},
        {"PutItem": [1.0, 1.0], "UpdateItem": [1.0]},
        {"GetItem": [1.0]},
        {"UpdateItem": [1.0]},
        {"UpdateItem": [1.0], "PutItem": [1.0], "GetItem": [1.0]},
    ]


async def conversation_of(service: Service, turns: int) -> tuple[str, list[Units]]:
    """Return the id of a conversation, and what each of its turns has cost."""
    conversation_id: str = (await service.ask("POST", "/conversations", {}))["id"]
    costs = [await service.cost(service.create(conversation=conversation_id)) for _ in range(turns)]
    return conversation_id, costs


async def test_a_turn_of_a_conversation_costs_three_writes_and_a_unit_for_each_4_kb_before_it(
    service: Service,
) -> None:
    _, costs = await conversation_of(service, 30)

    assert [(cost["UpdateItem"], cost["PutItem"]) for cost in costs] == [([1.0] * 2, [1.0])] * 30
    assert [len(cost) for cost in costs] == [3] * 30
    queries = [cost["Query"] for cost in costs]
    assert queries[1] == [1.0]
    assert queries[29] <= [7.0]


async def test_a_background_turn_of_a_conversation_costs_nine_writes(service: Service) -> None:
    conversation_id, _ = await conversation_of(service, 1)

    # The lock, the record, its run, the lock's time; the claim, the lock's time before the agent and
    # after it, the record, the unlock.
    begun = await service.cost(service.begin(conversation=conversation_id))
    worked = await service.cost(service.work())

    assert begun == {"UpdateItem": [1.0] * 2, "Query": [1.0], "PutItem": [1.0] * 2}
    assert worked == {
        "GetItem": [1.0],
        "Query": [1.0],
        "UpdateItem": [1.0] * 4,
        "PutItem": [1.0],
    }


async def test_a_page_of_20_items_costs_its_size_and_a_unit(service: Service) -> None:
    conversation_id, _ = await conversation_of(service, 30)
    path = f"/conversations/{conversation_id}/items"

    page = await service.ask("GET", path)
    queries = ("", "order=asc", f"after={page['last_id']}")

    costs = [await service.cost(service.ask("GET", path, query=query)) for query in queries]

    assert (len(page["data"]), page["has_more"]) == (20, True)
    for cost in costs:
        assert cost["GetItem"] == [1.0]
        assert len(cost["Query"]) == 1  # of 12 turns of 1 KB
        assert cost["Query"] <= [3.0]


async def test_an_item_costs_two_units_to_read_and_a_write_more_to_delete(
    service: Service,
) -> None:
    conversation_id, _ = await conversation_of(service, 3)
    path = f"/conversations/{conversation_id}/items"
    first, *_ = (await service.ask("GET", path))["data"]

    read = await service.cost(service.ask("GET", f"{path}/{first['id']}"))
    deleted = await service.cost(service.ask("DELETE", f"{path}/{first['id']}"))

    assert read == {"GetItem": [1.0, 1.0]}
    assert deleted == {"GetItem": [1.0, 1.0], "UpdateItem": [1.0]}


async def test_the_deletion_of_a_conversation_costs_a_write_for_each_turn(
    service: Service,
) -> None:
    conversation_id, _ = await conversation_of(service, 10)

    cost = await service.cost(service.ask("DELETE", f"/conversations/{conversation_id}"))

    assert (cost["DeleteItem"], cost["UpdateItem"]) == ([1.0], [1.0] * 10)
    assert cost["Query"] <= [3.0]


# Keys, streams that can be cancelled, windows


async def test_a_key_costs_three_writes_and_its_replay_one_and_two_reads(service: Service) -> None:
    assert await service.cost(service.create()) == {"PutItem": [1.0]}
    assert await service.cost(service.create(key="k")) == {
        "PutItem": [1.0, 1.0, 1.0],
        "UpdateItem": [1.0],
    }
    # The write that is refused, of which dynalite does not say what it costs (AWS: 1 unit), nor what
    # was in its way, which is read then (not on AWS); and the record.
    assert await service.cost(service.create(key="k")) == {"GetItem": [1.0, 1.0]}


async def test_a_stream_that_can_be_cancelled_costs_one_write_more(
    metered: tuple[Any, Meter], clock: MovableClock
) -> None:
    service = opened(metered, clock, has_cancellable_streams=True)
    wire = request("POST", "/v1/responses", {"input": QUESTION, "stream": True})

    assert await service.cost(wire.run(service.instance.app)) == {"PutItem": [1.0, 1.0]}


async def test_counting_and_compacting_cost_the_history_and_write_nothing(
    service: Service,
) -> None:
    previous = {"model": "m", "previous_response_id": (await service.create())["id"]}

    for route in ("input_tokens", "compact"):
        cost = await service.cost(service.ask("POST", f"/responses/{route}", previous))
        assert cost == {"Query": [0.5]}
