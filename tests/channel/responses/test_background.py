"""Background responses: begun on one instance, run on another, looked at and cancelled from any."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from channel.agent import AgentEvent, Finish, Turn, TurnError
from channel.auth import Principal
from channel.contract import ChannelRequest
from channel.conversations import LOCK_GRACE_S
from channel.deadline import Deadline
from channel.isolation import IsolationKeys, get_current_isolation_keys
from channel.memory import InMemoryResponseStore
from channel.memory_runs import InMemoryRunStore
from channel.ports import Branch, Job, Run, StoredTurn, StoreError, TurnTooLargeError
from channel.responses.background.turns import BACKGROUND, ENDED
from channel.responses.background.watching import LEASE_S
from channel.responses.operations import BEGIN_S, QUEUE_S
from channel.responses.protocol.response import Response
from tests.channel.asgi import Wire, creating, get
from tests.channel.instances import Instance, Instances


pytestmark = pytest.mark.anyio

ALPHA = IsolationKeys("alpha")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "background.watching.LOOK_S",
        "background.following.POLL_S",
        "background.following.IDLE_POLL_S",
    ):
        monkeypatch.setattr(f"channel.responses.{name}", 0.001)
    monkeypatch.setattr("channel.responses.background.turns._CANCEL_POLL_S", 0.01)


class Gated:
    """An agent that says a word, and another one when it is let."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.is_closed = asyncio.Event()
        self.runs = 0
        self.turns: list[Turn] = []

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.runs += 1
        self.turns.append(turn)
        try:
            yield "one"
            self.has_begun.set()
            await self.gate.wait()
            yield " two"
        finally:
            self.is_closed.set()


