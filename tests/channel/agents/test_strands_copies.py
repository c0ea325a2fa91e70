"""Copies of Strands agents: whole, apart from each other, and over the same services."""

import threading
import types
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pytest
from strands import Agent, AgentSkills, InterventionHandler, Plugin, Skill, ToolContext, tool
from strands.agent.conversation_manager import SummarizingConversationManager
from strands.hooks import BeforeInvocationEvent, HookProvider, HookRegistry, MessageAddedEvent
from strands.memory import MemoryManager
from strands.middleware import InvokeModelContext, InvokeModelStage
from strands.models import Model, ModelRouter
from strands.tools import ToolProvider
from strands.types.tools import AgentTool
from strands.vended_plugins.context_injector import ContextInjector
from strands.vended_plugins.context_offloader import ContextOffloader
from strands.vended_plugins.goal import GoalLoop

from channel.agents.strands.copies import copy_of
from tests.channel.agents.frameworks.strands import ScriptedModel, weather
from tests.channel.agents.scripts import Call, Say, Spend


pytestmark = pytest.mark.anyio

HELLO = (Say(("Hello.",)), Spend(1, 1))


class Limiting(HookProvider):
    """Counts what happens in an invocation, as hooks that set limits do."""

    def __init__(self, client: object) -> None:
        self.count = 0
        self.messages: dict[str, list[str]] = {}
        self.client = client
        self.lock = threading.Lock()

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        registry.add_callback(BeforeInvocationEvent, self.reset)
        registry.add_callback(MessageAddedEvent, self.counted)

    def reset(self, event: BeforeInvocationEvent) -> None:
        self.count = 0

    def counted(self, event: MessageAddedEvent) -> None:
        with self.lock:
            self.count += 1
            self.messages.setdefault(event.message["role"], []).append("one")


class Closing(Plugin):
    """Registers functions that close over itself, its agent, and what they share."""

    name = "closing"

    def init_agent(self, agent: Agent) -> None:
        self.agent = agent
        self.by_agent = weakref.WeakKeyDictionary({agent: "kept"})
        count = 0

        def counted(event: BeforeInvocationEvent) -> None:
            nonlocal count
            count += 1
            agent.state.set("owner", event.agent is agent)
            agent.state.set("count", count)

        def again(event: BeforeInvocationEvent, plugin: Closing = self) -> None:
            if count > 100:
                again(event)
            agent.state.set("plugin", plugin.agent is event.agent)
            agent.state.set("kept", self.by_agent.get(event.agent))

        agent.add_hook(counted, BeforeInvocationEvent)
        agent.add_hook(again, BeforeInvocationEvent)
        agent.add_hook(partial(_marked, agent), BeforeInvocationEvent)


def _marked(agent: Agent, event: BeforeInvocationEvent) -> None:
    agent.state.set("marked", event.agent is agent)


class Facts:
    """A memory store, which all agents share."""

    name = "facts"
    description = None
    max_search_results = None
    writable = False
    extraction = None

    async def search(self, query: str, options: Any = None) -> list[Any]:
        return []


class Denying(InterventionHandler):
    name = "denying"

    def __init__(self) -> None:
        self.asked: list[str] = []


def everything(script: list[Any]) -> Agent:
    """Return an agent with everything that belongs to one."""
    inner = Agent(ScriptedModel([]), name="inner", description="An inner one.")
    researcher = Agent(ScriptedModel([]))

    @tool
    def research(topic: str) -> str:
        """Do some research."""
        return str(researcher(topic))

    return Agent(
        ModelRouter([ScriptedModel(script), ScriptedModel([])]),
        tools=[weather, inner, research],
        system_prompt="Be kind.",
        messages=[{"role": "user", "content": [{"text": "Ping?"}]}],
        state={"seen": ["one"]},
        hooks=[Limiting(object())],
        interventions=[Denying()],
        conversation_manager=SummarizingConversationManager(
            summarization_agent=Agent(ScriptedModel([]))
        ),
        plugins=[
            Closing(),
            ContextInjector(lambda _: "now"),
            ContextOffloader(),
            GoalLoop(goal="Answer.", max_attempts=2),
            AgentSkills([Skill(name="cook", description="Cooks.", instructions="Cook.")]),
        ],
        memory_manager=MemoryManager([cast("Any", Facts())]),
        background_tasks=True,
    )


