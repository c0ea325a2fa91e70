import json
from typing import Any

import pytest

from channel.agent import (
    AgentEvent,
    Annotation,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    ToolFinished,
    ToolStarted,
    Turn,
    TurnError,
    Usage,
)
from channel.agents.demo import agent, demo_agent
from channel.responses.protocol.items import Item, message


pytestmark = pytest.mark.anyio

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "22 degrees"}
LOGO = {"type": "input_image", "image_url": "https://example.com/a.png"}


def turn_of(*said: str, **fields: Any) -> Turn:
    *history, last = (message("user", text) for text in said)
    return Turn(**{"input": [last], "history": history, **fields})


async def events_of(turn: Turn) -> list[AgentEvent]:
    return [event async for event in agent(turn)]


async def answer(*said: str, **fields: Any) -> str:
    events = await events_of(turn_of(*said, **fields))
    return "".join(event for event in events if isinstance(event, str))


def texts(events: list[AgentEvent], kind: type[RefusalDelta | ReasoningDelta]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


async def test_it_greets_and_quotes() -> None:
    assert await answer("Nice\nday") == (
        "Hello! You said: “Nice day”. I have heard 1 message from you. Say “help” for more."
    )


async def test_a_second_turn_visibly_remembers_the_first() -> None:
    assert await answer("Nice day", "Indeed") == (
        "Hello! You said: “Indeed”. I have heard 2 messages from you; the one before was “Nice day”."
    )


async def test_it_recalls_what_it_was_told() -> None:
    assert await answer("My name is Ada", "ok", "What is my name?") == "Your name is Ada."


async def test_an_input_without_a_text_is_answered() -> None:
    events = await events_of(Turn(input=[]))

    assert "".join(event for event in events if isinstance(event, str)) == (
        "I have heard 0 messages from you. Say “help” for more."
    )


async def test_it_answers_in_upper_case_when_instructed() -> None:
    said = await answer("Hi", instructions="Please answer in upper case.")

    assert said.startswith("HELLO! YOU SAID: “HI”.")


async def test_it_is_honest_about_other_instructions() -> None:
    told = [message("developer", "You are a pirate"), message("user", "Hi")]

    events = await events_of(Turn(input=told, instructions="Be brief"))

    assert "".join(event for event in events if isinstance(event, str)).endswith(
        "(I was given instructions of 6 words; I only obey “Answer in upper case”.)"
    )


async def test_help_lists_what_it_can_do() -> None:
    assert "demo: refuse" in await answer("Help!")
    assert await answer("demo: help") == await answer("What can you do?")


async def test_it_streams_word_by_word() -> None:
    events = await events_of(turn_of("Hi"))

    assert events[:4] == ["Hello! ", "You ", "said: ", "“Hi”. "]


async def test_it_calls_a_function_and_then_uses_the_output() -> None:
    asked = turn_of("Weather in Oslo?", tools=[WEATHER], response_id="resp_0123")
    events = await events_of(asked)

    assert events == [
        FunctionCallDelta("call_0123_1", name="get_weather"),
        FunctionCallDelta("call_0123_1", '{"city": '),
        FunctionCallDelta("call_0123_1", '"Oslo"}'),
        Usage(input_tokens=3, output_tokens=2),
    ]

    answered = Turn(input=[OUTPUT], history=[*asked.input, CALL], tools=[WEATHER])
    said = "".join(event for event in await events_of(answered) if isinstance(event, str))
    assert said == "The tool get_weather answered: 22 degrees"


async def test_parallel_calls_come_whole_after_the_first() -> None:
    tools = [WEATHER, {"type": "function", "name": "clock", "parameters": {}}]

    events = await events_of(turn_of("weather and clock", tools=tools, response_id="resp_0"))

    assert events[-2] == FunctionCall("clock", "{}", "call_0_2")


@pytest.mark.parametrize(
    ("reasoning", "parts"),
    [
        (None, 0),
        ({"effort": None, "summary": None}, 0),
        ({"effort": "none", "summary": "auto"}, 0),
        ({"effort": None, "summary": "auto"}, 1),
        ({"effort": "low"}, 1),
        ({"effort": "high", "summary": "detailed"}, 2),
    ],
)
async def test_reasoning_is_summarised_when_asked_for(
    reasoning: dict[str, Any] | None, parts: int
) -> None:
    events = await events_of(turn_of("Hi", options={"reasoning": reasoning}))

    thoughts = [event for event in events if isinstance(event, ReasoningDelta)]
    assert sum(thought.new_part for thought in thoughts) == max(parts - 1, 0)
    assert bool(thoughts) == bool(parts)
    assert events[-1] == Usage(
        input_tokens=1,
        output_tokens=15 + len(thoughts),
        reasoning_tokens=len(thoughts),
    )


async def test_high_effort_names_the_decision() -> None:
    options = {"reasoning": {"effort": "high"}}

    called = await events_of(turn_of("weather", tools=[WEATHER], options=options))
    answered = await events_of(turn_of("Hi", options=options))

    assert texts(called, ReasoningDelta).endswith("So I will call get_weather.")
    assert texts(answered, ReasoningDelta).endswith("So I will answer.")


async def test_a_json_schema_is_filled_from_the_text() -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    text = {"format": {"type": "json_schema", "name": "trip", "schema": schema, "strict": True}}

    said = await answer("5 days in Oslo", options={"text": text}, instructions="Use upper case")

    assert json.loads(said) == {"city": "Oslo", "days": 5}


async def test_a_json_object_is_answered_where_one_is_asked_for() -> None:
    options = {"text": {"format": {"type": "json_object"}}}

    said = await answer("What is my name? I'm Ada", options=options)

    assert json.loads(said) == {"answer": "Your name is Ada."}


async def test_the_plain_text_format_is_plain_text() -> None:
    assert (await answer("Hi", options={"text": {"format": {"type": "text"}}})).startswith("Hello")


async def test_a_schema_without_an_instance_is_the_clients_error() -> None:
    text = {"format": {"type": "json_schema", "schema": {"anyOf": []}}}
    options = {"text": text, "reasoning": {"effort": "low"}}

    with pytest.raises(TurnError) as caught:
        await anext(aiter(agent(turn_of("Hi", options=options))))

    assert (caught.value.status, caught.value.param) == (400, "text.format.schema")


async def test_media_are_described_with_the_text_answered() -> None:
    content = [{"type": "input_text", "text": "Look"}, LOGO]
    item: Item = {"type": "message", "role": "user", "content": content}

    events = await events_of(Turn(input=[item]))

    said = "".join(event for event in events if isinstance(event, str))
    assert said.startswith("You sent an image: URL https://example.com/a.png (")
    assert "You said: “Look”." in said


async def test_it_stops_at_max_output_tokens() -> None:
    options = {"max_output_tokens": 3}

    assert await events_of(turn_of("demo: count 9", options=options)) == [
        "1 ",
        "2 ",
        "3 ",
        Usage(input_tokens=3, output_tokens=3),
        Finish("max_output_tokens"),
    ]


async def test_reasoning_counts_as_output() -> None:
    options = {"max_output_tokens": 2, "reasoning": {"effort": "low"}}

    assert await events_of(turn_of("Hi", options=options)) == [
        ReasoningDelta("I "),
        ReasoningDelta("look "),
        Usage(input_tokens=1, output_tokens=2, reasoning_tokens=2),
        Finish("max_output_tokens"),
    ]


async def test_the_input_is_counted_over_all_items() -> None:
    reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a b"}]}
    parts = {**OUTPUT, "output": [{"type": "input_text", "text": "x y z"}]}
    unknown = {"type": "computer_call_output", "output": {"type": "computer_screenshot"}}
    items = [message("user", "one two"), reasoning, CALL, OUTPUT, CALL, parts, unknown]

    events = await events_of(Turn(input=items, instructions="be kind"))

    usage = events[-1]
    assert isinstance(usage, Usage)
    assert usage.input_tokens == 2 + 2 + 1 + 2 + 1 + 3 + 2


async def test_refuse() -> None:
    events = await events_of(turn_of("demo: refuse"))

    assert texts(events, RefusalDelta) == "I am sorry, but I was told to refuse this."
    assert events[-1] == Usage(input_tokens=2, output_tokens=10)


async def test_fail_says_something_first() -> None:
    stream = aiter(agent(turn_of("Demo: fail!")))

    assert await anext(stream) == "I "
    with pytest.raises(RuntimeError, match="told to fail"):
        _ = [event async for event in stream]


async def test_fail_at_once_says_nothing() -> None:
    with pytest.raises(RuntimeError, match="told to fail"):
        await anext(aiter(agent(turn_of("demo: fail at once"))))


async def test_cite_annotates_the_cited_words() -> None:
    events = await events_of(turn_of("demo: cite"))

    text = "".join(event for event in events if isinstance(event, str))
    [cited] = [event.annotation for event in events if isinstance(event, Annotation)]
    assert text[cited["start_index"] : cited["end_index"]] == "this domain is for use in examples"
    assert (cited["type"], cited["url"]) == ("url_citation", "https://example.com/")


async def test_tool_runs_a_tool_of_its_own() -> None:
    events = await events_of(turn_of("demo: tool"))

    assert events[:2] == [
        ToolStarted("call_demo_tool", "count_words", '{"text": "how many words is this"}'),
        ToolFinished("call_demo_tool", "5"),
    ]


async def test_item_passes_a_whole_item_through() -> None:
    [event, usage] = await events_of(turn_of("demo: item"))

    assert isinstance(event, OutputItem)
    assert event.item["type"] == "message"
    assert usage == Usage(input_tokens=2, output_tokens=11)


async def test_filter_ends_by_the_content_filter() -> None:
    events = await events_of(turn_of("demo: filter"))

    assert events[-2:] == [Usage(input_tokens=2, output_tokens=6), Finish("content_filter")]


@pytest.mark.parametrize(
    "text",
    ["I watched a demo: fail", "demo fail", "demo: unheard of", "demo: count", "demo: cite 3"],
)
async def test_ordinary_text_is_no_command(text: str) -> None:
    assert (await answer(text)).startswith("Hello! You said:")


async def test_a_command_may_stand_on_a_line_of_its_own() -> None:
    assert await answer("Please count:\n  demo: count 2 \nThank you") == "1 2 "


async def test_wait_sleeps_for_so_many_seconds() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    events = [event async for event in demo_agent(sleep=sleep)(turn_of("demo: wait 7"))]

    assert slept == [7]
    assert events[:2] == ["Waiting… ", "that "]


async def test_a_delay_is_slept_before_each_word_but_the_first() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    events = [event async for event in demo_agent(0.25, sleep=sleep)(turn_of("demo: count 4"))]

    assert slept == [0.25] * 3
    assert len(events) == 4 + 1


def test_without_a_delay_it_never_suspends() -> None:
    # Each step ends at once with an event or the end, so nothing was awaited in between.
    stream = aiter(agent(turn_of("Hi")))
    events = 0
    while True:
        try:
            anext(stream).__await__().send(None)
        except StopIteration:
            events += 1
        except StopAsyncIteration:
            break

    assert events == 15 + 1


def test_it_declares_the_options_that_it_takes() -> None:
    declared = getattr(agent, "accepted_options", None)

    assert declared == {"text", "reasoning", "max_output_tokens"}
