"""Delivery at its edges: what runs late, crashes, misbehaves, or is no plain text."""

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic
from types import MappingProxyType
from typing import Any

import pytest
from msgspec.structs import replace as with_fields

from channel.agent import OutputItem, ReasoningDelta, Turn, accepts
from channel.contract import ChannelRequest, HostedRunResult
from channel.deadline import DEADLINE, Deadline
from channel.delivery import Undelivered
from channel.host import AgentHost
from channel.memory import InMemoryResponseStore
from channel.memory_delivery import InMemoryUndeliveredStore
from channel.ports import Job, StoreError
from channel.pushing import RETRY
from channel.responses.channel import ResponsesChannel
from channel.targets import ChannelIdentity, ResponseTarget, ResponseTargetKind
from tests.channel.asgi import KEYS, create, creating, get, request
from tests.e2e.stores import in_memory
from tests.infra.delivering import Chat, Inbox, KeptJobs, Ports, host, link


pytestmark = pytest.mark.anyio

TO = "slack:U1"
ECHO = "echo: hi"
LAST = {"id": "msg_1", "type": "message", "role": "assistant"}


async def echo(turn: Turn) -> AsyncIterator[str]:
    yield f"echo: {turn.text}"


def told(response: dict[str, Any]) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


class HangingUndelivered(InMemoryUndeliveredStore):
    async def keep(self, undelivered: Undelivered, /) -> None:
        del undelivered
        await asyncio.Event().wait()


async def test_a_delivery_that_takes_too_long_is_given_up_before_its_end_cannot_be_told() -> None:
    async def endless(turn: Turn) -> AsyncIterator[str]:
        yield f"half of {turn.text}"
        await asyncio.Event().wait()

    ports = Ports()
    ports._memory = ports._memory[0], HangingUndelivered()
    app = host(endless, ports.options(Inbox("slack")), first_event_grace_s=0.05).app
    wire = creating(stream=True, response_target=["originating", TO])
    wire.scope[DEADLINE] = Deadline(monotonic() + 0.3, 0.5)
    await wire.run(app)
    assert wire.types[-1] == "failed"


async def test_a_destination_that_takes_no_notice_of_its_end_is_not_waited_for() -> None:
    freed = asyncio.Event()

    class Stubborn(Inbox):
        async def push(self, identity: ChannelIdentity, payload: Any, /) -> None:
            while not freed.is_set():
                try:
                    await freed.wait()
                except asyncio.CancelledError:
                    continue

    jobs = KeptJobs()
    app = host(echo, Ports().options(Stubborn("slack"), jobs=jobs, attempt_s=0.5)).app
    response = await create(app, response_target=TO)
    freed.set()
    assert told(response) == "Not delivered yet to slack:U1, but tried again."
    assert len(jobs.started) == 1


@pytest.mark.parametrize("fault", [SystemExit(3), asyncio.CancelledError()])
async def test_whatever_a_destination_raises_ends_nobody_else(fault: BaseException) -> None:
    slack, good, jobs = Inbox("slack"), Inbox("good"), KeptJobs()
    slack.fault = fault  # type: ignore[assignment]
    app = host(echo, Ports().options(slack, good, jobs=jobs)).app
    response = await create(app, response_target=[TO, "good:ann"])
    assert told(response) == (
        "Delivered to good:ann. Not delivered yet to slack:U1, but tried again."
    )
    assert [job.kind for job in jobs.started] == [RETRY]


CONTENTS = ["hello", [{"type": "output_text", "text": "hello", "annotations": []}], ["hello", 3]]


@pytest.mark.parametrize("content", CONTENTS)
async def test_a_message_of_any_shape_is_delivered(content: Any) -> None:
    async def whole(turn: Turn) -> AsyncIterator[OutputItem]:
        del turn
        yield OutputItem({**LAST, "content": content})

    slack = Inbox("slack")
    await create(host(whole, Ports().options(slack)).app, response_target=TO)
    assert slack.texts == ["hello"]


