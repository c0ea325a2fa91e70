"""From a name to an agent; and sentences for the names that lead to none."""

import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from channel.agent import AgentEvent, Turn, accepted_options, accepts
from channel.loading import AgentReferenceError, as_agent, load_agent
from channel.responses.protocol.items import message


pytestmark = pytest.mark.anyio

AGENTS = "an agent is an async def over a Turn, or one of Microsoft Agent Framework, OpenAI Agents SDK, Pydantic AI, Strands, LangGraph"
TURN = Turn(input=[message("user", "hi")])


async def events_of(agent: Any) -> list[AgentEvent]:
    return [event async for event in as_agent(agent)(TURN)]


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
            "AGENT is 'my_agent:text', but that is str, and " + AGENTS,
        ),
        (
            "my_agent:Space.other",
            "AGENT is 'my_agent:Space.other', but my_agent has no attribute 'other'",
        ),
        (
            "my_agent:make_nothing",
            "AGENT is 'my_agent:make_nothing', but that is a factory that made NoneType, and "
            + AGENTS,
        ),
        (
            "my_agent:make_a_factory",
            "AGENT is 'my_agent:make_a_factory', but that is a factory that made function, and "
            + AGENTS,
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
