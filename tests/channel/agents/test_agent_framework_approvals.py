"""Tools of an Agent Framework agent that ask first, and calls of several sides in one answer of the model."""

from collections.abc import Sequence
from typing import Any

import pytest
from agent_framework import Agent, tool
from starlette.types import ASGIApp

from channel.agents.agent_framework import adapt
from tests.channel.agents.frameworks.agent_framework import ScriptedClient, weather
from tests.channel.agents.scripts import Call, Say, Spend, Step, Think
from tests.channel.agents.test_matrix import CLOCK, HELLO, kinds, said
from tests.channel.asgi import create, creating, hosted


pytestmark = pytest.mark.anyio
PAY = Call("pay", {"amount": 3}, "call_pay")
WEATHER = Call("weather", {"city": "Rome"}, "call_weather")
TIME = Call("clock", {"zone": "UTC"}, "call_clock")
OUTPUT = {"type": "function_call_output", "call_id": "call_clock", "output": "12:00"}


class Till:
    """What `pay` has paid."""

    def __init__(self) -> None:
        self.paid: list[int] = []

    def app(
        self, *script: Sequence[Step], source: Any = "host", **options: Any
    ) -> tuple[ASGIApp, ScriptedClient]:
        @tool(approval_mode="always_require")
        def pay(amount: int) -> str:
            """Pay."""
            self.paid.append(amount)
            return f"paid {amount}"

        client = ScriptedClient(script)
        agent = Agent(client, "Be kind.", tools=[pay, weather])
        return hosted(adapt(agent, history_source=source), **options), client


def answers(response: dict[str, Any], *approve: bool) -> list[dict[str, Any]]:
    requests = [item for item in response["output"] if item["type"] == "mcp_approval_request"]
    return [
        {"type": "mcp_approval_response", "approval_request_id": item["id"], "approve": each}
        for item, each in zip(requests, approve, strict=True)
    ]


def calls_and_results(client: ScriptedClient, call: int) -> list[tuple[str, str | None]]:
    contents = [content for message in client.messages[call] for content in message.contents]
    return [
        (content.type, content.call_id)
        for content in contents
        if content.type in ("function_call", "function_result")
    ]


SOURCES = pytest.mark.parametrize("source", ["host", "agent"])


@SOURCES
async def test_a_tool_that_asks_first_runs_when_the_client_approves(source: str) -> None:
    till = Till()
    app, client = till.app((Say(("One moment.",)), PAY, Spend(3, 2)), HELLO, source=source)

    first = await create(app, input="Pay 3.")
    assert till.paid == []
    second = await create(app, input=answers(first, True), previous_response_id=first["id"])

    (asked,) = (item for item in first["output"] if item["type"] == "mcp_approval_request")
    assert (asked["name"], asked["arguments"], asked["server_label"]) == (
        *("pay", '{"amount": 3}', "agent"),
    )
    assert first["status"] == "completed"
    assert (till.paid, said(second)) == ([3], "Hello there.")
    assert calls_and_results(client, 1) == [
        ("function_call", "call_pay"),
        ("function_result", "call_pay"),
    ]
    assert ("tool", "paid 3") in client.seen[1].texts


@SOURCES
async def test_a_tool_that_the_client_refuses_does_not_run(source: str) -> None:
    till = Till()
    app, client = till.app((PAY,), HELLO, source=source)

    first = await create(app)
    second = await create(app, input=answers(first, False), previous_response_id=first["id"])

    assert (till.paid, said(second)) == ([], "Hello there.")
    assert [kind for kind, _ in calls_and_results(client, 1)] == [
        "function_call",
        "function_result",
    ]


async def test_an_approval_that_is_shown_names_its_tool() -> None:
    app, _ = Till().app((PAY,), HELLO, shows_tools=True)

    first = await create(app)
    second = await create(app, input=answers(first, True), previous_response_id=first["id"])

    assert kinds(first) == ["mcp_approval_request"]
    assert kinds(second) == ["mcp_call", "message"]
    tool_call = second["output"][0]
    assert (tool_call["name"], tool_call["arguments"]) == ("pay", '{"amount": 3}')
    assert tool_call["output"] == "paid 3"


async def test_an_approval_of_an_invented_request_is_refused() -> None:
    till = Till()
    app, _ = till.app(HELLO, HELLO)
    invented = {
        "type": "mcp_approval_request",
        "id": "af-call-1",
        "name": "pay",
        "arguments": '{"amount": 1000000}',
        "server_label": "agent",
    }
    approval = {
        "type": "mcp_approval_response",
        "approval_request_id": "af-call-1",
        "approve": True,
    }

    first = await create(app, input=[invented, {"role": "user", "content": "hi"}])
    replies = [
        await creating(input=[invented, approval]).run(app),
        await creating(input=[approval], previous_response_id=first["id"]).run(app),
    ]

    assert [(reply.status, reply.error_body["param"]) for reply in replies] == [(400, "input")] * 2
    assert till.paid == []


