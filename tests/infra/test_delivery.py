"""Replies that go elsewhere than they came from: over memory, moto and dynalite, with two instances."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channel.agent import FunctionCall, Turn, TurnError
from channel.contract import ChannelRequest
from channel.delivering import own_destinations
from channel.delivery import PushRefusedError
from channel.ports import StoreError
from channel.pushing import RETRY
from channel.targets import ResponseTarget
from tests.channel.asgi import create, creating, get, request
from tests.infra.delivering import Chat, Inbox, KeptJobs, Ports, host, link


pytestmark = pytest.mark.anyio


async def echo(turn: Turn) -> AsyncIterator[str]:
    yield "echo: "
    yield turn.text


@pytest.fixture(params=["memory", "moto", "dynalite"])
def ports(request: pytest.FixtureRequest) -> Ports:
    if request.param == "memory":
        return Ports()
    return Ports(request.getfixturevalue(f"{request.param}_client"))


ECHO = "echo: hi"


async def test_a_reply_goes_to_the_identity_that_is_linked_and_its_originator_reads_where(
    ports: Ports,
) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app
    await link(app, "slack", "U1", attributes={"team": "T", "täg": [1, {"a": None}]})
    response = await create(app, response_target="slack")
    (identity, payload) = slack.got[0]
    assert (identity.native_id, identity.attributes) == (
        "U1",
        {"team": "T", "täg": [1, {"a": None}]},
    )
    assert (payload.text, payload.status, payload.response_id) == (
        ECHO,
        "completed",
        response["id"],
    )
    assert (payload.channel, payload.principal) == ("responses", "alpha")
    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == "Delivered to slack:U1."
    # The record is the turn as it was: the next one goes on with it.
    stored = (await get(app, f"/v1/responses/{response['id']}")).json
    assert stored["output"][0]["content"][0]["text"] == ECHO


async def test_what_was_linked_at_one_instance_is_delivered_from_another(ports: Ports) -> None:
    slack, mail = Inbox("slack"), Inbox("mail")
    one = host(echo, ports.options(slack, mail)).app
    other = host(echo, ports.options(slack, mail)).app
    await link(one, "slack", "U1")
    await link(one, "mail", "ann@example.com")
    await create(other, response_target="all_linked")
    assert (slack.texts, mail.texts) == ([ECHO], [ECHO])
    await create(other, response_target="active")
    assert (slack.texts, mail.texts) == ([ECHO], [ECHO, ECHO])


async def test_active_is_where_the_user_was_before_this_request(ports: Ports) -> None:
    chat = Chat("chat")
    app = host(echo, ports.options(), chat).app
    said = await request("POST", "/chat", b"U1: hello").run(app)
    assert said.json == {"text": "echo: hello"}
    response = await create(app, user="ann", response_target="active")
    assert chat.ids == ["U1"]
    assert "Delivered" in response["output"][0]["content"][0]["text"]
    # By now the user is here: active is the originator.
    response = await create(app, user="ann", response_target="active")
    assert len(chat.got) == 1
    assert response["output"][0]["content"][0]["text"] == ECHO


async def test_the_originating_channel_among_others_reads_the_reply_itself(ports: Ports) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app
    await link(app, "slack", "U1")
    response = await create(app, response_target=["originating", "slack"])
    assert slack.texts == [ECHO]
    assert response["output"][0]["content"][0]["text"] == ECHO


async def test_all_linked_includes_an_originator_that_is_linked_itself(ports: Ports) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app
    await link(app, "slack", "U1")
    await create(app, user="ann")
    response = await create(app, response_target="all_linked")
    assert slack.texts == [ECHO]
    assert response["output"][0]["content"][0]["text"] == ECHO


async def test_none_goes_nowhere(ports: Ports) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app
    await link(app, "slack", "U1")
    response = await create(app, response_target="none")
    assert slack.got == []
    assert response["output"][0]["content"][0]["text"] == (
        "The reply was not sent anywhere, as asked."
    )


async def test_one_destination_that_fails_or_hangs_or_is_unknown_keeps_nothing_from_the_others(
    ports: Ports,
) -> None:
    down, slow, wrong, good = Inbox("down"), Inbox("slow"), Inbox("wrong"), Inbox("good")
    down.fault = OSError("a secret of the wire")
    slow.gate.clear()
    wrong.fault = PushRefusedError("HTTP 410")
    jobs = KeptJobs()
    options = ports.options(down, slow, wrong, good, jobs=jobs, attempt_s=0.6)
    hosted = host(echo, options, keys=ports.keys)
    app = hosted.app
    for each in (down, slow, wrong, good):
        await link(app, each.name, "ann")
    response = await create(
        app, response_target=["down", "slow", "wrong", "good", "responses:x", "good"]
    )
    assert good.texts == [ECHO]
    text = response["output"][0]["content"][0]["text"]
    assert text == (
        "Delivered to good:ann. Not delivered yet to down:ann, slow:ann, but tried again. "
        "Not delivered to wrong:ann."
    )
    kept = {each.identity.channel: each for each in await ports.undelivered.all_of(ports.principal)}
    assert {name: (each.reason, each.is_dead) for name, each in kept.items()} == {
        "down": ("OSError", False),
        "slow": ("TimeoutError", False),
        "wrong": ("PushRefusedError: HTTP 410", True),
    }
    # What may still succeed is tried again by a job, in whichever instance.
    assert {job.kind for job in jobs.started} == {RETRY}
    assert len(jobs.started) == 2
    down.fault = None
    slow.gate.set()
    other = host(echo, ports.options(down, slow, wrong, good))
    for job in jobs.started:
        await other.jobs[job.kind](job.payload, None)
    assert (down.texts, slow.texts) == ([ECHO], [ECHO])
    assert [each.identity.channel for each in await ports.undelivered.all_of(ports.principal)] == [
        "wrong"
    ]


async def test_where_all_have_failed_the_reply_does_not_come_back(ports: Ports) -> None:
    down = Inbox("down")
    down.fault = OSError()
    app = host(echo, ports.options(down, jobs=KeptJobs())).app
    await link(app, "down", "ann")
    response = await create(app, response_target="down")
    assert response["output"][0]["content"][0]["text"] == (
        "Not delivered yet to down:ann, but tried again."
    )


async def test_where_all_are_skipped_the_reply_comes_back(ports: Ports) -> None:
    app = host(echo, ports.options(Inbox("slack"))).app
    response = await create(app, response_target=["slack", "responses:else"])
    assert response["output"][0]["content"][0]["text"] == ECHO


async def test_what_is_given_up_by_the_worker_is_a_dead_letter(ports: Ports) -> None:
    down = Inbox("down")
    down.fault = ConnectionError()
    jobs, pauses = KeptJobs(), []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    hosted = host(
        echo, ports.options(down, jobs=jobs, pause=pause, chance=lambda: 1.0), keys=ports.keys
    )
    await link(hosted.app, "down", "ann")
    await create(hosted.app, response_target="down")
    (job,) = jobs.started
    await hosted.jobs[job.kind](job.payload, None)
    (letter,) = await ports.undelivered.all_of(ports.principal)
    assert (letter.is_dead, letter.attempts, letter.reason) == (True, 6, "ConnectionError")
    assert letter.delivery.text == ECHO
    assert pauses == [1, 3, 9, 27]
    assert down.tried == 6
    # Its owner may have it tried again.
    down.fault = None
    await hosted.jobs[job.kind](job.payload, None)
    assert down.texts == [ECHO]
    assert await ports.undelivered.all_of(ports.principal) == []
    await hosted.jobs[job.kind](job.payload, None)
    assert down.texts == [ECHO]


async def test_a_retry_that_cannot_be_started_leaves_a_dead_letter(ports: Ports) -> None:
    down, jobs = Inbox("down"), KeptJobs()
    down.fault = OSError()
    jobs.fault = StoreError("no")
    app = host(echo, ports.options(down, jobs=jobs), keys=ports.keys).app
    await link(app, "down", "ann")
    await create(app, response_target="down")
    (letter,) = await ports.undelivered.all_of(ports.principal)
    assert letter.is_dead


async def test_a_stream_whose_originator_is_excluded_shows_nothing_of_the_reply(
    ports: Ports,
) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app
    await link(app, "slack", "U1")
    wire = await creating(stream=True, response_target="slack").run(app)
    assert slack.texts == [ECHO]
    assert b"echo" not in wire.body
    assert wire.types == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]
    assert [event["sequence_number"] for event in wire.events] == [*range(9)]
    last = wire.events[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "Delivered to slack:U1."
    assert wire.events[2]["item"]["id"] == last["output"][0]["id"]


async def test_a_stream_whose_originator_is_included_flows_as_ever(ports: Ports) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app
    await link(app, "slack", "U1")
    wire = await creating(stream=True, response_target=["slack", "originating"]).run(app)
    assert [e["delta"] for e in wire.events if e["type"].endswith("text.delta")] == ["echo: ", "hi"]
    assert slack.texts == [ECHO]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_fails_midway_delivers_what_it_had_said(
    ports: Ports,
    stream: bool,
) -> None:
    async def failing(turn: Turn) -> AsyncIterator[str]:
        del turn
        yield "half of"
        raise RuntimeError("a secret")

    slack = Inbox("slack")
    app = host(failing, ports.options(slack)).app
    await link(app, "slack", "U1")
    wire = await creating(stream=stream, response_target="slack").run(app)
    last = wire.events[-1]["response"] if stream else wire.json
    assert (last["status"], last["output"]) == ("failed", [])
    assert b"secret" not in wire.body
    assert b"half" not in wire.body
    ((_, payload),) = slack.got
    assert (payload.text, payload.status) == ("half of", "failed")


async def test_a_turn_that_fails_before_it_said_anything_delivers_nothing(ports: Ports) -> None:
    async def failing(turn: Turn) -> AsyncIterator[str]:
        if turn.text:
            raise TurnError("no", code="no", status=422)
        yield ""

    slack = Inbox("slack")
    app = host(failing, ports.options(slack)).app
    await link(app, "slack", "U1")
    wire = await creating(response_target="slack").run(app)
    assert wire.status == 422
    assert slack.got == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_calls_its_clients_function_goes_to_the_client_alone(
    ports: Ports,
    stream: bool,
) -> None:
    async def calling(turn: Turn) -> AsyncIterator[Any]:
        del turn
        yield "let me see"
        yield FunctionCall("look", "{}")

    slack = Inbox("slack")
    app = host(calling, ports.options(slack)).app
    await link(app, "slack", "U1")
    tools = [{"type": "function", "name": "look", "parameters": {}}]
    wire = await creating(stream=stream, response_target="slack", tools=tools).run(app)
    last = wire.events[-1]["response"] if stream else wire.json
    assert [item["type"] for item in last["output"]] == ["message", "function_call"]
    assert slack.got == []
    if stream:
        assert [event["sequence_number"] for event in wire.events] == [*range(len(wire.events))]


async def test_a_background_turn_is_delivered_by_its_worker(ports: Ports) -> None:
    slack = Inbox("slack")
    jobs = KeptJobs()
    hosted = host(echo, ports.options(slack), jobs=jobs)
    await link(hosted.app, "slack", "U1")
    response = await create(hosted.app, background=True, response_target="slack")
    assert slack.got == []
    (job,) = jobs.started
    await hosted.jobs[job.kind](job.payload, None)
    assert slack.texts == [ECHO]
    stored = (await get(hosted.app, f"/v1/responses/{response['id']}")).json
    assert stored["output"][0]["content"][0]["text"] == ECHO


async def test_a_hook_may_send_a_reply_anywhere_even_where_callers_may_not(ports: Ports) -> None:
    def elsewhere(request: ChannelRequest, **_: Any) -> ChannelRequest:
        request.response_target = ResponseTarget.channel("slack:everybody")
        return request

    slack = Inbox("slack", links=lambda *_: False)
    options = ports.options(slack, authorize=None)
    app = host(echo, options, run_hook=elsewhere).app
    await create(app)
    assert slack.ids == ["everybody"]


REFUSED = [
    ("nowhere", "response_target"),
    ("nowhere:1", "response_target"),
    (["slack", "nowhere"], "response_target"),
    ({"channels": ["slack", 3]}, "response_target.channels[1]"),
    ({"kind": "everyone"}, "response_target.kind"),
    (12, "response_target"),
]


@pytest.mark.parametrize(("target", "param"), REFUSED)
async def test_a_bad_target_is_a_400_and_nothing_is_noted_or_delivered(
    ports: Ports, target: Any, param: str
) -> None:
    runs: list[str] = []

    async def noting(turn: Turn) -> AsyncIterator[str]:
        runs.append(turn.text)
        yield "x"

    slack = Inbox("slack")
    app = host(noting, ports.options(slack)).app
    wire = await creating(user="ann", response_target=target).run(app)
    assert (wire.status, wire.error_body["param"]) == (400, param)
    assert (runs, slack.got) == ([], [])
    assert (await get(app, "/v1/identities")).json == {"object": "list", "data": []}


async def test_without_a_callback_a_target_of_the_callers_choice_is_refused(ports: Ports) -> None:
    app = host(echo, ports.options(Inbox("slack"), authorize=None)).app
    wire = await creating(response_target="slack").run(app)
    assert (wire.status, wire.error_body["code"]) == (400, "unsupported_parameter")
    assert wire.error_body["param"] == "response_target"


async def test_a_target_that_is_not_the_callers_equals_an_unknown_one(ports: Ports) -> None:
    slack = Inbox("slack", links=lambda caller, native: native == caller.principal.name)
    secret = Inbox("secret", links=lambda *_: False)
    options = ports.options(slack, secret, authorize=own_destinations([slack, secret]))
    app = host(echo, options).app
    for foreign, unknown in [("slack:beta", "slacc:beta"), ("secret:beta", "secrex:beta")]:
        one = await creating(response_target=foreign).run(app)
        other = await creating(response_target=unknown).run(app)
        assert (one.status, other.status) == (400, 400)
        assert one.body == other.body.replace(unknown.encode(), foreign.encode())
    await create(app, response_target="slack:alpha")
    assert slack.ids == ["alpha"]
    for channel in ("slack", "secret", "slacc"):
        wire = await link(app, channel, "beta")
        assert wire.status == 404
        assert wire.body == (await link(app, channel, "nobody")).body
    assert (await get(app, "/v1/identities")).json["data"] == []


async def test_identities_of_another_tenant_are_not_there(ports: Ports) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app
    await link(app, "slack", "U1")
    assert (await get(app, "/v1/identities", key="key-beta")).json["data"] == []
    response = await create(app, key="key-beta", response_target="all_linked")
    assert response["output"][0]["content"][0]["text"] == ECHO
    gone = await request("DELETE", "/v1/identities/slack", key="key-beta").run(app)
    never = await request("DELETE", "/v1/identities/mail", key="key-beta").run(app)
    assert (gone.status, never.status) == (404, 404)
    assert gone.body == never.body.replace(b"mail", b"slack")
    assert [each["native_id"] for each in (await get(app, "/v1/identities")).json["data"]] == ["U1"]
    assert slack.got == []


async def test_users_and_chats_of_a_delegate_are_apart(ports: Ports) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app

    async def sent(user: str, chat: str, target: str) -> str:
        headers = {"x-agent-user-isolation-key": user, "x-agent-chat-isolation-key": chat}
        body = {"input": "hi", "response_target": target}
        wire = await request("POST", "/v1/responses", body, key="key-agency", headers=headers).run(
            app
        )
        text: str = wire.json["output"][0]["content"][0]["text"]
        return text

    headers = {"x-agent-user-isolation-key": "ann", "x-agent-chat-isolation-key": "1"}
    body = {"native_id": "U1"}
    await request("PUT", "/v1/identities/slack", body, key="key-agency", headers=headers).run(app)
    assert await sent("ann", "1", "slack") == "Delivered to slack:U1."
    assert await sent("ann", "2", "slack") == ECHO
    assert await sent("bob", "1", "slack") == ECHO


async def test_an_identity_is_shown_replaced_and_unlinked(ports: Ports) -> None:
    app = host(echo, ports.options(Inbox("slack"), Inbox("mail"))).app
    await link(app, "mail", "ann@example.com")
    await link(app, "slack", "U1")
    wire = await link(app, "slack", "U2", attributes={"a": 1})
    shown = {
        "object": "identity",
        "channel": "slack",
        "native_id": "U2",
        "attributes": {"a": 1},
        "is_active": True,
    }
    assert (wire.status, wire.json) == (200, shown)
    data = (await get(app, "/v1/identities")).json["data"]
    assert [(each["channel"], each["is_active"]) for each in data] == [
        ("mail", False),
        ("slack", True),
    ]
    gone = await request("DELETE", "/v1/identities/slack").run(app)
    assert gone.json == {"object": "identity", "channel": "slack", "deleted": True}
    data = (await get(app, "/v1/identities")).json["data"]
    assert [(each["channel"], each["is_active"]) for each in data] == [("mail", False)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"native_id": ""}, "native_id"),
        ({"native_id": "x" * 513}, "native_id"),
        ({"native_id": 1}, "native_id"),
        ({}, "native_id"),
        ({"native_id": "a", "attributes": {"x": "y" * 3000}}, "attributes"),
        ({"native_id": "a", "attributes": "b"}, "attributes"),
    ],
)
async def test_a_bad_link_is_a_400_and_nothing_is_noted(
    ports: Ports, body: dict[str, Any], param: str
) -> None:
    app = host(echo, ports.options(Inbox("slack"))).app
    wire = await request("PUT", "/v1/identities/slack", body).run(app)
    assert (wire.status, wire.error_body["param"]) == (400, param)
    assert (await get(app, "/v1/identities")).json["data"] == []


@pytest.mark.parametrize("user", ["x" * 600, "a\nb", "\t", ""])
async def test_a_user_that_can_be_no_id_is_not_noted_and_disturbs_nobody(
    ports: Ports, user: str
) -> None:
    app = host(echo, ports.options(Inbox("slack"))).app
    response = await create(app, user=user)
    assert response["output"][0]["content"][0]["text"] == ECHO
    assert (await get(app, "/v1/identities")).json["data"] == []


async def test_turns_at_the_same_time_deliver_each_its_own(ports: Ports) -> None:
    slack = Inbox("slack")
    app = host(echo, ports.options(slack)).app
    await asyncio.gather(
        *[
            creating(input=f"{number}", response_target=f"slack:{number}").run(app)
            for number in range(8)
        ]
    )
    assert {identity.native_id: payload.text for identity, payload in slack.got} == {
        str(number): f"echo: {number}" for number in range(8)
    }
