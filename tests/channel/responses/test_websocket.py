"""WebSocket mode at the ASGI interface: an app, and clients with their own `send` and `receive`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from channel.agent import FunctionCall, Turn, TurnError
from channel.host import AgentHost
from channel.http import MAX_BODY_BYTES
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.ports import Branch, StoredTurn, StoreError
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.response import Status
from channel.responses.sockets.endpoint import Limits
from tests.channel.asgi import KEYS, create, get, hosted, request
from tests.channel.websocket import Socket, text_of


pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "name": "look_up", "parameters": {"type": "object"}}


async def echo(turn: Turn) -> AsyncIterator[str]:
    yield f"{turn.text} after {len(turn.history)}"


class Held:
    """An agent whose turns each wait until they are let go, by the text that they were given."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: list[str] = []
        self._doors: dict[str, asyncio.Event] = {}

    async def __call__(self, turn: Turn) -> AsyncIterator[str]:
        door = self._doors[turn.text] = asyncio.Event()
        yield "so far"
        self.begun.put_nowait(turn.text)
        try:
            await door.wait()
        except asyncio.CancelledError:
            self.cancelled.append(turn.text)
            raise
        yield ", so good"

    async def has_begun(self, *texts: str) -> None:
        async with asyncio.timeout(10):
            assert {await self.begun.get() for _ in texts} == {*texts}

    def let_go(self, text: str) -> None:
        self._doors[text].set()


def missing(response_id: str) -> dict[str, Any]:
    """Return what a client reads of a previous response that its connection does not know."""
    return {
        "type": "error",
        "status": 400,
        "error": {
            "message": f"Previous response with id '{response_id}' not found.",
            "type": "invalid_request_error",
            "param": "previous_response_id",
            "code": "previous_response_not_found",
        },
    }


# The upgrade


async def test_a_connection_is_accepted_and_named() -> None:
    async with Socket(hosted(echo)) as socket:
        await socket.response()

    accepted = socket.sent[0]
    assert accepted["type"] == "websocket.accept"
    assert dict(accepted["headers"])[b"x-request-id"].startswith(b"req_")


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_an_upgrade_without_a_good_key_is_a_401(key: str | None) -> None:
    socket = Socket(hosted(echo), key=key).start()
    await socket.ended()
    over_http = await request("POST", "/v1/responses", {"input": "hi"}, key=key).run(hosted(echo))

    start, body = socket.sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert dict(start["headers"])[b"www-authenticate"] == b"Bearer"
    assert dict(start["headers"])[b"x-request-id"].startswith(b"req_")
    assert body["type"] == "websocket.http.response.body"
    assert body["body"] == over_http.body


async def test_where_the_server_has_no_such_reply_the_upgrade_is_closed() -> None:
    socket = Socket(hosted(echo), key=None, extensions=()).start()
    await socket.ended()

    assert socket.sent == [{"type": "websocket.close"}]


async def test_another_path_is_no_websocket() -> None:
    socket = Socket(hosted(echo), path="/v1/models").start()
    await socket.ended()

    assert [message["type"] for message in socket.sent] == ["websocket.close"]


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_plain_request_on_the_path_is_what_it_was(method: str) -> None:
    wire = await request(method, "/v1/responses").run(hosted(echo))

    assert wire.status == 405


async def test_an_upgrade_that_came_as_a_request_is_told_that_there_is_no_websocket() -> None:
    app = hosted(echo)
    upgrade = {"connection": "Upgrade", "upgrade": "WebSocket"}
    wire = await request("GET", "/v1/responses", headers=upgrade).run(app)

    assert (wire.status, wire.headers["upgrade"]) == (426, "websocket")
    assert wire.json["error"]["code"] == "websocket_not_supported"
    unknown = await request("GET", "/v1/responses", headers=upgrade, key=None).run(app)
    assert unknown.status == 401
    async with Socket(app, headers=upgrade) as socket:
        assert await socket.text() == "hi after 0"