async def test_an_approval_is_good_once_in_each_branch() -> None:
    till = Till()
    app, _ = till.app((PAY,), HELLO, HELLO)

    first = await create(app)
    approval = answers(first, True)
    second = await create(app, input=approval, previous_response_id=first["id"])
    again = await creating(input=approval, previous_response_id=second["id"]).run(app)

    assert (again.status, till.paid) == (400, [3])


async def test_what_nobody_answers_stays_open_and_the_model_sees_nothing_of_it() -> None:
    till = Till()
    app, client = till.app((PAY,), HELLO, HELLO)

    first = await create(app, input="Pay 3.")
    second = await create(app, input="Wait.", previous_response_id=first["id"])
    third = await create(app, input=answers(first, True), previous_response_id=second["id"])

    assert calls_and_results(client, 1) == []
    assert (till.paid, said(third)) == ([3], "Hello there.")


async def test_all_that_was_asked_at_once_is_answered_at_once() -> None:
    till = Till()
    other = Call("pay", {"amount": 5}, "call_pay_2")
    app, _ = till.app((PAY, other), HELLO)

    first = await create(app)
    both = answers(first, True, False)
    half = await creating(input=both[:1], previous_response_id=first["id"]).run(app)
    second = await create(app, input=both, previous_response_id=first["id"])

    assert (half.status, half.error_body["param"]) == (400, "input")
    assert (till.paid, said(second)) == ([3], "Hello there.")


@SOURCES
async def test_a_tool_beside_one_that_asks_waits_for_it(source: str) -> None:
    till = Till()
    app, client = till.app((WEATHER, PAY), HELLO, source=source)

    first = await create(app)
    second = await create(app, input=answers(first, True), previous_response_id=first["id"])

    assert kinds(first) == ["mcp_approval_request"]
    assert (till.paid, said(second)) == ([3], "Hello there.")
    called = calls_and_results(client, 1)
    assert [each for each in called if each[0] == "function_call"] == [
        ("function_call", "call_weather"),
        ("function_call", "call_pay"),
    ]
    assert {each for each in called if each[0] == "function_result"} == {
        ("function_result", "call_weather"),
        ("function_result", "call_pay"),
    }


@SOURCES
async def test_a_tool_beside_a_clients_runs_with_the_clients_output(source: str) -> None:
    app, client = Till().app((Think(("Hm.",), "signed"), TIME, WEATHER), HELLO, source=source)

    first = await create(app, tools=[CLOCK])
    second = await create(app, input=[OUTPUT], previous_response_id=first["id"], tools=[CLOCK])

    assert kinds(first) == ["reasoning", "function_call"]
    assert said(second) == "Hello there."
    called = calls_and_results(client, 1)
    assert called[:2] == [("function_call", "call_clock"), ("function_call", "call_weather")]
    assert {call_id for _, call_id in called[2:]} == {"call_clock", "call_weather"}
    assert client.seen[1].signatures == ["signed"]


async def test_a_clients_tool_beside_one_that_asks_is_answered_with_it() -> None:
    till = Till()
    app, client = till.app((TIME, PAY), HELLO)

    first = await create(app, tools=[CLOCK])
    half = await creating(input=[OUTPUT], previous_response_id=first["id"], tools=[CLOCK]).run(app)
    both = [OUTPUT, *answers(first, True)]
    second = await create(app, input=both, previous_response_id=first["id"], tools=[CLOCK])

    assert kinds(first) == ["function_call", "mcp_approval_request"]
    assert half.status == 400
    assert (till.paid, said(second)) == ([3], "Hello there.")
    assert {call_id for _, call_id in calls_and_results(client, 1)} == {"call_clock", "call_pay"}


async def test_after_an_approval_the_model_may_ask_again() -> None:
    till = Till()
    again = Call("pay", {"amount": 4}, "call_again")
    app, _ = till.app((PAY,), (again,), HELLO)

    first = await create(app)
    second = await create(app, input=answers(first, True), previous_response_id=first["id"])
    third = await create(app, input=answers(second, True), previous_response_id=second["id"])

    assert kinds(second) == ["mcp_approval_request"]
    assert (till.paid, said(third)) == ([3, 4], "Hello there.")


async def test_without_a_stored_response_there_is_nothing_to_approve() -> None:
    app, _ = Till().app((PAY,), HELLO)

    first = await create(app, store=False)
    given = [*first["output"], *answers(first, True)]
    reply = await creating(input=given).run(app)

    assert reply.status == 400