@pytest.mark.parametrize("item", [{**LAST}, {**LAST, "content": []}, {"type": "image"}])
async def test_a_reply_without_text_goes_back_in_whole(item: dict[str, Any]) -> None:
    async def whole(turn: Turn) -> AsyncIterator[OutputItem]:
        del turn
        yield OutputItem(item)

    slack = Inbox("slack")
    response = await create(host(whole, Ports().options(slack)).app, response_target=TO)
    assert response["output"][0]["type"] == item["type"]
    assert slack.got == []


async def test_structured_output_that_goes_elsewhere_leaves_nothing_to_parse() -> None:
    @accepts("text")
    async def parsed(turn: Turn) -> AsyncIterator[str]:
        del turn
        yield '{"a": 1}'

    slack = Inbox("slack")
    app = host(parsed, Ports().options(slack)).app
    response = await create(app, response_target=TO, text={"format": {"type": "json_object"}})
    assert (response["status"], response["output"]) == ("completed", [])
    assert slack.texts == ['{"a": 1}']


async def test_a_worker_that_is_lost_before_it_delivered_is_made_up_for() -> None:
    slack, jobs, ports = Inbox("slack"), KeptJobs(), Ports()
    slack.gate.clear()
    hosted = host(echo, ports.options(slack, jobs=jobs), jobs=jobs)
    begun = await create(hosted.app, background=True, response_target=TO)
    (job,) = jobs.started
    work = asyncio.ensure_future(hosted.jobs[job.kind](job.payload, None))
    await slack.reached.wait()
    work.cancel()
    await asyncio.wait({work})
    slack.gate.set()
    await hosted.jobs[job.kind](job.payload, None)  # Lambda runs it again
    for each in jobs.started[1:]:
        await hosted.jobs[each.kind](each.payload, None)
    assert slack.texts == [ECHO]
    assert (await get(hosted.app, f"/v1/responses/{begun['id']}")).json["status"] == "completed"


async def test_a_background_turn_goes_where_its_user_was_when_it_was_asked_for() -> None:
    chat, jobs = Chat("chat"), KeptJobs()
    hosted = host(echo, Ports().options(), chat, jobs=jobs)
    await request("POST", "/chat", b"U1: hello").run(hosted.app)
    await create(hosted.app, background=True, user="ann", response_target="active")
    (job,) = jobs.started
    await create(hosted.app, user="ann")  # by now the user is elsewhere
    await hosted.jobs[job.kind](job.payload, None)
    assert chat.texts == [ECHO]
    active = [
        each["channel"]
        for each in (await get(hosted.app, "/v1/identities")).json["data"]
        if each["is_active"]
    ]
    assert active == ["responses"]