async def test_a_copy_answers_like_its_original() -> None:
    script: list[Any] = [(Call("weather", {"city": "Rome"}, "call_1"),), HELLO, HELLO]
    made = Agent(ScriptedModel(script), tools=[weather], system_prompt="Be kind.")

    result = await copy_of(made).invoke_async("hi")

    assert str(result) == "Hello.\n"
    assert (made.messages, made.event_loop_metrics.cycle_count) == ([], 0)


async def test_a_copy_has_no_metrics_of_its_originals_past() -> None:
    made = Agent(ScriptedModel([HELLO]), callback_handler=None)

    await made.invoke_async("hi")

    assert copy_of(made).event_loop_metrics.accumulated_usage["totalTokens"] == 0


def test_a_copy_shares_only_services_with_its_original() -> None:
    made = everything([])
    theirs = {id(thing) for thing, _ in reached(made)}

    shared = [(type(thing), path) for thing, path in reached(copy_of(made)) if id(thing) in theirs]

    assert sorted(kind.__name__ for kind, _ in shared) == [
        "DecoratedFunctionTool",
        "Facts",
        "object",
    ]


def test_a_copy_of_a_copy_is_one_too() -> None:
    again = copy_of(copy_of(everything([])), session_id="resp_1")

    assert again.tool_names == everything([]).tool_names
    assert (again.system_prompt, again.state.get("seen")) == ("Be kind.", ["one"])
    assert again.session_id == "resp_1"


async def test_a_hook_provider_counts_for_one_agent_only() -> None:
    client = object()
    limiting = Limiting(client)
    made = Agent(ScriptedModel([HELLO, HELLO]), hooks=[limiting])
    first, second = copy_of(made), copy_of(made)

    await first.invoke_async("one")
    await second.invoke_async("two")

    ours = [owner for owner in owners(second) if isinstance(owner, Limiting)]
    assert [(own.count, own.messages) for own in ours] == [
        (2, {"user": ["one"], "assistant": ["one"]})
    ]
    assert (limiting.count, limiting.messages) == (0, {})
    assert ours[0].client is client


async def test_functions_that_close_over_an_agent_close_over_its_copy() -> None:
    made = Agent(ScriptedModel([HELLO, HELLO]), plugins=[Closing()])

    for _ in range(2):
        own = copy_of(made)
        await own.invoke_async("hi")
        assert own.state.get() == {
            "owner": True,
            "count": 1,
            "plugin": True,
            "kept": "kept",
            "marked": True,
        }

    assert made.state.get() == {}


async def test_functions_that_close_over_something_else_are_shared() -> None:
    heard: list[str] = []

    def middleware(context: InvokeModelContext) -> InvokeModelContext:
        heard.append(context.agent.name)
        return context

    made = Agent(ScriptedModel([HELLO]), name="ours")
    made.add_middleware(InvokeModelStage.Input, middleware)

    await copy_of(made).invoke_async("hi")

    assert heard == ["ours"]


async def test_a_tool_that_closes_over_an_agent_has_a_copy_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner = Agent(ScriptedModel([(Say(("found",)),)]))  # which would print

    @tool
    async def research(topic: str) -> str:
        """Do some research."""
        return str(await inner.invoke_async(topic))

    script = [(Call("research", {"topic": "x"}, "call_1"),), HELLO]
    own = copy_of(Agent(ScriptedModel(script), tools=[research]))

    await own.invoke_async("hi")

    assert own.messages[2]["content"][0]["toolResult"]["content"] == [{"text": "found\n"}]
    assert inner.messages == []
    assert capsys.readouterr().out == ""


