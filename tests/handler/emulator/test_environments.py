"""Execution environments: how they start, time out, freeze, are restored, share work and end."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

from tests.handler.emulator.serving import Gate, Served, is_running, serving, until_stopped


pytestmark = pytest.mark.anyio

APPS = "tests.handler.emulator.apps"


async def at_the_gate(served: Served, gate: Gate, name: str) -> str:
    return (await served.get(f"/gated?{name}", headers=gate.header)).text


async def test_invocations_one_after_the_other_share_an_environment() -> None:
    async with serving(environments=2) as served:
        pids = {(await served.get("/process")).json() for _ in range(3)}

    assert len(pids) == 1


async def test_more_invocations_than_environments_are_throttled(gate: Gate) -> None:
    async with serving(environments=2) as served, asyncio.TaskGroup() as group:
        asking = [group.create_task(at_the_gate(served, gate, name)) for name in "ab"]
        await served.lines.until("at the gate a")
        await served.lines.until("at the gate b")
        throttled = await served.get("/hello")
        gate.open()
        gate.open()
        replies = await asyncio.gather(*asking)
        pids = served.url.pids

    assert replies == ["first second"] * 2
    assert len(pids) == 2
    assert throttled.status_code == 429
    assert throttled.json()["Reason"] == "ConcurrentInvocationLimitExceeded"


async def test_a_managed_instance_serves_invocations_together_in_one_process() -> None:
    async with serving(concurrency=3) as served:
        replies = await asyncio.gather(*(served.get("/meeting") for _ in range(3)))
        (pid,) = served.url.pids

    assert [reply.json() for reply in replies] == [pid] * 3


async def test_a_managed_instance_takes_no_more_than_its_share(gate: Gate) -> None:
    async with serving(concurrency=2) as served, asyncio.TaskGroup() as group:
        for name in "ab":
            group.create_task(at_the_gate(served, gate, name))
        await served.lines.until("at the gate a")
        await served.lines.until("at the gate b")
        third = await served.get("/hello")
        gate.open()
        gate.open()

    assert third.status_code == 429


async def test_the_deadline_kills_and_the_next_request_gets_a_new_environment(gate: Gate) -> None:
    async with serving(timeout_s=1) as served:
        await served.url.warm_up()
        (old,) = served.url.pids
        timed_out = await served.get("/blocking/0", headers=gate.header)
        after = (await served.get("/process")).json()

    assert (timed_out.status_code, timed_out.text) == (502, "Internal Server Error")
    assert after != old
    assert not is_running(old)
    assert "Sandbox.Timedout: Task timed out after 1.00 seconds" in served.url.logs


async def test_the_deadline_breaks_a_stream_off(gate: Gate) -> None:
    async with serving(timeout_s=1) as served:
        with pytest.raises(httpx.RemoteProtocolError):
            await served.get("/blocking/1", headers=gate.header)

    assert served.url.invocations[0].status == 200


async def test_the_deadline_of_a_managed_instance_kills_nobody(gate: Gate) -> None:
    async with serving(timeout_s=1, concurrency=2) as served:
        with pytest.raises(httpx.RemoteProtocolError):
            await served.get("/blocking/1", headers=gate.header)
        pids = served.url.pids
        gate.open()
        after = (await served.get("/process")).json()

    assert served.url.invocations[0].error is not None
    assert pids == [after]


async def test_a_process_that_exits_breaks_its_stream_off_and_another_takes_over(
    gate: Gate,
) -> None:
    async with serving() as served:
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what is read before, too
            async with served.client.stream("GET", "/exiting", headers=gate.header) as reply:
                pieces = reply.aiter_raw()
                await anext(pieces)
                gate.open()
                await anext(pieces)
        after = await served.get("/hello")

    assert after.text == "hello"
    assert "Runtime.ExitError: Runtime exited with status 3" in served.url.logs


@pytest.mark.parametrize(
    ("handler", "kind", "line"),
    [
        (f"{APPS}.routes.missing", "AttributeError", "has no attribute 'missing'"),
        (f"{APPS}.absent.app", "ModuleNotFoundError", "No module named"),
        (f"{APPS}.routes.PIECE", "Runtime.HandlerNotFound", "is of type bytes"),
        (f"{APPS}.exits.app", "SystemExit", "no more of this"),
    ],
)
async def test_a_failed_init_is_a_502_and_its_cause_is_in_the_logs(
    handler: str, kind: str, line: str
) -> None:
    async with serving(handler) as served:
        reply = await served.get("/")

    error = served.url.invocations[0].error
    assert error is not None
    assert (reply.status_code, error.type) == (502, kind)
    assert line in "\n".join(served.url.logs)


async def test_an_init_that_takes_too_long_is_ended() -> None:
    async with serving(f"{APPS}.hangs.app", init_timeout_s=0.2) as served:
        reply = await served.get("/")

    assert reply.status_code == 502
    assert "Sandbox.Timedout: The init took longer than 0.2 seconds" in served.url.logs


async def test_a_process_that_cannot_be_started_is_a_502() -> None:
    async with serving(task_root=Path("nowhere")) as served:
        reply = await served.get("/")

    error = served.url.invocations[0].error
    assert error is not None
    assert (reply.status_code, error.type) == (502, "Runtime.InvalidEntrypoint")


async def test_the_end_may_come_while_an_environment_starts() -> None:
    async with serving() as served:
        warming = asyncio.create_task(served.url.warm_up())
        await asyncio.sleep(0)
    failure = await warming

    assert failure is not None
    assert failure.type == "Sandbox.Stopped"


async def test_warming_up_says_why_it_failed() -> None:
    async with serving(f"{APPS}.exits.app") as served:
        failure = await served.url.warm_up()

    assert failure is not None
    assert failure.type == "SystemExit"


async def test_an_environment_is_frozen_between_invocations() -> None:
    async with serving(freezes=True) as served:
        await served.url.warm_up()
        (pid,) = served.url.pids
        replies = []
        for _ in range(2):
            await until_stopped(pid)
            replies.append((await served.get("/process")).json())
        await until_stopped(pid)

    assert replies == [pid] * 2
    assert not is_running(pid)


async def test_a_snapshot_is_restored_at_the_first_invocation() -> None:
    async with serving(f"{APPS}.restored.app", is_snap_start=True) as served:
        failure = await served.url.warm_up()
        (pid,) = served.url.pids
        await until_stopped(pid)
        first = await served.get("/")
        second = await served.get("/")

    assert failure is None
    assert first.json() == second.json() == ["init", "before", "after"]


async def test_a_restore_that_fails_is_a_502() -> None:
    async with serving(f"{APPS}.unrestorable.app", is_snap_start=True) as served:
        reply = await served.get("/hello")

    error = served.url.invocations[0].error
    assert error is not None
    assert (reply.status_code, error.type) == (502, "Runtime.AfterRestoreError")
    assert "the seed is gone" in error.message


async def test_a_function_finds_what_lambda_tells_it() -> None:
    environ = {"OWN": "1", "AWS_REGION": "not what Lambda says"}
    async with serving(environ=environ, memory_mb=1024, region="eu-central-1") as served:
        found = (await served.get("/environ")).json()

    assert found["OWN"] == "1"
    assert found["AWS_REGION"] == "eu-central-1"
    assert found["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "1024"
    assert found["AWS_EXECUTION_ENV"] == f"AWS_Lambda_python3.{sys.version_info.minor}"
    assert found["AWS_LAMBDA_INITIALIZATION_TYPE"] == "on-demand"
    assert "AWS_LAMBDA_MAX_CONCURRENCY" not in found
