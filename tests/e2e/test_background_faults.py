"""Faults at each call of background responses: what is told of one is true, and none waits for ever."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from channel.conversations import LOCK_GRACE_S
from channel.isolation import IsolationKeys
from channel.ports import Job, random_hex
from channel.responses.background.watching import LEASE_S
from channel.responses.operations import MAX_TURN_S, QUEUE_S
from tests.channel.asgi import Wire, request
from tests.channel.instances import Instance
from tests.e2e.faulty import STRIKES, Clients, Deployment, Struck, require_retry
from tests.infra.hooks import OUTAGE


pytestmark = pytest.mark.anyio

ALPHA = IsolationKeys("alpha")
RETRY_S = 60.0
"""Seconds after which Lambda runs a job again that failed."""

each_strike = pytest.mark.parametrize("kind", STRIKES)
# Where nothing is written, it is all the same whether a call fails before or after it.
each_failing_read = pytest.mark.parametrize("kind", ["throttle", OUTAGE])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    background = "channel.responses.background"
    for name in ("following.POLL_S", "following.IDLE_POLL_S"):
        monkeypatch.setattr(f"{background}.{name}", 0.001)
    for name in ("turns.CANCEL_WAIT_S", "turns._CANCEL_POLL_S"):
        monkeypatch.setattr(f"{background}.{name}", 0.001)


@pytest.fixture
async def deployment(clients: Clients) -> Deployment:
    made = Deployment(clients)
    await made.register_webhook()
    return made


class Asked(NamedTuple):
    """A create that can be sent again."""

    fields: dict[str, Any]
    headers: dict[str, str]


async def begin(process: Instance, asked: Asked) -> Wire:
    wire = request("POST", "/v1/responses", asked.fields, headers=asked.headers)
    if "stream" in asked.fields:
        wire.hang_up()
    return await wire.run(process.app)


@dataclass(frozen=True)
class Beginning:
    """A create, and how many calls it makes."""

    calls: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    is_in_conversation: bool = False
    has_key: bool = False

    async def asked(self, deployment: Deployment) -> Asked:
        """Return a new one."""
        fields = {"input": "What is it?", "background": True, **self.fields}
        if self.is_in_conversation:
            made = await deployment.healthy.post("/v1/conversations", {})
            fields["conversation"] = made.json["id"]
        return Asked(fields, {"idempotency-key": random_hex(8)} if self.has_key else {})


BEGINNINGS: Mapping[str, Beginning] = {
    "plain": Beginning(3),  # the record, its run, the job
    "stream": Beginning(4, {"stream": True}),  # and its first events
    # And the lock, the history, the lock's time.
    "in a conversation": Beginning(6, is_in_conversation=True),
    "with a key": Beginning(6, has_key=True),  # and the claim, its note, and its end
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in STRIKES for name in ("plain", "in a conversation")),
        *((kind, name) for kind in STRIKES[:2] for name in ("stream", "with a key")),
    ],
)
async def test_a_response_is_begun_or_its_client_is_told_that_it_is_not(
    deployment: Deployment, kind: str, name: str
) -> None:
    case = BEGINNINGS[name]

    async def given() -> Asked:
        asked = await case.asked(deployment)
        deployment.saved.clear()
        return asked

    strikes = deployment.strikes(kind, begin, given, calls=case.calls, goes_on=name == "stream")
    async for struck in strikes:
        made = {*deployment.saved}
        again = await begin(deployment.healthy, struck.given)
        await deployment.run_jobs()
        left = {await deployment.status(each) for each in made}
        deployment.clock.now += QUEUE_S + MAX_TURN_S + LOCK_GRACE_S + 1
        later = await begin(deployment.healthy, struck.given)
        await deployment.run_jobs()
        ended = {await deployment.status(each) for each in made}

        is_begun = struck.has_reply and struck.reply.status == 200
        if is_begun:
            assert left == ended == {"completed"}
        elif struck.has_reply:
            require_retry(struck.reply)
            assert left <= {None, "failed", "queued" if struck.is_for_good else "failed"}
            assert ended <= {None, "failed"}
            assert not made & {turn.response_id for turn in deployment.ran}
        assert ended <= {None, "completed", "failed"}
        if again.status != 200:  # what is in the way has begun, or nobody was left to clear it away
            assert is_begun or struck.is_for_good
            assert again.error_body["code"] in {
                "conversation_locked",
                "idempotency_key_in_progress",
            }
        assert later.status == 200


class Begun(NamedTuple):
    """A response that was begun, and the job that runs it."""

    response_id: str
    job: Job


async def begun(deployment: Deployment, case: Beginning) -> Begun:
    asked = await case.asked(deployment)
    deployment.saved.clear()
    reply = await begin(deployment.healthy, asked)
    assert reply.status == 200
    (response_id,) = deployment.saved
    deployment.ran.clear()
    deployment.posts.types.clear()
    return Begun(response_id, deployment.clients.invocations.held.pop())


WORK: Mapping[str, tuple[Beginning, int]] = {
    # The record, the claim, the save, the events, whom to tell.
    "stream": (BEGINNINGS["stream"], 5),
    # The record, the history, the claim, the lock's time; that it holds, the save, the unlock; whom
    # to tell.
    "in a conversation": (BEGINNINGS["in a conversation"], 8),
}


@pytest.mark.parametrize("kind", STRIKES)
@pytest.mark.parametrize(("case", "calls"), WORK.values(), ids=WORK)
async def test_a_job_that_fails_anywhere_has_run_its_turn_once_at_most_and_tells_the_truth(
    deployment: Deployment, case: Beginning, calls: int, kind: str
) -> None:
    async def work(process: Instance, given: Begun) -> None:
        await process.work(given.job)

    async for struck in deployment.strikes(
        kind, work, lambda: begun(deployment, case), calls=calls
    ):
        response_id, job = struck.given
        if not struck.has_reply:
            await deployment.healthy.work(job)
        between = await deployment.status(response_id)
        deployment.clock.now += RETRY_S
        if not struck.has_reply:
            await deployment.healthy.work(job)
        status = await deployment.status(response_id)
        await deployment.run_jobs()

        assert between in {"queued", "in_progress", status}
        assert status in {"completed", "failed"}
        assert len(deployment.ran) <= 1
        if kind == "throttle" and status == "failed":
            assert deployment.ran  # before the agent was started, a job is tried again
        assert {*deployment.posts.types} <= {f"response.{status}"}
        if "stream" in case.fields:
            await require_same_stream(deployment, response_id)


async def require_same_stream(deployment: Deployment, response_id: str) -> None:
    """Require that the stream of a response ends as its record says."""
    kept = (await deployment.healthy.get(response_id)).json
    stream = await deployment.healthy.get(response_id, query="stream=true")
    assert [event["sequence_number"] for event in stream.events] == [*range(len(stream.events))]
    assert stream.events[-1]["response"]["status"] == kept["status"]


async def polled(process: Instance, given: Begun) -> Wire:
    return await process.get(given.response_id)


async def test_a_poll_that_fails_changes_nothing(deployment: Deployment) -> None:
    async def given() -> Begun:
        made = await begun(deployment, BEGINNINGS["plain"])
        until = deployment.clock.now + LEASE_S
        await deployment.runs.claim(ALPHA, made.response_id, "worker", until)
        return made

    async for struck in deployment.strikes("throttle", polled, given, calls=2):
        require_retry(struck.reply)
        assert await deployment.status(struck.given.response_id) == "in_progress"


@each_strike
async def test_a_response_whose_worker_is_gone_has_failed_wherever_a_poll_of_it_fails(
    deployment: Deployment, kind: str
) -> None:
    async def given() -> Begun:
        made = await begun(deployment, BEGINNINGS["in a conversation"])
        deployment.clock.now += QUEUE_S + 1
        return made

    # The record, its run twice; the record, its events, the save, the unlock, the cancel flag; a job
    # that tells of it.
    async for struck in deployment.strikes(kind, polled, given, calls=9):
        if struck.has_reply and struck.reply.status == 200:
            assert struck.reply.json["status"] == "failed"
        elif struck.has_reply:
            require_retry(struck.reply)
        assert await deployment.status(struck.given.response_id) == "failed"
        await deployment.healthy.work(struck.given.job)
        await deployment.run_jobs()
        assert not deployment.ran
        assert {*deployment.posts.types} <= {"response.failed"}


CANCELS: Mapping[str, tuple[Beginning, int]] = {
    # The flag, the record, its run; the record, its events, the save; a job that tells of it.
    "queued": (BEGINNINGS["plain"], 7),
    "at work": (BEGINNINGS["stream"], 9),  # and two looks whether the worker has ended it
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "queued") for kind in STRIKES), ("throttle", "at work"), (STRIKES[1], "at work")],
)
async def test_a_cancel_that_fails_can_be_repeated(
    deployment: Deployment, kind: str, name: str
) -> None:
    case, calls = CANCELS[name]

    async def given() -> Begun:
        made = await begun(deployment, case)
        if name == "at work":
            until = deployment.clock.now + LEASE_S
            await deployment.runs.claim(ALPHA, made.response_id, "worker", until)
        return made

    async def cancel(process: Instance, given: Begun) -> Wire:
        return await process.cancel(given.response_id)

    async for struck in deployment.strikes(kind, cancel, given, calls=calls):
        between = await deployment.status(struck.given.response_id)
        again = await cancel(deployment.healthy, struck.given)
        await deployment.healthy.work(struck.given.job)
        await deployment.run_jobs()

        if struck.has_reply and struck.reply.status == 200:
            assert struck.reply.json["status"] == between == "cancelled"
        elif struck.has_reply:
            require_retry(struck.reply)
        assert between in {"queued", "in_progress", "cancelled"}
        assert (again.status, again.json["status"]) == (200, "cancelled")
        assert await deployment.status(struck.given.response_id) == "cancelled"
        assert not deployment.ran
        assert {*deployment.posts.types} <= {"response.cancelled"}


@each_strike
async def test_a_deletion_that_fails_can_be_repeated_until_all_is_gone(
    deployment: Deployment, kind: str
) -> None:
    rows: list[int] = []

    async def given() -> Begun:
        rows.append(len(deployment.rows()))
        made = await begun(deployment, BEGINNINGS["stream"])
        await deployment.healthy.work(made.job)
        return made

    async def delete(process: Instance, given: Begun) -> Wire:
        return await process.delete(given.response_id)

    # The record, its tombstone; what there is of its run, the run, two batches of events.
    async for struck in deployment.strikes(kind, delete, given, calls=6):
        is_there = await deployment.status(struck.given.response_id) is not None
        deployment.clock.now += LEASE_S + 1  # until then, a run may be that of a stream
        again = await delete(deployment.healthy, struck.given)

        if struck.has_reply:
            require_retry(struck.reply)
        assert again.status == (200 if is_there else 404)
        assert await deployment.status(struck.given.response_id) is None
        assert len(deployment.rows()) == rows[-1] + 1  # the tombstone


async def resumed(process: Instance, given: Begun) -> Wire:
    return await process.get(given.response_id, query="stream=true")


def require_whole_stream(struck: Struck[Begun]) -> None:
    """Require that a stream is whole, or that its client was told to come again."""
    if not struck.has_reply:
        return
    if struck.reply.status != 200:
        require_retry(struck.reply)
    elif struck.is_for_good:
        assert b"[DONE]" not in struck.reply.body  # it may be resumed
    else:
        assert struck.reply.events[-1]["response"]["status"] in {"completed", "failed"}


@each_failing_read
async def test_a_stream_that_is_resumed_is_whole_or_refused(
    deployment: Deployment, kind: str
) -> None:
    async def given() -> Begun:
        made = await begun(deployment, BEGINNINGS["stream"])
        await deployment.healthy.work(made.job)
        return made

    # The record, its run, its events.
    async for struck in deployment.strikes(kind, resumed, given, calls=3):
        require_whole_stream(struck)
        await require_same_stream(deployment, struck.given.response_id)


@each_failing_read
async def test_a_stream_whose_worker_is_gone_ends_as_its_record_says(
    deployment: Deployment, kind: str
) -> None:
    async def given() -> Begun:
        made = await begun(deployment, BEGINNINGS["stream"])
        deployment.clock.now += QUEUE_S + 1
        return made

    # As a poll; then its run and its events, the record, and the last events once more.
    async for struck in deployment.strikes(kind, resumed, given, calls=15):
        require_whole_stream(struck)
        await require_same_stream(deployment, struck.given.response_id)


@each_strike
async def test_a_stream_that_could_be_cancelled_is_noted_before_it_runs(
    deployment: Deployment, kind: str
) -> None:
    async def given() -> None:
        deployment.saved.clear()
        deployment.ran.clear()

    async def create(process: Instance, _: None) -> Wire:
        return await process.post("/v1/responses", {"input": "What is it?", "stream": True})

    # The run, the save.
    strikes = deployment.strikes(kind, create, given, calls=2, has_cancellable_streams=True)
    async for struck in strikes:
        made = {await deployment.status(each) for each in deployment.saved}
        if struck.at == 0:
            assert (made, deployment.ran) == (set(), [])
        if struck.has_reply and struck.at == 0:
            require_retry(struck.reply)
        elif struck.has_reply:
            assert struck.reply.types[-1] == "failed"
        assert made <= {None, "completed"}