async def test_a_delegate_names_its_user_at_the_upgrade() -> None:
    seen: list[IsolationKeys | None] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        seen.append(turn.isolation_keys)
        yield "ok"

    user = {"x-agent-user-isolation-key": "ann"}
    async with Socket(hosted(agent), key="key-agency", headers=user) as socket:
        await socket.response()

    assert seen == [IsolationKeys("agency/ann")]


# Turns


async def test_the_events_of_a_turn_are_those_of_a_stream() -> None:
    async with Socket(hosted(echo)) as socket:
        socket.create(model="m", metadata={"a": "b"})
        events = await socket.until_end()

    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == [*range(9)]
    assert events[-1]["response"]["metadata"] == {"a": "b"}


async def test_a_conversation_goes_on_by_its_ids_and_is_there_over_http() -> None:
    app = hosted(echo)
    async with Socket(app) as socket:
        first = await socket.response(input="one")
        second = await socket.response(input="two", previous_response_id=first["id"])

    third = await create(app, input="three", previous_response_id=second["id"])

    assert [text_of(each) for each in (first, second, third)] == [
        *("one after 0", "two after 2", "three after 4")
    ]
    assert (await get(app, f"/v1/responses/{second['id']}")).json == second


async def test_turns_of_a_lane_are_told_one_after_the_other() -> None:
    held = Held()
    async with Socket(hosted(held)) as socket:
        for text in ("one", "two"):
            socket.create(input=text)
        await held.has_begun("one")
        held.let_go("one")
        first = await socket.until_end()
        await held.has_begun("two")
        held.let_go("two")
        second = await socket.until_end()

    assert first[-1]["type"] == second[-1]["type"] == "response.completed"
    assert first[-1]["response"]["id"] != second[-1]["response"]["id"]
    assert [event["sequence_number"] for event in second] == [*range(len(second))]


async def test_an_agent_that_fails_is_told_in_the_stream_and_the_connection_goes_on() -> None:
    async def agent(turn: Turn) -> AsyncIterator[str]:
        if turn.text == "hi":
            raise LookupError("secret")
        if turn.text == "told":
            raise TurnError("Come back later.", code="rate_limit_exceeded", status=429)
        yield "fine"

    async with Socket(hosted(agent)) as socket:
        socket.create()
        hidden = await socket.until_end()
        told = await socket.turn(input="told")
        assert await socket.text(input="well?") == "fine"

    assert [event["type"] for event in hidden] == [
        *("response.created", "response.in_progress", "response.failed")
    ]
    assert "secret" not in str(hidden)
    assert hidden[-1]["response"]["error"]["code"] == "server_error"
    assert told["response"]["error"] == {
        "code": "rate_limit_exceeded",
        "message": "Come back later.",
    }


async def test_the_reply_begins_without_waiting_for_the_agent() -> None:
    go = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        await go.wait()
        yield "late"

    async with Socket(hosted(agent, first_event_grace_s=900)) as socket:
        socket.create()
        assert (await socket.read())["type"] == "response.created"
        assert (await socket.read())["type"] == "response.in_progress"
        go.set()
        assert (await socket.until_end())[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"input": None}, "missing_required_parameter", "input"),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"background": 1}, "invalid_type", "background"),
        ({"stream_id": "a b"}, "invalid_stream_id", "stream_id"),
        ({"type": "response.cancel"}, "invalid_value", "type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "not_found", "input"),
    ],
)
async def test_a_bad_request_is_told_and_the_connection_goes_on(
    fields: dict[str, Any], code: str, param: str
) -> None:
    async with Socket(hosted(echo)) as socket:
        socket.create(**fields)
        told = await socket.read()
        assert await socket.text() == "hi after 0"

    assert (told["type"], told["error"]["code"], told["error"]["param"]) == ("error", code, param)
    assert told["status"] in (400, 404)


async def test_a_stream_and_its_options_are_implicit() -> None:
    async with Socket(hosted(echo)) as socket:
        ending = await socket.turn(stream=False, stream_options="?")

    assert ending["type"] == "response.completed"


