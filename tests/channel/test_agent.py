import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from channel.agent import (
    OPTION_NAMES,
    AgentEvent,
    AgentReferenceError,
    Turn,
    TurnError,
    accepted_options,
    accepts,
    as_agent,
    load_agent,
)
from channel.responses.protocol.items import message


pytestmark = pytest.mark.anyio

TURN = Turn(input=[message("user", "hi")])


async def events_of(agent: Any) -> list[AgentEvent]:
    return [event async for event in as_agent(agent)(TURN)]


# Turns


def test_the_text_of_a_turn_is_that_of_its_last_user_message() -> None:
    items = [message("user", "a"), message("user", "b"), message("developer", "c")]

    assert Turn(input=items).text == "b"
    assert Turn(input=[{"type": "x", "role": "user"}]).text == ""
    assert Turn(input=[], history=items).text == ""


def test_the_items_of_a_turn_are_history_and_input() -> None:
    before, now = message("user", "a"), message("user", "b")

    assert Turn(input=[now], history=[before]).items == [before, now]


def test_a_turn_error_is_a_server_error_unless_it_says_otherwise() -> None:
    error = TurnError("No.")

    assert (str(error), error.message, error.code, error.status, error.param) == (
        "No.",
        "No.",
        "server_error",
        500,
        None,
    )


# What is an agent


async def generates(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield turn.text
    yield "!"


@accepts("temperature")
async def answers(turn: Turn) -> str:
    return turn.text


async def answers_nothing(_: Turn) -> None:
    return None


class Answerer:
    async def __call__(self, turn: Turn) -> str:
        return f"called {turn.text}"

    async def answer(self, turn: Turn) -> str:
        return f"answered {turn.text}"

    async def generate(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        yield f"generated {turn.text}"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (generates, ["hi", "!"]),
        (answers, ["hi"]),
        (answers_nothing, [""]),
        (Answerer(), ["called hi"]),
        (Answerer().answer, ["answered hi"]),
        (Answerer().generate, ["generated hi"]),
        (partial(generates), ["hi", "!"]),
        (partial(answers), ["hi"]),
    ],
)
async def test_generators_and_coroutine_functions_are_agents(target: Any, said: list[str]) -> None:
    assert await events_of(target) == said


def test_a_generator_function_is_the_agent_itself() -> None:
    assert as_agent(generates) is generates


def test_an_adapted_agent_keeps_its_attributes() -> None:
    async def answering(turn: Turn) -> str:
        return "ok"

    def count(turn: Turn) -> int:
        return 1

    answering.count_input_tokens = count  # type: ignore[attr-defined]  # what a user writes
    answering.max_input_tokens = 1000  # type: ignore[attr-defined]  # as above

    adapted = as_agent(answering)

    assert getattr(adapted, "count_input_tokens", None) is count
    assert getattr(adapted, "max_input_tokens", None) == 1000
    assert not hasattr(adapted, "compact")


def test_an_adapted_agent_keeps_the_options_that_it_accepts() -> None:
    assert accepted_options(as_agent(answers)) == {"temperature"}
    assert accepted_options(generates) == frozenset()


@pytest.mark.parametrize("target", [None, "agent", 5])
def test_something_that_cannot_be_called_is_no_agent(target: Any) -> None:
    with pytest.raises(TypeError, match="an agent is an async generator function over a Turn, not"):
        as_agent(target)


def test_an_agent_declares_the_options_that_it_takes() -> None:
    @accepts(*OPTION_NAMES)
    async def agent(_: Turn) -> str:
        return ""

    assert accepted_options(agent) == OPTION_NAMES


def test_an_unknown_option_stops_the_start() -> None:
    with pytest.raises(ValueError, match=r"accepts\(\) got \['temprature'\]; the caller options"):
        accepts("top_p", "temprature")


# References

MODULE = """
import functools

async def agent(turn):
    yield "generated"

async def answer(turn):
    return "answered"

def make():
    return agent

def make_with_default(name="x", *more, **options):
    return answer

def make_nothing():
    return None

def make_a_factory():
    return make

def fail():
    raise ZeroDivisionError

class Made:
    def __call__(self, turn):
        return agent(turn)

class Needs:
    def __init__(self, turn):
        pass

class Space:
    agent = staticmethod(agent)

@functools.wraps(agent)
def wrapped(*args, **kwargs):
    return agent(*args, **kwargs)

def bare(*args, **kwargs):
    return agent(*args, **kwargs)

text = "no agent"
made = Made()
"""


