"""Sessions: a chat goes on where it was, by the head that its turns move, and ends where it is reset."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import pytest

from channel import room
from channel.agent import (
    AgentEvent,
    Finish,
    FunctionCall,
    KeptState,
    SessionReset,
    Turn,
    TurnError,
)
from channel.auth import FixedKeys, Principal
from channel.chat.channel import ChatCompletionsChannel
from channel.commands import HELP, RESET, ChannelCommand, ChannelCommandContext
from channel.contract import ChannelRequest, ChannelSession
from channel.host import AgentHost
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.memory_conversations import InMemoryConversationStore
from channel.memory_idempotency import InMemoryIdempotencyStore
from channel.memory_runs import InMemoryRunStore
from channel.memory_sessions import InMemorySessionStore
from channel.ports import Job, StoreError
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.items import message, text_of
from channel.sessions import Forgotten, Head
from tests.channel.asgi import Wire, request
from tests.channel.instances import HeldJobs
from tests.channel.websocket import Socket


pytestmark = pytest.mark.anyio

KEYS = FixedKeys(
    {
        "key-alpha": Principal("alpha"),
        "key-agency": Principal("agency", is_delegate=True),
        "key-bureau": Principal("bureau", is_delegate=True),
    }
)
ANN = IsolationKeys("agency/ann", "chat")
F = {"type": "function", "name": "f"}
DAY_S = 24 * 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Died(BaseException):
    """The process has ended: nothing catches this."""


class Sessions(InMemorySessionStore):
    """Counts what is asked of it, and fails where a test says so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        self.is_dying = False

    async def head(self, keys: IsolationKeys, session_key: str, /) -> Head:
        self._note("head")
        return await super().head(keys, session_key)

    async def move(
        self, keys: IsolationKeys, session_key: str, response_id: str, /, *, after: Head
    ) -> bool:
        self._note("move")
        return await super().move(keys, session_key, response_id, after=after)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.failing.get(call, 0) > 0:
            self.failing[call] -= 1
            raise Died if self.is_dying else StoreError("The table of secrets is away.")


async def says_ok(_turn: Turn) -> AsyncIterator[AgentEvent]:
    yield "ok"


