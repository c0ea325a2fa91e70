"""Hooks, as they are called: what one raises, or returns that is no such thing, is a `HookError` that names it.

`RequestError` and `TurnError` are words for the client, whichever hook raises them. What ends more
than a turn passes through: a cancellation, `KeyboardInterrupt`.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import replace
from typing import Any, Final, TypeVar, get_args

import msgspec

from channel.agent import Agent, AgentEvent, TurnError
from channel.contract import (
    ChannelRequest,
    ChannelResponseHook,
    ChannelRunHook,
    ChannelStreamTransformHook,
    HostedRunResult,
    settled,
)
from channel.faults import HookError, HookKind, hook_error
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item
from channel.responses.protocol.response import Response
from channel.targets import checked_target


RUN: Final[HookKind] = "run hook"
TRANSFORM: Final[HookKind] = "stream transform hook"
RESPONSE: Final[HookKind] = "response hook"

_EVENTS: Final[Any] = get_args(AgentEvent)
_FAULTS: Final = (Exception, SystemExit)  # as of an agent: it ends one turn, and not its process
_UNFIT: Final = (TypeError, ValueError, OverflowError, RecursionError)
_Value = TypeVar("_Value")


async def apply_run_hook(
    hook: ChannelRunHook, request: ChannelRequest, *, target: Agent, protocol_request: Any
) -> ChannelRequest:
    """Call the hook by its convention, awaiting where needed; the caller and the operation stay.

    Raises `RequestError` where the hook refuses the request, and `HookError` where it fails, or
    returns something else than a `ChannelRequest` of plain JSON values.
    """
    caller, operation, history = request.caller, request.operation, request.history
    try:
        told = await settled(hook(request, target=target, protocol_request=protocol_request))
    except RequestError:
        raise
    except TurnError as error:
        raise RequestError(
            error.message, param=error.param, code=error.code, status=error.status
        ) from error
    except _FAULTS as error:
        raise _raised(RUN, hook, error) from error
    changed = _required(RUN, hook, told, ChannelRequest)
    if changed.caller != caller:
        raise hook_error(RUN, hook, "changed the caller of the request")
    # History that was loaded is neither looked at nor copied: it may be long.
    is_own = changed.history is not history
    _require_plain(RUN, hook, changed if is_own else replace(changed, history=()))
    if not _are_items(changed.input, "type"):
        raise hook_error(RUN, hook, "returned an input whose items are not objects with a type")
    if is_own and not _are_items(changed.history, "type", "id"):
        did = "returned a history whose items are not objects with a type and an id"
        raise hook_error(RUN, hook, did)
    try:
        whereto = checked_target(changed.response_target)
    except ValueError as error:
        raise hook_error(RUN, hook, f"returned a bad response_target: {error}") from error
    if changed.operation == operation and whereto == changed.response_target:
        return changed
    return replace(changed, operation=operation, response_target=whereto)


async def apply_response_hook(hook: ChannelResponseHook, response: Response) -> Response:
    """Call the hook with a finished response and return the response that it makes of it.

    An item without an `id` gets that of the item in its place. Raises `TurnError` where the hook has
    words for the client, and `HookError` where it fails, or returns what cannot be told and stored.
    """
    try:
        told = await settled(hook(HostedRunResult(response)))
    except TurnError:
        raise
    except RequestError as error:
        raise _as_turn_error(error) from error
    except _FAULTS as error:
        raise _raised(RESPONSE, hook, error) from error
    changed = _required(RESPONSE, hook, told, HostedRunResult).result
    if not isinstance(changed, Response):
        did = f"returned a HostedRunResult of {type(changed).__qualname__}, not of Response"
        raise hook_error(RESPONSE, hook, did)
    _require_plain(RESPONSE, hook, changed)
    if (changed.id, changed.status) != (response.id, response.status):
        raise hook_error(RESPONSE, hook, "changed the id or the status of the response")
    output = _with_ids(changed.output, response.output)
    if not _are_items(output, "type", "id"):
        did = "returned an output whose items are not objects with a type and an id"
        raise hook_error(RESPONSE, hook, did)
    return msgspec.structs.replace(changed, output=output)


async def apply_transform_hook(
    hook: ChannelStreamTransformHook, event: AgentEvent
) -> AgentEvent | None:
    """Call a hook of single events with one; raises `TurnError` and `HookError` as the others do."""
    call: Any = hook
    try:
        changed = call(event)
        if inspect.isawaitable(changed):
            changed = await changed
    except TurnError:
        raise
    except RequestError as error:
        raise _as_turn_error(error) from error
    except _FAULTS as error:
        raise _raised(TRANSFORM, hook, error) from error
    if changed is not None and changed is not event and not isinstance(changed, _EVENTS):
        did = f"returned {type(changed).__qualname__}, which is no agent event"
        raise hook_error(TRANSFORM, hook, did)
    said: AgentEvent | None = changed
    return said


def is_of_whole_turns(hook: ChannelStreamTransformHook) -> bool:
    """Return whether the hook is called with all events of a turn: an async generator function."""
    return inspect.isasyncgenfunction(hook) or inspect.isasyncgenfunction(type(hook).__call__)


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
        await _close(events)


async def _by_turn(
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
                yield event
        finally:
            await made.aclose()
    except TurnError:
        raise
    except RequestError as error:
        if error is heard.failure:
            raise
        raise _as_turn_error(error) from error
    except _FAULTS as error:
        if error is heard.failure:
            raise
        raise _raised(TRANSFORM, hook, error) from error
    finally:
        await _close(events)
    if wrong is not None:
        did = f"yielded {wrong.__qualname__}, which is no agent event"
        raise hook_error(TRANSFORM, hook, did)


class _Heard:
    """An agent's events on their way to a hook: what the agent raises is not the hook's fault."""

    def __init__(self, events: AsyncIterator[AgentEvent]) -> None:
        self._events = events
        self._last: object = None
        self.failure: BaseException | None = None

    def is_last(self, event: object) -> bool:
        """Return whether the agent itself has said this last: then it is not the hook's fault."""
        return event is self._last and event is not None

    def __aiter__(self) -> "_Heard":
        return self

    async def __anext__(self) -> AgentEvent:
        try:
            event = await self._events.__anext__()
        except BaseException as error:
            self.failure = error
            raise
        self._last = event
        return event


