"""A Bedrock model as an agent: the real client against a server of Bedrock's wire, and all that goes wrong on it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from channel.agent import (
    Agent,
    AgentEvent,
    Finish,
    FunctionCallDelta,
    ReasoningDelta,
    TextDelta,
    Turn,
    TurnError,
    Usage,
)
from channel.agents.bedrock import converse_agent
from channel.agents.converse.messages import redacted, signed
from channel.responses.protocol.items import Item, message
from channel.responses.windows.tokens import estimated_input_tokens
from infra.bedrock import make_bedrock_client
from tests.channel.agents.scripts import Call, Say, Spend, Stop, Think, Wait
from tests.channel.asgi import create, creating, hosted
from tests.models.bedrock_server import (
    BedrockServer,
    Cut,
    Event,
    Hold,
    Refuse,
    ServerScript,
    Spoil,
    Throw,
)


pytestmark = pytest.mark.anyio

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
LLAMA = "meta.llama4-maverick-17b-instruct-v1:0"
HI = Turn(input=[message("user", "hi")])
HELLO = (Say(("Hello.",)), Spend(7, 3))
SECRET = "secret detail"
Serve = Callable[..., tuple[Agent, BedrockServer]]


@pytest.fixture
def serve() -> Serve:
    def make(
        script: ServerScript = (), model_id: str = CLAUDE, **options: Any
    ) -> tuple[Agent, BedrockServer]:
        server = BedrockServer(script)
        client = make_bedrock_client(None, server.endpoint, attempts=1)
        server.start(at_end=client.close)
        return converse_agent(model_id, client, **options), server

    return make


async def heard(agent: Agent, turn: Turn = HI) -> list[AgentEvent]:
    return [event async for event in agent(turn)]


def reading_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "blocking-stream"]


# --- what is sent and what is said ---------------------------------------------------------------


async def test_the_model_is_asked_by_its_id_and_its_answer_told(serve: Serve) -> None:
    arn = "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.amazon.nova-pro-v1:0"
    agent, server = serve([HELLO], arn)

    assert await heard(agent) == [TextDelta("Hello."), Usage(7, 3)]
    assert (server.asked[0].model_id, server.asked[0].operation) == (arn, "converse-stream")
    assert reading_threads() == []


async def test_two_turns_use_one_connection(serve: Serve) -> None:
    agent, server = serve([HELLO, HELLO])

    await heard(agent)
    await heard(agent)

    assert server.connections == 1


async def test_parallel_calls_are_told_one_after_the_other(serve: Serve) -> None:
    calls = (Call("clock", {"zone": "UTC"}, "1"), Call("clock", {}, "2"))
    agent, _ = serve([(*calls, Spend(1, 1))])

    said = await heard(agent)

    assert said[:-1] == [
        FunctionCallDelta("1", name="clock"),
        FunctionCallDelta("1", '{"zone"'),
        FunctionCallDelta("1", ': "UTC"}'),
        FunctionCallDelta("2", name="clock"),
        FunctionCallDelta("2", "{}"),
    ]


async def test_reasoning_goes_back_to_the_model_in_a_loop_of_tools(serve: Serve) -> None:
    hidden = Event(
        "contentBlockDelta",
        {"contentBlockIndex": 1, "delta": {"reasoningContent": {"redactedContent": "AP8="}}},
    )
    thought = (
        Think(("Hm, ", "so."), "sig+/="),
        hidden,
        Event("contentBlockStop", {"contentBlockIndex": 1}),
        Call("clock", {"zone": "UTC"}, "1"),
    )
    agent, server = serve([thought, HELLO])
    app = hosted(agent)
    tools = [{"type": "function", "name": "clock", "parameters": {"type": "object"}}]

    first = await create(app, tools=tools)
    answer = {"type": "function_call_output", "call_id": "1", "output": "noon"}
    await create(app, input=[answer], previous_response_id=first["id"], tools=tools)

    assert [item["type"] for item in first["output"]] == ["reasoning", "reasoning", "function_call"]
    assert server.asked[1].body["messages"][1]["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "Hm, so.", "signature": "sig+/="}}},
        {"reasoningContent": {"redactedContent": "AP8="}},
        {"toolUse": {"toolUseId": "1", "name": "clock", "input": {"zone": "UTC"}}},
    ]


async def test_tokens_of_the_prompt_cache_are_told(serve: Serve) -> None:
    agent, _ = serve([(Say(("Hi",)), Spend(20, 9, cached_tokens=5))])

    usage = (await create(hosted(agent)))["usage"]

    assert usage["input_tokens"] == 20
    assert usage["input_tokens_details"] == {"cached_tokens": 5, "cache_write_tokens": 0}


async def test_a_guardrail_goes_with_each_request_and_may_end_the_reply(serve: Serve) -> None:
    agent, server = serve(
        [(Say(("I cannot say that.",)), Stop("content_filter"))], guardrail=("abc123", "1")
    )

    said = await heard(agent)

    assert said[-1] == Finish("content_filter")
    assert server.asked[0].body["guardrailConfig"]["guardrailIdentifier"] == "abc123"


async def test_a_window_that_is_full_makes_the_response_incomplete(serve: Serve) -> None:
    agent, _ = serve([(Say(("Once",)), Stop("model_context_window_exceeded"))])

    response = await create(hosted(agent))

    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_call_that_a_limit_cut_is_incomplete(serve: Serve) -> None:
    agent, _ = serve([(Call("clock", {"zone": "UTC"}, "1"), Stop("length"))])
    tools = [{"type": "function", "name": "clock", "parameters": {"type": "object"}}]

    response = await create(hosted(agent), tools=tools)

    assert response["status"] == "incomplete"
    assert response["output"][0]["status"] == "incomplete"


async def test_a_citation_is_an_annotation_of_the_answer(serve: Serve) -> None:
    cited = {"title": "report", "location": {"documentPage": {"documentIndex": 1, "start": 2}}}
    agent, _ = serve(
        [
            (
                Event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "So."}}),
                Event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"citation": cited}}),
                Event("contentBlockStop", {"contentBlockIndex": 0}),
            )
        ]
    )

    response = await create(hosted(agent))

    assert response["output"][0]["content"][0]["annotations"] == [
        {"type": "file_citation", "file_id": "report", "filename": "report", "index": 1}
    ]


async def test_events_of_a_later_day_are_passed_over(serve: Serve) -> None:
    new = Event("somethingNew", {"a": 1})
    delta = Event("contentBlockDelta", {"contentBlockIndex": 9, "delta": {"aroma": {"a": 1}}})
    agent, _ = serve([(new, delta, *HELLO)])

    assert await heard(agent) == [TextDelta("Hello."), Usage(7, 3)]


async def test_a_call_that_the_request_does_not_permit_fails_the_turn(serve: Serve) -> None:
    agent, _ = serve([(Say(("Well, ",)), Call("clock", {}, "1"))], LLAMA)

    response = await create(hosted(agent), tool_choice="none")

    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")


def test_an_agent_takes_the_options_of_its_model() -> None:
    client: Any = None

    assert "temperature" in converse_agent(CLAUDE, client).accepted_options  # type: ignore[attr-defined]  # as of any function
    assert "temperature" not in converse_agent("anthropic.claude-opus-5", client).accepted_options  # type: ignore[attr-defined]  # as above


# --- errors --------------------------------------------------------------------------------------

BUSY = (429, "rate_limit_exceeded")
DOWN = (503, "server_error")
TOO_LONG = (400, "context_length_exceeded")
INVALID = (400, "invalid_prompt")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Refuse(429, "ThrottlingException", SECRET), BUSY),
        (Refuse(429, "ModelNotReadyException", SECRET), BUSY),
        (Refuse(503, "ServiceUnavailableException", SECRET), DOWN),
        (Refuse(408, "ModelTimeoutException", SECRET), DOWN),
        (Refuse(400, "ValidationException", "prompt is too long: 9 tokens > 8 maximum"), TOO_LONG),
        (Refuse(400, "ValidationException", SECRET), INVALID),
        (Throw("throttlingException", SECRET), BUSY),
        (Throw("serviceUnavailableException", SECRET), DOWN),
        (Throw("validationException", "Input is too long for requested model."), TOO_LONG),
        (Throw("validationException", SECRET), INVALID),
    ],
)
async def test_what_a_client_may_know_of_an_error_is_told(
    serve: Serve, error: Any, expected: tuple[int, str]
) -> None:
    agent, _ = serve([(error,)])

    with pytest.raises(TurnError) as raised:
        await heard(agent)

    assert (raised.value.status, raised.value.code) == expected
    assert SECRET not in raised.value.message
    assert reading_threads() == []


async def test_a_request_that_the_model_refuses_is_logged_without_its_text(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    agent, _ = serve([(Refuse(400, "ValidationException", SECRET),)])

    with pytest.raises(TurnError):
        await heard(agent)

    assert caplog.messages == ["model refused a request: ValidationException"]
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        Refuse(403, "AccessDeniedException", SECRET),
        Refuse(404, "ResourceNotFoundException", SECRET),
        Refuse(424, "ModelErrorException", SECRET),
        Refuse(500, "InternalServerException", SECRET),
        Refuse(400, "ValidationException", "The provided model identifier is invalid."),
        Refuse(400, "ValidationException", "The guardrail identifier is invalid."),
        Throw("internalServerException", SECRET),
        Throw("modelStreamErrorException", SECRET),
    ],
)
async def test_what_is_nobody_elses_business_stays_hidden(serve: Serve, error: Any) -> None:
    agent, _ = serve([(error,)])

    reply = await creating(stream=True).run(hosted(agent, first_event_grace_s=60))

    assert reply.status == 500
    assert SECRET.encode() not in reply.body
    assert b"identifier is" not in reply.body


@pytest.mark.parametrize("kind", ["internalServerException", "modelStreamErrorException"])
async def test_it_stays_hidden_in_the_middle_of_a_reply(serve: Serve, kind: str) -> None:
    agent, _ = serve([(Say(("Well, ",)), Throw(kind, SECRET))])

    reply = await creating(stream=True).run(hosted(agent))

    assert reply.types[-1] == "failed"
    assert SECRET.encode() not in reply.body


@pytest.mark.parametrize("kind", ["throttlingException", "validationException"])
async def test_an_error_in_the_middle_keeps_what_was_said(serve: Serve, kind: str) -> None:
    agent, _ = serve([(Say(("Well, ",)), Throw(kind, SECRET))])

    response = await create(hosted(agent))

    assert response["status"] == "failed"
    assert response["error"]["code"] in ("rate_limit_exceeded", "invalid_prompt")
    assert response["output"][0]["content"][0]["text"] == "Well, "


@pytest.mark.parametrize("broken", [Cut(), Cut(is_clean=True), Spoil()])
async def test_a_stream_that_was_cut_or_changed_is_never_complete(
    serve: Serve, broken: Any
) -> None:
    agent, _ = serve([(Say(("Well, ",)), broken, Say(("more",)))])

    response = await create(hosted(agent))

    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["output"][0]["content"][0]["text"] == "Well, "
    assert reading_threads() == []


async def test_a_stream_without_its_end_is_never_complete(serve: Serve) -> None:
    begun = Event("messageStart", {"role": "assistant"})
    agent, _ = serve([(begun, Cut(is_clean=True))])

    reply = await creating().run(hosted(agent, first_event_grace_s=60))

    assert reply.status == 500


async def test_a_server_that_is_not_there_is_a_failure(serve: Serve) -> None:
    client = make_bedrock_client(None, "http://127.0.0.1:9", attempts=1)

    with pytest.raises(Exception, match="Could not connect"):
        await heard(converse_agent(CLAUDE, client))


# --- reasoning that the model refuses ------------------------------------------------------------

THOUGHT: Item = {"type": "reasoning", "summary": [], "encrypted_content": signed("of another")}
REFUSED = Refuse(400, "ValidationException", "messages.1: Invalid `signature` in `thinking` block")


async def test_reasoning_that_the_model_refuses_is_left_out(serve: Serve) -> None:
    agent, server = serve([(REFUSED,), HELLO])
    history = [message("user", "a"), THOUGHT, message("assistant", "b")]

    said = await heard(agent, Turn(input=[message("user", "c")], history=history))

    assert said[0] == TextDelta("Hello.")
    assert [seen.signatures for seen in server.seen] == [["of another"], []]


async def test_a_refusal_without_reasoning_is_told_at_once(serve: Serve) -> None:
    agent, server = serve([(REFUSED,)])

    with pytest.raises(TurnError):
        await heard(agent)

    assert len(server.seen) == 1


async def test_a_second_refusal_is_told(serve: Serve) -> None:
    agent, _ = serve([(Throw("validationException", "thinking"),), (REFUSED,)])
    history = [message("user", "a"), THOUGHT, message("assistant", "b")]

    with pytest.raises(TurnError) as raised:
        await heard(agent, Turn(input=[message("user", "c")], history=history))

    assert raised.value.code == "invalid_prompt"


async def test_reasoning_is_told_apart_by_what_it_holds() -> None:
    assert ReasoningDelta(encrypted_content=signed("a")) != ReasoningDelta(
        encrypted_content=redacted(b"a")
    )


# --- turns that end early ------------------------------------------------------------------------


async def test_a_turn_that_is_closed_leaves_no_thread_behind(serve: Serve) -> None:
    wait = Wait()
    agent, _ = serve([(Say(("Well, ",)), wait)])
    events: Any = agent(HI)
    assert await anext(events) == TextDelta("Well, ")
    await wait.begun.wait()

    await events.aclose()

    assert reading_threads() == []
    await asyncio.wait_for(wait.ended.wait(), 10)


async def test_a_turn_that_is_cancelled_leaves_no_thread_behind(serve: Serve) -> None:
    wait, has_begun = Wait(), asyncio.Event()
    agent, _ = serve([(Say(("Well, ",)), wait)])

    async def read() -> None:
        async for _ in agent(HI):
            has_begun.set()

    task = asyncio.create_task(read())
    await asyncio.gather(wait.begun.wait(), has_begun.wait())

    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert reading_threads() == []
    await asyncio.wait_for(wait.ended.wait(), 10)


async def test_a_turn_that_is_cancelled_before_the_reply_ends_with_it(serve: Serve) -> None:
    hold = Hold()
    agent, _ = serve([(hold, *HELLO)])
    task = asyncio.create_task(heard(agent))
    await hold.begun.wait()
    (thread,) = reading_threads()

    task.cancel()
    await asyncio.wait({task})
    hold.until.set()
    await asyncio.to_thread(thread.join, 10)

    assert (task.cancelled(), thread.is_alive()) == (True, False)


async def test_a_client_that_reads_slowly_slows_the_model_down(serve: Serve) -> None:
    pieces = ("x" * 60_000,) * 400
    agent, server = serve([(Say(pieces), Spend(1, 1))])
    events: Any = agent(HI)
    await anext(events)

    await asyncio.wait_for(server.is_stalled.wait(), 10)

    assert len([event async for event in events]) == len(pieces)


# --- counting ------------------------------------------------------------------------------------


def counter(agent: Agent) -> Any:
    return agent.count_input_tokens  # type: ignore[attr-defined]  # as of any function


async def test_tokens_are_counted_by_bedrock(serve: Serve) -> None:
    agent, server = serve(instructions="Be kind.")

    assert await counter(agent)(HI) == 42
    (asked,) = server.asked
    assert asked.model_id == "anthropic.claude-sonnet-4-5-20250929-v1:0"
    assert asked.body["input"]["converse"]["system"][0] == {"text": "Be kind."}


@pytest.mark.parametrize(
    "refusal",
    [
        Refuse(400, "ValidationException", "The provided model doesn't support counting tokens."),
        Refuse(403, "AccessDeniedException"),
        Refuse(404, "ResourceNotFoundException"),
    ],
)
async def test_a_model_that_has_no_count_gets_an_estimate(serve: Serve, refusal: Refuse) -> None:
    agent, server = serve()
    server.counts = refusal

    assert await counter(agent)(HI) == estimated_input_tokens(HI)


async def test_a_count_that_fails_is_told(serve: Serve) -> None:
    agent, server = serve()
    server.counts = Refuse(429, "ThrottlingException", SECRET)
    with pytest.raises(TurnError) as raised:
        await counter(agent)(HI)
    assert raised.value.status == 429

    server.counts = Refuse(500, "InternalServerException", SECRET)
    with pytest.raises(Exception, match="InternalServerException"):
        await counter(agent)(HI)


async def test_the_route_of_the_api_counts_by_bedrock(serve: Serve) -> None:
    agent, _ = serve()

    reply = creating(input="hi")
    reply.scope["path"] = "/v1/responses/input_tokens"
    counted = (await reply.run(hosted(agent))).json

    assert counted["input_tokens"] == 42
