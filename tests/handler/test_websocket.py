"""API Gateway's WebSocket events, on a table, with a stand-in for the management API and jobs as tasks."""

import asyncio
import base64
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from channel.agent import SessionReset, Turn
from channel.deadline import TimeLeft
from channel.host import AgentHost
from channel.memory_sessions import InMemorySessionStore
from channel.ports import Job, StoreError, random_hex
from channel.responses.background.watching import LEASE_S, RENEWAL_S
from channel.responses.channel import ResponsesChannel
from channel.responses.sockets.connection import ConnectionState
from channel.responses.sockets.endpoint import Limits
from channel.responses.sockets.gateway import CALL_S, FRAME, Gateway
from handler.embedded import make_atomic
from handler.events import DoorSettings, HTTPEvents, UnknownEventError
from handler.websocket import WebSocketEvents, is_websocket_event
from handler.worker import JobWorker
from infra.dynamodb import keys
from infra.dynamodb.client import Table, create_table
from infra.dynamodb.connections import DynamoDBConnectionStore
from infra.dynamodb.store import DynamoDBResponseStore
from infra.push import ManagementPush, make_management_client
from tests.channel.asgi import KEYS, get, request
from tests.channel.responses.test_websocket import Held, echo, missing
from tests.channel.websocket import TERMINAL, text_of
from tests.infra import engines
from tests.infra.conftest import MovableClock
from tests.infra.hooks import Died
from tests.infra.management import ManagementApi, management_api
from tests.infra.turns import noise, own_secret


pytestmark = pytest.mark.anyio


class Context:
    """What is used of Lambda's context."""

    aws_request_id = "8e6b5a2c-invocation"


class Jobs:
    """Jobs as tasks, which may be held back, come twice, or not be taken at all."""

    def __init__(self) -> None:
        self.run: Callable[[dict[str, Any], Any], Any] | None = None
        self.started: list[Job] = []
        self.held: list[Job] = []
        self.is_holding = False
        self.is_failing = False
        self.is_dying = False
        self.copies = 1
        self.deadline: Any = None
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self, job: Job, /) -> None:
        if self.is_failing:
            raise StoreError("secret")
        if self.is_dying:
            raise Died
        self.started.append(job)
        if self.is_holding:
            self.held.append(job)
            return
        for _ in range(self.copies):
            self.begin(job)

    def begin(self, job: Job) -> "asyncio.Task[None]":
        assert self.run is not None
        # As it comes out of Lambda: JSON.
        payload = json.loads(json.dumps(job.payload))
        task = asyncio.create_task(self.run(payload, self.deadline))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            while self.tasks:
                await asyncio.gather(*self.tasks)


class Looks:
    """Lets a job look whether its client is there; it does so only when it is told to."""

    def __init__(self) -> None:
        self._next = asyncio.Event()
        self.waiting: asyncio.Queue[None] = asyncio.Queue()

    async def pause(self, _seconds: float) -> None:
        self.waiting.put_nowait(None)
        await self._next.wait()
        self._next.clear()

    async def look(self) -> None:
        """Let one job look, and wait until it has."""
        async with asyncio.timeout(20):
            await self.waiting.get()
            self._next.set()
            await self.waiting.get()
            self.waiting.put_nowait(None)

    async def look_last(self) -> None:
        """Let one job look, which ends it."""
        async with asyncio.timeout(20):
            await self.waiting.get()
            self._next.set()


