"""The `openai` package and a background response: polled, cancelled, resumed, told of by a webhook."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent

from infra.dynamodb.webhooks import WebhookTable
from infra.settings import LOCAL_TABLE
from tests.e2e.server import running
from tests.infra.receivers import OK, Posted, listening, read_request


pytestmark = pytest.mark.anyio

MODEL = "agent"


@pytest.fixture(scope="module")
def root(dynalite: tuple[str, Any]) -> Iterator[str]:
    with running(DYNAMODB_ENDPOINT=dynalite[0]) as url:
        yield url


@pytest.fixture
async def alpha(root: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as client:
        yield client


async def ended(client: AsyncOpenAI, response: Response) -> Response:
    async with asyncio.timeout(10):
        while response.status in ("queued", "in_progress"):
            response = await client.responses.retrieve(response.id)
    return response


async def test_a_background_response_is_polled_until_it_is_completed(alpha: AsyncOpenAI) -> None:
    begun = await alpha.responses.create(model=MODEL, input="Hello!", background=True)
    assert begun.status == "queued"

    response = await ended(alpha, begun)

    assert (response.status, response.background) == ("completed", True)
    assert response.output_text
    assert response.usage is not None
    response.model_dump(mode="json", warnings="error")


async def test_a_background_stream_is_resumed_by_both_ways_of_the_package(
    alpha: AsyncOpenAI,
) -> None:
    events: list[Any] = [
        event
        async for event in await alpha.responses.create(
            model=MODEL, input="Hello!", background=True, stream=True
        )
    ]
    response_id = events[0].response.id
    at = events[len(events) // 2].sequence_number

    plain: list[ResponseStreamEvent] = [
        event
        async for event in await alpha.responses.retrieve(
            response_id, stream=True, starting_after=at
        )
    ]
    async with alpha.responses.stream(response_id=response_id) as stream:
        helped = [event.type async for event in stream]
        final = await stream.get_final_response()

    assert plain == events[at + 1 :]
    assert helped[0] == "response.created"
    assert final.output_text == events[-1].response.output_text


async def test_a_response_is_cancelled_and_then_no_more(alpha: AsyncOpenAI) -> None:
    begun = await alpha.responses.create(model=MODEL, input="demo: wait 60", background=True)

    cancelled = await alpha.responses.cancel(begun.id)

    assert cancelled.status == "cancelled"
    assert await alpha.responses.cancel(begun.id) == cancelled
    finished = await ended(
        alpha, await alpha.responses.create(model=MODEL, input="Hello!", background=True)
    )
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a completed response"):
        await alpha.responses.cancel(finished.id)


@pytest.mark.parametrize(
    ("said", "event_type"),
    [("Hello!", "response.completed"), ("demo: fail", "response.failed")],
)
async def test_the_package_unwraps_the_webhook_of_a_response_that_ended(
    dynalite: tuple[str, Any], alpha: AsyncOpenAI, said: str, event_type: str
) -> None:
    webhooks = WebhookTable(dynalite[1], LOCAL_TABLE)
    posts: asyncio.Queue[Posted] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        posts.put_nowait(await read_request(reader))
        writer.write(OK)

    async with listening(receive) as port:
        url = f"http://127.0.0.1:{port}/hooks"
        endpoint = await webhooks.register("alpha", url, allow_private=True)
        begun = await alpha.responses.create(model=MODEL, input=said, background=True)
        posted = await posts.get()
    await webhooks.delete(endpoint.id)

    event: Any = alpha.webhooks.unwrap(posted.body, posted.headers, secret=endpoint.secret)

    assert event.type == event_type
    assert event.data.id == begun.id
    with pytest.raises(openai.InvalidWebhookSignatureError):
        alpha.webhooks.unwrap(posted.body + b" ", posted.headers, secret=endpoint.secret)
