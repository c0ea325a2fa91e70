"""From what is heard of a run, and what its nodes leave in the state, to agent events."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ToolCall,
    ToolMessage,
    convert_to_messages,
)
from msgspec.structs import replace

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    ToolFinished,
    ToolStarted,
)
from channel.agents.langgraph.listening import Heard
from channel.agents.langgraph.speech import Names, Speech, usage_of


class Telling:
    """Tells one turn, every text once.

    Model calls that speak at the same time are told one after another. A message of the state is told
    unless it was given to the run, or heard from a model already.
    """

    def __init__(self, names: Names, end: Callable[[], object]) -> None:
        """Begin a turn whose tools are told apart by these names.

        `end` is called when a message of the state calls a tool that ends the turn.
        """
        self._end = end
        self._names = names
        self._speeches: dict[UUID, Speech] = {}
        self._floor: UUID | None = None
        self._waiting: dict[UUID, list[Heard]] = {}
        self._left: list[BaseMessage] = []
        self._given: frozenset[str | None] = frozenset()
        self._told: dict[str | None, str] = {}
        self._texts: set[str] = set()
        self._calls: set[str] = set()
        self._running: set[str] = set()
        self._waited_for: dict[str | None, ToolCall] = {}
        self._limit: str | None = None
        self._length = 0
        self.last: AIMessage | None = None
        """What the model call said that was the last to end."""

    def know(self, given: Sequence[BaseMessage]) -> None:
        """Know what the run is given: it is not told when it is seen again.

        A call in it that was waited for (an approval) may run in this turn.
        """
        self._given = frozenset(message.id for message in given if message.id)
        calls = (call for each in given if isinstance(each, AIMessage) for call in each.tool_calls)
        self._waited_for = {call["id"]: call for call in calls}

    def hear(self, heard: Iterable[Heard]) -> Iterator[AgentEvent]:
        """Tell what was heard of model calls."""
        for each in heard:
            if each.is_end and each.message:
                self.last = each.message
            if not each.is_spoken:
                yield from self._overhear(each)
            elif self._floor in (None, each.run_id):
                yield from self._take(each)
            else:
                self._waiting.setdefault(each.run_id, []).append(each)

    def see(self, update: Any) -> Iterator[AgentEvent]:
        """Tell what a node left in the state: `{"messages": …}`, several of them, or messages."""
        self._left += _messages_of(update)
        yield from self._look()

    def answer(self, text: str) -> Iterator[AgentEvent]:
        """Tell the text that the user's own function found, unless it was told."""
        yield from self._release()
        if text not in self._texts:
            yield text

    def end(self, limit: str | None = None) -> Iterator[AgentEvent]:
        """End the turn, by a limit of the framework or of the last model call."""
        yield from self._release()
        if reason := limit or self._limit:
            yield Finish(reason)

    def _take(self, heard: Heard) -> Iterator[AgentEvent]:
        self._floor = heard.run_id
        speech = self._speeches.setdefault(heard.run_id, Speech(self._names))
        if heard.message is not None:
            take = speech.end if heard.is_end else speech.add
            yield from self._tell(take(heard.message), speech)
        if heard.is_end:
            yield from self._count(heard)
            del self._speeches[heard.run_id]
            self._note(speech)
            yield from self._release()

    def _overhear(self, heard: Heard) -> Iterator[AgentEvent]:
        """Tell of a call that does not speak only what ends the turn."""
        yield from self._count(heard)
        if heard.is_end and heard.message:
            yield from self._tell(Speech(self._names).end(heard.message, only_calls=True))

    def _release(self) -> Iterator[AgentEvent]:
        """Let those speak who had to wait, up to one that has not ended."""
        self._floor = None
        waiting, self._waiting = self._waiting, {}
        for heard in waiting.values():
            yield from self.hear(heard)
        yield from self._look()

    def _look(self) -> Iterator[AgentEvent]:
        while self._left and self._floor is None:
            message = self._left.pop(0)
            if message.id in self._given:
                continue
            if isinstance(message, ToolMessage):
                yield from self._finish(message)
            elif isinstance(message, AIMessage):
                yield from self._whole(message)

    def _note(self, speech: Speech) -> None:
        self._limit = speech.limit
        self._told |= dict.fromkeys(speech.ids, speech.text)
        self._texts |= {speech.text} - {""}

    def _count(self, heard: Heard) -> Iterator[AgentEvent]:
        if heard.is_end and heard.message and (usage := usage_of(heard.message)):
            yield usage

    def _whole(self, message: AIMessage) -> Iterator[AgentEvent]:
        text = message.text
        told = self._told.get(message.id)
        if told is None and text not in self._texts:
            speech = Speech(self._names)
            yield from self._tell(speech.end(message), speech)
            self._note(speech)
            if any(call["name"] in self._names.ending for call in message.tool_calls):
                self._end()
        elif told is not None and text.startswith(told):  # a node gave it more text
            yield from self._tell([text[len(told) :]] if text != told else [])
            self._told[message.id] = text

    def _finish(self, message: ToolMessage) -> Iterator[AgentEvent]:
        call_id = message.tool_call_id
        waited_for = self._waited_for.get(call_id)
        if waited_for is not None and waited_for["name"] not in self._names.client:
            arguments = json.dumps(waited_for["args"], ensure_ascii=False)
            yield from self._tell([ToolStarted(call_id, waited_for["name"], arguments)])
        if call_id in self._running:
            self._running.discard(call_id)
            if message.status == "error":
                yield ToolFinished(call_id, error="The tool failed.")
            else:
                yield ToolFinished(call_id, message.text)

    def _tell(
        self, events: Iterable[AgentEvent], speech: Speech | None = None
    ) -> Iterator[AgentEvent]:
        """Pass events on, calls once each, and annotations where the text is in what was told."""
        for event in events:
            match event:
                case str():
                    self._length += len(event)
                case Annotation(annotation) if speech is not None:
                    yield replace(
                        event, annotation=_moved(annotation, self._length - speech.length)
                    )
                    continue
                case ToolStarted(call_id=call_id) | FunctionCall(call_id=str(call_id)):
                    if call_id in self._calls:
                        continue
                    self._calls.add(call_id)
                    self._running |= {call_id} if isinstance(event, ToolStarted) else set()
                case FunctionCallDelta(call_id=call_id):
                    self._calls.add(call_id)
            if isinstance(event, _ENDING_TEXT):
                self._length = 0
            yield event


_ENDING_TEXT = (FunctionCall, FunctionCallDelta, OutputItem, ReasoningDelta, RefusalDelta)


def _moved(annotation: Any, by: int) -> dict[str, Any]:
    places = {name: max(0, annotation[name] + by) for name in ("start_index", "end_index")}
    return {**annotation, **places}


def _messages_of(update: Any) -> Iterator[BaseMessage]:
    if isinstance(update, BaseMessage):
        yield update
    elif isinstance(update, list | tuple):
        for each in update:
            yield from _messages_of(each)
    elif isinstance(update, dict) and update.get("messages"):
        messages = update["messages"]
        try:
            yield from convert_to_messages(messages if isinstance(messages, list) else [messages])
        except (NotImplementedError, TypeError, ValueError):  # a state that keeps something else
            yield from _messages_of(messages)