def _raised(kind: HookKind, hook: object, error: BaseException) -> HookError:
    return hook_error(kind, hook, f"raised {type(error).__qualname__}")


def _as_turn_error(error: RequestError) -> TurnError:
    code = error.code or "invalid_prompt"  # OpenAI's for what a model was not to be asked
    return TurnError(error.message, code=code, status=error.status, param=error.param)


def _required(kind: HookKind, hook: object, told: Any, wanted: type[_Value]) -> _Value:
    if isinstance(told, wanted):
        return told
    did = f"returned {type(told).__qualname__}, not {wanted.__qualname__}"
    raise hook_error(kind, hook, did)


def _require_plain(kind: HookKind, hook: object, value: object) -> None:
    """Require what can be stored, sent, and read again by another process."""
    did = f"returned a {type(value).__qualname__} that"
    try:
        written = msgspec.json.encode(value)
    except _UNFIT as error:
        raise hook_error(kind, hook, f"{did} cannot be written as JSON") from error
    try:
        msgspec.json.decode(written, type=type(value))
    except msgspec.DecodeError as error:
        _, at, where = str(error).rpartition(" - at ")  # a path of names, such as `$.input[0]`
        raise hook_error(kind, hook, f"{did} is wrong{at and f' at {where}'}") from error


def _are_items(items: Iterable[Item], *names: str) -> bool:
    return all(
        isinstance(item, dict) and isinstance(item.get(name), str)
        for item in items
        for name in names
    )


def _with_ids(output: list[Item], before: list[Item]) -> list[Item]:
    return [
        {"id": before[index]["id"], **item}
        if index < len(before) and before[index]["type"] == item.get("type")
        else item
        for index, item in enumerate(output)
    ]


async def _close(events: AsyncIterator[AgentEvent]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
