"""A turn that runs out of time: ended as failed, with what it said, stored and told before the door closes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from starlette.types import ASGIApp

from channel.agent import Agent, AgentEvent, Turn
from channel.contract import HostedRunResult
from channel.deadline import DEADLINE, Deadline, TimeLeft
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.ports import Branch, StoredTurn, call_limit_s
from tests.channel.asgi import Wire, creating, get, hosted


pytestmark = pytest.mark.anyio

SOON = TimeLeft(0.02, 5.0)
"""The turn ends at once, and there is time enough for what follows."""


async def says_and_waits(_: Turn) -> AsyncIterator[AgentEvent]:
    yield "so far"
    await asyncio.Event().wait()


async def waits(_: Turn) -> AsyncIterator[AgentEvent]:
    await asyncio.Event().wait()
    yield "never"


def stubborn(let_go: asyncio.Event) -> Agent:
    """Ignores that it is cancelled."""

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()

    return agent


async def told(app: ASGIApp, left: TimeLeft, **fields: Any) -> Wire:
    wire = creating(**fields)
    wire.scope[DEADLINE] = left.since(time.monotonic())
    with anyio.fail_after(10):
        return await wire.run(app)


async def test_a_stream_ends_as_failed_with_what_was_said() -> None:
    app = hosted(says_and_waits)

    wire = await told(app, SOON, stream=True)

    last = wire.events[-1]["response"]
    assert wire.types[-1] == "failed"
    assert last["error"]["code"] == "server_error"
    assert last["error"]["message"].startswith("The server ran out of time. Request id: ")
    assert last["output"][0]["content"][0]["text"] == "so far"
    assert (await get(app, f"/v1/responses/{last['id']}")).json == last


async def test_a_json_reply_is_a_504_that_is_not_retried_and_names_what_is_kept() -> None:
    app = hosted(says_and_waits)

    wire = await told(app, SOON)

    error = wire.json["error"]
    assert (wire.status, wire.headers["x-should-retry"]) == (504, "false")
    assert (error["type"], error["code"], error["param"]) == ("server_error", "timeout", None)
    response_id = error["message"].split("'")[1]
    kept = (await get(app, f"/v1/responses/{response_id}")).json
    assert (kept["status"], kept["output"][0]["content"][0]["text"]) == ("failed", "so far")


async def test_a_json_reply_of_a_turn_that_is_not_to_be_kept_names_nothing() -> None:
    wire = await told(hosted(says_and_waits), SOON, store=False)

    assert wire.status == 504
    assert "resp_" not in wire.json["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_within_the_grace_it_is_a_504_and_nothing_is_kept(stream: bool) -> None:
    wire = await told(hosted(waits, first_event_grace_s=5), SOON, stream=stream)

    assert (wire.status, wire.headers["x-should-retry"]) == (504, "false")
    assert wire.json["error"] == {
        "message": "The server ran out of time.",
        "type": "server_error",
        "param": None,
        "code": "timeout",
    }


async def test_after_the_grace_a_silent_agent_is_a_failed_response() -> None:
    app = hosted(waits, first_event_grace_s=0)

    wire = await told(app, SOON, stream=True)

    assert wire.types == ["created", "in_progress", "failed"]


async def test_a_turn_that_is_done_in_time_knows_nothing_of_it() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        await asyncio.sleep(0)
        yield "b"

    wire = await told(hosted(agent), TimeLeft(60, 5))

    assert (wire.status, wire.json["status"]) == (200, "completed")


async def test_an_agent_may_clean_up_when_its_time_is_over() -> None:
    cleaned: list[str] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    await told(hosted(agent), SOON, stream=True)

    assert cleaned == ["up"]


@pytest.mark.parametrize("last", ["says more", "raises"])
async def test_whatever_an_agent_makes_of_its_end_the_turn_has_failed(last: str) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if last == "raises":
                raise LookupError(last) from None
            yield "more"

    wire = await told(hosted(agent), SOON, stream=True)

    response = wire.events[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["error"]["message"].startswith("The server ran out of time.")
    assert response["output"][0]["content"][0]["text"] == "a"


async def test_an_agent_that_ignores_its_end_is_told_and_kept_without_it() -> None:
    let_go = asyncio.Event()
    app = hosted(stubborn(let_go))
    wire = creating(stream=True)
    wire.scope[DEADLINE] = TimeLeft(0.02, 0.1).since(time.monotonic())
    task = wire.start(app)
    with anyio.fail_after(10):
        await wire.until("[DONE]")
        let_go.set()
        await task

    kept = await get(app, f"/v1/responses/{wire.events[0]['response']['id']}")
    assert wire.types[-1] == "failed"
    assert kept.json == wire.events[-1]["response"]


async def test_a_json_reply_of_an_agent_that_ignores_its_end_is_told_without_it() -> None:
    let_go = asyncio.Event()
    wire = creating()
    wire.scope[DEADLINE] = TimeLeft(0.02, 0.1).since(time.monotonic())
    task = wire.start(hosted(stubborn(let_go)))
    with anyio.fail_after(10):
        await wire.until("timeout")
        let_go.set()
        await task

    assert (wire.status, wire.json["error"]["code"]) == (504, "timeout")
    assert "resp_" in wire.json["error"]["message"]
    assert len(wire.sent) == 2


async def test_what_is_being_written_goes_out_whole_before_the_turn_is_ended() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        await asyncio.Event().wait()

    app = hosted(agent)
    wire = creating(stream=True)
    wire.scope[DEADLINE] = SOON.since(time.monotonic())
    wire.gate.clear()
    task = wire.start(app)
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, wire.gate.set)
    with anyio.fail_after(10):
        await task

    assert [event["sequence_number"] for event in wire.events] == [*range(len(wire.events))]
    assert wire.types[-1] == "failed"


async def test_a_client_that_does_not_read_leaves_a_failed_record_when_its_door_closes() -> None:
    speaks = asyncio.Event()
    saved: list[StoredTurn] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        speaks.set()
        while True:
            yield "word "

    class Store(InMemoryResponseStore):
        async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
            saved.append(turn)

    wire = creating(stream=True)
    wire.scope[DEADLINE] = TimeLeft(0.02, 5.0).since(time.monotonic())
    wire.gate.clear()
    task = wire.start(hosted(agent, Store()))
    with anyio.fail_after(10):
        await speaks.wait()
        await asyncio.sleep(0.03)  # the time is over
    task.cancel()
    with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
        await task

    assert [turn.response.status for turn in saved] == ["failed"]


async def speaks_twice(_: Turn) -> AsyncIterator[AgentEvent]:
    yield "hello"
    await asyncio.sleep(0)
    yield " world"


class InThread(InMemoryResponseStore):
    """A store that waits, as one behind a network does; says what it has saved, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.saved = asyncio.Event()
        self.outcomes: list[str] = []

    async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        await asyncio.to_thread(time.sleep, 0)
        await super().save(keys, branch, turn)
        self.outcomes.append(turn.response.status)
        self.saved.set()


