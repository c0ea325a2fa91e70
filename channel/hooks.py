"""Run and response hooks, as they are called: what one raises, or returns that is no such thing, is a `HookError` that names it.

`RequestError` and `TurnError` are words for the client, whichever hook raises them. What ends more
than a turn passes through: a cancellation of the task, `KeyboardInterrupt`.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from channel.agent import Agent, TurnError
from channel.contract import (
    ChannelRequest,
    ChannelResponseHook,
    ChannelRunHook,
    HostedRunResult,
    settled,
)
from channel.faults import HookError, HookKind, hook_error
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.input import unpaired_calls
from channel.responses.protocol.items import Item, finished
from channel.responses.protocol.response import Response
from channel.targets import checked_target


RUN: Final[HookKind] = "run hook"
RESPONSE: Final[HookKind] = "response hook"

# As of an agent: it ends one turn, and not its process.
FAULTS: Final = (Exception, SystemExit, asyncio.CancelledError)
_UNFIT: Final = (TypeError, ValueError, OverflowError, RecursionError)
_Value = TypeVar("_Value")


async def apply_run_hook(
    hook: ChannelRunHook, request: ChannelRequest, *, target: Agent, protocol_request: Any
) -> ChannelRequest:
    """Call the hook by its convention, awaiting where needed; the caller and the operation stay.

    The hook gets copies, so that what it changes in place is in what it returns, and nowhere else. A
    history that is the same as before is the very same object.

    Raises `RequestError` where the hook refuses the request, and `HookError` where it fails, or
    returns something else than a `ChannelRequest` of plain JSON values, or an input after which the
    request's history could not be continued.
    """
    told = await _asked(hook, request, target=target, protocol_request=protocol_request)
    changed = _with_plain_identity(hook, _required(RUN, hook, told, ChannelRequest))
    if changed.caller != request.caller:
        raise hook_error(RUN, hook, "changed the caller of the request")
    # History that was loaded is not checked: it may be long.
    is_own = not _is_same(changed.history, request.history)
    _require_plain(RUN, hook, changed if is_own else replace(changed, history=()))
    if not _are_items(changed.input, "type"):
        raise hook_error(RUN, hook, "returned an input whose items are not objects with a type")
    # With the history that was loaded: that is where later turns will find it.
    if not _is_same(changed.input, request.input) and not _are_paired(
        chain(request.history, changed.input), chain(request.history, request.input)
    ):
        raise hook_error(RUN, hook, f"returned an input {_UNPAIRED}")
    if is_own and not _are_items(changed.history, "type", "id"):
        did = "returned a history whose items are not objects with a type and an id"
        raise hook_error(RUN, hook, did)
    try:
        whereto = checked_target(changed.response_target)
    except ValueError as error:
        raise hook_error(RUN, hook, f"returned a bad response_target: {error}") from error
    return replace(
        changed,
        operation=request.operation,
        response_target=whereto,
        history=changed.history if is_own else request.history,
    )


async def _asked(hook: ChannelRunHook, request: ChannelRequest, **named: Any) -> object:
    given, before = _copied_request(request), _cancellations()
    try:
        told: object = await settled(hook(given, **named))
    except RequestError:
        raise
    except TurnError as error:
        raise RequestError(
            error.message, param=error.param, code=error.code, status=error.status
        ) from error
    except FAULTS as error:
        if is_cancellation(error, before):
            raise
        raise raised_by(RUN, hook, error) from error
    return told


def _with_plain_identity(hook: ChannelRunHook, changed: ChannelRequest) -> ChannelRequest:
    """Return the request with an identity that is the same in another process."""
    identity = changed.identity
    if identity is None or not identity.attributes:
        return changed
    try:
        attributes = msgspec.json.decode(msgspec.json.encode(dict(identity.attributes)))
    except _UNFIT as error:
        did = "returned an identity whose attributes are not plain JSON"
        raise hook_error(RUN, hook, did) from error
    return replace(changed, identity=replace(identity, attributes=attributes))


async def apply_response_hook(
    hook: ChannelResponseHook, response: Response, given: Sequence[Item] = ()
) -> Response:
    """Call the hook with a finished response and return the response that it makes of it.

    An item without an `id` gets that of the item in its place. `given` is the turn's input. Raises
    `TurnError` where the hook has words for the client, and `HookError` where it fails, or returns
    what cannot be told and stored, or could not be continued then.
    """
    own = msgspec.structs.replace(
        response, output=_copied(response.output), metadata=_copied(response.metadata)
    )
    before = _cancellations()
    try:
        told = await settled(hook(HostedRunResult(own)))
    except TurnError:
        raise
    except RequestError as error:
        raise as_turn_error(error) from error
    except FAULTS as error:
        if is_cancellation(error, before):
            raise
        raise raised_by(RESPONSE, hook, error) from error
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
    if (wrong := _breach(output, response.output, given)) is not None:
        raise hook_error(RESPONSE, hook, f"returned an output {wrong}")
    return msgspec.structs.replace(changed, output=output)


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def is_cancellation(error: BaseException, before: int = 0) -> bool:
    """Return whether the task was cancelled meanwhile: else a `CancelledError` is the hook's own."""
    return isinstance(error, asyncio.CancelledError) and _cancellations() != before


