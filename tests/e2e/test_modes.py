"""Every way of asking for a response, and every way in which it can end, over every store."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import product
from time import monotonic
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from channel.agent import AgentEvent, Finish, Turn
from channel.deadline import DEADLINE, Deadline
from channel.isolation import IsolationKeys
from tests.channel.asgi import Wire, request
from tests.channel.instances import Instances
from tests.e2e.conftest import Connect
from tests.e2e.stores import in_memory, in_table


pytestmark = pytest.mark.anyio

OUTCOMES = ("completed", "incomplete", "failed", "cancelled", "deadline")
CONTINUED = ("none", "previous", "conversation")
ENGINES = ("memory", "moto", "dynalite")
ALPHA = IsolationKeys("alpha")


class Agent:
    """Says a word, and ends as the request says; where it is to be cut off, it waits for that."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.histories: list[list[str]] = []
        self.response_ids: list[str] = []

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.response_ids.append(turn.response_id)
        self.histories.append([text(item) for item in turn.history])
        yield "one"
        match turn.text:
            case "completed":
                yield " two"
            case "incomplete":
                yield Finish("max_output_tokens")
            case "failed":
                raise RuntimeError("secret")
            case _:
                self.waits.set()
                await asyncio.Event().wait()


def text(item: Any) -> str:
    return "".join(part["text"] for part in item["content"])


@pytest.fixture(scope="module")
def moto(connect: Connect) -> Iterator[Any]:
    with connect() as client:
        yield client


@pytest.fixture(params=ENGINES)
def stores(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "memory":
        return in_memory()
    if request.param == "moto":
        return in_table(request.getfixturevalue("moto"))
    _, client = request.getfixturevalue("dynalite")
    return in_table(client)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "background.watching.LOOK_S",
        "background.following.POLL_S",
        "background.following.IDLE_POLL_S",
    ):
        monkeypatch.setattr(f"channel.responses.{name}", 0.005)
    for name in ("BATCH_S", "FIRST_BATCH_S"):
        monkeypatch.setattr(f"channel.responses.background.event_log.{name}", 0.005)
    monkeypatch.setattr("channel.responses.background.turns._CANCEL_POLL_S", 0.02)


async def done(task: "asyncio.Task[Any]") -> Any:
    with anyio.fail_after(10):
        return await task


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not true():
            await checkpoint()


async def asked(both: Instances, agent: Agent, fields: dict[str, Any], outcome: str) -> Wire:
    """Ask for a response on `a`, end it on `b` where it is to be cut off, and return the reply."""
    deadline = Deadline(monotonic() + 0.4, 2.0) if outcome == "deadline" else None
    wire = request("POST", "/v1/responses", {"input": outcome, **fields})
    if deadline and not fields["background"]:
        wire.scope[DEADLINE] = deadline
    task = wire.start(both.a.app)
    work = None
    if fields["background"]:
        await until(lambda: bool(both.jobs.held) or task.done())
        if both.jobs.held:
            response_id = both.jobs.held[0].payload["response_id"]
            work = both.working(both.b, deadline)
    if outcome == "cancelled" and not (task.done() and work is None):
        await done(asyncio.ensure_future(agent.waits.wait()))
        if work is not None:
            assert (await both.a.cancel(response_id)).json["status"] == "cancelled"
        elif fields["stream"] and fields["store"]:
            await wire.until("one")
            response_id = wire.body.decode().partition('"id":"')[2].partition('"')[0]
            assert (await both.b.cancel(response_id)).json["status"] == "cancelled"
        else:
            wire.hang_up()
    if work is not None:
        await done(work)
    reply: Wire = await done(task)
    return reply


MODES = [
    pytest.param(
        {"stream": stream, "background": background, "store": store},
        id=f"stream={stream:d}-background={background:d}-store={store:d}",
    )
    for stream, background, store in product((False, True), repeat=3)
]


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("continued", CONTINUED)
@pytest.mark.parametrize("mode", MODES)
async def test_a_response_ends_as_it_should_and_is_kept_as_what_it_is(
    stores: dict[str, Any], mode: dict[str, bool], continued: str, outcome: str
) -> None:
    agent = Agent()
    both = Instances(agent, has_cancellable_streams=True, **stores)
    fields: dict[str, Any] = {**mode}
    store = mode["store"]
    conversation = ""
    if continued == "previous":
        first = await both.a.post("/v1/responses", {"input": "completed"})
        fields["previous_response_id"] = first.json["id"]
    if continued == "conversation":
        conversation = (await both.a.post("/v1/conversations", {})).json["id"]
        first = await both.a.post(
            "/v1/responses", {"input": "completed", "conversation": conversation}
        )
        assert first.status == 200, first.body
        fields["conversation"] = conversation

    reply = await asked(both, agent, fields, outcome)

    if mode["background"] and not store:
        assert (reply.status, reply.error_body["param"]) == (400, "background")
        return
    assert agent.histories[-1] == ([] if continued == "none" else ["completed", "one two"])
    status = {"deadline": "failed"}.get(outcome, outcome)
    response_id = agent.response_ids[-1]
    assert told(reply, fields, outcome, status) in (response_id, None)

    # What is kept is what was told, on any instance.
    kept = await both.b.get(response_id)
    assert kept.status == (200 if store else 404)
    if store:
        assert kept.json["status"] == status
        assert text(kept.json["output"][0]) == ("one two" if status == "completed" else "one")
        assert kept.json.get("conversation") == ({"id": conversation} if conversation else None)
    await goes_on(both, agent, response_id, conversation, store=store, status=status)


def told(reply: Wire, fields: dict[str, Any], outcome: str, status: str) -> str | None:
    """Check what the client was told, and return the id of the response where that was told."""
    if (
        outcome == "cancelled"
        and not fields["background"]
        and not (fields["stream"] and fields["store"])
    ):
        return None  # the client had gone away
    if fields["stream"]:
        assert reply.status == 200
        ending = {"cancelled": "failed"}.get(status, status)
        assert reply.types[-1] == ending
        assert reply.types.count(ending) == 1
        numbers = [event["sequence_number"] for event in reply.events]
        assert numbers == [*range(len(numbers))]
        assert reply.events[-1]["response"]["status"] == status
        return str(reply.events[-1]["response"]["id"])
    if outcome == "deadline" and not fields["background"]:
        assert (reply.status, reply.error_body["code"]) == (504, "timeout")
        return None
    expected = "queued" if fields["background"] else status
    assert (reply.status, reply.json["status"]) == (200, expected)
    return str(reply.json["id"])


async def goes_on(
    both: Instances, agent: Agent, response_id: str, conversation: str, *, store: bool, status: str
) -> None:
    """Check that history holds exactly the turns that count, and that nothing is locked."""
    counts = status in ("completed", "incomplete")
    answer = "one two" if status == "completed" else "one"
    if conversation:
        again = await both.b.post(
            "/v1/responses", {"input": "completed", "conversation": conversation}
        )
        assert again.status == 200, again.body
        assert agent.histories[-1] == [
            *("completed", "one two"),
            *((status, answer) if counts else ()),
        ]
        return
    again = await both.b.post(
        "/v1/responses", {"input": "completed", "previous_response_id": response_id}
    )
    if counts and store:
        assert again.status == 200
        assert agent.histories[-1][-2:] == [status, answer]
    else:
        assert again.error_body["code"] == "previous_response_not_found"
