"""Function calls while Agent Framework streams them: a client's go out in pieces, the agent's own are noted."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec
from agent_framework import Content

from channel.agent import AgentEvent, FunctionCall, FunctionCallDelta, ToolFinished, ToolStarted


FAILED: Final = "The tool failed."


class CallError(Exception):
    """The framework streamed a call that cannot be told: the agent's failure, never shown."""


class Call:
    """One function call; `arguments` is its JSON text so far."""

    __slots__ = ("arguments", "content", "is_client", "is_sent", "is_service", "is_told", "key")

    def __init__(self, content: Content, key: str, *, is_client: bool) -> None:
        self.content = content
        self.key = key
        self.is_client = is_client
        self.is_service = content.informational_only or bool(content.hosted)
        self.arguments = ""
        self.is_told = False  # its first piece went out, or its tool was told to have started
        self.is_sent = False  # it is closed: nothing can follow

    @property
    def name(self) -> str:
        return self.content.name or ""

    def whole(self) -> Content:
        """Return the call as a history holds it; one that a client answers is marked as such."""
        whole = Content.from_function_call(
            self.key, self.name, arguments=self.arguments or "{}", id=self.content.id
        )
        whole.user_input_request = self.is_client or None
        return whole


class Calls:
    """The calls of one run. Pieces of several may come mixed; they go out one call after another."""

    def __init__(self, clients: Collection[str], safe: Collection[str]) -> None:
        """Take the names of the client's functions, and of the tools that run without asking first."""
        self._clients = clients
        self._safe = safe
        self._open: dict[str, Call] = {}
        self._last = ""
        self._streaming: Call | None = None
        self._activities: set[str] = set()

    @property
    def unanswered(self) -> list[Call]:
        """The calls of the last model turn that this side or the client's has not answered."""
        return [call for call in self._open.values() if not call.is_service]

    def is_of_client(self, content: Content) -> bool:
        """Return whether the content belongs to a call of a client's function."""
        call = self._open.get(self._key(content))
        return call.is_client if call else content.name in self._clients

    def take(self, content: Content, *, replaces: bool) -> Iterator[AgentEvent]:
        """Take a piece of a call, or the whole of it."""
        key = self._last = self._key(content)
        call = self._open.get(key)
        if call is None:
            call = Call(content, key, is_client=content.name in self._clients)
            self._open[key] = call
        if content.user_input_request and not call.is_client:
            msg = "the agent called a function that somebody else must run, and the client has not"
            raise CallError(msg)
        piece = _piece(call, content, replaces=replaces or content.merge_mode == "replace")
        call.arguments += piece
        if call.is_client:
            yield from self._stream(call, piece)

    def begin_tools(self) -> Iterator[AgentEvent]:
        """Tell that the agent's tools run now, where nothing can keep them from it."""
        calls = self._open.values()
        if all(not call.is_client and call.name in self._safe for call in calls):
            for call in calls:
                yield from self._started(call)

    def settle(self) -> Iterator[AgentEvent]:
        """Finish the calls that others run: something else follows."""
        yield from self._close()
        for call in self._open.values():
            if call.is_client and not call.is_told:
                call.is_told = call.is_sent = True
                yield FunctionCall(call.name, call.arguments or "{}", call.key)
            elif call.is_service:
                yield from self._started(call)

    def result(self, content: Content) -> Iterator[AgentEvent]:
        """Take the result of a call; one whose call nobody saw stays hidden."""
        yield from self.settle()
        call = self._open.pop(content.call_id or "", None)
        if call is None or call.is_client:
            return
        yield from self._started(call)
        failed = FAILED if content.exception is not None else None
        yield ToolFinished(_activity(call), None if failed else str(content.result or ""), failed)

    def resume(self, contents: Collection[Content]) -> None:
        """Know the calls of an earlier turn, whose results may come in this one."""
        for content in contents:
            if content.call_id and content.name not in self._clients:
                call = Call(content, content.call_id, is_client=False)
                call.arguments = arguments_of(content)
                self._open[call.key] = call

    def forget(self) -> None:
        """Begin another model turn: what has no result by now gets none."""
        self._open.clear()

    def _key(self, content: Content) -> str:
        return content.call_id or content.id or self._last

    def _stream(self, call: Call, piece: str) -> Iterator[AgentEvent]:
        if call is self._streaming:
            if piece:
                yield FunctionCallDelta(call.key, piece)
            return
        if call.is_sent:
            if piece:
                msg = "a function call went on after it had ended"
                raise CallError(msg)
            return
        if self._streaming is not None and not _is_json(self._streaming.arguments):
            return  # it waits for its turn
        yield from self._close()
        self._streaming = call
        call.is_told = True
        yield FunctionCallDelta(call.key, call.arguments, call.name)

    def _close(self) -> Iterator[AgentEvent]:
        call, self._streaming = self._streaming, None
        if call is not None:
            call.is_sent = True
            if not call.arguments:
                yield FunctionCallDelta(call.key, "{}")

    def _started(self, call: Call) -> Iterator[AgentEvent]:
        if call.is_told:
            return
        call.is_told = True
        label = call.content.server_name or "agent"
        yield ToolStarted(_activity(call), call.name, call.arguments or "{}", label)


def arguments_of(content: Content) -> str:
    """Return the arguments of a whole call, as JSON text."""
    arguments: Any = content.arguments
    if isinstance(arguments, Mapping):
        return msgspec.json.encode(arguments).decode()
    return arguments or ""


def extension(said: str, text: str) -> str | None:
    """Return what a text that replaces another adds to it; None where it takes something back.

    A text may also be the end of what was said: that of its last part.
    """
    if text.startswith(said):
        return text[len(said) :]
    return "" if said.endswith(text) else None


def _activity(call: Call) -> str:
    """Return an id that is the call's own even where its model uses call ids again."""
    return call.content.id or call.key


def _piece(call: Call, content: Content, *, replaces: bool) -> str:
    text = arguments_of(content)
    if not (replaces or (isinstance(content.arguments, Mapping) and call.arguments)):
        return text
    if not text:
        return ""
    added = extension(call.arguments, text)
    if added is None and call.is_told:
        msg = "the arguments of a function call were taken back after they were sent"
        raise CallError(msg)
    if added is None:
        call.arguments, added = "", text
    return added


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
