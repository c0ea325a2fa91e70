"""What workflows of Agent Framework ask for, how a client answers, and workflow functions."""

import json
import warnings
from typing import Any, Never

import pytest
from agent_framework import (
    Agent,
    Executor,
    FunctionTool,
    Message,
    RunContext,
    Workflow,
    WorkflowBuilder,
    WorkflowContext,
    handler,
    response_handler,
    step,
    tool,
    workflow,
)
from starlette.types import ASGIApp

from channel.agents.agent_framework.workflow import adapt_workflow
from channel.responses.protocol.items import message
from tests.channel.agents.frameworks.agent_framework import ScriptedClient, weather
from tests.channel.agents.scripts import Call, Say, Spend
from tests.channel.agents.test_agent_framework_workflow import Own, app_of, logged
from tests.channel.agents.test_matrix import CLOCK, kinds, loaded, said
from tests.channel.asgi import create, creating, hosted


pytestmark = [
    pytest.mark.anyio,
    # The framework's own, of `@workflow` and `@step`.
    pytest.mark.filterwarnings("ignore:.*FUNCTIONAL_WORKFLOWS:Warning"),
]

ASK = {"type": "function", "name": "request_info", "parameters": {"type": "object"}}


class Asks(Executor):
    """Asks for a city (text), for how many days (a number), and says both."""

    def __init__(self, *, at_once: bool = False) -> None:
        super().__init__(id="asks")
        self._at_once = at_once
        self.city = ""

    @handler
    async def take(self, text: str, ctx: WorkflowContext[Never, str]) -> None:
        await ctx.yield_output("Let me see.")
        await ctx.request_info("Which city?", str)
        if self._at_once:
            await ctx.request_info(Own("days"), int)

    @response_handler
    async def take_city(self, question: str, answer: str, ctx: WorkflowContext[Never, str]) -> None:
        self.city = answer
        if not self._at_once:
            await ctx.request_info(Own("days"), int)

    @response_handler
    async def take_days(self, question: Own, answer: int, ctx: WorkflowContext[Never, str]) -> None:
        await ctx.yield_output(f"{answer} days in {self.city}")

    async def on_checkpoint_save(self) -> dict[str, Any]:
        return {"city": self.city}

    async def on_checkpoint_restore(self, state: dict[str, Any]) -> None:
        self.city = state["city"]


async def test_a_question_is_text_and_the_next_message_is_its_answer() -> None:
    app = app_of(lambda: WorkflowBuilder(start_executor=Asks()).build(), first_event_grace_s=60)

    first = await create(app, input="A trip, please.")
    second = await create(app, input="Rome", previous_response_id=first["id"])
    wrong = await creating(input="a few", previous_response_id=second["id"]).run(app)
    third = await create(app, input="3", previous_response_id=second["id"])

    assert said(first) == "Let me see.\n\nWhich city?"
    assert said(second) == '{"word":"days"}'
    assert (wrong.status, wrong.error_body["param"]) == (400, "input")
    assert said(third) == "3 days in Rome"


async def test_a_client_that_declares_the_function_is_asked_by_its_calls() -> None:
    app = app_of(lambda: WorkflowBuilder(start_executor=Asks(at_once=True)).build())

    first = await create(app, tools=[ASK])
    calls = [item for item in first["output"] if item["type"] == "function_call"]
    outputs = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": output}
        for call, output in zip(calls, ("Rome", "3"), strict=True)
    ]
    second = await create(app, input=outputs, previous_response_id=first["id"], tools=[ASK])

    assert [json.loads(call["arguments"])["data"] for call in calls] == [
        "Which city?",
        {"word": "days"},
    ]
    assert said(second) == "3 days in Rome"


async def test_several_questions_at_once_need_the_function() -> None:
    app = app_of(lambda: WorkflowBuilder(start_executor=Asks(at_once=True)).build())

    response = await create(app)

    assert response["status"] == "failed"
    assert "Declare the function tool 'request_info'" in response["error"]["message"]


async def test_a_question_is_refused_where_nothing_is_kept() -> None:
    build = WorkflowBuilder(start_executor=Asks()).build
    response = await create(hosted(adapt_workflow(build(), keeps_state=False)))

    assert response["status"] == "failed"
    assert "keeps no state" in response["error"]["message"]