def refusing(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
    raise ValueError(result.text)


async def reasoning(turn: Turn) -> AsyncIterator[Any]:
    yield ReasoningDelta(f"secret {turn.text}")
    raise RuntimeError


async def half(turn: Turn) -> AsyncIterator[str]:
    yield f"secret {turn.text}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("agent", "hook"), [(half, refusing), (reasoning, None)])
async def test_what_is_delivered_nowhere_is_not_shown_to_an_originator_who_is_excluded(
    agent: Any, hook: Any, stream: bool
) -> None:
    slack = Inbox("slack")
    app = host(agent, Ports().options(slack), response_hook=hook).app
    wire = await creating(stream=stream, response_target=TO).run(app)
    assert b"secret" not in wire.body
    last = wire.events[-1]["response"] if stream else wire.json
    assert (last["status"], last["output"], slack.got) == ("failed", [], [])


async def test_a_turn_that_could_not_be_stored_is_not_delivered() -> None:
    class Broken(InMemoryResponseStore):
        async def save(self, *_given: Any) -> None:
            raise StoreError("no")

    slack = Inbox("slack")
    app = host(echo, Ports().options(slack), store=Broken()).app
    wire = await creating(response_target=TO).run(app)
    assert (wire.status, slack.got) == (500, [])
    wire = await creating(stream=True, response_target=TO).run(app)
    assert (wire.types[-1], slack.got) == ("failed", [])
    assert b"echo" not in wire.body


def aimed(target: Any) -> Callable[..., ChannelRequest]:
    def hook(request: ChannelRequest, **_: Any) -> ChannelRequest:
        request.response_target = target
        return request

    return hook


NONE: Any = "none"
CHANNELS: Any = "channels"
BAD: list[Any] = [
    "slack",
    None,
    ResponseTarget("everyone"),  # type: ignore[arg-type]
    ResponseTarget(ResponseTargetKind.CHANNELS),
    ResponseTarget(ResponseTargetKind.CHANNELS, ("slack:",)),
    ResponseTarget(ResponseTargetKind.CHANNELS, ("slack:\x1b[2J",)),
    ResponseTarget(ResponseTargetKind.CHANNELS, tuple(f"slack:{i}" for i in range(17))),
]


@pytest.mark.parametrize("target", BAD)
async def test_a_target_that_a_hook_got_wrong_is_an_error_that_names_the_hook(
    target: Any, caplog: pytest.LogCaptureFixture
) -> None:
    slack = Inbox("slack")
    app = host(echo, Ports().options(slack), run_hook=aimed(target)).app
    wire = await creating().run(app)
    assert (wire.status, slack.got) == (500, [])
    assert "aimed.<locals>.hook" in caplog.text


async def test_a_hooks_target_may_say_its_kind_in_plain_text() -> None:
    slack = Inbox("slack")
    app = host(echo, Ports().options(slack), run_hook=aimed(ResponseTarget(NONE))).app
    assert told(await create(app)) == "The reply was not sent anywhere, as asked."
    by_hand = ResponseTarget(CHANNELS, (TO,))
    app = host(echo, Ports().options(slack), run_hook=aimed(by_hand)).app
    assert told(await create(app)) == "Delivered to slack."


async def test_whom_a_hook_has_chosen_is_not_told_to_a_caller_who_is_not_linked_to_it() -> None:
    slack = Inbox("slack")
    hook = aimed(ResponseTarget.channels(["slack:+491700", "slack:U1"]))
    app = host(echo, Ports().options(slack), run_hook=hook).app
    assert told(await create(app)) == "Delivered to slack."
    await link(app, "slack", "U1")
    assert told(await create(app)) == "Delivered to slack, slack:U1."
    wire = await creating(stream=True).run(app)
    assert b"491700" not in wire.body


async def test_all_linked_counts_the_identity_of_this_very_request() -> None:
    slack = Inbox("slack")
    app = host(echo, Ports().options(slack)).app
    await link(app, "slack", "U1")
    for _ in range(2):
        assert told(await create(app, user="ann", response_target="all_linked")) == ECHO
    assert slack.texts == [ECHO, ECHO]


async def test_an_identity_that_its_caller_may_not_link_is_not_noted_either() -> None:
    chat = Chat("chat", links=lambda _caller, native_id: native_id == "U1")
    app = host(echo, Ports().options(), chat).app
    assert (await request("POST", "/chat", b"victim: hello").run(app)).status == 200
    assert (await get(app, "/v1/identities")).json["data"] == []
    assert told(await create(app, response_target="chat")) == ECHO
    await request("POST", "/chat", b"U1: hello").run(app)
    assert told(await create(app, response_target="chat")) == "Delivered to chat:U1."


async def test_the_origin_may_be_named_whatever_else_may() -> None:
    slack = Inbox("slack")
    options = Ports().options(slack, authorize=lambda _caller, where: where.channel == "slack")
    app = host(echo, options).app
    for origin in ("originating", "responses"):
        assert told(await create(app, response_target=[TO, origin])) == ECHO
    assert slack.texts == [ECHO, ECHO]


@pytest.mark.parametrize("name", ["", "a:b", "x" * 65, "originating", "none", "all_linked"])
def test_a_channel_that_no_target_could_name_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ValueError, match="named"):
        host(echo, Ports().options(Inbox(name)))


