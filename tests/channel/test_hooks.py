"""Hooks that misbehave, of each kind and in each mode; and what a hook of whole turns can do."""

import asyncio
import functools
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from time import monotonic
from typing import Any, NamedTuple, Self

import msgspec
import pytest

from channel.agent import (
    AgentEvent,
    Finish,
    KeptState,
    OutputItem,
    TextDelta,
    Turn,
    TurnError,
    Usage,
)
from channel.auth import Caller, Principal
from channel.commands import RESET
from channel.contract import ChannelRequest, HostedRunResult
from channel.deadline import DEADLINE, TimeLeft
from channel.faults import SENSITIVE, HookError, HookKind, fault_facts, hook_name
from channel.hooks import RESPONSE, RUN, apply_response_hook, apply_run_hook
from channel.isolation import IsolationKeys
from channel.ports import StoreError
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import message, text_of
from channel.responses.protocol.response import Response, Status
from channel.transforms import TRANSFORM, apply_transform_hook, is_of_whole_turns, transformed
from tests.channel.asgi import create, creating, get, hosted, request
from tests.channel.chat.wire import asking, chunks_of, said, served
from tests.channel.instances import Instances
from tests.channel.websocket import Socket


pytestmark = pytest.mark.anyio

SECRET = "what a user has said"
SORRY = "Request id: req_"
OPTION: dict[HookKind, str] = {
    RUN: "run_hook",
    TRANSFORM: "stream_transform_hook",
    RESPONSE: "response_hook",
}


class Agent:
    """An agent that says two words, and counts how often it was started."""

    def __init__(self) -> None:
        self.started = 0

    async def __call__(self, _: Turn) -> AsyncIterator[AgentEvent]:
        self.started += 1
        yield "Hel"
        yield "lo"
        yield Usage(1, 2)


# Modes: what a client of each reads


class Told(NamedTuple):
    """What a client was told: its HTTP status, the status of the response, the error, all of it."""

    http: int
    status: str | None
    code: str | None
    body: str


def told_whole(http: int, body: bytes) -> Told:
    fields = json.loads(body)
    error = fields.get("error") or {}
    return Told(http, fields.get("status"), error.get("code"), body.decode())


async def whole(agent: Any, **hooks: Any) -> Told:
    wire = await creating().run(hosted(agent, **hooks))
    return told_whole(wire.status, wire.body)


async def events(agent: Any, **hooks: Any) -> Told:
    wire = await creating(stream=True).run(hosted(agent, **hooks))
    if wire.status != 200:
        return told_whole(wire.status, wire.body)
    response = wire.events[-1]["response"]
    assert wire.types[-1] == response["status"]
    code = (response["error"] or {}).get("code")
    return Told(200, response["status"], code, wire.body.decode())


async def background(agent: Any, **hooks: Any) -> Told:
    both = Instances(agent, **hooks)
    begun = await both.a.post("/v1/responses", {"input": "hi", "background": True})
    if begun.status != 200:
        return told_whole(begun.status, begun.body)
    await both.working(both.b)
    wire = await both.a.get(begun.json["id"])
    return told_whole(wire.status, wire.body)


async def frames(agent: Any, **hooks: Any) -> Told:
    async with Socket(hosted(agent, **hooks)) as socket:
        ending = await socket.turn()
    if ending["type"] == "error":
        return Told(ending["status"], None, ending["error"]["code"], json.dumps(ending))
    response = ending["response"]
    code = (response["error"] or {}).get("code")
    return Told(200, response["status"], code, json.dumps(ending))


async def completion(agent: Any, **hooks: Any) -> Told:
    wire = await asking().run(served(agent, **hooks))
    return told_whole(wire.status, wire.body)


async def chunks(agent: Any, **hooks: Any) -> Told:
    wire = await asking(stream=True).run(served(agent, **hooks))
    if wire.status != 200:
        return told_whole(wire.status, wire.body)
    last = wire.body.decode().strip().split("\n\n")[-1].removeprefix("data: ")
    error = {} if last == "[DONE]" else json.loads(last)["error"]
    return Told(200, None, error.get("code"), wire.body.decode())


async def compaction(agent: Any, **hooks: Any) -> Told:
    body = {"model": "agent", "input": "hi"}
    wire = await request("POST", "/v1/responses/compact", body).run(hosted(agent, **hooks))
    return told_whole(wire.status, wire.body)


Mode = Callable[..., Any]
MODES = (whole, events, background, frames, completion, chunks, compaction)
BEFORE: dict[Any, tuple[int, str | None]] = {
    **dict.fromkeys(MODES, (500, None)),
    background: (200, "failed"),
    frames: (200, "failed"),
}
"""What a failure is told as before the first word: HTTP's status, and the response's."""
AFTER: dict[Any, tuple[int, str | None]] = {
    **dict.fromkeys(MODES, (200, "failed")),
    completion: (500, None),
    chunks: (200, None),
    compaction: (500, None),
}
"""What a failure is told as after the last one."""
TOLD_AS: dict[HookKind, dict[Any, tuple[int, str | None]]] = {
    RUN: dict.fromkeys(MODES, (500, None)),
    TRANSFORM: BEFORE,
    RESPONSE: AFTER,
}


# Hooks that do what they should not


async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def returns(value: Any) -> Any:
    def hook(*_: Any, **__: Any) -> Any:
        return value

    return hook


def returns_later(value: Any) -> Any:
    async def hook(*_: Any, **__: Any) -> Any:
        return await later(value)

    return hook


def raises(error: BaseException) -> Any:
    def hook(*_: Any, **__: Any) -> Any:
        raise error

    return hook


