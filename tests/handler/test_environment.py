"""One execution environment: its loop, its lifespan, and their end."""

import asyncio
import gc
from collections.abc import Iterator

import pytest
from starlette.types import Receive, Scope, Send

from handler.environment import Environment


@pytest.fixture(autouse=True)
def _no_loop_is_left() -> Iterator[None]:
    yield
    asyncio.set_event_loop(None)


class App:
    """An app that notes what it was asked, and raises where it is told to."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.said: list[str] = []
        self._fails_at = fails_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        for what in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{what}"
            self.said.append(what)
            if self._fails_at == what:
                raise LookupError(what)
            await send({"type": f"lifespan.{what}.complete"})


def test_an_app_is_started_once_and_stopped_at_the_end() -> None:
    app = App()
    environment = Environment(app)
    started = app.said[:]

    results = [environment.run(asyncio.sleep(0, number)) for number in (1, 2)]
    environment.close()

    assert (started, results, app.said) == (["startup"], [1, 2], ["startup", "shutdown"])
    assert environment.loop.is_closed()


def test_everything_runs_on_the_environments_loop() -> None:
    environment = Environment(App())

    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    loops = [environment.run(running()) for _ in range(2)]
    environment.close()

    assert loops == [environment.loop] * 2


def test_a_startup_that_fails_leaves_nothing_open() -> None:
    with pytest.raises(LookupError, match="startup"):
        Environment(App("startup"))


def test_a_shutdown_that_fails_closes_the_loop_all_the_same() -> None:
    environment = Environment(App("shutdown"))

    with pytest.raises(LookupError, match="shutdown"):
        environment.close()

    assert environment.loop.is_closed()


def test_threads_of_the_app_have_ended_when_it_is_closed() -> None:
    environment = Environment(App())
    said: list[str] = []
    environment.run(asyncio.to_thread(said.append, "by a thread"))

    environment.close()

    assert said == ["by a thread"]


def test_what_is_raised_leaves_the_environment_in_use() -> None:
    environment = Environment(App())

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        environment.run(fail())
    result = environment.run(asyncio.sleep(0, "still here"))
    environment.close()

    assert result == "still here"


def test_what_ends_the_loop_ends_what_was_begun_on_it() -> None:
    ended: list[str] = []

    async def exits() -> None:
        raise SystemExit(3)

    async def works() -> None:
        exiting = asyncio.create_task(exits())
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("worked")
            assert exiting.done()

    environment = Environment(App())
    with pytest.raises(SystemExit):
        environment.run(works())
    environment.close()

    assert ended == ["worked"]


def test_a_task_that_fails_and_is_not_awaited_is_logged_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails() -> None:
        raise LookupError("secret")

    async def works() -> None:
        task = asyncio.create_task(fails())
        await asyncio.sleep(0)
        del task

    environment = Environment(App())
    environment.run(works())
    gc.collect()
    environment.close()

    assert "LookupError" in caplog.text
    assert "secret" not in caplog.text
