"""`Idempotency-Key` on `POST /responses`: one run, whatever comes twice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from channel.agent import AgentEvent, Finish, Turn
from channel.responses.protocol.errors import RequestError
from tests.channel.asgi import Wire, request
from tests.channel.instances import Instance, Instances


pytestmark = pytest.mark.anyio


class Counting:
    """Says how often it ran; waits where a test holds it."""

    def __init__(self) -> None:
        self.runs = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.runs += 1
        self.begun.set()
        await self.gate.wait()
        match turn.text:
            case "refuse":
                raise RequestError("No.", param="input")
            case "fail":
                raise RuntimeError("secret")
            case "late":
                yield "so far"
                raise RuntimeError("secret")
            case "limit":
                yield "so far"
                yield Finish("max_output_tokens")
            case _:
                yield f"run {self.runs}"


def keyed(key: str = "k-1", *, who: str = "key-alpha", **fields: Any) -> Wire:
    body = {"input": "hi", **fields}
    return request("POST", "/v1/responses", body, key=who, headers={"idempotency-key": key})


async def posted(on: Instance, key: str = "k-1", *, who: str = "key-alpha", **fields: Any) -> Wire:
    return await keyed(key, who=who, **fields).run(on.app)


async def test_the_same_request_gets_the_first_result_on_any_instance() -> None:
    agent = Counting()
    both = Instances(agent)

    first, second = await posted(both.a), await posted(both.b)

    assert (second.status, second.body) == (200, first.body)
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert agent.runs == 1


async def test_a_stream_is_replayed_as_a_stream_that_ends_alike() -> None:
    agent = Counting()
    both = Instances(agent)

    first, second = await posted(both.a, stream=True), await posted(both.b, stream=True)

    assert second.events == first.events
    assert second.headers["idempotent-replayed"] == "true"
    assert agent.runs == 1


@pytest.mark.parametrize("said", ["late", "limit"])
@pytest.mark.parametrize("stream", [False, True])
async def test_whatever_was_stored_is_the_result(said: str, stream: bool) -> None:
    agent = Counting()
    both = Instances(agent)

    first = await posted(both.a, input=said, stream=stream)
    second = await posted(both.b, input=said, stream=stream)

    assert agent.runs == 1
    if stream:
        assert second.events[-1] == first.events[-1]
    else:
        assert second.body == first.body


async def test_another_body_is_refused() -> None:
    both = Instances(Counting())
    await posted(both.a)

    refused = await posted(both.b, input="other")

    assert (refused.status, refused.error_body["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("stream", [False, True])
async def test_while_the_first_runs_the_second_is_told_to_come_back(stream: bool) -> None:
    agent = Counting()
    agent.gate.clear()
    both = Instances(agent)
    running = keyed(stream=stream).start(both.a.app)
    await agent.begun.wait()

    early = await posted(both.b, stream=stream)
    agent.gate.set()
    with anyio.fail_after(5):
        await running
    late = await posted(both.b, stream=stream)

    assert (early.status, early.headers["retry-after"]) == (409, "1")
    assert (late.status, agent.runs) == (200, 1)


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"input": "refuse"}, 400), ({"input": "fail"}, 500), ({"input": 5}, 400)],
)
async def test_a_request_of_which_nothing_was_stored_may_come_again(
    fields: dict[str, Any], status: int
) -> None:
    agent = Counting()
    both = Instances(agent)
    first = await posted(both.a, **fields)

    second = await posted(both.b)

    assert (first.status, second.status) == (status, 200)
    assert "idempotent-replayed" not in second.headers


async def test_a_client_that_went_away_before_anything_was_said_may_come_again() -> None:
    agent = Counting()
    agent.gate.clear()
    both = Instances(agent)
    wire = keyed()
    gone = wire.start(both.a.app)
    await agent.begun.wait()
    wire.hang_up()
    with anyio.fail_after(5):
        await gone
    agent.gate.set()

    assert (await posted(both.b)).status == 200
    assert agent.runs == 2


async def test_what_is_not_stored_only_keeps_off_a_duplicate_that_comes_meanwhile() -> None:
    agent = Counting()
    agent.gate.clear()
    both = Instances(agent)
    running = keyed(store=False).start(both.a.app)
    await agent.begun.wait()
    early = await posted(both.b, store=False)
    agent.gate.set()
    with anyio.fail_after(5):
        await running

    late = await posted(both.b, store=False)

    assert (early.status, late.status, agent.runs) == (409, 200, 2)


async def test_a_background_request_is_begun_once_and_seen_as_it_is_now() -> None:
    agent = Counting()
    both = Instances(agent)
    first = await posted(both.a, background=True)

    queued = await posted(both.b, background=True)
    await both.b.work(both.jobs.held.pop())
    completed = await posted(both.b, background=True)

    assert both.jobs.held == []
    assert queued.body == first.body
    assert (completed.json["id"], completed.json["status"]) == (first.json["id"], "completed")
    assert agent.runs == 1


async def test_a_background_stream_is_followed_again_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("POLL_S", "IDLE_POLL_S"):
        monkeypatch.setattr(f"channel.responses.background.following.{name}", 0.001)
    agent = Counting()
    agent.gate.clear()
    both = Instances(agent)
    first = keyed(background=True, stream=True)
    following = first.start(both.a.app)
    await first.until("queued")
    work = both.working(both.a)
    await agent.begun.wait()
    second = keyed(background=True, stream=True)
    again = second.start(both.b.app)
    await second.until("queued")

    agent.gate.set()
    with anyio.fail_after(5):
        await asyncio.gather(work, following, again)

    assert second.body == first.body
    assert agent.runs == 1


async def test_a_background_stream_that_has_ended_is_replayed_by_its_own_events() -> None:
    agent = Counting()
    both = Instances(agent)
    first = keyed(background=True, stream=True)
    following = first.start(both.a.app)
    await first.until("queued")
    with anyio.fail_after(5):
        await both.working(both.a)
        await following

    again = await posted(both.b, background=True, stream=True)

    assert again.body == first.body  # so that it can be resumed by their numbers
    assert agent.runs == 1


async def test_keys_of_two_tenants_are_apart() -> None:
    agent = Counting()
    both = Instances(agent)
    await posted(both.a)

    other = await posted(both.b, who="key-beta")

    assert "idempotent-replayed" not in other.headers
    assert agent.runs == 2


async def test_the_result_of_a_key_that_was_deleted_is_gone() -> None:
    both = Instances(Counting())
    first = await posted(both.a)
    await both.a.delete(first.json["id"])

    again = await posted(both.b)

    assert again.status == 404


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x7fb", "ü"])
async def test_a_key_that_is_none_is_refused(key: str) -> None:
    agent = Counting()
    both = Instances(agent)

    refused = await posted(both.a, key)

    assert (refused.status, refused.error_body["code"]) == (400, "invalid_idempotency_key")
    assert agent.runs == 0