# What only the connection knows


async def test_responses_that_are_not_stored_are_continued_on_their_connection() -> None:
    app = hosted(echo)
    async with Socket(app) as socket:
        first = await socket.response(input="one", store=False)
        second = await socket.response(input="two", store=False, previous_response_id=first["id"])
        third = await socket.response(input="three", store=False, previous_response_id=second["id"])

    assert text_of(third) == "three after 4"
    for response in (first, second, third):
        assert (await get(app, f"/v1/responses/{response['id']}")).status == 404


async def test_a_local_chain_may_follow_a_stored_response() -> None:
    app = hosted(echo)
    stored = await create(app, input="one")
    async with Socket(app) as socket:
        local = await socket.response(store=False, previous_response_id=stored["id"])
        again = await socket.response(store=False, previous_response_id=local["id"])
        assert text_of(again) == "hi after 4"
        await request("DELETE", f"/v1/responses/{stored['id']}").run(app)
        ending = await socket.turn(store=False, previous_response_id=again["id"])

    assert ending == missing(again["id"]), "history is whole or refused"


async def test_a_stored_response_after_local_ones_is_stored_with_all_of_them() -> None:
    app = hosted(echo)
    root = await create(app, input="zero")
    async with Socket(app) as socket:
        first = await socket.response(input="one", store=False, previous_response_id=root["id"])
        second = await socket.response(input="two", store=False, previous_response_id=first["id"])
        stored = await socket.response(input="three", previous_response_id=second["id"])
        assert await socket.turn(previous_response_id=second["id"]) == missing(second["id"])

    items = await get(app, f"/v1/responses/{stored['id']}/input_items", query="order=asc")
    after = await create(app, input="four", previous_response_id=stored["id"])
    await request("DELETE", f"/v1/responses/{root['id']}").run(app)
    still = await create(app, input="five", previous_response_id=stored["id"])

    assert text_of(stored) == "three after 6"
    assert [item["content"][0]["text"] for item in items.json["data"]] == [
        *("zero", "zero after 0", "one", "one after 2", "two", "two after 4", "three")
    ]
    assert stored["previous_response_id"] == second["id"]
    assert (text_of(after), text_of(still)) == ("four after 8", "five after 8")


async def test_an_unknown_and_a_foreign_id_are_the_same_error() -> None:
    app = hosted(echo)
    async with Socket(app) as one, Socket(app) as two, Socket(app, key="key-beta") as other:
        local = await one.response(store=False)
        stored = await one.response()
        unknown = "resp_" + "0" * 52
        told = [
            await two.turn(previous_response_id=local["id"]),
            await other.turn(previous_response_id=local["id"]),
            await other.turn(previous_response_id=stored["id"]),
            await two.turn(previous_response_id=unknown),
        ]
        assert await two.text(previous_response_id=stored["id"]) == "hi after 2"
        assert await other.text() == "hi after 0"

    ids = [local["id"], local["id"], stored["id"], unknown]
    assert told == [missing(each) for each in ids]
    over_http = await request(
        "POST", "/v1/responses", {"input": "hi", "previous_response_id": unknown}
    ).run(app)
    assert over_http.error_body == told[-1]["error"]


async def test_only_the_latest_local_response_of_a_lane_is_known() -> None:
    async with Socket(hosted(echo)) as socket:
        first = await socket.response(store=False)
        second = await socket.response(store=False)
        assert await socket.turn(previous_response_id=first["id"]) == missing(first["id"])
        assert await socket.text(previous_response_id=second["id"]) == "hi after 2"


async def test_a_continuation_that_is_refused_evicts_what_it_continued() -> None:
    async with Socket(hosted(echo)) as socket:
        first = await socket.response(store=False)
        output = {"type": "function_call_output", "call_id": "call_unknown", "output": "?"}
        told = await socket.turn(store=False, previous_response_id=first["id"], input=[output])
        again = await socket.turn(store=False, previous_response_id=first["id"])

    assert (told["type"], told["status"]) == ("error", 400)
    assert told["error"]["param"] == "input"
    assert again == missing(first["id"])


