"""Graphs that keep the history themselves, by their checkpointer: each turn goes on from a checkpoint.

The place of the last turn is kept with its response (`KeptState`), so that forks go on from their own
past, and failed turns leave nothing. Where the checkpoint is gone, or the host's history holds more than
the graph was given, the graph gets the host's history as a new thread: it is never silently shorter.
"""

from collections.abc import Iterator, Mapping, Sequence
from secrets import token_hex
from typing import Any, Final

import msgspec
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import merge_configs
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.pregel import Pregel
from langgraph.types import Command, StateSnapshot
from msgspec import Struct

from channel.agent import KeptState, Turn
from channel.agents.langgraph.messages import INSTRUCTIONS_ID, TakesUrl, messages_of
from channel.agents.langgraph.pauses import answers_to
from channel.responses.protocol.items import Item, text_of


class Place(Struct, frozen=True):
    """Where a turn ended: its checkpoint, and the last item that it was given."""

    thread_id: str
    checkpoint_id: str
    after: str


class Entry(Struct, frozen=True):
    """Where a run begins, with what: messages, or the answers to what it stopped for."""

    messages: list[BaseMessage]
    """The whole conversation."""
    where: Mapping[str, str] = {}
    resume: Command[Any] | None = None

    @property
    def given(self) -> list[BaseMessage]:
        """The messages as input, after which the state holds no other."""
        is_new = "checkpoint_id" not in self.where
        return self.messages if is_new else [_REMOVE_ALL, *self.messages]


_REMOVE_ALL: Final = RemoveMessage(id=REMOVE_ALL_MESSAGES)

NOWHERE: Final = KeptState({})
"""Kept of a turn that ended where its graph cannot go on: the next one begins with the host's history."""


async def entry_of(
    graph: Pregel[Any, Any, Any, Any], config: RunnableConfig, turn: Turn, takes_url: TakesUrl
) -> Entry:
    """Return where the turn goes on; raises `TurnError` (400) for answers to what was not asked."""
    place = _place_of(turn)
    since = None if place is None else _since(place, turn.history)
    if place is not None and since is not None:
        where = {"thread_id": place.thread_id, "checkpoint_id": place.checkpoint_id}
        at_place = merge_configs(config, {"configurable": where})
        state = await graph.aget_state(at_place, subgraphs=True)
        if "messages" in state.values:
            answers = answers_to(state.interrupts, turn.input)
            known: list[BaseMessage] = state.values["messages"]
            if answers is not None:
                return Entry(known, await _own_copy(graph, state), Command(resume=answers))
            new = messages_of(turn, turn.input, takes_url)
            return Entry(_joined(known, new, since), where)
    answers_to((), turn.input)
    return Entry(messages_of(turn, turn.items, takes_url), {"thread_id": token_hex(16)})


async def _own_copy(graph: Pregel[Any, Any, Any, Any], state: StateSnapshot) -> dict[str, str]:
    """Return a copy, in a thread of its own, of the checkpoint where a graph stopped.

    A graph keeps the answer with the checkpoint, for all who go on from there; another turn may go on
    from there with another answer.
    """
    saver: Any = graph.checkpointer
    thread_id = token_hex(16)
    place: dict[str, str] = {}
    for snapshot in _with_nested(state):
        found = await saver.aget_tuple(snapshot.config)
        space = found.config["configurable"].get("checkpoint_ns", "")
        target: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": space}}
        versions = found.checkpoint["channel_versions"]
        saved = await saver.aput(target, found.checkpoint, found.metadata, versions)
        writes: dict[str, list[tuple[str, Any]]] = {}
        for task_id, channel, value in found.pending_writes or ():
            writes.setdefault(task_id, []).append((channel, value))
        for task_id, written in writes.items():
            await saver.aput_writes(saved, written, task_id)
        place = saved["configurable"]
    return {name: place[name] for name in ("thread_id", "checkpoint_id")}


def _with_nested(state: StateSnapshot) -> Iterator[StateSnapshot]:
    """Return the states of the subgraphs that have not ended, and then the state."""
    for task in state.tasks:
        if isinstance(task.state, StateSnapshot):
            yield from _with_nested(task.state)
    yield state


def place_of(turn: Turn, checkpoint: Mapping[str, Any]) -> KeptState:
    """Return what is kept of a turn that ended at this checkpoint, so that the next one goes on there."""
    after = turn.input[-1].get("id") if turn.input else None
    place = Place(checkpoint["thread_id"], checkpoint["checkpoint_id"], after or "")
    return KeptState(msgspec.to_builtins(place))


def _joined(
    known: Sequence[BaseMessage], new: Sequence[BaseMessage], since: Sequence[Item]
) -> list[BaseMessage]:
    """Return the whole conversation: the turn's instructions, what the graph knows, what is new."""
    outputs = {each.tool_call_id for each in (*known, *new) if isinstance(each, ToolMessage)}
    said = "".join(text_of(item) for item in since if item.get("type") == "message")
    past = [_settled(each, outputs, said) for each in known if each.id != INSTRUCTIONS_ID]
    return [
        *(each for each in new if each.id == INSTRUCTIONS_ID),
        *(each for each in past if each.content or getattr(each, "tool_calls", None)),
        *(each for each in new if each.id != INSTRUCTIONS_ID),
    ]


def _place_of(turn: Turn) -> Place | None:
    try:
        return msgspec.convert(turn.state, Place)
    except msgspec.ValidationError:
        return None


def _since(place: Place, history: Sequence[Item]) -> list[Item] | None:
    """Return what was said since the place, or None where the graph was not given all before."""
    ids = [item.get("id") for item in history]
    if place.after not in ids:
        return None
    since = [*history[ids.index(place.after) + 1 :]]
    return None if any(_is_given(item) for item in since) else since


def _is_given(item: Item) -> bool:
    is_message = item.get("type") == "message" and item.get("role") != "assistant"
    return is_message or item.get("type") in ("function_call_output", "mcp_approval_response")


_CALLS: Final = frozenset({"function_call", "tool_call", "tool_use"})


def _settled(message: BaseMessage, outputs: set[str], said: str) -> BaseMessage:
    """Return the message without calls that nobody answered, which models refuse."""
    if not isinstance(message, AIMessage) or not (message.tool_calls or message.invalid_tool_calls):
        return message
    calls = [call for call in message.tool_calls if call["id"] in outputs]
    if len(calls) == len(message.tool_calls) and not message.invalid_tool_calls:
        return message
    content: Any = message.content
    if isinstance(content, list):
        content = [block for block in content if not _is_open_call(block, outputs)]
    # A call may have been the answer itself: the host has it as text.
    update = {
        "content": content or ("" if calls else said),
        "tool_calls": calls,
        "invalid_tool_calls": [],
        "additional_kwargs": {
            name: value for name, value in message.additional_kwargs.items() if name != "tool_calls"
        },
    }
    return message.model_copy(update=update)


def _is_open_call(block: Any, outputs: set[str]) -> bool:
    is_call = isinstance(block, dict) and block.get("type") in _CALLS
    return is_call and (block.get("call_id") or block.get("id")) not in outputs
