"""One run of a graph, a chat model or a chain, and what of it is the answer."""

import inspect
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, get_args

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langgraph.errors import GraphDrained, GraphRecursionError
from langgraph.pregel import Pregel
from langgraph.runtime import RunControl
from langgraph.types import Interrupt
from msgspec import Struct

from channel.agent import AgentEvent, Finish, Turn, TurnError
from channel.agents.langgraph.chains import ToInput, text_of_output
from channel.agents.langgraph.listening import Listener, Path
from channel.agents.langgraph.messages import TakesUrl, messages_of
from channel.agents.langgraph.models import EFFORT, SETTINGS, Asked
from channel.agents.langgraph.pauses import asked
from channel.agents.langgraph.speech import Speech
from channel.agents.langgraph.telling import Telling
from channel.agents.langgraph.threads import NOWHERE, Entry, entry_of, place_of
from channel.agents.reading import unsupported


class Options(Struct, frozen=True):
    """What the user of `adapt` decided."""

    to_input: ToInput
    to_answer: Callable[[Any], Any] | None = None
    nodes: tuple[Path, ...] | None = None
    context: Callable[[Turn], Any] | None = None
    config: Callable[[Turn], RunnableConfig] | None = None
    is_chain: bool = False
    keeps_history: bool = False
    """Whether the graph's checkpointer keeps the history, in place of the host."""

    def speaks(self, path: Path) -> bool:
        """Return whether a model or a node at this path speaks."""
        if self.nodes is not None:
            return any(path[: len(node)] == node for node in self.nodes)
        return self.to_answer is None and not self.is_chain and len(path) <= 1


class Run(Struct, frozen=True):
    """One turn: what it asks, and what is heard of it."""

    turn: Turn
    asked: Asked
    config: RunnableConfig
    listener: Listener
    telling: Telling
    control: RunControl
    takes_url: TakesUrl

    def messages(self) -> list[BaseMessage]:
        """Return the conversation as the host knows it."""
        return messages_of(self.turn, self.turn.items, self.takes_url)

    def heard(self) -> Iterator[AgentEvent]:
        """Tell what was heard since."""
        return self.telling.hear(self.listener.take())

    async def told(
        self, parts: Any, read: Callable[[Any], Iterator[AgentEvent]]
    ) -> AsyncGenerator[AgentEvent, None]:
        """Tell what is heard while the parts come, and what is read of each of them."""
        try:
            async with aclosing(parts):
                async for part in parts:
                    for event in self.heard():
                        yield event
                    for event in read(part):
                        yield event
        except Exception:
            for event in self.heard():
                yield event
            raise
        for event in self.heard():
            yield event


Events = Callable[[Run], AsyncGenerator[AgentEvent, None]]


def graph_events(graph: Pregel[Any, Any, Any, Any], options: Options) -> Events:
    """Return what runs a graph; without its checkpointer, unless it keeps the history."""
    is_stateless = graph.checkpointer and not options.keeps_history
    hosted = graph.copy({"checkpointer": None}) if is_stateless else graph
    fields = _context_fields(graph)
    # The first makes models stream; what they say is heard by the listener.
    modes: Any = ["messages", "updates", "custom"]
    modes += [
        *(["values"] if options.to_answer else []),
        *(["checkpoints"] if options.keeps_history else []),
    ]

    async def events(run: Run) -> AsyncGenerator[AgentEvent, None]:
        if options.keeps_history:
            entry = await entry_of(hosted, run.config, run.turn, run.takes_url)
        else:
            entry = Entry(run.messages())
        run.telling.know(entry.messages)
        reader = _GraphReader(options, run.telling)
        parts = hosted.astream(
            entry.resume or options.to_input(run.turn, entry.given),
            merge_configs(run.config, {"configurable": {**entry.where}}),
            context=options.context(run.turn) if options.context else _declared(fields, run.asked),
            stream_mode=modes,
            subgraphs=True,
            version="v2",
            control=run.control,
        )
        try:
            async with aclosing(run.told(parts, reader.read)) as said:
                async for event in said:
                    yield event
        except GraphDrained:  # a tool was called that ends the turn
            reader.is_whole = False
        except GraphRecursionError:
            reader.limit = "max_output_tokens"
        for event in reader.end(run):
            yield event

    return events


