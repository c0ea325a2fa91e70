"""The `openai` package keeps conversations on the local server, as users have both."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.conversations import Conversation, Message
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from tests.e2e.server import running
from tests.e2e.test_openai_sdk import TOOL


MODEL = "agent"
NAME: Any = {"role": "user", "content": "My name is Ada."}
CITY: Any = {"type": "message", "role": "user", "content": "My city is Paris."}


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    # So slow that a turn of many words is still running when the next request comes.
    with running(DEMO_DELAY_MS="10") as url:
        yield url


@pytest.fixture(scope="module")
def alpha(root: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def beta(root: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{root}/v1", api_key="dev-beta", max_retries=0) as client:
        yield client


def plain(model: BaseModel) -> dict[str, Any]:
    """Return what a model holds, and fail where pydantic would only warn."""
    return model.model_dump(mode="json", by_alias=True, warnings="error")


def texts(client: OpenAI, conversation_id: str, **page: Any) -> list[str]:
    """Return the texts of a conversation's messages, through the pages of the package."""
    items = client.conversations.items.list(conversation_id, order="asc", **page)
    messages = [item for item in items if isinstance(item, Message)]
    return [part.text for item in messages for part in item.content if hasattr(part, "text")]


def test_a_conversation_is_created_retrieved_updated_and_deleted(alpha: OpenAI) -> None:
    made = alpha.conversations.create(metadata={"topic": "demo"})
    retrieved = alpha.conversations.retrieve(made.id)
    updated = alpha.conversations.update(made.id, metadata={"topic": "other"})
    deleted = alpha.conversations.delete(made.id)

    assert isinstance(made, Conversation)
    assert plain(retrieved) == plain(made)
    assert plain(updated) == {**plain(made), "metadata": {"topic": "other"}}
    assert plain(deleted) == {"id": made.id, "object": "conversation.deleted", "deleted": True}
    for ask in (alpha.conversations.retrieve, alpha.conversations.delete):
        with pytest.raises(openai.NotFoundError, match=f"'{made.id}' not found"):
            ask(made.id)


def test_items_are_created_listed_retrieved_and_deleted(alpha: OpenAI) -> None:
    made = alpha.conversations.create(items=[NAME])
    added = alpha.conversations.items.create(made.id, items=[CITY, NAME])
    first, second = added.data
    assert isinstance(first, Message)
    assert isinstance(second, Message)

    retrieved = alpha.conversations.items.retrieve(first.id, conversation_id=made.id)
    deleted = alpha.conversations.items.delete(first.id, conversation_id=made.id)

    assert (added.first_id, added.last_id, added.has_more) == (first.id, second.id, False)
    assert plain(retrieved) == plain(first)
    assert plain(deleted) == plain(made)
    assert texts(alpha, made.id) == ["My name is Ada."] * 2
    with pytest.raises(openai.NotFoundError, match=f"'{first.id}' not found"):
        alpha.conversations.items.retrieve(first.id, conversation_id=made.id)


def test_items_are_listed_page_by_page_in_both_orders(alpha: OpenAI) -> None:
    numbers: list[Any] = [{"role": "user", "content": str(number)} for number in range(15)]
    made = alpha.conversations.create(items=numbers)
    for number in range(15, 20):
        alpha.conversations.items.create(made.id, items=[{"role": "user", "content": str(number)}])

    page = alpha.conversations.items.list(made.id, limit=4)
    backwards = [plain(item)["content"][0]["text"] for item in page]

    assert page.has_next_page()
    assert backwards == [str(number) for number in reversed(range(20))]
    assert texts(alpha, made.id, limit=7) == backwards[::-1]


def test_two_turns_of_a_conversation_remember_what_was_said(alpha: OpenAI) -> None:
    made = alpha.conversations.create(items=[NAME])

    first = alpha.responses.create(
        model=MODEL, input="My city is Paris.", conversation={"id": made.id}
    )
    with alpha.responses.stream(
        model=MODEL, input="What did I tell you?", conversation=made.id
    ) as stream:
        second = stream.until_done().get_final_response()

    assert first.conversation is not None
    assert first.conversation.id == made.id
    assert "Your name is Ada. Your city is Paris." in second.output_text
    assert texts(alpha, made.id) == [
        "My name is Ada.",
        "My city is Paris.",
        first.output_text,
        "What did I tell you?",
        second.output_text,
    ]
    assert plain(alpha.responses.retrieve(first.id)) == plain(first)


