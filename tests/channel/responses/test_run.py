import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from channel.agent import (
    AgentEvent,
    Finish,
    FunctionCall,
    OutputItem,
    TextDelta,
    ToolFinished,
    ToolStarted,
    Turn,
    TurnError,
    Usage,
)
from channel.contract import (
    ChannelRequest,
    ChannelSession,
    HostedRunResult,
)
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.ports import Branch, StoredTurn, StoreError, TurnFacts, TurnTooLargeError
from channel.responses.protocol.errors import RequestError
from channel.targets import ChannelIdentity
from tests.channel.asgi import Wire, create, creating, get, hosted


pytestmark = pytest.mark.anyio

SORRY = "The agent failed to answer. Request id: "


class Store(InMemoryResponseStore):
    """A store that notes what was saved, and fails where it is told to."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__()
        self._failures = [*failures]
        self.saved: list[StoredTurn] = []

    async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        if self._failures:
            raise self._failures.pop(0)
        await super().save(keys, branch, turn)
        self.saved.append(turn)

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(turn.response.status, turn.response.output_text) for turn in self.saved]


async def finished(task: "asyncio.Task[Wire]") -> Wire:
    with anyio.fail_after(5):
        return await task


def deltas(wire: Wire) -> list[str]:
    return [event["delta"] for event in wire.events if event["type"].endswith("text.delta")]


# When things are written


async def test_the_first_delta_is_read_before_the_agent_says_the_second() -> None:
    gate = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        await gate.wait()
        yield "b"

    wire = creating(stream=True)
    task = wire.start(hosted(agent))
    with anyio.fail_after(5):
        await wire.until('"delta":"a"')
    early = wire.body
    gate.set()
    await finished(task)

    assert b'"delta":"b"' not in early
    assert deltas(wire) == ["a", "b"]


async def test_an_agent_that_never_waits_is_written_in_few_whole_batches() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for number in range(1000):
            yield f"word {number} "

    wire = await creating(stream=True).run(hosted(agent))

    first, *_ = wire.writes
    assert all(write.endswith(b"\n\n") for write in wire.writes)
    assert all(len(write) <= 16 * 1024 for write in wire.writes)
    assert first.count(b"event: response.output_text.delta\n") == 1
    assert len(wire.writes) <= len(wire.body) // (15 * 1024) + 4
    assert len(deltas(wire)) == 1000


async def test_one_event_larger_than_a_batch_is_one_write() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        yield "b" * 40_000
        yield "c"

    wire = await creating(stream=True).run(hosted(agent))

    (large,) = (write for write in wire.writes if b'"delta":"bbb' in write)
    assert large.startswith(b"event: response.output_text.delta\n")
    assert large.count(b"\n\n") == 1


async def test_an_agent_that_waits_has_each_delta_written_before_it_goes_on() -> None:
    wire = creating(stream=True)
    read: list[int] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for word in "abcd":
            yield word
            await checkpoint()
            read.append(wire.body.count(b"event: response.output_text.delta\n"))

    await wire.run(hosted(agent))

    assert read == [1, 2, 3, 4]


async def test_what_is_ready_is_written_together_before_the_agent_waits() -> None:
    gate = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        yield "b"
        yield "c"
        await gate.wait()
        yield "d"

    wire = creating(stream=True)
    task = wire.start(hosted(agent))
    with anyio.fail_after(5):
        await wire.until('"delta":"c"')
    second = wire.writes[1]
    gate.set()
    await finished(task)

    assert second.count(b"event: ") == 2
    assert deltas(wire) == ["a", "b", "c", "d"]


async def test_nothing_is_written_before_the_first_event_of_the_agent() -> None:
    gate = asyncio.Event()
    waits = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        waits.set()
        await gate.wait()
        yield "a"

    wire = creating(stream=True)
    task = wire.start(hosted(agent))
    with anyio.fail_after(5):
        await waits.wait()
    await checkpoint()
    before = [*wire.sent]
    gate.set()
    await finished(task)

    assert before == []
    assert wire.types[:2] == ["created", "in_progress"]


async def test_a_client_that_does_not_read_pauses_the_agent() -> None:
    said: list[str] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for word in "abc":
            said.append(word)
            yield word
            await checkpoint()

    wire = creating(stream=True)
    wire.gate.clear()
    task = wire.start(hosted(agent))
    for _ in range(50):
        await checkpoint()
    paused = [*said]
    wire.gate.set()
    await finished(task)

    assert paused == ["a"]
    assert deltas(wire) == ["a", "b", "c"]


async def test_a_client_that_does_not_read_pauses_an_agent_that_never_waits() -> None:
    said: list[int] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for number in range(100):
            said.append(number)
            yield "x" * 4000

    wire = creating(stream=True)
    wire.gate.clear()
    task = wire.start(hosted(agent))
    for _ in range(50):
        await checkpoint()
    paused = len(said)
    wire.gate.set()
    await finished(task)

    assert paused == 1
    assert len(deltas(wire)) == 100


# The grace


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("waits", [False, True])
async def test_an_agent_that_fails_within_the_grace_is_a_500_and_nothing_is_kept(
    stream: bool, waits: bool
) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        if waits:
            await checkpoint()
        raise RuntimeError("secret")
        yield ""

    store = Store()
    wire = await creating(stream=stream).run(hosted(agent, store))

    assert (wire.status, wire.headers["x-should-retry"]) == (500, "false")
    assert wire.error_body == {
        "message": SORRY + wire.headers["x-request-id"],
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert store.saved == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_that_says_nonsense_first_is_a_500(stream: bool) -> None:
    async def agent(_: Turn) -> AsyncIterator[Any]:
        yield 5

    store = Store()
    wire = await creating(stream=stream).run(hosted(agent, store))

    assert (wire.status, wire.headers["x-should-retry"]) == (500, "false")
    assert store.saved == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_error_within_the_grace_is_the_reply_that_it_says(stream: bool) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        raise TurnError(
            "No such image.", code="invalid_image_url", status=400, param="input[0].content[0]"
        )
        yield ""

    store = Store()
    wire = await creating(stream=stream).run(hosted(agent, store))

    assert (wire.status, wire.headers["x-should-retry"]) == (400, "false")
    assert wire.error_body == {
        "message": "No such image.",
        "type": "invalid_request_error",
        "param": "input[0].content[0]",
        "code": "invalid_image_url",
    }
    assert store.saved == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_client_cannot_see_begins_no_reply(stream: bool) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield Usage(3, 1)
        yield ToolStarted("call_1", "search")
        yield ToolFinished("call_1", "found")
        raise TurnError("Not now.", code="rate_limit_exceeded", status=429)

    wire = await creating(stream=stream).run(hosted(agent))

    assert (wire.status, wire.error_body["code"]) == (429, "rate_limit_exceeded")


async def test_a_turn_error_from_an_agent_that_is_no_generator_is_the_reply_that_it_says() -> None:
    async def answer() -> AsyncIterator[AgentEvent]:
        yield "a"

    def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        if not turn.tools:
            raise TurnError("Tools, please.", code="invalid_prompt", status=400)
        return answer()

    wire = await creating().run(hosted(agent))

    assert (wire.status, wire.headers.get("x-should-retry")) == (400, "false")
    assert wire.error_body["message"] == "Tools, please."


async def test_after_the_grace_the_stream_begins_and_a_failure_is_told_inside_of_it() -> None:
    gate = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        await gate.wait()
        raise RuntimeError("secret")
        yield ""

    store = Store()
    wire = creating(stream=True)
    task = wire.start(hosted(agent, store, first_event_grace_s=0.001))
    with anyio.fail_after(5):
        await wire.until("response.in_progress")
    gate.set()
    await finished(task)

    assert wire.status == 200
    assert wire.types == ["created", "in_progress", "failed"]
    assert wire.events[-1]["response"]["error"] == {
        "code": "server_error",
        "message": SORRY + wire.headers["x-request-id"],
    }
    assert store.outcomes == [("failed", "")]
    assert b"secret" not in wire.body


async def test_after_the_grace_a_failure_is_a_json_reply_with_status_failed() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for _step in range(20):
            await checkpoint()
        raise RuntimeError("secret")
        yield ""

    store = Store()
    wire = await creating().run(hosted(agent, store, first_event_grace_s=0))

    assert (wire.status, wire.json["status"]) == (200, "failed")
    assert wire.json["error"]["message"] == SORRY + wire.headers["x-request-id"]
    assert store.outcomes == [("failed", "")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", range(6))
async def test_a_failure_as_the_grace_ends_is_one_reply(steps: int, stream: bool) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for _step in range(steps):
            await checkpoint()
        raise RuntimeError("secret")
        yield ""

    store = Store()
    wire = await creating(stream=stream).run(hosted(agent, store, first_event_grace_s=0))

    kinds = [message["type"] for message in wire.sent]
    assert kinds.count("http.response.start") == 1
    assert len(store.saved) == (1 if wire.status == 200 else 0)


async def test_the_end_of_the_grace_changes_nothing_once_the_agent_has_spoken() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        for _step in range(5):
            await checkpoint()
        yield "b"

    wire = await creating(stream=True).run(hosted(agent, first_event_grace_s=0))

    assert deltas(wire) == ["a", "b"]


# Failures after the first event


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_that_fails_later_is_told_as_failed_with_what_it_said(stream: bool) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "Hel"
        raise RuntimeError("secret")

    store = Store()
    wire = await creating(stream=stream).run(hosted(agent, store))

    response = wire.events[-1]["response"] if stream else wire.json
    assert (wire.status, response["status"], store.outcomes) == (200, "failed", [("failed", "Hel")])
    assert response["error"]["code"] == "server_error"
    assert response["output"][0]["status"] == "incomplete"
    assert b"secret" not in wire.body


async def test_a_turn_error_later_is_told_with_its_code() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "Hel"
        raise TurnError("Slow down.", code="rate_limit_exceeded", status=429)

    wire = await creating(stream=True).run(hosted(agent))

    assert wire.events[-1]["response"]["error"] == {
        "code": "rate_limit_exceeded",
        "message": "Slow down.",
    }


@pytest.mark.parametrize("store", [True, False])
async def test_a_turn_error_with_odd_text_still_ends_the_stream(store: bool) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "Hel"
        raise TurnError("bad \ud800 text")

    wire = await creating(stream=True, store=store).run(hosted(agent))

    assert wire.types[-1] == "failed"


async def test_an_agent_that_fails_after_it_finished_has_failed() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            yield "a"
            yield Finish()
        finally:
            raise RuntimeError("secret")

    store = Store()
    wire = await creating(stream=True).run(hosted(agent, store))

    assert wire.types[-1] == "failed"
    assert store.outcomes == [("failed", "a")]


async def test_nothing_is_asked_of_an_agent_that_has_finished() -> None:
    went_on: list[bool] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        yield Finish("max_output_tokens")
        went_on.append(True)
        yield "b"

    response = await create(hosted(agent))

    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert went_on == []


async def test_an_unknown_reason_to_finish_is_a_failure() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        yield Finish("boredom")

    response = await create(hosted(agent))

    assert response["status"] == "failed"


async def test_an_item_nested_too_deeply_is_an_ending_and_no_cut() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        item: dict[str, Any] = {"type": "x"}
        for _ in range(int(turn.text)):
            item = {"type": "x", "in": item}
        yield OutputItem(item)

    app = hosted(agent)

    for depth in range(900, 1000):
        wire = await creating(stream=True, input=str(depth)).run(app)
        assert wire.types[-1] in ("completed", "failed")


async def test_a_call_that_is_not_permitted_fails_the_turn() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        yield FunctionCall("f", "{}")

    tool = {"type": "function", "name": "f"}
    response = await create(hosted(agent), tools=[tool], tool_choice="none")

    assert (response["status"], [item["type"] for item in response["output"]]) == (
        "failed",
        ["message"],
    )


# Keeping


async def says_hello(_: Turn) -> AsyncIterator[AgentEvent]:
    yield "Hello"
    yield Usage(input_tokens=1, output_tokens=2)


async def test_the_record_is_durable_before_the_client_reads_that_it_is_complete() -> None:
    gate = asyncio.Event()
    saves = asyncio.Event()

    class SlowStore(Store):
        async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
            saves.set()
            await gate.wait()
            await super().save(keys, branch, turn)

    wire = creating(stream=True)
    task = wire.start(hosted(says_hello, SlowStore()))
    with anyio.fail_after(5):
        await saves.wait()
        await wire.until("response.output_item.done")
    before = wire.body
    gate.set()
    await finished(task)

    assert b"response.completed" not in before
    assert wire.types[-1] == "completed"


@pytest.mark.parametrize("error", [StoreError("throttled"), RuntimeError("secret")])
async def test_a_save_that_fails_ends_the_stream_as_failed_and_nothing_is_visible(
    error: Exception,
) -> None:
    app = hosted(says_hello, Store(error))

    wire = await creating(stream=True).run(app)

    response = wire.events[-1]["response"]
    assert wire.types[-1] == "failed"
    assert response["error"]["code"] == "server_error"
    assert b"secret" not in wire.body
    assert (await get(app, f"/v1/responses/{response['id']}")).status == 404


async def test_a_save_that_fails_is_a_500_that_is_not_retried() -> None:
    store = Store(StoreError("throttled"))

    wire = await creating().run(hosted(says_hello, store))

    assert (wire.status, wire.headers["x-should-retry"]) == (500, "false")
    assert wire.error_body["type"] == "server_error"
    assert b"throttled" not in wire.body
    assert store.saved == []


async def test_a_turn_that_is_too_large_is_kept_as_failed_without_its_payload() -> None:
    store = Store(TurnTooLargeError("7 MB"))
    app = hosted(says_hello, store)

    wire = await creating(stream=True).run(app)

    response = wire.events[-1]["response"]
    kept = (await get(app, f"/v1/responses/{response['id']}")).json
    assert response["error"] == {
        "code": "server_error",
        "message": "The response is too large to be stored.",
    }
    assert kept == {**response, "output": []}
    assert store.saved[0].input == []


async def test_a_turn_that_is_too_large_is_a_json_reply_with_status_failed() -> None:
    wire = await creating().run(hosted(says_hello, Store(TurnTooLargeError("7 MB"))))

    assert (wire.status, wire.json["status"]) == (200, "failed")


async def test_a_turn_too_large_even_without_its_payload_is_a_500() -> None:
    store = Store(TurnTooLargeError("7 MB"), TurnTooLargeError("7 MB"))

    wire = await creating().run(hosted(says_hello, store))

    assert (wire.status, wire.headers["x-should-retry"]) == (500, "false")


@pytest.mark.parametrize("stream", [False, True])
async def test_store_false_keeps_nothing(stream: bool) -> None:
    store = Store()
    app = hosted(says_hello, store)

    wire = await creating(stream=stream, store=False).run(app)

    response = wire.events[-1]["response"] if stream else wire.json
    assert (response["status"], response["store"]) == ("completed", False)
    assert store.saved == []
    assert (await get(app, f"/v1/responses/{response['id']}")).status == 404


async def test_the_json_body_the_terminal_event_and_the_record_are_one() -> None:
    app = hosted(says_hello, clock=lambda: 1_700_000_000.0)

    streamed = (await creating(stream=True).run(app)).events[-1]["response"]
    whole = await create(app)

    assert (await get(app, f"/v1/responses/{streamed['id']}")).json == streamed
    assert (await get(app, f"/v1/responses/{whole['id']}")).json == whole

    def without_ids(response: dict[str, Any]) -> dict[str, Any]:
        output = [{**item, "id": ""} for item in response["output"]]
        return {**response, "id": "", "output": output}

    assert without_ids(streamed) == without_ids(whole)


# Clients that go away


def patient(said: str, cut: asyncio.Event) -> Callable[[Turn], AsyncIterator[AgentEvent]]:
    """Return an agent that says this and then waits until it is cut off."""

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            if said:
                yield said
            await asyncio.Event().wait()
        finally:
            cut.set()

    return agent


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_cancels_the_agent(stream: bool) -> None:
    cut, store = asyncio.Event(), Store()
    waits = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        async for event in patient("Hel", cut)(turn):
            yield event
            waits.set()

    wire = creating(stream=stream)
    task = wire.start(hosted(agent, store))
    with anyio.fail_after(5):
        await waits.wait()
    wire.hang_up()
    await finished(task)

    assert cut.is_set()
    assert store.outcomes == [("cancelled", "Hel")]
    assert store.saved[0].response.output[0]["status"] == "incomplete"


async def test_a_client_that_hangs_up_before_the_first_event_leaves_nothing() -> None:
    cut, waits, store = asyncio.Event(), asyncio.Event(), Store()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            waits.set()
            await asyncio.Event().wait()
            yield ""
        finally:
            cut.set()

    wire = creating(stream=True)
    task = wire.start(hosted(agent, store))
    with anyio.fail_after(5):
        await waits.wait()
    wire.hang_up()
    await finished(task)

    assert cut.is_set()
    assert (wire.sent, store.saved) == ([], [])


async def test_a_write_that_fails_cancels_the_agent() -> None:
    said: list[str] = []
    is_closed = asyncio.Event()
    store = Store()
    wire = creating(stream=True)

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            for word in "abc":
                said.append(word)
                yield word
                await checkpoint()
                wire.error = ConnectionResetError()
        finally:
            is_closed.set()

    await finished(wire.start(hosted(agent, store)))

    assert said[:2] == ["a", "b"]
    assert is_closed.is_set()
    assert [status for status, _ in store.outcomes] == ["cancelled"]


async def test_a_write_that_fails_while_the_agent_waits_cancels_it() -> None:
    cut, store = asyncio.Event(), Store()
    wire = creating(stream=True)

    task = wire.start(hosted(patient("Hel", cut), store, keepalive_s=0.005))
    await wire.until("Hel")
    wire.error = BrokenPipeError()

    try:
        with anyio.fail_after(0.5):
            await asyncio.shield(task)
    finally:
        task.cancel()
    assert store.outcomes == [("cancelled", "Hel")]


async def test_a_client_that_does_not_read_and_then_hangs_up_cancels_the_agent() -> None:
    is_closed, store = asyncio.Event(), Store()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            yield "a"
            yield "b"
            await asyncio.Event().wait()
        finally:
            is_closed.set()

    wire = creating(stream=True)
    task = wire.start(hosted(agent, store))
    with anyio.fail_after(5):
        await wire.until('"delta":"a"')
    wire.gate.clear()
    for _ in range(10):
        await checkpoint()
    wire.hang_up()
    wire.error = BrokenPipeError()
    with anyio.fail_after(5):
        await is_closed.wait()
    wire.gate.set()
    await finished(task)

    assert store.outcomes == [("cancelled", "ab")]


async def test_a_server_may_say_more_of_the_request_before_the_client_goes() -> None:
    cut, store = asyncio.Event(), Store()
    wire = creating(stream=True)
    task = wire.start(hosted(patient("Hel", cut), store))
    with anyio.fail_after(5):
        await wire.until("Hel")
    wire.say_more()
    for _ in range(5):
        await checkpoint()
    before = cut.is_set()
    wire.hang_up()
    await finished(task)

    assert (before, cut.is_set()) == (False, True)


async def test_an_agent_that_swallows_its_cancellation_is_cut_all_the_same() -> None:
    store = Store()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        for word in "bc":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                yield word

    wire = creating(stream=True)
    task = wire.start(hosted(agent, store))
    with anyio.fail_after(5):
        await wire.until('"delta":"a"')
    wire.hang_up()
    await finished(task)

    assert store.outcomes == [("cancelled", "a")]
    assert task.cancelling() == 0


async def test_an_agent_that_fails_when_it_is_cancelled_was_cancelled() -> None:
    store = Store()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("secret") from None

    wire = creating(stream=True)
    task = wire.start(hosted(agent, store))
    with anyio.fail_after(5):
        await wire.until('"delta":"a"')
    wire.hang_up()
    await finished(task)

    assert store.outcomes == [("cancelled", "a")]


async def test_a_server_that_stops_leaves_a_cancelled_record() -> None:
    cut, store = asyncio.Event(), Store()
    wire = creating(stream=True)
    task = wire.start(hosted(patient("Hel", cut), store))
    with anyio.fail_after(5):
        await wire.until("Hel")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert cut.is_set()
    assert store.outcomes == [("cancelled", "Hel")]


async def test_a_server_that_stops_lets_a_save_that_has_begun_be_finished() -> None:
    saves, may_save = asyncio.Event(), asyncio.Event()

    class Slow(Store):
        async def save(self, keys: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
            saves.set()
            await may_save.wait()
            await super().save(keys, branch, turn)

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "Hello"

    store = Slow()
    task = creating(stream=True).start(hosted(agent, store))
    with anyio.fail_after(5):
        await saves.wait()
        task.cancel()
        await checkpoint()
        may_save.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert store.outcomes == [("completed", "Hello")]


async def test_a_server_that_stops_leaves_no_timer_of_the_stream() -> None:
    wire = creating(stream=True)
    task = wire.start(hosted(patient("Hel", asyncio.Event()), keepalive_s=15))
    with anyio.fail_after(5):
        await wire.until("Hel")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    left = weakref.ref(wire)
    del wire, task
    await checkpoint()
    gc.collect()

    assert left() is None


async def test_a_server_that_stops_before_the_first_event_leaves_nothing() -> None:
    waits, store = asyncio.Event(), Store()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        waits.set()
        await asyncio.Event().wait()
        yield ""

    wire = creating(stream=True)
    task = wire.start(hosted(agent, store))
    with anyio.fail_after(5):
        await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (wire.sent, store.saved) == ([], [])


# Keepalive


async def test_an_idle_stream_beats_and_repeats_the_last_sequence_number() -> None:
    gate = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        await gate.wait()
        yield "b"

    store = Store()
    wire = creating(stream=True)
    task = wire.start(hosted(agent, store, keepalive_s=0.005))
    with anyio.fail_after(5):
        await wire.until("keepalive")
    gate.set()
    await finished(task)

    kinds = wire.types
    first = kinds.index("keepalive")
    assert kinds[first - 1] == "output_text.delta"
    assert wire.events[first] == {
        "type": "keepalive",
        "sequence_number": wire.events[first - 1]["sequence_number"],
    }
    counted = [e["sequence_number"] for e in wire.events if e["type"] != "keepalive"]
    assert counted == [*range(len(counted))]


# Hooks


async def test_a_run_hook_changes_what_the_agent_is_given() -> None:
    turns: list[Turn] = []

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        turns.append(turn)
        yield "a"

    async def hook(request: ChannelRequest, /, **seen: Any) -> ChannelRequest:
        assert seen["target"] is agent
        assert seen["protocol_request"] == {"input": "hi", "x": 1}
        return replace(
            request, instructions="Be brief.", options={"temperature": 0.5}, model="other"
        )

    await create(hosted(agent, run_hook=hook), x=1)

    (turn,) = turns
    assert (turn.instructions, turn.options, turn.model) == (
        "Be brief.",
        {"temperature": 0.5},
        "other",
    )


async def test_new_input_items_of_a_run_hook_get_ids() -> None:
    def hook(request: ChannelRequest, /, **_: Any) -> ChannelRequest:
        note = {"type": "message", "role": "developer", "content": []}
        return replace(request, input=[note, *request.input])

    app = hosted(says_hello, run_hook=hook)
    response = await create(app)

    listed = (await get(app, f"/v1/responses/{response['id']}/input_items")).json["data"]
    body = response["id"].removeprefix("resp_")
    assert {item["id"] for item in listed} == {f"msg_{body}0000", listed[0]["id"]}
    assert len({item["id"] for item in [*listed, *response["output"]]}) == 3


async def test_a_run_hook_sees_what_is_continued_and_who_asks() -> None:
    seen: list[ChannelRequest] = []

    def hook(request: ChannelRequest, /, **_: Any) -> ChannelRequest:
        seen.append(request)
        return request

    app = hosted(says_hello, run_hook=hook)
    one = await create(app)
    await create(app, previous_response_id=one["id"], user="u", safety_identifier="s")

    first, second = seen
    assert (first.channel, first.operation, first.stream) == ("responses", "message.create", False)
    assert (first.session, first.identity) == (None, None)
    assert first.attributes == {"response_id": one["id"]}
    assert second.session == ChannelSession(one["id"])
    assert second.identity == ChannelIdentity("responses", "s")
    assert second.attributes["previous_response_id"] == one["id"]
    assert [item["type"] for item in second.history] == ["message", "message"]


async def test_a_run_hook_may_require_a_session() -> None:
    def hook(request: ChannelRequest, /, **_: Any) -> ChannelRequest:
        return replace(request, session_mode="required")

    wire = await creating().run(hosted(says_hello, run_hook=hook))

    assert (wire.status, wire.error_body["code"]) == (409, "session_required")


async def test_a_run_hook_may_refuse_the_request() -> None:
    def hook(request: ChannelRequest, /, **_: Any) -> ChannelRequest:
        raise RequestError("Not today.", status=403, code="closed")

    store = Store()
    wire = await creating().run(hosted(says_hello, store, run_hook=hook))

    assert (wire.status, wire.error_body["code"], store.saved) == (403, "closed", [])


async def returns_nothing(*_: Any, **__: Any) -> Any:
    return None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_hook_that_returns_nothing_is_a_500_that_names_it_in_the_log(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()

    with caplog.at_level(logging.ERROR, logger="channel"):
        wire = await creating(stream=stream).run(
            hosted(says_hello, store, run_hook=returns_nothing)
        )

    assert (wire.status, store.saved) == (500, [])
    assert b"returns_nothing" not in wire.body
    assert any("returns_nothing" in str(record.__dict__) for record in caplog.records)


def shouts(event: AgentEvent) -> AgentEvent | None:
    match event:
        case "drop":
            return None
        case str():
            return TextDelta(event.upper())
    return event


async def shouts_later(event: AgentEvent) -> AgentEvent | None:
    await checkpoint()
    return shouts(event)


@pytest.mark.parametrize("hook", [shouts, shouts_later])
async def test_a_transform_hook_replaces_and_drops_agent_events(hook: Any) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        yield "drop"
        yield "b"
        yield Usage(input_tokens=1)

    response = await create(hosted(agent, stream_transform_hook=hook))

    assert response["output"][0]["content"][0]["text"] == "AB"
    assert response["usage"]["input_tokens"] == 1


async def test_an_agent_all_of_whose_events_are_dropped_completes_with_nothing() -> None:
    response = await create(hosted(says_hello, stream_transform_hook=lambda _: None))

    assert (response["status"], response["output"]) == ("completed", [])


async def test_a_transform_hook_that_fails_fails_the_turn() -> None:
    def hook(event: AgentEvent) -> AgentEvent:
        raise RuntimeError("secret")

    store = Store()
    wire = await creating(stream=True).run(hosted(says_hello, store, stream_transform_hook=hook))

    assert (wire.status, store.saved) == (500, [])
    assert b"secret" not in wire.body


def redacts(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
    return result.replace(msgspec.structs.replace(result.result, output=[]))


async def redacts_later(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
    await checkpoint()
    return redacts(result)


@pytest.mark.parametrize("hook", [redacts, redacts_later])
async def test_a_response_hook_changes_what_is_kept_and_sent(hook: Any) -> None:
    store = Store()

    response = await create(hosted(says_hello, store, response_hook=hook))

    assert response["output"] == []
    assert store.outcomes == [("completed", "")]


def renames(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
    return result.replace(msgspec.structs.replace(result.result, id="resp_other"))


@pytest.mark.parametrize(
    "hook",
    [returns_nothing, lambda _: None, lambda result: result.replace("text"), renames],
)
@pytest.mark.parametrize("store", [True, False])
async def test_a_response_hook_that_breaks_its_contract_is_a_failure(
    hook: Any, store: bool
) -> None:
    app = hosted(says_hello, response_hook=hook)

    streamed = await creating(stream=True, store=store).run(app)
    whole = await creating(store=store).run(app)

    assert streamed.types[-1] == "failed"
    assert (whole.status, whole.json["status"], whole.json["output"]) == (200, "failed", [])


async def test_what_a_response_hook_took_out_stays_out_when_the_turn_is_too_large() -> None:
    app = hosted(says_hello, Store(TurnTooLargeError("7 MB")), response_hook=redacts)

    wire = await creating().run(app)

    assert (wire.json["status"], wire.json["output"]) == ("failed", [])


# Telemetry


class Facts:
    def __init__(self) -> None:
        self.noted: list[TurnFacts] = []

    def turn_finished(self, facts: TurnFacts, /) -> None:
        self.noted.append(facts)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_finished_turn_is_measured(stream: bool) -> None:
    facts = Facts()

    await creating(stream=stream).run(hosted(says_hello, telemetry=facts))

    (noted,) = facts.noted
    assert (noted.outcome, noted.input_tokens, noted.output_tokens, noted.stream) == (
        "completed",
        1,
        2,
        stream,
    )
    assert noted.first_event_ms is not None
    assert 0 <= noted.first_event_ms <= noted.duration_ms


async def test_a_turn_that_fails_at_once_is_measured() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        raise RuntimeError
        yield ""

    facts = Facts()

    await creating().run(hosted(agent, telemetry=facts))

    (noted,) = facts.noted
    assert (noted.outcome, noted.first_event_ms, noted.input_tokens) == ("failed", None, 0)


async def test_a_cancelled_turn_is_measured_as_cancelled() -> None:
    facts, cut = Facts(), asyncio.Event()
    wire = creating(stream=True)
    task = wire.start(hosted(patient("Hel", cut), telemetry=facts))
    with anyio.fail_after(5):
        await wire.until("Hel")
    wire.hang_up()
    await finished(task)

    assert [noted.outcome for noted in facts.noted] == ["cancelled"]


async def test_a_refused_request_is_not_measured() -> None:
    facts = Facts()

    await creating(input=5).run(hosted(says_hello, telemetry=facts))

    assert facts.noted == []


# Logs


async def test_a_failed_agent_is_logged_by_type_and_place_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "Hel"
        raise RuntimeError("secret")

    with caplog.at_level(logging.DEBUG):
        await creating().run(hosted(agent))

    (record,) = (record for record in caplog.records if record.name.startswith("channel"))
    assert record.getMessage() == "agent failed: RuntimeError"
    assert vars(record)["error_type"] == "RuntimeError"
    assert any("test_run.py" in place for place in vars(record)["error_at"])
    assert "secret" not in caplog.text + str(vars(record))
