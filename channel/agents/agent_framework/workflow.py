"""Workflows of Microsoft Agent Framework, unmodified: graphs, and workflow functions."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final

from agent_framework import (
    InMemoryCheckpointStorage,
    WorkflowCheckpoint,
    WorkflowCheckpointException,
    WorkflowConvergenceException,
    WorkflowEvent,
)
from msgspec import Struct

from channel.agent import Agent, AgentEvent, Finish, KeptState, Turn, TurnError, accepts
from channel.agents.agent_framework.binding import bind
from channel.agents.agent_framework.checkpoints import (
    Kept,
    allowed_names,
    checkpoint_bytes,
    declared_types,
    kept_before,
    packed,
    read_checkpoint,
    state_of,
    unpacked,
)
from channel.agents.agent_framework.copies import agents_in, maker_of
from channel.agents.agent_framework.endings import FILTERED, INCOMPLETE, watch
from channel.agents.agent_framework.inputs import message_of, tools_for
from channel.agents.agent_framework.options import safe_tools, taken_name
from channel.agents.agent_framework.outputs import Outputs, updates_of
from channel.agents.agent_framework.requests import (
    Pending,
    answers_to,
    asked,
    calls_of,
    require_answerable,
)
from channel.agents.agent_framework.room import require_room
from channel.agents.agent_framework.seen import mark_of, news, text_in
from channel.agents.own_task import in_own_task
from channel.agents.provider_errors import turn_error_of
from channel.agents.reading import client_tools
from channel.responses.protocol.items import Item


_NO_REPLAY: Final = "Cannot checkpoint @step calls"
_A_CLASS: Final = re.compile(r"type '([\w.:<>]+)'")
_LOG: Final = logging.getLogger(__name__)


class CheckpointError(Exception):
    """The state of a workflow could not be captured: it would be lost, so the turn has failed."""


class _Run(Struct, frozen=True):
    """One run of a workflow that is the turn's own.

    `pending` is what the workflow waits for, `answers` what it is told of that, and `asks` what it asks
    for in this run. `storage` is where its checkpoints go, where it keeps any.
    """

    turn: Turn
    workflow: Any
    arguments: dict[str, Any]
    clients: frozenset[str]
    outputs: Outputs
    storage: "_LatestCheckpoint | None"
    answers: Mapping[str, Any]
    asks: dict[str, WorkflowEvent[Any]]


class _Before(Struct, frozen=True):
    """What the turn goes on from."""

    kept: Kept
    checkpoint: WorkflowCheckpoint
    news: list[Item]


class _Input(Struct, frozen=True):
    """What a run begins with: arguments, and what the workflow waits for, with the answers."""

    workflow: Any
    arguments: dict[str, Any]
    pending: Pending = {}
    answers: Mapping[str, Any] = {}


def adapt_workflow(
    target: Any,
    fresh: Callable[[], Any] | None = None,
    *,
    keeps_state: bool = True,
    allowed_types: Iterable[type | str] = (),
) -> Agent:
    """Return a workflow, or a function that builds it, as an agent: each turn runs one of its own.

    The state that a turn leaves (the framework's checkpoint) is kept with its response, in place of any
    storage that the workflow was built with. The turn that continues the response goes on from there,
    with what is new since; where some of what it has seen is no more in the history, it begins anew, with
    the history that is there. Without `keeps_state` every turn begins anew, with the whole history where
    the start executor takes messages, and a storage of the workflow's own is written and never read.

    `allowed_types` are classes whose objects a state may hold, besides those that the handlers of the
    workflow declare, and those registered by `agent_framework.register_checkpoint_type`.

    Raises `TypeError` for a workflow that turns would share.
    """
    if fresh is None and not hasattr(target, "run") and callable(target):
        target, fresh = target(), target
    build = maker_of(target, fresh)
    allowed = allowed_names([*allowed_types, *declared_types(target)])

    def make() -> Any:
        workflow = build()
        watch(workflow)
        return workflow

    async def run(turn: Turn) -> AsyncGenerator[AgentEvent, None]:
        # A turn without an id is one of the host's own, which makes a summary: nothing is kept of it.
        is_kept = keeps_state and bool(turn.response_id)
        kept = kept_before(turn) if is_kept else None
        begun = await _begun(
            make, turn, kept, _LatestCheckpoint() if keeps_state else None, allowed
        )
        said: list[str] = []
        reason: str | None = None
        state: Kept | None = None
        try:
            async with aclosing(_told(begun)) as events:
                async for event in events:
                    said.append(text_in(event))
                    yield event
            require_answerable(begun.asks, begun.clients, is_kept=is_kept)
            reason = INCOMPLETE.get(begun.outputs.finish_reason or "")
            state = await _state(begun, "".join(said), allowed) if is_kept else None
        except WorkflowConvergenceException:
            reason = "max_output_tokens"
        except FILTERED:
            reason = "content_filter"
        except Exception as error:
            known = taken_name(error, client_tools(turn)) or turn_error_of(error)
            raise (known or error) from error
        if is_kept:
            # Also where there is nothing to go on from: the next turn must not go on from an older one.
            yield KeptState(state_of(state))
        if reason is not None:
            yield Finish(reason)

    return accepts()(in_own_task(run))


async def _begun(
    make: Callable[[], Any],
    turn: Turn,
    kept: Kept | None,
    storage: "_LatestCheckpoint | None",
    allowed: frozenset[str],
) -> _Run:
    """Return a run of a new workflow, ready to begin; raises `TurnError` for what it does not take."""
    workflow = make()
    agents = agents_in(workflow)
    tools = tools_for(turn, workflow, agents)
    before = await _read(kept, turn, workflow, allowed) if kept else None
    if before and storage:
        given = await _continued(make, workflow, turn, before, storage)
    else:
        answers_to({}, turn.input)
        given = _Input(workflow, {"message": message_of(turn, workflow, turn.items)})
    clients = frozenset(tool.name for tool in client_tools(turn))
    safe = {name for agent in agents for name in safe_tools(agent)}
    outputs = Outputs(clients, safe, calls_of(given.pending))
    arguments = {**given.arguments, **tools}
    return _Run(turn, given.workflow, arguments, clients, outputs, storage, given.answers, {})


async def _continued(
    make: Callable[[], Any],
    workflow: Any,
    turn: Turn,
    before: _Before,
    storage: "_LatestCheckpoint",
) -> _Input:
    """Return what a run begins with that goes on from a checkpoint."""
    checkpoint = before.checkpoint
    await storage.begin_with(checkpoint)
    pending, items = checkpoint.pending_request_info_events, before.news
    if pending:
        # A workflow function runs again from its beginning, and is told all that it was told before.
        answers = {**before.kept.answers, **answers_to(pending, items)}
        arguments = {"responses": answers, "checkpoint_id": checkpoint.checkpoint_id}
        return _Input(workflow, arguments, pending, answers)
    answers_to({}, turn.input)
    if not await _restored(workflow, checkpoint, storage):
        workflow, items = make(), turn.items
    return _Input(workflow, {"message": message_of(turn, workflow, items)})


async def _read(kept: Kept, turn: Turn, workflow: Any, allowed: frozenset[str]) -> _Before | None:
    """Return the checkpoint that was kept; None where this workflow cannot go on from it.

    It must not where it remembers what is no more in the history.
    """
    if (since := news(turn, kept.seen)) is None:
        return None
    try:
        data = await asyncio.to_thread(unpacked, kept.checkpoint)
        checkpoint = await asyncio.to_thread(read_checkpoint, data, allowed)
    except WorkflowCheckpointException as error:
        _LOG.warning(
            "the checkpoint of a workflow cannot be read, and it begins anew: %s", _class_in(error)
        )
        return None
    if checkpoint.graph_signature_hash != workflow.graph_signature_hash:
        _LOG.warning("a workflow has changed since its checkpoint was kept, and begins anew")
        return None
    return _Before(kept, checkpoint, since)


async def _restored(
    workflow: Any, checkpoint: WorkflowCheckpoint, storage: "_LatestCheckpoint"
) -> bool:
    """Return whether the workflow is in the state of the checkpoint now."""
    events = 0
    try:
        restoring = workflow.run(
            stream=True, checkpoint_id=checkpoint.checkpoint_id, checkpoint_storage=storage
        )
        async with restoring as stream:
            async for _ in stream:
                events += 1
    except WorkflowCheckpointException:
        _LOG.warning("the checkpoint of a workflow cannot be restored, and it begins anew")
        return False
    if not events:
        _LOG.warning("restoring the checkpoint of a workflow yielded nothing")
    return True


async def _told(run: _Run) -> AsyncGenerator[AgentEvent, None]:
    """Run the workflow, and tell what it says."""
    async with AsyncExitStack() as stack:
        for agent in agents_in(run.workflow):
            for provider in getattr(agent, "context_providers", None) or ():
                await bind(stack, provider, run.turn)
        events = await stack.enter_async_context(aclosing(_events(run)))
        async for event in events:
            if event.type == "request_info":
                run.asks[event.request_id] = event
            for said in _said(event, run.outputs, run.clients):
                yield said
    for said in run.outputs.end():
        yield said


async def _events(run: _Run) -> AsyncGenerator[WorkflowEvent[Any], None]:
    storage, arguments = run.storage, run.arguments
    if storage is not None:
        arguments = {**arguments, "checkpoint_storage": storage}
    # What a workflow function raises may come from any part of it.
    has_begun = not (run.answers and hasattr(run.workflow, "executors"))
    try:
        async with run.workflow.run(stream=True, **arguments) as stream:
            async for event in stream:
                has_begun = has_begun or event.type == "superstep_started"
                if storage is not None and event.type == "superstep_completed":
                    storage.require(event.iteration)
                yield event
    except (TypeError, ValueError) as error:
        if str(error).startswith(_NO_REPLAY):
            _LOG.error(
                "the steps of a workflow function cannot be replayed, so it keeps no state: give them a "
                "replay_key, or write adapt_workflow(..., keeps_state=False)"
            )
            raise CheckpointError from error
        if has_begun:
            raise
        msg = "An answer does not have the form that the workflow asked for."
        raise TurnError(msg, code="invalid_value", status=400, param="input") from error


def _said(
    event: WorkflowEvent[Any], outputs: Outputs, clients: frozenset[str]
) -> Iterator[AgentEvent]:
    match event.type:
        case "output":
            yield from outputs.say(event.executor_id or "", updates_of(event.data))
        case "request_info":
            question = asked(event, clients)
            if question.contents[0].type == "text":
                yield from outputs.done(event.source_executor_id)
            yield from outputs.say(event.source_executor_id, [question])
        case "executor_completed" | "executor_failed":
            yield from outputs.done(event.executor_id or "")


async def _state(run: _Run, said: str, allowed: frozenset[str]) -> Kept | None:
    """Return what the turn keeps; raises `CheckpointError`, and `TurnError` where it is too much."""
    checkpoint = run.storage.latest if run.storage else None
    is_graph = hasattr(run.workflow, "executors")
    # A workflow function has no state but while it waits.
    if checkpoint is None or not (is_graph or checkpoint.pending_request_info_events):
        return None
    try:
        data = await asyncio.to_thread(checkpoint_bytes, checkpoint, allowed)
    except WorkflowCheckpointException as error:
        # Without its text, which may hold what the state holds.
        _LOG.error(
            "the state of a workflow cannot be kept: %s; a class can be registered with "
            "agent_framework.register_checkpoint_type",
            _class_in(error),
        )
        raise CheckpointError from error
    text = await asyncio.to_thread(packed, data)
    require_room(len(text) * 3 // 4)  # it is base64
    return Kept(text, mark_of(run.turn, said), {} if is_graph else run.answers)


def _class_in(error: WorkflowCheckpointException) -> str:
    """Return the class that the framework names, or what caused the error: nothing that a state holds."""
    named = _A_CLASS.search(str(error))
    return named[1] if named else type(error.__cause__ or error).__name__


class _LatestCheckpoint(InMemoryCheckpointStorage):
    """The checkpoints of one run: the one that it goes on from, and the last that it made."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: WorkflowCheckpoint | None = None

    async def begin_with(self, checkpoint: WorkflowCheckpoint) -> None:
        """Have the checkpoint that the run goes on from."""
        await super().save(checkpoint)

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        """Keep the checkpoint instead of the one before: nothing runs between the last and its reading."""
        self.latest = checkpoint
        return checkpoint.checkpoint_id

    def require(self, iteration: int | None) -> None:
        """Raise `CheckpointError` where this step left no checkpoint: the framework only logs that."""
        if self.latest is None or self.latest.iteration_count != iteration:
            raise CheckpointError
