"""What is made of an upstream's refusals: asking again more simply, or not at all."""

import pytest
from msgspec.structs import replace

from channel.agents.openai_wire.dialect import (
    Dialect,
    Refusal,
    first_dialect,
    has_no_route,
    simpler,
)


RESPONSES = Dialect()
CHAT = Dialect(is_chat=True)
BODY = {"model": "m", "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k"}
CHAT_BODY = {"model": "m", "stream_options": {}, "max_tokens": 64, "parallel_tool_calls": False}


@pytest.mark.parametrize(
    ("base_url", "max_tokens"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://bedrock-mantle.eu-west-1.api.aws/openai/v1", "max_completion_tokens"),
        ("http://localhost:11434/v1", "max_tokens"),
        ("https://notopenai.com/v1", "max_tokens"),
        ("https://api.openai.com.evil.example/v1", "max_tokens"),
    ],
)
def test_the_limit_has_the_name_that_every_server_of_the_host_takes(
    base_url: str, max_tokens: str
) -> None:
    assert first_dialect(base_url, is_chat=True) == Dialect(is_chat=True, max_tokens=max_tokens)


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(404, message="404 page not found"),  # Go's servers
        Refusal(404, message="Error code: 404 - {'detail': 'Not Found'}"),  # FastAPI
        Refusal(404, message="Invalid URL (POST /v1/responses)"),  # OpenAI's way
        Refusal(404),
        Refusal(405, message="Method Not Allowed: model"),
        Refusal(501),
    ],
)
def test_without_a_responses_api_chat_completions_are_asked(refusal: Refusal) -> None:
    assert has_no_route(refusal)
    assert simpler(RESPONSES, BODY, refusal, may_switch=True) == CHAT
    assert simpler(RESPONSES, BODY, refusal, may_switch=False) is None
    assert simpler(CHAT, CHAT_BODY, refusal, may_switch=True) is None


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(404, message="model 'qwen3' not found, try pulling it first"),  # Ollama
        Refusal(404, param="model", message="The thing `x` does not exist."),  # vLLM
        Refusal(404, code="model_not_found", message="No access to `gpt-9`"),
        Refusal(404, code="DeploymentNotFound", message="It does not exist."),  # Azure
        Refusal(404, param="input[0].content", message="No such File object: file-1"),
        Refusal(401),
        Refusal(500),
    ],
)
def test_a_model_that_is_not_there_is_no_missing_route(refusal: Refusal) -> None:
    assert not has_no_route(refusal)
    assert simpler(RESPONSES, BODY, refusal, may_switch=True) is None


@pytest.mark.parametrize(
    ("refusal", "field"),
    [
        (
            Refusal(400, "", "include", "Encrypted content is not supported with this model."),
            "include",
        ),
        (Refusal(422, "", "", "{'loc': ['body', 'prompt_cache_key'], …}"), "prompt_cache_key"),
        (Refusal(400, "", "include[0]", "no"), "include"),
    ],
)
def test_what_can_be_done_without_is_left_out(refusal: Refusal, field: str) -> None:
    again = simpler(RESPONSES, BODY, refusal, may_switch=True)

    assert again == replace(RESPONSES, without=frozenset({field}))
    assert again.replays_reasoning is (field != "include")


@pytest.mark.parametrize("field", ["stream_options", "parallel_tool_calls"])
def test_so_it_is_with_chat_completions(field: str) -> None:
    refusal = Refusal(400, "unsupported_parameter", field, f"Unsupported parameter: '{field}'")

    assert simpler(CHAT, CHAT_BODY, refusal, may_switch=True) == replace(
        CHAT, without=frozenset({field})
    )


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(400, "unsupported_value", "temperature", "include a temperature of 1"),
        Refusal(400, "", "", "tools are not supported"),
        Refusal(400, "", "stream_options", "not in this body"),
        Refusal(400, "", "", "excluded"),
        Refusal(429, "", "include", ""),
    ],
)
def test_any_other_refusal_stands(refusal: Refusal) -> None:
    assert simpler(RESPONSES, BODY, refusal, may_switch=True) is None


def test_reasoning_that_cannot_be_decrypted_is_left_out_of_this_turn() -> None:
    refusal = Refusal(400, "invalid_encrypted_content", "", "It could not be verified.")

    again = simpler(RESPONSES, BODY, refusal, may_switch=True)

    assert again == replace(RESPONSES, is_forgetful=True)
    assert not again.replays_reasoning
    assert simpler(again, BODY, refusal, may_switch=True) is None


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            replace(CHAT, max_tokens="max_completion_tokens"),
        ),
        ("'max_tokens' or 'max_completion_tokens' is too large: the context has 4096.", None),
    ],
)
def test_a_model_that_reasons_has_another_name_for_the_limit(
    message: str, expected: Dialect | None
) -> None:
    assert simpler(CHAT, CHAT_BODY, Refusal(400, "", "", message), may_switch=True) == expected
