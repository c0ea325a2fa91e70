"""The SDK's own model classes: what goes to a provider, and what of its answers and errors comes out."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import httpx2
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIProvider,
    OpenAIResponsesModel,
    RunConfig,
)
from openai import AsyncOpenAI

from channel.agent import AgentEvent, ReasoningDelta, Turn, TurnError
from channel.agents.openai_agents import adapt
from channel.agents.openai_agents.models import traits_of
from channel.responses.protocol.items import Item, message
from tests.channel.agents.frameworks.openai_agents import ScriptedModel, Telling, weather
from tests.channel.agents.scripts import Call, Say, Spend, Step, Think
from tests.channel.agents.test_matrix import CITY, CLOCK, HELLO
from tests.channel.asgi import create, creating, hosted


pytestmark = pytest.mark.anyio

Reply = httpx2.Response


class Provider:
    """A provider at its wire: what it was asked, and the replies that it has."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = iter(replies)
        self.asked: list[dict[str, Any]] = []

    def client(self, base_url: str = "https://api.openai.com/v1") -> AsyncOpenAI:
        transport = httpx2.MockTransport(self._answer)
        http = httpx2.AsyncClient(transport=transport)
        return AsyncOpenAI(api_key="key", base_url=base_url, http_client=http, max_retries=0)

    def responses(self, model: str = "gpt-5.6") -> OpenAIResponsesModel:
        return OpenAIResponsesModel(model, self.client())

    def chat(self, base_url: str = "https://api.openai.com/v1") -> OpenAIChatCompletionsModel:
        return OpenAIChatCompletionsModel("some-model", self.client(base_url))

    def _answer(self, request: httpx2.Request) -> Reply:
        self.asked.append(json.loads(request.content))
        return next(self._replies)


def sse(events: Iterable[Mapping[str, Any]], *, ends: str = "") -> Reply:
    data = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Reply(200, text=data + ends, headers={"content-type": "text/event-stream"})


def saying(*steps: Step) -> Reply:
    telling = Telling()
    events = [event for step in steps for event in telling.events(step)]
    return sse([*events, telling.end() or {}])


def chunks(*deltas: Mapping[str, Any], finish: str = "stop") -> Reply:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "some-model"}
    choices: list[Any] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return sse([{**head, "choices": [choice]} for choice in choices], ends="data: [DONE]\n\n")


async def told(agent: Agent[Any], **fields: Any) -> list[AgentEvent]:
    turn = Turn(**{"input": [message("user", "hi")], **fields})
    return [event async for event in adapt(agent)(turn)]


def user(*parts: Mapping[str, Any]) -> Item:
    return {"type": "message", "role": "user", "content": [*parts]}


def ids_of(value: Any) -> list[Any]:
    """Return all ids and statuses within."""
    if isinstance(value, list):
        return [found for each in value for found in ids_of(each)]
    if not isinstance(value, dict):
        return []
    own = [value[name] for name in ("id", "status") if name in value]
    return own + [found for each in value.values() for found in ids_of(each)]


async def test_the_responses_api_keeps_nothing_and_reads_none_of_our_ids() -> None:
    provider = Provider(
        saying(Think(("Hm.",), "sealed"), Call("clock", {"zone": "UTC"}, "call_1"), Spend(1, 1)),
        saying(Say(("Noon.",)), Spend(1, 1)),
        saying(*HELLO),
    )
    app = hosted(Agent("kind", instructions="Be kind.", model=provider.responses()))
    output = {"type": "function_call_output", "call_id": "call_1", "output": "12:00"}

    first = await create(app, tools=[CLOCK], instructions="Be brief.")
    second = await create(app, input=[output], previous_response_id=first["id"])
    wanted = {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}
    await create(app, previous_response_id=second["id"], text={"format": wanted})

    for asked in provider.asked:
        assert (asked["store"], asked["include"]) == (False, ["reasoning.encrypted_content"])
        assert ids_of(asked["input"]) == []
        assert "previous_response_id" not in asked
    assert provider.asked[0]["instructions"] == "Be kind.\n\nBe brief."
    assert provider.asked[0]["tools"] == [CLOCK]
    assert [item["type"] for item in provider.asked[2]["input"]] == [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "message",
        "message",
    ]
    assert provider.asked[2]["input"][1]["encrypted_content"] == "sealed"
    assert provider.asked[2]["text"]["format"]["schema"] == CITY