class Till:
    def __init__(self) -> None:
        self.paid: list[int] = []

    def app(self, *script: Any, **options: Any) -> tuple[ASGIApp, ScriptedClient]:
        @tool(approval_mode="always_require")
        def pay(amount: int) -> str:
            """Pay."""
            self.paid.append(amount)
            return f"paid {amount}"

        client = ScriptedClient(script)
        agent = Agent(client, name="A", tools=[pay, weather])
        return app_of(WorkflowBuilder(start_executor=agent).build(), **options), client


PAY = Call("pay", {"amount": 3}, "call_pay")


@pytest.mark.parametrize("approve", [True, False])
async def test_a_tool_that_asks_first_runs_when_the_client_approves(approve: bool) -> None:
    till = Till()
    app, _ = till.app(
        (PAY, Spend(3, 2)), (Say(("Done.",)),), shows_tools=True, first_event_grace_s=60
    )

    first = await create(app, input="Pay 3.")
    (asked,) = (item for item in first["output"] if item["type"] == "mcp_approval_request")
    unanswered = await creating(input="Hm?", previous_response_id=first["id"]).run(app)
    both = await creating(
        input=[approval(asked, approve), message("user", "Thanks.")],
        previous_response_id=first["id"],
    ).run(app)
    assert till.paid == []
    second = await create(app, input=[approval(asked, approve)], previous_response_id=first["id"])

    assert (asked["name"], asked["arguments"]) == ("pay", '{"amount": 3}')
    assert [reply.status for reply in (unanswered, both)] == [400, 400]
    assert "waits for the answer" in unanswered.error_body["message"]
    assert (till.paid, said(second)) == ([3] if approve else [], "Done.")
    assert kinds(second)[-1] == "message"
    assert ("mcp_call" in kinds(second)) is True


def approval(asked: dict[str, Any], approve: bool) -> dict[str, Any]:
    return {
        "type": "mcp_approval_response",
        "approval_request_id": asked["id"],
        "approve": approve,
    }


async def test_a_foreign_answer_is_an_unknown_one() -> None:
    till = Till()
    app, _ = till.app((PAY,), (Say(("Hello.",)),), first_event_grace_s=60)
    first = await create(app, input="Pay 3.")
    (asked,) = (item for item in first["output"] if item["type"] == "mcp_approval_request")

    foreign = await creating(input=[approval(asked, True)], key="key-beta").run(app)
    unknown = await creating(input=[approval({"id": "unknown"}, True)], key="key-beta").run(app)

    assert foreign.status == 400
    assert foreign.error_body == unknown.error_body
    assert till.paid == []


async def test_a_clients_call_is_answered_in_the_agent_that_made_it() -> None:
    call = Call("clock", {"zone": "UTC"}, "call_1")
    writer = ScriptedClient([(Say(("Text.",)),)])
    asker = ScriptedClient([(Say(("Hm. ",)), call, Spend(3, 2)), (Say(("Noon.",)),)])

    def build() -> Workflow:
        first, second = Agent(writer, name="writer"), Agent(asker, name="asker")
        return WorkflowBuilder(start_executor=first).add_edge(first, second).build()

    app = app_of(build)
    first = await create(app, tools=[CLOCK])
    (item,) = (item for item in first["output"] if item["type"] == "function_call")
    output = {"type": "function_call_output", "call_id": item["call_id"], "output": "12:00"}
    second = await create(app, input=[output], previous_response_id=first["id"], tools=[CLOCK])

    assert [item["type"] for item in first["output"]] == ["message", "function_call"]
    assert item["call_id"] == "call_1"
    assert said(second) == "Noon."
    assert len(writer.seen) == 1  # what had run does not run again
    assert ("tool", "12:00") in asker.seen[1].texts


