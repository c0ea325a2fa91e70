"""What a workflow of Agent Framework says: the outputs of its executors as agent events, one executor at a time. Pure."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from agent_framework import (
    AgentExecutorResponse,
    AgentResponse,
    AgentResponseUpdate,
    Content,
    Message,
)

from channel.agent import (
    AgentEvent,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    ToolStarted,
)
from channel.agents.agent_framework.telling import Telling


_Updates = list[AgentResponseUpdate]
_PARTING = (FunctionCall, FunctionCallDelta, OutputItem, ReasoningDelta, ToolStarted)
"""What parts text by itself: what follows is a message of its own."""


class Outputs:
    """The outputs of one run.

    What another executor says meanwhile waits for the one that speaks to be done. Texts of two
    executors, or of two invocations of one, are parted by a blank line.
    """

    def __init__(
        self,
        clients: Collection[str],
        safe: Collection[str],
        resumed: Mapping[str, Collection[Content]],
    ) -> None:
        """Take the client's functions, the tools that run without asking, and the calls that go on.

        Those are by the executor whose calls they are.
        """
        self._clients = clients
        self._safe = safe
        self._resumed = resumed
        self._speaker: str | None = None
        self._telling: Telling | None = None
        self._waiting: dict[str, _Updates] = {}
        self._done: set[str] = set()
        self._has_said = False
        self._is_after_text = False
        self.finish_reason: str | None = None
        """Why the model stopped that spoke last."""

    def say(self, executor_id: str, updates: Sequence[AgentResponseUpdate]) -> Iterator[AgentEvent]:
        """Take what an executor says."""
        if self._speaker not in (None, executor_id):
            self._waiting.setdefault(executor_id, []).extend(updates)
            return
        self._speaker = executor_id
        for update in updates:
            yield from self._told(update)

    def done(self, executor_id: str) -> Iterator[AgentEvent]:
        """Note that an executor has done what it was invoked for."""
        if executor_id in self._waiting:
            self._done.add(executor_id)
        if executor_id == self._speaker:
            yield from self._next()

    def end(self) -> Iterator[AgentEvent]:
        """Finish what is open, and say what waits."""
        while self._speaker is not None:
            yield from self._next()

    def _next(self) -> Iterator[AgentEvent]:
        """End the block of the speaker, and let those speak who waited and are done."""
        while True:
            if self._telling is not None:
                yield from self._telling.end()
                self.finish_reason = self._telling.finish_reason
            self._speaker = self._telling = None
            if not self._waiting:
                return
            executor_id = next(iter(self._waiting))
            yield from self.say(executor_id, self._waiting.pop(executor_id))
            if executor_id not in self._done:
                return
            self._done.remove(executor_id)

    def _told(self, update: AgentResponseUpdate) -> Iterator[AgentEvent]:
        if self._telling is None:
            self._telling = Telling(self._clients, self._safe)
            self._telling.resume(self._resumed.get(self._speaker or "", ()))
            self._has_said = False
        for event in self._telling.take(update):
            yield from self._parted(event)

    def _parted(self, event: AgentEvent) -> Iterator[AgentEvent]:
        if isinstance(event, str) and event:
            if self._is_after_text and not self._has_said:
                yield "\n\n"
            self._is_after_text = self._has_said = True
        elif isinstance(event, _PARTING):
            self._is_after_text = False
        yield event


def updates_of(data: Any) -> _Updates:  # noqa: PLR0911 - one case for each kind of output
    """Return an output as updates: those and messages of the framework as they are, and text.

    A text is itself, None is nothing, and any other value is its JSON, or else its `str`.
    """
    match data:
        case None:
            return []
        case AgentResponseUpdate():
            return [data]
        case AgentExecutorResponse():
            return updates_of(data.agent_response)
        case AgentResponse():
            return [*data.to_updates()]
        case Message():
            return [AgentResponseUpdate(contents=data.contents, role=data.role)]
        case Content():
            return [AgentResponseUpdate(contents=[data], role="assistant")]
        case [Message() | Content() | AgentResponse() | AgentExecutorResponse(), *_]:
            return [update for each in data for update in updates_of(each)]
        case _:
            text = Content.from_text(text_of(data))
            return [AgentResponseUpdate(contents=[text], role="assistant")]


def text_of(data: Any) -> str:
    """Return a value as text: a text as it is, another as its JSON, or else its `str`."""
    if isinstance(data, str):
        return data
    if isinstance(data, Content):
        return data.text or ""
    dump = getattr(data, "model_dump_json", None)  # pydantic's
    if callable(dump):
        return str(dump())
    try:
        return msgspec.json.encode(data).decode()
    except (TypeError, ValueError, RecursionError):
        return str(data)