@pytest.fixture
def my_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_agent.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_agent", None)
    sys.modules.pop("broken", None)


@pytest.mark.usefixtures("my_agent")
@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("my_agent:agent", "generated"),
        ("my_agent:answer", "answered"),
        ("my_agent:make", "generated"),
        ("my_agent:make_with_default", "answered"),
        ("my_agent:Made", "generated"),
        ("my_agent:made", "generated"),
        ("my_agent:Space.agent", "generated"),
        ("my_agent:wrapped", "generated"),
    ],
)
async def test_a_reference_names_an_agent_or_a_factory(reference: str, said: str) -> None:
    agent = load_agent(reference)

    assert [event async for event in agent(TURN)] == [said]


@pytest.mark.usefixtures("my_agent")
@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("", "AGENT is ''; write it as module:attribute, such as agent.support:agent"),
        (
            "my_agent",
            "AGENT is 'my_agent'; write it as module:attribute, such as agent.support:agent",
        ),
        (":agent", "AGENT is ':agent'; write it as module:attribute, such as agent.support:agent"),
        (
            "my_agent:",
            "AGENT is 'my_agent:'; write it as module:attribute, such as agent.support:agent",
        ),
        (
            "nowhere_at_all:agent",
            "AGENT is 'nowhere_at_all:agent', but there is no module 'nowhere_at_all' on the Python path",
        ),
        (
            "my_agent.inner:agent",
            "AGENT is 'my_agent.inner:agent', but there is no module 'my_agent.inner' on the Python path",
        ),
        (
            "my_agent:nothing",
            "AGENT is 'my_agent:nothing', but my_agent has no attribute 'nothing'",
        ),
        (
            "my_agent:text",
            "AGENT is 'my_agent:text', but that is no callable; an agent is an async def over a Turn",
        ),
        (
            "my_agent:Space.other",
            "AGENT is 'my_agent:Space.other', but my_agent has no attribute 'other'",
        ),
        (
            "my_agent:make_nothing",
            "AGENT is 'my_agent:make_nothing', but that is a factory that made no agent: an async def over a Turn",
        ),
        (
            "my_agent:make_a_factory",
            "AGENT is 'my_agent:make_a_factory', but that is a factory that made no agent: an async def over a Turn",
        ),
    ],
)
def test_a_wrong_reference_is_one_sentence(reference: str, sentence: str) -> None:
    with pytest.raises(AgentReferenceError) as caught:
        load_agent(reference)

    assert str(caught.value) == sentence


@pytest.mark.usefixtures("my_agent")
@pytest.mark.parametrize(
    "reference", [".my_agent:agent", "my_agent:..agent", "./my_agent.py:agent"]
)
def test_an_odd_reference_is_one_sentence_too(reference: str) -> None:
    with pytest.raises(AgentReferenceError):
        load_agent(reference)


@pytest.mark.usefixtures("my_agent")
def test_what_an_agents_own_module_lacks_is_named() -> None:
    with pytest.raises(AgentReferenceError, match="'nowhere_to_be_found', which is not installed"):
        load_agent("broken:agent")


@pytest.mark.usefixtures("my_agent")
def test_what_a_factory_raises_passes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        load_agent("my_agent:fail")


def test_a_generator_that_is_not_async_is_refused_at_the_start() -> None:
    def agent(turn: Turn) -> Iterator[str]:
        yield turn.text

    with pytest.raises(TypeError, match="async def"):
        as_agent(agent)


def test_a_function_of_two_parameters_is_no_agent() -> None:
    async def agent(turn: Turn, more: str) -> AsyncIterator[str]:
        yield turn.text + more

    target: Any = agent

    with pytest.raises(TypeError, match="one argument, the Turn"):
        as_agent(target)


@pytest.mark.parametrize("status", [99, 200, 204, 1000, None, "500"])
def test_a_turn_error_is_an_error_whatever_status_it_is_given(status: Any) -> None:
    assert TurnError("no", status=status).status == 500


def test_a_turn_error_can_always_be_told() -> None:
    error = TurnError(None, code=5, param=object())  # type: ignore[arg-type]

    assert (error.message, error.code, error.param) == (
        "The agent failed to answer.",
        "server_error",
        None,
    )