async def test_a_models_own_reasoning_comes_back_within_its_turn() -> None:
    provider = Provider(
        saying(Think(("Hm.",), "sealed"), Call("weather", {"city": "Rome"}, "c"), Spend(1, 1)),
        saying(*HELLO),
    )

    await told(Agent("kind", model=provider.responses(), tools=[weather]))

    assert provider.asked[1]["input"][1]["encrypted_content"] == "sealed"


@pytest.mark.parametrize(
    ("model", "settings", "include"),
    [
        ("gpt-4.1", ModelSettings(), []),
        ("gpt-4.1", ModelSettings(response_include=["web_search_call.action.sources"]), None),
        ("o4-mini", ModelSettings(), ["reasoning.encrypted_content"]),
        ("my-deployment", ModelSettings(), []),
        ("my-deployment", ModelSettings(reasoning={"effort": "low"}), None),
        ("gpt-5.6", ModelSettings(store=True), []),
    ],
)
async def test_only_reasoning_models_are_asked_for_their_reasoning(
    model: str, settings: ModelSettings, include: list[str] | None
) -> None:
    provider = Provider(saying(*HELLO))

    await told(Agent("kind", model=provider.responses(model), model_settings=settings))

    (asked,) = provider.asked
    if include is not None:
        assert asked["include"] == include
    else:
        assert len(asked["include"]) == 1
    assert asked["store"] is bool(settings.store)


async def test_a_runs_model_has_the_settings_that_go_with_its_name() -> None:
    provider = Provider(saying(*HELLO))
    config = RunConfig(
        model="gpt-4.1", model_provider=OpenAIProvider(openai_client=provider.client())
    )

    _ = [
        e async for e in adapt(Agent("kind"), run_config=config)(Turn(input=[message("user", "a")]))
    ]

    (asked,) = provider.asked
    assert (asked["model"], asked["store"]) == ("gpt-4.1", False)
    assert "reasoning" not in asked


async def test_the_responses_api_is_given_images_and_files_as_they_are() -> None:
    provider = Provider(saying(*HELLO))
    parts = [
        {"type": "input_image", "image_url": "https://example.com/a.png"},
        {"type": "input_file", "file_url": "https://example.com/a.pdf"},
        {"type": "input_image", "file_id": "file_1"},
    ]
    image = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aGk="}
    told_before = message("developer", "Be brief.")

    await told(
        Agent("kind", model=provider.responses()),
        history=[told_before, image],
        input=[user(*parts)],
    )

    assert provider.asked[0]["input"] == [told_before, image, user(*parts)]


async def test_the_chat_api_is_given_what_it_knows() -> None:
    provider = Provider(chunks({"content": "Hel"}, {"content": "lo"}), chunks({"content": "x"}))
    items = [message("developer", "Be brief."), message("user", "hi")]
    image = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aGk="}

    first = await told(
        Agent("kind", model=provider.chat("https://example.com/v1"), instructions="Be kind."),
        input=items,
        history=[image],
        options={"max_output_tokens": 9},
    )
    await told(Agent("kind", model=provider.chat()))

    foreign, openai = provider.asked
    assert [event for event in first if isinstance(event, str)] == ["Hel", "lo"]
    assert [each["role"] for each in foreign["messages"]] == ["system", "system", "user"]
    assert foreign["max_tokens"] == 9
    assert "store" not in foreign
    assert openai["store"] is False