class _GraphReader:
    """Reads the parts of a graph's stream, and what is left of them at its end."""

    def __init__(self, options: Options, telling: Telling) -> None:
        self.is_whole = True
        self.limit: str | None = None
        self._options = options
        self._telling = telling
        self._state: Any = None
        self._checkpoint: Mapping[str, Any] | None = None
        self._pauses: list[Interrupt] = []

    def read(self, part: Mapping[str, Any]) -> Iterator[AgentEvent]:
        data = part["data"]
        place = tuple(segment.partition(":")[0] for segment in part["ns"])
        match part["type"]:
            case "updates":
                for node, update in data.items():
                    if node == "__interrupt__":
                        self._pause(update, is_own=not place)
                    elif self._options.speaks((*place, node)):
                        yield from self._telling.see(update)
            case "custom" if isinstance(data, _EVENTS):
                yield data
            case "values" if not place:
                self._state = data
            case "checkpoints" if not place:
                self._checkpoint = data["config"]["configurable"]

    def end(self, run: Run) -> Iterator[AgentEvent]:
        """Tell what is known only at the end; what is kept, before the reason of the end."""
        to_answer = self._options.to_answer
        if to_answer is not None and self.is_whole and not self._pauses:
            yield from self._telling.answer(text_of_output(to_answer(self._state)))
        yield from asked(self._pauses)
        if self._options.keeps_history:
            is_lost = self._checkpoint is None or run.listener.is_ended_inside
            yield NOWHERE if is_lost else place_of(run.turn, self._checkpoint or {})
        yield from self._telling.end(self.limit)

    def _pause(self, pauses: Sequence[Interrupt], *, is_own: bool) -> None:
        if not (self._options.keeps_history and pauses):
            raise TurnError("The agent stopped for a decision, which nobody can give it here.")
        if is_own:  # those of subgraphs come again as its own
            self._pauses += pauses


_EVENTS: Final = tuple(each for each in get_args(AgentEvent) if each is not str)


def model_events(model: Runnable[Any, Any], options: Options) -> Events:
    """Return what runs a chat model."""

    async def events(run: Run) -> AsyncGenerator[AgentEvent, None]:
        parts = model.astream(options.to_input(run.turn, run.messages()), run.config)
        async with aclosing(run.told(parts, lambda _: iter(()))) as said:
            async for event in said:
                yield event
        for event in run.telling.end():
            yield event

    return events


def chain_events(chain: Runnable[Any, Any], options: Options) -> Events:
    """Return what runs a chain: its output is the answer, whatever its models say inside."""

    async def events(run: Run) -> AsyncGenerator[AgentEvent, None]:
        parts = chain.astream(options.to_input(run.turn, run.messages()), run.config)
        read = _ChainReader(run.asked, options.to_answer)
        async with aclosing(run.told(parts, read)) as said:
            async for event in said:
                yield event
        for event in read.end(run.telling.last):
            yield event

    return events


class _ChainReader:
    """Reads the output of a chain: text and messages as they come, anything else when it is whole."""

    def __init__(self, asked: Asked, to_answer: Callable[[Any], Any] | None) -> None:
        self._asked = asked
        self._to_answer = to_answer
        self._speech = Speech(asked.names)
        self._output: Any = None

    def __call__(self, output: Any) -> Iterator[AgentEvent]:
        if (missing := self._asked.missing()) is not None:
            raise unsupported("what its model is not bound to", missing)
        if self._to_answer is None and isinstance(output, AIMessage):
            yield from self._speech.add(output)
        elif self._to_answer is None and isinstance(output, str):
            yield output
        elif self._output is None:
            self._output = output
        else:
            self._output = _added(self._output, output)

    def end(self, last: AIMessage | None) -> Iterator[AgentEvent]:
        """Tell what was kept until it was whole, and how the last model call ended."""
        if self._output is not None:
            found = self._to_answer(self._output) if self._to_answer else self._output
            yield text_of_output(found)
        if last is not None:
            yield from self._speech.end(last, only_calls=True)
            yield from [Finish(self._speech.limit)] if self._speech.limit else []


def _added(whole: Any, piece: Any) -> Any:
    try:
        return whole + piece
    except TypeError:  # each piece is all of it
        return piece


def _context_fields(graph: Pregel[Any, Any, Any, Any]) -> Mapping[str, str]:
    """Return the request's options for which the graph's context has a field, and the fields."""
    classes = getattr(graph.context_schema, "__mro__", ())
    declared = {name for each in classes for name in inspect.get_annotations(each)}
    found = {}
    for option, names in {**SETTINGS, EFFORT: (EFFORT,)}.items():
        field = next((name for name in (option, *names) if name in declared), None)
        if field is not None:
            found[option] = field
    return found


def _declared(fields: Mapping[str, str], asked: Asked) -> dict[str, Any] | None:
    return {fields[name]: value for name, value in asked.settings.items() if name in fields} or None