def raises_later(error: BaseException) -> Any:
    async def hook(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        raise error

    return hook


def raises_over_a_turn(error: BaseException) -> Any:
    async def hook(said: Any) -> Any:
        async for _ in said:
            raise error
            yield

    return hook


def asks(**fields: Any) -> Any:
    def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        return replace(asked, **fields)

    return hook


def sneaks(name: str, value: Any) -> Any:
    def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        setattr(asked, name, value)
        return asked

    return hook


def answers(**fields: Any) -> Any:
    def hook(result: HostedRunResult[Response]) -> HostedRunResult[Response]:
        return result.replace(msgspec.structs.replace(result.result, **fields))

    return hook


def answers_twice(result: HostedRunResult[Response]) -> HostedRunResult[Response]:
    response = result.result
    return result.replace(msgspec.structs.replace(response, output=response.output * 2))


def answers_text(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
    return result.replace("text")


def no_arguments() -> Any:
    raise AssertionError


async def yields_a_number(said: Any) -> Any:
    async for event in said:
        yield event
        yield 5


async def yields_nothing_first(said: Any) -> Any:
    async for event in said:
        yield None
        yield event


RAISED: list[tuple[Any, str]] = [
    (raises(ValueError(SECRET)), "raised ValueError"),
    (raises_later(ValueError(SECRET)), "raised ValueError"),
    (raises(SystemExit(SECRET)), "raised SystemExit"),
    (raises(StopAsyncIteration(SECRET)), "raised StopAsyncIteration"),
    (raises(StopIteration(SECRET)), "raised StopIteration"),
    (raises(TimeoutError(SECRET)), "raised TimeoutError"),
    (raises(StoreError(SECRET)), "raised StoreError"),
    (raises(HookError(SECRET)), "raised HookError"),
    (raises(asyncio.CancelledError(SECRET)), "raised CancelledError"),
    (raises_later(asyncio.CancelledError(SECRET)), "raised CancelledError"),
    (no_arguments, "raised TypeError"),
    (SECRET, "raised TypeError"),
]
OTHERS = Caller(Principal("beta"), IsolationKeys("beta"))
NO_JSON = "that cannot be written as JSON"
NO_TYPE = "whose items are not objects with a type"
UNPAIRED = "whose calls and outputs of calls are not paired"
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "look_up",
    "arguments": "{}",
}
ANSWER = {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": "x"}
WRONG: dict[HookKind, list[tuple[Any, str]]] = {
    RUN: [
        *RAISED,
        (returns(None), "returned NoneType, not ChannelRequest"),
        (returns(SECRET), "returned str, not ChannelRequest"),
        (returns_later(None), "returned NoneType, not ChannelRequest"),
        (returns_later({"input": []}), "returned dict, not ChannelRequest"),
        (asks(caller=OTHERS), "changed the caller of the request"),
        (sneaks("caller", OTHERS), "changed the caller of the request"),
        (asks(instructions=5), "returned a ChannelRequest that is wrong at `$.instructions`"),
        (asks(options={"a": object()}), f"returned a ChannelRequest {NO_JSON}"),
        (asks(input=SECRET), "returned a ChannelRequest that is wrong at `$.input`"),
        (asks(input=[SECRET]), "returned a ChannelRequest that is wrong at `$.input[0]`"),
        (asks(session_mode=SECRET), "returned a ChannelRequest that is wrong at `$.session_mode`"),
        (
            asks(metadata={SECRET: 5}),
            "returned a ChannelRequest that is wrong at `$.metadata[...]`",
        ),
        (asks(instructions="\ud800"), f"returned a ChannelRequest {NO_JSON}"),
        (asks(input=[{"role": "user"}]), f"returned an input {NO_TYPE}"),
        (asks(history=[message("user", "hi")]), f"returned a history {NO_TYPE} and an id"),
        (asks(input=[CALL]), f"returned an input {UNPAIRED}"),
        (sneaks("input", [ANSWER, CALL]), f"returned an input {UNPAIRED}"),
        (asks(history=[CALL], input=[ANSWER]), f"returned an input {UNPAIRED}"),
    ],
    TRANSFORM: [
        *RAISED,
        (raises_over_a_turn(ValueError(SECRET)), "raised ValueError"),
        (raises_over_a_turn(asyncio.CancelledError(SECRET)), "raised CancelledError"),
        (returns(5), "returned int, which is no agent event"),
        (returns(object()), "returned object, which is no agent event"),
        (returns_later({"text": SECRET}), "returned dict, which is no agent event"),
        (yields_nothing_first, "yielded NoneType, which is no agent event"),
    ],
    RESPONSE: [
        *RAISED,
        (returns(None), "returned NoneType, not HostedRunResult"),
        (returns(SECRET), "returned str, not HostedRunResult"),
        (returns_later(None), "returned NoneType, not HostedRunResult"),
        (answers_text, "returned a HostedRunResult of str, not of Response"),
        (answers(id="resp_other"), "changed the id or the status of the response"),
        (answers(status=Status.FAILED), "changed the id or the status of the response"),
        (answers(output=SECRET), "returned a Response that is wrong at `$.output`"),
        (answers(output=[{"type": object()}]), f"returned a Response {NO_JSON}"),
        (answers(output=[{"role": SECRET}]), f"returned an output {NO_TYPE} and an id"),
        (answers(output=[{"type": "x"}]), f"returned an output {NO_TYPE} and an id"),
        (answers_twice, "returned an output with an id that is there twice"),
        (
            answers(output=[CALL]),
            "returned an output with a function call that the agent did not make",
        ),
        (
            answers(output=[CALL, ANSWER]),
            "returned an output with a function call that the agent did not make",
        ),
        (answers(output=[ANSWER]), f"returned an output {UNPAIRED}"),
    ],
}
TABLE = [
    pytest.param(kind, hook, did, id=f"{kind}: {did} [{index}]")
    for kind, wrong in WRONG.items()
    for index, (hook, did) in enumerate(wrong)
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "hook", "did"), TABLE)
async def test_a_wrong_hook_is_named_in_the_log_and_hidden_from_the_client(
    kind: HookKind, hook: Any, did: str, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent()

    with caplog.at_level(logging.DEBUG):
        told = await mode(agent, **{OPTION[kind]: hook})

    assert (told.http, told.status) == TOLD_AS[kind][mode]
    assert SORRY in told.body
    assert hook_name(hook) not in told.body
    assert SECRET not in told.body
    assert agent.started == (0 if kind == RUN else 1)
    (record,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
    assert record.getMessage().endswith(f": the {kind} {hook_name(hook)} {did}")
    assert SECRET not in caplog.text + str(vars(record))


@pytest.mark.parametrize("mode", MODES)
async def test_a_transform_hook_that_fails_late_is_named_too(
    mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(event: AgentEvent) -> AgentEvent:
        if event == "lo":
            raise ValueError(SECRET)
        return event

    for each, did in (
        (hook, "raised ValueError"),
        (yields_a_number, "yielded int, which is no ag"),
    ):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            told = await mode(Agent(), stream_transform_hook=each)

        assert (told.http, told.status) == AFTER[mode]
        assert SORRY in told.body
        (record,) = caplog.records
        assert f"the stream transform hook {hook_name(each)} {did}" in record.getMessage()


REFUSING: list[tuple[HookKind, Any]] = [
    (kind, make(error("Not today.", code="closed", status=403, param="input")))
    for error in (TurnError, RequestError)
    for kind, make in [
        *((kind, make) for kind in OPTION for make in (raises, raises_later)),
        (TRANSFORM, raises_over_a_turn),
    ]
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "hook"), REFUSING)
async def test_what_a_hook_says_to_the_client_is_told(
    kind: HookKind, hook: Any, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        told = await mode(Agent(), **{OPTION[kind]: hook})

    http, status = TOLD_AS[kind][mode]
    has_status = http == 500 and not (mode is compaction and kind == RESPONSE)
    assert (told.http, told.status) == (403 if has_status else http, status)
    assert told.code == "closed"
    assert "Not today." in told.body
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_response_hook_that_is_not_done_in_time_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hook(result: Any) -> Any:
        await asyncio.Event().wait()

    wire = creating()
    wire.scope[DEADLINE] = TimeLeft(0.05, 0.2).since(monotonic())
    with caplog.at_level(logging.ERROR):
        await wire.run(hosted(Agent(), response_hook=hook))

    assert wire.json["status"] == "failed"
    (record,) = caplog.records
    assert record.getMessage().endswith(f"the response hook {hook_name(hook)} was not done in time")


@pytest.mark.parametrize("kind", [TRANSFORM, RESPONSE])
async def test_a_refusal_without_a_code_has_one_of_openais(kind: HookKind) -> None:
    told = await frames(Agent(), **{OPTION[kind]: raises(RequestError("Not today."))})

    assert told.code == "invalid_prompt"


async def test_the_whole_fault_is_logged_for_those_who_asked_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    was = SENSITIVE.level
    SENSITIVE.setLevel(logging.ERROR)
    hook = raises(ValueError(SECRET))
    try:
        await whole(Agent(), run_hook=hook)
    finally:
        SENSITIVE.setLevel(was)

    assert f"ValueError: {SECRET}" in caplog.text
    assert f"HookError: the run hook {hook_name(hook)} raised ValueError" in caplog.text


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"background": True}])
async def test_nothing_is_stored_of_a_turn_that_its_run_hook_did_not_let_begin(
    fields: dict[str, Any],
) -> None:
    def hook(asked: ChannelRequest, **_: Any) -> Any:
        identifiers.append(asked.attributes["response_id"])
        return None

    identifiers: list[str] = []
    app = hosted(Agent(), run_hook=hook)
    await creating(**fields).run(app)

    assert (await get(app, f"/v1/responses/{identifiers[0]}")).status == 404


async def test_a_conversation_is_free_after_a_hook_has_failed() -> None:
    hooks = [returns(None), returns_later(5), raises(ValueError()), asks()]

    def hook(asked: ChannelRequest, **more: Any) -> Any:
        return hooks.pop(0)(asked, **more)

    app = hosted(Agent(), run_hook=hook)
    made = await request("POST", "/v1/conversations", {}).run(app)
    conversation = made.json["id"]

    replies = [await creating(conversation=conversation).run(app) for _ in range(4)]

    assert [reply.status for reply in replies] == [500, 500, 500, 200]


async def test_a_count_calls_no_hook() -> None:
    hooks = {name: raises(ValueError()) for name in OPTION.values()}

    wire = await request("POST", "/v1/responses/input_tokens", {"input": "hi"}).run(
        hosted(Agent(), **hooks)
    )

    assert wire.status == 200


async def test_the_hooks_of_a_turn_run_in_order() -> None:
    ran: list[str] = []

    def run(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        ran.append(asked.operation)
        return asked

    def transform(event: AgentEvent) -> AgentEvent:
        ran.append(type(event).__name__)
        return event

    def response(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
        ran.append(result.result.status)
        return result

    hooks: dict[str, Any] = {
        "run_hook": run,
        "stream_transform_hook": transform,
        "response_hook": response,
    }
    said = ["str", "str", "Usage"]
    for mode in MODES[:6]:
        ran.clear()
        await mode(Agent(), **hooks)
        assert ran == ["message.create", *said, "completed"], mode
    ran.clear()
    await compaction(Agent(), **hooks)
    assert ran == ["message.compact", *said, "OutputItem", "Usage", "completed"]
    ran.clear()
    async with Socket(hosted(Agent(), **hooks)) as socket:
        await socket.turn(generate=False)
    assert ran == ["message.warm_up", "completed"]


async def test_a_response_hook_sees_a_turn_that_failed_with_what_it_has_said() -> None:
    seen: list[tuple[str, str]] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "Hel"
        raise ValueError(SECRET)

    def hook(result: HostedRunResult[Response]) -> HostedRunResult[Response]:
        seen.append((result.result.status, result.text))
        return result

    for mode in MODES[:6]:
        await mode(agent, response_hook=hook)

    assert seen == [("failed", "Hel")] * 6


async def test_an_item_of_a_response_hook_has_the_id_of_the_one_in_its_place() -> None:
    def hook(result: HostedRunResult[Response]) -> HostedRunResult[Response]:
        (said,) = result.result.output
        bare = {name: value for name, value in said.items() if name != "id"}
        own = {**said, "id": "msg_own"}
        return result.replace(msgspec.structs.replace(result.result, output=[bare, own]))

    app = hosted(Agent(), response_hook=hook)
    first = await create(app)
    second = await create(app, previous_response_id=first["id"])

    given, own = first["output"]
    assert given["id"].startswith("msg_")
    assert own["id"] == "msg_own"
    assert second["status"] == "completed"


# What an agent does wrong is not its hooks' fault


async def test_what_an_agent_raises_is_its_own_fault_behind_hooks_of_either_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(_: Turn) -> AsyncIterator[Any]:
        yield "Hel"
        raise LookupError(SECRET)

    async def says_a_number(_: Turn) -> AsyncIterator[Any]:
        yield 5

    async def passes_all(said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
        async for event in said:
            yield event

    for hook in (lambda event: event, passes_all):
        with caplog.at_level(logging.ERROR):
            await whole(fails, stream_transform_hook=hook)
            await whole(says_a_number, stream_transform_hook=hook)

    number = "agent failed: an agent yielded int, which is no agent event"
    assert [each.getMessage() for each in caplog.records] == [
        "agent failed: LookupError",
        number,
    ] * 2


@pytest.mark.parametrize("error", [TurnError("Busy.", code="busy"), RequestError("No.", code="no")])
async def test_what_an_agent_says_to_the_client_passes_a_hook_of_whole_turns(
    error: Exception,
) -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        raise error
        yield ""

    plain = await creating().run(hosted(agent))
    hooked = await creating().run(hosted(agent, stream_transform_hook=shouts_at_the_end))

    assert (hooked.status, hooked.json) == (plain.status, plain.json)


# Hooks of whole turns


async def shouts_at_the_end(said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
    """Keep all text until the turn ends, or something else comes."""
    held = ""
    async for event in said:
        match event:
            case str(text) | TextDelta(text):
                held += text
                continue
            case Finish():
                yield held.upper()
                held = ""
        yield event
    if held:
        yield TextDelta(held.upper())


class Shouts:
    async def __call__(self, said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
        async for event in shouts_at_the_end(said):
            yield event

    def method(self, said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
        return shouts_at_the_end(said)


@pytest.mark.parametrize(
    "hook", [shouts_at_the_end, Shouts(), Shouts().__call__, functools.partial(shouts_at_the_end)]
)
@pytest.mark.parametrize("mode", MODES[:6])
async def test_a_hook_of_whole_turns_can_speak_at_the_end(hook: Any, mode: Mode) -> None:
    told = await mode(Agent(), stream_transform_hook=hook)

    assert (told.http, told.code) == (200, None)
    assert "HELLO" in told.body
    assert "Hel" not in told.body


async def test_a_hook_of_whole_turns_sees_a_summary_before_it_is_sealed() -> None:
    seen: list[Turn] = []

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        seen.append(turn)
        yield "Hel"
        yield "lo"

    app = hosted(agent, stream_transform_hook=shouts_at_the_end)
    body = {"model": "agent", "input": "hi"}
    compacted = await request("POST", "/v1/responses/compact", body).run(app)
    await create(app, input=[*compacted.json["output"], message("user", "next")])

    assert "HELLO" in str(seen[1].history)


async def test_concurrent_turns_share_nothing_of_a_hook_of_whole_turns() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        for letter in turn.text:
            await asyncio.sleep(0)
            yield letter

    app = served(agent, stream_transform_hook=shouts_at_the_end)
    texts = [f"only {name}" for name in "abc"]

    wires = await asyncio.gather(
        *(
            asking(stream=True, messages=[{"role": "user", "content": text}]).run(app)
            for text in texts
        )
    )

    assert [said(chunks_of(wire)) for wire in wires] == [text.upper() for text in texts]


async def test_a_hook_that_ends_early_ends_the_turn_and_closes_the_agent() -> None:
    closed: list[str] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append("agent")

    async def first_only(said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
        try:
            async for event in said:
                yield event
                return
        finally:
            closed.append("hook")

    response = await create(hosted(agent, stream_transform_hook=first_only))

    assert (response["status"], response["output"][0]["content"][0]["text"]) == ("completed", "a")
    assert closed == ["hook", "agent"]


async def test_a_client_that_goes_away_ends_the_hook_and_the_agent() -> None:
    closed: list[str] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            yield "Hel"
            await asyncio.Event().wait()
        finally:
            closed.append("agent")

    async def passes(said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
        try:
            async for event in said:
                yield event
        finally:
            closed.append("hook")

    wire = creating(stream=True)
    task = wire.start(hosted(agent, stream_transform_hook=passes))
    async with asyncio.timeout(5):
        await wire.until("Hel")
        wire.hang_up()
        await task

    assert closed == ["agent", "hook"]


async def test_an_agent_is_closed_where_a_hook_of_whole_turns_fails() -> None:
    closed: list[str] = []

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            yield "a"
        finally:
            closed.append("agent")

    for hook in (yields_a_number, raises_over_a_turn(ValueError()), raises(ValueError())):
        await create_or_fail(agent, hook)

    assert closed == ["agent"] * 3


async def create_or_fail(agent: Any, hook: Any) -> None:
    wire = await creating().run(hosted(agent, stream_transform_hook=hook))
    assert wire.status == 500 or wire.json["status"] == "failed"


@pytest.mark.parametrize("hook", [shouts_at_the_end, lambda event: event.upper()])
async def test_events_that_cannot_be_closed_are_read_to_their_end(hook: Any) -> None:
    class Words:
        def __init__(self) -> None:
            self.left = ["b", "a"]

        def __aiter__(self) -> Self:
            return self

        async def __anext__(self) -> str:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    events = [event async for event in transformed(hook, Words())]

    assert events in ([TextDelta("AB")], ["A", "B"])


def test_only_an_async_generator_function_is_of_whole_turns() -> None:
    async def later(_: AgentEvent) -> None: ...

    others: list[Any] = [later, lambda _: None, Shouts().method]
    assert is_of_whole_turns(shouts_at_the_end)
    assert is_of_whole_turns(Shouts())
    assert not any(map(is_of_whole_turns, others))


async def only_text(said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
    async for event in said:
        if isinstance(event, str):
            yield event


async def says_finish_at_the_end(said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
    async for event in said:
        if isinstance(event, str):
            yield event
    yield Finish("max_output_tokens")


@pytest.mark.parametrize(
    "hook",
    [
        only_text,
        says_finish_at_the_end,
        lambda event: event if isinstance(event, str) else None,
    ],
)
async def test_what_ends_a_session_passes_by_a_hook_that_drops_it(hook: Any) -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        histories.append(len(turn.history))
        yield "ok"

    histories: list[int] = []
    app = hosted(agent, stream_transform_hook=hook, commands=(RESET,))
    first = await create(app, input="a secret")
    reset = await create(app, input="/reset", previous_response_id=first["id"])
    await create(app, previous_response_id=reset["id"])

    assert histories == [0, 0]


async def test_a_hook_may_drop_what_an_agent_wants_back_and_what_it_used() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        states.append(turn.state)
        yield KeptState({"at": 1})
        yield Usage(1, 2)
        yield "ok"

    states: list[Any] = []
    app = hosted(agent, stream_transform_hook=only_text)
    first = await create(app)
    await create(app, previous_response_id=first["id"])

    assert states == [None, None]
    assert first["usage"]["total_tokens"] == 0


# Hooks that do not end


WAITS = (True, False)


def words(*, waits: bool) -> Any:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        if waits:
            await asyncio.sleep(0)
        yield "Hel"
        yield "lo"
        yield Finish("max_output_tokens")

    return agent


async def hangs(event: AgentEvent) -> AgentEvent | None:
    await asyncio.Event().wait()
    return event


async def hangs_at_lo(event: AgentEvent) -> AgentEvent | None:
    return await hangs(event) if event == "lo" else event


async def hangs_over_a_turn(said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
    async for event in said:
        if event == "lo":
            await asyncio.Event().wait()
        yield event


@pytest.mark.parametrize("waits", WAITS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_whose_hook_says_nothing_is_out_of_time(*, stream: bool, waits: bool) -> None:
    wire = creating(stream=stream)
    wire.scope[DEADLINE] = TimeLeft(0.05, 1.0).since(monotonic())
    async with asyncio.timeout(5):
        await wire.run(hosted(words(waits=waits), stream_transform_hook=hangs))

    assert (wire.status, wire.error_body["code"]) == (504, "timeout")


@pytest.mark.parametrize("waits", WAITS)
@pytest.mark.parametrize("hook", [hangs_at_lo, hangs_over_a_turn])
async def test_a_turn_whose_hook_hangs_later_fails_with_what_was_said(
    hook: Any, *, waits: bool
) -> None:
    wire = creating(stream=True)
    wire.scope[DEADLINE] = TimeLeft(0.05, 1.0).since(monotonic())
    async with asyncio.timeout(5):
        await wire.run(hosted(words(waits=waits), stream_transform_hook=hook))

    assert wire.types[-1] == "failed"
    (said,) = wire.events[-1]["response"]["output"]
    assert said["content"][0]["text"] == "Hel"


@pytest.mark.parametrize("waits", WAITS)
async def test_a_client_that_goes_away_ends_a_hook_that_waits(*, waits: bool) -> None:
    async def hook(event: AgentEvent) -> AgentEvent | None:
        try:
            return await hangs_at_lo(event)
        except asyncio.CancelledError:
            ended.append(event)
            raise

    ended: list[AgentEvent] = []
    wire = creating(stream=True)
    task = wire.start(hosted(words(waits=waits), stream_transform_hook=hook))
    async with asyncio.timeout(5):
        await wire.until("Hel")
        wire.hang_up()
        await task

    assert ended == ["lo"]


async def test_a_reply_begins_while_the_first_event_is_in_its_hook() -> None:
    wire = creating(stream=True)
    app = hosted(words(waits=False), stream_transform_hook=hangs, first_event_grace_s=0.01)
    task = wire.start(app)
    async with asyncio.timeout(5):
        await wire.until("response.in_progress")
        wire.hang_up()
        await task


class Stuck:
    """A hook of whole turns that does not end when it is closed, or also not when it is cancelled."""

    def __init__(self, *, minds_cancelling: bool) -> None:
        self.is_closing = asyncio.Event()
        self.may_end = asyncio.Event()
        self._minds_cancelling = minds_cancelling

    async def __call__(self, said: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
        try:
            async for event in said:
                yield event
        finally:
            self.is_closing.set()
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                if self._minds_cancelling:
                    raise
                await self.may_end.wait()


@pytest.mark.parametrize("waits", WAITS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("minds_cancelling", [True, False])
async def test_the_end_is_told_where_a_hook_of_whole_turns_does_not_end(
    *, minds_cancelling: bool, stream: bool, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Stuck(minds_cancelling=minds_cancelling)
    wire = creating(stream=stream)
    wire.scope[DEADLINE] = TimeLeft(0.05, 0.2).since(monotonic())
    app = hosted(words(waits=waits), stream_transform_hook=hook)
    task = wire.start(app)
    async with asyncio.timeout(5):
        await wire.until("[DONE]" if stream else '"incomplete"')
        if not minds_cancelling:
            hook.may_end.set()
        await task

    response = wire.events[-1]["response"] if stream else wire.json
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (await get(app, f"/v1/responses/{response['id']}")).json == response
    if stream:
        assert wire.types.count("incomplete") == 1
    assert not caplog.records


async def test_the_end_is_told_where_nothing_was_said_and_the_hook_does_not_end() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield Finish()

    hook = Stuck(minds_cancelling=False)
    wire = creating()
    wire.scope[DEADLINE] = TimeLeft(0.05, 0.2).since(monotonic())
    task = wire.start(hosted(agent, stream_transform_hook=hook))
    async with asyncio.timeout(5):
        await wire.until('"completed"')
        hook.may_end.set()
        await task

    assert wire.json["output"] == []


@pytest.mark.parametrize("is_server", [True, False])
async def test_a_turn_that_was_over_stays_so_where_its_hook_is_cancelled(
    *, is_server: bool
) -> None:
    hook = Stuck(minds_cancelling=True)
    wire = creating(stream=True)
    app = hosted(words(waits=True), stream_transform_hook=hook)
    task = wire.start(app)
    async with asyncio.timeout(5):
        await hook.is_closing.wait()
        await wire.until("Hel")
        if is_server:
            task.cancel()
        else:
            wire.hang_up()
        await asyncio.wait({task})
    identifier = json.loads(wire.body.split(b"data: ")[1].split(b"\n")[0])["response"]["id"]

    async with asyncio.timeout(5):
        kept = await get(app, f"/v1/responses/{identifier}")
    assert kept.json["status"] == "incomplete"


async def test_an_agent_that_was_cut_off_while_it_never_waited_has_time_to_end() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            while True:
                yield "word "
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            ended.append("agent")

    ended: list[str] = []
    wire = creating()
    wire.scope[DEADLINE] = TimeLeft(0.02, 1.0).since(monotonic())
    async with asyncio.timeout(5):
        await wire.run(hosted(agent))

    assert ended == ["agent"]
    assert wire.json["error"]["code"] == "timeout"


async def test_the_end_of_an_agent_that_never_waits_but_at_its_end_is_told() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        try:
            while True:
                yield "word "
        finally:
            await may_end.wait()

    may_end = asyncio.Event()
    wire = creating(stream=True)
    wire.scope[DEADLINE] = TimeLeft(0.02, 0.2).since(monotonic())
    task = wire.start(hosted(agent))
    async with asyncio.timeout(5):
        await wire.until("[DONE]")
        may_end.set()
        await task

    assert wire.types[-1] == "failed"


# What hooks make of a turn can be gone on with


async def test_what_the_agent_left_open_may_stay() -> None:
    made = [CALL, message("assistant", "a") | {"id": "msg_1"}]
    response = msgspec.structs.replace(FINISHED, output=made)

    for output in (made, made[:1], made[::-1], made[1:]):
        got = await apply_response_hook(answers(output=output), response)
        assert got.output == output


async def test_a_call_that_was_cut_off_stays_one_that_was() -> None:
    cut = CALL | {"status": "incomplete"}
    response = msgspec.structs.replace(FINISHED, output=[cut])

    assert (await apply_response_hook(lambda result: result, response)).output == [cut]
    with pytest.raises(HookError, match="a function call that the agent did not make"):
        await apply_response_hook(answers(output=[CALL]), response)


@pytest.mark.parametrize("left", [[CALL], [ANSWER], [ANSWER, CALL]])
async def test_a_call_and_its_output_stay_together(left: list[Any]) -> None:
    response = msgspec.structs.replace(FINISHED, output=[CALL, ANSWER])

    with pytest.raises(HookError, match=UNPAIRED):
        await apply_response_hook(answers(output=left), response)
    assert (await apply_response_hook(answers(output=[]), response)).output == []


async def test_an_item_of_a_response_hook_has_no_id_of_the_input() -> None:
    item = message("assistant", "a") | {"id": "msg_1"}

    with pytest.raises(HookError, match="with an id that is there twice"):
        await apply_response_hook(answers(output=[item]), FINISHED, [item])
    own = msgspec.structs.replace(FINISHED, output=[item, item])  # the agent's own
    assert (await apply_response_hook(lambda result: result, own, [item])).output == [item, item]


async def test_a_response_hook_that_fails_has_changed_nothing_in_place() -> None:
    def hook(result: HostedRunResult[Response]) -> Any:
        result.result.output[0]["content"][0]["text"] = "changed"

    item = message("assistant", "said") | {"id": "msg_1"}
    response = msgspec.structs.replace(FINISHED, output=[item])
    with pytest.raises(HookError):
        await apply_response_hook(hook, response)

    assert response.output == [message("assistant", "said") | {"id": "msg_1"}]


async def test_an_output_whose_call_is_in_the_history_may_be_changed() -> None:
    given = replace(REQUEST, history=[CALL], input=[ANSWER])
    changed = ANSWER | {"output": "[hidden]"}

    got = await apply_run_hook(asks(input=[changed]), given, target=target, protocol_request={})

    assert got.input == [changed]
    with pytest.raises(HookError, match=UNPAIRED):
        await apply_run_hook(asks(input=[]), given, target=target, protocol_request={})


async def test_what_was_open_before_a_run_hook_is_not_its_fault() -> None:
    given = replace(REQUEST, history=[CALL])  # as `/reset` may be said to it
    added = [*given.input, message("user", "more")]

    got = await apply_run_hook(asks(input=added), given, target=target, protocol_request={})

    assert got.input == added


@pytest.mark.parametrize("background", [False, True])
async def test_items_that_a_run_hook_moves_have_ids_of_their_own(*, background: bool) -> None:
    def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        _, *rest = asked.input
        return replace(asked, input=[*rest, message("user", "more")][: len(seen) + 1])

    seen: list[str] = []
    for _ in range(2):
        both = Instances(Agent(), run_hook=hook)
        said = [message("user", "a"), message("user", "b")]
        made = await both.a.post("/v1/responses", {"input": said, "background": background})
        if background:
            await both.working(both.b)
        response = (await both.a.get(made.json["id"])).json
        path = f"/v1/responses/{response['id']}/input_items"
        listed = await get(both.a.app, path)
        ids = [item["id"] for item in [*listed.json["data"], *response["output"]]]
        assert len({*ids}) == len(ids) == len(seen) + 2
        seen.append(response["id"])


# What a hook changes in place


def clears(asked: Any) -> None:
    asked.history.clear()


def rewrites(asked: Any) -> None:
    for item in asked.history:
        item["content"][0]["text"] = "[hidden]"


def adds(asked: Any) -> None:
    asked.history.append(asked.history[0])


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("change", "texts"),
    [(clears, []), (rewrites, ["[hidden]"] * 2), (adds, ["a secret", "Hello", "a secret"])],
)
async def test_history_that_is_changed_in_place_counts_for_this_turn_alone(
    change: Any, texts: list[str], *, background: bool
) -> None:
    def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        if len(seen) == 1:
            change(asked)
        return asked

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        seen.append([text_of(item) for item in turn.history])
        yield "Hel"
        yield "lo"

    seen: list[list[str]] = []
    both = Instances(agent, run_hook=hook)
    previous = (await both.a.post("/v1/responses", {"input": "a secret"})).json["id"]
    for _ in range(2):
        body = {"input": "hi", "previous_response_id": previous, "background": background}
        previous = (await both.a.post("/v1/responses", body)).json["id"]
        if background:
            await both.working(both.b)

    assert seen == [[], texts, ["a secret", "Hello", "hi", "Hello"]]


async def test_a_chat_that_is_not_stored_keeps_what_a_hook_has_hidden_in_place() -> None:
    def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        if len(seen) == 1:
            rewrites(asked)
        return asked

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        seen.append([text_of(item) for item in turn.history])
        yield "ok"

    seen: list[list[str]] = []
    more: dict[str, Any] = {}
    async with Socket(hosted(agent, run_hook=hook)) as socket:
        for _ in range(3):
            ending = await socket.turn(store=False, **more)
            more = {"previous_response_id": ending["response"]["id"]}

    assert seen == [[], ["[hidden]"] * 2, ["hi", "ok", "hi", "ok"]]


@pytest.mark.parametrize("background", [False, True])
async def test_what_else_a_run_hook_changes_in_place_is_for_the_agent_alone(
    *, background: bool
) -> None:
    def hook(asked: Any, **_: Any) -> Any:
        asked.metadata["by"] = "hook"
        asked.tools[0]["description"] = "by a hook"
        return asked

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        seen.append((turn.metadata, turn.tools[0]["description"]))
        yield "ok"

    seen: list[Any] = []
    both = Instances(agent, run_hook=hook)
    tool = {"type": "function", "name": "f", "description": "mine", "parameters": {}}
    body = {"input": "hi", "metadata": {"a": "b"}, "tools": [tool], "background": background}
    response = (await both.a.post("/v1/responses", body)).json
    if background:
        await both.working(both.b)

    assert seen == [({"a": "b", "by": "hook"}, "by a hook")]
    assert response["metadata"] == {"a": "b"}
    assert response["tools"][0]["description"] == "mine"


# Words for the client that are none


@pytest.mark.parametrize("status", [200, 204, 99, 600, "x", None, True])
@pytest.mark.parametrize("kind", OPTION)
async def test_a_refusal_has_the_status_of_an_error(kind: HookKind, status: Any) -> None:
    told = await whole(Agent(), **{OPTION[kind]: raises(RequestError("No.", status=status))})

    assert "No." in told.body
    assert told.http == (200 if kind == RESPONSE else 500)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", OPTION)
@pytest.mark.parametrize("odd", [5, None, ["a"], {"a": 1}, object(), b"x"])
async def test_a_refusal_that_is_no_text_is_told(kind: HookKind, odd: Any, mode: Mode) -> None:
    error = RequestError(odd, code=odd, param=odd, status=403)
    told = await mode(Agent(), **{OPTION[kind]: raises(error)})

    http, status = TOLD_AS[kind][mode]
    has_status = http == 500 and not (mode is compaction and kind == RESPONSE)
    assert (told.http, told.status) == (403 if has_status else http, status)
    assert "The request is not accepted." in told.body


# The calls themselves


REQUEST = ChannelRequest(
    channel="responses",
    operation="message.create",
    caller=Caller(Principal("acme"), IsolationKeys("acme")),
    input=[message("user", "hi")],
)
FINISHED = Response(id="resp_1", created_at=0, model="agent", status=Status.COMPLETED)


async def target(_: Turn) -> AsyncIterator[AgentEvent]:
    yield ""


async def asked(hook: Any) -> ChannelRequest:
    return await apply_run_hook(hook, REQUEST, target=target, protocol_request={"a": 1})


async def changed(hook: Any) -> Any:
    return await apply_transform_hook(hook, "a")


async def answered(hook: Any) -> Response:
    return await apply_response_hook(hook, FINISHED)


async def streamed(hook: Any) -> list[AgentEvent]:
    async def one() -> AsyncIterator[AgentEvent]:
        yield "a"

    return [event async for event in transformed(hook, one())]


async def test_a_run_hook_is_called_by_its_convention() -> None:
    calls: list[tuple[Any, ...]] = []

    def hook(given: ChannelRequest, /, **named: Any) -> ChannelRequest:
        calls.append((given, named))
        return replace(given, model="m")

    got = await asked(hook)

    assert calls == [(REQUEST, {"target": target, "protocol_request": {"a": 1}})]
    assert got == replace(REQUEST, model="m")


async def test_a_run_hook_may_be_async_or_an_object() -> None:
    class Hook:
        async def __call__(self, given: ChannelRequest, /, **_: Any) -> ChannelRequest:
            return replace(given, model="m")

    assert (await asked(Hook())).model == "m"


async def test_a_run_hook_may_return_a_request_of_its_own_kind() -> None:
    class Mine(ChannelRequest):
        pass

    fields = {name: getattr(REQUEST, name) for name in ChannelRequest.__slots__}

    assert isinstance(await asked(lambda *_, **__: Mine(**fields)), Mine)


async def test_a_run_hook_cannot_change_the_operation() -> None:
    for hook in (asks(operation="message.compact"), sneaks("operation", "message.compact")):
        given = replace(REQUEST)
        got = await apply_run_hook(hook, given, target=target, protocol_request={})
        assert got.operation == "message.create"


async def test_history_that_a_run_hook_leaves_alone_is_not_looked_at() -> None:
    given = replace(REQUEST, history=[{"type": object()}])

    got = await apply_run_hook(asks(), given, target=target, protocol_request={})

    assert got.history is given.history


@pytest.mark.parametrize("apply", [asked, changed, answered, streamed])
@pytest.mark.parametrize("make", [raises, raises_later])
@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
async def test_what_ends_more_than_a_turn_passes_through(
    apply: Any, make: Any, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        await apply(make(error()))


@pytest.mark.parametrize("apply", [asked, changed, answered, streamed])
async def test_a_cancellation_of_the_task_passes_through(apply: Any) -> None:
    async def hook(*_: Any, **__: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    task = asyncio.create_task(apply(hook))
    await begun.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("apply", [asked, changed, answered, streamed])
async def test_a_fault_is_chained_to_what_the_hook_raised(apply: Any) -> None:
    cause = ValueError(SECRET)

    with pytest.raises(HookError) as caught:
        await apply(raises(cause))

    assert caught.value.__cause__ is cause
    facts = fault_facts(caught.value)
    assert facts["error_cause"] == "ValueError"
    assert facts["error_at"][-1].endswith(" in hook")
    assert "test_hooks.py" in facts["error_at"][-1]


async def test_a_dropped_and_a_kept_event_are_no_faults() -> None:
    assert await changed(lambda _: None) is None
    assert await changed(lambda event: event) == "a"
    assert await changed(lambda _: OutputItem({"type": "x"})) == OutputItem({"type": "x"})


# Names


def check(*_: Any, **__: Any) -> None: ...


class Policy:
    def __call__(self, *_: Any, **__: Any) -> None: ...

    def check(self, *_: Any) -> None: ...

    @classmethod
    def made(cls, *_: Any) -> None: ...


class Stricter(Policy):
    pass


class Odd:
    """Has any attribute that it is asked for."""

    def __getattr__(self, name: str) -> int:
        return 5

    def __call__(self, *_: Any) -> None: ...


@functools.wraps(check)
def wrapped(*_: Any) -> None: ...


LAMBDA = lambda *_: None  # noqa: E731 - its name is what is looked at
HERE = "tests.channel.test_hooks"


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        (check, f"{HERE}.check"),
        (wrapped, f"{HERE}.check"),
        (functools.partial(check, 1), f"{HERE}.check"),
        (functools.partial(functools.partial(Policy().check), 1), f"{HERE}.Policy.check"),
        (functools.partial(Stricter()), f"{HERE}.Stricter"),
        (Policy(), f"{HERE}.Policy"),
        (Stricter(), f"{HERE}.Stricter"),
        (Policy, f"{HERE}.Policy"),
        (Policy().check, f"{HERE}.Policy.check"),
        (Policy().__call__, f"{HERE}.Policy.__call__"),
        (Policy.made, f"{HERE}.Policy.made"),
        (LAMBDA, f"{HERE}.<lambda>:{LAMBDA.__code__.co_firstlineno}"),
        (Odd(), f"{HERE}.Odd"),
        (print, "builtins.print"),
        ([].append, "list.append"),
        (None, "builtins.NoneType"),
    ],
)
def test_a_hook_is_named_by_where_it_is_found(hook: Any, name: str) -> None:
    assert hook_name(hook) == name
