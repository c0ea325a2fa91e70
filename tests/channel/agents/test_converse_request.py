"""A turn as a Converse request: every option, the choice of tools, and cache points."""

import json
from typing import Any

import pytest

from channel.agent import Turn, TurnError
from channel.agents.converse.messages import signed
from channel.agents.converse.models import model_of
from channel.agents.converse.request import (
    CACHE_POINT,
    ConverseOptions,
    count_request_of,
    request_of,
)
from channel.responses.protocol.items import Item, message


CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
OLD_CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
LLAMA = "meta.llama4-maverick-17b-instruct-v1:0"
NOVA = "amazon.nova-pro-v1:0"
UNKNOWN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"
PLAIN = ConverseOptions()
PARAMETERS = {
    "type": "object",
    "properties": {"zone": {"type": "string"}},
    "required": ["zone"],
    "additionalProperties": False,
}
CLOCK = {
    "type": "function",
    "name": "clock",
    "description": "Tells the time.",
    "parameters": PARAMETERS,
    "strict": True,
}
BARE = {"type": "function", "name": "bare", "description": None, "parameters": None, "strict": None}
BARE_SPEC = {
    "toolSpec": {"name": "bare", "inputSchema": {"json": {"type": "object", "properties": {}}}}
}
CALLED: list[Item] = [
    message("user", "What time is it?"),
    {"type": "function_call", "call_id": "1", "name": "clock", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": "noon"},
]


def clock_spec(*, strict: bool = False) -> dict[str, Any]:
    spec = {
        "name": "clock",
        "description": "Tells the time.",
        "inputSchema": {"json": PARAMETERS},
    }
    return {"toolSpec": spec | ({"strict": True} if strict else {})}


def asked(
    model_id: str = LLAMA,
    given: ConverseOptions = PLAIN,
    **fields: Any,
) -> dict[str, Any]:
    turn = Turn(**{"input": [message("user", "hi")], **fields})
    return request_of(turn, model_of(model_id), given)


def test_a_plain_turn_is_a_plain_request() -> None:
    assert asked() == {
        "modelId": LLAMA,
        "messages": [{"role": "user", "content": [{"text": "hi"}]}],
    }


def test_the_agents_instructions_come_first() -> None:
    request = asked(
        given=ConverseOptions(instructions="Be kind."),
        instructions="Be brief.",
        input=[message("developer", "Say please."), message("system", " "), message("user", "hi")],
    )

    assert request["system"] == [
        {"text": "Be kind."},
        {"text": "Be brief."},
        {"text": "Say please."},
    ]


def test_a_turn_without_a_message_of_the_user_is_refused() -> None:
    with pytest.raises(TurnError) as raised:
        asked(input=[message("developer", "Say please.")])

    assert (raised.value.status, raised.value.param) == (400, "input")


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_id", "options", "inference"),
    [
        (LLAMA, {"max_output_tokens": 64}, {"maxTokens": 64}),
        (LLAMA, {"temperature": 0, "top_p": 1}, {"temperature": 0.0, "topP": 1.0}),
        (OLD_CLAUDE, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "topP": 0.9}),
        (CLAUDE, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5}),
        (CLAUDE, {"top_p": 0.9}, {"topP": 0.9}),
    ],
)
def test_limits_and_sampling(
    model_id: str, options: dict[str, Any], inference: dict[str, Any]
) -> None:
    assert asked(model_id, options=options)["inferenceConfig"] == inference


def test_a_temperature_that_converse_does_not_know_is_refused() -> None:
    with pytest.raises(TurnError) as raised:
        asked(options={"temperature": 1.5})

    assert (raised.value.status, raised.value.param) == (400, "temperature")


def test_reasoning_leaves_out_the_temperature_and_sets_the_limit() -> None:
    request = asked(CLAUDE, options={"reasoning": {"effort": "low"}, "temperature": 0.5})

    assert request["inferenceConfig"] == {"maxTokens": 2048 + 4096}
    assert request["additionalModelRequestFields"] == {
        "thinking": {"type": "enabled", "budget_tokens": 2048}
    }


@pytest.mark.parametrize(
    ("before", "is_asked"),
    [
        ([], False),
        ([{"type": "reasoning", "summary": [], "encrypted_content": signed("abc")}], True),
    ],
)
def test_a_budget_goes_on_only_after_calls_that_had_one(before: list[Item], is_asked: bool) -> None:
    request = asked(
        CLAUDE,
        options={"reasoning": {"effort": "low"}},
        tools=[CLOCK],
        input=[CALLED[0], *before, *CALLED[1:]],
    )

    assert ("additionalModelRequestFields" in request) is is_asked


