"""Stream transform hooks: what one makes of an agent's events, called with each or with a whole turn's."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final, get_args

from channel.agent import AgentEvent, SessionReset, TurnError
from channel.contract import ChannelStreamTransformHook
from channel.faults import HookKind, hook_error
from channel.hooks import FAULTS, as_turn_error, is_cancellation, raised_by
from channel.responses.protocol.errors import RequestError
from channel.responses.stepping import close


TRANSFORM: Final[HookKind] = "stream transform hook"

_EVENTS: Final[Any] = get_args(AgentEvent)
_KINDS: Final = frozenset((*_EVENTS, type(None)))


async def apply_transform_hook(
    hook: ChannelStreamTransformHook, event: AgentEvent
) -> AgentEvent | None:
    """Call a hook of single events with one; raises `TurnError` and `HookError` as the others do.

    `SessionReset` passes by: it says nothing to anybody, so that there is nothing to decide.
    """
    if isinstance(event, SessionReset):
        return event
    call: Any = hook
    try:
        changed = call(event)
        if type(changed) in _KINDS:  # most of what hooks return, and quick to tell
            plain: AgentEvent | None = changed
            return plain
        if changed is not event and inspect.isawaitable(changed):
            changed = await changed
    except TurnError:
        raise
    except RequestError as error:
        raise as_turn_error(error) from error
    except FAULTS as error:
        if is_cancellation(error):
            raise
        raise raised_by(TRANSFORM, hook, error) from error
    if changed is not None and changed is not event and not isinstance(changed, _EVENTS):
        did = f"returned {type(changed).__qualname__}, which is no agent event"
        raise hook_error(TRANSFORM, hook, did)
    said: AgentEvent | None = changed
    return said


def is_of_whole_turns(hook: ChannelStreamTransformHook) -> bool:
    """Return whether the hook is called with all events of a turn: an async generator function."""
    return inspect.isasyncgenfunction(hook) or inspect.isasyncgenfunction(type(hook).__call__)


def transforming(
    hook: ChannelStreamTransformHook, events: AsyncIterator[AgentEvent]
) -> Callable[[], Awaitable[AgentEvent | None]]:
    """Return what gives the next of an agent's events as a hook of single events leaves it."""
    advance = events.__anext__

    async def step() -> AgentEvent | None:
        return await apply_transform_hook(hook, await advance())

    return step


def transformed(
    hook: ChannelStreamTransformHook, events: AsyncIterator[AgentEvent]
) -> AsyncIterator[AgentEvent]:
    """Return what a hook of either kind makes of an agent's events, which are closed with it."""
    return (_by_turn if is_of_whole_turns(hook) else _by_event)(hook, events)


async def _by_event(
    hook: ChannelStreamTransformHook, events: AsyncIterator[AgentEvent]
) -> AsyncGenerator[AgentEvent]:
    try:
        async for event in events:
            changed = await apply_transform_hook(hook, event)
            if changed is not None:
                yield changed
    finally:
        await close(events)


async def _by_turn(  # noqa: C901 - one clause for each kind of what may be raised
    hook: ChannelStreamTransformHook, events: AsyncIterator[AgentEvent]
) -> AsyncGenerator[AgentEvent]:
    begin: Any = hook
    heard = _Heard(events)
    wrong: type | None = None
    try:
        made = begin(heard)
        try:
            async for event in made:
                if not (heard.is_last(event) or isinstance(event, _EVENTS)):
                    wrong = type(event)
                    break
                if heard.resets:
                    yield heard.resets.pop()
                yield event
        finally:
            await made.aclose()
        if heard.resets:
            yield heard.resets.pop()
    except TurnError:
        raise
    except RequestError as error:
        if error is heard.failure:
            raise
        raise as_turn_error(error) from error
    except FAULTS as error:
        if error is heard.failure or is_cancellation(error):
            raise
        raise raised_by(TRANSFORM, hook, error) from error
    finally:
        await close(events)
    if wrong is not None:
        did = f"yielded {wrong.__qualname__}, which is no agent event"
        raise hook_error(TRANSFORM, hook, did)


class _Heard:
    """An agent's events on their way to a hook: what the agent raises is not the hook's fault.

    The hook does not hear of `resets`: they pass by.
    """

    def __init__(self, events: AsyncIterator[AgentEvent]) -> None:
        self._events = events
        self._last: object = None
        self.failure: BaseException | None = None
        self.resets: list[SessionReset] = []

    def is_last(self, event: object) -> bool:
        """Return whether the agent itself has said this last: then it is not the hook's fault."""
        return event is self._last and event is not None

    def __aiter__(self) -> "_Heard":
        return self

    async def __anext__(self) -> AgentEvent:
        try:
            event = await self._events.__anext__()
            while isinstance(event, SessionReset):
                self.resets = [event]  # a second one says no more
                event = await self._events.__anext__()
        except BaseException as error:
            self.failure = error
            raise
        self._last = event
        return event