async def test_a_continuation_that_fails_evicts_what_it_continued() -> None:
    async def agent(turn: Turn) -> AsyncIterator[str]:
        if turn.text == "fail":
            raise LookupError
        yield "ok"

    async with Socket(hosted(agent)) as socket:
        first = await socket.response(store=False)
        failed = await socket.turn(input="fail", store=False, previous_response_id=first["id"])
        again = await socket.turn(store=False, previous_response_id=first["id"])

    assert failed["type"] == "response.failed"
    assert again == missing(first["id"])


async def test_a_stored_response_is_found_again_after_a_continuation_that_failed() -> None:
    async with Socket(hosted(echo)) as socket:
        first = await socket.response()
        await socket.turn(previous_response_id=first["id"], temperature=9)

        assert await socket.text(previous_response_id=first["id"]) == "hi after 2"


async def test_a_fork_into_another_lane_leaves_the_first_one_as_it_was() -> None:
    async with Socket(hosted(echo)) as socket:
        first = await socket.response(store=False)
        fork = await socket.response(store=False, previous_response_id=first["id"], stream_id="a")
        failed = await socket.turn(
            store=False, previous_response_id=first["id"], stream_id="b", temperature=9
        )
        again = await socket.text(store=False, previous_response_id=first["id"])
        on = await socket.text(store=False, previous_response_id=fork["id"], stream_id="a")

    assert text_of(fork) == "hi after 2"
    assert failed == {
        **failed,
        "type": "error",
        "stream_id": "b",
    }
    assert (again, on) == ("hi after 2", "hi after 4")


async def test_a_fork_keeps_its_chain_where_the_first_lane_goes_on_meanwhile() -> None:
    held = Held()
    async with Socket(hosted(held)) as socket:
        socket.create(input="one", store=False)
        await held.has_begun("one")
        held.let_go("one")
        first = (await socket.until_end())[-1]["response"]
        socket.create(input="fork", store=False, previous_response_id=first["id"], stream_id="a")
        await held.has_begun("fork")
        socket.create(input="two", store=False, previous_response_id=first["id"])
        await held.has_begun("two")
        held.let_go("two")
        await _ending(socket, None)
        held.let_go("fork")
        fork = (await _ending(socket, "a"))["response"]
        socket.create(input="on", store=False, previous_response_id=fork["id"], stream_id="a")
        await held.has_begun("on")
        held.let_go("on")
        on = await _ending(socket, "a")

    assert on["type"] == "response.completed"


async def _ending(socket: Socket, lane: str | None) -> dict[str, Any]:
    while True:
        message = await socket.read()
        if message.get("stream_id") == lane and message["type"] == "response.completed":
            return message


async def test_calls_are_answered_on_the_connection_that_made_them() -> None:
    async def agent(turn: Turn) -> AsyncIterator[Any]:
        outputs = [item for item in turn.input if item["type"] == "function_call_output"]
        if outputs:
            yield f"found {outputs[0]['output']}"
        else:
            yield FunctionCall("look_up", "{}", "call_1")

    async with Socket(hosted(agent)) as socket:
        called = await socket.response(store=False, tools=[TOOL])
        answer = {"type": "function_call_output", "call_id": "call_1", "output": "it"}
        text = await socket.text(
            store=False, tools=[TOOL], previous_response_id=called["id"], input=[answer]
        )

    assert called["output"][0]["type"] == "function_call"
    assert text == "found it"


async def test_a_local_history_that_grows_too_long_cannot_be_continued() -> None:
    async with Socket(hosted(echo, websocket_limits=Limits(chain_bytes=3000))) as socket:
        first = await socket.response(store=False)
        second = await socket.response(
            input="x" * 3000, store=False, previous_response_id=first["id"]
        )
        ending = await socket.turn(store=False, previous_response_id=second["id"])

    assert ending == missing(second["id"])