@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {}])
def test_reasoning_and_a_tool_that_must_be_called(fields: dict[str, Any]) -> None:
    request = asked(CLAUDE, options={"reasoning": {"effort": "low"}}, tools=[CLOCK], **fields)

    assert ("additionalModelRequestFields" in request) is (fields == {})


def test_effort_and_the_format_of_the_text_are_in_one_place() -> None:
    wanted = {"type": "json_schema", "name": "place", "schema": {"type": "object"}, "strict": True}
    request = asked(
        "anthropic.claude-opus-4-7",
        options={
            "reasoning": {"effort": "high", "summary": "auto"},
            "text": {"format": {**wanted, "description": "A place."}},
        },
    )

    config = request["outputConfig"]
    assert config["effort"] == "high"
    assert config["textFormat"]["type"] == "json_schema"
    definition = config["textFormat"]["structure"]["jsonSchema"]
    assert (definition["name"], definition["description"]) == ("place", "A place.")
    assert json.loads(definition["schema"]) == {"type": "object", "additionalProperties": False}
    assert request["additionalModelRequestFields"] == {
        "thinking": {"type": "adaptive", "display": "summarized"}
    }


def test_any_json_object_cannot_be_had() -> None:
    with pytest.raises(TurnError) as raised:
        asked(options={"text": {"format": {"type": "json_object"}}})

    assert (raised.value.status, raised.value.param) == (400, "text.format.type")


def test_the_agents_fields_go_before_what_is_made_of_the_turn() -> None:
    request = asked(
        CLAUDE,
        ConverseOptions(fields={"top_k": 5, "anthropic_beta": ["a"]}),
        options={"reasoning": {"effort": "low"}},
        tools=[CLOCK],
        parallel_tool_calls=False,
    )
    fields = request["additionalModelRequestFields"]

    assert set(fields) == {"top_k", "anthropic_beta", "thinking", "tool_choice"}


def test_a_guardrail_is_named_with_its_version() -> None:
    request = asked(given=ConverseOptions(guardrail=("abc123", "7")))

    assert request["guardrailConfig"] == {
        "guardrailIdentifier": "abc123",
        "guardrailVersion": "7",
    }


# --- tools ---------------------------------------------------------------------------------------


def test_tools_are_declared_and_the_model_may_choose() -> None:
    request = asked(tools=[CLOCK, BARE, {"type": "web_search"}])

    assert request["toolConfig"] == {"tools": [clock_spec(), BARE_SPEC]}
    assert "additionalModelRequestFields" not in request


@pytest.mark.parametrize(
    ("choice", "names", "expected"),
    [
        ("required", ["clock", "bare"], {"any": {}}),
        ({"type": "function", "name": "bare"}, ["bare"], {"tool": {"name": "bare"}}),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "clock"}],
            },
            ["clock"],
            {"any": {}},
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "clock"}],
            },
            ["clock"],
            None,
        ),
    ],
)
def test_the_choice_of_tools(choice: Any, names: list[str], expected: Any) -> None:
    config = asked(tools=[CLOCK, BARE], tool_choice=choice)["toolConfig"]

    assert [tool["toolSpec"]["name"] for tool in config["tools"]] == names
    assert config.get("toolChoice") == expected


def test_a_choice_of_a_tool_that_there_is_not_is_refused() -> None:
    with pytest.raises(TurnError) as raised:
        asked(tools=[{"type": "web_search"}], tool_choice={"type": "web_search"})

    assert (raised.value.status, raised.value.param) == (400, "tool_choice")


def test_no_tools_at_all_need_no_configuration() -> None:
    assert "toolConfig" not in asked(CLAUDE, tools=[CLOCK], tool_choice="none")


def test_calls_in_the_history_keep_their_tools_where_none_may_be_called() -> None:
    request = asked(CLAUDE, tools=[CLOCK], tool_choice="none", input=CALLED)

    assert request["toolConfig"] == {"tools": [clock_spec(strict=True)]}
    assert request["additionalModelRequestFields"] == {"tool_choice": {"type": "none"}}


def test_calls_in_the_history_of_a_request_without_tools_get_a_declaration() -> None:
    request = asked(LLAMA, input=CALLED)

    assert request["toolConfig"] == {
        "tools": [{"toolSpec": {"name": "clock", "inputSchema": {"json": {"type": "object"}}}}]
    }
    assert "additionalModelRequestFields" not in request


def test_claude_is_told_to_call_one_tool_at_a_time() -> None:
    request = asked(CLAUDE, tools=[CLOCK], parallel_tool_calls=False)

    assert request["additionalModelRequestFields"] == {
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}
    }
    assert "toolChoice" not in request["toolConfig"]


