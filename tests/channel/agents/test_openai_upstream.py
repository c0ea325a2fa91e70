"""An agent that is a model of an OpenAI-compatible API: against a server on 127.0.0.1, by both of its wires."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from starlette.types import ASGIApp

from channel.agent import Turn
from channel.agents.openai_upstream import ApiKey, upstream_agent
from channel.responses.protocol.items import message
from tests.channel.agents.scripts import Call, Fail, Say, Spend, Stop, Think, Wait
from tests.channel.agents.test_matrix import CITY, CLOCK, HELLO, kinds, said
from tests.channel.asgi import create, creating, hosted
from tests.models.openai_server import OpenAIServer, ServerScript
from tests.models.steps import (
    Break,
    Calls,
    Cite,
    Cut,
    Flood,
    Hosted,
    Raw,
    Refuse,
    Reply,
    ServerStep,
    Truncate,
    error_body,
)


pytestmark = pytest.mark.anyio

KEY = "sk-very-secret"
ROUTES = {"responses": "/v1/responses", "chat": "/v1/chat/completions"}
NO_RETRY = {"x-should-retry": "false"}
CITED = {
    "type": "url_citation",
    "url": "https://example.com",
    "title": "t",
    "start_index": 0,
    "end_index": 2,
}
Make = Callable[..., tuple[ASGIApp, OpenAIServer]]


@pytest.fixture(params=["responses", "chat"])
def wire(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def make(anyio_backend: str) -> AsyncIterator[Make]:
    """Make an app over an upstream that says a script; both are closed at the end."""
    async with AsyncExitStack() as stack:

        def made(
            script: ServerScript | None,
            wire: str = "auto",
            *,
            api_key: ApiKey | None = KEY,
            tools: Any = (),
            serves: dict[str, Any] | None = None,
            **options: Any,
        ) -> tuple[ASGIApp, OpenAIServer]:
            server = stack.enter_context(OpenAIServer(script, **(serves or {})))
            agent: Any = upstream_agent(
                "scripted",
                server.url,
                api_key=api_key,
                wire=wire,
                instructions="Be kind.",
                tools=tools,
            )
            stack.push_async_callback(agent.aclose)
            return hosted(agent, **options), server

        yield made


# --- what both wires do --------------------------------------------------------------------------


async def test_text_streams_as_the_model_says_it(make: Make, wire: str) -> None:
    app, server = make([HELLO], wire)

    reply = await creating(stream=True, input="hi", instructions="Be brief.").run(app)

    deltas = [e["delta"] for e in reply.events if e["type"] == "response.output_text.delta"]
    assert deltas == ["Hel", "lo ", "there."]
    assert reply.types[-1] == "completed"
    assert reply.events[-1]["response"]["usage"]["total_tokens"] == 10
    assert server.paths == [ROUTES[wire]]
    assert server.seen[0].texts == [("system", "Be kind.\n\nBe brief."), ("user", "hi")]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_an_upstream_without_memory_gets_all_of_the_conversation(
    make: Make, wire: str
) -> None:
    app, server = make([(Say((word,)), Spend(1, 1)) for word in ("one", "two", "three")], wire)

    first = await create(app, input="first")
    second = await create(app, input="second", previous_response_id=first["id"])
    third = await create(app, input="third", previous_response_id=second["id"])

    assert said(third) == "three"
    assert [text for _, text in server.seen[2].texts[1:]] == [
        "first",
        "one",
        "second",
        "two",
        "third",
    ]
    sent = json.dumps(server.bodies)
    assert not [
        each for each in (first["id"], second["id"], first["output"][0]["id"]) if each in sent
    ]


async def test_calls_go_to_the_client_and_their_outputs_back(make: Make, wire: str) -> None:
    calls = Calls(
        (Call("clock", {"zone": "UTC"}, "call_1"), Call("clock", {"zone": "CET"}, "call_2"))
    )
    app, server = make([(Say(("Let me see.",)), calls, Spend(3, 2)), HELLO], wire)

    first = await create(app, tools=[CLOCK])
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": item["arguments"]}
        for item in first["output"][1:]
    ]
    second = await create(app, input=outputs, previous_response_id=first["id"], tools=[CLOCK])

    assert kinds(first) == ["message", "function_call", "function_call"]
    zones = [json.loads(item["arguments"])["zone"] for item in first["output"][1:]]
    assert zones == ["UTC", "CET"]
    assert said(second) == "Hello there."
    assert server.seen[0].tools == ["clock"]
    assert server.seen[1].calls == [("call_1", "clock"), ("call_2", "clock")]
    told = [text for role, text in server.seen[1].texts if role == "tool"]
    assert told == ['{"zone": "UTC"}', '{"zone": "CET"}']


async def test_a_call_streams(make: Make, wire: str) -> None:
    app, _ = make([(Call("clock", {"zone": "UTC"}, "call_1"), Spend(3, 2))], wire)

    reply = await creating(stream=True, tools=[CLOCK]).run(app)

    assert reply.types.count("function_call_arguments.delta") == 2


async def test_one_call_at_a_time_where_the_request_wants_it(make: Make, wire: str) -> None:
    app, server = make([(Call("clock", {}, "call_1"), Spend(1, 1))], wire)

    await create(app, tools=[CLOCK], parallel_tool_calls=False, tool_choice="required")

    assert server.bodies[0]["parallel_tool_calls"] is False
    assert server.bodies[0]["tool_choice"] == "required"


async def test_an_answer_has_the_form_that_the_client_asks_for(make: Make, wire: str) -> None:
    app, server = make([(Say(('{"city": ', '"Rome"}')), Spend(1, 1))], wire)
    wanted = {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}

    response = await create(app, text={"format": wanted}, max_output_tokens=64, temperature=0.5)

    assert json.loads(said(response)) == {"city": "Rome"}
    seen = server.seen[0]
    assert (seen.schema, seen.max_tokens, seen.temperature) == (CITY, 64, 0.5)


async def test_the_url_of_an_image_is_for_the_upstream_to_fetch(make: Make, wire: str) -> None:
    app, server = make([HELLO], wire)
    image = {"type": "input_image", "image_url": "https://unreachable.invalid/a.png"}

    await create(app, input=[{"role": "user", "content": [image]}])

    assert "https://unreachable.invalid/a.png" in json.dumps(server.bodies[0])


async def test_usage_has_its_details(make: Make, wire: str) -> None:
    app, _ = make([(Say(("Hi",)), Spend(20, 9, cached_tokens=5, reasoning_tokens=4))], wire)

    usage = (await create(app))["usage"]

    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (20, 9, 29)
    assert usage["input_tokens_details"]["cached_tokens"] == 5
    assert usage["output_tokens_details"]["reasoning_tokens"] == 4


@pytest.mark.parametrize(
    ("stop", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
async def test_a_limit_makes_the_response_incomplete(
    make: Make, wire: str, stop: str, reason: str
) -> None:
    app, _ = make([(Say(("Once upon",)), Stop(stop), Spend(1, 1))], wire)

    response = await create(app)

    assert (response["status"], said(response)) == ("incomplete", "Once upon")
    assert response["incomplete_details"] == {"reason": reason}
    assert response["usage"]["total_tokens"] == 2


async def test_refusals_and_citations_reach_the_client(make: Make, wire: str) -> None:
    app, _ = make([(Say(("Hi.",)), Cite(CITED), Refuse(("I ", "will not."))), HELLO], wire)

    response = await create(app)

    text, refusal = response["output"][0]["content"]
    assert text["annotations"] == [CITED]
    assert refusal == {"type": "refusal", "refusal": "I will not."}


@pytest.mark.parametrize("wire_name", ["responses", "chat"])
async def test_reasoning_comes_back_to_its_model(make: Make, wire_name: str) -> None:
    app, server = make(
        [(Think(("Hm, ", "well."), "signed"), Say(("Hi.",))), HELLO, HELLO], wire_name
    )

    first = await create(app, input="first")
    await create(app, previous_response_id=first["id"])
    given_back = [item for item in first["output"] if item["type"] == "reasoning"]
    await create(app, input=[*given_back, message("assistant", "Hi."), message("user", "Go on.")])

    assert kinds(first) == ["reasoning", "message"]
    assert first["output"][0]["summary"][0]["text"] == "Hm, well."
    expected = ["signed"] if wire_name == "responses" else ["Hm, well."]
    assert [seen.signatures for seen in server.seen] == [[], expected, expected]


# --- how it fails --------------------------------------------------------------------------------


MIDDLES: list[tuple[ServerStep, ...]] = [
    (Fail("secret detail"),),
    (Break("server_error"),),
    (Break("invalid_api_key"),),
    (Break(None),),
    (Break(502),),
    (Raw({"error": {"message": "secret detail", "code": None}}),),
    (Truncate(),),
    (Cut(),),
]


@pytest.mark.parametrize("steps", MIDDLES)
async def test_an_answer_that_breaks_off_is_a_failed_response(
    make: Make, wire: str, steps: tuple[ServerStep, ...]
) -> None:
    app, _ = make([(Say(("Well, ",)), *steps)], wire)

    reply = await creating(stream=True).run(app)

    assert reply.types[-1] == "failed"
    response = reply.events[-1]["response"]
    assert response["error"]["code"] == "server_error"
    assert said(response) == "Well, "
    assert b"secret" not in reply.body


@pytest.mark.parametrize(
    "body", ["data: 5\n\n", "data: {secret\n\n", '{"secret": "a body that is no stream"}', ""]
)
async def test_what_is_no_stream_of_events_is_a_failure(make: Make, wire: str, body: str) -> None:
    junk = Reply(200, body, {"content-type": "text/event-stream"})
    app, _ = make([(junk,)], wire, first_event_grace_s=60)

    reply = await creating().run(app)

    assert reply.status == 500
    assert b"secret" not in reply.body


async def test_a_limit_of_the_upstream_in_the_middle_is_told(make: Make, wire: str) -> None:
    app, _ = make([(Say(("Well, ",)), Break("rate_limit_exceeded"))], wire)

    response = await create(app)

    assert (response["status"], response["error"]["code"]) == ("failed", "rate_limit_exceeded")


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Reply(401, error_body("secret detail", "invalid_api_key")), (500, None, None)),
        (Reply(403, error_body("secret detail")), (500, None, None)),
        (Reply(404, error_body("no model secret detail", "model_not_found")), (500, None, None)),
        (
            Reply(429, error_body("secret detail", "insufficient_quota"), NO_RETRY),
            (500, None, None),
        ),
        (Reply(500, "secret detail", NO_RETRY), (500, None, None)),
        (Reply(429, error_body("secret detail"), NO_RETRY), (429, "rate_limit_exceeded", None)),
        (Reply(503, "<html>secret detail</html>", NO_RETRY), (503, "server_error", None)),
        (
            Reply(400, error_body("secret detail", "unsupported_value", "temperature")),
            (400, "unsupported_value", "temperature"),
        ),
        (
            Reply(400, error_body("the maximum context length is 8 secret detail")),
            (400, "context_length_exceeded", "input"),
        ),
        (
            Reply(400, error_body("secret detail", "invalid_image_url", "input[0].content")),
            (400, "invalid_image_url", "input"),
        ),
        (Reply(422, {"detail": "secret detail"}), (400, "invalid_prompt", None)),
    ],
)
async def test_a_refusal_tells_what_is_the_callers_business(
    make: Make, wire: str, refusal: Reply, expected: tuple[int, str | None, str | None]
) -> None:
    app, server = make([(refusal,)], wire, first_event_grace_s=60)

    reply = await creating(temperature=1).run(app)

    error = reply.error_body
    assert (reply.status, error["code"], error["param"]) == expected
    assert reply.headers["x-should-retry"] == "false"
    assert b"secret" not in reply.body
    assert len(server.paths) == 1


async def test_an_upstream_that_is_away_is_a_503(make: Make, wire: str) -> None:
    app, server = make([], wire, first_event_grace_s=60)
    server.close()

    reply = await creating().run(app)

    assert (reply.status, reply.error_body["code"]) == (503, "server_error")
    assert server.url.encode() not in reply.body


async def test_what_was_not_answered_is_asked_again(make: Make, wire: str) -> None:
    soon = {"retry-after-ms": "1"}
    throttled, down = Reply(429, error_body("busy"), soon), Reply(503, "down", soon)
    app, server = make([(throttled,), (down,), HELLO], wire)

    response = await create(app)

    assert said(response) == "Hello there."
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


async def test_logs_hold_no_key_and_no_word(
    make: Make, wire: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Reply(400, error_body("secret word", "unsupported_value", "temperature"))
    app, _ = make([(Say(("secret word",)), Spend(1, 1)), (refused,), (Fail("secret word"),)], wire)

    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            await creating(input="secret word", first_event_grace_s=60).run(app)

    assert caplog.records
    logged = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    ours = [line for line in logged if "secret" in line]
    assert ours == []
    (told,) = (record for record in caplog.records if record.msg == "upstream refused or failed")
    facts = {name: vars(told)[name] for name in ("error_type", "status", "code")}
    assert facts == {"error_type": "BadRequestError", "status": 400, "code": "unsupported_value"}


# --- one client, its connections and its key -----------------------------------------------------


async def test_a_client_that_goes_closes_the_connection_to_the_upstream(
    make: Make, wire: str
) -> None:
    wait = Wait()
    app, server = make([(Say(("Well, ",)), wait)], wire)
    reply = creating(stream=True)
    running = reply.start(app)

    await asyncio.wait_for(wait.begun.wait(), 30)
    await reply.until("Well")
    reply.hang_up()
    await asyncio.wait_for(running, 30)

    await asyncio.wait_for(wait.ended.wait(), 30)
    assert server.lost.is_set()


async def test_a_turn_that_is_closed_closes_it_too(wire: str) -> None:
    wait = Wait()
    with OpenAIServer([(Say(("Well, ",)), wait)]) as server:
        agent: Any = upstream_agent("m", server.url, api_key=KEY, wire=wire)
        events = agent(Turn(input=[message("user", "hi")]))
        assert await anext(events) == "Well, "

        await events.aclose()

        await asyncio.wait_for(wait.ended.wait(), 30)
        await agent.aclose()


async def test_nothing_is_read_ahead_of_a_slow_client(wire: str) -> None:
    pieces = 3_000
    with OpenAIServer([(Flood(pieces, 1_000), Spend(1, 1))]) as server:
        agent: Any = upstream_agent("m", server.url, api_key=KEY, wire=wire)
        events = agent(Turn(input=[message("user", "hi")]))
        first = await anext(events)

        assert await asyncio.to_thread(server.stalled.wait, 30)
        rest = [event async for event in events if isinstance(event, str)]

        assert len(first + "".join(rest)) == pieces * 1_000
        await agent.aclose()


async def test_all_turns_share_one_client_and_its_connection(make: Make, wire: str) -> None:
    app, server = make([HELLO, HELLO, HELLO], wire, serves={"keeps_alive": True})
    assert server.connections == 0

    for _ in range(3):
        await create(app)

    assert server.connections == 1


async def test_a_key_may_be_asked_for_at_each_request(make: Make, wire: str) -> None:
    keys = iter(["sk-1", "sk-2"])

    async def current() -> str:
        return next(keys)

    app, server = make([HELLO, HELLO], wire, api_key=current)

    await create(app)
    await create(app)

    sent = [headers["authorization"] for headers in server.headers]
    assert sent == ["Bearer sk-1", "Bearer sk-2"]


async def test_a_key_that_cannot_be_read_is_a_500_that_tells_nothing(make: Make) -> None:
    async def current() -> str:
        raise LookupError("secret detail")

    app, server = make([HELLO], api_key=current, first_event_grace_s=60)

    reply = await creating().run(app)

    assert reply.status == 500
    assert b"secret" not in reply.body
    assert server.paths == []


async def test_an_upstream_without_keys_gets_none(make: Make) -> None:
    app, server = make([HELLO], api_key=None)

    await create(app)

    assert server.headers[0]["authorization"] == "Bearer none"


# --- which wire, and which words -----------------------------------------------------------------


async def test_without_a_responses_api_chat_completions_are_asked_from_then_on(make: Make) -> None:
    app, server = make([HELLO, HELLO], serves={"has_responses": False})

    first = await create(app)
    second = await create(app)

    assert said(first) == said(second) == "Hello there."
    assert server.paths == [ROUTES["responses"], ROUTES["chat"], ROUTES["chat"]]


async def test_with_a_responses_api_it_is_asked(make: Make) -> None:
    app, server = make([HELLO])

    await create(app)

    assert server.paths == [ROUTES["responses"]]


async def test_an_upstream_whose_responses_api_has_answered_is_always_asked_by_it(
    make: Make,
) -> None:
    lost = Reply(404, "<html>404 page not found</html>")
    app, server = make([HELLO, (lost,), HELLO], first_event_grace_s=60)

    statuses = [(await creating().run(app)).status for _ in range(3)]

    assert statuses == [200, 500, 200]
    assert server.paths == [ROUTES["responses"]] * 3


@pytest.mark.parametrize("chosen", ["auto", "responses"])
async def test_a_model_that_is_not_there_is_not_looked_for_elsewhere(
    make: Make, chosen: str
) -> None:
    missing = Reply(404, error_body("The model 'x' does not exist", "model_not_found", "model"))
    app, server = make([(missing,), HELLO], chosen, first_event_grace_s=60)

    reply = await creating().run(app)

    assert reply.status == 500
    assert server.paths == [ROUTES["responses"]]


async def test_a_wire_that_was_chosen_is_kept_to(make: Make) -> None:
    app, server = make(
        [HELLO], "responses", serves={"has_responses": False}, first_event_grace_s=60
    )

    reply = await creating().run(app)

    assert reply.status == 500
    assert server.paths == [ROUTES["responses"]]


async def test_a_model_that_does_not_reason_is_not_asked_for_its_reasoning_again(
    make: Make,
) -> None:
    refused = Reply(400, error_body("Encrypted content is not supported", None, "include"))
    app, server = make([(refused,), HELLO, HELLO])

    await create(app)
    await create(app)

    assert ["include" in body for body in server.bodies] == [True, False, False]


async def test_reasoning_of_another_model_is_left_out_of_the_turn(make: Make) -> None:
    refused = Reply(400, error_body("It could not be verified.", "invalid_encrypted_content"))
    thought = (Think(("Hm.",), "signed"), Say(("Hi.",)), Spend(1, 1))
    app, server = make([thought, (refused,), HELLO, HELLO])

    first = await create(app)
    second = await create(app, previous_response_id=first["id"])
    await create(app, previous_response_id=first["id"])

    assert said(second) == "Hello there."
    assert [seen.signatures for seen in server.seen] == [[], ["signed"], [], ["signed"]]


async def test_the_limit_has_the_name_that_the_model_takes(make: Make) -> None:
    refused = Reply(
        400,
        error_body(
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "unsupported_parameter",
            "max_tokens",
        ),
    )
    app, server = make([(refused,), HELLO, HELLO], "chat")

    for _ in range(2):
        await create(app, max_output_tokens=64)

    names = [
        sorted(body.keys() & {"max_tokens", "max_completion_tokens"}) for body in server.bodies
    ]
    assert names == [["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"]]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_goes_back_in_the_field_in_which_it_came(make: Make, field: str) -> None:
    thought = (Think(("Hm.",)), Call("clock", {}, "call_1"), Spend(1, 1))
    app, server = make([thought, HELLO], "chat", serves={"reasoning_field": field})
    output = {"type": "function_call_output", "call_id": "call_1", "output": "12:00"}

    first = await create(app, tools=[CLOCK])
    await create(app, input=[output], previous_response_id=first["id"], tools=[CLOCK])

    assert kinds(first) == ["reasoning", "function_call"]
    assert server.bodies[1]["messages"][2][field] == "Hm."


async def test_tools_that_the_upstream_runs_are_the_owners(make: Make) -> None:
    search = {
        "type": "web_search_call",
        "status": "completed",
        "action": {"type": "search", "query": "q"},
    }
    script = [(Hosted(search), Say(("Found.",)), Spend(1, 1)), HELLO]
    app, server = make(script, tools=[{"type": "web_search"}])

    first = await create(app, tools=[{"type": "code_interpreter"}, CLOCK])
    second = await create(app, previous_response_id=first["id"])

    assert kinds(first) == ["web_search_call", "message"]
    assert first["output"][0]["id"] != "ws_up_1_0"
    assert [tool["type"] for tool in server.bodies[0]["tools"]] == ["web_search", "function"]
    assert said(second) == "Hello there."


@pytest.mark.parametrize(("chosen", "tools"), [("http", ()), ("chat", [{"type": "web_search"}])])
def test_a_wire_that_there_is_not_is_refused_at_once(chosen: str, tools: Any) -> None:
    with pytest.raises(ValueError, match="must be one of auto, responses, chat"):
        upstream_agent("m", "http://127.0.0.1:1/v1", api_key=None, wire=chosen, tools=tools)


async def test_what_cannot_be_asked_is_refused_before_it_is(make: Make) -> None:
    app, server = make([HELLO], "chat", first_event_grace_s=60)
    part = {"type": "input_image", "file_id": "file-1"}

    reply = await creating(input=[{"role": "user", "content": [part]}]).run(app)

    assert (reply.status, reply.error_body["param"]) == (400, "input")
    assert server.paths == []


async def test_an_agent_that_was_not_used_has_nothing_to_close() -> None:
    agent: Any = upstream_agent("m", "http://127.0.0.1:1/v1", api_key=None)

    await agent.aclose()
