"""Calls of the client's tools while they grow: one after the other, whatever the model's stream does."""

from collections.abc import Iterator

import msgspec

from channel.agent import AgentEvent, FunctionCallDelta


class _Call:
    """A call: its arguments as they came, and those that were told; it grows until it is left."""

    __slots__ = ("arguments", "call_id", "is_left", "told")

    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.arguments = ""
        self.told = ""
        self.is_left = False

    @property
    def is_whole(self) -> bool:
        try:
            msgspec.json.decode(self.told)
        except msgspec.DecodeError:
            return False
        return True


class GrowingCalls:
    """Puts the events of calls into the order that clients need.

    A call that something else follows cannot grow any more, so what a model says in between waits
    until the call is whole. `index` is a call's place in the model's response.
    """

    def __init__(self) -> None:
        """Begin without a call."""
        self._growing: dict[int, _Call] = {}
        self._begun: set[str] = set()
        self._open: _Call | None = None
        self._waiting: list[tuple[_Call | None, AgentEvent | None]] = []

    def has_told(self, call_id: str) -> bool:
        """Return whether the call was begun."""
        return call_id in self._begun

    def begin(self, index: int, call_id: str, name: str) -> Iterator[AgentEvent]:
        """Begin a call."""
        call = self._growing[index] = _Call(call_id)
        self._begun.add(call_id)
        yield from self._put(call, FunctionCallDelta(call_id, name=name))

    def grow(self, index: int, arguments: str) -> Iterator[AgentEvent]:
        """Append to the arguments of a call; of no call of the client's, it is nothing."""
        call = self._growing.get(index)
        if call is not None and arguments:
            call.arguments += arguments
            yield from self._put(call, FunctionCallDelta(call.call_id, arguments))

    def end(self, index: int, arguments: str) -> Iterator[AgentEvent]:
        """End a call, whose arguments are these in all."""
        call = self._growing.get(index)
        if call is None:
            return
        whole = arguments or call.arguments or "{}"
        if whole.startswith(call.arguments):
            yield from self.grow(index, whole[len(call.arguments) :])
        del self._growing[index]
        yield from self._put(call, None)

    def pass_by(self, event: AgentEvent) -> Iterator[AgentEvent]:
        """Say something else, as soon as no call is in the way."""
        yield from self._put(None, event)

    def _put(self, call: _Call | None, event: AgentEvent | None) -> Iterator[AgentEvent]:
        """Put an event of the call (of none: of something else), or the call's end, into the order."""
        self._waiting.append((call, event))
        is_moving = True
        while is_moving:
            is_moving = False
            waiting, self._waiting = self._waiting, []
            for each, its_event in waiting:
                if self._open in (None, each) or (self._open is not None and self._open.is_whole):
                    is_moving = True
                    yield from self._say(each, its_event)
                else:
                    self._waiting.append((each, its_event))

    def _say(self, call: _Call | None, event: AgentEvent | None) -> Iterator[AgentEvent]:
        if event is None:
            if self._open is call:
                self._open = None
            return
        if call is not None and call.is_left:
            return  # white space after the arguments
        if self._open is not None and self._open is not call:
            self._open.is_left = True
        self._open = call
        if call is not None and isinstance(event, FunctionCallDelta):
            call.told += event.arguments
        yield event
