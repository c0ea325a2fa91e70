"""The `openai` package counts and compacts through the local server, as users start it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import ResponseCompactionItem
from pydantic import BaseModel

from tests.e2e.server import running


MODEL = "agent"
LONG = "My name is Ada. " + "Nothing of it matters. " * 400


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    with running(AGENT="tests.e2e.recalling_agent:agent") as url:
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
    # The package has no type for a user's message among output items: it would warn.
    return model.model_dump(mode="json", by_alias=True, warnings="none", exclude_unset=True)


def test_the_tokens_of_a_request_are_counted(alpha: OpenAI) -> None:
    counted = alpha.responses.input_tokens.count(
        model=MODEL, input=LONG, instructions="Be brief.", truncation="auto"
    )

    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == (len(LONG) + 3) // 4 + 4 + 3 + 4


def test_the_tokens_of_a_chain_are_counted(alpha: OpenAI) -> None:
    first = alpha.responses.create(model=MODEL, input="Hello!")

    alone = alpha.responses.input_tokens.count(input="Hello!")
    chained = alpha.responses.input_tokens.count(input="Hello!", previous_response_id=first.id)

    assert chained.input_tokens > 2 * alone.input_tokens


def test_a_window_is_compacted_and_continued(alpha: OpenAI) -> None:
    first = alpha.responses.create(model=MODEL, input="My name is Ada.")
    second = alpha.responses.create(
        model=MODEL, input="My city is Paris.", previous_response_id=first.id
    )

    window = alpha.responses.compact(model=MODEL, previous_response_id=second.id)
    given: Any = [*(plain(item) for item in window.output), {"role": "user", "content": "And now?"}]
    third = alpha.responses.create(model=MODEL, input=given)
    fourth = alpha.responses.create(
        model=MODEL, input="Go on.", previous_response_id=third.id, store=False
    )

    item = window.output[-1]
    assert isinstance(item, ResponseCompactionItem)
    assert (window.object, window.usage.input_tokens, window.usage.output_tokens) == (
        *("response.compaction", 5),
        1,
    )
    seen = (
        "user: My name is Ada. | user: My city is Paris. | "
        "developer: Summary of the conversation before this point:\n\n"
        "4 items, the first of user: My name is | user: And now?"
    )
    assert third.output_text == seen
    assert fourth.output_text.startswith(f"{seen} | assistant: user: My name is Ada.")
    listed = [*alpha.responses.input_items.list(third.id, order="asc")]
    assert [entry.type for entry in listed] == ["message", "message", "compaction", "message"]
    assert plain(listed[2]) == plain(item)


def test_a_chain_goes_on_from_a_compaction_that_the_server_made(alpha: OpenAI) -> None:
    managed: Any = [{"type": "compaction", "compact_threshold": 1000}]
    first = alpha.responses.create(model=MODEL, input=LONG)

    with alpha.responses.stream(
        model=MODEL,
        input="What is my name?",
        previous_response_id=first.id,
        context_management=managed,
    ) as stream:
        events = [*stream]
        second = stream.get_final_response()
    third = alpha.responses.create(
        model=MODEL,
        input="Go on.",
        previous_response_id=second.id,
        context_management=managed,
    )

    assert [item.type for item in second.output] == ["compaction", "message"]
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.output_item.done",
    ]
    assert second.usage is not None
    assert second.usage.input_tokens == 3 + 2
    summary = (
        "developer: Summary of the conversation before this point:\n\n"
        "2 items, the first of user: My name is"
    )
    assert second.output_text == f"{summary} | user: What is my name?"
    assert third.output_text.startswith(f"{summary} | user: What is my name? | assistant: ")
    assert third.output_text.endswith(" | user: Go on.")
    assert [item.type for item in third.output] == ["message"]
    retrieved = alpha.responses.retrieve(second.id)
    assert retrieved.output[0] == second.output[0]


def test_a_background_response_is_compacted_too(alpha: OpenAI) -> None:
    managed: Any = [{"type": "compaction", "compact_threshold": 1000}]
    first = alpha.responses.create(model=MODEL, input=LONG)

    events = [
        *alpha.responses.create(
            model=MODEL,
            input="What is my name?",
            previous_response_id=first.id,
            context_management=managed,
            background=True,
            stream=True,
        )
    ]

    last = events[-1]
    assert last.type == "response.completed"
    assert [item.type for item in last.response.output] == ["compaction", "message"]


def test_what_was_compacted_for_one_tenant_is_refused_from_another(
    alpha: OpenAI, beta: OpenAI
) -> None:
    window = alpha.responses.compact(model=MODEL, input="My name is Ada.")
    given: Any = [plain(item) for item in window.output]

    for ask in (beta.responses.create, beta.responses.compact):
        with pytest.raises(openai.BadRequestError) as raised:
            ask(model=MODEL, input=given)
        assert raised.value.param == "input[1].encrypted_content"
    with pytest.raises(openai.BadRequestError) as raised:
        beta.responses.input_tokens.count(input=given)
    assert raised.value.code == "invalid_value"


def test_a_foreign_response_can_be_neither_counted_nor_compacted(
    alpha: OpenAI, beta: OpenAI
) -> None:
    mine = alpha.responses.create(model=MODEL, input="My name is Ada.")

    with pytest.raises(openai.BadRequestError) as counting:
        beta.responses.input_tokens.count(previous_response_id=mine.id)
    with pytest.raises(openai.BadRequestError) as compacting:
        beta.responses.compact(model=MODEL, previous_response_id=mine.id)

    codes = {counting.value.code, compacting.value.code}
    assert codes == {"previous_response_not_found"}


def test_a_model_is_needed_to_compact(alpha: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        alpha.responses.compact(model=None, input="Hello!")

    assert (raised.value.param, raised.value.code) == ("model", "missing_required_parameter")


def test_the_asynchronous_client_counts_and_compacts(root: str) -> None:
    async def ask() -> tuple[int, str]:
        async with AsyncOpenAI(base_url=f"{root}/v1", api_key="dev-alpha") as client:
            counted = await client.responses.input_tokens.count(input="Hello!")
            window = await client.responses.compact(model=MODEL, input="Hello!")
        return counted.input_tokens, window.output[-1].type

    assert asyncio.run(ask()) == (6, "compaction")
