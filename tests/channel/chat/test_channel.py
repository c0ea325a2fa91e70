"""The channel at the ASGI interface: the same turns as the Responses channel's, told in chunks."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import msgspec
import pytest
from starlette.types import ASGIApp

from channel.agent import (
    AgentEvent,
    FunctionCall,
    KeptState,
    ReasoningDelta,
    TextDelta,
    ToolFinished,
    ToolStarted,
    Turn,
    TurnError,
    Usage,
    accepts,
)
from channel.auth import Principal
from channel.chat.channel import ChatCompletionsChannel
from channel.contract import Channel, ChannelRequest, HostedRunResult
from channel.deadline import DEADLINE, TimeLeft
from channel.host import AgentHost
from channel.isolation import IsolationKeys
from channel.ports import TurnFacts
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import message
from tests.channel.asgi import KEYS, Wire, create, get, request
from tests.channel.chat.wire import (
    DONE,
    asking,
    chunks_of,
    completed,
    deltas_of,
    frames_of,
    message_of,
    said,
    served,
    streamed,
)


pytestmark = pytest.mark.anyio

F = {"type": "function", "function": {"name": "f"}}
SORRY = "The agent failed to answer. Request id: "
SOON = TimeLeft(0.02, 5.0)
SECRET = "a secret of the agent's"


async def hello(_: Turn) -> AsyncIterator[AgentEvent]:
    yield "Hello"
    yield " you."


def noting(turns: list[Turn]) -> Any:
    @accepts("temperature", "max_output_tokens", "reasoning", "text", "user")
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        turns.append(turn)
        yield "ok"

    return agent


def failing(error: BaseException, *before: AgentEvent) -> Any:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for event in before:
            yield event
        raise error

    return agent


async def finished(task: "asyncio.Task[Wire]") -> Wire:
    with anyio.fail_after(5):
        return await task


# One agent, two channels


async def test_both_channels_say_the_same() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield ReasoningDelta("Hm.")
        yield "Hello "
        yield "you."
        yield Usage(7, 3)

    app = served(agent)

    response = await create(app)
    completion = await completed(app)
    chunks = await streamed(app, stream_options={"include_usage": True})

    text = response["output"][1]["content"][0]["text"]
    assert message_of(completion)["content"] == said(chunks) == text == "Hello you."
    assert message_of(completion)["reasoning_content"] == "Hm."
    assert completion["usage"]["total_tokens"] == response["usage"]["total_tokens"] == 10
    assert chunks[-1]["usage"] == completion["usage"]


async def test_nothing_of_it_is_stored() -> None:
    app = served(hello)

    completion = await completed(app, store=True)

    body = completion["id"].removeprefix("chatcmpl-")
    assert len(body) == 52
    for identifier in (f"resp_{body}", completion["id"]):
        assert (await get(app, f"/v1/responses/{identifier}")).status == 404
        continued = request(
            *("POST", "/v1/responses"), {"input": "hi", "previous_response_id": identifier}
        )
        assert (await continued.run(app)).error_body["code"] == "previous_response_not_found"


async def test_what_an_agent_keeps_is_not_kept() -> None:
    states: list[Any] = []

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        states.append(turn.state)
        yield KeptState({"a": 1})
        yield "ok"

    app = served(agent)
    await completed(app)
    await completed(app)

    assert not any(states)


async def test_the_models_are_those_of_the_other_channel() -> None:
    app = served(hello)

    listed = (await get(app, "/v1/models")).json

    assert [model["id"] for model in listed["data"]] == ["agent"]
    assert (await completed(app, model="gpt-9"))["model"] == "gpt-9"
    assert (await completed(app, model=None))["model"] == "agent"


async def test_it_may_be_the_only_channel_and_lie_elsewhere() -> None:
    channel = ChatCompletionsChannel(path="/api", model="m")
    app = AgentHost(hello, channels=[channel], authenticator=KEYS).app

    wire = await request(
        "POST", "/api/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}
    ).run(app)

    assert (wire.status, wire.json["model"]) == (200, "m")
    assert (await asking().run(app)).status == 404


# What the agent gets


async def test_the_agent_gets_what_was_said_and_what_it_accepts() -> None:
    turns: list[Turn] = []

    await completed(
        served(noting(turns)),
        model="m",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ],
        tools=[F],
        tool_choice="none",
        parallel_tool_calls=False,
        temperature=0.5,
        top_p=0.5,
        max_tokens=5,
        reasoning_effort="low",
        response_format={"type": "json_object"},
        metadata={"k": "v"},
        user="u",
        safety_identifier="s",
    )

    (turn,) = turns
    (item,) = turn.input
    assert {**item, "id": None} == {**message("user", "hi"), "status": "completed", "id": None}
    assert (turn.history, turn.instructions, turn.model, turn.text) == ([], "Be brief.", "m", "hi")
    assert [tool["name"] for tool in turn.tools] == ["f"]
    assert (turn.tool_choice, turn.parallel_tool_calls) == ("none", False)
    assert turn.options == {
        "temperature": 0.5,
        "max_output_tokens": 5,
        "reasoning": {"effort": "low", "summary": None},
        "text": {"format": {"type": "json_object"}},
        "user": "u",
    }
    assert (turn.metadata, turn.safety_identifier) == ({"k": "v"}, "s")
    assert turn.response_id.startswith("resp_")


async def test_the_owner_may_let_more_options_through() -> None:
    turns: list[Turn] = []

    await completed(served(noting(turns), allowed_options=["top_p"]), top_p=0.5)

    assert turns[0].options == {"top_p": 0.5}
    with pytest.raises(ValueError, match="stop"):
        ChatCompletionsChannel(allowed_options=["stop"])


async def test_tenants_are_told_apart() -> None:
    turns: list[Turn] = []
    app = served(noting(turns))

    await completed(app)
    await completed(app, key="key-beta")

    alpha, beta = (turn.isolation_keys for turn in turns)
    assert isinstance(alpha, IsolationKeys)
    assert alpha != beta
    assert [turn.principal for turn in turns] == [Principal("alpha"), Principal("beta")]


async def test_calls_go_to_the_client_and_their_outputs_come_back() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        last = turn.items[-1]
        if last["type"] == "function_call_output":
            yield f"It is {last['output']}."
        else:
            yield "Let me see."
            yield FunctionCall("f", '{"city":"Paris"}', "call_1")

    app = served(agent)
    asked = {"role": "user", "content": "How warm is it?"}

    first = await completed(app, messages=[asked], tools=[F])
    output = {"role": "tool", "tool_call_id": "call_1", "content": "18"}
    second = await completed(app, messages=[asked, message_of(first), output], tools=[F])

    assert first["choices"][0]["finish_reason"] == "tool_calls"
    assert message_of(second)["content"] == "It is 18."


@pytest.mark.parametrize(
    ("fields", "is_permitted"),
    [
        ({"tools": [F]}, True),
        ({"tools": [F], "tool_choice": "none"}, False),
        ({}, False),
        (
            {
                "tools": [F, {"function": {"name": "g"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            False,
        ),
    ],
)
async def test_a_call_that_the_request_does_not_permit_fails_the_turn(
    fields: dict[str, Any], is_permitted: bool
) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield FunctionCall("f", "{}")

    wire = await asking(**fields).run(served(agent))

    assert wire.status == (200 if is_permitted else 500)


async def test_without_parallel_calls_only_the_first_counts() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield FunctionCall("f", "{}", "c1")
        yield FunctionCall("f", "{}", "c2")

    app = served(agent)

    one = await completed(app, tools=[F], parallel_tool_calls=False)
    both = await streamed(app, tools=[F])

    assert [call["id"] for call in message_of(one)["tool_calls"]] == ["c1"]
    assert [call["index"] for d in deltas_of(both) for call in d.get("tool_calls", ())] == [
        *(0, 0, 1, 1)
    ]


async def test_tools_of_the_agents_own_are_hidden() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield ToolStarted("t", "look")
        yield ToolFinished("t", "out of sight")
        yield "ok"

    wire = await asking(stream=True).run(served(agent))

    assert said(chunks_of(wire)) == "ok"
    assert b"out of sight" not in wire.body


# Wrong requests


@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_field_is_a_400_that_names_it_before_anything_happens(stream: bool) -> None:
    turns: list[Turn] = []

    wire = await asking(
        stream=stream, messages=[{"role": "user", "content": 1}], temperature=0
    ).run(served(noting(turns)))

    assert (wire.status, turns) == (400, [])
    assert wire.error_body == {
        "message": "Invalid type for 'messages[0].content': expected a string or an array, "
        "got an integer.",
        "type": "invalid_request_error",
        "param": "messages[0].content",
        "code": "invalid_type",
    }


async def test_structured_output_is_refused_by_an_agent_that_does_not_take_it() -> None:
    wire = await asking(response_format={"type": "json_object"}).run(served(hello))

    assert (wire.status, wire.error_body["param"]) == (400, "response_format.type")
    assert wire.error_body["message"].startswith("Unsupported value: 'response_format.type'")
    assert (await completed(served(hello), response_format={"type": "text"}))["choices"]


async def test_what_is_too_long_is_refused_by_the_name_of_the_messages() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "ok"

    agent.max_input_tokens = 1  # type: ignore[attr-defined]  # as an owner sets it

    wire = await asking(messages=[{"role": "user", "content": "word " * 100}]).run(served(agent))

    error = wire.error_body
    assert (wire.status, error["param"], error["code"]) == (
        *(400, "messages", "context_length_exceeded"),
    )
    assert error["message"].endswith("Shorten it.")


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (asking(key=None), 401),
        (asking(key="key-gamma"), 401),
        (request("POST", "/v1/chat/completions", b"{"), 400),
        (request("POST", "/v1/chat/completions", b" " * (6 * 1024 * 1024 + 1)), 413),
        (request("GET", "/v1/chat/completions"), 405),
        (request("GET", "/v1/chat/completions/chatcmpl-1"), 404),
        (request("POST", "/v1/completions", {"prompt": "hi"}), 404),
    ],
)
async def test_every_error_has_openais_shape_and_a_request_id(wire: Wire, status: int) -> None:
    await wire.run(served(hello))

    assert wire.status == status
    assert wire.error_body.keys() == {"message", "type", "param", "code"}
    assert wire.headers["x-request-id"].startswith("req_")


# Failures


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_that_fails_at_once_is_a_500_without_its_text(stream: bool) -> None:
    wire = await asking(stream=stream).run(served(failing(ValueError(SECRET))))

    assert (wire.status, wire.headers["x-should-retry"]) == (500, "false")
    assert wire.error_body["message"] == f"{SORRY}{wire.headers['x-request-id']}"
    assert SECRET.encode() not in wire.body


@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_agent_tells_of_its_failure_is_told(stream: bool) -> None:
    error = TurnError("Wrong 'input'.", code="invalid_image_url", status=422, param="input")
    app = served(failing(error))

    first = await asking(stream=stream).run(app)
    second = await asking(stream=stream).run(app)

    assert (first.status, first.headers["x-should-retry"]) == (422, "false")
    assert first.error_body == {
        "message": "Wrong 'messages'.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "invalid_image_url",
    }
    assert (first.body, error.param) == (second.body, "input")


async def test_a_completion_that_fails_later_is_an_error_all_the_same() -> None:
    limited = TurnError("Slow down.", code="rate_limit_exceeded", status=429, param="input")

    told = await asking().run(served(failing(limited, "so far")))
    hidden = await asking().run(served(failing(ValueError(SECRET), "so far")))

    assert (told.status, told.headers["x-should-retry"]) == (429, "false")
    assert told.error_body == {
        "message": "Slow down.",
        "type": "rate_limit_error",
        "param": "messages",
        "code": "rate_limit_exceeded",
    }
    assert (hidden.status, hidden.headers["x-should-retry"]) == (500, "false")
    assert hidden.error_body["message"] == f"{SORRY}{hidden.headers['x-request-id']}"
    assert b"so far" not in told.body + hidden.body
    assert SECRET.encode() not in hidden.body


async def test_a_stream_that_fails_later_ends_with_the_error_and_is_not_done() -> None:
    limited = TurnError("Slow down.", code="rate_limit_exceeded", status=429)

    told = await asking(stream=True).run(served(failing(limited, "so far")))
    hidden = await asking(stream=True).run(served(failing(ValueError(SECRET), "so far")))

    assert _error_at_the_end(told) == {
        "message": "Slow down.",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert _error_at_the_end(hidden) == {
        "message": f"{SORRY}{hidden.headers['x-request-id']}",
        "type": "server_error",
        "param": None,
        "code": "server_error",
    }
    assert SECRET.encode() not in hidden.body


def _error_at_the_end(wire: Wire) -> dict[str, Any]:
    *frames, last = frames_of(wire)
    assert "".join(json.loads(f[6:])["choices"][0]["delta"]["content"] for f in frames) == "so far"
    assert wire.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    told: dict[str, Any] = json.loads(last.removeprefix("data: "))
    assert told.keys() == {"error"}
    error: dict[str, Any] = told["error"]
    return error


async def test_where_there_are_trailers_they_name_the_failure() -> None:
    wire = asking(stream=True)
    wire.scope["extensions"] = {"http.response.trailers": {}}

    await wire.run(served(failing(TurnError("x", code="rate_limit_exceeded"), "so far")))

    assert wire.sent[-1]["headers"] == [(b"x-error-code", b"rate_limit_exceeded")]


async def test_nothing_that_was_said_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "channel")

    await asking(messages=[{"role": "user", "content": SECRET}]).run(
        served(failing(ValueError("x"), SECRET))
    )

    assert SECRET not in caplog.text


# Hooks


async def test_a_run_hook_changes_and_refuses_requests() -> None:
    seen: list[Any] = []
    turns: list[Turn] = []

    def hook(request: ChannelRequest, *, target: Any, protocol_request: Any) -> ChannelRequest:
        seen.append((request.channel, request.stream, protocol_request["messages"]))
        if "please" not in str(request.input):
            raise RequestError("Say please in 'input'.", param="input")
        return replace(request, instructions="Be brief.")

    app = served(noting(turns), run_hook=hook)
    polite = [{"role": "user", "content": "please"}]

    refused = await asking().run(app)
    await streamed(app, messages=polite)

    assert (refused.status, refused.error_body["param"]) == (400, "messages")
    assert refused.error_body["message"] == "Say please in 'messages'."
    assert [turn.instructions for turn in turns] == ["Be brief."]
    assert seen[1] == ("chat_completions", True, polite)


async def test_a_session_cannot_be_required_where_there_is_none() -> None:
    async def hook(request: ChannelRequest, **_: Any) -> ChannelRequest:
        return replace(request, session_mode="required")

    wire = await asking().run(served(hello, run_hook=hook))

    assert (wire.status, wire.error_body["code"]) == (409, "session_required")


async def test_a_transform_hook_changes_and_drops_what_is_said() -> None:
    async def hook(event: AgentEvent) -> AgentEvent | None:
        return TextDelta("Bye") if event == "Hello" else None

    app = served(hello, stream_transform_hook=hook)

    assert said(await streamed(app)) == "Bye"
    assert message_of(await completed(app))["content"] == "Bye"


async def test_a_response_hook_has_the_last_word_on_a_completion() -> None:
    def hook(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
        text = {"type": "output_text", "text": "Redacted."}
        changed = {"type": "message", "role": "assistant", "content": [text]}
        return result.replace(msgspec.structs.replace(result.result, output=[changed]))

    assert message_of(await completed(served(hello, response_hook=hook)))["content"] == "Redacted."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hook_that_fails_is_a_failure_that_shows_nothing_of_itself(stream: bool) -> None:
    def hook(_: Any) -> Any:
        raise ValueError(SECRET)

    def telling(_: Any) -> Any:
        raise TurnError("Refused.", code="content_policy", status=403)

    hidden = await asking(stream=stream).run(served(hello, response_hook=hook))
    told = await asking(stream=stream).run(served(hello, response_hook=telling))
    both = await asking(stream=stream).run(
        served(failing(TurnError(SECRET, code="x"), "a"), response_hook=hook)
    )

    assert (hidden.status, told.status) == ((200, 200) if stream else (500, 403))
    assert b'"code":"content_policy"' in told.body
    for wire in (hidden, told, both):
        assert b'{"error":{' in wire.body
        assert DONE.encode() not in wire.body
        assert SECRET.encode() not in wire.body


# When things are written


async def test_the_first_delta_is_read_before_the_agent_says_the_second() -> None:
    gate = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        await gate.wait()
        yield "b"

    wire = asking(stream=True)
    task = wire.start(served(agent))
    with anyio.fail_after(5):
        await wire.until('"content":"a"')
    early = wire.body
    gate.set()
    await finished(task)

    assert b'"content":"b"' not in early
    assert deltas_of(chunks_of(wire)) == [
        *({"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}),
    ]


async def test_a_stream_begins_at_the_end_of_the_grace_without_the_agent() -> None:
    gate = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        await gate.wait()
        raise ValueError(SECRET)
        yield "never"

    wire = asking(stream=True)
    task = wire.start(served(agent, first_event_grace_s=0))
    with anyio.fail_after(5):
        await wire.until('"role":"assistant"')
    gate.set()
    await finished(task)

    begun, error = frames_of(wire)
    assert json.loads(begun[6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert error.startswith('data: {"error":')


async def test_a_completion_waits_for_the_agent_beyond_the_grace() -> None:
    gate = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        await gate.wait()
        raise TurnError("No.", code="rate_limit_exceeded", status=429)
        yield "never"

    wire = asking()
    task = wire.start(served(agent, first_event_grace_s=0))
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    await finished(task)

    assert (wire.status, wire.error_body["code"]) == (429, "rate_limit_exceeded")


async def test_while_the_agent_is_silent_comments_keep_the_stream_alive() -> None:
    gate = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        await gate.wait()
        yield "b"

    wire = asking(stream=True)
    task = wire.start(served(agent, keepalive_s=0.001))
    with anyio.fail_after(5):
        await wire.until(": keepalive\n\n: keepalive\n\n")
    gate.set()
    await finished(task)

    frames = [frame for frame in frames_of(wire) if frame != ": keepalive"]
    assert [
        json.loads(frame[6:])["choices"][0]["delta"].get("content") for frame in frames[:-1]
    ] == [*("", "a", "b", None)]
    assert frames[-1] == DONE


async def test_an_agent_that_never_waits_is_written_in_few_whole_batches() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        for number in range(1000):
            yield f"word {number} "

    wire = await asking(stream=True).run(served(agent))

    assert all(write.endswith(b"\n\n") for write in wire.writes)
    assert all(len(write) <= 17 * 1024 for write in wire.writes)
    assert len(wire.writes) <= len(wire.body) // (15 * 1024) + 4
    assert len(deltas_of(chunks_of(wire))) == 1002


# Who goes, and what runs out


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_ends_the_agent(stream: bool) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            yield "a"
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    facts: list[TurnFacts] = []
    wire = asking(stream=stream)
    task = wire.start(served(agent, telemetry=Told(facts)))
    with anyio.fail_after(5):
        await begun.wait()
    wire.hang_up()
    await finished(task)

    assert ended.is_set()
    assert [fact.outcome for fact in facts] == ["cancelled"]
    assert DONE.encode() not in wire.body


async def test_a_client_that_goes_away_within_the_grace_gets_nothing() -> None:
    begun = asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        begun.set()
        await asyncio.Event().wait()
        yield "never"

    wire = asking(stream=True)
    task = wire.start(served(agent))
    with anyio.fail_after(5):
        await begun.wait()
    wire.hang_up()
    await finished(task)

    assert wire.sent == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("grace_s", [0, 5])
async def test_a_turn_that_runs_out_of_time_is_told_so(stream: bool, grace_s: float) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        await asyncio.Event().wait()
        yield "never"

    wire = asking(stream=stream)
    wire.scope[DEADLINE] = SOON.since(time.monotonic())
    await finished(wire.start(served(agent, first_event_grace_s=grace_s)))

    if stream and not grace_s:
        error = json.loads(frames_of(wire)[-1][6:])["error"]
    else:
        assert (wire.status, wire.headers["x-should-retry"]) == (504, "false")
        error = wire.error_body
    assert error["message"].startswith("The server ran out of time.")
    assert (error["type"], error["code"]) == ("server_error", "timeout")


async def test_a_server_that_stops_waits_for_the_turns_that_it_has_cancelled() -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            with suppress(asyncio.CancelledError):
                await let_go.wait()

    channel = ChatCompletionsChannel(keepalive_s=0)
    host = AgentHost(agent, channels=[channel], authenticator=KEYS)
    task = asking().start(host.app)
    with anyio.fail_after(5):
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        (drain,) = host._contributions[0].on_shutdown
        draining = asyncio.ensure_future(drain())
        await asyncio.sleep(0)
        was_waiting = not draining.done()
        let_go.set()
        with suppress(asyncio.CancelledError):
            await task
        await draining

    assert was_waiting


# Telemetry


class Told:
    """Telemetry that remembers."""

    def __init__(self, facts: list[TurnFacts]) -> None:
        self._facts = facts

    def turn_finished(self, facts: TurnFacts, /) -> None:
        self._facts.append(facts)


@pytest.mark.parametrize(
    ("agent", "outcome"),
    [
        (hello, "completed"),
        (failing(ValueError("x"), "a"), "failed"),
        (failing(ValueError("x")), "failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_each_turn_is_measured(agent: Any, outcome: str, stream: bool) -> None:
    facts: list[TurnFacts] = []

    await asking(stream=stream).run(served(agent, telemetry=Told(facts)))

    assert [(fact.outcome, fact.stream) for fact in facts] == [(outcome, stream)]


# Browsers


async def test_a_page_of_a_permitted_origin_may_call_it() -> None:
    channels: list[Channel] = [
        ResponsesChannel(keepalive_s=0),
        ChatCompletionsChannel(keepalive_s=0),
    ]
    origin = "https://chat.example.com"
    app: ASGIApp = AgentHost(
        hello, channels=channels, authenticator=KEYS, cors_origins=[origin]
    ).app
    asked = {"origin": origin, "access-control-request-method": "POST"}

    preflight = await request("OPTIONS", "/v1/chat/completions", headers=asked, key=None).run(app)
    wire = asking(stream=True)
    wire.scope["headers"].append((b"origin", origin.encode()))
    await wire.run(app)

    assert preflight.status == 200
    assert wire.headers["access-control-allow-origin"] == origin
    assert said(chunks_of(wire)) == "Hello you."
