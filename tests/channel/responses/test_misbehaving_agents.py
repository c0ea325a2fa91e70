"""What an agent does wrong ends its own turn, told truly, and nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from starlette.types import Message

from channel.agent import Agent, AgentEvent, OutputItem, Turn
from channel.http import ClientGoneError
from channel.memory import InMemoryResponseStore
from channel.ports import StoredTurn
from channel.responses.observing import Unobserved
from channel.responses.protocol.response import Response
from channel.responses.protocol.stream import ResponseStream
from channel.responses.run import TurnHooks, TurnRun
from tests.channel.asgi import create, creating, get, hosted


pytestmark = pytest.mark.anyio


class Death(BaseException):
    """No `Exception`, as SystemExit is none."""


def raising(error: BaseException, *before: str) -> Agent:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for text in before:
            yield text
        raise error

    return agent


async def loses_a_task_of_its_own(_: Turn) -> AsyncIterator[AgentEvent]:
    yield "Hel"
    task = asyncio.ensure_future(asyncio.sleep(10))
    task.cancel()
    await task


ENDINGS = [
    SystemExit("secret"),
    KeyboardInterrupt("secret"),
    GeneratorExit("secret"),
    Death("secret"),
    BaseExceptionGroup("secret", [Death("secret")]),
    asyncio.CancelledError("secret"),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
async def test_whatever_it_raises_at_once_is_a_500_that_is_not_retried(
    error: BaseException, stream: bool
) -> None:
    wire = await creating(stream=stream).run(hosted(raising(error)))

    assert (wire.status, wire.headers["x-should-retry"]) == (500, "false")
    assert wire.json["error"]["type"] == "server_error"
    assert b"secret" not in wire.body


@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
async def test_whatever_it_raises_later_fails_its_turn_and_is_kept(error: BaseException) -> None:
    app = hosted(raising(error, "Hel"))

    wire = await creating(stream=True).run(app)

    assert wire.types[-1] == "failed"
    kept = await get(app, f"/v1/responses/{wire.events[0]['response']['id']}")
    assert (kept.json["status"], b"secret" in kept.body) == ("failed", False)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_task_of_its_own_is_its_failure_and_no_stop_of_the_server(
    stream: bool,
) -> None:
    wire = await creating(stream=stream).run(hosted(loses_a_task_of_its_own))

    response = wire.events[-1]["response"] if stream else wire.json
    assert response["status"] == "failed"


def takes_ids_off(turn: Turn) -> None:
    for item in turn.input:
        item.clear()


def forgets_the_input(turn: Turn) -> None:
    assert isinstance(turn.input, list)
    turn.input.clear()


def rewrites_the_tools(turn: Turn) -> None:
    for tool in turn.tools:
        assert isinstance(tool, dict)
        tool.clear()


def adds_metadata(turn: Turn) -> None:
    assert isinstance(turn.metadata, dict)
    turn.metadata["more"] = object()


@pytest.mark.parametrize(
    "change", [takes_ids_off, forgets_the_input, rewrites_the_tools, adds_metadata]
)
async def test_what_it_does_to_its_turn_changes_nothing_that_is_kept_or_sent(
    change: Callable[[Turn], None],
) -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        change(turn)
        yield f"{len(turn.history)} before"

    app = hosted(agent)
    tool: dict[str, Any] = {
        "type": "function",
        "name": "f",
        "description": None,
        "parameters": {},
        "strict": None,
    }

    first = await create(app, input="hi", tools=[tool], metadata={"k": "v"})
    second = await create(app, input="more", previous_response_id=first["id"])
    listed = await get(app, f"/v1/responses/{first['id']}/input_items")

    assert (first["tools"], first["metadata"]) == ([tool], {"k": "v"})
    assert [item["content"][0]["text"] for item in listed.json["data"]] == ["hi"]
    assert second["output"][0]["content"][0]["text"] == "2 before"


async def test_an_output_without_its_call_fails_the_turn_rather_than_all_that_follow() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "Hel"
        yield OutputItem({"type": "function_call_output", "call_id": "c1", "output": "22"})

    assert (await create(hosted(agent)))["status"] == "failed"


async def test_a_server_that_stops_waits_for_the_turns_that_it_has_cancelled() -> None:
    class SlowStore(InMemoryResponseStore):
        gate = asyncio.Event()

        async def save(self, *arguments: Any) -> None:
            await self.gate.wait()
            await super().save(*arguments)

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "Hel"
        await asyncio.Event().wait()

    app = hosted(agent, SlowStore())
    lifespan = Lifespan(app)
    await lifespan.startup()
    wire = creating(stream=True)
    task = wire.start(app)
    await wire.until("output_text.delta")
    # An application server cuts the reply off, so it never ends; its id stands in the first event.
    response_id = json.loads(wire.body.split(b"data: ")[1].split(b"\n")[0])["response"]["id"]

    task.cancel()
    stopping = asyncio.create_task(lifespan.shutdown())
    SlowStore.gate.set()
    with anyio.fail_after(5):
        await stopping

    kept = await get(app, f"/v1/responses/{response_id}")
    assert kept.json["status"] == "cancelled"


class Lifespan:
    """The server's side of a lifespan."""

    def __init__(self, app: Any) -> None:
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.ensure_future(app(scope, self._to_app.get, self._from_app.put))

    async def startup(self) -> None:
        await self._to_app.put({"type": "lifespan.startup"})
        assert (await self._from_app.get())["type"] == "lifespan.startup.complete"

    async def shutdown(self) -> None:
        await self._to_app.put({"type": "lifespan.shutdown"})
        assert (await self._from_app.get())["type"] == "lifespan.shutdown.complete"
        await self._task


async def test_an_agent_that_will_not_end_is_told_without_it_once_its_client_is_gone() -> None:
    kept: asyncio.Queue[StoredTurn] = asyncio.Queue()
    let_go = asyncio.Event()

    async def agent() -> AsyncIterator[AgentEvent]:
        yield "Hel"
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        yield "lo"

    run = TurnRun(
        ResponseStream(Response(id="resp_1", created_at=1, model="m"), body="0" * 52, position=1),
        agent,
        turn_input=[],
        save=kept.put,
        clock=lambda: 1.0,
        grace_s=5.0,
        hooks=TurnHooks(),
        request_id="req_1",
        patience_s=0.001,
    )

    async def hangs_up() -> Message:
        return {"type": "http.disconnect"}

    task = asyncio.create_task(run.run(Unobserved(), hangs_up))
    with anyio.fail_after(5):
        turn = await kept.get()
        let_go.set()
        with pytest.raises(ClientGoneError):
            await task

    assert (turn.response.status, turn.response.output_text) == ("cancelled", "Hel")
    assert kept.empty()
