"""Commands as the `openai` package's users type them, over a real socket, in both APIs."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.e2e.server import running


RESET = "Start over: what was said before is not remembered any more."
HELP = f"- /reset: {RESET}\n- /help: List the commands."


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with (
        running(COMMANDS="1") as root,
        OpenAI(base_url=f"{root}/v1", api_key="dev-alpha", max_retries=0) as made,
    ):
        yield made


def test_help_is_the_same_in_both_apis(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "/help"}]
    response = client.responses.create(model="agent", input="/help")
    with client.responses.stream(model="agent", input="/help") as stream:
        streamed = stream.get_final_response()
    completion = client.chat.completions.create(model="agent", messages=messages)
    chunks = [*client.chat.completions.create(model="agent", messages=messages, stream=True)]

    assert [response.output_text, streamed.output_text] == [HELP, HELP]
    assert completion.choices[0].message.content == HELP
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == HELP


def test_what_was_said_before_a_reset_is_forgotten(client: OpenAI) -> None:
    named = client.responses.create(model="agent", input="My name is Ada.")
    reset = client.responses.create(model="agent", input="/reset", previous_response_id=named.id)
    asked = [
        client.responses.create(
            model="agent", input="What is my name?", previous_response_id=before.id
        ).output_text
        for before in (reset, named)
    ]

    assert reset.output_text.startswith("Started over")
    assert "Ada" not in asked[0]
    assert "Ada" in asked[1]


def test_a_chat_is_told_that_its_client_remembers(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "/reset"}]
    first = client.chat.completions.create(model="agent", messages=messages)
    before: Any = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    later = client.chat.completions.create(model="agent", messages=[*before, *messages])

    texts = [each.choices[0].message.content or "" for each in (first, later)]
    assert ["begin a new chat" in text for text in texts] == [False, True]


def test_the_commands_are_listed(client: OpenAI) -> None:
    listed = client.get("/commands", cast_to=httpx.Response).json()

    assert [each["name"] for each in listed["data"]] == ["reset", "help"]
