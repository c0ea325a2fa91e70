"""LangChain: chat models as they are, chains, and the forms that providers have for what models say."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import SecretStr

from channel.agents.langgraph import adapt, as_requested
from channel.agents.langgraph.listening import tool_names
from channel.agents.langgraph.speech import is_cut_off
from channel.testing import NoResponseError, Reply, ask_async
from tests.channel.agents.frameworks.langgraph import (
    Chunk,
    ScriptedModel,
    SilentModel,
    scripted_model,
    weather,
)
from tests.channel.agents.langgraph_graphs import CITY, CLOCK, HELLO, NOON, PLACE, kinds, says
from tests.channel.agents.scripts import Call, Fail, Say, Spend, Stop, Think
from tests.channel.asgi import creating, hosted
from tests.models.openai_server import OpenAIServer
from tests.models.steps import Truncate


pytestmark = pytest.mark.anyio


def chunks(*messages: AIMessageChunk | str) -> tuple[Chunk]:
    """Return a model call that is made of these pieces."""
    pieces = (AIMessageChunk(content=m) if isinstance(m, str) else m for m in messages)
    return (Chunk(tuple(pieces)),)


def block(**fields: Any) -> AIMessageChunk:
    return AIMessageChunk(content=[fields])


def thoughts(reply: Reply) -> list[list[str]]:
    """Return the reasoning items, each as the texts of its parts."""
    items = (item for item in reply.output if item["type"] == "reasoning")
    return [[part["text"] for part in item["summary"]] for item in items]


async def test_a_chat_model_streams_and_remembers() -> None:
    model = scripted_model([HELLO, *says("Yes.")])

    first = await ask_async(model, "hi", instructions="Be brief.")
    second = await first.ask_async("and?")

    assert (first.deltas, second.text) == (["Hel", "lo ", "there."], "Yes.")
    assert model.seen[1].texts == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "Hello there."),
        ("user", "and?"),
    ]


@pytest.mark.parametrize("kind", [ScriptedModel, SilentModel])
async def test_a_chat_model_calls_tools_of_the_client(kind: type[ScriptedModel]) -> None:
    model = scripted_model([(NOON, Spend(1, 1)), *says("Noon.")], kind)

    first = await ask_async(model, "When?", tools=[CLOCK], tool_choice="required")
    second = await first.give_async("12:00")

    assert ([call.arguments for call in first.calls], second.text) == ([{"zone": "UTC"}], "Noon.")
    assert [each.get("tool_choice") for each in model.play.calls] == ["any", "any"]
    assert model.seen[1].calls == [("call_1", "clock")]


async def test_a_chat_model_gives_json_and_keeps_to_limits() -> None:
    model = scripted_model([*says('{"city": "Rome"}'), HELLO], max_tokens=100)

    reply = await ask_async(
        model,
        "Where?",
        text=PLACE,
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=64,
        reasoning={"effort": "low"},
    )
    await ask_async(model, "hi", max_output_tokens=5000)

    assert reply.text == '{"city": "Rome"}'
    assert model.seen[0].schema == {**CITY, "title": "place"}
    assert (model.seen[0].max_tokens, model.seen[0].temperature) == (64, 0.5)
    assert (model.play.calls[0]["top_p"], model.play.calls[0]["effort"]) == (0.9, "low")
    assert model.seen[1].max_tokens == 100
    assert (model.max_tokens, model.temperature) == (100, None)


@pytest.mark.parametrize("kind", [ScriptedModel, SilentModel])
async def test_a_model_without_json_answers_by_a_tool(kind: type[ScriptedModel]) -> None:
    call = Call("give_place", {"city": "Rome"}, "call_1")
    model = scripted_model([(call,), (NOON,), (call,)], kind, profile=None)

    reply = await ask_async(model, "Where?", text=PLACE)
    other = await ask_async(model, "When?", text=PLACE, tools=[CLOCK])

    assert (reply.text, kinds(reply)) == ('{"city": "Rome"}', ["message"])
    assert [call.name for call in other.calls] == ["clock"]
    assert model.play.calls[0]["tool_choice"] == "any"


async def test_json_without_a_schema() -> None:
    answer = Call("give_answer", {"a": 1}, "call_1")
    model = scripted_model([(answer,)], profile=None)

    reply = await ask_async(model, "?", text={"format": {"type": "json_object"}})

    assert reply.text == '{"a": 1}'


async def test_json_without_a_schema_by_a_model_that_has_it() -> None:
    class Remote(ScriptedModel):
        pass

    Remote.__module__ = "langchain_openai.chat_models"
    answer = Call("give_answer", {"a": 1}, "call_1")
    model = scripted_model([*says("{}"), (answer,)], Remote)
    wanted = {"format": {"type": "json_object"}}

    await ask_async(model, "?", text=wanted)
    await ask_async(model, "?", text=wanted, tools=[CLOCK])

    found = [each.get("response_format") for each in model.play.calls]
    assert found == [{"type": "json_object"}, None]


async def test_a_name_that_the_answer_has_is_refused() -> None:
    model = scripted_model([HELLO], profile=None)
    tool = {**CLOCK, "name": "give_place"}

    with pytest.raises(NoResponseError) as refused:
        await ask_async(model, "?", text=PLACE, tools=[tool])

    assert (refused.value.status, refused.value.param) == (400, "tools")


async def test_what_a_format_says_of_itself_reaches_the_model() -> None:
    model = scripted_model(says("{}"))
    wanted = {"format": {**PLACE["format"], "description": "A place.", "strict": False}}

    await ask_async(model, "?", text=wanted)

    named = model.play.calls[0]["response_format"]["json_schema"]
    assert (named["description"], "strict" in named) == ("A place.", False)


async def test_gemini_before_its_third_series_has_no_json_beside_tools() -> None:
    class Gemini(ScriptedModel):
        model: str = "gemini-2.5-flash"

    call = Call("give_place", {"city": "Rome"}, "call_1")
    model = scripted_model([(call,), *says("{}")], Gemini)

    await ask_async(model, "?", text=PLACE, tools=[CLOCK])
    await ask_async(model, "?", text=PLACE)

    assert [each.get("response_format") is None for each in model.play.calls] == [True, False]


async def test_a_model_that_knows_no_tools_refuses_them() -> None:
    class Plain(ScriptedModel):
        def bind_tools(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    model = scripted_model([HELLO], Plain)

    with pytest.raises(NoResponseError) as refused:
        await ask_async(model, "hi", tools=[CLOCK])
    reply = await ask_async(model, "hi")

    assert (refused.value.status, refused.value.param) == (400, "tools")
    assert reply.text == "Hello there."


async def test_bindings_retries_and_fallbacks_stay_around_a_model() -> None:
    broken = scripted_model([(Fail("secret"),)])
    model = scripted_model([(NOON,)])
    bound = model.bind_tools([weather]).bind(stop=["x"]).with_retry()

    target = broken.with_fallbacks([bound.with_config(tags=["a"])])
    reply = await ask_async(target, "When?", tools=[CLOCK], temperature=0.5)

    assert [call.name for call in reply.calls] == ["clock"]
    assert (broken.seen[0].tools, model.seen[0].tools) == (["clock"], ["weather", "clock"])
    assert (broken.seen[0].temperature, model.seen[0].temperature) == (0.5, 0.5)


async def test_a_wrapped_model_may_be_wrapped_once_more() -> None:
    model = scripted_model([(NOON,)])
    target = as_requested(model).bind_tools([weather]).with_retry().with_types(input_type=str)

    reply = await ask_async(target, "When?", tools=[CLOCK])

    assert [call.name for call in reply.calls] == ["clock"]
    assert model.seen[0].tools == ["weather", "clock"]


async def test_outside_of_a_turn_a_wrapped_model_is_the_model() -> None:
    model = scripted_model([*[HELLO] * 4, (Call("weather", {"city": "Rome"}, "c"),)])
    wrapped = as_requested(model)
    chain = RunnableLambda(lambda text: text) | wrapped

    assert (await wrapped.ainvoke("hi")).text == "Hello there."
    assert [piece.text for piece in wrapped.stream("hi")][:2] == ["Hel", "lo "]
    assert [piece.text async for piece in chain.astream("hi")][:2] == ["Hel", "lo "]
    assert [each.text for each in wrapped.batch(["hi"])] == ["Hello there."]
    called = wrapped.bind_tools([weather]).with_config(tags=["a"]).bind(stop=["x"]).invoke("hi")
    assert called.tool_calls[0]["name"] == "weather"
    assert as_requested(wrapped) is wrapped
    assert wrapped.profile == {"structured_output": True}


async def test_limits_of_providers_make_the_response_incomplete() -> None:
    for name, value, reason in (
        ("finish_reason", "length", "max_output_tokens"),
        ("finish_reason", "MAX_TOKENS", "max_output_tokens"),
        ("stop_reason", "max_tokens", "max_output_tokens"),
        ("stopReason", "guardrail_intervened", "content_filter"),
        ("done_reason", "length", "max_output_tokens"),
        ("finish_reason", "SAFETY", "content_filter"),
        ("stop_reason", "refusal", "content_filter"),
        ("incomplete_details", {"reason": "max_output_tokens"}, "max_output_tokens"),
    ):
        last = AIMessageChunk(content="", response_metadata={name: value})
        reply = await ask_async(scripted_model([chunks("Once", last)]), "hi")
        assert reply.response["incomplete_details"] == {"reason": reason}, name


async def test_usage_of_caches_and_reasoning_is_counted() -> None:
    usage: Any = {
        "input_tokens": 20,
        "output_tokens": 9,
        "total_tokens": 29,
        "input_token_details": {"cache_read": 5, "cache_creation": 3},
        "output_token_details": {"reasoning": 4},
    }
    model = scripted_model([chunks("Hi", AIMessageChunk(content="", usage_metadata=usage))])

    used = (await ask_async(model, "hi")).usage

    assert used is not None
    assert used["input_tokens_details"] == {"cached_tokens": 5, "cache_write_tokens": 3}
    assert used["output_tokens_details"] == {"reasoning_tokens": 4}


@pytest.mark.parametrize(
    ("pieces", "texts", "back"),
    [
        pytest.param(
            [
                block(type="thinking", thinking="H", index=0),
                block(type="thinking", thinking="m.", index=0),
                block(type="thinking", signature="s", index=0),
                block(type="redacted_thinking", data="d", index=1),
                block(type="text", text="Hi", index=2),
            ],
            [["Hm."], []],
            [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "d"},
            ],
            id="anthropic",
        ),
        pytest.param(
            [
                block(type="reasoning", id="rs_1", summary=[], index=0),
                block(type="reasoning", summary=[{"index": 0, "text": "Hm."}], index=0),
                block(type="reasoning", summary=[{"index": 1, "text": ""}], index=0),
                block(type="reasoning", summary=[{"index": 1, "text": "So."}], index=0),
                block(type="reasoning", id="rs_1", summary=[], encrypted_content="e", index=0),
                block(type="text", text="Hi", index=1),
            ],
            [["Hm.", "So."]],
            [
                {
                    "type": "reasoning",
                    "summary": [
                        {"type": "summary_text", "text": "Hm."},
                        {"type": "summary_text", "text": "So."},
                    ],
                    "id": "rs_1",
                    "encrypted_content": "e",
                }
            ],
            id="openai",
        ),
        pytest.param(
            [
                block(type="reasoning_content", reasoning_content={"text": "Hm."}, index=0),
                block(type="reasoning_content", reasoning_content={"signature": "s"}, index=0),
                block(type="text", text="Hi", index=1),
            ],
            [["Hm."]],
            [{"type": "reasoning_content", "reasoning_content": {"text": "Hm.", "signature": "s"}}],
            id="bedrock",
        ),
        pytest.param(
            [
                AIMessageChunk(content="", additional_kwargs={"reasoning_content": "H"}),
                AIMessageChunk(content="", additional_kwargs={"reasoning_content": "m."}),
                AIMessageChunk(content="Hi"),
            ],
            [["Hm."]],
            [],
            id="deepseek",
        ),
        pytest.param(
            [
                AIMessageChunk(
                    content="", additional_kwargs={"reasoning": {"summary": [{"text": "Hm."}]}}
                ),
                AIMessageChunk(content="Hi"),
            ],
            [["Hm."]],
            [],
            id="openai-v0",
        ),
    ],
)
async def test_reasoning_in_every_form(
    pieces: list[AIMessageChunk], texts: list[list[str]], back: list[Any]
) -> None:
    model = scripted_model([chunks(*pieces), HELLO])

    first = await ask_async(model, "hi")
    await first.ask_async("and?")

    assert (first.text, thoughts(first)) == ("Hi", texts)
    content = model.play.inputs[1][1].content
    assert content == ([*back, {"type": "text", "text": "Hi"}] if back else "Hi")


async def test_reasoning_in_langchains_own_form_comes_back_in_it() -> None:
    class Standard(ScriptedModel):
        output_version: str | None = "v1"

    signed = {"type": "reasoning", "reasoning": "Hm.", "extras": {"signature": "s"}, "index": 0}
    first = AIMessageChunk(content=[signed], response_metadata={"model_provider": "acme"})
    model = scripted_model([(*chunks(first), NOON), HELLO], Standard)

    reply = await ask_async(model, "When?", tools=[CLOCK])
    await reply.give_async("12:00")

    message = model.play.inputs[1][1]
    assert isinstance(message, AIMessage)
    assert message.response_metadata == {"output_version": "v1", "model_provider": "acme"}
    assert isinstance(message.content, list)
    assert message.content[0] == {
        "type": "reasoning",
        "reasoning": "Hm.",
        "extras": {"signature": "s"},
    }
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "tool_call"]


async def test_reasoning_of_anothers_is_left_out() -> None:
    model = scripted_model([HELLO])
    foreign = '{"type": "thinking", "signature": "s", "cache_control": {}}'
    given = [
        {"type": "reasoning", "summary": [], "encrypted_content": text}
        for text in ("gAAAA", foreign, '{"type": "tool_use"}', "")
    ]

    await ask_async(model, [*given, {"role": "user", "content": "hi"}])

    assert [message.type for message in model.play.inputs[0]] == ["human"]


async def test_citations_are_annotations_where_the_text_is() -> None:
    page = {"url": "https://a.example", "title": "A"}
    model = scripted_model(
        [
            chunks(
                block(type="text", text="So ", index=0),
                block(type="text", text="it is.", index=1),
                block(type="text", citations=[{"type": "location", **page}], index=1),
                block(
                    type="text",
                    annotations=[{"type": "citation", **page, "start_index": 0, "end_index": 2}],
                    index=1,
                ),
                block(type="text", citations=[{"type": "document"}], index=1),
            )
        ]
    )

    (part,) = (await ask_async(model, "hi")).output[0]["content"]

    places = [(each["start_index"], each["end_index"]) for each in part["annotations"]]
    assert (part["text"], places) == ("So it is.", [(3, 9), (0, 2)])
    assert part["annotations"][0]["url"] == "https://a.example"


async def test_refusals_and_images_are_what_they_are() -> None:
    image = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
    data = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    value = {"type": "refusal", "refusal": "No."}
    model = scripted_model(
        [
            chunks(block(**image), block(**data), block(type="audio", base64="aGk=")),
            chunks(AIMessageChunk(content="", additional_kwargs={"refusal": "No."})),
            chunks(block(type="non_standard", value=value)),
        ]
    )

    images = await ask_async(model, "draw")
    refusals = [await ask_async(model, "hi") for _ in range(2)]

    assert [item["result"] for item in images.output] == ["aGk=", "aGk="]
    assert kinds(images) == ["image_generation_call"] * 2
    for reply in refusals:
        assert reply.output[0]["content"] == [{"type": "refusal", "refusal": "No."}]


async def test_calls_without_an_index_or_an_id() -> None:
    def call(**fields: Any) -> AIMessageChunk:
        whole: Any = {"name": None, "args": "", "id": None, "index": None, **fields}
        return AIMessageChunk(content="", tool_call_chunks=[whole])

    model = scripted_model(
        [
            chunks(
                call(name="clock", id="call_1", args='{"zone": '),
                call(args='"UTC"}'),
                call(name="clock", id="call_2", args='{"zone": "CET"}'),
            ),
            chunks(call(name="clock", args='{"zone": "UTC"}', index=0)),
            chunks(call(name="clock", id="call_3", args="no JSON", index=0)),
        ]
    )

    replies = [await ask_async(model, "?", tools=[CLOCK]) for _ in range(3)]

    found = [[call.arguments for call in reply.calls] for reply in replies]
    assert found == [[{"zone": "UTC"}, {"zone": "CET"}], [{"zone": "UTC"}], ["no JSON"]]
    assert replies[1].calls[0].call_id


async def test_files_are_content_blocks_and_ids_are_refused() -> None:
    model = scripted_model([HELLO])
    file = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,aGk="}

    await ask_async(model, [{"role": "user", "content": [file]}])
    by_id = {"type": "input_file", "file_id": "file_1"}
    with pytest.raises(NoResponseError) as refused:
        await ask_async(model, [{"role": "user", "content": [by_id]}])

    expected = {"type": "file", "filename": "a.txt", "base64": "aGk=", "mime_type": "text/plain"}
    assert model.play.inputs[0][0].content == [expected]
    assert (refused.value.status, refused.value.param) == (400, "input")


async def test_models_of_openai_and_anthropic_take_urls() -> None:
    class Remote(ScriptedModel):
        pass

    Remote.__module__ = "langchain_openai.chat_models"
    model = scripted_model([HELLO], Remote)
    image = {"type": "input_image", "image_url": "https://a.example/cat.png"}

    await ask_async(model.bind(stop=["x"]), [{"role": "user", "content": [image]}])

    content = model.play.inputs[0][0].content
    assert content == [{"type": "image", "url": "https://a.example/cat.png"}]


async def test_outputs_of_tools_may_have_images() -> None:
    model = scripted_model([(NOON,), HELLO])
    image = {"type": "input_image", "image_url": "data:image/png;base64,aGk="}

    first = await ask_async(model, "When?", tools=[CLOCK])
    output = {"type": "function_call_output", "call_id": "call_1", "output": [image]}
    await first.ask_async([output])

    assert model.seen[1].images == [b"hi"]
    assert model.play.inputs[1][2].name == "clock"


async def test_what_no_message_can_hold_is_left_out_or_refused() -> None:
    model = scripted_model([HELLO])
    call = {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "no JSON"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "?"}
    search = {"type": "web_search_call", "status": "completed"}
    question = {"role": "user", "content": "hi"}
    sound = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}

    await ask_async(model, [search, call, output, question])
    with pytest.raises(NoResponseError) as refused:
        await ask_async(model, [{"role": "user", "content": [sound]}])

    assert [message.type for message in model.play.inputs[0]] == ["ai", "tool", "human"]
    assert (refused.value.status, refused.value.param) == (400, "input")


async def test_tools_that_a_fallback_is_bound_to_stay() -> None:
    model = scripted_model([(NOON,)])
    bound = model.with_fallbacks([scripted_model([])]).bind(tools=[], stop=["x"])

    reply = await ask_async(bound, "When?", tools=[CLOCK])

    assert [call.name for call in reply.calls] == ["clock"]


# Chains.

ASKED = ChatPromptTemplate.from_messages([("system", "Be kind."), MessagesPlaceholder("messages")])


async def test_a_chain_over_messages() -> None:
    model = scripted_model([HELLO, *says("Yes.")])

    first = await ask_async(ASKED | model, "hi", instructions="Be brief.")
    second = await first.ask_async("and?")

    assert (first.deltas, second.text) == (["Hel", "lo ", "there."], "Yes.")
    assert model.seen[0].texts[:2] == [("system", "Be kind."), ("system", "Be brief.")]
    assert ("assistant", "Hello there.") in model.seen[1].texts
    assert first.usage is not None
    assert first.usage["total_tokens"] == 10


async def test_a_chain_over_a_question_and_its_history() -> None:
    model = scripted_model([HELLO, *says("Yes.")])
    prompt = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("chat_history"), ("human", "Q: {question}")]
    )

    first = await ask_async(prompt | model | StrOutputParser(), "hi")
    second = await first.ask_async("and?")

    assert (first.text, second.text) == ("Hello there.", "Yes.")
    assert model.seen[1].texts == [
        ("user", "hi"),
        ("assistant", "Hello there."),
        ("user", "Q: and?"),
    ]


async def test_a_chain_over_text_or_messages() -> None:
    def shout(text: str) -> str:
        return text.upper()

    def count(messages: list[Any]) -> str:
        return str(len(messages))

    assert (await ask_async(RunnableLambda(shout), "hi")).text == "HI"
    assert (await ask_async(RunnableLambda(count), "hi")).text == "1"
    assert (await ask_async(scripted_model([HELLO]) | StrOutputParser(), "hi")).text


async def test_a_chain_whose_input_is_not_known_stops_the_start() -> None:
    model = scripted_model([])
    three = ChatPromptTemplate.from_messages([("human", "{a} {b}")]) | model
    passed: Any = {"question": RunnablePassthrough()} | three

    for chain in (three, passed, RunnableLambda(lambda x: x)):
        with pytest.raises(TypeError, match=r"write adapt\(chain, to_input="):
            adapt(chain)


async def test_a_chains_output_that_is_no_text_is_json() -> None:
    model = scripted_model([(Say(('{"city": ', '"Rome"}')),), *says('{"city": "Rome"}')])
    chain = ASKED | model | JsonOutputParser()

    reply = await ask_async(chain, "Where?")
    other = await ask_async(adapt(chain, to_answer=lambda found: found["city"]), "Where?")

    assert (reply.text, other.text) == ('{"city": "Rome"}', "Rome")


async def test_what_models_say_inside_of_a_chain_is_not_the_answer() -> None:
    model = scripted_model([(Say(("rewritten",)), Spend(1, 1)), (Say(("Done.",)), Spend(1, 1))])
    chain = ASKED | model | (lambda message: message.text) | model

    reply = await ask_async(chain, "hi")

    assert reply.text == "Done."
    assert reply.usage is not None
    assert reply.usage["total_tokens"] == 4


async def test_a_chain_takes_tools_and_json_where_its_model_is_wrapped() -> None:
    call = Call("give_place", {"city": "Rome"}, "call_2")
    model = scripted_model([(NOON,), (NOON,), (call,), (call,)], profile=None)
    wrapped = ASKED | as_requested(model)

    for chain in (wrapped, wrapped | StrOutputParser()):
        reply = await ask_async(chain, "When?", tools=[CLOCK])
        assert [call.arguments for call in reply.calls] == [{"zone": "UTC"}]
    for chain in (wrapped, wrapped | StrOutputParser()):
        assert (await ask_async(chain, "Where?", text=PLACE)).text == '{"city": "Rome"}'


async def test_a_chain_refuses_tools_where_it_is_not() -> None:
    with pytest.raises(NoResponseError) as refused:
        await ask_async(ASKED | scripted_model([HELLO]), "When?", tools=[CLOCK])

    assert (refused.value.status, refused.value.param) == (400, "tools")


async def test_a_chain_that_was_cut_off_is_incomplete() -> None:
    chain = ASKED | scripted_model([(Say(("Once",)), Stop("length"))]) | StrOutputParser()

    reply = await ask_async(chain, "hi")

    assert (reply.status, reply.text) == ("incomplete", "Once")


async def test_a_chain_shows_reasoning() -> None:
    chain = ASKED | scripted_model([(Think(("Hm.",), "s"), *HELLO)])

    assert kinds(await ask_async(chain, "hi")) == ["reasoning", "message"]


def test_names_of_tools_in_the_forms_of_providers() -> None:
    tools = [
        {"type": "function", "function": {"name": "a", "parameters": {"name": "x"}}},
        {"name": "b", "input_schema": {"properties": {"name": {}}}},
        {"toolSpec": {"name": "c"}},
        {"function_declarations": [{"name": "d"}, {"name": "e"}]},
        {"google_search": {}},
    ]

    assert [*tool_names(tools)] == ["a", "b", "c", "d", "e"]
    assert [*tool_names(None)] == []


# --- streams that end before the answer does -------------------------------------------------------


def ways_to_host(model: ChatOpenAI) -> dict[str, Any]:
    def call(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph: Any = StateGraph(MessagesState).add_node("model", call)
    graph = graph.add_edge(START, "model").add_edge("model", END)
    return {"model": model, "graph": graph.compile(), "chain": model | StrOutputParser()}


@pytest.mark.parametrize("uses_responses", [False, True])
@pytest.mark.parametrize("way", ["model", "graph", "chain"])
@pytest.mark.parametrize("is_cut", [True, False])
async def test_a_stream_that_was_cut_off_fails_the_turn(
    way: str, uses_responses: bool, is_cut: bool
) -> None:
    with OpenAIServer([(Say(("Hel",)), *([Truncate()] if is_cut else []))]) as server:
        model = ChatOpenAI(
            model="m",
            base_url=server.url,
            api_key=SecretStr("k"),
            max_retries=0,
            use_responses_api=uses_responses,
        )
        reply = await creating().run(hosted(adapt(ways_to_host(model)[way])))

    failed = (reply.status, reply.json.get("status")) in ((200, "failed"), (500, None))
    assert failed == is_cut


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, False),
        ({"model_provider": "acme"}, False),
        ({"model_provider": "openai"}, True),
        ({"model_provider": "openai", "finish_reason": "stop"}, False),
        ({"model_provider": "openai", "status": "completed"}, False),
        ({"model_provider": "anthropic", "stop_reason": "end_turn"}, False),
        ({"model_provider": "anthropic", "stop_reason": None}, True),
        ({"model_provider": "bedrock_converse", "stopReason": "end_turn"}, False),
        ({"model_provider": "ollama", "done_reason": "stop"}, False),
    ],
)
def test_an_answer_without_the_reason_that_its_provider_gives_was_cut_off(
    metadata: dict[str, Any], expected: bool
) -> None:
    assert is_cut_off(AIMessage("Hel", response_metadata=metadata)) is expected
