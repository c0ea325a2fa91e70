"""What is known of Bedrock's models by their ids: versions, options, and how they are asked to reason."""

from typing import Any

import pytest

from channel.agents.converse.models import NEWEST, Reasoning, model_of


ALL = {"max_output_tokens", "reasoning", "temperature", "text", "top_p"}
SAMPLING = {"temperature", "top_p"}
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4-7"
APPLICATION = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"


@pytest.mark.parametrize(
    ("model_id", "version"),
    [
        ("anthropic.claude-3-haiku-20240307-v1:0", (3, 0)),
        ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", (3, 7)),
        ("anthropic.claude-opus-4-20250514-v1:0", (4, 0)),
        ("anthropic.claude-opus-4-1-20250805-v1:0", (4, 1)),
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", (4, 5)),
        ("anthropic.claude-opus-4-6-v1", (4, 6)),
        (PROFILE, (4, 7)),
        ("us-gov.anthropic.claude-opus-5", (5, 0)),
        ("jp.anthropic.claude-haiku-5-5-20261001-v1:0", (5, 5)),
        ("anthropic.claude-mythos-preview", NEWEST),
    ],
)
def test_a_claude_has_the_version_of_its_name(model_id: str, version: tuple[int, int]) -> None:
    model = model_of(model_id)

    assert (model.is_claude, model.version) == (True, version)


@pytest.mark.parametrize(
    ("model_id", "foundation_id"),
    [
        ("us.amazon.nova-pro-v1:0", "amazon.nova-pro-v1:0"),
        ("moonshotai.kimi-k2.5", "moonshotai.kimi-k2.5"),
        ("ai21.jamba-1-5-large-v1:0", "ai21.jamba-1-5-large-v1:0"),
        (PROFILE, "anthropic.claude-opus-4-7"),
        ("arn:aws:bedrock:eu-west-1::foundation-model/zai.glm-4.7", "zai.glm-4.7"),
        (APPLICATION, APPLICATION),
    ],
)
def test_a_profile_tells_its_model(model_id: str, foundation_id: str) -> None:
    assert model_of(model_id).foundation_id == foundation_id


@pytest.mark.parametrize(
    ("model_id", "options"),
    [
        ("anthropic.claude-3-5-sonnet-20240620-v1:0", ALL - {"reasoning"}),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", ALL),
        ("anthropic.claude-opus-4-6-v1", ALL),
        ("anthropic.claude-opus-4-7", ALL - SAMPLING),
        ("anthropic.claude-opus-5", ALL - SAMPLING),
        ("amazon.nova-pro-v1:0", ALL - {"reasoning"}),
        ("us.amazon.nova-2-lite-v1:0", ALL),
        ("openai.gpt-oss-120b-1:0", ALL),
        ("xai.grok-4.6", ALL - SAMPLING - {"reasoning"}),
        ("meta.llama4-maverick-17b-instruct-v1:0", ALL - {"reasoning"}),
        (APPLICATION, ALL - {"reasoning"}),
    ],
)
def test_a_model_takes_the_options_that_it_can_honour(model_id: str, options: set[str]) -> None:
    assert model_of(model_id).options == options


def asked(model_id: str, effort: str | None, **given: Any) -> Reasoning:
    wanted = {"max_tokens": None, "is_shown": False, "is_bound": False, **given}
    return model_of(model_id).reasoning(effort, **wanted)


OPUS = "anthropic.claude-opus-4-7"
SONNET = "anthropic.claude-sonnet-4-6"
BUDGETED = "anthropic.claude-sonnet-4-5-20250929-v1:0"
NOVA = "us.amazon.nova-2-lite-v1:0"
GPT = "openai.gpt-oss-20b-1:0"
ADAPTIVE = {"thinking": {"type": "adaptive"}}


@pytest.mark.parametrize("model_id", [OPUS, SONNET, BUDGETED, NOVA, GPT])
@pytest.mark.parametrize("effort", [None, "none", "of a later day"])
def test_a_model_is_asked_to_reason_only_where_the_request_does(
    model_id: str, effort: str | None
) -> None:
    assert asked(model_id, effort, max_tokens=100) == Reasoning(max_tokens=100)


@pytest.mark.parametrize(
    ("model_id", "effort", "expected"),
    [
        (OPUS, "minimal", "low"),
        (OPUS, "xhigh", "xhigh"),
        (OPUS, "max", "max"),
        (SONNET, "high", "high"),
        (SONNET, "xhigh", "high"),
    ],
)
def test_a_claude_that_adapts_is_told_the_effort(model_id: str, effort: str, expected: str) -> None:
    assert asked(model_id, effort, is_bound=True) == Reasoning(
        ADAPTIVE, expected, has_sampling=False
    )


def test_a_summary_is_asked_for_where_it_would_be_left_out() -> None:
    shown = asked(OPUS, "low", is_shown=True)

    assert shown.fields == {"thinking": {"type": "adaptive", "display": "summarized"}}
    assert asked(SONNET, "low", is_shown=True).fields == ADAPTIVE


@pytest.mark.parametrize(
    ("effort", "given", "budget", "max_tokens"),
    [
        ("low", None, 2048, 2048 + 4096),
        ("high", None, 16384, 16384 + 4096),
        ("max", None, 24576, 24576 + 4096),
        ("high", 64_000, 16384, 64_000),
        ("high", 10_000, 5000, 10_000),
    ],
)
def test_an_older_claude_gets_a_budget_that_leaves_room_for_the_answer(
    effort: str, given: int | None, budget: int, max_tokens: int
) -> None:
    assert asked(BUDGETED, effort, max_tokens=given) == Reasoning(
        {"thinking": {"type": "enabled", "budget_tokens": budget}},
        max_tokens=max_tokens,
        has_sampling=False,
    )


def test_without_room_for_a_budget_there_is_none() -> None:
    assert asked(BUDGETED, "high", max_tokens=2000) == Reasoning(max_tokens=2000)


def test_a_budget_gives_way_to_calls_that_it_cannot_go_before() -> None:
    assert asked(BUDGETED, "high", is_bound=True) == Reasoning()


@pytest.mark.parametrize(
    ("effort", "level"), [("minimal", "low"), ("medium", "medium"), ("max", "high")]
)
def test_gpt_oss_is_told_one_of_its_levels(effort: str, level: str) -> None:
    assert asked(GPT, effort) == Reasoning({"reasoning_effort": level})


@pytest.mark.parametrize(
    ("effort", "max_tokens", "level", "has_sampling"),
    [
        ("low", None, "low", True),
        ("high", None, "high", False),
        ("xhigh", 500, "medium", True),
    ],
)
def test_nova_reasons_most_only_without_limits(
    effort: str, max_tokens: int | None, level: str, has_sampling: bool
) -> None:
    assert asked(NOVA, effort, max_tokens=max_tokens) == Reasoning(
        {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": level}},
        max_tokens=max_tokens,
        has_sampling=has_sampling,
    )
