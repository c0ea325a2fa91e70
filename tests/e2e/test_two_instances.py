"""Two servers, each a process of its own, over one table: what begins on A is B's as well."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent

from channel.responses.protocol.ids import response_body
from tests.e2e import server
from tests.e2e.gate import Gate, gate


pytestmark = pytest.mark.anyio

WORDS = "one two three"


@dataclass
class Pair:
    a: AsyncOpenAI
    b: AsyncOpenAI
    other: AsyncOpenAI  # another tenant, at B
    gate: Gate
    process_a: subprocess.Popen[str]

    async def begin(self, **fields: Any) -> Any:
        return await self.a.responses.create(input="go", model="steps", background=True, **fields)

    async def finish(self) -> None:
        for word in WORDS.split():
            await self.gate.until(word)
            self.gate.open()


@pytest.fixture
async def pair(dynalite: tuple[str, Any]) -> AsyncIterator[Pair]:
    async with opened(dynalite[0]) as both:
        yield both


@asynccontextmanager
async def opened(endpoint: str) -> AsyncIterator[Pair]:
    async with gate() as at:
        environ = {
            "DYNAMODB_ENDPOINT": endpoint,
            "AGENT": "tests.e2e.gated_agents:agent",
            "GATE": at.path,
        }
        with ExitStack() as stack:
            root_a, process_a = stack.enter_context(server.process(**environ))
            root_b, _ = stack.enter_context(server.process(**environ))
            at_a, at_b, other = (
                AsyncOpenAI(base_url=f"{root}/v1", api_key=key, max_retries=0)
                for root, key in (
                    (root_a, "dev-alpha"),
                    (root_b, "dev-alpha"),
                    (root_b, "dev-beta"),
                )
            )
            async with at_a, at_b, other:
                yield Pair(at_a, at_b, other, at, process_a)


def statuses(response: Response) -> tuple[str | None, str]:
    return response.status, response.output_text


async def test_what_a_begins_b_sees_resumes_and_deletes(pair: Pair) -> None:
    stream = await pair.begin(stream=True)
    original: list[ResponseStreamEvent] = [await anext(stream) for _ in range(2)]
    assert [event.type for event in original] == ["response.created", "response.queued"]
    response_id = original[0].response.id  # type: ignore[union-attr]  # as its type says
    await pair.gate.until("one")
    assert (await pair.b.responses.retrieve(response_id)).status == "in_progress"
    resumed = await pair.b.responses.retrieve(response_id, stream=True, starting_after=1)

    pair.gate.open()
    for word in ("two", "three"):
        await pair.gate.until(word)
        pair.gate.open()
    original += [event async for event in stream]
    tail = [event async for event in resumed]

    assert tail == original[2:]
    assert tail[-1].type == "response.completed"
    assert statuses(await pair.b.responses.retrieve(response_id)) == ("completed", WORDS)
    with pytest.raises(openai.NotFoundError):
        await pair.other.responses.retrieve(response_id, stream=True)
    with pytest.raises(openai.NotFoundError):
        await pair.other.responses.cancel(response_id)

    await pair.b.responses.delete(response_id)

    for each in (pair.a, pair.b):
        with pytest.raises(openai.NotFoundError):
            await each.responses.retrieve(response_id)


async def test_what_a_runs_b_cancels(pair: Pair) -> None:
    begun = await pair.begin()
    await pair.gate.until("one")

    cancelled = await pair.b.responses.cancel(begun.id)

    assert statuses(cancelled) == ("cancelled", "one ")
    await pair.gate.until("cancelled")
    assert await pair.a.responses.retrieve(begun.id) == cancelled


async def test_when_a_is_killed_b_tells_the_truth(dynalite: tuple[str, Any], pair: Pair) -> None:
    stream = await pair.begin(stream=True)
    created = await anext(stream)
    await pair.gate.until("one")
    said = ""
    while said != "one ":
        event = await anext(stream)
        said += event.delta if event.type == "response.output_text.delta" else ""

    pair.process_a.kill()
    pair.process_a.wait()
    assert (await pair.b.responses.retrieve(created.response.id)).status == "in_progress"
    end_lease(dynalite[1], created.response.id)

    seen = await pair.b.responses.retrieve(created.response.id)
    assert statuses(seen) == ("failed", "one ")
    assert seen.error is not None
    assert seen.error.code == "server_error"
    tail: list[Any] = [
        event
        async for event in await pair.b.responses.retrieve(
            created.response.id, stream=True, starting_after=event.sequence_number
        )
    ]
    assert [event.type for event in tail] == ["response.failed"]
    assert tail[0].response == seen


def end_lease(client: Any, response_id: str) -> None:
    """Let the lease of a run be over, as when its time has passed."""
    body = response_body(response_id)
    rows = client.scan(TableName="lambda-responses", ConsistentRead=True)["Items"]
    (run,) = [row for row in rows if row["pk"]["S"].endswith(f"#e#{body}") and "lease" in row]
    client.update_item(
        TableName="lambda-responses",
        Key={"pk": run["pk"], "sk": run["sk"]},
        UpdateExpression="SET lease = :past",
        ExpressionAttributeValues={":past": {"N": "1"}},
    )