def raised_by(kind: HookKind, hook: object, error: BaseException) -> HookError:
    """Return the error for what a hook has raised."""
    return hook_error(kind, hook, f"raised {type(error).__qualname__}")


def as_turn_error(error: RequestError) -> TurnError:
    """Return the same words as an agent would raise them, for what is told once a turn has begun."""
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


def _copied_request(request: ChannelRequest) -> ChannelRequest:
    return replace(
        request,
        input=_copied(request.input),
        history=_copied(request.history),
        tools=_copied(request.tools),
        tool_choice=_copied(request.tool_choice),
        options=_copied(request.options),
        metadata=_copied(request.metadata),
        attributes=_copied(request.attributes),
    )


def _copied(value: Any) -> Any:
    """Return a copy of JSON, down to its texts: it costs by the number of objects, not by their size."""
    if type(value) is dict:
        # Most of it is texts: not to call this for them makes it twice as fast.
        return {name: each if type(each) is str else _copied(each) for name, each in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(map(_copied, value))
    return value


def _is_same(items: object, before: Sequence[Item]) -> bool:
    return isinstance(items, list | tuple) and [*items] == [*before]


_UNPAIRED: Final = "whose calls and outputs of calls are not paired"


def _breach(output: list[Item], made: list[Item], given: Sequence[Item]) -> str | None:
    """Return what is wrong with an output after which nothing could go on; None where it could.

    What was so in `made`, the stream's own, is nobody's fault here.
    """
    uses, were = _counted(output, "id"), _counted(made, "id")
    taken = {item.get("id") for item in given} - were.keys()
    if any(count > max(1, were[each]) or each in taken for each, count in uses.items()):
        return "with an id that is there twice"
    kept, before = [*finished(output)], [*finished(made)]
    if _counted(kept, "call_id", "function_call") - _counted(before, "call_id", "function_call"):
        return "with a function call that the agent did not make"
    return None if _are_paired(kept, before) else _UNPAIRED


def _are_paired(items: Iterable[Item], before: Iterable[Item]) -> bool:
    """Return whether calls and outputs are paired, but for those that were not before."""
    return all(
        set(now) <= set(then)
        for now, then in zip(unpaired_calls(items), unpaired_calls(before), strict=True)
    )


def _counted(items: Iterable[Item], name: str, item_type: str | None = None) -> Counter[str | None]:
    """Count the values that the items, or those of one type, have under a name; what is no text is None."""
    of_type = (item for item in items if item_type is None or item["type"] == item_type)
    values = (item.get(name) for item in of_type)
    return Counter(value if isinstance(value, str) else None for value in values)


def _with_ids(output: list[Item], before: list[Item]) -> list[Item]:
    return [
        {"id": before[index]["id"], **item}
        if index < len(before) and before[index]["type"] == item.get("type")
        else item
        for index, item in enumerate(output)
    ]
