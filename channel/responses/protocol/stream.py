"""`ResponseStream`: the one state machine, agent events in, stream events out.

The order, the numbers and the names of everything that a client sees while a response grows are
decided in this file, and nothing else counts anything:

    IN_PROGRESS ──settle──▶ COMPLETED │ INCOMPLETE │ FAILED │ CANCELLED ──end──▶ (ended)
                                └─────────┴──────────┴──────────┴─ settle(FAILED): what came
                                   after (a hook, the storage) failed, and it is not told yet

Between `start` and `settle` the output grows item by item. At most one item of the model's own is
open at a time (a message, a reasoning item or a function call); whatever begins another one closes
it. Tools that the agent runs itself overlap freely and are closed by their end, or by `settle`.
An open item is a small object of `open_items`, which knows its events in the order the API gives them.
"""

from collections.abc import Mapping
from itertools import count
from types import MappingProxyType
from typing import Any, Final

import msgspec

from channel.responses.protocol import events as ev, ids
from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.items import Item
from channel.responses.protocol.open_items import Activity, Call, Message, Reasoning
from channel.responses.protocol.response import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseFailure,
    ResponseUsage,
    Status,
)
from channel.responses.protocol.said import AgentEventError, encodable, plain_object


_NO_USAGE: Final = ResponseUsage()
_OUTCOMES = frozenset({Status.COMPLETED, Status.INCOMPLETE, Status.FAILED, Status.CANCELLED})
_UNSAVED = frozenset({Status.FAILED})

TRANSITIONS: Final[Mapping[Status, frozenset[Status]]] = MappingProxyType(
    {
        Status.QUEUED: frozenset({Status.IN_PROGRESS, Status.FAILED, Status.CANCELLED}),
        Status.IN_PROGRESS: _OUTCOMES,
        # Settled, but not yet told: when a hook or the storage fails now, the response has failed.
        Status.COMPLETED: _UNSAVED,
        Status.INCOMPLETE: _UNSAVED,
        Status.CANCELLED: _UNSAVED,
        Status.FAILED: _UNSAVED,
    }
)

_TERMINAL_EVENT: Final[Mapping[Status, type[ev.Lifecycle]]] = MappingProxyType(
    {
        Status.COMPLETED: ev.ResponseCompleted,
        Status.INCOMPLETE: ev.ResponseIncomplete,
        Status.FAILED: ev.ResponseFailed,
        Status.CANCELLED: ev.ResponseFailed,
    }
)


QUEUED_EVENTS: Final = 2


def queue(response: Response) -> list[StreamEvent]:
    """Return `response.created` and `response.queued`, the first events of a queued response."""
    return [ev.ResponseCreated(0, response), ev.ResponseQueued(1, response)]


def ending(number: int, response: Response) -> StreamEvent:
    """Return the terminal event of a response that has ended, as its event of that number."""
    return _TERMINAL_EVENT[response.status](number, response)


class ToolPolicy(msgspec.Struct, frozen=True, gc=False):
    """Which calls the request permits: of its functions, these names only, and one or many of them.

    Of the agent's own tools no more than `max_activities` appear (None: all of them).
    """

    names: frozenset[str] = frozenset()
    is_parallel: bool = True
    max_activities: int | None = None


