"""The `openai` package's `responses.connect()` talks to the local server, as users start it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.resources.responses.responses import AsyncResponsesConnection, ResponsesConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.gate import Gate, gate
from tests.e2e.server import running


pytestmark = pytest.mark.anyio

AGENT = "tests.e2e.gated_agents:agent"
TERMINAL = ("response.completed", "response.incomplete", "response.failed", "error")
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with running(AGENT=AGENT, PYTHONPATH=ROOT) as root:
        yield f"{root}/v1"


@pytest.fixture(scope="module")
def alpha(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="dev-alpha", max_retries=0) as client:
        yield client


def ending(connection: ResponsesConnection, **fields: Any) -> Any:
    """Ask for a response, and return the event that ends its turn."""
    connection.response.create(**{"model": "agent", "input": "hi", **fields})
    for event in connection:
        assert getattr(event, "stream_id", None) == fields.get("stream_id")
        if event.type in TERMINAL:
            return event
    raise AssertionError


def response(connection: ResponsesConnection, **fields: Any) -> Any:
    event = ending(connection, **fields)
    assert event.type == "response.completed", event
    return event.response


def test_two_turns_follow_each_other_and_are_there_over_http(alpha: OpenAI) -> None:
    with alpha.responses.connect() as connection:
        first = response(connection, input="one")
        second = response(connection, input="two", previous_response_id=first.id)

    assert [first.output_text, second.output_text] == ["one and 0 before", "two and 2 before"]
    assert alpha.responses.retrieve(second.id).output_text == second.output_text


def test_events_come_as_the_package_knows_them(alpha: OpenAI) -> None:
    with alpha.responses.connect() as connection:
        connection.response.create(model="agent", input="one")
        events = []
        for event in connection:
            events.append(event)
            if event.type in TERMINAL:
                break

    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [getattr(event, "sequence_number", None) for event in events] == [*range(9)]


def test_responses_that_are_not_stored_are_continued_and_then_stored(alpha: OpenAI) -> None:
    with alpha.responses.connect() as connection:
        first = response(connection, input="one", store=False)
        second = response(connection, input="two", store=False, previous_response_id=first.id)
        third = response(connection, input="three", previous_response_id=second.id)

    after = alpha.responses.create(model="agent", input="four", previous_response_id=third.id)
    assert (second.output_text, third.output_text) == ("two and 2 before", "three and 4 before")
    assert after.output_text == "four and 6 before"


def test_an_unknown_id_is_an_error_and_the_connection_goes_on(alpha: OpenAI, base_url: str) -> None:
    with (
        alpha.responses.connect() as connection,
        alpha.responses.connect() as other,
        OpenAI(base_url=base_url, api_key="dev-beta").responses.connect() as beta,
    ):
        local = response(connection, store=False)
        unknown = "resp_" + "0" * 52
        events = [
            ending(connection, previous_response_id=unknown),
            ending(other, previous_response_id=local.id),
            ending(beta, previous_response_id=local.id),
        ]
        assert response(other).output_text == "hi and 0 before"
        assert response(beta).output_text == "hi and 0 before"
        on = response(connection, previous_response_id=local.id)

    assert on.output_text == "hi and 2 before"
    for event, named in zip(events, (unknown, local.id, local.id), strict=True):
        assert (event.status, event.error.code) == (400, "previous_response_not_found")
        assert event.error.message == f"Previous response with id '{named}' not found."


def test_a_continuation_that_is_refused_evicts_what_it_continued(alpha: OpenAI) -> None:
    with alpha.responses.connect() as connection:
        first = response(connection, store=False)
        output = {"type": "function_call_output", "call_id": "call_x", "output": "?"}
        refused = ending(connection, previous_response_id=first.id, input=[output])
        again = ending(connection, previous_response_id=first.id)

    assert (refused.type, refused.error.param) == ("error", "input")
    assert again.error.code == "previous_response_not_found"


def test_a_warm_up_can_be_continued(alpha: OpenAI) -> None:
    with alpha.responses.connect() as connection:
        warm = response(connection, input="context", generate=False, store=False)
        text = response(connection, previous_response_id=warm.id).output_text

    assert (warm.output, text) == ([], "hi and 1 before")


@pytest.mark.parametrize("key", ["wrong", "dev-alpha2"])
def test_a_bad_key_is_refused_at_the_upgrade(base_url: str, key: str) -> None:
    client = OpenAI(base_url=base_url, api_key=key)

    with pytest.raises(InvalidStatus) as refused, client.responses.connect():
        pass

    reply = refused.value.response
    assert reply.status_code == 401
    assert b"invalid_api_key" in (reply.body or b"")
    assert reply.headers["x-request-id"].startswith("req_")


def test_bad_frames_are_refused_and_the_connection_goes_on(alpha: OpenAI) -> None:
    with alpha.responses.connect() as connection:
        told: list[Any] = []
        for bad in ("no JSON", b"binary", "[]", "x" * (6 * 1024 * 1024 + 1)):
            connection.send_raw(bad)
            told.append(connection.recv())
        assert response(connection).output_text == "hi and 0 before"

    assert [(each.type, each.status) for each in told] == [*[("error", 400)] * 3, ("error", 413)]


@pytest.fixture
async def held() -> AsyncIterator[tuple[Gate, str]]:
    """Give a server whose agent can be led by a gate."""
    async with gate() as at:
        with running(AGENT=AGENT, PYTHONPATH=ROOT, GATE=at.path) as root:
            yield at, f"{root}/v1"


async def test_lanes_run_at_the_same_time(held: tuple[Gate, str]) -> None:
    at, base_url = held
    async with (
        AsyncOpenAI(base_url=base_url, api_key="dev-alpha") as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model="hangs", input="slow", stream_id="a")
        await at.until("waiting")
        await connection.response.create(model="agent", input="quick", stream_id="b")
        endings = []
        async with asyncio.timeout(20):
            async for event in connection:
                if event.type not in TERMINAL:
                    continue
                endings.append((event.type, getattr(event, "stream_id", None)))
                if len(endings) == 2:
                    break
                at.open()

    assert endings == [("response.completed", "b"), ("response.completed", "a")]


async def test_a_client_that_goes_away_cancels_its_turn(held: tuple[Gate, str]) -> None:
    at, base_url = held
    async with AsyncOpenAI(base_url=base_url, api_key="dev-alpha") as client:
        async with client.responses.connect() as connection:
            await connection.response.create(model="hangs", input="slow")
            created: Any = await connection.recv()
            await at.until("waiting")
        await at.until("cancelled")
        kept = await _ended(client, created.response.id)

    assert (kept.status, kept.output_text) == ("cancelled", "so far")


async def _ended(client: AsyncOpenAI, response_id: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            try:
                return await client.responses.retrieve(response_id)
            except Exception as error:
                if getattr(error, "status_code", None) != 404:
                    raise


async def test_a_server_that_stops_says_that_it_restarts() -> None:
    async with gate() as at:
        with running(AGENT=AGENT, PYTHONPATH=ROOT, GATE=at.path) as root:
            client = AsyncOpenAI(base_url=f"{root}/v1", api_key="dev-alpha")
            connection = await client.responses.connect().enter()
            await connection.response.create(model="hangs", input="slow")
            await at.until("waiting")
        await at.until("cancelled")
        code = await _close_code(connection)
        await client.close()

    assert code == 1012


async def _close_code(connection: AsyncResponsesConnection) -> int | None:
    """Read to the end of a connection, and return its close code."""
    while True:
        try:
            await connection.recv()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None