@pytest.mark.parametrize("left", [None, TimeLeft(60, 5)], ids=["no deadline", "a deadline"])
async def test_a_client_that_does_not_read_holds_no_save_back(left: TimeLeft | None) -> None:
    store = InThread()
    wire = creating(stream=True)
    if left is not None:
        wire.scope[DEADLINE] = left.since(time.monotonic())
    wire.gate.clear()
    task = wire.start(hosted(speaks_twice, store))
    with anyio.fail_after(10):
        # The first delta is on its way and not read; the agent waits with it.
        await asyncio.sleep(0.01)
        wire.gate.set()
        await wire.until('"delta":"hello"')
        await store.saved.wait()
        await task

    assert store.outcomes == ["completed"]
    assert [event["sequence_number"] for event in wire.events] == [*range(len(wire.events))]


async def test_a_turn_is_stored_although_its_last_events_are_not_read() -> None:
    store = InThread()
    wire = creating(stream=True)

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "hello"
        await asyncio.sleep(0)
        wire.gate.clear()
        yield " world"

    task = wire.start(hosted(agent, store))
    with anyio.fail_after(10):
        await store.saved.wait()
        unread = not task.done()
        wire.gate.set()
        await task

    assert unread
    assert store.outcomes == ["completed"]
    assert [event["sequence_number"] for event in wire.events] == [*range(len(wire.events))]
    assert wire.types[-1] == "completed"


