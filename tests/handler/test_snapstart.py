"""The snapshot of an environment: which hooks run when, and what Lambda is told of those that fail."""

import asyncio
import json
import random
import sys
from collections.abc import Callable, Iterator

import pytest
import snapshot_restore_py as registry

from handler.runtime_api import RuntimeApi, RuntimeApiError
from handler.snapstart import RESTORE_BUDGET_S, SnapStartError, wait_for_restore
from tests.handler.runtime_server import PATH, Lambda, reply, server


pytestmark = pytest.mark.anyio

RESTORED = reply(200)


@pytest.fixture(autouse=True)
def _no_hooks_of_others() -> Iterator[None]:
    """Hooks are registered for the whole process."""
    registered = registry.get_before_snapshot(), registry.get_after_restore()
    saved = [hooks[:] for hooks in registered]
    for hooks in registered:
        hooks.clear()
    yield
    for hooks, before in zip(registered, saved, strict=True):
        hooks[:] = before


class Moments:
    """A monotonic clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


async def restored(
    api: Lambda, monotonic: Callable[[], float] | None = None
) -> SnapStartError | None:
    """Wait for a restore by this Runtime API; return how that failed."""
    async with server(api.serve) as address:
        try:
            await asyncio.to_thread(
                wait_for_restore, RuntimeApi(address), asyncio.run, monotonic or Moments()
            )
        except SnapStartError as error:
            return error
    return None


async def test_hooks_run_backwards_before_the_snapshot_and_forwards_after_it() -> None:
    api = Lambda()
    said: list[object] = []
    for number in (1, 2):
        registry.register_before_snapshot(said.append, ("before", number))
        registry.register_after_restore(
            lambda *given, **named: said.append((given, named)), number, a=1
        )
    api.answer_next(RESTORED)
    registry.register_before_snapshot(lambda: said.append(api.asked.qsize()))

    failure = await restored(api)

    assert failure is None
    assert said == [0, ("before", 2), ("before", 1), ((1,), {"a": 1}), ((2,), {"a": 1})]
    assert await api.asked.get() == f"GET {PATH}/restore/next"
    assert api.told.empty()


async def test_after_hooks_wait_for_the_restore() -> None:
    api = Lambda()
    restored_at_last = asyncio.Event()
    loop = asyncio.get_running_loop()
    registry.register_after_restore(lambda: loop.call_soon_threadsafe(restored_at_last.set))

    async with server(api.serve) as address:
        waiting = asyncio.create_task(
            asyncio.to_thread(wait_for_restore, RuntimeApi(address), asyncio.run)
        )
        await api.asked.get()
        was_restored = restored_at_last.is_set()
        api.answer_next(RESTORED)
        await restored_at_last.wait()
        await waiting

    assert not was_restored


async def test_every_request_has_a_connection_of_its_own() -> None:
    api = Lambda()
    api.answer_next(RESTORED)
    registry.register_after_restore(fail)

    await restored(api)

    assert api.connections == 2


def fail() -> None:
    msg = "no pool"
    raise LookupError(msg)


async def test_a_hook_that_fails_before_the_snapshot_is_an_init_error() -> None:
    api = Lambda()
    said: list[str] = []
    registry.register_before_snapshot(said.append, "not reached")
    registry.register_before_snapshot(fail)
    registry.register_after_restore(said.append, "not reached")

    failure = await restored(api)

    told = await api.told.get()
    assert failure is not None
    assert (str(failure), failure.exit_status) == ("a hook before the snapshot failed", 64)
    assert told.target == f"POST {PATH}/init/error"
    assert told.headers["lambda-runtime-function-error-type"] == "Runtime.BeforeSnapshotError"
    assert json.loads(told.body)["errorMessage"] == "LookupError: no pool"
    assert (said, api.asked.empty()) == ([], True)


async def test_a_hook_that_fails_after_the_restore_is_a_restore_error() -> None:
    api = Lambda()
    api.answer_next(RESTORED)
    said: list[str] = []
    registry.register_after_restore(fail)
    registry.register_after_restore(said.append, "not reached")

    failure = await restored(api)

    told = await api.told.get()
    assert failure is not None
    assert (str(failure), failure.exit_status) == ("a hook after the restore failed", 65)
    assert told.target == f"POST {PATH}/restore/error"
    assert told.headers["lambda-runtime-function-error-type"] == "Runtime.AfterRestoreError"
    assert json.loads(told.body)["errorMessage"] == "LookupError: no pool"
    assert said == []


async def test_hooks_that_take_longer_than_lambda_allows_have_failed() -> None:
    api = Lambda()
    api.answer_next(RESTORED)
    moments = Moments()
    registry.register_before_snapshot(moments.pass_by, 100.0)
    registry.register_after_restore(moments.pass_by, 6.0)
    registry.register_after_restore(moments.pass_by, 4.25)

    failure = await restored(api, moments)

    assert failure is not None
    assert failure.exit_status == 65
    assert json.loads((await api.told.get()).body)["errorMessage"] == (
        "TimeoutError: The hooks after the restore took 10.2 s of the 10 s allowed."
    )


async def test_hooks_may_take_all_that_lambda_allows() -> None:
    api = Lambda()
    api.answer_next(RESTORED)
    moments = Moments()
    registry.register_before_snapshot(moments.pass_by, 100.0)
    registry.register_after_restore(moments.pass_by, RESTORE_BUDGET_S)

    assert await restored(api, moments) is None


async def test_environments_of_one_snapshot_do_not_share_their_random_numbers() -> None:
    drawn = []
    for _ in range(2):
        api = Lambda()
        api.answer_next(RESTORED)
        random.seed(7)
        await restored(api)
        drawn.append(random.random())

    assert drawn[0] != drawn[1]


async def test_hooks_find_random_numbers_made_anew() -> None:
    api = Lambda()
    api.answer_next(RESTORED)
    drawn: list[float] = []
    registry.register_after_restore(lambda: drawn.append(random.random()))
    random.seed(7)
    of_the_snapshot = random.random()
    random.seed(7)

    await restored(api)

    assert drawn[0] != of_the_snapshot


async def test_without_the_module_there_are_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Lambda()
    api.answer_next(RESTORED)
    registry.register_before_snapshot(fail)
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", None)

    assert await restored(api) is None


@pytest.mark.parametrize("status", [403, 500])
async def test_a_restore_that_is_refused_is_an_error(status: int) -> None:
    api = Lambda()
    api.answer_next(reply(status))
    registry.register_after_restore(fail)

    with pytest.raises(RuntimeApiError, match=f"answered {status} instead of a restore"):
        await restored(api)
