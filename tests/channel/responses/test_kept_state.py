"""What an agent keeps for its next turn: it comes back in the same conversation, and nobody else sees it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import ASGIApp

from channel.agent import AgentEvent, KeptState, Turn
from channel.memory import InMemoryResponseStore
from channel.ports import StoredTurn
from channel.responses.protocol.response import Response, Status
from infra.dynamodb import codec
from tests.channel.asgi import create, creating, get, hosted, request
from tests.channel.instances import Instances
from tests.channel.websocket import Socket


pytestmark = pytest.mark.anyio


class Counting:
    """An agent that counts its turns in what it keeps, and notes what it was given back."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.given.append(turn.state)
        if turn.text == "keep nothing":
            yield "ok"
            return
        yield KeptState({"count": -1})
        yield f"hidden {turn.text}"
        yield KeptState({"count": (turn.state or {}).get("count", 0) + 1, "secret": "kept"})


def app_of(agent: Any, **options: Any) -> ASGIApp:
    return hosted(agent, InMemoryResponseStore(), **options)


async def test_what_was_kept_last_comes_back_in_the_next_turn() -> None:
    agent = Counting()
    app = app_of(agent)

    first = await create(app)
    second = await create(app, previous_response_id=first["id"])
    await create(app, previous_response_id=second["id"])

    counts = [state and state["count"] for state in agent.given]
    assert counts == [None, 1, 2]


async def test_it_is_told_to_nobody() -> None:
    app = app_of(Counting())

    wire = await creating(stream=True).run(app)
    response_id = wire.events[-1]["response"]["id"]
    shown = await get(app, f"/v1/responses/{response_id}")
    items = await get(app, f"/v1/responses/{response_id}/input_items")

    assert [b"secret" in each.body for each in (wire, shown, items)] == [False, False, False]


async def test_a_fork_gets_what_was_kept_in_its_own_past() -> None:
    agent = Counting()
    app = app_of(agent)

    first = await create(app)
    await create(app, previous_response_id=first["id"])
    await create(app, previous_response_id=first["id"])

    assert [state["count"] for state in agent.given[1:]] == [1, 1]


async def test_a_turn_that_keeps_nothing_leaves_it_as_it_was() -> None:
    agent = Counting()
    app = app_of(agent)

    first = await create(app)
    second = await create(app, input="keep nothing", previous_response_id=first["id"])
    await create(app, previous_response_id=second["id"])

    assert agent.given[2]["count"] == 1


async def test_a_conversation_has_it_too() -> None:
    agent = Counting()
    app = app_of(agent)
    made = await request("POST", "/v1/conversations", {}).run(app)

    for _ in range(2):
        await create(app, conversation=made.json["id"])

    assert agent.given[1]["count"] == 1


async def test_what_an_agent_does_to_it_changes_nothing_that_is_stored() -> None:
    given = []

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        state: Any = turn.state
        given.append(state and list(state["words"]))
        if state:
            state["words"].append("changed")
        else:
            yield KeptState({"words": ["kept"]})
        yield "ok"

    app = app_of(agent)
    first = await create(app)
    for _ in range(2):
        await create(app, previous_response_id=first["id"])

    assert given == [None, ["kept"], ["kept"]]


async def test_a_summary_of_a_conversation_is_asked_for_without_it() -> None:
    agent = Counting()
    app = app_of(agent)

    first = await create(app)
    body = {"model": "agent", "previous_response_id": first["id"]}
    reply = await request("POST", "/v1/responses/compact", body).run(app)

    assert reply.status == 200
    assert agent.given == [None, None]


async def test_a_state_that_is_no_json_is_the_agents_failure() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield "well"
        yield KeptState({"lock": object()})

    response = await create(app_of(agent))

    assert response["status"] == "failed"


def test_a_stored_turn_holds_it() -> None:
    response = Response(id="resp_1", created_at=0, model="m", status=Status.COMPLETED)
    turn = StoredTurn([], response, state={"count": 1})
    body = "0" * 52

    assert codec.decode(codec.encode(turn, body, None), body, None) == turn


async def test_a_background_turn_is_given_it_and_keeps_it() -> None:
    agent = Counting()
    both = Instances(agent)

    last = None
    for _ in range(3):
        begun = await both.a.begin(previous_response_id=last)
        await both.b.work(both.jobs.held.pop())
        last = begun["id"]

    assert [state and state["count"] for state in agent.given] == [None, 1, 2]


async def test_a_stored_turn_keeps_what_the_unstored_ones_before_it_kept() -> None:
    given: list[Any] = []

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        given.append(turn.state)
        if turn.text == "keep":
            yield KeptState({"n": 1})
        yield "ok"

    app = hosted(agent)
    async with Socket(app) as socket:
        first = await socket.response(input="keep", store=False)
        second = await socket.response(
            input="store it", store=True, previous_response_id=first["id"]
        )
    await create(app, input="third", previous_response_id=second["id"])

    assert given == [None, {"n": 1}, {"n": 1}]