async def echo(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield f"{len(turn.history)}: {turn.text}"


async def done(task: "asyncio.Task[Any]") -> Any:
    with anyio.fail_after(5):
        return await task


async def response_on(instance: Instance, response_id: str) -> dict[str, Any]:
    reply = await instance.get(response_id)
    assert reply.status == 200, reply.body
    response: dict[str, Any] = reply.json
    return response


async def status_on(instance: Instance, response_id: str) -> str:
    return str((await response_on(instance, response_id))["status"])


# Begun, run, finished


async def test_it_is_queued_at_once_and_completed_by_whoever_takes_its_job() -> None:
    both = Instances(echo)

    begun = await both.a.begin(metadata={"a": "b"}, instructions="Be brief.")

    assert (begun["status"], begun["background"], begun["output"]) == ("queued", True, [])
    assert await status_on(both.b, begun["id"]) == "queued"
    await done(both.working(both.b))
    finished = await response_on(both.a, begun["id"])
    assert finished["status"] == "completed"
    assert finished["output"][0]["content"][0]["text"] == "0: hi"
    unchanged = {"id", "created_at", "metadata", "instructions", "model", "background", "store"}
    assert {name: finished[name] for name in unchanged} == {name: begun[name] for name in unchanged}


async def test_it_is_in_progress_while_it_runs() -> None:
    agent = Gated()
    both = Instances(agent)
    begun = await both.a.begin()
    work = both.working(both.a)
    await agent.has_begun.wait()

    assert await status_on(both.b, begun["id"]) == "in_progress"

    agent.gate.set()
    await done(work)
    assert await status_on(both.b, begun["id"]) == "completed"


async def test_the_worker_runs_the_turn_that_was_asked_for() -> None:
    agent = Gated()
    agent.gate.set()
    both = Instances(agent, allowed_options={"temperature"})
    first = await both.a.begin(input="My name is Ann.")
    await done(both.working(both.b))

    tools = [{"type": "function", "name": "f", "parameters": {}}]
    await both.a.begin(
        input="Who am I?",
        previous_response_id=first["id"],
        instructions="Be brief.",
        tools=tools,
        tool_choice="required",
        temperature=0.5,
        metadata={"a": "b"},
        safety_identifier="someone",
    )
    await done(both.working(both.b))

    turn = agent.turns[-1]
    assert [item["role"] for item in turn.history] == ["user", "assistant"]
    assert (turn.text, turn.instructions, turn.tool_choice) == (
        "Who am I?",
        "Be brief.",
        "required",
    )
    assert (turn.options, turn.metadata) == ({"temperature": 0.5}, {"a": "b"})
    assert turn.tools[0]["name"] == "f"
    assert (turn.safety_identifier, turn.previous_response_id) == ("someone", first["id"])
    assert (turn.principal, turn.isolation_keys) == (Principal("alpha"), ALPHA)


async def test_the_worker_runs_what_a_hook_made_of_the_request() -> None:
    async def hook(request: ChannelRequest, **_: Any) -> ChannelRequest:
        request.history = [{"type": "message", "role": "user", "content": [], "id": "msg_1"}]
        request.instructions = "changed"
        return request

    agent = Gated()
    agent.gate.set()
    both = Instances(agent, run_hook=hook)
    await both.a.begin()

    both.options.pop("run_hook")  # it is the request's, which is checked once
    await done(both.working(both.another()))

    assert (agent.turns[0].instructions, agent.turns[0].history[0]["id"]) == ("changed", "msg_1")


async def test_the_agent_runs_in_the_partition_of_its_caller() -> None:
    seen: list[IsolationKeys | None] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        seen.append(get_current_isolation_keys())
        yield "a"

    both = Instances(agent)
    await both.a.begin()
    await done(both.working(both.b))

    assert seen == [ALPHA]
    assert get_current_isolation_keys() is None


async def incomplete(_: Turn) -> AsyncIterator[AgentEvent]:
    yield "a"
    yield Finish("max_output_tokens")


async def failing(_: Turn) -> AsyncIterator[AgentEvent]:
    raise TurnError("No such luck.", code="invalid_prompt")
    yield ""


async def broken(_: Turn) -> AsyncIterator[AgentEvent]:
    yield "a"
    raise RuntimeError("secret")


@pytest.mark.parametrize(
    ("agent", "status", "code"),
    [
        (incomplete, "incomplete", None),
        (failing, "failed", "invalid_prompt"),
        (broken, "failed", "server_error"),
    ],
)
async def test_it_ends_as_its_agent_did(agent: Any, status: str, code: str | None) -> None:
    both = Instances(agent)
    begun = await both.a.begin()
    await done(both.working(both.b))

    response = await response_on(both.a, begun["id"])

    assert response["status"] == status
    assert (response["error"] or {}).get("code") == code
    assert "secret" not in str(response)


async def test_it_is_continued_once_it_is_completed_and_not_before() -> None:
    both = Instances(echo)
    begun = await both.a.begin(input="one")
    early = await both.b.post(
        "/v1/responses", {"input": "two", "previous_response_id": begun["id"]}
    )
    await done(both.working(both.b))
    late = await both.b.post("/v1/responses", {"input": "two", "previous_response_id": begun["id"]})

    assert (early.status, early.error_body["code"]) == (400, "previous_response_not_found")
    assert late.json["output"][0]["content"][0]["text"] == "2: two"


async def test_its_input_items_are_there_from_the_beginning() -> None:
    both = Instances(echo)
    begun = await both.a.begin(input="one")

    listed = await get(both.b.app, f"/v1/responses/{begun['id']}/input_items")

    assert listed.json["data"][0]["content"][0]["text"] == "one"


async def test_a_turn_that_runs_out_of_time_is_failed_with_what_it_said() -> None:
    agent = Gated()
    both = Instances(agent)
    begun = await both.a.begin()

    await done(both.working(both.b, Deadline(monotonic() + 0.05, 5.0)))

    response = await response_on(both.a, begun["id"])
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["output"][0]["content"][0]["text"] == "one"
    assert response["output"][0]["status"] == "incomplete"


async def test_a_server_that_stops_has_failed_the_turn() -> None:
    agent = Gated()
    both = Instances(agent)
    begun = await both.a.begin()
    work = both.working(both.b)
    await agent.has_begun.wait()

    work.cancel()
    await asyncio.wait([work])

    response = await response_on(both.a, begun["id"])
    assert response["status"] == "failed"
    assert response["error"]["message"].startswith("The server was stopped.")


# At least once


async def test_a_job_that_comes_twice_runs_the_agent_once() -> None:
    agent = Gated()
    both = Instances(agent)
    begun = await both.a.begin()
    (job,) = both.jobs.held
    work = both.working(both.a)
    await agent.has_begun.wait()

    await both.b.work(job)
    agent.gate.set()
    await done(work)
    await both.b.work(job)

    assert agent.runs == 1
    assert await status_on(both.b, begun["id"]) == "completed"


async def test_a_worker_that_is_gone_is_told_as_failed_by_whoever_looks(clock: Clock) -> None:
    agent = Gated()
    both = Instances(agent, clock=clock)
    begun = await both.a.begin()
    (job,) = both.jobs.held
    owner = await both.runs.claim(ALPHA, begun["id"], "gone", clock.now + LEASE_S)
    assert owner is not None
    assert await status_on(both.b, begun["id"]) == "in_progress"

    clock.now += LEASE_S + 1
    seen = await response_on(both.b, begun["id"])

    assert (seen["status"], seen["error"]["code"]) == ("failed", "server_error")
    await both.b.work(job)  # Lambda tries again
    assert agent.runs == 0
    assert await response_on(both.a, begun["id"]) == seen


async def test_a_worker_that_only_seemed_to_be_gone_does_not_change_what_was_told(
    clock: Clock,
) -> None:
    agent = Gated()
    both = Instances(agent, clock=clock)
    begun = await both.a.begin()
    work = both.working(both.a)
    await agent.has_begun.wait()
    clock.now += LEASE_S + 1
    assert await status_on(both.b, begun["id"]) == "failed"

    agent.gate.set()
    await done(work)

    assert await status_on(both.a, begun["id"]) == "failed"


async def test_a_job_that_never_comes_has_failed_after_a_while(clock: Clock) -> None:
    both = Instances(echo, clock=clock)
    begun = await both.a.begin()
    (job,) = both.jobs.held
    clock.now += QUEUE_S - 1
    assert await status_on(both.b, begun["id"]) == "queued"

    clock.now += 2

    assert await status_on(both.b, begun["id"]) == "failed"
    await both.b.work(job)
    assert await status_on(both.b, begun["id"]) == "failed"


async def test_a_response_whose_run_is_lost_is_not_stuck() -> None:
    both = Instances(echo)
    begun = await both.a.begin()
    await both.runs.forget(ALPHA, begun["id"])

    assert await status_on(both.b, begun["id"]) == "failed"


async def test_a_history_that_was_deleted_meanwhile_fails_the_turn() -> None:
    both = Instances(echo)
    first = await both.a.begin()
    await done(both.working(both.a))
    second = await both.a.begin(previous_response_id=first["id"])
    await both.b.delete(first["id"])

    await done(both.working(both.b))

    assert await status_on(both.b, second["id"]) == "failed"


# Faults


class FragileStore(InMemoryResponseStore):
    def __init__(self, *failures: Exception | None) -> None:
        super().__init__()
        self.failures = [*failures]

    async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        if self.failures and (failure := self.failures.pop(0)):
            raise failure
        await super().save(keys, branch, turn)


class FragileRuns(InMemoryRunStore):
    async def begin(self, keys: IsolationKeys, response_id: str, run: Run, /) -> None:
        raise StoreError


async def test_a_job_that_cannot_be_started_is_an_error_and_a_failed_response() -> None:
    both = Instances(echo)
    both.jobs.failure = StoreError("down")

    reply = await both.a.post("/v1/responses", {"input": "hi", "background": True})

    assert (reply.status, reply.headers["x-should-retry"]) == (503, "true")
    (node,) = both.store._nodes.values()
    assert node.status == "failed"


@pytest.mark.parametrize("failing", ["store", "runs"])
async def test_what_cannot_be_stored_starts_no_job(failing: str) -> None:
    stores: dict[str, Any] = {"store": FragileStore(StoreError("down")), "runs": FragileRuns()}
    both = Instances(echo, **{failing: stores[failing]})

    reply = await both.a.post("/v1/responses", {"input": "hi", "background": True})

    assert reply.status == 503
    assert both.jobs.held == []


async def test_a_request_that_is_too_large_to_be_stored_says_so() -> None:
    both = Instances(echo, store=FragileStore(TurnTooLargeError("6 MB")))

    reply = await both.a.post("/v1/responses", {"input": "hi", "background": True})

    assert (reply.status, reply.error_body["code"]) == (413, "request_too_large")


async def test_a_result_that_cannot_be_stored_is_not_told_as_completed(clock: Clock) -> None:
    both = Instances(echo, store=FragileStore(None, *2 * [StoreError("down")]), clock=clock)
    begun = await both.a.begin()
    await done(both.working(both.b))
    assert await status_on(both.a, begun["id"]) == "in_progress"

    clock.now += LEASE_S + 1

    assert await status_on(both.a, begun["id"]) == "failed"


async def test_a_save_that_only_seemed_to_fail_is_made_once_more() -> None:
    both = Instances(echo, store=FragileStore(None, StoreError("time-out")))
    begun = await both.a.begin()

    await done(both.working(both.b))

    assert await status_on(both.a, begun["id"]) == "completed"


# Cancelled


async def test_a_queued_one_is_cancelled_at_once_and_never_runs() -> None:
    agent = Gated()
    both = Instances(agent)
    begun = await both.a.begin()

    cancelled = await both.b.cancel(begun["id"])

    assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
    assert (cancelled.json["completed_at"], cancelled.json["usage"]) == (None, None)
    await done(both.working(both.a))
    assert agent.runs == 0
    assert await status_on(both.a, begun["id"]) == "cancelled"


async def test_a_running_one_is_cancelled_from_another_instance_with_what_it_said() -> None:
    agent = Gated()
    both = Instances(agent)
    begun = await both.a.begin()
    work = both.working(both.a)
    await agent.has_begun.wait()

    cancelled = await both.b.cancel(begun["id"])

    assert cancelled.json["status"] == "cancelled"
    assert cancelled.json["output"][0]["content"][0]["text"] == "one"
    await done(work)
    assert agent.is_closed.is_set()
    assert await response_on(both.a, begun["id"]) == cancelled.json


async def test_cancelling_twice_gives_the_same_response() -> None:
    both = Instances(echo)
    begun = await both.a.begin()

    first = await both.a.cancel(begun["id"])
    second = await both.b.cancel(begun["id"])

    assert (second.status, second.body) == (200, first.body)


async def test_a_worker_that_does_not_listen_does_not_hold_up_a_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("channel.responses.background.turns.CANCEL_WAIT_S", 0.02)
    agent = Gated()
    both = Instances(agent)
    begun = await both.a.begin()
    monkeypatch.setattr("channel.responses.background.watching.LOOK_S", 3600.0)
    work = both.working(both.a)
    await agent.has_begun.wait()

    cancelled = await both.b.cancel(begun["id"])
    assert cancelled.json["status"] == "cancelled"
    agent.gate.set()
    await done(work)

    assert await status_on(both.a, begun["id"]) == "cancelled"


@pytest.mark.parametrize(
    ("agent", "status"), [(echo, "completed"), (incomplete, "incomplete"), (broken, "failed")]
)
async def test_a_finished_one_cannot_be_cancelled(agent: Any, status: str) -> None:
    both = Instances(agent)
    begun = await both.a.begin()
    await done(both.working(both.a))

    refused = await both.b.cancel(begun["id"])

    assert refused.status == 400
    assert refused.error_body == {
        "message": f"Cannot cancel a {status} response.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert await status_on(both.a, begun["id"]) == status


async def test_a_response_that_was_no_background_one_cannot_be_cancelled() -> None:
    both = Instances(echo)
    plain = await both.a.post("/v1/responses", {"input": "hi"})

    refused = await both.b.cancel(plain.json["id"])

    assert (refused.status, refused.error_body["message"]) == (
        400,
        "Cannot cancel a synchronous response.",
    )


async def test_cancelling_what_is_unknown_or_foreign_is_a_404_and_begins_nothing() -> None:
    both = Instances(echo)
    begun = await both.a.begin()
    unknown = begun["id"][:-4] + "0000"

    foreign = await both.b.cancel(begun["id"], key="key-beta")
    missing = await both.b.cancel(unknown, key="key-beta")

    assert foreign.status == missing.status == 404
    assert foreign.body == missing.body.replace(unknown.encode(), begun["id"].encode())
    assert await both.runs.look(IsolationKeys("beta"), begun["id"]) is None
    assert await both.runs.look(ALPHA, unknown) is None
    assert await status_on(both.a, begun["id"]) == "queued"


# Deleted


async def test_what_runs_cannot_be_deleted() -> None:
    both = Instances(echo)
    begun = await both.a.begin()

    refused = await both.b.delete(begun["id"])

    assert (refused.status, "in progress" in refused.error_body["message"]) == (400, True)
    assert await status_on(both.a, begun["id"]) == "queued"


async def test_a_finished_one_is_deleted_with_its_events() -> None:
    both = Instances(echo)
    creation = creating(background=True, stream=True).start(both.a.app)
    await wait_for_job(both)
    await done(both.working(both.a))
    response_id = (await done(creation)).events[0]["response"]["id"]

    deleted = await both.b.delete(response_id)

    assert deleted.json == {"id": response_id, "object": "response", "deleted": True}
    assert (await both.a.get(response_id)).status == 404
    assert (await both.a.get(response_id, query="stream=true")).status == 404
    assert await both.runs.look(ALPHA, response_id) is None
    assert await both.runs.events(ALPHA, response_id, -1) == []


async def test_one_whose_worker_is_gone_can_be_deleted(clock: Clock) -> None:
    both = Instances(echo, clock=clock)
    begun = await both.a.begin()
    clock.now += QUEUE_S + 1

    assert (await both.b.delete(begun["id"])).status == 200
    assert (await both.a.get(begun["id"])).status == 404


# Refused


async def test_a_server_without_jobs_refuses() -> None:
    both = Instances(echo, has_background=False)

    reply = await both.a.post("/v1/responses", {"input": "hi", "background": True})

    assert (reply.status, reply.error_body["param"], reply.error_body["code"]) == (
        400,
        "background",
        "unsupported_parameter",
    )


async def test_what_is_wrong_with_a_request_is_said_before_anything_is_stored() -> None:
    both = Instances(echo)

    wrong = await both.a.post("/v1/responses", {"background": True})
    unknown = await both.a.post(
        "/v1/responses", {"input": "hi", "background": True, "previous_response_id": "resp_x"}
    )

    assert (wrong.error_body["code"], unknown.error_body["code"]) == (
        "missing_required_parameter",
        "previous_response_not_found",
    )
    assert both.store._nodes == {}
    assert both.jobs.held == []


async def wait_for_job(both: Instances) -> Job:
    with anyio.fail_after(5):
        while not both.jobs.held:
            await checkpoint()
    job: Job = both.jobs.held[0]
    assert job.kind == BACKGROUND
    return job


# Streams that can be cancelled


async def streaming(both: Instances, agent: Gated) -> "tuple[asyncio.Task[Wire], Wire, str]":
    wire = creating(stream=True)
    task = wire.start(both.a.app)
    await wire.until("one")
    response_id = wire.body.decode().partition('"id":"')[2].partition('"')[0]
    return task, wire, response_id


async def test_a_stream_is_cancelled_from_another_instance_where_that_is_enabled() -> None:
    agent = Gated()
    both = Instances(agent, has_cancellable_streams=True)
    task, _, response_id = await streaming(both, agent)

    cancelled = await both.b.cancel(response_id)

    ended = (await done(task)).events[-1]
    assert ended["type"] == "response.failed"
    assert ended["response"] == cancelled.json
    assert cancelled.json["status"] == "cancelled"
    assert cancelled.json["output"][0]["content"][0]["text"] == "one"
    assert await response_on(both.b, response_id) == cancelled.json


async def test_a_stream_cannot_be_cancelled_by_default() -> None:
    agent = Gated()
    both = Instances(agent)
    task, _, response_id = await streaming(both, agent)

    refused = await both.b.cancel(response_id)
    agent.gate.set()

    assert refused.status == 404
    assert (await done(task)).types[-1] == "completed"


async def test_a_stream_that_does_not_stop_in_time_is_to_be_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("channel.responses.background.turns.CANCEL_WAIT_S", 0.02)
    agent = Gated()
    both = Instances(agent, has_cancellable_streams=True)
    monkeypatch.setattr("channel.responses.background.watching.LOOK_S", 3600.0)
    task, _, response_id = await streaming(both, agent)

    refused = await both.b.cancel(response_id)
    agent.gate.set()
    await done(task)
    late = await both.b.cancel(response_id)

    assert (refused.status, refused.headers["retry-after"]) == (409, "2")
    assert (late.status, late.error_body["message"]) == (
        400,
        "Cannot cancel a synchronous response.",
    )


# Told


class Told:
    """Webhooks that note what they were told."""

    def __init__(self) -> None:
        self.heard: list[tuple[IsolationKeys, str, str, str]] = []
        self.failure: Exception | None = None

    async def notify(
        self,
        keys: IsolationKeys,
        principal: str,
        response: Response,
        /,
        *,
        deadline_s: float | None = None,
    ) -> None:
        del deadline_s
        if self.failure is not None:
            raise self.failure
        self.heard.append((keys, principal, response.id, str(response.status)))


@pytest.mark.parametrize(
    ("agent", "status"), [(echo, "completed"), (incomplete, "incomplete"), (broken, "failed")]
)
async def test_the_worker_tells_of_the_end(agent: Any, status: str) -> None:
    webhooks = Told()
    both = Instances(agent, webhooks=webhooks)
    begun = await both.a.begin()

    await done(both.working(both.b))

    assert webhooks.heard == [(ALPHA, "alpha", begun["id"], status)]


async def test_a_job_tells_of_an_end_that_was_not_the_workers(clock: Clock) -> None:
    webhooks = Told()
    both = Instances(echo, webhooks=webhooks, clock=clock)
    cancelled = await both.a.begin()
    await both.b.cancel(cancelled["id"])
    lost = await both.a.begin()
    clock.now += QUEUE_S + 1
    await both.b.get(lost["id"])

    told = [job for job in both.jobs.held if job.kind == ENDED]
    for job in told:
        await both.b.work(job, Deadline(monotonic() + 60, 5.0))

    assert [heard[2:] for heard in webhooks.heard] == [
        (cancelled["id"], "cancelled"),
        (lost["id"], "failed"),
    ]


async def test_a_worker_without_time_leaves_the_telling_to_a_job() -> None:
    webhooks = Told()
    both = Instances(echo, webhooks=webhooks)
    begun = await both.a.begin()

    await done(both.working(both.b, Deadline(monotonic() + 5, 2.0)))

    assert webhooks.heard == []
    (job,) = both.jobs.held
    assert (job.kind, job.payload["response_id"]) == (ENDED, begun["id"])


async def test_nobody_is_told_of_a_foreground_response() -> None:
    webhooks = Told()
    both = Instances(echo, webhooks=webhooks)

    await both.a.post("/v1/responses", {"input": "hi"})

    assert (webhooks.heard, both.jobs.held) == ([], [])


async def test_who_cannot_be_told_now_is_told_by_a_job_and_the_turn_is_what_it_is() -> None:
    webhooks = Told()
    webhooks.failure = StoreError("down")
    both = Instances(echo, webhooks=webhooks)
    begun = await both.a.begin()

    await done(both.working(both.b))

    assert await status_on(both.a, begun["id"]) == "completed"
    (job,) = both.jobs.held
    with pytest.raises(StoreError):  # so that it is tried again
        await both.b.work(job)
    webhooks.failure = None
    await both.b.work(job)
    assert [heard[2:] for heard in webhooks.heard] == [(begun["id"], "completed")]


async def test_webhooks_that_are_broken_change_nothing() -> None:
    webhooks = Told()
    webhooks.failure = ZeroDivisionError()
    both = Instances(echo, webhooks=webhooks)
    begun = await both.a.begin()

    await done(both.working(both.b))

    assert await status_on(both.a, begun["id"]) == "completed"


# In conversations


async def in_conversation(both: Instances, **fields: Any) -> tuple[str, dict[str, Any]]:
    conversation: str = (await both.a.post("/v1/conversations", {})).json["id"]
    return conversation, await both.a.begin(conversation=conversation, **fields)


async def test_a_worker_that_is_gone_locks_its_conversation_no_longer_than_its_lease(
    clock: Clock,
) -> None:
    agent = Gated()
    both = Instances(agent, clock=clock)
    conversation, _ = await in_conversation(both)
    work = both.working(both.a)
    await agent.has_begun.wait()
    turn = {"input": "again", "conversation": conversation}
    locked = await both.b.post("/v1/responses", turn)
    assert locked.error_body["code"] == "conversation_locked"

    clock.now += LEASE_S + LOCK_GRACE_S + 1  # nobody renews anything
    agent.gate.set()
    free = await both.b.post("/v1/responses", turn)
    await done(work)

    assert free.status == 200


async def test_a_job_whose_first_attempt_could_not_read_its_turn_is_run_by_the_second() -> None:
    class Unreadable(InMemoryResponseStore):
        failures = 1

        async def reopen(
            self, keys: IsolationKeys, response_id: str, /, *, with_history: bool = True
        ) -> tuple[StoredTurn, Branch] | None:
            if self.failures:
                self.failures -= 1
                raise StoreError("down")
            return await super().reopen(keys, response_id, with_history=with_history)

    both = Instances(echo, store=Unreadable())
    begun = await both.a.begin()
    (job,) = both.jobs.held
    with pytest.raises(StoreError):
        await both.a.work(job)

    await both.b.work(job)

    assert await status_on(both.a, begun["id"]) == "completed"


async def test_an_end_is_told_once_where_another_was_first(clock: Clock) -> None:
    agent, webhooks = Gated(), Told()
    both = Instances(agent, clock=clock, webhooks=webhooks)
    begun = await both.a.begin()
    work = both.working(both.a)
    await agent.has_begun.wait()
    clock.now += LEASE_S + 1
    assert await status_on(both.b, begun["id"]) == "failed"
    agent.gate.set()
    await done(work)
    assert webhooks.heard == []

    (job,) = both.jobs.held
    await both.b.work(job)

    assert [heard[2:] for heard in webhooks.heard] == [(begun["id"], "failed")]


# Cut off


async def test_a_cancellation_that_was_cut_off_is_finished_by_whoever_looks() -> None:
    both = Instances(echo)
    conversation, begun = await in_conversation(both)
    await both.runs.request_cancel(ALPHA, begun["id"])  # and then its instance was gone

    assert await status_on(both.b, begun["id"]) == "cancelled"
    turn = {"input": "again", "conversation": conversation}
    assert (await both.b.post("/v1/responses", turn)).status == 200


async def test_a_begin_that_was_cut_off_locks_its_conversation_for_a_minute(clock: Clock) -> None:
    class Stopped(InMemoryResponseStore):
        async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
            await asyncio.Event().wait()

    both = Instances(echo, store=Stopped(clock=clock), clock=clock)
    conversation: str = (await both.a.post("/v1/conversations", {})).json["id"]
    fields = {"input": "hi", "conversation": conversation}
    gone = asyncio.create_task(both.a.post("/v1/responses", {**fields, "background": True}))
    path, items = f"/v1/conversations/{conversation}/items", [{"role": "user", "content": "hi"}]
    with anyio.fail_after(5):
        while (await both.b.post(path, {"items": items})).status == 200:
            await checkpoint()

    clock.now += BEGIN_S + LOCK_GRACE_S + 1

    assert (await both.b.post(path, {"items": items})).status == 200
    gone.cancel()
    await asyncio.wait([gone])


async def test_deleting_an_id_of_which_nothing_is_stored_leaves_a_running_stream_alone() -> None:
    agent = Gated()
    both = Instances(agent, has_cancellable_streams=True)
    task, _, response_id = await streaming(both, agent)

    assert (await both.b.delete(response_id)).status == 404
    agent.gate.set()

    assert (await done(task)).types[-1] == "completed"