@dataclass
class Service:
    """An app whose agent notes its turns; `acts` says what it does for a text, in place of `ok`."""

    mode: Any = "auto"
    has_sessions: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    chat_options: dict[str, Any] = field(default_factory=dict)
    acts: dict[str, Callable[[Turn], AsyncIterator[AgentEvent]]] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    jobs: HeldJobs = field(default_factory=HeldJobs)

    def __post_init__(self) -> None:
        self.sessions = Sessions(clock=self.clock)
        self.store = InMemoryResponseStore(clock=self.clock)
        channel = ResponsesChannel(
            store=self.store,
            conversations=InMemoryConversationStore(self.store, clock=self.clock),
            runs=InMemoryRunStore(clock=self.clock),
            idempotency=InMemoryIdempotencyStore(clock=self.clock),
            jobs=self.jobs,
            clock=self.clock,
            keepalive_s=0,
            session_mode=self.mode,
            **self.options,
        )
        self.host = AgentHost(
            self._agent,
            channels=[channel, ChatCompletionsChannel(keepalive_s=0, **self.chat_options)],
            authenticator=KEYS,
            sessions=self.sessions if self.has_sessions else None,
        )

    async def _agent(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        self.turns.append(turn)
        async for event in self.acts.get(turn.text, says_ok)(turn):
            yield event

    def asking(self, text: str, **fields: Any) -> Wire:
        return self.sending(
            "POST", "/v1/responses", {"input": text, **fields.pop("body", {})}, **fields
        )

    def sending(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        user: str | None = "ann",
        chat: str | None = "chat",
        key: str = "key-agency",
        **headers: str,
    ) -> Wire:
        named = {"x-agent-user-isolation-key": user, "x-agent-chat-isolation-key": chat}
        given = {name: value for name, value in named.items() if value is not None}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return request(method, path, body, key=key, headers=given)

    async def send(self, method: str, path: str, body: Any = None, **who: Any) -> Wire:
        return await self.sending(method, path, body, **who).run(self.host.app)

    async def ask(self, text: str, who: dict[str, Any] | None = None, **body: Any) -> Any:
        """Return the response to a text of a user in a chat (default: of Ann in her only one)."""
        reply = await self.asking(text, body=body, **(who or {})).run(self.host.app)
        assert reply.status == 200, reply.body
        return reply.json

    async def work(self, job: Job) -> None:
        await self.host.jobs[job.kind](job.payload, None)

    async def head(self) -> Head:
        return await InMemorySessionStore.head(self.sessions, ANN, "chat")

    @property
    def history(self) -> list[str]:
        """The texts of the history of the last turn."""
        return [text_of(item) for item in self.turns[-1].history if item["type"] == "message"]


# Which chat goes on


@dataclass(frozen=True)
class Case:
    """Two requests, and what the second one goes on with."""

    history: list[str]
    first: dict[str, Any] = field(default_factory=dict)
    second: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    """Fields of the first request."""
    options: dict[str, Any] = field(default_factory=dict)


BOTH = ["one", "ok"]
CASES = {
    "the same chat goes on": Case(BOTH),
    "and so does one without a user": Case(BOTH, {"user": None}, {"user": None}),
    "and any text names one": Case(BOTH, {"chat": "ä#/ ÿ"}, {"chat": "ä#/ ÿ"}),
    "another chat is another": Case([], second={"chat": "other"}),
    "another user's of that name, too": Case([], second={"user": "bob"}),
    "and another tenant's": Case([], second={"key": "key-bureau"}),
    "without a chat, nothing goes on": Case([], {"chat": None}, {"chat": None}),
    "and nothing of a chat": Case([], second={"chat": None}),
    "who is no delegate names none": Case([], {"key": "key-alpha"}, {"key": "key-alpha"}),
    "what is not stored is not gone on with": Case([], body={"store": False}),
    "disabled, nothing goes on": Case([], options={"mode": "disabled"}),
    "and not where the host has no sessions": Case([], options={"has_sessions": False}),
    "required, a chat is enough": Case(BOTH, options={"mode": "required"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_chat_goes_on_where_it_was(case: Case) -> None:
    service = Service(**case.options)
    first = await service.ask("one", case.first, **case.body)

    second = await service.ask("two", case.second)

    assert service.history == case.history
    assert second["previous_response_id"] == (first["id"] if case.history else None)
    assert service.turns[-1].previous_response_id == second["previous_response_id"]


async def test_a_chat_goes_on_for_as_long_as_it_likes_with_what_its_agent_kept() -> None:
    async def keeps(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield KeptState({"after": (turn.state or {}).get("after", 0) + 1})
        yield "ok"

    service = Service(acts={str(number): keeps for number in range(4)})
    made = [await service.ask(str(number)) for number in range(4)]

    assert [turn.state for turn in service.turns] == [None, *[{"after": n} for n in (1, 2, 3)]]
    assert service.history == ["0", "ok", "1", "ok", "2", "ok"]
    assert [each["previous_response_id"] for each in made] == [None, *[m["id"] for m in made[:3]]]
    kept = await service.send("GET", f"/v1/responses/{made[-1]['id']}")
    given = await service.send("GET", f"/v1/responses/{made[-1]['id']}/input_items")
    assert kept.json == made[-1]
    assert [text_of(item) for item in given.json["data"]][::-1] == [*service.history, "3"]


async def test_a_stream_is_told_what_it_goes_on_after() -> None:
    service = Service()
    first = await service.ask("one")

    reply = await service.asking("two", body={"stream": True}).run(service.host.app)

    told = {
        event["response"]["previous_response_id"] for event in reply.events if "response" in event
    }
    assert told == {first["id"]}
    assert await service.head() == reply.events[-1]["response"]["id"]


async def test_an_incomplete_turn_is_gone_on_with() -> None:
    async def cut(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "so f"
        yield Finish("max_output_tokens")

    service = Service(acts={"one": cut})
    await service.ask("one")
    await service.ask("two")

    assert service.history == ["one", "so f"]


async def test_a_previous_response_is_gone_on_with_instead_and_its_turn_is_the_head_then() -> None:
    service = Service()
    one = await service.ask("one")
    await service.ask("two")

    await service.ask("three", previous_response_id=one["id"])
    assert service.history == ["one", "ok"]

    await service.ask("four")
    assert service.history == ["one", "ok", "three", "ok"]


async def test_a_conversation_has_nothing_to_do_with_the_chat() -> None:
    service = Service()
    await service.ask("one")
    head = await service.head()
    service.sessions.calls.clear()
    made = (await service.send("POST", "/v1/conversations", {})).json["id"]

    response = await service.ask("two", conversation=made)

    assert (service.history, response["previous_response_id"]) == ([], None)
    assert (await service.head(), service.sessions.calls) == (head, [])


async def test_what_is_not_stored_goes_on_after_the_head_and_moves_nothing() -> None:
    service = Service()
    one = await service.ask("one")

    aside = await service.ask("two", store=False)
    assert (service.history, aside["previous_response_id"]) == (["one", "ok"], one["id"])

    await service.ask("three")
    assert service.history == ["one", "ok"]


async def test_the_tokens_of_a_request_are_those_that_it_would_have() -> None:
    service = Service()
    body = {"input": "two"}
    alone = (await service.send("POST", "/v1/responses/input_tokens", body)).json
    await service.ask("one")
    service.sessions.calls.clear()

    after = (await service.send("POST", "/v1/responses/input_tokens", body)).json

    assert after["input_tokens"] > alone["input_tokens"]
    assert service.sessions.calls == ["head"]


async def test_a_compaction_has_what_it_names_and_no_more() -> None:
    service = Service()
    await service.ask("one")
    service.sessions.calls.clear()

    reply = await service.send("POST", "/v1/responses/compact", {"model": "m", "input": "two"})

    assert (reply.status, service.history, service.sessions.calls) == (200, ["two"], [])


async def test_a_request_without_a_session_asks_the_store_for_nothing() -> None:
    service = Service()
    for who in ({"chat": None}, {"key": "key-alpha"}):
        one = await service.ask("one", who)
        await service.ask("two", who, previous_response_id=one["id"])
    other = await service.ask("one", {"chat": None}, store=False)

    assert (service.sessions.calls, other["previous_response_id"]) == ([], None)


async def test_a_turn_of_a_chat_is_one_read_and_one_write() -> None:
    service = Service()
    await service.ask("one")
    await service.ask("two")
    await service.ask("three", store=False)

    assert service.sessions.calls == ["head", "move"] * 2 + ["head"]


# Heads that are gone


async def test_after_a_deleted_response_a_chat_starts_afresh_and_goes_on_from_there() -> None:
    service = Service()
    one = await service.ask("one")
    await service.send("DELETE", f"/v1/responses/{one['id']}")

    two = await service.ask("two")
    assert (service.history, two["previous_response_id"]) == ([], None)

    await service.ask("three")
    assert service.history == ["two", "ok"]


async def test_after_an_expired_response_a_chat_starts_afresh() -> None:
    service = Service()
    await service.ask("one")
    service.clock.now += 31 * DAY_S

    await service.ask("two")
    assert service.history == []

    await service.ask("three")
    assert service.history == ["two", "ok"]


async def test_each_turn_renews_its_chat() -> None:
    service = Service()
    for text in ("one", "two", "three"):
        await service.ask(text)
        service.clock.now += 20 * DAY_S

    await service.ask("four")

    assert service.history == ["one", "ok", "two", "ok", "three", "ok"]


async def test_a_turn_that_fails_does_not_become_the_head() -> None:
    async def fails(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "so f"
        raise TurnError("no more", code="server_error")

    service = Service(acts={"two": fails})
    one = await service.ask("one")
    two = await service.ask("two")
    assert (two["status"], two["previous_response_id"]) == ("failed", one["id"])

    await service.ask("three")
    assert service.history == ["one", "ok"]


async def test_what_a_history_cannot_take_is_refused_and_moves_nothing() -> None:
    service = Service()
    await service.ask("one")
    head = await service.head()

    answer = [{"type": "function_call_output", "call_id": "call_1", "output": "42"}]
    reply = await service.send("POST", "/v1/responses", {"input": answer})

    assert (reply.status, await service.head()) == (400, head)


async def test_a_chat_goes_on_with_the_output_of_a_function_that_it_called() -> None:
    async def calls(_: Turn) -> AsyncIterator[AgentEvent]:
        yield FunctionCall("f", "{}", "call_1")

    service = Service(acts={"one": calls})
    await service.ask("one", tools=[F])
    answer = [{"type": "function_call_output", "call_id": "call_1", "output": "42"}]

    reply = await service.send("POST", "/v1/responses", {"input": answer})

    assert reply.status == 200
    assert [item["type"] for item in service.turns[-1].items] == [
        "message",
        "function_call",
        "function_call_output",
    ]


# Turns at the same time


class Gate:
    """What an agent does that waits until it is let go."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, _: Turn) -> AsyncIterator[AgentEvent]:
        yield "so "
        self.has_begun.set()
        await self.may_end.wait()
        yield "far"


async def test_of_two_turns_at_one_head_the_first_to_end_becomes_it_and_the_other_is_a_branch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow = Gate()
    service = Service(acts={"slow": slow})
    one = await service.ask("one")
    late = asyncio.create_task(service.ask("slow"))
    await slow.has_begun.wait()
    quick = await service.ask("quick")
    with caplog.at_level(logging.INFO, "channel"):
        slow.may_end.set()
        branch = await late

    assert {quick["previous_response_id"], branch["previous_response_id"]} == {one["id"]}
    assert await service.head() == quick["id"]
    (record,) = [each for each in caplog.records if each.name == "channel.responses.sessions"]
    assert (record.levelno, record.response_id) == (logging.INFO, branch["id"])  # type: ignore[attr-defined] # an extra
    assert "chat" not in record.getMessage()
    await service.ask("on", previous_response_id=branch["id"])
    assert service.history == ["one", "ok", "slow", "so far"]


async def test_of_two_first_turns_one_becomes_the_head() -> None:
    slow = Gate()
    service = Service(acts={"slow": slow})
    late = asyncio.create_task(service.ask("slow"))
    await slow.has_begun.wait()
    quick = await service.ask("quick")
    slow.may_end.set()
    await late

    assert await service.head() == quick["id"]


async def test_a_turn_that_was_running_does_not_bring_back_what_was_reset() -> None:
    slow = Gate()
    service = Service(acts={"slow": slow})
    await service.ask("one")
    late = asyncio.create_task(service.ask("slow"))
    await slow.has_begun.wait()
    assert await service.host.reset_session(ANN, "chat")
    slow.may_end.set()
    await late

    await service.ask("two")

    assert service.history == []


async def test_a_first_turn_that_was_running_does_not_bring_back_what_was_reset() -> None:
    slow = Gate()
    service = Service(acts={"slow": slow}, options={"commands": (RESET,)})
    late = asyncio.create_task(service.ask("slow"))
    await slow.has_begun.wait()
    await service.ask("one")
    await service.ask("/reset")
    slow.may_end.set()
    await late

    await service.ask("two")

    assert service.history == []


async def test_a_chat_that_was_reset_before_its_first_turn_ended_starts_afresh() -> None:
    slow = Gate()
    service = Service(acts={"slow": slow})
    late = asyncio.create_task(service.ask("slow"))
    await slow.has_begun.wait()
    assert not await service.host.reset_session(ANN, "chat")
    slow.may_end.set()
    await late

    await service.ask("two")
    assert service.history == []
    await service.ask("three")
    assert service.history == ["two", "ok"]


async def test_forks_of_one_head_share_no_object() -> None:
    async def spoils(turn: Turn) -> AsyncIterator[AgentEvent]:
        for item in (*turn.history, *turn.input):
            item.clear()
        if turn.state is not None:
            dict(turn.state).clear()
        yield KeptState({"n": [1]})
        yield "ok"

    service = Service(acts={"spoil": spoils})
    one = await service.ask("one")
    await service.ask("spoil")
    await service.ask("two", previous_response_id=one["id"])

    assert service.history == ["one", "ok"]


# Resetting from outside


async def test_a_chat_that_is_reset_starts_afresh_and_its_past_can_still_be_read() -> None:
    service = Service()
    one = await service.ask("one")
    assert await service.host.reset_session(ANN, "chat")

    two = await service.ask("two")
    assert (service.history, two["previous_response_id"]) == ([], None)
    old = await service.send("GET", f"/v1/responses/{one['id']}")
    assert old.json == one
    await service.ask("aside", previous_response_id=one["id"], store=False)
    assert service.history == ["one", "ok"]


@pytest.mark.parametrize(
    ("keys", "session_key"),
    [
        (ANN, "other"),
        (IsolationKeys("agency/ann", "other"), "chat"),
        (IsolationKeys("agency/bob", "chat"), "chat"),
        (IsolationKeys("agency/ann"), "chat"),
    ],
)
async def test_what_is_another_session_is_not_reset(keys: IsolationKeys, session_key: str) -> None:
    service = Service()
    await service.ask("one")

    assert not await service.host.reset_session(keys, session_key)

    await service.ask("two")
    assert service.history == ["one", "ok"]


async def test_a_host_without_sessions_has_none_to_reset() -> None:
    service = Service(has_sessions=False)
    await service.ask("one")

    assert not await service.host.reset_session(ANN, "chat")
    assert service.host.sessions is None


# Resetting from inside


async def resets(turn: Turn) -> AsyncIterator[AgentEvent]:
    yield KeptState({"old": True})
    yield SessionReset()
    yield "forgotten"
    yield KeptState({"late": True})


async def keeps(_: Turn) -> AsyncIterator[AgentEvent]:
    yield KeptState({"kept": True})
    yield "ok"


ACTS = {"reset": resets, "keep": keeps}


async def test_after_a_reset_a_chat_has_neither_history_nor_state() -> None:
    service = Service(acts=ACTS)
    await service.ask("keep")
    reset = await service.ask("reset")
    assert (service.history, service.turns[-1].state) == (["keep", "ok"], {"kept": True})
    assert reset["output"][0]["content"][0]["text"] == "forgotten"

    two = await service.ask("two")

    assert (service.history, service.turns[-1].state) == ([], None)
    assert two["previous_response_id"] == reset["id"]
    given = await service.send("GET", f"/v1/responses/{two['id']}/input_items")
    assert [text_of(item) for item in given.json["data"]] == ["two"]
    await service.ask("three")
    assert service.history == ["two", "ok"]


class SlowReset(Gate):
    """What an agent does that forgets everything, and takes its time."""

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        yield SessionReset()
        async for event in super().__call__(turn):
            yield event


@pytest.mark.parametrize("background", [False, True])
async def test_a_reset_counts_although_another_turn_has_moved_the_head_meanwhile(
    background: bool,
) -> None:
    slow = SlowReset()
    service = Service(acts={"forget": slow})
    await service.ask("one")
    if background:
        await service.ask("forget", background=True)
        job = service.jobs.held.pop(0)
        late = asyncio.create_task(service.work(job))
    else:
        late = asyncio.create_task(service.ask("forget"))
    await slow.has_begun.wait()
    await service.ask("meanwhile")
    slow.may_end.set()
    await late

    await service.ask("two")
    assert service.history == []
    if background:
        await service.work(job)  # which comes twice, and forgets nothing new
    await service.ask("three")
    assert service.history == ["two", "ok"]


async def test_a_turn_that_fails_forgets_nothing_that_was_said_meanwhile() -> None:
    slow = SlowReset()

    async def fails(turn: Turn) -> AsyncIterator[AgentEvent]:
        async for event in slow(turn):
            yield event
        raise TurnError("no more")

    service = Service(acts={"fail": fails})
    late = asyncio.create_task(service.ask("fail"))
    await slow.has_begun.wait()
    await service.ask("meanwhile")
    slow.may_end.set()
    await late

    await service.ask("two")
    assert service.history == ["meanwhile", "ok"]


@pytest.mark.parametrize("background", [False, True])
async def test_a_command_that_resets_does_not_forget_what_began_after_it(background: bool) -> None:
    has_reset, may_end = asyncio.Event(), asyncio.Event()

    async def handle(context: ChannelCommandContext) -> None:
        await context.reset_session()
        has_reset.set()
        await may_end.wait()

    service = Service(options={"commands": (ChannelCommand("anew", "Start over.", handle),)})
    await service.ask("one")
    if background:
        await service.ask("/anew", background=True)
        late = asyncio.create_task(service.work(service.jobs.held.pop(0)))
    else:
        late = asyncio.create_task(service.ask("/anew"))
    await has_reset.wait()
    await service.ask("two")
    may_end.set()
    await late

    await service.ask("three")

    assert service.history == ["two", "ok"]


async def test_a_command_after_a_named_response_resets_the_chat_that_has_moved_meanwhile() -> None:
    has_begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def handle(context: ChannelCommandContext) -> None:
        has_begun.set()
        await may_go_on.wait()
        await context.reset_session()

    service = Service(options={"commands": (ChannelCommand("anew", "Start over.", handle),)})
    one = await service.ask("one")
    late = asyncio.create_task(service.ask("/anew", previous_response_id=one["id"]))
    await has_begun.wait()
    await service.ask("meanwhile")
    may_go_on.set()
    await late

    await service.ask("two")

    assert service.history == []


@pytest.mark.parametrize("background", [False, True])
async def test_the_command_reset_lets_a_chat_begin_afresh(background: bool) -> None:
    service = Service(options={"commands": (RESET,)})
    one = await service.ask("one")

    reset = await service.ask("/reset", background=background)
    if background:
        await service.work(service.jobs.held.pop(0))

    await service.ask("two")
    assert service.history == []
    await service.ask("three")
    assert service.history == ["two", "ok"]
    await service.ask("aside", previous_response_id=one["id"], store=False)
    assert service.history == ["one", "ok"]
    await service.ask("aside", previous_response_id=reset["id"], store=False)
    assert service.history == []


async def test_a_reset_is_no_event_of_the_stream() -> None:
    service = Service(acts=ACTS)

    one, two = [
        (await service.asking(text, body={"stream": True}).run(service.host.app)).types
        for text in ("reset", "keep")
    ]

    assert one == two


async def test_a_chain_begins_after_the_newest_reset_and_older_turns_keep_their_past() -> None:
    service = Service(acts=ACTS, has_sessions=False)
    ids: dict[str, str] = {}
    previous = None
    for name in ("one", "keep", "reset", "two", "reset", "three"):
        made = await service.ask(name, previous_response_id=previous)
        previous = ids[f"{name} again" if name in ids else name] = made["id"]

    async def seen(after: str) -> tuple[list[str], Any]:
        await service.ask("look", previous_response_id=ids[after], store=False)
        return service.history, service.turns[-1].state

    assert await seen("three") == (["three", "ok"], None)
    assert await seen("reset again") == ([], None)
    assert await seen("two") == (["two", "ok"], None)
    assert await seen("reset") == ([], None)
    assert await seen("keep") == (["one", "ok", "keep", "ok"], {"kept": True})
    given = await service.send("GET", f"/v1/responses/{ids['reset']}/input_items")
    texts = [text_of(item) for item in given.json["data"]][::-1]
    assert texts == ["one", "ok", "keep", "ok", "reset"]


async def test_a_conversation_begins_after_a_reset_and_still_lists_its_items() -> None:
    service = Service(acts=ACTS)
    made = (await service.send("POST", "/v1/conversations", {})).json["id"]
    for text in ("keep", "reset", "two"):
        await service.ask(text, conversation=made)

    await service.ask("three", conversation=made)

    assert (service.history, service.turns[-1].state) == (["two", "ok"], None)
    listed = await service.send("GET", f"/v1/conversations/{made}/items")
    texts = [text_of(item) for item in listed.json["data"]][::-1]
    assert texts == ["keep", "ok", "reset", "forgotten", "two", "ok", "three", "ok"]


@pytest.mark.parametrize("text", ["reset", "call"])
async def test_a_call_from_before_a_reset_cannot_be_answered_after_it(text: str) -> None:
    async def calls(_: Turn) -> AsyncIterator[AgentEvent]:
        yield FunctionCall("f", "{}", "call_1")
        if text == "call":
            yield SessionReset()

    service = Service(acts={**ACTS, "call": calls})
    await service.ask("call", tools=[F])
    if text == "reset":
        answered = [{"type": "function_call_output", "call_id": "call_1", "output": "42"}]
        both = [*answered, {"role": "user", "content": "reset"}]
        assert (await service.send("POST", "/v1/responses", {"input": both})).status == 200

    answer = [{"type": "function_call_output", "call_id": "call_1", "output": "42"}]
    reply = await service.send("POST", "/v1/responses", {"input": answer})
    after = await service.ask("on")

    assert (reply.status, after["status"], service.history) == (400, "completed", [])


async def test_a_turn_that_fails_resets_nothing() -> None:
    async def fails(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "so f"
        yield SessionReset()
        raise TurnError("no more")

    service = Service(acts={"fail": fails})
    await service.ask("one")
    await service.ask("fail")
    await service.ask("two")

    assert service.history == ["one", "ok"]


async def test_a_reset_counts_in_the_background() -> None:
    service = Service(acts=ACTS)
    await service.ask("one")
    await service.ask("reset", background=True)
    await service.work(service.jobs.held.pop(0))

    await service.ask("two", background=True)
    await service.work(service.jobs.held.pop(0))
    assert service.history == []

    await service.ask("three")
    assert service.history == ["two", "ok"]


async def test_a_reset_counts_in_turns_that_only_a_connection_knows() -> None:
    service = Service(acts=ACTS)
    async with Socket(service.host.app) as socket:
        one = await socket.response(input="keep", store=False)
        two = await socket.response(input="reset", store=False, previous_response_id=one["id"])
        three = await socket.response(input="two", store=False, previous_response_id=two["id"])
        assert (service.history, service.turns[-1].state) == ([], None)
        kept = await socket.response(input="three", previous_response_id=three["id"])
        assert service.history == ["two", "ok"]
        await socket.response(input="four", previous_response_id=kept["id"])

    assert service.history == ["two", "ok", "three", "ok"]


async def test_a_reset_of_unstored_turns_is_kept_by_the_stored_one_that_carries_them() -> None:
    service = Service(acts=ACTS)
    async with Socket(service.host.app) as socket:
        one = await socket.response(input="keep", store=False)
        two = await socket.response(input="reset", previous_response_id=one["id"])
        await socket.response(input="two", previous_response_id=two["id"])

    assert (service.history, service.turns[-1].state) == ([], None)


# Modes


async def test_where_a_session_is_required_whatever_is_continued_is_one() -> None:
    service = Service(mode="required")
    one = await service.ask("one", previous_response_id=(await service.ask("zero"))["id"])
    conversation = await service.send("POST", "/v1/conversations", {}, chat=None)

    await service.ask("two", {"chat": None}, conversation=conversation.json["id"])

    assert (one["status"], len(service.turns)) == ("completed", 3)


@pytest.mark.parametrize("who", [{"chat": None}, {"key": "key-alpha"}])
@pytest.mark.parametrize("body", [{}, {"stream": True}, {"background": True}, {"store": False}])
async def test_a_missing_session_is_refused_before_anything_happens(
    who: dict[str, Any], body: dict[str, Any]
) -> None:
    service = Service(mode="required")

    reply = await service.send("POST", "/v1/responses", {"input": "hi", **body}, **who)

    assert (reply.status, reply.error_body["code"]) == (409, "session_required")
    assert (service.turns, service.jobs.held, service.sessions.calls) == ([], [], [])


async def test_a_missing_session_is_told_over_a_websocket() -> None:
    service = Service(mode="required")
    async with Socket(service.host.app) as socket:
        told = await socket.turn()

    assert (told["status"], told["error"]["code"]) == (409, "session_required")


async def test_what_is_counted_needs_no_session_and_what_is_compacted_does() -> None:
    service = Service(mode="required")
    body = {"model": "m", "input": "hi"}

    counted = await service.send("POST", "/v1/responses/input_tokens", body, chat=None)
    compacted = await service.send("POST", "/v1/responses/compact", body, chat=None)

    assert (counted.status, compacted.status) == (200, 409)


def test_another_mode_is_refused() -> None:
    said = "session_mode is 'always'; it must be one of auto, required, disabled"
    wrong: Any = "always"
    for channel in (ResponsesChannel, ChatCompletionsChannel):
        with pytest.raises(ValueError, match=said):
            channel(session_mode=wrong)


HINTS: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    ("auto", {}, None, "chat"),
    ("auto", {"chat": None}, None, None),
    ("auto", {}, "previous", "previous"),
    ("disabled", {}, None, None),
    ("disabled", {}, "previous", None),
    ("required", {}, None, "chat"),
]


@pytest.mark.parametrize(("mode", "who", "previous", "expected"), HINTS)
async def test_a_hook_sees_the_name_of_the_session_and_not_where_it_is(
    mode: str, who: dict[str, Any], previous: str | None, expected: str | None
) -> None:
    seen: list[ChannelRequest] = []

    async def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        seen.append(asked)
        return asked

    service = Service(mode=mode, options={"run_hook": hook})
    one = await service.ask("one", who)
    named = {"previous_response_id": one["id"]} if previous else {}

    await service.ask("two", who, **named)

    asked = seen[-1]
    key = one["id"] if expected == "previous" else expected
    assert (asked.session, asked.session_mode) == (ChannelSession(key) if key else None, mode)


@pytest.mark.parametrize("change", [{"session": None}, {"session_mode": "disabled"}])
async def test_a_hook_that_takes_the_session_away_leaves_the_head_where_it_is(
    change: dict[str, Any],
) -> None:
    async def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        is_aside = text_of(asked.input[-1]) == "aside"
        return replace(asked, **change) if is_aside else asked

    service = Service(options={"run_hook": hook})
    await service.ask("one")
    await service.ask("aside")
    await service.ask("two")

    assert service.history == ["one", "ok"]


@pytest.mark.parametrize(
    ("mode", "chat", "expected"),
    [
        (None, "chat", ChannelSession("chat")),
        ("disabled", "chat", None),
        ("auto", "chat", ChannelSession("chat")),
        ("auto", None, None),
        ("required", "chat", ChannelSession("chat")),
    ],
)
async def test_chat_completions_carry_the_hint_and_go_on_with_nothing(
    mode: str | None, chat: str | None, expected: ChannelSession | None
) -> None:
    seen: list[ChannelSession | None] = []

    async def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        seen.append(asked.session)
        return asked

    options: dict[str, Any] = {"run_hook": hook} | ({"session_mode": mode} if mode else {})
    service = Service(chat_options=options)
    await service.ask("one")
    service.sessions.calls.clear()

    body = {"model": "agent", "messages": [{"role": "user", "content": "two"}]}
    reply = await service.send("POST", "/v1/chat/completions", body, chat=chat)

    assert reply.status == 200
    assert (seen, service.history, service.sessions.calls) == ([expected], [], [])


async def test_chat_completions_may_require_a_chat() -> None:
    service = Service(chat_options={"session_mode": "required"})
    body = {"model": "agent", "messages": [{"role": "user", "content": "two"}]}

    reply = await service.send("POST", "/v1/chat/completions", body, chat=None)

    assert (reply.status, reply.error_body["code"], service.turns) == (409, "session_required", [])


# Background


async def test_a_background_turn_becomes_the_head_when_it_has_ended() -> None:
    service = Service()
    one = await service.ask("one")
    two = await service.ask("two", background=True)
    assert (two["previous_response_id"], await service.head()) == (one["id"], one["id"])

    await service.work(service.jobs.held.pop(0))

    assert (service.history, await service.head()) == (["one", "ok"], two["id"])


async def test_a_job_that_comes_again_moves_nothing_back() -> None:
    service = Service()
    await service.ask("two", background=True)
    job = service.jobs.held.pop(0)
    await service.work(job)
    three = await service.ask("three")

    await service.work(job)

    assert await service.head() == three["id"]


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_job_that_comes_again_brings_back_nothing_that_was_reset(is_first: bool) -> None:
    service = Service(options={"commands": (RESET,)})
    if not is_first:
        await service.ask("one")
    await service.ask("two", background=True)
    job = service.jobs.held.pop(0)
    await service.work(job)
    await service.ask("/reset")

    await service.work(job)

    await service.ask("three")
    assert service.history == []


@pytest.mark.parametrize("failures", [1, 2])
async def test_a_background_turn_whose_head_was_not_moved_is_told_as_it_is_and_moved_later(
    failures: int,
) -> None:
    service = Service()
    two = await service.ask("two", background=True)
    job = service.jobs.held.pop(0)
    service.sessions.failing["move"] = failures

    attempts: list[bool] = []
    for _ in range(failures):
        try:
            await service.work(job)
            attempts.append(True)
        except StoreError:
            attempts.append(False)

    assert attempts == ([True] if failures == 1 else [False, True])
    kept = await service.send("GET", f"/v1/responses/{two['id']}")
    assert (kept.json["status"], await service.head()) == ("completed", two["id"])
    assert len(service.turns) == 1


async def test_a_worker_that_dies_before_the_move_has_it_made_up_for_by_its_next_run() -> None:
    service = Service()
    one = await service.ask("one")
    two = await service.ask("two", background=True)
    job = service.jobs.held.pop(0)
    service.sessions.failing["move"], service.sessions.is_dying = 1, True
    with pytest.raises(Died):
        await service.work(job)
    assert await service.head() == one["id"]

    await service.work(job)

    assert (await service.head(), len(service.turns)) == (two["id"], 2)


async def test_a_background_turn_that_is_cancelled_does_not_become_the_head() -> None:
    service = Service()
    one = await service.ask("one")
    two = await service.ask("two", background=True)
    await service.send("POST", f"/v1/responses/{two['id']}/cancel")
    await service.work(service.jobs.held.pop(0))

    assert await service.head() == one["id"]


async def test_a_job_without_a_session_says_nothing_of_one() -> None:
    service = Service()
    await service.ask("one", {"chat": None}, background=True)
    job = service.jobs.held.pop(0)
    await service.work(job)

    assert "session" not in job.payload
    assert service.sessions.calls == []


# WebSocket mode

NAMED = {"x-agent-user-isolation-key": "ann", "x-agent-chat-isolation-key": "chat"}


async def test_a_connection_of_a_chat_goes_on_where_it_was() -> None:
    service = Service()
    await service.ask("one")
    async with Socket(service.host.app, key="key-agency", headers=NAMED) as socket:
        await socket.response(input="two")
        assert service.history == ["one", "ok"]
        await socket.response(input="three")
        assert service.history == ["one", "ok", "two", "ok"]

    await service.ask("four")
    assert service.history == ["one", "ok", "two", "ok", "three", "ok"]


async def test_what_only_a_connection_knows_follows_the_head_and_moves_it_not() -> None:
    service = Service()
    await service.ask("one")
    async with Socket(service.host.app, key="key-agency", headers=NAMED) as socket:
        two = await socket.response(input="two", store=False)
        await socket.response(input="three", store=False, previous_response_id=two["id"])
        assert service.history == ["one", "ok", "two", "ok"]
        await socket.response(input="four", store=False)

    assert service.history == ["one", "ok"]


async def test_a_connection_whose_head_is_gone_starts_afresh_and_knows_its_own_turns() -> None:
    service = Service()
    one = await service.ask("one")
    await service.send("DELETE", f"/v1/responses/{one['id']}")
    async with Socket(service.host.app, key="key-agency", headers=NAMED) as socket:
        two = await socket.response(input="two", store=False)
        assert service.history == []
        await socket.response(input="three", store=False, previous_response_id=two["id"])

    assert service.history == ["two", "ok"]


# A chat that is too large


@dataclass
class Full(Service):
    """A service whose chat is too large to go on."""

    async def fill(self) -> None:
        size = room.MAX_HISTORY_BYTES // 3
        while (await self.asking("x" * size).run(self.host.app)).status == HTTPStatus.OK:
            pass
        self.turns.clear()


@pytest.fixture
def _small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", 6000)


async def never(_: ChannelCommandContext) -> None:
    raise AssertionError


OTHERS = ChannelCommand("reset", "Start over.", never, is_for=lambda _: False)


@pytest.mark.usefixtures("_small_room")
@pytest.mark.parametrize("body", [{}, {"stream": True}, {"background": True}, {"store": False}])
async def test_a_chat_that_is_too_large_says_what_to_do(body: dict[str, Any]) -> None:
    for commands, cure in (
        ((), "begin another chat."),
        ((OTHERS,), "begin another chat."),
        ((RESET,), "begin another chat, or type /reset."),
    ):
        service = Full(options={"commands": commands})
        await service.fill()
        head = await service.head()

        reply = await service.asking("hello", body=body).run(service.host.app)

        assert (reply.status, reply.error_body["code"]) == (400, "context_length_exceeded")
        said = f"The history of this chat is too large to be continued. Please {cure}"
        assert (reply.error_body["message"], reply.error_body["param"]) == (said, None)
        assert (service.turns, await service.head()) == ([], head)


@pytest.mark.usefixtures("_small_room")
@pytest.mark.parametrize("body", [{}, {"stream": True}, {"background": True}, {"store": False}])
async def test_a_chat_that_is_too_large_can_be_reset(body: dict[str, Any]) -> None:
    service = Full(options={"commands": (RESET,)})
    await service.fill()

    reply = await service.asking("/reset", body=body).run(service.host.app)
    for job in service.jobs.held:
        await service.work(job)

    assert reply.status == HTTPStatus.OK
    await service.ask("one")
    await service.ask("two")
    assert service.history == ["one", "ok"]


@pytest.mark.usefixtures("_small_room")
async def test_a_chat_that_is_too_large_can_be_reset_over_a_connection() -> None:
    service = Full(options={"commands": (RESET,)})
    await service.fill()
    async with Socket(service.host.app, key="key-agency", headers=NAMED) as socket:
        assert (await socket.turn())["error"]["code"] == "context_length_exceeded"
        await socket.response(input="/reset")
        await socket.response(input="one")

    assert service.history == []


@pytest.mark.usefixtures("_small_room")
async def test_a_command_in_a_chat_that_is_too_large_leaves_it_as_it_is() -> None:
    service = Full(options={"commands": (RESET, HELP)})
    await service.fill()
    head = await service.head()

    said = await service.ask("/help")

    assert "/reset" in text_of(said["output"][0])
    assert (said["previous_response_id"], await service.head()) == (None, head)


@pytest.mark.usefixtures("_small_room")
@pytest.mark.parametrize(
    ("text", "commands", "body"),
    [
        ("/reset", (OTHERS,), {}),
        ("/reset", (), {}),
        ("/other", (RESET,), {}),
        ("/reset", (RESET,), {"text": {"format": {"type": "json_object"}}}),
    ],
)
async def test_what_is_no_command_of_the_callers_does_not_lose_its_history(
    text: str, commands: tuple[ChannelCommand, ...], body: dict[str, Any]
) -> None:
    service = Full(options={"commands": commands, "allowed_options": {"text"}})
    await service.fill()

    reply = await service.asking(text, body=body).run(service.host.app)

    assert (reply.status, reply.error_body["code"]) == (400, "context_length_exceeded")
    assert service.turns == []


@pytest.mark.usefixtures("_small_room")
async def test_what_a_hook_makes_a_message_of_does_not_lose_its_history() -> None:
    async def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        if text_of(asked.input[-1]) != "/reset":
            return asked
        return replace(asked, input=[message("user", "reset")])

    service = Full(options={"commands": (RESET,), "run_hook": hook})
    await service.fill()

    reply = await service.asking("/reset").run(service.host.app)

    assert (reply.status, reply.error_body["code"]) == (400, "context_length_exceeded")
    assert service.turns == []


@pytest.mark.usefixtures("_small_room")
async def test_a_named_response_whose_history_is_too_large_is_refused_as_such() -> None:
    service = Full(options={"commands": (RESET,)})
    await service.fill()
    body = {"previous_response_id": await service.head()}

    for text in ("hello", "/reset"):
        reply = await service.asking(text, body=body).run(service.host.app)
        assert (reply.status, reply.error_body["param"]) == (400, "previous_response_id")


# The storage fails


@pytest.mark.parametrize("stream", [False, True])
async def test_where_the_head_cannot_be_read_nothing_runs(stream: bool) -> None:
    service = Service()
    service.sessions.failing["head"] = 1

    reply = await service.asking("one", body={"stream": stream}).run(service.host.app)

    assert (reply.status, reply.headers["x-should-retry"]) == (503, "true")
    assert (b"secrets" in reply.body, service.turns) == (False, [])


async def test_where_the_head_cannot_be_moved_the_turn_is_told_as_failed() -> None:
    service = Service()
    service.sessions.failing["move"] = 1
    one = await service.asking("one").run(service.host.app)
    service.sessions.failing["move"] = 1
    two = await service.asking("two", body={"stream": True}).run(service.host.app)

    assert (one.status, one.headers["x-should-retry"]) == (500, "false")
    assert two.types[-1] == "failed"
    assert b"secrets" not in one.body + two.body
    await service.ask("three")
    assert service.history == []


async def test_a_request_that_comes_again_makes_up_for_a_move_that_failed() -> None:
    service = Service()
    await service.ask("one")
    service.sessions.failing["move"] = 1
    again = {"idempotency_key": "k"}
    failed = await service.asking("two", **again).run(service.host.app)

    replayed = await service.asking("two", **again).run(service.host.app)

    assert (failed.status, replayed.status) == (500, 200)
    assert await service.head() == replayed.json["id"]
    three = await service.ask("three")
    await service.asking("two", **again).run(service.host.app)
    assert await service.head() == three["id"]


async def test_a_first_request_that_comes_again_brings_back_nothing_that_was_reset() -> None:
    service = Service()
    again = {"idempotency_key": "k"}
    await service.asking("one", **again).run(service.host.app)
    await service.host.reset_session(ANN, "chat")
    await service.asking("one", **again).run(service.host.app)

    assert isinstance(await service.head(), Forgotten)


@pytest.mark.parametrize("background", [False, True])
async def test_a_first_request_that_comes_again_makes_up_for_a_move_that_failed(
    background: bool,
) -> None:
    service = Service()
    again: dict[str, Any] = {"idempotency_key": "k", "body": {"background": background}}
    service.sessions.failing["move"] = 2
    await service.asking("one", **again).run(service.host.app)
    if background:
        with pytest.raises(StoreError):
            await service.work(service.jobs.held.pop(0))

    replayed = await service.asking("one", **again).run(service.host.app)
    if not background:  # which has tried once
        assert replayed.status == 503
        replayed = await service.asking("one", **again).run(service.host.app)

    assert (replayed.status, await service.head()) == (200, replayed.json["id"])


@pytest.mark.parametrize("change", [{"session": None}, {"session_mode": "disabled"}])
async def test_a_request_without_its_session_moves_nothing_when_it_comes_again_either(
    change: dict[str, Any],
) -> None:
    async def hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        is_aside = text_of(asked.input[-1]) == "aside"
        return replace(asked, **change) if is_aside else asked

    service = Service(options={"run_hook": hook})
    one = await service.ask("one")
    for _ in range(2):
        await service.ask("aside", {"idempotency_key": "k"})

    assert await service.head() == one["id"]


# The bounded memory


async def test_at_most_so_many_sessions_are_remembered_those_used_last() -> None:
    store = InMemorySessionStore(max_sessions=2)
    for key in ("a", "b"):
        await store.move(ANN, key, f"resp_{key}", after=None)
    await store.head(ANN, "a")

    await store.move(ANN, "c", "resp_c", after=None)

    assert [await store.head(ANN, key) for key in "abc"] == ["resp_a", None, "resp_c"]