class ResponseStream:
    """One response from `start` to `end`; each method returns the stream events it caused.

    `initial` is the resource as created. Items get ids made of `body` and their position, which
    continues the `position` that the turn's input items ended at. With `shows_tools`, tools that
    the agent ran itself appear as `mcp_call` items. Agent events that are illegal where they come
    raise `AgentEventError` and change nothing.
    """

    def __init__(
        self,
        initial: Response,
        *,
        body: str,
        position: int,
        tools: ToolPolicy = ToolPolicy(),  # noqa: B008 - frozen
        shows_tools: bool = False,
    ) -> None:
        """Begin with the resource as created; nothing is emitted yet."""
        self.response = initial
        self.is_settled = False  # the outcome is decided: the agent has no more to say
        self._next = count().__next__  # takes the next sequence number
        self._body = body
        self._position = position
        self._tools = tools
        self._shows_tools = shows_tools
        self._items: list[Item] = []
        self._open: Message | Reasoning | Call | None = None
        self._running: dict[str, Activity] = {}
        self._activities: set[str] = set()
        self._call_ids: set[str] = set()
        self._usage: ResponseUsage | None = None
        self._is_ended = False
        self._started = 2  # the number of the first event after `start`
        self.state: dict[str, Any] | None = None  # what the agent wants back in the next turn
        self.resets = False  # later turns are given nothing of this one and of those before it

    def start(self) -> list[StreamEvent]:
        """Return `response.created` and `response.in_progress`; of a queued one, what follows `queue`."""
        if self.response.status is Status.QUEUED:
            self._next = count(QUEUED_EVENTS).__next__
            self._started = QUEUED_EVENTS + 1
            self.response = msgspec.structs.replace(self.response, status=Status.IN_PROGRESS)
            return [ev.ResponseInProgress(self._next(), self.response)]
        return [
            ev.ResponseCreated(self._next(), self.response),
            ev.ResponseInProgress(self._next(), self.response),
        ]

    def text_delta(self, text: str) -> list[StreamEvent]:
        """Append to the answer's text."""
        message = self._open
        if type(message) is Message and message.kind == "output_text" and type(text) is str:
            # The hot path: one more delta of the text part that is open already.
            plain = text if text.isascii() else encodable(text)
            return [message.text_delta(self._next(), plain)] if plain else []
        return self._message_delta("output_text", text)

    def refusal_delta(self, text: str) -> list[StreamEvent]:
        """Append to a refusal."""
        return self._message_delta("refusal", text)

    def reasoning_delta(
        self, text: str, *, new_part: bool = False, encrypted_content: str | None = None
    ) -> list[StreamEvent]:
        """Append to the reasoning summary; what the model wants back with it ends the item."""
        self._require_unsettled()
        plain = encodable(text)
        encrypted = encodable(encrypted_content or "")
        if not plain and not encrypted:
            return []
        caused: list[StreamEvent] = []
        if not isinstance(self._open, Reasoning) or self._open.encrypted_content:
            caused += self._make_room()
            self._open = Reasoning(*self._place("reasoning"))
            caused += self._open.added(self._next)
        elif new_part:
            caused += self._open.part_done(self._next)
        self._open.encrypted_content = encrypted
        return [*caused, *self._open.delta(self._next, plain)] if plain else caused

    def annotation(self, annotation: Mapping[str, Any]) -> list[StreamEvent]:
        """Annotate the text part that is open, or a new one."""
        self._require_unsettled()
        plain = plain_object(annotation, "an annotation")
        caused: list[StreamEvent] = []
        message = self._open
        if not isinstance(message, Message) or message.kind != "output_text":
            message, caused = self._open_part("output_text")
        return [*caused, message.annotate(self._next, plain)]

    def function_call(
        self, name: str, arguments: str, call_id: str | None = None
    ) -> list[StreamEvent]:
        """Call a client's function, whole."""
        self._require_unsettled()
        call_id = call_id or ids.call_id(self._body, self._position + len(self._items))
        if encodable(call_id) in self._call_ids:
            msg = "a function call needs a call id of its own"
            raise AgentEventError(msg)
        opened = self.function_call_delta(call_id, arguments, name)
        return [*opened, *self._close_open()]

    def function_call_delta(
        self, call_id: str, arguments: str = "", name: str | None = None
    ) -> list[StreamEvent]:
        """Append to a call's arguments; the first delta of a call names its function."""
        self._require_unsettled()
        call_id, plain = encodable(call_id), encodable(arguments)
        caused: list[StreamEvent] = []
        if not isinstance(self._open, Call) or self._open.call_id != call_id:
            if name is None:
                return self._dropped_delta(call_id)
            caused = self._open_call(name, call_id)
        if isinstance(self._open, Call) and plain:
            caused.append(self._open.delta(self._next(), plain))
        return caused

    def tool_started(
        self, call_id: str, name: str, arguments: str, server_label: str
    ) -> list[StreamEvent]:
        """Note that the agent runs a tool of its own; unless it is shown, it only ends what is open."""
        self._require_unsettled()
        if call_id in self._activities:
            msg = "a tool started twice under one call id"
            raise AgentEventError(msg)
        plain = encodable(name), encodable(arguments), encodable(server_label)
        limit = self._tools.max_activities
        is_shown = self._shows_tools and (limit is None or len(self._activities) < limit)
        # What is said after it is not the sentence before it.
        caused = self._make_room() if is_shown else self._close_open()
        self._activities.add(call_id)
        if not is_shown:
            return caused
        activity = self._running[call_id] = Activity(*self._place("mcp_call"), *plain)
        return caused + activity.added(self._next)

    def tool_finished(
        self, call_id: str, output: str | None = None, error: str | None = None
    ) -> list[StreamEvent]:
        """Note that such a tool ended."""
        self._require_unsettled()
        if call_id not in self._activities:
            msg = "a tool finished that had not started"
            raise AgentEventError(msg)
        error = None if error is None else encodable(error)
        output = encodable(output or "") if error is None else None
        activity = self._running.pop(call_id, None)
        if activity is None:
            return []
        return self._item_done(activity, activity.done(self._next, output, error))

    def output_item(self, item: Mapping[str, Any]) -> list[StreamEvent]:
        """Pass a whole item through, with an id and a status where it has none."""
        self._require_unsettled()
        plain = plain_object(item, "an output item")
        item_type = plain.get("type")
        if not isinstance(item_type, str) or not item_type:
            msg = "an output item has no type"
            raise AgentEventError(msg)
        if item_type == "function_call":
            # The same rules as for any call: the request permits it, and it can be answered.
            name, arguments, call_id = (plain.get(k) for k in ("name", "arguments", "call_id"))
            return self.function_call(name or "", arguments or "", call_id)
        if item_type == "function_call_output" and plain.get("call_id") not in self._call_ids:
            msg = "an output item answers a call that this turn did not make"
            raise AgentEventError(msg)
        if item_type == "item_reference":
            msg = "an output item is a reference; it must be the item itself"
            raise AgentEventError(msg)
        if not isinstance(plain.get("id") or "", str):
            msg = "an output item has an id that is no text"
            raise AgentEventError(msg)
        caused = self._make_room()
        index, item_id = self._place(item_type)
        whole = {"id": item_id, **{k: v for k, v in plain.items() if k != "id" or v}}
        if item_type in ("message", "function_call_output"):
            whole.setdefault("status", "completed")
        self._items[index] = whole
        return [
            *caused,
            ev.OutputItemAdded(self._next(), index, whole),
            ev.OutputItemDone(self._next(), index, whole),
        ]

    def usage(
        self,
        *,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> list[StreamEvent]:
        """Add to the tokens used; they appear in the terminal event."""
        self._require_unsettled()
        counts = (input_tokens, output_tokens, cached_tokens, cache_write_tokens, reasoning_tokens)
        if not all(type(count) is int for count in counts):
            msg = "a count of tokens is no integer"
            raise AgentEventError(msg)
        was = self._usage or ResponseUsage()
        total_in = was.input_tokens + input_tokens
        total_out = was.output_tokens + output_tokens
        self._usage = ResponseUsage(
            input_tokens=total_in,
            input_tokens_details=InputTokensDetails(
                was.input_tokens_details.cached_tokens + cached_tokens,
                was.input_tokens_details.cache_write_tokens + cache_write_tokens,
            ),
            output_tokens=total_out,
            output_tokens_details=OutputTokensDetails(
                was.output_tokens_details.reasoning_tokens + reasoning_tokens
            ),
            total_tokens=total_in + total_out,
        )
        return []

    def keep_state(self, state: Mapping[str, Any]) -> list[StreamEvent]:
        """Note what is kept with the response and told to nobody."""
        self._require_unsettled()
        kept = plain_object(state, "a state")
        if not self.resets:  # nobody would get it
            self.state = kept
        return []

    def reset_session(self) -> list[StreamEvent]:
        """Note that this turn ends what was remembered; that is told to nobody."""
        self._require_unsettled()
        self.resets = True
        self.state = None
        return []

    def settle(
        self,
        status: Status,
        *,
        now: int,
        reason: str | None = None,
        failure: ResponseFailure | None = None,
    ) -> list[StreamEvent]:
        """Decide the outcome and close what is open; `response` is then what is to be stored.

        `reason` goes with incomplete, `failure` with failed. A settled response may still be
        settled as failed until `end`: that is how a save that failed is told.
        """
        if self._is_ended or status not in TRANSITIONS[self.response.status]:
            msg = f"a response cannot go from {self.response.status} to {status}"
            raise AgentEventError(msg)
        finished = status is Status.COMPLETED
        caused = self._close_open(finished=finished)
        for activity in self._running.values():
            caused += self._item_done(activity, activity.done(self._next, None, None))
        self._running.clear()
        answered = status in (Status.COMPLETED, Status.INCOMPLETE)
        was_settled, self.is_settled = self.is_settled, True
        self.response = msgspec.structs.replace(
            self.response,
            status=status,
            # A second settling is of a response that a hook may have changed.
            output=self.response.output if was_settled else [*self._items],
            completed_at=now if finished else None,
            incomplete_details=IncompleteDetails(reason) if reason else None,
            error=failure,
            usage=self._usage or (_NO_USAGE if answered else None),
        )
        return caused

    def acknowledge(self, text: str) -> list[StreamEvent]:
        """Say another text in place of everything since `start`, to who is not to read that.

        What was said is stored by now, and none of its events has been told; the acknowledgement
        takes their numbers. Without a text nothing is said.
        """
        self.renumber(0)
        caused: list[StreamEvent] = []
        output: list[Item] = []
        if text:
            # Its id is no other item's, and leads to nothing that is stored.
            said = Message(0, ids.item_id("message", self._body, ids.MAX_ITEMS - 1))
            caused = said.added(self._next) + said.part_added(self._next, "output_text")
            caused.append(said.delta(self._next(), text))
            caused += said.done(self._next, finished=True)
            output = [said.item]
            caused.append(ev.OutputItemDone(self._next(), 0, said.item))
        self.response = msgspec.structs.replace(self.response, output=output)
        return caused

    def renumber(self, told: int) -> int:
        """Go on as if so many events had been told since `start`; return the number of the next one."""
        first = self._started + told
        self._next = count(first).__next__
        return first

    def end(self) -> list[StreamEvent]:
        """Return the terminal event, which is the last one."""
        if self._is_ended or not self.is_settled:
            msg = "a response ends once, after it was settled"
            raise AgentEventError(msg)
        self._is_ended = True
        return [ending(self._next(), self.response)]

    # What the methods above share.

    def _require_unsettled(self) -> None:
        if self.is_settled:
            msg = "the agent went on after the response was settled"
            raise AgentEventError(msg)

    def _place(self, item_type: str) -> tuple[int, str]:
        """Take the next output index, and the item id that goes with it."""
        index = len(self._items)
        self._items.append({})
        return index, ids.item_id(item_type, self._body, self._position + index)

    def _make_room(self) -> list[StreamEvent]:
        """Close what is open, for another item; raises where the turn can hold no more."""
        if self._position + len(self._items) >= ids.MAX_ITEMS:
            msg = "a turn has too many items"
            raise AgentEventError(msg)
        return self._close_open()

    def _close_open(self, *, finished: bool = True) -> list[StreamEvent]:
        part, self._open = self._open, None
        if part is None:
            return []
        return self._item_done(part, part.done(self._next, finished=finished))

    def _item_done(
        self, opened: Message | Reasoning | Call | Activity, closing: list[StreamEvent]
    ) -> list[StreamEvent]:
        item = self._items[opened.index] = opened.item
        return [*closing, ev.OutputItemDone(self._next(), opened.index, item)]

    def _message_delta(self, kind: str, text: str) -> list[StreamEvent]:
        self._require_unsettled()
        plain = encodable(text)
        if not plain:
            return []
        message, caused = self._open_part(kind)
        return [*caused, message.delta(self._next(), plain)]

    def _open_part(self, kind: str) -> tuple[Message, list[StreamEvent]]:
        message = self._open
        if isinstance(message, Message):
            if message.kind == kind:
                return message, []
            return message, message.part_done(self._next) + message.part_added(self._next, kind)
        caused = self._make_room()
        message = self._open = Message(*self._place("message"))
        return message, caused + message.added(self._next) + message.part_added(self._next, kind)

    def _open_call(self, name: str, call_id: str) -> list[StreamEvent]:
        """Close what is open, and open a call unless one is all that the request permits."""
        if encodable(name) not in self._tools.names:
            msg = "the agent called a function that this request does not permit"
            raise AgentEventError(msg)
        if not call_id or call_id in self._call_ids:
            msg = "a function call needs a call id of its own"
            raise AgentEventError(msg)
        is_one_too_many = bool(self._call_ids) and not self._tools.is_parallel
        caused = self._close_open() if is_one_too_many else self._make_room()
        self._call_ids.add(call_id)
        if is_one_too_many:
            return caused
        call = self._open = Call(*self._place("function_call"), call_id, name)
        return caused + call.added(self._next)

    def _dropped_delta(self, call_id: str) -> list[StreamEvent]:
        """Take a delta of the call that was one too many; of no call at all, it is an error."""
        if call_id in self._call_ids and not self._tools.is_parallel:
            return []
        msg = "a function call delta continued no open call"
        raise AgentEventError(msg)