def test_two_channels_of_one_name_are_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="one name"):
        host(echo, Ports().options(Inbox("responses")))


async def _failed_once(ports: Ports, slack: Inbox) -> tuple[Any, Job]:
    jobs = KeptJobs()
    hosted = host(echo, ports.options(slack, jobs=jobs, attempts=1), keys=ports.keys)
    slack.fault = OSError()
    await create(hosted.app, response_target=TO)
    (job,) = jobs.started
    slack.gate.clear()
    slack.reached.clear()
    return hosted.jobs[job.kind], job


async def test_what_its_owner_drops_while_it_is_tried_again_does_not_come_back() -> None:
    ports, slack = Ports(), Inbox("slack")
    retry, job = await _failed_once(ports, slack)
    work = asyncio.ensure_future(retry(job.payload, None))
    await slack.reached.wait()
    await ports.undelivered.drop(ports.principal, job.payload["id"])
    slack.gate.set()
    await work
    assert await ports.undelivered.all_of(ports.principal) == []


async def test_of_two_retries_one_that_succeeds_is_enough() -> None:
    ports, slack = Ports(), Inbox("slack")
    retry, job = await _failed_once(ports, slack)
    loser = asyncio.ensure_future(retry(job.payload, None))
    await slack.reached.wait()
    other = Inbox("slack")
    winner = host(echo, ports.options(other), keys=ports.keys)
    await winner.jobs[job.kind](job.payload, None)
    slack.gate.set()
    await loser
    assert other.texts == [ECHO]
    assert await ports.undelivered.all_of(ports.principal) == []


