"""Which of LangGraph's and LangChain's objects is run how: graphs, chat models, chains."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing, suppress
from typing import Any, Final, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langgraph.pregel import Pregel
from langgraph.pregel.protocol import PregelProtocol
from langgraph.runtime import RunControl

from channel.agent import Agent, AgentEvent, Turn, accepts
from channel.agents.langgraph.chains import ToInput, input_of
from channel.agents.langgraph.listening import Listener, Path
from channel.agents.langgraph.messages import TakesUrl
from channel.agents.langgraph.models import SETTINGS, as_requested, begin
from channel.agents.langgraph.runs import (
    Events,
    Options,
    Run,
    chain_events,
    graph_events,
    model_events,
)
from channel.agents.langgraph.speech import Names
from channel.agents.langgraph.telling import Telling
from channel.agents.own_task import in_own_task
from channel.agents.provider_errors import turn_error_of


_FETCH_THEMSELVES: Final = frozenset({"langchain_anthropic", "langchain_openai"})
"""Packages whose models are given a URL as it is; others would fetch it in this process."""


def adapt(
    target: Runnable[Any, Any],
    fresh: Callable[[], Any] | None = None,  # noqa: ARG001 - nothing of it keeps state between runs
    *,
    nodes: Collection[str] | None = None,
    to_input: ToInput | None = None,
    to_answer: Callable[[Any], Any] | None = None,
    context: Callable[[Turn], Any] | None = None,
    config: Callable[[Turn], RunnableConfig] | None = None,
    takes_urls: bool | None = None,
    history_source: Literal["host", "agent"] = "host",
) -> Agent:
    """Return a compiled graph, a chain or a chat model as an agent.

    Of a graph, the answer is what the models say that its own nodes call, and every other message
    that a node leaves in the state's `messages`; what subgraphs and tools say inside is not, until
    it is in that state. `nodes` names those that speak instead: a node, or `subgraph/node`.

    `to_input(turn, messages)` makes the input, of a state without `messages`, and `to_answer(state)`
    the answer, a text or a message, of the last state; only what `nodes` names streams then.
    `context` and `config` make a graph's context and a run's config of the turn. `takes_urls` says
    whether the model is given the URLs of images and files; nothing here must fetch them.

    The host keeps the history, and a checkpointer is not used, unless the `history_source` is the
    agent: then each turn goes on from its checkpoint, and what the graph stops for (`interrupt`) can
    be answered. Raises `TypeError` for a graph or a chain whose input must be made by `to_input`, for
    unknown `nodes`, and for an agent that cannot keep a history.
    """
    keeps_history = _keeps_history(target, history_source)
    if isinstance(target, Pregel):
        paths = None if nodes is None else _paths(target, nodes)
        options = Options(
            to_input or _messages_input(target),
            to_answer,
            paths,
            context,
            config,
            keeps_history=keeps_history,
        )
        events: Events = graph_events(target, options)
    elif isinstance(target, PregelProtocol):
        msg = f"it is a {type(target).__name__}; only a graph of this process can be hosted"
        raise TypeError(msg)
    elif isinstance(_innermost(target), BaseChatModel):
        options = Options(to_input or _as_they_are, config=config)
        events = model_events(as_requested(target), options)
    else:
        options = Options(to_input or input_of(target), to_answer, config=config, is_chain=True)
        events = chain_events(target, options)
    takes_url = _takes_url(target, takes_urls)

    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        wait = _Wait()
        running = _begin(turn, options, takes_url, wait.end)
        listener = running.listener
        async with aclosing(events(running)) as said:
            try:
                while (event := await wait.next_of(said)) is not None and not listener.refusal:
                    yield event
            except Exception as error:
                known = listener.refusal or turn_error_of(error)
                if known is not None:
                    raise known from error
                raise
        if listener.refusal is not None:
            raise listener.refusal

    return accepts("reasoning", "text", *SETTINGS)(in_own_task(run))


def _keeps_history(target: Any, history_source: str) -> bool:
    if history_source not in ("host", "agent"):
        msg = f"history_source is {history_source!r}; it is 'host' or 'agent'"
        raise TypeError(msg)
    if history_source == "agent" and not getattr(target, "checkpointer", None):
        msg = "history_source is 'agent', which needs a graph that is compiled with a checkpointer"
        raise TypeError(msg)
    return history_source == "agent"


class _Wait:
    """The wait for a run's next event, which can be ended at once, from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit: asyncio.Timeout | None = None

    def end(self) -> None:
        """Cancel what is waited for, which raises `TimeoutError`; it does nothing where nobody waits."""
        self._loop.call_soon_threadsafe(self._end)

    async def next_of(self, events: AsyncGenerator[AgentEvent, None]) -> AgentEvent | None:
        """Return the next event, or None at the end."""
        async with asyncio.timeout(None) as self._limit:
            return await anext(events, None)

    def _end(self) -> None:
        if self._limit is not None:
            with suppress(RuntimeError):  # it has ended
                self._limit.reschedule(0)


def _begin(turn: Turn, options: Options, takes_url: TakesUrl, stop: Callable[[], object]) -> Run:
    asked = begin(turn)
    control = RunControl()
    listener = Listener(asked, options.speaks, control.request_drain, stop)
    ours: RunnableConfig = {
        "callbacks": [listener],
        "configurable": {"client_tools": asked.schemas},
    }
    config = merge_configs(options.config(turn), ours) if options.config else ours
    telling = Telling(Names() if options.is_chain else asked.names, control.request_drain)
    return Run(turn, asked, config, listener, telling, control, takes_url)


def _messages_input(graph: Pregel[Any, Any, Any, Any]) -> ToInput:
    if "messages" not in graph.channels:
        msg = (
            "it is a graph whose state has no `messages`; "
            "write adapt(graph, to_input=lambda turn, messages: …, to_answer=lambda state: …)"
        )
        raise TypeError(msg)
    return lambda _, messages: {"messages": messages}


def _as_they_are(_: Turn, messages: list[BaseMessage]) -> list[BaseMessage]:
    return messages


def _paths(graph: Pregel[Any, Any, Any, Any], nodes: Collection[str]) -> tuple[Path, ...]:
    paths = tuple(tuple(node.split("/")) for node in nodes)
    unknown = sorted({path[0] for path in paths} - {*graph.nodes})
    if isinstance(nodes, str) or unknown:
        known = sorted(name for name in graph.nodes if not name.startswith("__"))
        msg = f"adapt() got nodes={nodes!r}; the graph has the nodes {known}"
        raise TypeError(msg)
    return paths


def _innermost(target: Any) -> Any:
    """Return what is inside of bindings, retries and fallbacks."""
    while isinstance(target, RunnableBindingBase | RunnableWithFallbacks):
        target = target.bound if isinstance(target, RunnableBindingBase) else target.runnable
    return target


def _takes_url(target: Any, takes_urls: bool | None) -> TakesUrl:
    package = type(_innermost(target)).__module__.partition(".")[0]
    takes = package in _FETCH_THEMSELVES if takes_urls is None else takes_urls
    return lambda _: takes
