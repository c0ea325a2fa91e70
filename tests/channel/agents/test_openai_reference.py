"""References to upstreams: what they name, and the one sentence that a wrong one gets."""

import pytest

from channel.agents.openai_wire.reference import OPENAI, UpstreamReference, parse_reference
from channel.loading import AgentReferenceError


HOW = "write it as openai:<model>@<base url>, such as openai:qwen3:8b@http://localhost:11434/v1"


@pytest.mark.parametrize(
    ("reference", "model", "base_url", "is_chat"),
    [
        ("openai:gpt-5", "gpt-5", OPENAI, False),
        ("openai-chat:gpt-4o", "gpt-4o", OPENAI, True),
        (
            "openai:qwen3:8b@http://localhost:11434/v1",
            "qwen3:8b",
            "http://localhost:11434/v1",
            False,
        ),
        ("openai-chat:m@https://h/v1", "m", "https://h/v1", True),
        ("openai:m@https://h/v1/", "m", "https://h/v1", False),
        ("openai:m@HTTPS://h", "m", "HTTPS://h", False),
        ("openai:m@http://[::1]:8000/v1", "m", "http://[::1]:8000/v1", False),
        (
            "openai:meta-llama/Llama-3.3-70B-Instruct@http://vllm:8000/v1",
            "meta-llama/Llama-3.3-70B-Instruct",
            "http://vllm:8000/v1",
            False,
        ),
        ("openai:@cf/meta/llama-3@https://h/v1", "@cf/meta/llama-3", "https://h/v1", False),
        ("openai:claude-sonnet-4@20250514", "claude-sonnet-4@20250514", OPENAI, False),
        ("openai:m@20250514@https://h/v1", "m@20250514", "https://h/v1", False),
        ("openai:m@http://a@http://b/v1", "m@http://a", "http://b/v1", False),
        ("openai:http://odd@http://h/v1", "http://odd", "http://h/v1", False),
        (
            "openai:openai.gpt-oss-20b-1:0@https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1",
            "openai.gpt-oss-20b-1:0",
            "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1",
            False,
        ),
    ],
)
def test_a_reference_names_a_model_and_where_it_is_served(
    reference: str, model: str, base_url: str, is_chat: bool
) -> None:
    assert parse_reference(reference) == UpstreamReference(model, base_url, is_chat)


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [
        ("openai:", "it names no model"),
        ("openai:@http://localhost:11434/v1", "it names no model"),
        ("openai:m@localhost:11434/v1", "its base URL does not begin with http:// or https://"),
        ("openai:m@localhost", "its base URL does not begin with http:// or https://"),
        ("openai:m@vllm.internal:8000", "its base URL does not begin with http:// or https://"),
        ("openai:m@", "its base URL does not begin with http:// or https://"),
        (
            "openai:m@gateway.example.com/v1",
            "its base URL does not begin with http:// or https://",
        ),
        ("openai:m@gateway.example", "its base URL does not begin with http:// or https://"),
        ("openai:m@my-gw/v1", "its base URL does not begin with http:// or https://"),
        ("openai:m@wss://x/v1", "its base URL does not begin with http:// or https://"),
        ("openai:https://h/v1", "it names no model"),
        ("openai:m@http://", "its base URL names no host"),
        ("openai:m@http:///v1", "its base URL names no host"),
        ("openai:m@http://h:port/v1", "its base URL cannot be read"),
        ("openai:m@http://h:99999/v1", "its base URL cannot be read"),
        (
            "openai:m@https://h/v1/responses",
            "its base URL ends with /responses, which is added to it",
        ),
        (
            "openai:m@https://h/v1/chat/completions/",
            "its base URL ends with /chat/completions, which is added to it",
        ),
    ],
)
def test_a_wrong_one_is_one_sentence(reference: str, wrong: str) -> None:
    with pytest.raises(AgentReferenceError) as raised:
        parse_reference(reference)

    assert str(raised.value) == f"AGENT is {reference!r}, but {wrong}; {HOW}"


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    with pytest.raises(AgentReferenceError) as raised:
        parse_reference("openai:m@https://user:sk-secret@h/v1")

    assert str(raised.value) == (
        "AGENT is 'openai:m@https://…@h/v1', but its base URL holds credentials, which belong into "
        f"OPENAI_API_KEY; {HOW}"
    )


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("openai:m@https://h/v1?key=SECRET", "openai:m@https://h/v1?…"),
        ("openai:m@https://h/v1#SECRET", "openai:m@https://h/v1?…"),
        ("openai:m@https://user:SEC/RET@h/v1", "openai:m@https://…@h/v1"),
        ("openai:m@https://user:SEC@RET@h/v1", "openai:m@https://…@h/v1"),
        ("openai:m@https://us#er:SECRET@h/v1", "openai:m@https://…@h/v1"),
        ("openai:m@ftp://user:SECRET@h/v1", "openai:m@ftp://…@h/v1"),
        ("openai:m@user:SECRET@h:80/v1", "openai:m@…@h:80/v1"),
        ("openai:@cf/m@https://user:SECRET@h/v1", "openai:@cf/m@https://…@h/v1"),
        ("openai:https://user:SECRET@h/v1", "openai:https://…@h/v1"),
    ],
)
def test_what_may_be_a_secret_is_not_shown(reference: str, shown: str) -> None:
    with pytest.raises(AgentReferenceError) as raised:
        parse_reference(reference)

    assert str(raised.value).startswith(f"AGENT is {shown!r}, but ")
