"""Whether each model call of an Agent Framework run was heard to its end: middleware for copies of its agents.

A client that loses its model's stream in good HTTP ends its own as if the answer were whole. What tells
the two apart is the reason that the model gives last.
"""

import copy
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Self
from weakref import WeakSet

from agent_framework import (
    ChatContext,
    ChatMiddleware,
    ChatMiddlewareLayer,
    ChatResponseUpdate,
    FunctionExecutor,
    RawAgent,
    ResponseStream,
)
from agent_framework.exceptions import AgentContentFilterException, ChatClientContentFilterException


INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""The reasons of the framework with which an answer is not complete, in the words of the Responses API."""
FILTERED: Final = (AgentContentFilterException, ChatClientContentFilterException)
"""What the framework raises where the model's filter has stopped it."""

_ALWAYS: Final = frozenset({"RawOpenAIChatClient", "RawOpenAIChatCompletionClient"})
"""Clients that give a reason with every answer, by class: Azure's and Foundry's are made of these."""
_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})

# Others are known by what they have done: one of its own, which gives none, goes on to work.
_giving: WeakSet[Any] = WeakSet()


class CutError(Exception):
    """The stream of a model call has ended before its answer had: the agent's failure."""


class Ending(ChatMiddleware):
    """Fails a streamed model call without a reason to end, where its client is one that gives reasons.

    It fails inside of the run, so that nothing goes on from half an answer or keeps it: no tool, no
    provider, no other executor of a workflow.
    """

    async def process(self, context: ChatContext, call_next: Callable[[], Awaitable[None]]) -> None:
        """Watch the stream of a call."""
        await call_next()
        if isinstance(context.result, ResponseStream):
            pull = _Pull(context.client)
            context.result.with_transform_hook(pull.note)
            context.result.with_pull_context_manager(lambda: pull)


def watched(agent: RawAgent[Any]) -> RawAgent[Any]:
    """Return a copy of the agent whose model calls are watched, as far as its client takes middleware."""
    own, middleware = copy.copy(agent), [*(agent.middleware or ())]
    is_watched = any(isinstance(each, Ending) for each in middleware)
    if isinstance(agent.client, ChatMiddlewareLayer) and not is_watched:
        own.middleware = [*middleware, Ending()]
    return own


def watch(workflow: Any) -> None:
    """Give the executors of a workflow, which is one turn's own, copies of their agents that are watched."""
    for executor in getattr(workflow, "executors", {}).values():
        if isinstance(executor, FunctionExecutor):  # which workflows may share
            continue
        for name, value in [*vars(executor).items()]:
            if isinstance(value, RawAgent):
                setattr(executor, name, watched(value))
            elif hasattr(inner := getattr(value, "workflow", value), "executors"):
                watch(inner)


class _Pull:
    """Each pull at the stream of one call; one of them finds its end."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._has_ended = False

    def note(self, update: ChatResponseUpdate) -> None:
        """Note what an update says of the end."""
        if update.finish_reason is not None:
            self._has_ended = True
            with suppress(TypeError):  # one of its own that cannot be referred to
                _giving.add(self._client)
        raw = getattr(update.raw_representation, "type", None)
        if raw in _LAST_EVENTS or any(content.type == "error" for content in update.contents):
            self._has_ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is StopAsyncIteration and not self._has_ended and _gives_reasons(self._client):
            raise CutError


def _gives_reasons(client: Any) -> bool:
    if any(kind.__name__ in _ALWAYS for kind in type(client).__mro__):
        return True
    with suppress(TypeError):
        return client in _giving
    return False
