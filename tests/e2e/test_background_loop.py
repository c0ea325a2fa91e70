"""Background responses through the loop: `openai` at the local function URL, a table, several environments.

A worker is another environment than those that begin, follow or look. Where its agent is, is known
by a socket (`gate`); how a run ends whose environment was killed, by its lease in the table.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
from openai import APIConnectionError, AsyncOpenAI
from openai.types.responses import Response

from channel.responses.protocol.ids import response_body
from handler.embedded import embedded_engine
from handler.emulator.function_url import FunctionUrl
from handler.emulator.invocation import Record
from handler.emulator.options import Faults, Function
from infra.dynamodb.client import create_table
from tests.e2e.gate import Gate, gate
from tests.e2e.loop import DEVELOPMENT
from tests.handler.emulator.serving import Lines, Served, until_stopped
from tests.infra import engines


pytestmark = pytest.mark.anyio

AGENT: Final = "tests.e2e.gated_agents:agent"


class Table:
    """The table of all tests here, in an engine of this process."""

    def __init__(self, endpoint: str, client: Any) -> None:
        self.environ = {"DYNAMODB_ENDPOINT": endpoint, "TABLE_NAME": engines.TABLE}
        self._client = client

    def end_lease(self, response_id: str) -> None:
        """Let the lease of a run be over, as when its time has passed."""
        body = response_body(response_id)
        (run,) = [
            row
            for row in self._client.scan(TableName=engines.TABLE)["Items"]
            if row["pk"]["S"].endswith(f"#e#{body}") and "lease" in row
        ]
        self._client.update_item(
            TableName=engines.TABLE,
            Key={"pk": run["pk"], "sk": run["sk"]},
            UpdateExpression="SET lease = :past",
            ExpressionAttributeValues={":past": {"N": "1"}},
        )


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    with (
        embedded_engine("127.0.0.1") as endpoint,
        engines.connected(None, endpoint) as client,
    ):
        create_table(client, engines.TABLE)
        yield Table(endpoint, client)


class Site(Served):
    """A function URL with a client of OpenAI's, for one test."""

    def __init__(
        self, url: FunctionUrl, client: httpx.AsyncClient, lines: Lines, openai: AsyncOpenAI
    ) -> None:
        super().__init__(url, client, lines)
        self.responses = openai.responses

    @property
    def jobs(self) -> list[Record]:
        """The deliveries of the first job: that of the response that was begun first."""
        events = [record for record in self.url.invocations if record.kind == "Event"]
        return [record for record in events if record.request_id == events[0].request_id]

    @property
    def requests(self) -> list[Record]:
        return [record for record in self.url.invocations if record.kind == "URL"]

    @property
    def failures(self) -> list[str]:
        """What went wrong with those deliveries."""
        return [record.error.type for record in self.jobs if record.error]

    async def polled(self, response_id: str) -> Response:
        """Retrieve a response until it has ended."""
        while True:
            response = await self.responses.retrieve(response_id)
            if response.status not in ("queued", "in_progress"):
                return response

    async def until_over(self, delivery: int = 1) -> None:
        """Wait until that delivery of the first job has ended."""
        await self.lines.until(f"REPORT {self.jobs[0].request_id} Event delivery {delivery}")

    async def kill_worker(self) -> None:
        """Kill the process of the first job, and wait until Lambda knows."""
        pid = self.jobs[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await self.lines.until("Runtime.ExitError")


@asynccontextmanager
async def serving(
    at: Gate, table: Table, faults: Faults | None = None, **options: Any
) -> AsyncIterator[Site]:
    environ: Mapping[str, str] = {**DEVELOPMENT, **table.environ, "AGENT": AGENT, "GATE": at.path}
    function = Function(
        handler="handler.buffered.handler",
        environ=environ,
        task_root=engines.ROOT,
        **{"environments": 3, **options},
    )
    lines = Lines()
    async with (
        asyncio.timeout(60),
        FunctionUrl(function, faults=faults, echo=lines.add) as url,
        httpx.AsyncClient(timeout=20) as client,
        AsyncOpenAI(
            base_url=f"{url.root}/v1", api_key="dev-alpha", timeout=20, max_retries=0
        ) as openai,
    ):
        yield Site(url, client, lines, openai)


async def until_delta(stream: Any) -> list[Any]:
    """Read a stream up to its next piece of text."""
    events: list[Any] = []
    async for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta":
            return events
    raise AssertionError(events)


async def rest_of(stream: Any) -> list[Any]:
    return [event async for event in stream]


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_a_background_response_is_polled_to_its_end_and_continued(table: Table) -> None:
    async with gate() as at, serving(at, table) as site:
        begun = await site.responses.create(model="steps", input="hi", background=True)
        await at.until("one")
        running = await site.responses.retrieve(begun.id)
        for _ in range(3):
            at.open()
        ended = await site.polled(begun.id)
        after = await site.responses.create(
            model="echo", input="and then", previous_response_id=begun.id
        )

    assert (begun.status, begun.background) == ("queued", True)
    assert (running.status, ended.status) == ("in_progress", "completed")
    assert ended.output_text == "one two three"
    assert after.output_text == "and then and 2 before"
    assert (site.jobs[0].answered, site.jobs[0].delivery) == (202, 1)
    assert site.jobs[0].pid != site.requests[0].pid
    assert not site.failures


async def test_a_stream_that_is_cut_is_resumed_in_another_environment(table: Table) -> None:
    async with gate() as at, serving(at, table) as site:
        stream = await site.responses.create(
            model="steps", input="hi", background=True, stream=True
        )
        seen = await until_delta(stream)
        (follower,) = site.requests
        assert follower.pid is not None
        os.kill(follower.pid, signal.SIGKILL)
        with pytest.raises(APIConnectionError):
            await until_delta(stream)
        await at.until("one")
        at.open()  # what is said while nobody follows is not lost
        await at.until("two")
        resumed = await site.responses.retrieve(
            seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
        )
        seen += await until_delta(resumed)
        at.open()
        at.open()
        seen += await rest_of(resumed)

    assert [event.sequence_number for event in seen] == [*range(len(seen))]
    assert [event.type for event in seen[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert seen[-1].type == "response.completed"
    assert text_of(seen) == seen[-1].response.output_text == "one two three"
    pids = {record.pid for record in (follower, site.jobs[0], site.requests[-1])}
    assert len(pids) == 3


async def test_a_running_response_is_cancelled_from_another_environment(table: Table) -> None:
    async with gate() as at, serving(at, table) as site:
        begun = await site.responses.create(model="hangs", input="hi", background=True)
        await at.until("waiting")
        cancelled = await site.responses.cancel(begun.id)
        await at.until("cancelled")
        await site.until_over()
        kept = await site.responses.retrieve(begun.id)

    assert (cancelled.status, cancelled.output_text) == ("cancelled", "so far")
    assert kept == cancelled
    assert not site.failures


async def test_a_stream_tells_that_its_response_was_cancelled(table: Table) -> None:
    async with gate() as at, serving(at, table) as site:
        stream = await site.responses.create(
            model="hangs", input="hi", background=True, stream=True
        )
        seen = await until_delta(stream)
        cancelled = await site.responses.cancel(seen[0].response.id)
        seen += await rest_of(stream)

    assert cancelled.status == "cancelled"
    assert seen[-1].type == "response.failed"
    assert seen[-1].response == cancelled
    assert [event.sequence_number for event in seen] == [*range(len(seen))]


async def test_a_response_whose_worker_was_killed_has_failed_once_its_lease_is_over(
    table: Table,
) -> None:
    async with gate() as at, serving(at, table, retry_after_s=()) as site:
        stream = await site.responses.create(
            model="hangs", input="hi", background=True, stream=True
        )
        seen = await until_delta(stream)
        await stream.close()
        response_id = seen[0].response.id
        await site.kill_worker()
        await site.lines.until("DROPPED")
        running = await site.responses.retrieve(response_id)
        table.end_lease(response_id)
        failed = await site.responses.retrieve(response_id)
        resumed = await site.responses.retrieve(
            response_id, stream=True, starting_after=seen[-1].sequence_number
        )
        rest = await rest_of(resumed)

        (job,) = site.url.failed_jobs
        again = await site.invoke(job.event, kind="Event")
        await site.lines.until(
            f"REPORT {again.headers['x-amzn-requestid']} Event delivery 1 buffered"
        )
        kept = await site.responses.retrieve(response_id)

    assert (running.status, failed.status) == ("in_progress", "failed")
    assert failed.error is not None
    assert failed.error.code == "server_error"
    assert failed.output_text == "so far"
    assert rest[-1].type == "response.failed"
    assert rest[-1].response == failed
    assert kept == failed
    assert (site.failures, at.agents) == (["Runtime.ExitError"], 1)


async def test_a_job_that_is_tried_again_does_not_run_the_agent_again(table: Table) -> None:
    async with gate() as at, serving(at, table, retry_after_s=(0, 0)) as site:
        begun = await site.responses.create(model="hangs", input="hi", background=True)
        await at.until("waiting")
        await site.kill_worker()
        await site.until_over(2)
        running = await site.responses.retrieve(begun.id)
        table.end_lease(begun.id)
        failed = await site.responses.retrieve(begun.id)

    assert (running.status, failed.status) == ("in_progress", "failed")
    assert [job.delivery for job in site.jobs] == [1, 2]
    assert (site.failures, at.agents) == (["Runtime.ExitError"], 1)
    assert not site.url.failed_jobs


async def test_a_job_that_is_delivered_twice_runs_the_agent_once(table: Table) -> None:
    async with gate() as at, serving(at, table, Faults(delivers_twice=True)) as site:
        begun = await site.responses.create(model="steps", input="hi", background=True)
        await at.until("one")
        await site.lines.until("Event delivery")  # the other one has ended
        for _ in range(3):
            at.open()
        ended = await site.polled(begun.id)
        await site.until_over()
        await site.until_over(2)

    assert (ended.status, ended.output_text) == ("completed", "one two three")
    assert [job.delivery for job in site.jobs] == [1, 2]
    assert (site.failures, at.agents) == ([], 1)


async def test_a_worker_that_runs_out_of_time_has_stored_that_and_is_not_tried_again(
    table: Table,
) -> None:
    async with gate() as at, serving(at, table, timeout_s=3, retry_after_s=(0, 0)) as site:
        begun = await site.responses.create(model="hangs", input="hi", background=True)
        await at.until("cancelled")
        ended = await site.polled(begun.id)
        await site.until_over()

    assert (ended.status, ended.output_text) == ("failed", "so far")
    assert not site.failures


async def test_an_agent_that_fails_is_the_end_of_its_job(table: Table) -> None:
    async with gate() as at, serving(at, table, retry_after_s=(0, 0)) as site:
        begun = await site.responses.create(model="fails", input="hi", background=True)
        ended = await site.polled(begun.id)
        await site.until_over()

    assert (ended.status, ended.output_text) == ("failed", "so far")
    assert not site.failures
    assert not any("secret" in line for line in site.url.logs)


async def test_a_response_goes_on_while_the_environment_that_began_it_is_frozen(
    table: Table,
) -> None:
    async with gate() as at, serving(at, table, freezes=True) as site:
        begun = await site.responses.create(model="steps", input="hi", background=True)
        await at.until("one")
        (request,), (job,) = site.requests, site.jobs
        assert request.pid is not None
        await until_stopped(request.pid)
        for _ in range(3):
            at.open()
        await site.until_over()
        assert job.pid is not None
        await until_stopped(job.pid)
        ended = await site.responses.retrieve(begun.id)

    assert (ended.status, ended.output_text) == ("completed", "one two three")


@pytest.mark.parametrize(
    "options", [{"is_snap_start": True}, {"environments": 1, "concurrency": 8}], ids=str
)
async def test_a_background_stream_works_however_lambda_runs_the_function(
    table: Table, options: dict[str, Any]
) -> None:
    async with gate() as at, serving(at, table, **options) as site:
        stream = await site.responses.create(model="echo", input="hi", background=True, stream=True)
        events = await rest_of(stream)
        kept = await site.responses.retrieve(events[-1].response.id)

    assert events[-1].type == "response.completed"
    assert events[-1].response == kept
    assert kept.output_text == "hi and 0 before"