async def test_a_client_without_state_gives_its_calls_back_with_the_history() -> None:
    client = ScriptedClient([(Call("clock", {"zone": "UTC"}, "call_1"),), (Say(("Noon.",)),)])
    app = app_of(WorkflowBuilder(start_executor=Agent(client, name="A")).build())
    asked = [message("user", "What time is it?")]

    first = await create(app, input=asked, tools=[CLOCK], store=False)
    output = {"type": "function_call_output", "call_id": "call_1", "output": "12:00"}
    second = await create(app, input=[*asked, *first["output"], output], tools=[CLOCK], store=False)

    assert said(second) == "Noon."
    assert client.seen[1].calls == [("call_1", "clock")]


async def test_a_function_that_nobody_runs_fails_the_turn() -> None:
    client = ScriptedClient([(Call("own", {}, "call_1"),)])
    own = FunctionTool(name="own", description="Nobody runs it.", input_model={"type": "object"})
    agent = Agent(client, name="A", tools=[own])
    app = app_of(WorkflowBuilder(start_executor=agent).build(), first_event_grace_s=0)

    assert (await create(app))["status"] == "failed"


# Workflow functions.


async def test_a_workflow_function_is_named_by_its_definition() -> None:
    @step
    async def upper(text: str) -> str:
        return text.upper()

    @workflow
    async def shout(text: str) -> str:
        return await upper(text)

    app = app_of(shout)
    first = await create(app, input="one")
    second = await create(app, input="two", previous_response_id=first["id"])

    assert (said(first), said(second)) == ("ONE", "TWO")


RAN: list[str] = []


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the framework's own, of what is experimental

    @step
    async def costly(text: str) -> str:
        RAN.append(text)
        return text.upper()

    @workflow
    async def trip(text: str, ctx: RunContext) -> str:
        wanted = await costly(text)
        city = await ctx.request_info("Which city?", str)
        days = await ctx.request_info("How many days?", int)
        return f"{wanted}: {days} days in {city}"


async def test_a_workflow_function_that_asks_goes_on_where_it_was() -> None:
    RAN.clear()
    app = app_of(trip, first_event_grace_s=60)
    first = await create(app, input="a trip")
    second = await create(app, input="Rome", previous_response_id=first["id"])
    third = await create(app, input="3", previous_response_id=second["id"])
    again = await create(app, input="another", previous_response_id=third["id"])

    assert [said(each) for each in (first, second, third, again)] == [
        "Which city?",
        "How many days?",
        "A TRIP: 3 days in Rome",
        "Which city?",
    ]
    assert RAN == ["a trip", "another"]


async def test_a_workflow_function_whose_steps_cannot_be_replayed_keeps_no_state(
    caplog: pytest.LogCaptureFixture,
) -> None:
    captured: list[str] = []

    @step
    async def note(text: str) -> str:
        captured.append(text)
        return text

    @workflow
    async def noting(text: str) -> str:
        return await note(text)

    failed = await create(app_of(noting, first_event_grace_s=0))
    app = hosted(adapt_workflow(noting.build(), noting.build, keeps_state=False))

    assert failed["status"] == "failed"
    assert "adapt_workflow(..., keeps_state=False)" in logged(caplog)[0]
    assert said(await create(app, input="one")) == "one"


async def test_a_workflow_function_is_given_messages_where_it_takes_them() -> None:
    @workflow
    async def roles(given: list[Message], ctx: RunContext) -> str:
        return " ".join(str(each.role) for each in given)

    @workflow
    async def one(given: Message) -> str:
        return given.text

    @workflow
    async def anything(given) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001 - as users write it
        return f"got {given}"

    @workflow
    async def number(given: int) -> str:
        return str(given)

    app = app_of(roles)
    first = await create(app)
    second = await create(app, previous_response_id=first["id"])

    assert said(second) == "user assistant user"
    assert said(await create(app_of(one), input="Hello")) == "Hello"
    assert said(await create(app_of(anything), input="Hello")) == "got Hello"
    refused = await creating(input="3").run(app_of(number, first_event_grace_s=60))
    assert (refused.status, refused.error_body["param"]) == (400, "input")
    tools = await creating(tools=[CLOCK]).run(app_of(one, first_event_grace_s=60))
    assert (tools.status, tools.error_body["param"]) == (400, "tools")


async def test_a_workflow_function_that_is_built_already_is_refused() -> None:
    @workflow
    async def shout(text: str) -> str:
        return text

    with pytest.raises(Exception, match="name its definition"):
        loaded(shout.build())
