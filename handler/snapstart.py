"""SnapStart: what runs before the snapshot of an environment is taken, and after each restore of it.

The hooks are those of `snapshot_restore_py`, which Lambda's Python has (AWS's page "Lambda SnapStart
runtime hooks for Python"). Everything restored from one snapshot begins alike, so what must differ
is made anew.
"""

import random
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeAlias

from handler.runtime_api import Failure, RuntimeApi, RuntimeApiError
from handler.runtime_client import Line


RESTORE_BUDGET_S: Final = 10.0
"""What Lambda allows the hooks after a restore."""

Run: TypeAlias = Callable[[Coroutine[Any, Any, int]], int]
"""Runs a coroutine on the environment's event loop, to its end."""

_Hook = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class SnapStartError(Exception):
    """A hook failed; the process ends with `exit_status`, as Lambda's own runtime does."""

    def __init__(self, message: str, exit_status: int) -> None:
        """Say what failed."""
        super().__init__(message)
        self.exit_status = exit_status


def wait_for_restore(
    api: RuntimeApi, run: Run, monotonic: Callable[[], float] = time.monotonic
) -> None:
    """Let Lambda take the snapshot; return in the restored environment. Raises `SnapStartError`.

    The event loop runs while the Runtime API is asked, and not while hooks run: one that warms an
    environment up may well call its handler.
    """
    before, after = _hooks()
    try:
        _run(reversed(before))
    except Exception as error:
        run(_ask(api, api.init_error(Failure("Runtime.BeforeSnapshotError", _said(error)))))
        raise SnapStartError("a hook before the snapshot failed", 64) from error
    status = run(_ask(api, api.restore_next()))
    if status != 200:  # noqa: PLR2004
        msg = f"The Runtime API answered {status} instead of a restore"
        raise RuntimeApiError(msg)
    try:
        _after_restore(after, monotonic)
    except Exception as error:
        run(_ask(api, api.restore_error(Failure("Runtime.AfterRestoreError", _said(error)))))
        raise SnapStartError("a hook after the restore failed", 65) from error


def _after_restore(hooks: Iterable[_Hook], monotonic: Callable[[], float]) -> None:
    begun = monotonic()
    random.seed()
    _run(hooks)
    took = monotonic() - begun
    if took > RESTORE_BUDGET_S:
        msg = f"The hooks after the restore took {took:.1f} s of the {RESTORE_BUDGET_S:.0f} s allowed."
        raise TimeoutError(msg)


async def _ask(api: RuntimeApi, request: bytes) -> int:
    """Ask on a connection of its own: none survives a snapshot."""
    line = Line(api.address)
    try:
        return (await line.ask(request)).status
    finally:
        line.drop()


def _run(hooks: Iterable[_Hook]) -> None:
    for function, arguments, named in hooks:
        function(*arguments, **named)


def _hooks() -> tuple[list[_Hook], list[_Hook]]:
    try:
        import snapshot_restore_py as registry  # noqa: PLC0415 - of Lambda's Python, not in the zip
    except ImportError:
        return [], []
    return [*registry.get_before_snapshot()], [*registry.get_after_restore()]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