async def test_local_histories_of_all_lanes_have_one_limit_and_the_first_is_forgotten() -> None:
    async with Socket(hosted(echo, websocket_limits=Limits(chain_bytes=28_000))) as socket:
        first, second = [
            await socket.response(input=lane * 6000, store=False, stream_id=lane) for lane in "ab"
        ]
        third = await socket.response(input="c" * 1000, store=False, stream_id="c")
        again = await socket.turn(store=False, previous_response_id=first["id"])
        texts = [
            await socket.text(previous_response_id=each["id"], store=False)
            for each in (second, third)
        ]

    assert again == missing(first["id"])
    assert texts == ["hi after 2", "hi after 2"]


async def test_turns_that_local_histories_share_count_once() -> None:
    async with Socket(hosted(echo, websocket_limits=Limits(chain_bytes=16_000))) as socket:
        first = await socket.response(input="a" * 5000, store=False, stream_id="a")
        fork = await socket.response(previous_response_id=first["id"], store=False, stream_id="b")
        texts = [
            await socket.text(previous_response_id=each["id"], stream_id="c")
            for each in (first, fork)
        ]

    assert texts == ["hi after 2", "hi after 4"]


# Warm-ups


@pytest.mark.parametrize("store", [True, False])
async def test_a_warm_up_says_nothing_and_can_be_continued(store: bool) -> None:
    calls: list[str] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        calls.append(turn.text)
        yield f"after {len(turn.history)}"

    async with Socket(hosted(agent)) as socket:
        socket.create(input="context", generate=False, store=store)
        events = await socket.until_end()
        warm = events[-1]["response"]
        text = await socket.text(previous_response_id=warm["id"], store=store)

    assert [event["type"] for event in events] == [
        *("response.created", "response.in_progress", "response.completed")
    ]
    assert (warm["output"], warm["status"], warm["usage"]["total_tokens"]) == ([], "completed", 0)
    assert calls == ["hi"]
    assert text == "after 1"


async def test_a_warm_up_needs_no_input() -> None:
    async with Socket(hosted(echo)) as socket:
        warm = await socket.response(input=[], generate=False, instructions="Be brief.")
        assert await socket.text(previous_response_id=warm["id"]) == "hi after 0"
        assert (await socket.turn(input=[]))["error"]["param"] == "input"


# Lanes


async def test_lanes_run_at_the_same_time_and_each_event_names_its_own() -> None:
    held = Held()
    async with Socket(hosted(held)) as socket:
        socket.create(input="one", stream_id="a")
        socket.create(input="two", stream_id="b")
        socket.create(input="three")
        await held.has_begun("one", "two", "three")
        for text in ("three", "one", "two"):
            held.let_go(text)
        endings = [await _end_of_any(socket) for _ in range(3)]

    assert endings == [None, "a", "b"]


async def _end_of_any(socket: Socket) -> str | None:
    while True:
        message = await socket.read()
        if message["type"] == "response.completed":
            return message.get("stream_id")


async def test_a_thirty_third_lane_is_refused_and_the_others_go_on() -> None:
    async with Socket(hosted(echo)) as socket:
        for number in range(32):
            await socket.response(stream_id=f"lane{number}")
        told = await socket.turn(stream_id="lane32")
        again = await socket.text(stream_id="lane7")

    assert told["error"]["code"] == "websocket_stream_limit_reached"
    assert told["stream_id"] == "lane32"
    assert again == "hi after 0"


async def test_a_seventeenth_turn_waits_for_one_of_sixteen() -> None:
    held = Held()
    async with Socket(hosted(held)) as socket:
        for number in range(17):
            socket.create(input=f"turn{number}", stream_id=f"lane{number}")
        await held.has_begun(*[f"turn{number}" for number in range(16)])
        assert held.begun.empty()
        held.let_go("turn3")
        await held.has_begun("turn16")


