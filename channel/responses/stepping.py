"""Steps of what is awaited: begun before they are waited for, resumed where they gave way, and closed."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar


_Value = TypeVar("_Value")

Before = Callable[[], Coroutine[Any, Any, None]]


def begun(work: Coroutine[Any, Any, _Value]) -> asyncio.Task[_Value]:
    """Return a task that has begun already, where Python can do that: what never waits is done then."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
    return asyncio.create_task(work)


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


async def close(events: AsyncIterator[Any]) -> None:
    """Close an agent's events, as far as they can be closed: nobody wants the rest."""
    end = getattr(events, "aclose", None)
    if end is not None:
        await end()