async def test_a_write_that_fails_while_a_turn_is_saved_ends_nothing_a_second_time() -> None:
    hooked: list[str] = []
    store = InThread()
    wire = creating(stream=True)

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "hello"
        await asyncio.sleep(0)
        wire.error = ConnectionResetError()
        yield " world"

    def hook(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
        hooked.append(result.result.status)
        return result

    before = asyncio.all_tasks()
    await wire.run(hosted(agent, store, response_hook=hook))

    assert (hooked, store.outcomes) == (["completed"], ["completed"])
    assert asyncio.all_tasks() == before


async def test_a_hook_that_is_slow_fails_its_turn_in_time() -> None:
    async def hook(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
        await asyncio.Event().wait()
        return result

    app = hosted(speaks_twice, response_hook=hook)

    wire = await told(app, TimeLeft(0.05, 0.2), stream=True)

    last = wire.events[-1]["response"]
    assert (last["status"], last["output"]) == ("failed", [])
    assert (await get(app, f"/v1/responses/{last['id']}")).json == last


async def test_an_agent_that_blocks_is_ended_between_two_events_and_its_words_go_out_in_time() -> (
    None
):
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for _number in range(40):
            time.sleep(0.02)  # noqa: ASYNC251 - what many an agent does
            yield "word "

    wire = await told(hosted(agent), TimeLeft(0.5, 5.0), stream=True)

    response = wire.events[-1]["response"]
    said = response["output"][0]["content"][0]["text"].count("word")
    assert response["error"]["message"].startswith("The server ran out of time.")
    assert said < 40
    assert len(wire.writes) > 3


async def test_a_store_that_is_slow_then_is_asked_with_little_patience_and_given_up() -> None:
    limits: list[float | None] = []

    class Slow(InMemoryResponseStore):
        async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
            limits.append(call_limit_s.get())
            await asyncio.Event().wait()

    left = TimeLeft(0.02, 0.1)

    wire = await told(hosted(says_and_waits, Slow()), left, stream=True)

    assert limits == [left.since(0).call_s]
    error = wire.events[-1]["response"]["error"]
    assert error["message"].startswith("The response could not be stored.")


async def test_a_save_in_time_is_not_hurried() -> None:
    limits: list[float | None] = []

    class Noting(InMemoryResponseStore):
        async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
            limits.append(call_limit_s.get())
            await super().save(keys, branch, turn)

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"

    await told(hosted(agent, Noting()), TimeLeft(60, 5))

    assert limits == [None]


def test_the_margin_is_at_most_half_of_the_limit_and_holds_all_that_follows() -> None:
    assert TimeLeft.within(300, 5) == TimeLeft(295, 5)
    assert TimeLeft.within(6, 5) == TimeLeft(3, 3)

    left = TimeLeft(10, 5)
    deadline = left.since(100)

    assert deadline == Deadline(110, 5)
    steps = [
        deadline.ends_at,
        deadline.ends_at + deadline.patience_s,
        deadline.ends_at + deadline.patience_s + 2 * deadline.call_s,
        deadline.save_until(0),
        100 + left.app_s,
        100 + left.app_s + left.cancelled_s,
        100 + left.app_s + left.cancelled_s + left.last_words_s,
        100 + left.turn_s + left.margin_s,
    ]
    assert steps == sorted(steps)
    assert deadline.hook_until(0) <= deadline.ends_at + deadline.patience_s
    # What is only cancelled then is stored before its invocation ends.
    assert deadline.save_until(100 + left.app_s) < 100 + left.app_s + left.cancelled_s