def test_the_choice_of_a_tool_is_given_once() -> None:
    request = asked(CLAUDE, tools=[CLOCK], parallel_tool_calls=False, tool_choice="required")

    assert request["toolConfig"]["toolChoice"] == {"any": {}}
    assert "additionalModelRequestFields" not in request


@pytest.mark.parametrize(
    ("model_id", "tool", "is_strict"),
    [
        (CLAUDE, CLOCK, True),
        (CLAUDE, {**CLOCK, "strict": False}, False),
        (CLAUDE, {**CLOCK, "parameters": {"type": "object"}}, False),
        (OLD_CLAUDE, CLOCK, False),
        (LLAMA, CLOCK, False),
    ],
)
def test_a_strict_tool_is_enforced_where_it_can_be(
    model_id: str, tool: dict[str, Any], is_strict: bool
) -> None:
    (spec,) = asked(model_id, tools=[tool])["toolConfig"]["tools"]

    assert spec["toolSpec"].get("strict", False) is is_strict


def test_no_more_tools_are_strict_than_bedrock_takes() -> None:
    tools = [{**CLOCK, "name": f"clock_{number}"} for number in range(30)]

    specs = [tool["toolSpec"] for tool in asked(CLAUDE, tools=tools)["toolConfig"]["tools"]]
    assert [spec.get("strict", False) for spec in specs] == [True] * 20 + [False] * 10


# --- caching, reasoning, counting ----------------------------------------------------------------

HISTORY = [message("user", "a"), message("assistant", "b")]


def text(said: str) -> dict[str, Any]:
    return {"text": said}


@pytest.mark.parametrize("model_id", [CLAUDE, NOVA])
def test_a_conversation_that_goes_on_is_cached(model_id: str) -> None:
    request = asked(
        model_id,
        ConverseOptions(instructions="Be kind."),
        instructions="Be brief.",
        history=[*HISTORY, message("user", "c"), message("assistant", "d")],
        input=[message("user", "e")],
    )

    # What the next turn begins with, too: the agent's instructions, and the messages so far.
    assert request["system"] == [text("Be kind."), CACHE_POINT, text("Be brief.")]
    contents = [message["content"] for message in request["messages"]]
    assert contents == [
        [text("a")],
        [text("b")],
        [text("c"), CACHE_POINT],
        [text("d")],
        [text("e"), CACHE_POINT],
    ]


def test_a_turn_that_begins_a_conversation_caches_the_agents_instructions_only() -> None:
    request = asked(CLAUDE, ConverseOptions(instructions="Be kind."), instructions="Be brief.")

    assert request["system"] == [text("Be kind."), CACHE_POINT, text("Be brief.")]
    assert request["messages"][0]["content"] == [text("hi")]
    assert "system" not in asked(CLAUDE)


@pytest.mark.parametrize(
    ("model_id", "caching", "is_cached"),
    [
        (LLAMA, None, False),
        (UNKNOWN, None, False),
        (UNKNOWN, True, True),
        (CLAUDE, False, False),
    ],
)
def test_caching_is_of_models_that_have_it_or_as_it_is_set(
    model_id: str, caching: bool | None, is_cached: bool
) -> None:
    request = asked(model_id, ConverseOptions(caching=caching), history=HISTORY)

    assert (CACHE_POINT in request["messages"][-1]["content"]) is is_cached


def test_a_cache_point_never_follows_a_document() -> None:
    document = {
        "type": "input_file",
        "file_data": "data:text/plain,hi",
        "filename": "a.txt",
    }
    given: list[Item] = [
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "c"}, document],
        }
    ]

    content = asked(CLAUDE, history=HISTORY, input=given)["messages"][-1]["content"]
    assert [next(iter(block)) for block in content] == ["text", "cachePoint", "document"]


@pytest.mark.parametrize(
    ("model_id", "is_replayed"), [(CLAUDE, True), (UNKNOWN, True), (LLAMA, False)]
)
def test_reasoning_goes_back_to_models_that_sign_it(model_id: str, is_replayed: bool) -> None:
    thought: Item = {"type": "reasoning", "summary": [], "encrypted_content": signed("abc")}
    request = asked(model_id, history=[HISTORY[0], thought, HISTORY[1]])

    blocks = [block for message in request["messages"] for block in message["content"]]
    assert any("reasoningContent" in block for block in blocks) is is_replayed


def test_tokens_are_counted_of_the_same_request_for_the_model_itself() -> None:
    request = asked(
        CLAUDE, ConverseOptions(instructions="Be kind.", guardrail=("a", "1")), tools=[CLOCK]
    )

    assert count_request_of(request, model_of(CLAUDE)) == {
        "modelId": "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "input": {
            "converse": {
                "messages": request["messages"],
                "system": request["system"],
                "toolConfig": request["toolConfig"],
            }
        },
    }