async def test_everything_that_belongs_to_an_agent_works_in_its_copy() -> None:
    judged = {"start": {"toolUse": {"toolUseId": "j", "name": "JudgeOutcome"}}}
    verdict = {"delta": {"toolUse": {"input": '{"passed": true, "feedback": "Good."}'}}}
    judgement: list[Any] = [{"messageStart": {"role": "assistant"}}, {"contentBlockStart": judged}]
    judgement += [{"contentBlockDelta": verdict}, {"contentBlockStop": {}}]
    judgement += [{"messageStop": {"stopReason": "tool_use"}}]
    made = everything([(Call("skills", {"skill_name": "cook"}, "call_1"),), HELLO, judgement])
    own = copy_of(made)

    result = await own.invoke_async("hi")

    assert str(result) == "Hello.\n"
    assert "Cook." in str(own.messages)
    model = own.model
    assert isinstance(model, ScriptedModel)
    assert "now" in str(model.messages[0])
    assert "Hello." in str(model.messages[2]), "the judge reads what the copy said"


async def test_what_a_context_manager_keeps_is_of_one_agent_only() -> None:
    model = ScriptedModel([HELLO, HELLO], context_window_limit=100_000)
    made = Agent(model, context_manager="auto")
    first, second = copy_of(made), copy_of(made)

    await first.invoke_async("first")
    await second.invoke_async("second")

    kept = [
        str(vars(vars(own.context_manager)["_stash"])["_base_storage"].__dict__)
        for own in (first, second)
    ]
    assert ["first" in kept[0], "second" in kept[0]] == [True, False]
    assert ["first" in kept[1], "second" in kept[1]] == [False, True]


async def test_a_tool_is_given_the_agent_that_runs_it() -> None:
    runners: list[Any] = []

    @tool(context=True)
    def who(tool_context: ToolContext) -> str:
        """Tell who runs."""
        runners.append(tool_context.agent)
        return "me"

    own = copy_of(Agent(ScriptedModel([(Call("who", {}, "call_1"),), HELLO]), tools=[who]))

    await own.invoke_async("hi")

    assert runners == [own]


def test_the_end_of_a_copy_does_not_end_the_providers_of_tools() -> None:
    class Provider(ToolProvider):
        def __init__(self) -> None:
            self.consumers: set[Any] = set()

        async def load_tools(self, **kwargs: Any) -> list[AgentTool]:
            return [weather]

        def add_consumer(self, consumer_id: Any, **kwargs: Any) -> None:
            self.consumers.add(consumer_id)

        def remove_consumer(self, consumer_id: Any, **kwargs: Any) -> None:
            self.consumers.discard(consumer_id)

    provider = Provider()
    made = Agent(ScriptedModel([]), tools=[provider])

    own = copy_of(made)
    own.cleanup()
    del own

    assert len(provider.consumers) == 1
    assert made.tool_names == ["weather"]


def owners(agent: Agent) -> list[Any]:
    """Return whose methods are callbacks of an agent, each once."""
    entries = agent.hooks._registered_callbacks.values()
    found = [getattr(entry.callback, "__self__", None) for each in entries for entry in each]
    return [*{id(owner): owner for owner in found}.values()]


_TOLD = (Model, type, types.ModuleType, str, bytes, int, float, types.CodeType)


def reached(thing: Any) -> Iterator[tuple[Any, str]]:
    """Yield what can be reached from an object and changed, with the way to it.

    Left out are services, and what is only ever read: specifications of tools, and functions.
    """
    seen: set[int] = set()
    waiting = [(thing, "agent")]
    while waiting:
        each, path = waiting.pop()
        if id(each) in seen or each is None or isinstance(each, _TOLD):
            continue
        seen.add(id(each))
        inner = list(_inner(each))
        waiting += [(value, f"{path}{name}") for name, value in inner]
        if not isinstance(each, types.FunctionType | types.MethodType | tuple | frozenset):
            yield each, path


_READ_ONLY = (
    "_metadata", "_tool_spec", "__annotations__", "tracer", "_sandbox", "__wrapped__", "_runtime",
)  # fmt: skip


def _inner(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, types.FunctionType):
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        yield from ((f"<{name}>", cell.cell_contents) for name, cell in cells)
    elif isinstance(thing, types.MethodType):
        yield ".__self__", thing.__self__
    elif isinstance(thing, dict | weakref.WeakKeyDictionary):
        yield from ((f"[{key!r:.20}]", value) for key, value in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from (("[…]", value) for value in thing)
    elif isinstance(thing, weakref.ref):
        yield "()", thing()
    elif hasattr(thing, "__dict__"):
        yield from ((f".{k}", v) for k, v in vars(thing).items() if k not in _READ_ONLY)
