"""What a user's test asks an agent, and what it sees of the answer."""

import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from channel import (
    AgentEvent,
    Finish,
    FunctionCall,
    ToolFinished,
    ToolStarted,
    Turn,
    TurnError,
    Usage,
    accepts,
)
from channel.agents.demo import agent as demo
from channel.loading import AgentReferenceError
from channel.responses.protocol.items import text_of
from channel.testing import Call, NoResponseError, ToolRun, ask, ask_async


BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
CLOCK = {
    "type": "function",
    "name": "clock",
    "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
}


async def parrot(turn: Turn) -> AsyncIterator[AgentEvent]:
    """Say what was said so far, and by whom."""
    for item in turn.items:
        yield f"{item['role'][0]}:{text_of(item)} "
    yield Usage(3, 2)


async def asker(turn: Turn) -> AsyncIterator[AgentEvent]:
    """Call the client's clock for two zones, and say what it told."""
    told = [item["output"] for item in turn.input if item["type"] == "function_call_output"]
    if not told:
        yield FunctionCall("clock", '{"zone": "UTC"}', "call_1")
        yield FunctionCall("clock", '{"zone": "CET"}', "call_2")
        return
    yield f"{' and '.join(told)}, by {len(turn.tools)} tool"


async def worker(turn: Turn) -> AsyncIterator[AgentEvent]:
    """Use tools of its own."""
    yield ToolStarted("own_1", "weather", '{"city": "Rome"}')
    yield ToolStarted("own_2", "search", "not JSON")
    yield ToolFinished("own_2", error="no network")
    yield ToolFinished("own_1", "sunny")
    yield "It is sunny."