def blanking(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
    return result.replace(with_fields(result.result, output=[]))


def mild(result: HostedRunResult[Any]) -> HostedRunResult[Any]:
    (item,) = result.result.output
    part = {**item["content"][0], "text": ""}
    return result.replace(with_fields(result.result, output=[{**item, "content": [part]}]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hook", [blanking, mild])
async def test_what_a_response_hook_took_out_is_not_told_to_who_has_read_nothing(
    hook: Any, stream: bool
) -> None:
    slack = Inbox("slack")
    app = host(half, Ports().options(slack), response_hook=hook).app
    wire = await creating(stream=stream, response_target=TO).run(app)
    assert b"secret" not in wire.body
    last = wire.events[-1]["response"] if stream else wire.json
    assert (last["status"], slack.got) == ("completed", [])
    if stream:
        assert [event["sequence_number"] for event in wire.events] == [*range(len(wire.events))]


CALL = {"id": "fc_1", "type": "function_call", "name": "look", "arguments": "{}", "call_id": "c1"}
ANSWER = {"id": "fo_1", "type": "function_call_output", "call_id": "c1", "output": "4"}
TOOLS = [{"type": "function", "name": "look", "parameters": {}}]


async def test_a_turn_whose_calls_the_agent_has_answered_itself_is_delivered() -> None:
    async def answering(turn: Turn) -> AsyncIterator[Any]:
        del turn
        yield OutputItem(CALL)
        yield OutputItem(ANSWER)
        yield "It is four."

    slack = Inbox("slack")
    app = host(answering, Ports().options(slack)).app
    response = await create(app, response_target=TO, tools=TOOLS)
    assert (slack.texts, told(response)) == (["It is four."], "Delivered to slack:U1.")


async def test_a_turn_that_fails_with_a_call_delivers_what_it_had_said() -> None:
    async def failing(turn: Turn) -> AsyncIterator[Any]:
        del turn
        yield "half"
        yield OutputItem(CALL)
        raise RuntimeError

    slack = Inbox("slack")
    app = host(failing, Ports().options(slack)).app
    response = await create(app, response_target=TO, tools=TOOLS)
    assert (response["status"], response["output"], slack.texts) == ("failed", [], ["half"])


def exiting(*_given: Any) -> bool:
    raise SystemExit(3)


async def test_a_callback_that_would_end_the_process_fails_its_request_alone() -> None:
    slack = Inbox("slack", links=exiting)
    app = host(echo, Ports().options(slack, authorize=exiting)).app
    assert (await creating(response_target="slack").run(app)).status == 500
    assert (await link(app, "slack", "U1")).status == 500
    assert told(await create(app)) == ECHO


@pytest.mark.parametrize("answer", [None, 1, "yes", {"a": 1}])
async def test_a_callback_that_does_not_say_true_says_no(answer: Any) -> None:
    slack = Inbox("slack", links=lambda *_: answer)
    app = host(echo, Ports().options(slack, authorize=lambda *_: answer)).app
    assert (await creating(response_target="slack").run(app)).status == 400
    assert (await link(app, "slack", "U1")).status == 404


async def test_a_hooks_target_at_a_host_that_delivers_nothing_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel = ResponsesChannel(run_hook=aimed(ResponseTarget.none), keepalive_s=0)
    app = AgentHost(echo, channels=[channel], authenticator=KEYS).app
    wire = await creating().run(app)
    assert (wire.status, b"echo" in wire.body) == (500, False)
    assert "where the host delivers nothing" in caplog.text


async def test_a_worker_that_cannot_deliver_shows_nothing_to_who_is_excluded() -> None:
    stores, jobs = in_memory(), KeptJobs()
    begun = host(echo, Ports().options(Inbox("slack")), jobs=jobs, **stores)
    wire = creating(background=True, stream=True, response_target=TO).start(begun.app)
    job = await jobs.first()
    channel = ResponsesChannel(keepalive_s=0, **stores)
    other = AgentHost(echo, channels=[channel], authenticator=KEYS)
    await other.jobs[job.kind](job.payload, None)
    seen = await wire
    assert b"echo" not in seen.body
    assert seen.types[-1] == "completed"


async def test_a_background_reply_that_was_not_delivered_in_time_is_delivered_by_its_job_again() -> (
    None
):
    ports, slack, jobs = Ports(), Inbox("slack"), KeptJobs()
    healthy = ports._memory
    ports._memory = healthy[0], HangingUndelivered()
    stores = in_memory()
    hosted = host(echo, ports.options(slack), jobs=jobs, **stores)
    await create(hosted.app, background=True, response_target=TO)
    (job,) = jobs.started
    with pytest.raises(StoreError):
        await hosted.jobs[job.kind](job.payload, Deadline(monotonic() + 0.1, 0.5))
    ports._memory = healthy
    again = host(echo, ports.options(slack, jobs=jobs), jobs=jobs, **stores)
    await again.jobs[job.kind](job.payload, None)
    retry = jobs.started[-1]
    await again.jobs[retry.kind](retry.payload, None)
    assert slack.texts == [ECHO]


def identified(attributes: Any) -> Callable[..., ChannelRequest]:
    def hook(request: ChannelRequest, **_: Any) -> ChannelRequest:
        request.identity = ChannelIdentity("responses", "ann", attributes)
        return request

    return hook


@pytest.mark.parametrize("attributes", [{"a": object()}, {"a": 1j}, 5])
async def test_attributes_of_a_hook_that_are_no_json_are_an_error_that_names_it(
    attributes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = host(echo, Ports().options(), run_hook=identified(attributes)).app
    assert (await creating().run(app)).status == 500
    assert "identified.<locals>.hook" in caplog.text


async def test_attributes_of_a_hook_may_be_any_mapping() -> None:
    app = host(echo, Ports().options(), run_hook=identified(MappingProxyType({"a": 1}))).app
    await create(app)
    (linked,) = (await get(app, "/v1/identities")).json["data"]
    assert linked["attributes"] == {"a": 1}
