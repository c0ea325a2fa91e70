"""Each fault does what it says, and the invocation after it is served."""

import asyncio
import time

import httpx
import pytest

from handler.emulator.options import Faults
from tests.handler.emulator.serving import Served, serving


pytestmark = pytest.mark.anyio


async def next_is_served(served: Served) -> bool:
    served.url.faults = Faults()
    return (await served.get("/hello")).text == "hello"


async def test_a_reply_is_cut_after_so_many_bytes() -> None:
    async with serving(faults=Faults(cut_after_bytes=2048)) as served:
        with pytest.raises(httpx.RemoteProtocolError):
            await served.get("/sized/1024")
        served_after = await next_is_served(served)
        pids = served.url.pids

    first, second = served.url.invocations
    assert (first.size, first.answered, first.status) == (2048, None, 200)
    assert (served_after, second.answered, len(pids)) == (True, 202, 1)


@pytest.mark.parametrize("count", [0, 10])
async def test_a_reply_that_is_cut_within_its_prelude_is_a_502(count: int) -> None:
    async with serving(faults=Faults(cut_after_bytes=count)) as served:
        reply = await served.get("/sized/1024")
        served_after = await next_is_served(served)

    assert (reply.status_code, reply.text) == (502, "Internal Server Error")
    assert served_after


@pytest.mark.parametrize("status", [400, 413])
async def test_a_reply_is_refused_after_so_many_bytes(status: int) -> None:
    faults = Faults(refuse_after_bytes=2048, refuse_status=status)
    async with serving(faults=faults) as served:
        with pytest.raises(httpx.RemoteProtocolError):
            await served.get("/sized/65536")
        served_after = await next_is_served(served)

    record = served.url.invocations[0]
    assert (record.size, record.answered) == (2048, status)
    assert f"Lambda refused the reply: status {status}" in "\n".join(served.url.logs)
    assert served_after


async def test_an_app_waits_while_nothing_of_its_reply_is_read() -> None:
    gate = asyncio.Event()
    async with serving(faults=Faults(gate=gate)) as served:
        asking = asyncio.create_task(served.get("/sized/32768"))
        await served.lines.until("sending")
        size_before = served.url.invocations[0].size
        had_all = served.lines.has("all sent")
        gate.set()
        reply = await asking

    assert (size_before, had_all) == (0, False)
    assert len(reply.content) == 32 * 1024 * 1024


async def test_a_slow_reader_takes_its_time() -> None:
    async with serving(faults=Faults(bytes_per_s=50_000)) as served:
        begun = time.monotonic()
        reply = await served.get("/sized/10")
        took_s = time.monotonic() - begun

    assert len(reply.content) == 10 * 1024
    assert took_s >= 0.2


async def test_a_client_that_leaves_is_noticed_where_that_is_asked_for() -> None:
    async with serving(faults=Faults(notices_disconnects=True)) as served:
        async with served.client.stream("GET", "/watching") as reply:
            await anext(reply.aiter_raw())
        await served.lines.until("http.disconnect")
        served_after = await next_is_served(served)

    error = served.url.invocations[0].error
    assert error is not None
    assert error.type == "Emulator.ClientGone"
    assert served_after


async def test_a_runtime_ends_where_its_runtime_api_is_gone_and_another_takes_over() -> None:
    async with serving(faults=Faults(is_gone=True)) as served:
        reply = await served.get("/process")
        served_after = await next_is_served(served)
        await served.lines.until("the Runtime API cannot be used any more")
        await served.lines.until("Runtime.ExitError")
        pids = served.url.pids

    assert (reply.status_code, served_after) == (200, True)
    assert pids != [reply.json()]
    assert "Runtime.ExitError: Runtime exited with status 1" in served.url.logs


async def test_a_runtime_api_that_is_gone_within_a_reply_breaks_it_off() -> None:
    async with serving(faults=Faults(cut_after_bytes=2048, is_gone=True)) as served:
        with pytest.raises(httpx.RemoteProtocolError):
            await served.get("/sized/1024")
        served_after = await next_is_served(served)

    assert served_after