# Bad frames


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("no JSON", "invalid_json"),
        (b'{"type":"response.create","input":"hi"}', "invalid_frame"),
        ("[]", "invalid_type"),
        ("x" * (MAX_BODY_BYTES + 1), "request_too_large"),
    ],
    ids=["malformed", "binary", "no object", "too large"],
)
async def test_a_bad_frame_is_refused_and_the_turn_in_flight_is_not_disturbed(
    bad: str | bytes, code: str
) -> None:
    held = Held()
    async with Socket(hosted(held)) as socket:
        socket.create(input="one")
        await held.has_begun("one")
        socket.say(bad)
        socket.create(input="two", stream_id="a")
        await held.has_begun("two")
        held.let_go("one")
        whole = [message for message in await _until(socket, None) if "stream_id" not in message]
        told = await socket.read()
        held.let_go("two")
        await _ending(socket, "a")

    assert whole[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in whole] == [*range(len(whole))]
    assert (told["type"], told["error"]["code"]) == ("error", code)


async def _until(socket: Socket, lane: str | None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    while True:
        messages.append(await socket.read())
        if messages[-1].get("stream_id") == lane and messages[-1]["type"] == "response.completed":
            return messages


async def test_frames_that_come_too_fast_are_refused_and_the_others_are_served() -> None:
    limits = Limits(burst=3, frames_per_s=0.001)
    app = hosted(echo, websocket_limits=limits)
    async with Socket(app) as socket, Socket(app) as other:
        for _ in range(5):
            socket.create()
        endings = [(await socket.until_end())[-1] for _ in range(5)]
        assert await other.text() == "hi after 0"

    assert [ending["type"] for ending in endings] == [*["response.completed"] * 3, "error", "error"]
    assert {ending["status"] for ending in endings[3:]} == {429}
    assert {ending["error"]["code"] for ending in endings[3:]} == {"rate_limit_exceeded"}


async def test_a_hundred_bad_frames_during_a_turn_are_all_refused_after_it() -> None:
    held = Held()
    app = hosted(held, websocket_limits=Limits(refusals=100, burst=200))
    async with Socket(app) as socket:
        socket.create(input="one")
        await held.has_begun("one")
        for _ in range(100):
            socket.say("?")
        socket.create(input="two")
        held.let_go("one")
        first = await socket.until_end()
        refused = [await socket.read() for _ in range(100)]
        await held.has_begun("two")
        held.let_go("two")
        second = await socket.until_end()

    assert first[-1]["type"] == second[-1]["type"] == "response.completed"
    assert {each["type"] for each in refused} == {"error"}


# The end


async def test_a_client_that_goes_away_cuts_its_turns_which_are_stored_as_cancelled() -> None:
    held, store = Held(), InMemoryResponseStore()
    app = hosted(held, store)
    socket = Socket(app).start()
    ids: list[str] = []
    for lane in ("a", "b"):
        socket.create(input=lane, stream_id=lane)
        await held.has_begun(lane)
    while len(ids) < 2:
        message = await socket.read()
        if message["type"] == "response.created":
            ids.append(message["response"]["id"])

    socket.hang_up()
    await socket.ended()

    assert sorted(held.cancelled) == ["a", "b"]
    for response_id in ids:
        kept = (await get(app, f"/v1/responses/{response_id}")).json
        assert (kept["status"], text_of(kept)) == ("cancelled", "so far")


async def test_a_connection_that_breaks_while_it_is_written_to_ends_the_turn() -> None:
    held = Held()
    socket = Socket(hosted(held)).start()
    socket.create(input="one")
    await held.has_begun("one")

    socket.error = ConnectionResetError()
    held.let_go("one")
    socket.hang_up(1006)
    await socket.ended()


async def test_an_hour_is_told_and_closes_the_connection_once_its_turns_have_ended() -> None:
    held = Held()
    app = hosted(held, websocket_limits=Limits(connection_s=0.2, burst=10**6))
    socket = Socket(app).start()
    socket.create(input="one")
    socket.create(input="two")
    await held.has_begun("one")
    told_in_time = await _refused_until_over(socket)
    assert told_in_time["stream_id"] == "other"
    assert not socket.closed.is_set()
    held.let_go("one")
    first = (await _until(socket, None))[-1]
    told = await socket.read()
    await socket.ended()

    assert first["type"] == "response.completed"
    assert (told["status"], told["error"]["code"]) == (400, "websocket_connection_limit_reached")
    assert "stream_id" not in told
    assert socket.sent[-1] == {"type": "websocket.close", "code": 1001}
    assert held.begun.empty()
    assert socket.is_quiet


async def _refused_until_over(socket: Socket) -> dict[str, Any]:
    """Ask for nonsense in a lane of its own until it is refused because the connection is over."""
    while True:
        socket.say('{"type":"?","stream_id":"other"}')
        message = await socket.read()
        if message.get("stream_id") and message["error"]["code"] != "invalid_value":
            return message


async def test_a_connection_that_does_nothing_is_closed_after_its_hour() -> None:
    socket = Socket(hosted(echo, websocket_limits=Limits(connection_s=0.0))).start()
    told = await socket.read()
    await socket.ended()

    assert told["error"]["code"] == "websocket_connection_limit_reached"
    assert socket.sent[-1]["type"] == "websocket.close"


async def test_a_server_that_stops_lets_the_turns_store_what_they_are() -> None:
    held, store = Held(), InMemoryResponseStore()
    app = hosted(held, store)
    socket = Socket(app).start()
    socket.create(input="one")
    await held.has_begun("one")
    response_id = (await socket.read())["response"]["id"]

    assert socket.task is not None
    socket.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await socket.task

    assert held.cancelled == ["one"]
    kept = (await get(app, f"/v1/responses/{response_id}")).json
    assert kept["status"] == "cancelled"


async def test_a_stopping_server_waits_for_the_turns_of_its_connections() -> None:
    stored = asyncio.Event()

    class Slow(InMemoryResponseStore):
        async def save(self, keys: Any, branch: Branch, turn: StoredTurn, /) -> None:
            await asyncio.sleep(0)
            await super().save(keys, branch, turn)
            stored.set()

    held = Held()
    channel = ResponsesChannel(store=Slow())
    app = AgentHost(held, channels=[channel], authenticator=KEYS).app
    async with app.router.lifespan_context(app):
        socket = Socket(app).start()
        socket.create(input="one")
        await held.has_begun("one")
        socket.hang_up(1012)

    assert stored.is_set()


# Storage


class Failing(InMemoryResponseStore):
    """A store that fails where it is told to."""

    def __init__(self, *, reads: bool = False, writes: bool = False) -> None:
        super().__init__()
        self._reads = reads
        self._writes = writes

    async def branch(self, *arguments: Any) -> Branch | None:
        if self._reads:
            raise StoreError("secret")
        return await super().branch(*arguments)

    async def save(self, keys: Any, branch: Branch, turn: StoredTurn, /) -> None:
        if self._writes:
            raise StoreError("secret")
        await super().save(keys, branch, turn)


async def test_a_store_that_cannot_be_read_is_a_503_and_the_connection_goes_on() -> None:
    async with Socket(hosted(echo, Failing(reads=True))) as socket:
        told = [await socket.turn(), await socket.turn()]

    assert [(each["status"], each["error"]["code"]) for each in told] == [
        (503, "service_unavailable")
    ] * 2
    assert "secret" not in str(told)


async def test_a_save_that_fails_is_never_told_as_completed() -> None:
    async with Socket(hosted(echo, Failing(writes=True))) as socket:
        ending = await socket.turn()

    assert ending["type"] == "response.failed"
    assert ending["response"]["status"] == Status.FAILED


class Facts:
    """Telemetry that keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, bool]] = []

    def turn_finished(self, facts: Any, /) -> None:
        self.outcomes.append((facts.outcome, facts.stream))


async def test_each_turn_is_measured_once() -> None:
    facts = Facts()
    async with Socket(hosted(echo, telemetry=facts)) as socket:
        await socket.response()
        await socket.turn(temperature=9)
        await socket.response(store=False)

    assert facts.outcomes == [("completed", True)] * 2
