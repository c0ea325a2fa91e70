"""Streaming through the loop, as `openai` and a raw client see it behind the local function URL.

The app and its agent are a process of their own; where an agent is, is known by a socket (`gate`).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import httpx
import pytest
from openai import AsyncOpenAI

from handler.emulator.function_url import FunctionUrl
from handler.emulator.options import Faults, Function
from tests.e2e.doors import Client
from tests.e2e.gate import Gate, gate
from tests.e2e.gated_agents import PIECE, PIECES
from tests.e2e.lambda_events import EVENTS
from tests.e2e.loop import DEVELOPMENT, stock_function
from tests.infra.engines import ROOT


pytestmark = pytest.mark.anyio

AGENT: Final = "tests.e2e.gated_agents:agent"
KEY: Final = {"authorization": "Bearer dev-alpha"}
AHEAD: Final = 512
"""Pieces that an agent may be ahead of a client that does not read: what the sockets hold, far less."""


@asynccontextmanager
async def serving(
    at: Gate,
    faults: Faults | None = None,
    echo: Callable[[str], None] | None = None,
    **options: Any,
) -> AsyncIterator[FunctionUrl]:
    environ = {
        **DEVELOPMENT,
        "AGENT": AGENT,
        "GATE": at.path,
        **options.pop("environ", {}),
    }
    function = Function(
        handler=options.pop("handler", "handler.buffered.handler"),
        environ=environ,
        task_root=ROOT,
        **options,
    )
    async with FunctionUrl(function, faults=faults, echo=echo) as url:
        yield url


def client_of(url: FunctionUrl) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url.root}/v1", api_key="dev-alpha", timeout=20, max_retries=0)


def http_client(url: FunctionUrl) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url.root, headers=KEY, timeout=20)


def asking(model: str, **fields: Any) -> dict[str, Any]:
    return {"json": {"model": model, "input": "hi", "stream": True, **fields}}


async def record_of(url: FunctionUrl, response_id: str) -> dict[str, Any]:
    async with http_client(url) as client:
        reply = await client.get(f"/v1/responses/{response_id}")
    found: dict[str, Any] = reply.json()
    return found


async def test_the_first_delta_arrives_before_the_agent_says_the_second() -> None:
    async with gate() as at, serving(at) as url, client_of(url) as client:
        stream = await client.responses.create(model="steps", input="hi", stream=True)
        read: list[str] = []
        async for event in stream:
            if event.type == "response.output_text.delta":
                read.append(event.delta)
                assert await at.heard() == event.delta.strip()
                at.open()  # only now the agent goes on
            last = event

    assert read == ["one ", "two ", "three"]
    assert last.type == "response.completed"
    assert [record.mode for record in url.invocations] == ["streamed"]


async def test_the_stream_helper_and_a_chain_work() -> None:
    async with gate() as at, serving(at) as url, client_of(url) as client:
        first = await client.responses.create(model="echo", input="one")
        async with client.responses.stream(
            model="echo", input="two", previous_response_id=first.id
        ) as stream:
            final = await stream.get_final_response()
        kept = await client.responses.retrieve(final.id)

    assert final.output_text == "two and 2 before"
    assert kept.model_dump() == {**final.model_dump(), "output": kept.model_dump()["output"]}
    assert kept.output_text == final.output_text


async def test_a_client_that_stops_reading_pauses_the_agent_and_then_gets_all() -> None:
    asked = asking("flood", store=False)
    async with (
        gate() as at,
        serving(at) as url,
        http_client(url) as client,
        client.stream("POST", "/v1/responses", **asked) as reply,
    ):
        said = await last_said(at)
        text = 0
        async for line in reply.aiter_lines():
            if line.startswith('data: {"type":"response.output_text.delta"'):
                text += len(json.loads(line.removeprefix("data: "))["delta"])

    assert said < AHEAD
    assert text == PIECES * len(PIECE)


async def last_said(at: Gate) -> int:
    """Return the last number that the agent says, before it says none for half a second."""
    said = 0
    with suppress(TimeoutError):
        while said < PIECES:
            said = int(await asyncio.wait_for(at.heard(), 0.5))
    return said


async def test_a_client_that_goes_away_cancels_the_agent_where_a_write_fails() -> None:
    faults = Faults(notices_disconnects=True)
    async with gate() as at, serving(at, faults) as url, http_client(url) as client:
        async with client.stream("POST", "/v1/responses", **asking("hangs")) as reply:
            response_id = await first_id(reply)
            await at.until("waiting")
        await at.until("cancelled")
        kept = await record_of(url, response_id)

    assert (kept["status"], said_in(kept)) == ("cancelled", "so far")


async def test_a_client_that_goes_away_unnoticed_leaves_the_turn_to_its_end() -> None:
    async with gate() as at, serving(at) as url, http_client(url) as client:
        async with client.stream("POST", "/v1/responses", **asking("hangs")) as reply:
            response_id = await first_id(reply)
            await at.until("waiting")
        at.open()
        kept = await record_of(url, response_id)

    assert (kept["status"], said_in(kept)) == ("completed", "so far")


BROKEN: Final = {
    "cut": Faults(cut_after_bytes=2000),
    "refused with 413": Faults(refuse_after_bytes=2000, refuse_status=413),
    "refused with 400": Faults(refuse_after_bytes=2000, refuse_status=400),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_reply_that_lambda_breaks_off_leaves_a_cancelled_record_and_a_working_loop(
    kind: str,
) -> None:
    async with gate() as at, serving(at, BROKEN[kind]) as url, http_client(url) as client:
        read = await read_until_it_breaks_off(client, "flood")
        await at.until("cancelled")
        url.faults = Faults()
        kept = await record_of(url, id_in(read))
        again = await client.post("/v1/responses", json={"model": "echo", "input": "hi"})

    assert kept["status"] == "cancelled"
    assert (again.status_code, again.json()["status"]) == (200, "completed")
    assert len(url.pids) <= 1


async def test_a_stream_that_runs_out_of_time_is_told_and_kept_and_the_loop_goes_on() -> None:
    async with gate() as at, serving(at, timeout_s=2) as url, client_of(url) as client:
        stream = await client.responses.create(model="hangs", input="hi", stream=True)
        events = [event async for event in stream]
        await at.until("cancelled")
        last = events[-1]
        assert last.type == "response.failed"
        kept = await client.responses.retrieve(last.response.id)

    assert last.response.error is not None
    assert last.response.error.code == "server_error"
    assert last.response.output_text == "so far"
    assert kept == last.response
    told = url.invocations[0].trailers
    assert told is not None
    assert told.type == "Runtime.StreamError"


@pytest.mark.parametrize("kind", ["HTTP API", "REST API", "load balancer"])
def test_a_turn_that_runs_out_of_time_behind_another_door_is_a_504_and_kept(kind: str) -> None:
    # At the load balancer its idle time-out is the smaller limit, elsewhere the function's.
    limits = {"LOAD_BALANCER_TIMEOUT_S": "2"} if kind == "load balancer" else {}
    timeout_s = 300.0 if limits else 2.0
    environ = {"AGENT": AGENT, **limits}
    with stock_function(environ, timeout_s=timeout_s) as function:
        client = Client(function.door(EVENTS[kind]))
        reply = client.post(model="waits", input="hi")
        kept = client.get(f"/responses/{reply.error['message'].split(chr(39))[1]}").json
        stream = client.stream(model="waits", input="hi")

    assert (reply.status, reply.headers["x-should-retry"]) == (504, "false")
    assert (reply.error["type"], reply.error["code"]) == ("server_error", "timeout")
    assert (kept["status"], said_in(kept)) == ("failed", "so far")
    assert stream[-1]["type"] == "response.failed"


async def test_an_agent_that_blocks_is_killed_with_its_environment_and_the_next_one_serves() -> (
    None
):
    async with gate() as at, serving(at, timeout_s=1.5) as url, http_client(url) as client:
        read = await read_until_it_breaks_off(client, "blocks")
        again = await client.post("/v1/responses", json={"model": "echo", "input": "hi"})

    assert "so far" in read
    assert again.status_code == 200
    assert any("timed out" in line for line in url.logs)


async def test_a_turn_that_fails_in_mid_stream_is_told_in_band_and_by_trailers() -> None:
    async with gate() as at, serving(at) as url, client_of(url) as client:
        stream = await client.responses.create(model="fails", input="hi", stream=True)
        events = [event async for event in stream]
        kept = await client.responses.retrieve(events[-1].response.id)  # type: ignore[union-attr]

    assert [event.type for event in events][-1] == "response.failed"
    assert kept.status == "failed"
    told = url.invocations[0].trailers
    assert told is not None
    assert told.message == "The response failed: server_error. The stream tells how."
    assert not any("secret" in line for line in url.logs)


@pytest.mark.parametrize("options", [{"freezes": True}, {"is_snap_start": True}], ids=str)
async def test_history_outlives_what_lambda_does_to_a_process(options: dict[str, Any]) -> None:
    async with gate() as at, serving(at, **options) as url, client_of(url) as client:
        assert await url.warm_up() is None
        first = await client.responses.create(model="echo", input="one")
        second = await client.responses.create(
            model="echo", input="two", previous_response_id=first.id
        )

    assert second.output_text == "two and 2 before"
    assert len({record.request_id for record in url.invocations}) == 2


async def test_turns_run_side_by_side_in_one_process_of_a_managed_instance() -> None:
    async with gate() as at, serving(at, concurrency=8) as url, client_of(url) as client:
        replies = await asyncio.gather(
            *[client.responses.create(model="echo", input=f"turn {n}") for n in range(8)]
        )

    assert [reply.output_text for reply in replies] == [f"turn {n} and 0 before" for n in range(8)]
    assert len(url.pids) <= 1


async def test_a_runtime_api_that_is_gone_ends_the_process_with_a_message() -> None:
    ended = asyncio.Event()

    def hear(line: str) -> None:
        if "Runtime exited" in line:
            ended.set()

    gone = Faults(is_gone=True)
    async with gate() as at, serving(at, gone, echo=hear) as url, http_client(url) as client:
        await client.post("/v1/responses", json={"model": "echo", "input": "hi"})
        async with asyncio.timeout(20):
            await ended.wait()
        url.faults = Faults()
        again = await client.post("/v1/responses", json={"model": "echo", "input": "hi"})

    assert again.status_code == 200
    assert [line for line in url.logs if line.startswith("lambda-responses stops: ")] != []
    assert "Runtime.ExitError: Runtime exited with status 1" in url.logs


async def test_a_setting_that_is_wrong_is_an_init_error_with_its_sentence() -> None:
    environ = {"AGENT": "no.such:agent"}
    async with gate() as at, serving(at, environ=environ) as url, http_client(url) as client:
        failure = await url.warm_up()
        reply = await client.get("/readiness")

    assert failure is not None
    assert failure.type == "SettingsError"
    assert "no.such:agent" in failure.message
    assert reply.status_code == 502


async def read_until_it_breaks_off(client: httpx.AsyncClient, model: str) -> str:
    read = b""
    try:
        async with client.stream("POST", "/v1/responses", **asking(model)) as reply:
            async for data in reply.aiter_raw():
                read += data
    except httpx.TransportError:
        return read.decode()
    raise AssertionError(read)


async def first_id(reply: httpx.Response) -> str:
    """Read until the id of the response is known; what follows is left."""
    read = ""
    async for text in reply.aiter_text():
        read += text
        if "\n\n" in read:
            return id_in(read)
    raise AssertionError(read)


def id_in(text: str) -> str:
    first = text.partition("\n\n")[0].partition("data: ")[2]
    found: str = json.loads(first)["response"]["id"]
    return found


def said_in(response: dict[str, Any]) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text