def test_a_tool_makes_its_round_trip_in_a_conversation(alpha: OpenAI) -> None:
    made = alpha.conversations.create()
    first = alpha.responses.create(
        model=MODEL, input="What is the weather in Paris?", tools=[TOOL], conversation=made.id
    )
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)

    second = alpha.responses.create(
        model=MODEL,
        tools=[TOOL],
        conversation=made.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}],
    )

    assert second.output_text == "The tool get_weather answered: 18 degrees"
    items = alpha.conversations.items.list(made.id, order="asc").data
    kinds = [item.type for item in items]
    assert kinds == ["message", "function_call", "function_call_output", "message"]
    assert all(plain(item)["status"] == "completed" for item in items)


def test_a_response_of_a_conversation_is_forked_by_its_id(alpha: OpenAI) -> None:
    made = alpha.conversations.create(items=[NAME])
    first = alpha.responses.create(model=MODEL, input="Hello!", conversation=made.id)
    alpha.responses.create(model=MODEL, input="My city is Paris.", conversation=made.id)

    fork = alpha.responses.create(
        model=MODEL, input="What did I tell you?", previous_response_id=first.id
    )

    assert "Your name is Ada." in fork.output_text
    assert "Paris" not in fork.output_text
    assert fork.conversation is None


def test_a_running_turn_locks_its_conversation(alpha: OpenAI) -> None:
    made = alpha.conversations.create(items=[NAME])
    with alpha.responses.create(
        model=MODEL, input="demo: count 60", conversation=made.id, stream=True
    ) as stream:
        events = iter(stream)
        next(events)
        with pytest.raises(openai.BadRequestError) as raised:
            alpha.responses.create(model=MODEL, input="Hi", conversation=made.id)
        with pytest.raises(openai.BadRequestError) as raised_by_items:
            alpha.conversations.items.create(made.id, items=[CITY])
        last = [*events][-1]

    assert (raised.value.code, raised.value.param) == ("conversation_locked", "conversation")
    assert raised.value.response.headers["retry-after"] == "3"
    assert raised_by_items.value.code == "conversation_locked"
    assert last.type == "response.completed"
    after = alpha.responses.create(model=MODEL, input="What is my name?", conversation=made.id)
    assert "Ada" in after.output_text


def test_a_background_response_is_a_turn_of_its_conversation(alpha: OpenAI) -> None:
    made = alpha.conversations.create(items=[NAME])
    with alpha.responses.create(
        model=MODEL,
        input="What is my name?",
        conversation=made.id,
        background=True,
        stream=True,
    ) as stream:
        last = [*stream][-1]

    assert last.type == "response.completed"
    assert texts(alpha, made.id)[-1] == last.response.output_text == "Your name is Ada."
    again = alpha.responses.create(model=MODEL, input="What is my name?", conversation=made.id)
    assert "Ada" in again.output_text


def test_a_conversation_and_a_previous_response_exclude_each_other(alpha: OpenAI) -> None:
    made = alpha.conversations.create()
    first = alpha.responses.create(model=MODEL, input="Hi", conversation=made.id)

    with pytest.raises(openai.BadRequestError) as raised:
        alpha.responses.create(
            model=MODEL, input="Hi", conversation=made.id, previous_response_id=first.id
        )

    assert raised.value.code == "mutually_exclusive_parameters"


def test_two_tenants_cannot_see_each_other(alpha: OpenAI, beta: OpenAI) -> None:
    made = alpha.conversations.create(items=[NAME])
    (item,) = alpha.conversations.items.list(made.id).data
    assert isinstance(item, Message)

    for refused in (
        lambda: beta.conversations.retrieve(made.id),
        lambda: beta.conversations.update(made.id, metadata={}),
        lambda: beta.conversations.delete(made.id),
        lambda: beta.conversations.items.list(made.id),
        lambda: beta.conversations.items.create(made.id, items=[NAME]),
        lambda: beta.conversations.items.retrieve(item.id, conversation_id=made.id),
        lambda: beta.conversations.items.delete(item.id, conversation_id=made.id),
        lambda: beta.responses.create(model=MODEL, input="Hi", conversation=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            refused()

    assert texts(alpha, made.id) == ["My name is Ada."]


def test_the_asynchronous_client_keeps_a_conversation(root: str) -> None:
    async def talk() -> tuple[list[str], str]:
        async with AsyncOpenAI(base_url=f"{root}/v1", api_key="dev-beta") as client:
            made = await client.conversations.create(items=[NAME])
            response = await client.responses.create(
                model=MODEL, input="What is my name?", conversation=made.id
            )
            kinds = [
                str(item.type) async for item in client.conversations.items.list(made.id, limit=1)
            ]
        return kinds, response.output_text

    assert asyncio.run(talk()) == (["message"] * 3, "Your name is Ada.")