async def test_a_chat_models_calls_and_thoughts_are_told() -> None:
    call = {
        "index": 0, "id": "call_1", "type": "function",
        "function": {"name": "clock", "arguments": '{"zone"'},
    }  # fmt: skip
    rest = {"index": 0, "function": {"arguments": ': "UTC"}'}}
    provider = Provider(
        chunks(
            {"reasoning_content": "Hm."},
            {"tool_calls": [call]},
            {"tool_calls": [rest]},
            finish="tool_calls",
        ),
        chunks({"content": "Noon."}),
    )
    app = hosted(Agent("kind", model=provider.chat()))

    first = await create(app, tools=[CLOCK])
    output = {"type": "function_call_output", "call_id": "call_1", "output": "12:00"}
    await create(app, input=[output], previous_response_id=first["id"])

    assert [item["type"] for item in first["output"]] == ["reasoning", "function_call"]
    assert first["output"][1]["arguments"] == '{"zone": "UTC"}'
    assert provider.asked[1]["messages"][-1]["content"] == "12:00"


async def test_thoughts_that_end_after_a_call_go_on_with_it() -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "clock"}}
    provider = Provider(
        chunks({"reasoning": "Hm."}, {"tool_calls": [call]}, finish="tool_calls"),
        chunks({"content": "Noon."}),
    )
    app = hosted(Agent("kind", model=provider.chat("https://example.com/v1")))

    first = await create(app, tools=[CLOCK])
    output = {"type": "function_call_output", "call_id": "call_1", "output": "12:00"}
    await create(app, input=[output], previous_response_id=first["id"])

    assert [item["type"] for item in first["output"]] == ["reasoning", "function_call"]
    assert first["output"][1]["arguments"] == "{}"
    assert provider.asked[1]["messages"][1]["reasoning"] == "Hm."


async def test_thoughts_of_both_kinds_are_told() -> None:
    provider = Provider(chunks({"reasoning": "Hm."}, {"content": "Well."}))

    events = await told(Agent("kind", model=provider.chat("https://example.com/v1")))

    assert [e.text for e in events if isinstance(e, ReasoningDelta) and e.text] == ["Hm."]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"type": "input_image", "file_id": "file_1"}, "invalid_image_url"),
        ({"type": "input_file", "file_url": "https://example.com/a.pdf"}, "invalid_value"),
    ],
)
async def test_the_chat_api_takes_no_other_references(part: Mapping[str, Any], code: str) -> None:
    with pytest.raises(TurnError) as caught:
        await told(Agent("kind", model=Provider().chat()), input=[user(part)])

    assert (caught.value.status, caught.value.code) == (400, code)


class LiteModel(ScriptedModel):
    """Stands for the models of the SDK's extensions, whose library fetches what a URL names."""

    __module__ = "agents.extensions.models.litellm_model"


async def test_a_library_that_would_fetch_a_url_is_given_none() -> None:
    web = {"type": "input_image", "image_url": "https://example.com/a.png"}
    inline = {"type": "input_image", "image_url": "data:image/png;base64,aGk="}
    model = LiteModel([HELLO])

    with pytest.raises(TurnError) as caught:
        await told(Agent("kind", model=model), input=[user(web)])
    await told(Agent("kind", model=model), input=[user(inline)])

    assert (caught.value.status, caught.value.code) == (400, "invalid_image_url")
    assert model.seen[0].images == [b"hi"]
    assert (model.settings[0].store, traits_of(model).can_store) == (None, False)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (429, {"code": "rate_limit_exceeded"}, (429, "rate_limit_exceeded")),
        (400, {"code": "context_length_exceeded"}, (400, "context_length_exceeded")),
        (503, {"code": None}, (503, "server_error")),
        (401, {"code": "invalid_api_key"}, (500, None)),
    ],
)
@pytest.mark.parametrize("api", [Provider.responses, Provider.chat])
async def test_a_providers_error_is_told_as_far_as_clients_may_know(
    api: Callable[[Provider], Any],
    status: int,
    error: dict[str, Any],
    expected: tuple[int, str | None],
) -> None:
    provider = Provider(Reply(status, json={"error": {"message": "secret", **error}}))
    app = hosted(Agent("kind", model=api(provider)), first_event_grace_s=60)

    reply = await creating().run(app)

    assert reply.status == expected[0]
    assert expected[1] is None or reply.error_body["code"] == expected[1]
    assert b"secret" not in reply.body
