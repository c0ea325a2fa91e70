"""Awaiting so that what is ready can be written first, and only where there is something to wait for."""

from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar


_Value = TypeVar("_Value")

Before = Callable[[], Coroutine[Any, Any, None]]


async def eagerly(awaitable: Awaitable[_Value], before: Before) -> _Value:
    """Await, and await `before` first where the awaitable has to wait; it has begun by then."""
    step: Any = awaitable.__await__()
    try:
        parked = step.send(None)
    except StopIteration as done:
        value: _Value = done.value
        return value
    return await resumed(step, parked, before)


@coroutine
def resumed(
    step: Generator[Any, Any, _Value], parked: Any, before: Before | None
) -> Generator[Any, Any, _Value]:
    """Finish a step that has begun and gave way with `parked`, after awaiting `before`.

    `step` is what `__await__()` returned, and `parked` what its first `send` gave: the future it
    waits for, or None. A cancellation that arrives meanwhile reaches the step where it waits, as
    if it had been awaited directly.
    """
    try:
        if before is not None:
            try:
                yield from before()
            except BaseException as error:  # noqa: BLE001 - passed on to where it belongs
                parked = step.throw(error)
        while True:
            try:
                sent = yield parked
            except BaseException as error:  # noqa: BLE001 - passed on to where it belongs
                parked = step.throw(error)
            else:
                parked = step.send(sent)
    except StopIteration as done:
        value: _Value = done.value
        return value