class Crowd(DynamoDBConnectionStore):
    """Connections that others change meanwhile, and a change of which may fail."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.meanwhile: list[Callable[[ConnectionState], None]] = []
        self.fails_after: int | None = None
        self.kept: list[str] = []

    async def change(self, connection_id: str, change: Any, /) -> Any:
        if self.fails_after is not None:
            self.fails_after -= 1
            if self.fails_after < 0:
                self.fails_after = None
                raise StoreError("secret")

        async def late(state: ConnectionState) -> Any:
            if self.meanwhile:
                await super(Crowd, self).change(connection_id, other)
            return await change(state)

        async def other(state: ConnectionState) -> None:
            self.meanwhile.pop(0)(state)

        return await super().change(connection_id, late)

    async def put_frame(self, connection_id: str, name: str, frame: Any, /) -> None:
        self.kept.append(name)
        await super().put_frame(connection_id, name, frame)


async def at_once(_seconds: float) -> None:
    await asyncio.sleep(0)


class Door:
    """A deployed app behind a WebSocket API; `connect` opens connections of clients."""

    def __init__(self, agent: Any, client: Any, api: ManagementApi, **options: Any) -> None:
        self.api = api
        self.jobs = Jobs()
        self.clock = options.pop("clock", MovableClock())
        self.looks = Looks()
        self.connections = Crowd(client, engines.TABLE, clock=self.clock, pause=at_once)
        push = ManagementPush(partial(make_management_client, None, api.endpoint))
        channel = ResponsesChannel(
            store=DynamoDBResponseStore(client, engines.TABLE, secret=own_secret()),
            gateway=Gateway(self.connections, push, self.looks.pause),
            jobs=self.jobs,
            clock=self.clock,
            keepalive_s=0,
            **options,
        )
        self.sessions = InMemorySessionStore(clock=self.clock)
        self.host = AgentHost(agent, channels=[channel], authenticator=KEYS, sessions=self.sessions)
        self.jobs.run = self.host.jobs[FRAME]
        assert self.host.sockets is not None
        self.events = WebSocketEvents(self.host.sockets, KEYS, JobWorker(self.host.jobs, 5.0))
        self._read: dict[str, asyncio.Queue[dict[str, Any]]] = defaultdict(asyncio.Queue)
        loop = asyncio.get_running_loop()

        def note(connection_id: str, data: bytes) -> None:
            message = json.loads(data)
            loop.call_soon_threadsafe(self._read[connection_id].put_nowait, message)

        api.on_post = note

    async def invoke(self, kind: str, connection_id: str, **fields: Any) -> dict[str, Any]:
        event = {
            "requestContext": {
                "routeKey": "$default" if kind == "MESSAGE" else f"${kind.lower()}",
                "eventType": kind,
                "connectionId": connection_id,
                "domainName": "abc.execute-api.eu-west-1.amazonaws.com",
                "stage": "responses",
            },
            "isBase64Encoded": False,
            **fields,
        }
        assert is_websocket_event(event)
        answer: dict[str, Any] = await self.events(event, Context())
        return answer

    async def connect(self, key: str = "key-alpha", **named: str) -> "Client":
        client = Client(self, f"{random_hex(8)}=")
        headers = {"Authorization": f"Bearer {key}", "Host": "abc"}
        headers |= {name.replace("_", "-"): value for name, value in named.items()}
        answer = await self.invoke("CONNECT", client.id, headers=headers)
        assert answer == {"statusCode": 200}
        return client


class Client:
    """One client of a WebSocket API."""

    def __init__(self, door: Door, connection_id: str) -> None:
        self.door = door
        self.id = connection_id

    async def say(self, text: str) -> None:
        assert await self.door.invoke("MESSAGE", self.id, body=text) == {"statusCode": 200}

    async def create(self, **fields: Any) -> None:
        await self.say(json.dumps({"type": "response.create", "input": "hi", **fields}))

    async def leave(self) -> None:
        await self.door.invoke("DISCONNECT", self.id)

    async def read(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            return await self.door._read[self.id].get()

    async def until_end(self, lane: str | None = None) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["type"] not in TERMINAL:
            messages.append(await self.read())
            assert messages[-1].get("stream_id") == lane, messages[-1]
        return messages

    async def turn(self, **fields: Any) -> dict[str, Any]:
        await self.create(**fields)
        return (await self.until_end(fields.get("stream_id")))[-1]

    async def response(self, **fields: Any) -> dict[str, Any]:
        ending = await self.turn(**fields)
        assert ending["type"] == "response.completed", ending
        response: dict[str, Any] = ending["response"]
        return response

    async def rows(self) -> list[str]:
        table = self.door.connections._table
        items = await table.query(keys.connection_partition(self.id), is_strong=True)
        return [item["sk"]["S"] for item in items]


@pytest.fixture
def api() -> Iterator[ManagementApi]:
    with management_api() as served:
        yield served


@pytest.fixture(scope="module")
def table() -> Iterator[Any]:
    from moto import mock_aws  # noqa: PLC0415 - slow to import

    make_atomic()
    with mock_aws(), engines.connected("eu-west-1", None) as client:
        create_table(client, engines.TABLE)
        yield client


@pytest.fixture
async def door(table: Any, api: ManagementApi) -> AsyncIterator[Door]:
    made = Door(echo, table, api)
    yield made
    await made.jobs.ended()


# Which events


@pytest.mark.parametrize(
    ("event", "is_one"),
    [
        ({"requestContext": {"eventType": "CONNECT", "connectionId": "a"}}, True),
        ({"requestContext": {"eventType": "MESSAGE", "connectionId": "a"}, "body": "{}"}, True),
        ({"requestContext": {"eventType": "DISCONNECT", "connectionId": "a"}}, True),
        ({"requestContext": {"eventType": "OTHER", "connectionId": "a"}}, False),
        ({"requestContext": {"eventType": "MESSAGE"}}, False),
        ({"requestContext": {"eventType": "MESSAGE", "connectionId": 7}}, False),
        ({"requestContext": {"eventType": ["MESSAGE"], "connectionId": "a"}}, False),
        ({"requestContext": {"http": {"method": "GET"}}, "version": "2.0"}, False),
        ({"requestContext": "x"}, False),
        ({"kind": FRAME, "payload": {}}, False),
        ([], False),
        (None, False),
    ],
)
def test_the_events_of_a_websocket_api_are_told_from_others(event: Any, is_one: bool) -> None:
    assert is_websocket_event(event) is is_one


@pytest.mark.parametrize("kind", ["CONNECT", "MESSAGE", "DISCONNECT"])
def test_no_door_for_requests_takes_them(kind: str) -> None:
    context = {
        "routeKey": f"${kind.lower()}",
        "eventType": kind,
        "connectionId": "a",
        "apiId": "abc",
        "stage": "responses",
        "domainName": "abc.execute-api.eu-west-1.amazonaws.com",
        "identity": {"sourceIp": "192.0.2.1"},
        "requestId": "r",
    }
    event = {
        "headers": {"Host": "abc"},
        "multiValueHeaders": {"Host": ["abc"]},
        "requestContext": context,
        "isBase64Encoded": False,
    }

    assert HTTPEvents(DoorSettings(), may_stream=True).read(event, None) is None


async def test_other_events_are_left_to_the_other_worker(door: Door) -> None:
    with pytest.raises(UnknownEventError):
        await door.events({"hello": 1}, Context())


# Opening


async def test_a_connection_is_its_callers(door: Door) -> None:
    client = await door.connect("key-alpha")

    kept = await door.connections.load(client.id)
    assert kept is not None
    assert (kept.caller.principal.name, kept.caller.keys.user_key) == ("alpha", "alpha")


async def test_a_delegate_names_its_user_as_it_connects(door: Door) -> None:
    headers = {
        "Authorization": ["Bearer key-agency"],
        "X-Agent-User-Isolation-Key": ["ann"],
        "X-Agent-Chat-Isolation-Key": ["chat"],
    }
    assert (await door.invoke("CONNECT", "c1", multiValueHeaders=headers))["statusCode"] == 200

    kept = await door.connections.load("c1")
    assert kept is not None
    assert (kept.caller.keys.user_key, kept.caller.keys.chat_key) == ("agency/ann", "chat")
    await door.invoke("DISCONNECT", "c1")


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"headers": None}, 401, "invalid_api_key"),
        ({"headers": {"authorization": "Bearer wrong"}}, 401, "invalid_api_key"),
        (
            {"multiValueHeaders": {"Authorization": ["Bearer key-alpha", "Bearer key-beta"]}},
            400,
            "duplicate_header",
        ),
    ],
)
async def test_a_connection_without_a_good_key_is_refused(
    door: Door, given: dict[str, Any], status: int, code: str
) -> None:
    answer = await door.invoke("CONNECT", "c2", **given)

    assert answer["statusCode"] == status
    assert json.loads(answer["body"])["error"]["code"] == code
    assert await door.connections.load("c2") is None


async def test_a_table_that_fails_is_told_without_a_secret(door: Door, fragile: "Fragile") -> None:
    door.connections._table = Table(fragile, engines.TABLE)
    headers = {"authorization": "Bearer key-alpha"}

    answer = await door.invoke("CONNECT", "c3", headers=headers)

    assert answer["statusCode"] == 503
    assert "secret" not in answer["body"]


# Turns


async def test_a_frame_is_answered_at_once_and_its_events_are_pushed(door: Door) -> None:
    client = await door.connect()
    await client.create(metadata={"a": "b"})
    events = await client.until_end()

    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == [*range(9)]
    assert events[-1]["response"]["metadata"] == {"a": "b"}
    assert [job.kind for job in door.jobs.started] == [FRAME]


async def test_a_conversation_goes_on_by_its_ids_and_is_there_over_http(door: Door) -> None:
    client = await door.connect()
    first = await client.response(input="one")
    second = await client.response(input="two", previous_response_id=first["id"])

    assert text_of(second) == "two after 2"
    assert (await get(door.host.app, f"/v1/responses/{second['id']}")).json == second


async def test_turns_of_a_lane_follow_each_other_across_invocations(
    table: Any, api: ManagementApi
) -> None:
    held = Held()
    door = Door(held, table, api)
    client = await door.connect()
    for text in ("one", "two", "three"):
        await client.create(input=text)
    endings: list[list[dict[str, Any]]] = []
    for text in ("one", "two", "three"):
        await held.has_begun(text)
        assert held.begun.empty()
        held.let_go(text)
        endings.append(await client.until_end())
    await door.jobs.ended()

    assert [ending[-1]["type"] for ending in endings] == ["response.completed"] * 3
    assert len(door.jobs.started) == 3
    assert await client.rows() == [keys.ONLY_ROW], "frames that waited are forgotten"


async def test_lanes_run_at_the_same_time(table: Any, api: ManagementApi) -> None:
    held = Held()
    door = Door(held, table, api)
    client = await door.connect()
    for lane in ("a", "b"):
        await client.create(input=lane, stream_id=lane)
    await held.has_begun("a", "b")
    held.let_go("b")
    held.let_go("a")
    seen = [await client.read() for _ in range(20)]
    await door.jobs.ended()

    assert {message["stream_id"] for message in seen} == {"a", "b"}
    for lane in ("a", "b"):
        numbers = [each["sequence_number"] for each in seen if each["stream_id"] == lane]
        assert numbers == [*range(10)]


async def test_responses_that_are_not_stored_are_continued_across_invocations(door: Door) -> None:
    client = await door.connect()
    first = await client.response(input="one", store=False)
    second = await client.response(input="two", store=False, previous_response_id=first["id"])
    third = await client.response(input="three", previous_response_id=second["id"])
    items = await get(door.host.app, f"/v1/responses/{third['id']}/input_items")

    assert [text_of(each) for each in (first, second, third)] == [
        *("one after 0", "two after 2", "three after 4")
    ]
    assert len(items.json["data"]) == 5
    assert await client.turn(previous_response_id=second["id"]) == missing(second["id"])
    assert (await get(door.host.app, f"/v1/responses/{second['id']}")).status == 404


async def test_a_reset_counts_across_invocations(table: Any, api: ManagementApi) -> None:
    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield f"{turn.text} after {len(turn.history)}"
        if turn.text == "two":
            yield SessionReset()

    client = await Door(agent, table, api).connect()
    texts, previous = [], None
    for text, store in (("one", False), ("two", False), ("three", False), ("four", True)):
        said = await client.response(input=text, store=store, previous_response_id=previous)
        previous = said["id"]
        texts.append(text_of(said))

    assert texts == ["one after 0", "two after 2", "three after 0", "four after 2"]


async def test_a_connection_of_a_chat_goes_on_where_that_was_or_afresh(door: Door) -> None:
    client = await door.connect("key-agency", x_agent_chat_isolation_key="chat")
    one = await client.response(input="one")
    two = await client.response(input="two", store=False)
    three = await client.response(input="three", store=False, previous_response_id=two["id"])
    path = f"/v1/responses/{one['id']}"
    named = {"x-agent-chat-isolation-key": "chat"}
    gone = await request("DELETE", path, key="key-agency", headers=named).run(door.host.app)
    four = await client.response(input="four", store=False)
    five = await client.response(input="five", store=False, previous_response_id=four["id"])

    assert gone.status == 200
    said = [text_of(each) for each in (one, two, three, four, five)]
    assert said == [
        *("one after 0", "two after 2", "three after 4"),
        *("four after 0", "five after 2"),
    ]


async def test_a_foreign_connections_chain_is_unknown(door: Door) -> None:
    one, two, beta = (
        await door.connect(),
        await door.connect(),
        await door.connect("key-beta"),
    )
    local = await one.response(store=False)
    unknown = "resp_" + "0" * 52

    assert await two.turn(previous_response_id=local["id"]) == missing(local["id"])
    assert await beta.turn(previous_response_id=local["id"]) == missing(local["id"])
    assert await two.turn(previous_response_id=unknown) == missing(unknown)
    assert text_of(await one.response(previous_response_id=local["id"])) == "hi after 2"


async def test_a_continuation_that_is_refused_evicts_what_it_continued(door: Door) -> None:
    client = await door.connect()
    first = await client.response(store=False)
    fork = await client.turn(previous_response_id=first["id"], temperature=9, stream_id="a")
    output = {"type": "function_call_output", "call_id": "call_x", "output": "?"}
    told = await client.turn(previous_response_id=first["id"], input=[output])
    again = await client.turn(previous_response_id=first["id"])

    assert (fork["type"], fork["stream_id"]) == ("error", "a")
    assert (told["type"], told["error"]["param"]) == ("error", "input")
    assert again == missing(first["id"])


async def test_a_warm_up_can_be_continued(door: Door) -> None:
    client = await door.connect()
    warm = await client.response(generate=False, store=False)

    assert warm["output"] == []
    assert text_of(await client.response(previous_response_id=warm["id"])) == "hi after 1"


async def test_a_turn_that_runs_out_of_time_is_told(table: Any, api: ManagementApi) -> None:
    held = Held()
    door = Door(held, table, api)
    door.jobs.deadline = TimeLeft(0.2, 1.0).since(asyncio.get_running_loop().time())
    client = await door.connect()
    ending = await client.turn(input="one")
    await door.jobs.ended()

    assert ending["type"] == "response.failed"
    assert "ran out of time" in ending["response"]["error"]["message"]


# Bad input


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"body": "no JSON"}, "invalid_json"),
        ({"body": ""}, "invalid_json"),
        ({"body": None}, "invalid_json"),
        ({"body": "[]"}, "invalid_type"),
        ({"body": "x" * (128 * 1024 + 1)}, "request_too_large"),
        (
            {"body": base64.b64encode(b"{}").decode(), "isBase64Encoded": True},
            "invalid_frame",
        ),
    ],
    ids=["malformed", "empty", "absent", "no object", "too large", "binary"],
)
async def test_a_bad_frame_is_refused_and_the_turn_in_flight_is_not_disturbed(
    table: Any, api: ManagementApi, fields: dict[str, Any], code: str
) -> None:
    held = Held()
    door = Door(held, table, api)
    client = await door.connect()
    await client.create(input="one")
    await held.has_begun("one")
    assert await door.invoke("MESSAGE", client.id, **fields) == {"statusCode": 200}
    held.let_go("one")
    first, told = await client.until_end(), await client.read()
    await client.create(input="two")
    await held.has_begun("two")
    held.let_go("two")
    second = await client.until_end()
    await door.jobs.ended()

    assert first[-1]["type"] == second[-1]["type"] == "response.completed"
    assert (told["type"], told["error"]["code"]) == ("error", code)


async def test_frames_that_come_too_fast_are_refused(table: Any, api: ManagementApi) -> None:
    limits = Limits(burst=2, frames_per_s=0.001)
    door = Door(echo, table, api, websocket_limits=limits)
    client = await door.connect()
    endings = [await client.turn() for _ in range(3)]

    assert [ending["type"] for ending in endings] == [*["response.completed"] * 2, "error"]
    assert (endings[2]["status"], endings[2]["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_an_event_that_cannot_be_carried_is_told_and_its_response_can_be_retrieved(
    table: Any, api: ManagementApi
) -> None:
    async def agent(turn: Turn) -> AsyncIterator[str]:
        for number in range(4):
            yield noise(50_000, number)

    door = Door(agent, table, api)
    client = await door.connect()
    await client.create()
    events = await client.until_end()
    response_id = events[0]["response"]["id"]
    whole = (await get(door.host.app, f"/v1/responses/{response_id}")).json
    await client.create(previous_response_id=response_id)
    assert (await client.until_end())[0]["type"] == "response.created"

    assert [event["type"] for event in events[-5:]] == [
        *["response.output_text.delta"] * 4,
        "error",
    ]
    assert events[-1]["error"]["code"] == "event_too_large"
    assert response_id in events[-1]["error"]["message"]
    assert (whole["status"], len(text_of(whole))) == ("completed", 200_000)
    assert max(len(post) for post in api.posts[client.id]) <= 128 * 1024


# Leaving


async def test_a_client_that_leaves_takes_all_that_was_only_its_connections(door: Door) -> None:
    client = await door.connect()
    await client.response(store=False)
    await door.jobs.ended()
    assert len(await client.rows()) == 2

    await client.leave()

    assert await client.rows() == []


async def test_a_client_that_leaves_in_the_middle_of_a_turn_cuts_it(
    table: Any, api: ManagementApi
) -> None:
    held = Held()
    door = Door(held, table, api)
    client = await door.connect()
    await client.create(input="one")
    await held.has_begun("one")
    response_id = (await client.read())["response"]["id"]

    await door.looks.look()
    await client.leave()
    await door.looks.look_last()
    await door.jobs.ended()

    assert held.cancelled == ["one"]
    kept = (await get(door.host.app, f"/v1/responses/{response_id}")).json
    assert (kept["status"], text_of(kept)) == ("cancelled", "so far")
    assert await client.rows() == []


async def test_a_client_that_is_found_to_be_gone_cuts_the_turn(
    table: Any, api: ManagementApi
) -> None:
    async def agent(turn: Turn) -> AsyncIterator[str]:
        while True:
            yield "word "
            await asyncio.sleep(0)

    door = Door(agent, table, api)
    client = await door.connect()
    await client.create()
    response_id = (await client.read())["response"]["id"]

    api.gone.add(client.id)
    await door.jobs.ended()

    kept = (await get(door.host.app, f"/v1/responses/{response_id}")).json
    assert kept["status"] == "cancelled"
    assert await client.rows() == [], "nobody else will say that it was closed"


async def test_a_frame_of_a_connection_that_is_not_known_closes_it(
    door: Door, api: ManagementApi
) -> None:
    await Client(door, "nobody").create()

    assert (api.closed, api.posts, door.jobs.started) == (["nobody"], {}, [])


async def test_a_connection_ends_after_an_hour(table: Any, api: ManagementApi) -> None:
    clock, held = MovableClock(), Held()
    door = Door(held, table, api, clock=clock)
    client = await door.connect()
    clock.now += 3599
    await client.create(input="one")
    await client.create(input="two")
    await held.has_begun("one")
    clock.now += 1
    await client.create(input="three")
    assert api.closed == []
    held.let_go("one")
    first = (await client.until_end())[-1]
    told = [await client.read(), await client.read()]
    await door.jobs.ended()

    assert first["type"] == "response.completed"
    assert {each["error"]["code"] for each in told} == {"websocket_connection_limit_reached"}
    assert api.closed == [client.id]
    assert len(door.jobs.started) == 1


async def test_an_idle_connection_whose_hour_is_over_is_told_at_its_next_frame(
    table: Any, api: ManagementApi
) -> None:
    clock = MovableClock()
    door = Door(echo, table, api, clock=clock)
    client = await door.connect()
    clock.now += 3600
    told = await client.turn()

    assert told["error"]["code"] == "websocket_connection_limit_reached"
    assert (api.closed, door.jobs.started) == ([client.id], [])


# Jobs that come twice, late, or never


async def test_a_job_that_comes_twice_runs_the_turn_once(table: Any, api: ManagementApi) -> None:
    calls: list[str] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        calls.append(turn.text)
        yield "ok"

    door = Door(agent, table, api)
    door.jobs.copies = 3
    client = await door.connect()
    await client.response()
    await door.jobs.ended()
    for job in door.jobs.started:
        await door.jobs.begin(job)

    assert calls == ["hi"]


async def test_a_job_that_cannot_be_started_is_told_and_the_lane_goes_on(
    table: Any, api: ManagementApi
) -> None:
    door = Door(echo, table, api)
    client = await door.connect()
    door.jobs.is_failing = True
    told = await client.turn()
    door.jobs.is_failing = False

    assert (told["status"], told["error"]["code"]) == (503, "service_unavailable")
    assert "secret" not in str(told)
    assert text_of(await client.response()) == "hi after 0"
    await door.jobs.ended()


async def test_a_turn_whose_server_is_gone_is_told_and_not_run_again(
    table: Any, api: ManagementApi
) -> None:
    clock, held = MovableClock(), Held()
    door = Door(held, table, api, clock=clock)
    client = await door.connect()
    await client.create(input="one")
    await held.has_begun("one")
    (task,) = door.jobs.tasks
    for _ in range(5):  # up to where it waits
        await client.read()
    door.jobs.tasks.discard(task)  # it does nothing more, as if its process had ended
    clock.now += LEASE_S + 1

    await client.create(input="two")
    told = await client.read()
    await held.has_begun("two")
    held.let_go("two")
    second = await client.until_end()
    await door.jobs.ended()

    task.cancel()
    await asyncio.wait({task})

    assert (told["type"], told["status"]) == ("error", 500)
    assert await client.rows() == [keys.ONLY_ROW]
    assert "gone" in told["error"]["message"]
    assert second[-1]["type"] == "response.completed"


async def test_a_lease_is_renewed_while_its_turn_runs(table: Any, api: ManagementApi) -> None:
    clock, held = MovableClock(), Held()
    door = Door(held, table, api, clock=clock)
    client = await door.connect()
    await client.create(input="one")
    await held.has_begun("one")
    for _ in range(5):
        clock.now += RENEWAL_S
        await door.looks.look()
    await client.create(input="two")
    held.let_go("one")
    first = await client.until_end()
    await held.has_begun("two")
    held.let_go("two")
    second = await client.until_end()
    await door.jobs.ended()

    assert first[-1]["type"] == second[-1]["type"] == "response.completed"
    assert len(door.jobs.started) == 2


async def test_a_turn_whose_frame_is_anothers_is_cut(table: Any, api: ManagementApi) -> None:
    clock, held = MovableClock(), Held()
    door = Door(held, table, api, clock=clock)
    client = await door.connect()
    await client.create(input="one")
    await held.has_begun("one")
    clock.now += LEASE_S + 1
    await door.jobs.begin(door.jobs.started[0])  # Lambda tries it again
    await door.looks.look_last()
    await door.jobs.ended()

    assert held.cancelled == ["one"]
    messages = [await client.read() for _ in range(door._read[client.id].qsize())]
    assert [each["type"] for each in messages].count("error") == 1


async def test_a_look_that_fails_is_no_reason_to_cut_a_turn(
    table: Any, api: ManagementApi, fragile: "Fragile"
) -> None:
    held = Held()
    door = Door(held, table, api)
    client = await door.connect()
    await client.create(input="one")
    await held.has_begun("one")
    whole = door.connections._table
    door.connections._table = Table(fragile, engines.TABLE)
    await door.looks.look()
    door.connections._table = whole
    held.let_go("one")
    ending = (await client.until_end())[-1]
    await door.jobs.ended()

    assert ending["type"] == "response.completed"


async def test_a_job_that_is_cancelled_leaves_its_lane_to_the_next(
    table: Any, api: ManagementApi
) -> None:
    held = Held()
    door = Door(held, table, api)
    client = await door.connect()
    await client.create(input="one")
    await client.create(input="two")
    await held.has_begun("one")
    (task,) = door.jobs.tasks
    task.cancel()
    await asyncio.wait({task})
    await held.has_begun("two")
    held.let_go("two")
    await door.jobs.ended()

    assert held.cancelled == ["one"]
    assert len(door.jobs.started) == 2


async def test_a_job_that_was_never_run_is_started_again(table: Any, api: ManagementApi) -> None:
    clock = MovableClock()
    door = Door(echo, table, api, clock=clock)
    client = await door.connect()
    door.jobs.is_holding = True
    await client.create(input="one")
    await client.create(input="two")
    door.jobs.is_holding = False
    clock.now += CALL_S + 1
    await client.create(input="three")
    texts = [text_of((await client.until_end())[-1]["response"]) for _ in range(3)]
    for job in door.jobs.held:
        await door.jobs.begin(job)  # after all
    await door.jobs.ended()

    assert texts == ["one after 0", "two after 0", "three after 0"]
    assert door._read[client.id].empty()


async def test_a_frame_whose_invocation_died_before_its_job_began_is_called_by_the_next(
    table: Any, api: ManagementApi
) -> None:
    clock = MovableClock()
    door = Door(echo, table, api, clock=clock)
    client = await door.connect()
    door.jobs.is_dying = True
    with pytest.raises(Died):
        await client.create(input="one")
    door.jobs.is_dying = False
    clock.now += CALL_S - 1
    await client.create(input="two")
    assert door.jobs.started == []
    clock.now += 1
    await client.create(input="three")
    texts = [text_of((await client.until_end())[-1]["response"]) for _ in range(3)]
    await door.jobs.ended()

    assert CALL_S <= 10
    assert texts == ["one after 0", "two after 0", "three after 0"]
    assert await client.rows() == [keys.ONLY_ROW]


async def test_a_job_that_died_before_it_started_the_next_one_does_so_when_it_comes_again(
    table: Any, api: ManagementApi
) -> None:
    clock = MovableClock()
    door = Door(echo, table, api, clock=clock)
    client = await door.connect()
    door.jobs.is_holding = True
    await client.create(input="one")
    await client.create(input="two")
    door.jobs.is_holding, door.jobs.is_dying = False, True
    assert door.jobs.run is not None
    with pytest.raises(Died):
        await door.jobs.run(door.jobs.held[0].payload, None)
    door.jobs.is_dying = False
    clock.now += 60  # seconds after which Lambda tries it again
    await door.jobs.begin(door.jobs.held[0])
    texts = [text_of((await client.until_end())[-1]["response"]) for _ in range(2)]
    await door.jobs.ended()

    assert texts == ["one after 0", "two after 0"]
    assert door._read[client.id].empty()


async def test_an_end_that_was_told_and_cannot_be_noted_is_noted_by_a_job_of_its_own(
    table: Any, api: ManagementApi
) -> None:
    clock = MovableClock()
    door = Door(echo, table, api, clock=clock)
    client = await door.connect()
    door.jobs.is_holding = True
    await client.create(input="one")
    await client.create(input="two")
    door.connections.fails_after = 1  # its claim, and then
    await door.jobs.begin(door.jobs.held[0])
    clock.now += 30
    door.jobs.is_holding = False
    await door.jobs.begin(door.jobs.held[1])
    texts = [text_of((await client.until_end())[-1]["response"]) for _ in range(2)]
    await door.jobs.begin(door.jobs.held[0])  # twice, all the same
    await door.jobs.ended()

    assert texts == ["one after 0", "two after 0"]
    assert door._read[client.id].empty()
    assert await client.rows() == [keys.ONLY_ROW]


async def test_an_end_that_cannot_be_noted_at_all_is_told_once(
    table: Any, api: ManagementApi, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(echo, table, api)
    client = await door.connect()
    door.jobs.is_holding = True
    await client.create()
    door.connections.fails_after, door.jobs.is_failing = 1, True
    await door.jobs.begin(door.jobs.held[0])
    ending = (await client.until_end())[-1]

    assert ending["type"] == "response.completed"
    assert door._read[client.id].empty()
    assert "not noted later" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("is_local", [True, False])
async def test_an_end_that_is_noted_later_evicts_what_failed_and_holds_nothing_of_a_client(
    table: Any, api: ManagementApi, is_local: bool
) -> None:
    door = Door(echo, table, api)
    client = await door.connect()
    first = await client.response(store=False)
    await door.jobs.ended()
    previous = first["id"] if is_local else "secret"
    door.connections.fails_after = 2  # when it arrives, and when it is claimed
    told = await client.turn(previous_response_id=previous, temperature=9)
    await door.jobs.ended()
    again = await client.turn(previous_response_id=first["id"])
    await door.jobs.ended()

    assert told["type"] == "error"
    assert "secret" not in str(door.jobs.started)
    assert (again == missing(first["id"])) is is_local


# Frames that come at the same time


async def test_a_frame_is_written_once_however_often_its_arrival_is_tried(
    table: Any, api: ManagementApi
) -> None:
    door = Door(echo, table, api)
    client = await door.connect()
    door.connections.meanwhile = [lambda _: None] * 10
    await client.response()
    await door.jobs.ended()

    assert len(door.connections.kept) == 1
    assert await client.rows() == [keys.ONLY_ROW]


async def test_frames_that_come_together_are_all_served_and_each_is_written_once(
    table: Any, api: ManagementApi
) -> None:
    door = Door(echo, table, api)
    client = await door.connect()
    await asyncio.gather(*[client.create(stream_id=f"l{number}") for number in range(12)])
    ends = 0
    while ends < 12:
        ends += (await client.read())["type"] == "response.completed"
    await door.jobs.ended()

    assert len(door.connections.kept) == 12
    assert await client.rows() == [keys.ONLY_ROW]


async def test_a_frame_that_is_refused_at_once_is_not_written(
    table: Any, api: ManagementApi
) -> None:
    door = Door(echo, table, api, websocket_limits=Limits(burst=1, frames_per_s=0.001))
    client = await door.connect()
    await client.response()
    assert (await client.turn())["error"]["code"] == "rate_limit_exceeded"
    await door.jobs.ended()

    assert len(door.connections.kept) == 1


async def test_a_frame_that_is_refused_at_a_later_try_is_dropped(
    table: Any, api: ManagementApi
) -> None:
    def spend(state: ConnectionState) -> None:
        state.tokens = 0.0

    door = Door(echo, table, api)
    client = await door.connect()
    door.connections.meanwhile = [spend]
    told = await client.turn()

    assert (told["status"], told["error"]["code"]) == (429, "rate_limit_exceeded")
    assert len(door.connections.kept) == 1
    assert (await client.rows(), door.jobs.started) == ([keys.ONLY_ROW], [])


async def test_a_frame_whose_arrival_is_given_up_is_dropped(table: Any, api: ManagementApi) -> None:
    door = Door(echo, table, api)
    client = await door.connect()
    door.connections.meanwhile = [lambda _: None] * 20
    told = await client.turn()

    assert (told["status"], told["error"]["code"]) == (503, "service_unavailable")
    assert len(door.connections.kept) == 1
    assert (await client.rows(), door.jobs.started) == ([keys.ONLY_ROW], [])
    assert text_of(await client.response()) == "hi after 0"
    await door.jobs.ended()


async def test_a_frame_whose_connection_closes_meanwhile_is_dropped(
    table: Any, api: ManagementApi
) -> None:
    door = Door(echo, table, api)
    client = await door.connect()
    kept = door.connections.put_frame

    async def leave(*arguments: Any) -> None:
        await client.leave()
        await kept(*arguments)

    door.connections.put_frame = leave  # type: ignore[method-assign]  # as the gateway sees it
    await client.create()

    assert (await client.rows(), door.jobs.started) == ([], [])
    assert api.closed == [client.id]


async def test_a_frame_that_is_lost_is_told(table: Any, api: ManagementApi) -> None:
    door = Door(echo, table, api)
    client = await door.connect()
    door.jobs.is_holding = True
    await client.create()
    (job,) = door.jobs.held
    door.jobs.is_holding = False
    await door.connections.drop_frame(client.id, job.payload["name"])
    await door.jobs.begin(job)
    told = await client.read()

    assert (told["type"], told["status"]) == ("error", 500)
    assert text_of(await client.response()) == "hi after 0"
    await door.jobs.ended()


async def test_a_job_holds_nothing_of_what_a_client_wrote(door: Door) -> None:
    client = await door.connect()
    await client.response(input="secret", stream_id="a")
    await door.jobs.ended()

    assert "secret" not in str(door.jobs.started)
    assert await client.rows() == [keys.ONLY_ROW]


class Fragile:
    """A client of a table that cannot be reached."""

    def __getattr__(self, name: str) -> Any:
        def fail(**_: Any) -> Any:
            from botocore.exceptions import EndpointConnectionError  # noqa: PLC0415 - slow

            raise EndpointConnectionError(endpoint_url="http://secret")

        return fail


@pytest.fixture
def fragile() -> Fragile:
    return Fragile()


async def test_a_table_that_fails_is_told_to_the_client(door: Door, fragile: Fragile) -> None:
    client = await door.connect()
    whole = door.connections._table
    door.connections._table = Table(fragile, engines.TABLE)
    told = await client.turn(stream_id="a")
    door.connections._table = whole

    assert (told["status"], told["stream_id"]) == (503, "a")
    assert text_of(await client.response()) == "hi after 0"
