"""Delivery where the table, a job or the time fails: nothing runs twice, nothing leaks, nothing is lost silently."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from channel.agent import Turn
from channel.deadline import DEADLINE, Deadline
from channel.delivery import Undelivered
from channel.isolation import IsolationKeys
from channel.memory_delivery import InMemoryIdentityStore, InMemoryUndeliveredStore
from channel.memory_runs import InMemoryRunStore
from channel.ports import EventBatch, StoreError
from channel.pushing import RETRY
from channel.responses.protocol.ids import response_body
from channel.responses.protocol.response import Response, Status
from channel.responses.protocol.stream import ResponseStream
from tests.channel.asgi import create, creating, get
from tests.infra.conftest import MovableClock
from tests.infra.delivering import Inbox, KeptJobs, Ports, host, link


pytestmark = pytest.mark.anyio

SECRET = "the table's own words"


class FaultyIdentities(InMemoryIdentityStore):
    def __init__(self) -> None:
        super().__init__()
        self.is_down = False

    async def record(self, *given: Any) -> Any:
        if self.is_down:
            raise StoreError(SECRET)
        return await super().record(*given)

    async def linked(self, keys: IsolationKeys, /) -> Any:
        if self.is_down:
            raise StoreError(SECRET)
        return await super().linked(keys)


class FaultyUndelivered(InMemoryUndeliveredStore):
    def __init__(self, fails: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__()
        self.calls = 0
        self.fails = fails
        self.drops_fail = False

    async def keep(self, undelivered: Undelivered, /) -> None:
        self.calls += 1
        if self.calls in self.fails:
            raise StoreError(SECRET)
        await super().keep(undelivered)

    async def drop(self, principal: str, delivery_id: str, /) -> None:
        if self.drops_fail:
            raise StoreError(SECRET)
        await super().drop(principal, delivery_id)


class FaultyPorts(Ports):
    def __init__(self, fails: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__()
        self._memory: Any = FaultyIdentities(), FaultyUndelivered(fails)

    @property
    def faulty(self) -> tuple[FaultyIdentities, FaultyUndelivered]:
        return self._memory  # type: ignore[no-any-return]


class Counting:
    def __init__(self) -> None:
        self.runs = 0

    async def __call__(self, turn: Turn) -> AsyncIterator[str]:
        self.runs += 1
        yield f"echo: {turn.text}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", [{"user": "ann"}, {"response_target": "all_linked"}])
async def test_where_identities_cannot_be_read_the_agent_does_not_run(
    fields: dict[str, Any], stream: bool
) -> None:
    ports, agent, slack = FaultyPorts(), Counting(), Inbox("slack")
    app = host(agent, ports.options(slack)).app
    await link(app, "slack", "U1")
    ports.faulty[0].is_down = True
    wire = await creating(stream=stream, **fields).run(app)
    assert wire.status == 503
    assert SECRET.encode() not in wire.body
    assert wire.headers["x-should-retry"] == "true"  # nothing has happened yet
    assert (agent.runs, slack.got) == (0, [])


async def test_a_background_turn_whose_destinations_cannot_be_read_is_not_begun() -> None:
    ports, agent, jobs = FaultyPorts(), Counting(), KeptJobs()
    hosted = host(agent, ports.options(Inbox("slack")), jobs=jobs)
    ports.faulty[0].is_down = True
    wire = await creating(background=True, response_target="all_linked").run(hosted.app)
    assert wire.status == 503
    assert SECRET.encode() not in wire.body
    assert (agent.runs, jobs.started) == (0, [])


async def test_a_delivery_that_cannot_be_written_down_is_tried_all_the_same() -> None:
    ports, slack = FaultyPorts({1}), Inbox("slack")
    app = host(Counting(), ports.options(slack)).app
    response = await create(app, response_target="slack:U1")
    assert slack.texts == ["echo: hi"]
    assert response["output"][0]["content"][0]["text"] == "Delivered to slack:U1."


@pytest.mark.parametrize("fails", [{1}, {2}, {1, 2}])
async def test_what_fails_while_it_cannot_be_written_down_is_told_as_failed(
    fails: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    ports, slack, jobs = FaultyPorts(fails), Inbox("slack"), KeptJobs()
    slack.fault = OSError(SECRET)
    app = host(Counting(), ports.options(slack, jobs=jobs)).app
    response = await create(app, response_target="slack:U1")
    is_again = ("yet to slack:U1, but tried again" if fails == {1} else "to slack:U1") + "."
    assert response["output"][0]["content"][0]["text"] == f"Not delivered {is_again}"
    assert len(jobs.started) == (1 if fails == {1} else 0)
    assert SECRET not in caplog.text
    assert 2 not in fails or "nor tried again" in caplog.text


async def test_a_delivery_that_cannot_be_forgotten_has_arrived() -> None:
    ports, slack = FaultyPorts(), Inbox("slack")
    ports.faulty[1].drops_fail = True
    app = host(Counting(), ports.options(slack)).app
    response = await create(app, response_target="slack:U1")
    assert response["output"][0]["content"][0]["text"] == "Delivered to slack:U1."


async def test_where_no_time_is_left_a_job_delivers() -> None:
    ports, slack, jobs = Ports(), Inbox("slack"), KeptJobs()
    hosted = host(Counting(), ports.options(slack, jobs=jobs))
    wire = creating(response_target="slack:U1")
    now = asyncio.get_running_loop().time()
    wire.scope[DEADLINE] = Deadline(now + 0.2, 1.0)
    await wire.run(hosted.app)
    assert wire.json["output"][0]["content"][0]["text"] == (
        "Not delivered yet to slack:U1, but tried again."
    )
    assert slack.tried == 0
    (job,) = jobs.started
    await hosted.jobs[job.kind](job.payload, None)
    assert slack.texts == ["echo: hi"]


async def test_what_the_worker_that_was_lost_had_said_is_delivered_as_failed() -> None:
    clock, slack, jobs, ports = MovableClock(), Inbox("slack"), KeptJobs(), Ports()
    runs = InMemoryRunStore(clock=clock)
    hosted = host(Counting(), ports.options(slack, jobs=jobs), jobs=jobs, runs=runs, clock=clock)
    target = ["originating", "slack:U1"]
    following = creating(background=True, stream=True, response_target=target).start(hosted.app)
    response_id = (await jobs.first()).payload["response_id"]
    alpha = IsolationKeys("alpha")
    # Of the worker there is what it kept, and its lease, which runs out.
    await runs.claim(alpha, response_id, "lost", clock.now + 60)
    response = Response(id=response_id, created_at=1, model="m", status=Status.QUEUED)
    stream = ResponseStream(response, body=response_body(response_id) or "", position=1)
    events = [*stream.start(), *stream.text_delta("half of hi")]
    said = EventBatch(events[0].sequence_number, [msgspec.json.encode(each) for each in events])
    await runs.append(alpha, response_id, said, clock.now + 9000)
    clock.now += 3600
    ended = (await get(hosted.app, f"/v1/responses/{response_id}")).json
    assert ended["status"] == "failed"
    assert ended["output"][0]["content"][0]["text"] == "half of hi"
    following.cancel()
    assert slack.got == []  # who looks does not wait for it
    (job,) = [each for each in jobs.started if each.kind == RETRY]
    await hosted.jobs[RETRY](job.payload, None)
    ((_, payload),) = slack.got
    assert (payload.text, payload.status) == ("half of hi", "failed")


async def test_a_server_that_stops_while_a_destination_hangs_keeps_the_delivery() -> None:
    ports, slack = Ports(), Inbox("slack")
    slack.gate.clear()
    app = host(Counting(), ports.options(slack), keys=ports.keys).app
    turn = creating(response_target="slack:U1").start(app)
    await slack.reached.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    (kept,) = await ports.undelivered.all_of(ports.principal)
    assert (kept.is_dead, kept.delivery.text) == (False, "echo: hi")
