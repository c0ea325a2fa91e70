"""Replies that go elsewhere, as a user has them: real servers over one table, the `openai` package, a receiver."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from infra.dynamodb.undelivered import DynamoDBUndeliveredStore
from infra.dynamodb.webhooks import WebhookTable
from infra.settings import LOCAL_TABLE
from tests.channel.asgi import Wire
from tests.e2e.scenarios import HELLO
from tests.e2e.server import running
from tests.e2e.test_docs import LOCAL, blocks
from tests.infra.receivers import OK, Posted, listening, read_request


pytestmark = pytest.mark.anyio

DOWN = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def roots(dynalite: tuple[str, Any]) -> Iterator[tuple[str, str]]:
    """Return two instances over one table."""
    with ExitStack() as stack:
        settings = {
            "PUSH_CHANNELS": "webhook",
            "CALLER_TARGETS": "1",
            "DYNAMODB_ENDPOINT": dynalite[0],
        }
        one, other = [stack.enter_context(running(**settings)) for _ in range(2)]
        yield one, other


@asynccontextmanager
async def receiving(
    rows: WebhookTable, reply: bytes = OK
) -> AsyncIterator[tuple[Any, "asyncio.Queue[Posted]"]]:
    """Register an endpoint of alpha's that replies so; give it, and what is posted there."""
    posts: asyncio.Queue[Posted] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        posts.put_nowait(await read_request(reader))
        writer.write(reply)

    async with listening(receive) as port:
        url = f"http://127.0.0.1:{port}/replies"
        endpoint = await rows.register("alpha", url, allow_private=True)
        try:
            yield endpoint, posts
        finally:
            await rows.delete(endpoint.id)


def client(root: str, key: str = "dev-alpha") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{root}/v1", api_key=key, max_retries=0)


async def test_what_is_linked_at_one_server_gets_the_replies_of_another(
    roots: tuple[str, str], dynalite: tuple[str, Any]
) -> None:
    rows = WebhookTable(dynalite[1], LOCAL_TABLE)
    async with client(roots[0]) as one, client(roots[1]) as other, receiving(rows) as (hook, posts):
        await one.put("/identities/webhook", cast_to=object, body={"native_id": hook.id})
        for target in ("all_linked", "active", ["webhook"], f"webhook:{hook.id}"):
            response = await other.responses.create(
                model="agent", input="Hello!", extra_body={"response_target": target}
            )
            posted = await asyncio.wait_for(posts.get(), 20)
            event: Any = one.webhooks.unwrap(posted.body, posted.headers, secret=hook.secret)
            assert response.output_text == f"Delivered to webhook:{hook.id}."
            assert event.data.id == response.id
            assert event.data.text == HELLO
            whole = await one.responses.retrieve(response.id)
            assert whole.output_text == HELLO
        async with other.responses.stream(
            model="agent", input="Hello!", extra_body={"response_target": "webhook"}
        ) as stream:
            final = await stream.get_final_response()
        assert final.output_text == f"Delivered to webhook:{hook.id}."
        await asyncio.wait_for(posts.get(), 20)
        completion = await other.chat.completions.create(
            model="agent",
            messages=[{"role": "user", "content": "Hello!"}],
            extra_body={"response_target": "webhook"},
        )
        assert completion.choices[0].message.content == f"Delivered to webhook:{hook.id}."
        posted = await asyncio.wait_for(posts.get(), 20)
        event = one.webhooks.unwrap(posted.body, posted.headers, secret=hook.secret)
        assert event.data.text == HELLO


async def test_another_tenants_endpoint_equals_one_that_never_was(
    roots: tuple[str, str], dynalite: tuple[str, Any]
) -> None:
    rows = WebhookTable(dynalite[1], LOCAL_TABLE)
    never = "we_" + "0" * 24
    async with client(roots[0], "dev-beta") as beta, receiving(rows) as (hook, posts):
        said: dict[str, set[Any]] = {"target": set(), "link": set()}
        for native_id in (hook.id, never):
            with pytest.raises(openai.BadRequestError) as refused:
                await beta.responses.create(
                    model="agent",
                    input="Hello!",
                    extra_body={"response_target": f"webhook:{native_id}"},
                )
            said["target"].add(refused.value.response.text.replace(native_id, "ID"))
            body = {"native_id": native_id}
            with pytest.raises(openai.NotFoundError) as absent:
                await beta.put("/identities/webhook", cast_to=object, body=body)
            said["link"].add(absent.value.response.text)
        assert [len(texts) for texts in said.values()] == [1, 1]
        assert posts.empty()


async def test_an_endpoint_that_is_down_is_told_and_kept_and_tried_again(
    roots: tuple[str, str], dynalite: tuple[str, Any]
) -> None:
    rows = WebhookTable(dynalite[1], LOCAL_TABLE)
    undelivered = DynamoDBUndeliveredStore(dynalite[1], LOCAL_TABLE)
    async with (
        client(roots[0]) as alpha,
        receiving(rows, DOWN) as (down, refused),
        receiving(rows) as (good, posts),
    ):
        targets = [f"webhook:{down.id}", f"webhook:{good.id}"]
        response = await alpha.responses.create(
            model="agent", input="Hello!", extra_body={"response_target": targets}
        )
        assert response.output_text == (
            f"Delivered to webhook:{good.id}. Not delivered yet to webhook:{down.id}, but tried again."
        )
        first = await asyncio.wait_for(refused.get(), 20)
        again = await asyncio.wait_for(refused.get(), 20)
        assert first.headers["webhook-id"] == again.headers["webhook-id"]
        kept = {each.identity.native_id for each in await undelivered.all_of("alpha")}
        assert (down.id in kept, good.id in kept) == (True, False)
        assert posts.qsize() == 1


async def test_the_blocks_of_the_delivery_page_run(
    roots: tuple[str, str], dynalite: tuple[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = WebhookTable(dynalite[1], LOCAL_TABLE)
    linking, hosting, deploying = blocks("docs/delivery.md")[:3]
    names: dict[str, Any] = {}
    async with receiving(rows) as (hook, posts):
        linking = linking.replace(LOCAL, roots[0]).replace("we_…", hook.id)
        try:
            await asyncio.to_thread(exec, linking, names)
        finally:
            names["client"].close()
        assert posts.qsize() == 1
    assert capsys.readouterr().out == f"Delivered to webhook:{hook.id}.\n{HELLO}\n"
    exec(hosting, names)
    assert names["host"].deliveries.names == {"responses", "printed"}
    app, key = names["host"].app, {"authorization": "Bearer a-long-secret"}
    for target in ("printed:acme", "active"):
        body = json.dumps({"input": "Why?", "response_target": target}).encode()
        wire = await Wire("POST", "/v1/responses", body=body, headers=key).run(app)
        assert wire.status == 200
        body = b'{"native_id": "acme"}'
        linked = await Wire("PUT", "/v1/identities/printed", body=body, headers=key).run(app)
        assert linked.status == 200
    assert capsys.readouterr().out == "acme < You asked: Why?\n" * 2
    exec(deploying, names)
    options = names["deployed"]("eu-west-1", "table", "function:live")
    assert [channel.name for channel in options.push_channels] == ["printed"]