async def stumbler(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield "Well, "
    raise ValueError("the reason")


async def faller(turn: Turn) -> AsyncIterator[AgentEvent]:
    if turn.text == "slow":
        await asyncio.sleep(0)
    raise TurnError("Later, please.", code="rate_limit_exceeded", status=429)
    yield ""


def test_the_three_lines() -> None:
    reply = ask(demo, "My name is Ada.")

    assert reply.status == "completed"
    assert "Ada" in reply.ask("What is my name?").text


def test_a_reply_is_what_a_client_reads() -> None:
    reply = ask(parrot, "hi")

    assert (reply.status, reply.text, reply.error, reply.exception) == (
        "completed",
        "u:hi ",
        None,
        None,
    )
    assert reply.usage is not None
    assert reply.usage["total_tokens"] == 5
    assert [item["type"] for item in reply.output] == ["message"]
    assert reply.id == reply.response["id"]
    assert (reply.events[0]["type"], reply.events[-1]["type"]) == (
        "response.created",
        "response.completed",
    )
    assert reply.events[-1]["response"] == reply.response


def test_a_reply_goes_on_in_as_many_branches_as_are_asked_for() -> None:
    first = ask(parrot, "a")

    left, right = first.ask("b"), first.ask("c")

    assert first.deltas == ["u:a "]
    assert left.deltas == ["u:a ", "a:u:a  ", "u:b "]
    assert right.deltas == ["u:a ", "a:u:a  ", "u:c "]


def test_the_message_may_be_items() -> None:
    reply = ask(
        parrot, [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    )

    assert reply.text == "d:Be kind. u:hi "


def test_the_clients_tools_are_answered_in_the_order_of_their_calls() -> None:
    reply = ask(asker, "What time is it?", tools=[CLOCK])

    assert reply.calls == [
        Call("clock", {"zone": "UTC"}, "call_1"),
        Call("clock", {"zone": "CET"}, "call_2"),
    ]
    assert reply.give("12:00", {"hour": 13}).text == '12:00 and {"hour":13}, by 1 tool'


def test_outputs_for_other_calls_than_there_are_are_refused() -> None:
    reply = ask(asker, "What time is it?", tools=[CLOCK])

    with pytest.raises(
        ValueError, match=r"give\(\) got 1 outputs, but the calls are 2: clock, clock"
    ):
        reply.give("12:00")


def test_a_follow_up_repeats_the_fields_except_those_that_are_given() -> None:
    @accepts("temperature")
    async def teller(turn: Turn) -> str:
        return f"{turn.instructions} {turn.options.get('temperature')}"

    first = ask(teller, "hi", instructions="Be brief.", temperature=0)

    assert first.text == "Be brief. 0.0"
    assert first.ask("hi").text == "Be brief. 0.0"
    assert first.ask("hi", temperature=1, instructions=None).text == "None 1.0"


def test_the_agents_own_tools_are_seen_though_clients_do_not_see_them() -> None:
    reply = ask(worker, "How is the weather?")

    assert reply.tools == [
        ToolRun("weather", {"city": "Rome"}, "sunny"),
        ToolRun("search", "not JSON", error="no network"),
    ]
    assert [item["type"] for item in reply.output] == ["message"]


def test_what_an_agent_must_not_yield_fails_its_turn() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield "Well, "
        yield ToolFinished("own_1", "of a tool that was not begun")

    reply = ask(agent, "hi")

    assert (reply.status, reply.text, reply.tools) == ("failed", "Well, ", [])


def test_structured_output_and_limits_are_as_clients_have_them() -> None:
    @accepts("text")
    async def form(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield json.dumps({"city": turn.options["text"]["format"]["name"]})
        yield Finish("max_output_tokens")

    wanted = {"type": "json_schema", "name": "place", "schema": {"type": "object"}}
    reply = ask(form, "Where?", text={"format": wanted})

    assert (reply.status, json.loads(reply.text)) == ("incomplete", {"city": "place"})
    with pytest.raises(NoResponseError, match=r"text\.format") as refused:
        ask(parrot, "Where?", text={"format": wanted})
    assert refused.value.status == 400


def test_a_background_turn_is_waited_for() -> None:
    assert ask(parrot, "hi", background=True).text == "u:hi "


def test_a_failure_in_the_middle_is_a_failed_reply_with_what_the_agent_raised() -> None:
    reply = ask(stumbler, "hi")

    assert (reply.status, reply.text) == ("failed", "Well, ")
    assert reply.error is not None
    assert reply.error["code"] == "server_error"
    assert "the reason" not in reply.error["message"]
    assert repr(reply.exception) == "ValueError('the reason')"
    assert "ValueError('the reason')" in repr(reply)


@pytest.mark.parametrize("message", ["at once", "slow"])
def test_a_failure_before_the_first_event_is_an_http_error(message: str) -> None:
    with pytest.raises(NoResponseError) as failed:
        ask(faller, message)

    error = failed.value
    assert str(error) == "429 rate_limit_exceeded Later, please."
    assert (error.status, error.code, error.param) == (429, "rate_limit_exceeded", None)
    assert isinstance(error.__cause__, TurnError)


def test_the_cause_of_an_http_error_is_what_the_agent_raised() -> None:
    async def broken(turn: Turn) -> str:
        raise ValueError("the reason")

    with pytest.raises(NoResponseError) as failed:
        ask(broken, "hi")

    assert failed.value.status == 500
    assert repr(failed.value.__cause__) == "ValueError('the reason')"
    assert "the reason" not in str(failed.value)


def test_an_agent_that_raises_when_it_is_called_has_a_cause_too() -> None:
    def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        raise ValueError("the reason")

    with pytest.raises(NoResponseError) as failed:
        ask(agent, "hi")

    assert isinstance(failed.value.__cause__, ValueError)


def test_what_is_no_agent_when_it_is_called_is_told_as_ever() -> None:
    def agent(turn: Turn) -> Any:
        return 7

    with pytest.raises(NoResponseError, match="500"):
        ask(agent, "hi")


def test_a_refused_request_names_the_parameter() -> None:
    with pytest.raises(NoResponseError) as refused:
        ask(parrot, "hi", temperature="hot")

    error = refused.value
    assert (error.status, error.param, error.__cause__) == (400, "temperature", None)
    assert str(error).endswith("(param: temperature)")


def test_a_failed_reply_cannot_be_continued() -> None:
    with pytest.raises(NoResponseError) as refused:
        ask(stumbler, "hi").ask("again?")

    assert refused.value.code == "previous_response_not_found"


class Called:
    async def __call__(self, turn: Turn) -> str:
        return "called"


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (parrot, "u:hi "),
        (Called(), "called"),
        (Called, "called"),
        (lambda: parrot, "u:hi "),
        ("tested_agent:agent", "u:hi "),
        ("tested_agent:make", "u:hi "),
    ],
)
def test_it_takes_what_the_setting_takes(
    agent: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("tested_agent")
    module.agent, module.make = parrot, lambda: parrot
    monkeypatch.setitem(sys.modules, "tested_agent", module)

    assert ask(agent, "hi").text == said


def test_what_is_no_agent_is_refused() -> None:
    with pytest.raises(TypeError, match="an agent is"):
        ask(7, "hi")
    with pytest.raises(AgentReferenceError, match="nowhere"):
        ask("nowhere:agent", "hi")


def test_an_agent_keeps_its_own_count_and_summary() -> None:
    async def agent(turn: Turn) -> str:
        return "ok"

    agent.count_input_tokens = lambda turn: 7  # type: ignore[attr-defined]  # what a user writes
    agent.max_input_tokens = 6  # type: ignore[attr-defined]  # as above

    with pytest.raises(NoResponseError) as refused:
        ask(agent, "hi")

    assert refused.value.code == "context_length_exceeded"


def test_an_agent_is_not_closed_between_its_turns() -> None:
    class Closable:
        is_closed = False

        async def __call__(self, turn: Turn) -> str:
            return "closed" if self.is_closed else "open"

        async def aclose(self) -> None:
            self.is_closed = True

    assert ask(Closable(), "hi").ask("again").text == "open"


def test_what_an_agent_keeps_of_its_loop_lives_from_one_ask_to_the_next() -> None:
    loops: set[int] = set()

    async def agent(turn: Turn) -> str:
        loops.add(id(asyncio.get_running_loop()))
        return "ok"

    ask(agent, "hi").ask("again")
    ask(agent, "hi")
    assert len(loops) == 1

    def elsewhere() -> None:
        assert ask(agent, "hi").text == "ok"

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(loops) == 2


@pytest.mark.anyio
async def test_in_a_coroutine_it_is_awaited() -> None:
    first = await ask_async(asker, "What time is it?", tools=[CLOCK])
    second = await first.give_async("12:00", "13:00")

    assert second.text == "12:00 and 13:00, by 1 tool"
    third = await second.ask_async("And now?")
    assert [call.arguments for call in third.calls] == [{"zone": "UTC"}, {"zone": "CET"}]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "wrong",
    [lambda reply: ask(parrot, "hi"), lambda reply: reply.ask("hi"), lambda reply: reply.give()],
)
async def test_in_a_coroutine_the_other_face_says_what_to_write(
    wrong: Callable[[Any], Any],
) -> None:
    reply = await ask_async(parrot, "hi")

    with pytest.raises(RuntimeError, match="await …ask_async"):
        wrong(reply)


def test_the_examples_of_the_docs_pass() -> None:
    text = (Path(__file__).parents[2] / "docs/agents.md").read_text()
    blocks = [block for block in BLOCK.findall(text) if "def test_" in block]

    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    examples = [each for name, each in names.items() if name.startswith("test_")]

    assert len(examples) >= len(blocks) == 2
    for example in examples:
        example()
