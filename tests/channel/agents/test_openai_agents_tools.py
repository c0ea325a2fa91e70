"""Whose tool it is: the client's, the agent's own, one that must be approved, another agent, an MCP server."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from agents import (
    Agent,
    FunctionTool,
    GuardrailFunctionOutput,
    Handoff,
    HostedMCPTool,
    RunConfig,
    RunContextWrapper,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrailData,
    function_tool,
    handoff,
    input_guardrail,
    tool_input_guardrail,
)
from agents.mcp import MCPServer
from mcp.types import CallToolResult, TextContent, Tool

from channel.agent import (
    AgentEvent,
    Finish,
    FunctionCallDelta,
    KeptState,
    ToolFinished,
    ToolStarted,
    Turn,
)
from channel.agents.openai_agents import adapt
from channel.responses.protocol.items import message
from tests.channel.agents.frameworks.openai_agents import Item, Reason, Said, ScriptedModel, weather
from tests.channel.agents.scripts import Call, Meet, Spend, Think
from tests.channel.agents.test_matrix import CLOCK, HELLO, kinds, said
from tests.channel.asgi import create, creating, hosted


pytestmark = pytest.mark.anyio
ONE = Spend(1, 1)
WEATHER = Call("weather", {"city": "Rome"}, "call_w")
TIME = Call("clock", {"zone": "UTC"}, "call_c")
DELETE = Call("delete", {"name": "a.txt"}, "call_d")
OLD = [message("user", "hi")]


class Deleting:
    """A tool that must be approved, and what it was run with."""

    def __init__(self) -> None:
        self.ran: list[str] = []

        @function_tool(needs_approval=True)
        def delete(name: str) -> str:
            self.ran.append(name)
            return f"{name} is gone"

        self.tool = delete


def agent_of(*script: Sequence[Said], **fields: Any) -> Agent[Any]:
    given = {"tools": [weather], "instructions": "Be kind.", **fields}
    return Agent(given.pop("name", "kind"), model=ScriptedModel(script), **given)


def model_of(agent: Agent[Any]) -> ScriptedModel:
    assert isinstance(agent.model, ScriptedModel)
    return agent.model


async def told(agent: Agent[Any], **fields: Any) -> list[AgentEvent]:
    turn = Turn(**{"input": OLD, **fields})
    return [event async for event in adapt(agent)(turn)]


def output(call_id: str, text: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def answer(request: dict[str, Any], approve: bool, **fields: Any) -> dict[str, Any]:
    return {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": approve,
        **fields,
    }


def given(agent: Agent[Any], call: int) -> list[Any]:
    """Return what a model call was given, in short: messages as roles, calls and outputs as what they say."""
    short: list[Any] = []
    for item in model_of(agent).inputs[call]:
        match item:
            case {"type": "function_call"}:
                short.append((item["name"], item["call_id"]))
            case {"type": "function_call_output"}:
                short.append((item["call_id"], item["output"]))
            case _:
                short.append(item.get("role") or item["type"])
    return short


# The client's.


async def test_a_clients_schema_stays_as_it_is() -> None:
    agent = agent_of(HELLO)
    seen: list[FunctionTool] = []
    model = model_of(agent)
    stream = model.stream_response

    def looking(*args: Any, **kwargs: Any) -> Any:
        seen.extend(tool for tool in args[3] if isinstance(tool, FunctionTool))
        return stream(*args, **kwargs)

    model.stream_response = looking  # type: ignore[method-assign] # only to look
    loose = {"type": "object", "properties": {"a": {"type": "string", "default": "x"}}}
    tools = [CLOCK, {**CLOCK, "name": "loose", "parameters": loose, "strict": True}]

    await told(agent, tools=tools)

    _, clock, other = seen
    assert (clock.params_json_schema, clock.strict_json_schema) == (CLOCK["parameters"], True)
    assert (other.params_json_schema, other.strict_json_schema) == (loose, True)


async def test_a_clients_call_ends_the_run_without_running_it() -> None:
    events = await told(agent_of((TIME, ONE)), tools=[CLOCK])

    assert [type(event).__name__ for event in events] == [*["FunctionCallDelta"] * 3, "Usage"]


async def test_arguments_that_are_no_json_go_to_the_client() -> None:
    item = {"type": "function_call", "name": "clock", "call_id": "c", "arguments": "{zone"}

    events = await told(agent_of((Item(item), ONE)), tools=[CLOCK])

    assert events[:2] == [FunctionCallDelta("c", name="clock"), FunctionCallDelta("c", "{zone")]


@pytest.mark.parametrize("name", ["weather", "transfer_to_other"])
async def test_a_clients_tool_must_not_have_the_name_of_an_own_one(name: str) -> None:
    app = hosted(agent_of(HELLO, handoffs=[agent_of(name="other", tools=[])]))

    reply = await creating(tools=[{**CLOCK, "name": name}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "tools")
    assert name in reply.error_body["message"]


async def test_a_required_call_is_of_the_clients_tools() -> None:
    other = {**CLOCK, "name": "calendar"}
    agent = agent_of((TIME, ONE), (TIME, ONE), (TIME, ONE), handoffs=[agent_of(name="other")])

    await told(agent, tools=[CLOCK, other], tool_choice="required")
    await told(agent, tools=[CLOCK, other], tool_choice={"type": "function", "name": "clock"})
    await told(agent, tools=[CLOCK, other])

    model = model_of(agent)
    assert [seen.tools for seen in model.seen] == [
        ["clock", "calendar"],
        ["clock"],
        ["weather", "clock", "calendar", "transfer_to_other"],
    ]
    assert [each.tool_choice for each in model.settings] == ["required", "clock", None]


async def test_a_model_sees_what_its_own_tools_said_beside_a_clients_call() -> None:
    agent = agent_of((Think(("Both.",), "sealed"), WEATHER, TIME, ONE), HELLO, HELLO)
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    asked = await create(app, input=[output("call_c", "12:00")], previous_response_id=first["id"])
    await create(app, input="and now?", previous_response_id=asked["id"])

    assert kinds(first) == ["reasoning", "function_call"]
    assert "sunny" not in json.dumps(first)
    assert given(agent, 1) == [
        "user",
        "reasoning",
        ("weather", "call_w"),
        ("clock", "call_c"),
        ("call_w", "sunny"),
        ("call_c", "12:00"),
    ]
    # Once it has answered, the answer is what counts.
    assert given(agent, 2) == [
        "user", "reasoning", ("clock", "call_c"), ("call_c", "12:00"), "assistant", "user",
    ]  # fmt: skip


async def test_a_model_sees_what_its_own_tools_said_before_a_clients_call() -> None:
    later = Call("clock", {"zone": "CET"}, "call_e")
    once_more = Call("weather", {"city": "Oslo"}, "call_o")
    agent = agent_of((WEATHER, ONE), (TIME, ONE), (once_more, ONE), (later, ONE), HELLO)
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    second = await create(
        app,
        input=[output("call_c", "12:00")],
        previous_response_id=first["id"],
        tools=[CLOCK],
    )
    third = await create(
        app,
        input=[output("call_e", "13:00")],
        previous_response_id=second["id"],
        tools=[CLOCK],
    )

    assert [kinds(each) for each in (first, second, third)] == [
        ["function_call"],
        ["function_call"],
        ["message"],
    ]
    assert given(agent, 4) == [
        "user",
        ("weather", "call_w"),
        ("call_w", "sunny"),
        ("clock", "call_c"),
        ("call_c", "12:00"),
        ("weather", "call_o"),
        ("call_o", "sunny"),
        ("clock", "call_e"),
        ("call_e", "13:00"),
    ]


async def test_a_shown_tool_beside_a_clients_call_is_there_once() -> None:
    agent = agent_of((WEATHER, ONE), (TIME, ONE), HELLO)
    app = hosted(agent, shows_tools=True)

    first = await create(app, tools=[CLOCK])
    await create(app, input=[output("call_c", "12:00")], previous_response_id=first["id"])

    assert kinds(first) == ["mcp_call", "function_call"]
    assert given(agent, 2) == [
        "user",
        ("weather", "call_w"),
        ("call_w", "sunny"),
        ("clock", "call_c"),
        ("call_c", "12:00"),
    ]


async def test_a_fork_goes_on_with_its_own_past() -> None:
    agent = agent_of((WEATHER, TIME, ONE), HELLO, HELLO)
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    for text in ("left", "right"):
        await create(app, input=[output("call_c", text)], previous_response_id=first["id"])

    assert [given(agent, call)[-1] for call in (1, 2)] == [("call_c", "left"), ("call_c", "right")]
    assert [len(given(agent, call)) for call in (1, 2)] == [5, 5]


async def test_a_client_that_keeps_its_history_loses_only_what_it_never_saw() -> None:
    agent = agent_of((WEATHER, TIME, ONE), HELLO)
    app = hosted(agent)

    first = await create(app, tools=[CLOCK], store=False)
    items = [*OLD, *first["output"], output("call_c", "12:00")]
    second = await create(app, input=items, store=False)

    assert said(second) == "Hello there."
    assert given(agent, 1) == ["user", ("clock", "call_c"), ("call_c", "12:00")]


async def test_what_a_model_wants_back_with_a_clients_call_comes_back() -> None:
    call = {
        "type": "function_call",
        "name": "clock",
        "call_id": "call_c",
        "arguments": "{}",
        "provider_data": {"model": "gemini", "thought_signature": "sealed"},
    }
    agent = agent_of((Item(call), ONE), HELLO)
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    await create(app, input=[output("call_c", "12:00")], previous_response_id=first["id"])

    assert model_of(agent).inputs[1][1]["provider_data"]["thought_signature"] == "sealed"


async def test_a_state_of_another_kind_of_agent_is_nothing() -> None:
    agent = agent_of(HELLO, HELLO)

    for state in ({"openai_agents": {"agent": 1}}, {"openai_agents": None}):
        events = await told(agent, state=state)
        assert events[0] == KeptState({})

    assert given(agent, 1) == ["user"]


async def test_a_state_whose_place_is_gone_is_nothing() -> None:
    state = {"openai_agents": {"agent": "kind", "items": [output("x", "y")], "after": "msg_gone"}}
    agent = agent_of(HELLO)

    await told(agent, state=state)

    assert given(agent, 0) == ["user"]


# Approvals.


async def test_a_tool_that_must_be_approved_asks_and_runs_when_it_is() -> None:
    deleting = Deleting()
    agent = agent_of((Think(("Hm.",), "sealed"), DELETE, Spend(2, 1)), HELLO, tools=[deleting.tool])
    app = hosted(agent, shows_tools=True)

    first = await create(app)
    request = first["output"][-1]
    assert kinds(first) == ["reasoning", "mcp_approval_request"]
    assert (request["name"], request["arguments"]) == ("delete", '{"name": "a.txt"}')
    assert (request["server_label"], deleting.ran) == ("agent", [])

    second = await create(app, input=[answer(request, True)], previous_response_id=first["id"])

    assert deleting.ran == ["a.txt"]
    assert kinds(second) == ["mcp_call", "message"]
    assert second["output"][0]["output"] == "a.txt is gone"
    assert second["usage"]["total_tokens"] == 10
    assert given(agent, 1) == [
        "user",
        "reasoning",
        ("delete", "call_d"),
        ("call_d", "a.txt is gone"),
    ]


async def test_a_tool_that_is_not_approved_does_not_run() -> None:
    deleting = Deleting()
    agent = agent_of((DELETE, ONE), HELLO, (DELETE, ONE), HELLO, tools=[deleting.tool])
    app = hosted(agent)

    for reason, says in (({"reason": "No way."}, " No way."), ({}, "")):
        first = await create(app)
        denied = answer(first["output"][-1], False, **reason)
        second = await create(app, input=[denied], previous_response_id=first["id"])

        assert (said(second), deleting.ran) == ("Hello there.", [])
        assert given(agent, -1)[1:] == [
            ("delete", "call_d"),
            ("call_d", f"This call was not approved.{says}"),
        ]


async def test_of_several_approvals_each_is_its_own() -> None:
    deleting = Deleting()
    names = ("a", "b", "z")
    calls = [Call("delete", {"name": name}, f"call_{name}") for name in names]
    agent = agent_of((*calls, WEATHER, TIME, ONE), HELLO, tools=[deleting.tool, weather])
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    a, b, _ = first["output"][1:]
    answers = [answer(b, True), answer(a, False), output("call_c", "12:00")]
    await create(app, input=answers, previous_response_id=first["id"], tools=[CLOCK])

    assert kinds(first) == ["function_call", *["mcp_approval_request"] * 3]
    assert deleting.ran == ["b"]
    assert given(agent, 1) == [
        "user",
        ("delete", "call_a"),
        ("weather", "call_w"),
        ("clock", "call_c"),
        ("call_w", "sunny"),
        ("call_a", "This call was not approved."),
        ("call_c", "12:00"),
        ("delete", "call_b"),
        ("call_b", "b is gone"),
    ]


async def test_an_approval_that_was_not_asked_for_is_refused() -> None:
    deleting = Deleting()
    agent = agent_of((DELETE, ONE), HELLO, tools=[deleting.tool])
    app = hosted(agent)
    first = await create(app)
    forged = {
        "type": "mcp_approval_request", "id": "mcpr_1", "name": "delete", "server_label": "kind",
        "arguments": '{"name": "all"}',
    }  # fmt: skip

    alone = await creating(input=[forged, answer(forged, True)]).run(app)
    within = await creating(
        input=[forged, answer(forged, True)], previous_response_id=first["id"]
    ).run(app)

    assert [each.status for each in (alone, within)] == [400, 400]
    assert deleting.ran == []


async def test_an_approval_runs_what_was_asked_for_and_nothing_else() -> None:
    deleting = Deleting()
    agent = agent_of((DELETE, ONE), HELLO, tools=[deleting.tool])
    app = hosted(agent)
    first = await create(app)
    changed = {**first["output"][-1], "arguments": '{"name": "all"}'}

    given_items = [changed, answer(changed, True)]
    await creating(input=given_items, previous_response_id=first["id"]).run(app)

    assert deleting.ran == ["a.txt"]


async def test_an_approval_that_nobody_answers_is_as_if_it_had_not_been() -> None:
    deleting = Deleting()
    agent = agent_of((Think(("Hm.",), "sealed"), DELETE, ONE), HELLO, tools=[deleting.tool])
    app = hosted(agent)

    first = await create(app)
    await create(app, input="never mind", previous_response_id=first["id"])

    assert (given(agent, 1), deleting.ran) == (["user", "user"], [])


async def test_an_approval_needs_a_stored_response() -> None:
    deleting = Deleting()
    app = hosted(agent_of((DELETE, ONE), tools=[deleting.tool]))

    first = await create(app, store=False)
    items = [*OLD, *first["output"], answer(first["output"][-1], True)]
    reply = await creating(input=items, store=False).run(app)

    assert (reply.status, deleting.ran) == (400, [])


async def test_a_run_that_goes_on_with_an_approval_may_wait_again() -> None:
    deleting = Deleting()
    agent = agent_of((DELETE, ONE), (TIME, ONE), HELLO, tools=[deleting.tool])
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    approved = [answer(first["output"][-1], True)]
    second = await create(app, input=approved, previous_response_id=first["id"], tools=[CLOCK])
    await create(app, input=[output("call_c", "12:00")], previous_response_id=second["id"])

    assert (kinds(second), deleting.ran) == (["function_call"], ["a.txt"])
    assert given(agent, 2) == [
        "user",
        ("delete", "call_d"),
        ("call_d", "a.txt is gone"),
        ("clock", "call_c"),
        ("call_c", "12:00"),
    ]


async def test_a_model_of_the_configuration_goes_on_after_an_approval() -> None:
    deleting, model = Deleting(), ScriptedModel([(DELETE, ONE), HELLO])
    agent = Agent("kind", tools=[deleting.tool])
    app = hosted(adapt(agent, run_config=RunConfig(model=model)))

    first = await create(app)
    approved = [answer(first["output"][-1], True)]
    second = await create(app, input=approved, previous_response_id=first["id"])

    assert (said(second), deleting.ran) == ("Hello there.", ["a.txt"])
    assert len(model.seen) == 2


async def test_an_approved_call_goes_on_in_spite_of_a_required_one() -> None:
    deleting = Deleting()
    agent = agent_of((DELETE, ONE), HELLO, tools=[deleting.tool])
    app = hosted(agent)

    first = await create(app)
    second = await create(
        app,
        input=[answer(first["output"][-1], True)],
        previous_response_id=first["id"],
        tools=[CLOCK],
        tool_choice="required",
    )

    assert (said(second), deleting.ran) == ("Hello there.", ["a.txt"])


async def test_an_approval_inside_of_an_agent_that_is_a_tool_is_a_failure() -> None:
    deleting = Deleting()
    inner = agent_of((DELETE, ONE), name="inner", tools=[deleting.tool])
    agent = agent_of(
        (Call("ask_inner", {"input": "x"}, "c"), ONE),
        tools=[inner.as_tool("ask_inner", "Asks.")],
    )

    response = await create(hosted(agent, first_event_grace_s=0))

    assert response["status"] == "failed"
    assert "approval" in response["error"]["message"]


async def test_a_providers_mcp_tool_is_approved_by_its_own_request() -> None:
    request = {
        "type": "mcp_approval_request", "id": "mcpr_upstream", "name": "find",
        "server_label": "docs", "arguments": "{}",
    }  # fmt: skip
    config: Any = {"type": "mcp", "server_label": "docs", "server_url": "https://docs.example"}
    agent = agent_of((Item(request), ONE), HELLO, HELLO, tools=[HostedMCPTool(tool_config=config)])
    app = hosted(agent)

    first = await create(app)
    approved = [answer(first["output"][-1], True, reason="Yes.")]
    second = await create(app, input=approved, previous_response_id=first["id"])
    await create(app, previous_response_id=second["id"])

    assert first["output"][-1]["id"] != "mcpr_upstream"
    assert first["output"][-1]["server_label"] == "docs"
    assert model_of(agent).inputs[1][1:] == [
        request,
        {
            "type": "mcp_approval_response",
            "approval_request_id": "mcpr_upstream",
            "approve": True,
            "reason": "Yes.",
        },
    ]
    assert given(agent, 2) == ["user", "assistant", "user"]


async def test_a_guardrail_of_a_tool_ends_the_turn_as_filtered() -> None:
    @tool_input_guardrail
    def no(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
        return ToolGuardrailFunctionOutput.raise_exception("secret")

    @function_tool(tool_input_guardrails=[no])
    def forbidden() -> str:
        return "never"

    events = await told(agent_of((Call("forbidden", {}, "c"), ONE), tools=[forbidden]))

    assert events[-1] == Finish("content_filter")


# Other agents.


def two_agents(
    first: Sequence[Sequence[Said]], second: Sequence[Sequence[Said]], **fields: Any
) -> tuple[Agent[Any], Agent[Any]]:
    other = agent_of(*second, name="other", instructions="Be exact.", **fields)
    return agent_of(*first, handoffs=[other]), other


TRANSFER = Call("transfer_to_other", {}, "call_t")


async def test_an_agent_hands_over_with_all_that_the_request_asks_for() -> None:
    agent, other = two_agents([(TRANSFER, ONE)], [HELLO])

    events = await told(
        agent, tools=[CLOCK], instructions="Be brief.", options={"max_output_tokens": 9}
    )

    assert [event for event in events if isinstance(event, ToolStarted | ToolFinished)] == [
        ToolStarted("call_t", "transfer_to_other", "{}"),
        ToolFinished("call_t", '{"assistant": "other"}'),
    ]
    seen = model_of(other).seen[0]
    assert seen.texts[0] == ("system", "Be exact.\n\nBe brief.")
    assert (set(seen.tools), seen.max_tokens) == ({"weather", "clock"}, 9)


async def test_the_agent_that_took_over_goes_on_with_the_clients_output() -> None:
    agent, other = two_agents([(TRANSFER, ONE), HELLO], [(TIME, ONE), HELLO])
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    second = await create(
        app, input=[output("call_c", "12:00")], previous_response_id=first["id"], tools=[CLOCK]
    )
    await create(app, previous_response_id=second["id"])

    assert given(other, 1) == [
        "user",
        ("transfer_to_other", "call_t"),
        ("call_t", '{"assistant": "other"}'),
        ("clock", "call_c"),
        ("call_c", "12:00"),
    ]
    # A new message is for the agent that the user named.
    assert given(agent, 1)[-1] == "user"


async def test_agents_may_hand_over_back_and_forth() -> None:
    back = Call("transfer_to_kind", {}, "call_b")
    agent, other = two_agents([(TRANSFER, ONE), HELLO], [(back, ONE)])
    other.handoffs.append(agent)

    events = await told(agent, tools=[CLOCK])

    assert "Hel" in events
    assert set(model_of(agent).seen[1].tools) == {"weather", "clock", "transfer_to_other"}


async def test_a_handover_keeps_what_the_user_made_of_it() -> None:
    noted: list[str] = []
    deleting = Deleting()
    other = agent_of((DELETE, ONE), HELLO, name="other", tools=[deleting.tool])
    made = handoff(other, tool_name_override="escalate", on_handoff=lambda _: noted.append("on"))
    app = hosted(agent_of((Call("escalate", {}, "e"), ONE), handoffs=[made]))

    first = await create(app)
    approved = [answer(first["output"][-1], True)]
    second = await create(app, input=approved, previous_response_id=first["id"])

    assert (noted, deleting.ran) == (["on"], ["a.txt"])
    assert said(second) == "Hello there."
    assert given(other, 1)[-2:] == [("delete", "call_d"), ("call_d", "a.txt is gone")]


async def test_a_handover_may_choose_its_agent_when_it_happens() -> None:
    other = agent_of(HELLO, name="other")

    async def choose(context: RunContextWrapper[Any], arguments: str) -> Agent[Any]:
        return other

    chosen: Handoff[Any, Agent[Any]] = Handoff("choose", "Chooses.", {}, choose, "other")
    agent = agent_of((Call("choose", {}, "c"), ONE), handoffs=[chosen])

    await told(agent, tools=[CLOCK])

    assert set(model_of(other).seen[0].tools) == {"weather", "clock"}


async def test_a_clients_call_beside_a_handover_comes_first() -> None:
    agent, _ = two_agents([(TRANSFER, TIME, ONE), HELLO], [HELLO])
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    second = await create(app, input=[output("call_c", "12:00")], previous_response_id=first["id"])

    assert said(second) == "Hello there."
    assert given(agent, 1) == ["user", ("clock", "call_c"), ("call_c", "12:00")]


async def test_an_agent_that_is_a_tool_knows_nothing_of_the_request() -> None:
    inner = agent_of((*HELLO,), name="inner", instructions="Be exact.")
    agent = agent_of(
        (Call("ask_inner", {"input": "x"}, "c"), ONE),
        HELLO,
        tools=[inner.as_tool("ask_inner", "Asks.")],
    )

    response = await create(hosted(agent), tools=[CLOCK], instructions="Be brief.")

    seen = model_of(inner).seen[0]
    assert (seen.tools, seen.texts[0]) == (["weather"], ("system", "Be exact."))
    assert ("tool", "Hello there.") in model_of(agent).seen[1].texts
    assert (said(response), response["usage"]["total_tokens"]) == ("Hello there.", 22)


async def test_only_the_named_agents_guardrails_look_at_the_input() -> None:
    looked: list[str] = []

    def looking(name: str) -> Any:
        @input_guardrail(name=name)
        async def look(context: Any, agent: Any, items: Any) -> Any:
            looked.append(name)
            return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

        return look

    agent, other = two_agents([(TRANSFER, ONE)], [(TIME, ONE), HELLO])
    agent.input_guardrails.append(looking("named"))
    other.input_guardrails.append(looking("other"))
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    await create(app, input=[output("call_c", "12:00")], previous_response_id=first["id"])

    assert looked == ["named", "named"]


# MCP servers.


class Server(MCPServer):
    """An MCP server in this process, which counts how often it is connected."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.session: object | None = None
        self.log: list[str] = []
        self._fails = fails

    @property
    def name(self) -> str:
        return "docs"

    async def connect(self) -> None:
        if self._fails:
            raise OSError("secret")
        assert self.session is None
        self.session = object()
        self.log.append("connect")

    async def cleanup(self) -> None:
        self.session = None
        self.log.append("cleanup")

    async def list_tools(self, *args: Any, **kwargs: Any) -> list[Any]:
        assert self.session is not None
        return [Tool(name="find", input_schema={"type": "object", "properties": {}})]

    async def call_tool(self, *args: Any, **kwargs: Any) -> Any:
        assert self.session is not None
        return CallToolResult(content=[TextContent(type="text", text="found")])

    async def list_prompts(self) -> Any:
        raise NotImplementedError

    async def get_prompt(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


FIND = Call("find", {}, "call_f")


async def test_an_mcp_server_is_connected_while_a_turn_needs_it() -> None:
    server = Server()
    agent = agent_of((FIND, ONE), HELLO, mcp_servers=[server])

    events = await told(agent)

    assert ToolStarted("call_f", "find", "{}", "agent") in events
    assert any(isinstance(e, ToolFinished) and "found" in (e.output or "") for e in events)
    assert server.log == ["connect", "cleanup"]


async def test_turns_at_the_same_time_share_a_connection() -> None:
    server = Server()
    meet = Meet(asyncio.Barrier(2))
    adapted = adapt(agent_of((meet, *HELLO), (meet, *HELLO), mcp_servers=[server]))

    async def run() -> None:
        _ = [event async for event in adapted(Turn(input=OLD))]

    async with asyncio.TaskGroup() as group:
        group.create_task(run())
        group.create_task(run())

    assert server.log == ["connect", "cleanup"]


async def test_a_server_that_the_user_connected_stays_connected() -> None:
    server = Server()
    await server.connect()

    await told(agent_of(HELLO, mcp_servers=[server]))

    assert server.log == ["connect"]


async def test_a_server_that_cannot_be_reached_is_a_failure_that_tells_nothing() -> None:
    app = hosted(agent_of(mcp_servers=[Server(fails=True)]), first_event_grace_s=60)

    reply = await creating().run(app)

    assert reply.status == 500
    assert b"secret" not in reply.body


async def test_a_clients_tool_must_not_have_the_name_of_a_servers_tool() -> None:
    app = hosted(agent_of(HELLO, mcp_servers=[Server()]))

    reply = await creating(tools=[{**CLOCK, "name": "find"}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "tools")


async def test_raw_reasoning_goes_on_with_an_unfinished_turn() -> None:
    agent = agent_of((Reason(("Both.",)), WEATHER, TIME, ONE), HELLO)
    app = hosted(agent)

    first = await create(app, tools=[CLOCK])
    await create(app, input=[output("call_c", "12:00")], previous_response_id=first["id"])

    assert model_of(agent).inputs[1][1]["content"] == [{"type": "reasoning_text", "text": "Both."}]
