"""Background streams: followed while they run, and resumed from any event on any instance."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from time import monotonic
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from channel.agent import AgentEvent, FunctionCall, ReasoningDelta, Turn
from channel.deadline import DEADLINE, Deadline
from channel.isolation import IsolationKeys
from channel.memory_runs import InMemoryRunStore
from channel.ports import EventBatch, StoreError
from channel.responses.background.watching import LEASE_S
from tests.channel.asgi import Wire, creating, request
from tests.channel.instances import Instances


pytestmark = pytest.mark.anyio

ALPHA = IsolationKeys("alpha")
DONE = b"data: [DONE]\n\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "background.watching.LOOK_S",
        "background.following.POLL_S",
        "background.following.IDLE_POLL_S",
    ):
        monkeypatch.setattr(f"channel.responses.{name}", 0.001)
    for name in ("BATCH_S", "FIRST_BATCH_S"):
        monkeypatch.setattr(f"channel.responses.background.event_log.{name}", 0.001)
    monkeypatch.setattr("channel.responses.background.turns._CANCEL_POLL_S", 0.01)


async def talkative(_: Turn) -> AsyncIterator[AgentEvent]:
    yield ReasoningDelta("Let me see.")
    for number in range(486):
        yield f"{number} é\n"
        if number % 50 == 0:
            await checkpoint()


async def short(_: Turn) -> AsyncIterator[AgentEvent]:
    yield "one"
    yield " two"


class Gated:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.has_begun = asyncio.Event()

    async def __call__(self, _: Turn) -> AsyncIterator[AgentEvent]:
        yield "one"
        self.has_begun.set()
        await self.gate.wait()
        yield " two"


def resuming(response_id: str, after: int | None = None, *, key: str = "key-alpha") -> Wire:
    query = "stream=true" + ("" if after is None else f"&starting_after={after}")
    return request("GET", f"/v1/responses/{response_id}", query=query, key=key)


async def done(task: "asyncio.Task[Any]") -> Any:
    with anyio.fail_after(5):
        return await task


async def job_of(both: Instances) -> None:
    with anyio.fail_after(5):
        while not both.jobs.held:
            await checkpoint()


async def streamed(both: Instances, **fields: Any) -> tuple[str, Wire]:
    """Create a background stream on `a`, have it run on `b`, and return its id and the reply."""
    creation = creating(background=True, stream=True, **fields).start(both.a.app)
    await job_of(both)
    await done(both.working(both.b))
    reply: Wire = await done(creation)
    assert reply.status == 200, reply.body
    return reply.events[0]["response"]["id"], reply


def frames(body: bytes) -> list[bytes]:
    *each, rest = body.split(b"\n\n")
    assert rest == b""
    return [frame + b"\n\n" for frame in each]


async def test_the_stream_begins_with_created_queued_and_in_progress_and_ends_as_any() -> None:
    both = Instances(short)

    _, reply = await streamed(both)

    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.types[:4] == ["created", "queued", "in_progress", "output_item.added"]
    assert reply.types[-1] == "completed"
    assert [event["sequence_number"] for event in reply.events] == [*range(len(reply.events))]
    states = [event["response"]["status"] for event in reply.events if "response" in event]
    assert states == ["queued", "queued", "in_progress", "completed"]


async def test_a_stream_is_resumed_identically_from_every_event_on_another_instance() -> None:
    both = Instances(talkative)
    response_id, reply = await streamed(both)
    original = frames(reply.body)
    assert len(original) > 500

    for after in range(-1, len(original) - 1):
        resumed = await resuming(response_id, after if after >= 0 else None).run(both.b.app)
        assert resumed.body == b"".join(original[after + 1 :])


async def test_it_is_followed_live_from_every_instance_and_from_the_middle() -> None:
    agent = Gated()
    both = Instances(agent)
    creation = creating(background=True, stream=True)
    created = creation.start(both.a.app)
    await job_of(both)
    work = both.working(both.a)
    await creation.until("one")
    response_id = creation.body.decode().partition('"id":"')[2].partition('"')[0]
    seen = len(frames(creation.body))
    late = resuming(response_id, seen - 1)
    whole = resuming(response_id)
    following = [late.start(both.b.app), whole.start(both.b.app)]
    await whole.until("one")

    agent.gate.set()
    for task in (work, created, *following):
        await done(task)

    assert whole.body == creation.body
    assert late.body == b"".join(frames(creation.body)[seen:])
    assert b" two" in late.body


async def test_after_the_last_event_there_is_nothing_more() -> None:
    both = Instances(short)
    response_id, reply = await streamed(both)
    last = len(reply.events) - 1

    for after in (last, last + 1, 999_999_999):
        resumed = await resuming(response_id, after).run(both.b.app)
        assert (resumed.status, resumed.body) == (200, DONE)


async def test_a_client_that_goes_away_leaves_the_turn_alone() -> None:
    agent = Gated()
    both = Instances(agent)
    creation = creating(background=True, stream=True)
    created = creation.start(both.a.app)
    await job_of(both)
    work = both.working(both.a)
    await creation.until("one")
    response_id = creation.body.decode().partition('"id":"')[2].partition('"')[0]

    creation.hang_up()
    await done(created)
    agent.gate.set()
    await done(work)

    assert (await both.b.get(response_id)).json["status"] == "completed"


async def test_a_door_that_closes_ends_the_reply_and_not_the_stream() -> None:
    agent = Gated()
    both = Instances(agent)
    creation = creating(background=True, stream=True)
    creation.scope[DEADLINE] = Deadline(monotonic() + 0.1, 5.0)
    created = creation.start(both.a.app)
    await job_of(both)
    work = both.working(both.b)

    await done(created)
    cut = frames(creation.body)
    response_id = creation.body.decode().partition('"id":"')[2].partition('"')[0]
    resumed = resuming(response_id, len(cut) - 1).start(both.b.app)
    agent.gate.set()
    await done(work)

    assert DONE not in creation.body
    assert creation.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert (await done(resumed)).events[-1]["type"] == "response.completed"
    whole = await resuming(response_id).run(both.a.app)
    assert whole.body == creation.body + (await done(resumed)).body


async def test_a_cancelled_stream_ends_with_failed_whose_response_is_cancelled() -> None:
    agent = Gated()
    both = Instances(agent)
    creation = creating(background=True, stream=True)
    created = creation.start(both.a.app)
    await job_of(both)
    work = both.working(both.a)
    await creation.until("one")
    response_id = creation.body.decode().partition('"id":"')[2].partition('"')[0]

    cancelled = await both.b.cancel(response_id)
    await done(created)
    await done(work)

    last = creation.events[-1]
    assert (last["type"], last["response"]) == ("response.failed", cancelled.json)
    assert last["response"]["status"] == "cancelled"
    assert (await resuming(response_id).run(both.b.app)).body == creation.body


async def test_one_that_is_cancelled_before_it_ran_ends_all_the_same() -> None:
    both = Instances(short)
    creation = creating(background=True, stream=True)
    created = creation.start(both.a.app)
    await job_of(both)
    await creation.until("queued")
    response_id = both.jobs.held[0].payload["response_id"]

    await both.b.cancel(response_id)
    await done(created)

    assert creation.types == ["created", "queued", "failed"]
    assert creation.events[-1]["sequence_number"] == 2
    assert creation.events[-1]["response"]["status"] == "cancelled"
    assert (await resuming(response_id, 1).run(both.b.app)).types == ["failed"]


async def test_a_worker_that_is_gone_ends_the_stream_as_failed_with_what_it_said() -> None:
    clock, agent = Clock(), Gated()
    both = Instances(agent, clock=clock)
    creation = creating(background=True, stream=True)
    created = creation.start(both.a.app)
    await job_of(both)
    work = both.working(both.a)
    await creation.until("one")
    response_id = creation.body.decode().partition('"id":"')[2].partition('"')[0]
    seen = len(frames(creation.body))

    clock.now += LEASE_S + 1  # nobody renews it: as if its instance were gone
    await done(created)

    last = creation.events[-1]
    assert (last["type"], last["sequence_number"]) == ("response.failed", seen)
    assert last["response"]["output"][0]["content"][0]["text"] == "one"
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert (await both.b.get(response_id)).json == last["response"]
    work.cancel()
    await asyncio.wait([work])


async def test_events_that_could_not_be_stored_in_time_come_later_and_none_is_missing() -> None:
    class Fragile(InMemoryRunStore):
        failures = 2

        async def append(
            self, keys: IsolationKeys, response_id: str, batch: EventBatch, until: float, /
        ) -> None:
            if batch.first and self.failures:
                self.failures -= 1
                raise StoreError("down")
            await super().append(keys, response_id, batch, until)

    both = Instances(short, runs=Fragile())

    _, reply = await streamed(both)

    assert reply.types[-1] == "completed"
    assert [event["sequence_number"] for event in reply.events] == [*range(len(reply.events))]


async def test_a_stream_whose_end_could_not_be_stored_is_ended_by_the_record() -> None:
    class Deaf(InMemoryRunStore):
        async def append(
            self, keys: IsolationKeys, response_id: str, batch: EventBatch, until: float, /
        ) -> None:
            if batch.first:
                raise StoreError("down")
            await super().append(keys, response_id, batch, until)

    clock = Clock()
    both = Instances(short, runs=Deaf(clock=clock), clock=clock)
    creation = creating(background=True, stream=True).start(both.a.app)
    await job_of(both)
    await done(both.working(both.b))

    clock.now += LEASE_S + 1
    reply = await done(creation)

    assert reply.types == ["created", "queued", "completed"]
    assert reply.events[-1]["response"]["output"][0]["content"][0]["text"] == "one two"


async def test_reads_that_fail_for_a_moment_are_tried_again_and_for_long_end_the_reply() -> None:
    class Mute(InMemoryRunStore):
        failures = 3

        async def events(
            self, keys: IsolationKeys, response_id: str, after: int, /, *, is_strong: bool = False
        ) -> Sequence[EventBatch]:
            if self.failures:
                self.failures -= 1
                raise StoreError("down")
            return await super().events(keys, response_id, after, is_strong=is_strong)

    runs = Mute()
    both = Instances(short, runs=runs)
    response_id, reply = await streamed(both)
    assert reply.types[-1] == "completed"

    runs.failures = 1000
    cut = await resuming(response_id).run(both.b.app)

    assert (cut.status, cut.body) == (200, b"")


# Refused


async def test_what_cannot_be_streamed_says_why() -> None:
    clock = Clock()
    both = Instances(short, clock=clock, event_retention_s=600.0)
    plain = (await both.a.post("/v1/responses", {"input": "hi"})).json["id"]
    polled = (await both.a.begin())["id"]
    await done(both.working(both.a))
    resumable, _ = await streamed(both)
    clock.now += 900 + 600 + 1

    refused = {each: await resuming(each).run(both.b.app) for each in (plain, polled, resumable)}

    for each, reply in refused.items():
        assert (reply.status, reply.error_body["param"]) == (400, "stream")
        assert each in reply.error_body["message"]
    said = [reply.error_body["message"] for reply in refused.values()]
    assert "not created with 'background'" in said[0]
    assert "not created with 'stream'" in said[1]
    assert said[2].replace(resumable, polled) == said[1]
    assert (await both.b.get(resumable)).json["status"] == "completed"


async def test_a_foreign_stream_is_an_unknown_one() -> None:
    both = Instances(short)
    response_id, _ = await streamed(both)
    unknown = response_id[:-4] + "0000"

    foreign = await resuming(response_id, key="key-beta").run(both.b.app)
    missing = await resuming(unknown, key="key-beta").run(both.b.app)

    assert foreign.status == missing.status == 404
    assert foreign.body == missing.body.replace(unknown.encode(), response_id.encode())


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "1e3"])
async def test_a_number_that_is_none_is_refused(after: str) -> None:
    both = Instances(short)
    response_id, _ = await streamed(both)

    wire = request(
        "GET", f"/v1/responses/{response_id}", query=f"stream=true&starting_after={after}"
    )
    reply = await wire.run(both.b.app)

    assert (reply.status, reply.error_body["param"]) == (400, "starting_after")


async def test_the_calls_of_a_background_stream_are_answered_in_the_next_turn() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        if turn.history:
            yield f"It is {turn.input[-1]['output']}."
        else:
            yield FunctionCall("time", "{}", "call_1")

    tools = [{"type": "function", "name": "time", "parameters": {}}]
    both = Instances(agent)
    response_id, reply = await streamed(both, tools=tools)
    assert reply.events[-1]["response"]["output"][0]["call_id"] == "call_1"

    output = [{"type": "function_call_output", "call_id": "call_1", "output": "noon"}]
    _, answered = await streamed(both, input=output, previous_response_id=response_id)

    assert answered.events[-1]["response"]["output"][0]["content"][0]["text"] == "It is noon."
