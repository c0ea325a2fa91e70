"""Compaction: `/responses/compact`, compacted windows as input, `context_management` and `truncation`."""

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest
from starlette.types import ASGIApp

from channel.agent import (
    AgentEvent,
    Finish,
    FunctionCall,
    OutputItem,
    RefusalDelta,
    TextDelta,
    ToolStarted,
    Turn,
    TurnError,
    Usage,
    accepts,
)
from channel.contract import ChannelRequest
from channel.deadline import DEADLINE, TimeLeft
from channel.memory import InMemoryResponseStore
from channel.ports import TurnFacts
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item, message, text_of
from channel.responses.windows.compaction import REQUEST
from channel.sealing import process_sealer
from tests.channel.asgi import Wire, create, creating, get, hosted, request
from tests.channel.instances import Instances


pytestmark = pytest.mark.anyio

UNKNOWN = f"resp_{'0' * 52}"
F = {"type": "function", "name": "f"}
LONG = "long " * 2000
MANAGED: dict[str, Any] = {
    "context_management": [{"type": "compaction", "compact_threshold": 1000}]
}


class Noting:
    """An agent that notes its turns; asked for a summary, it says what it was given."""

    def __init__(self, *events: AgentEvent, **attributes: Any) -> None:
        self.turns: list[Turn] = []
        self.summaries: list[Turn] = []
        self._events = events or ("ok",)
        for name, value in attributes.items():
            setattr(self, name, value)

    async def __call__(self, turn: Turn) -> AsyncIterator[AgentEvent]:
        if turn.text == REQUEST:
            self.summaries.append(turn)
            yield "They said: "
            yield TextDelta(" | ".join(texts(turn.history)))
            yield Usage(100, 10, 5, 1, 3)
            return
        self.turns.append(turn)
        for event in self._events:
            yield event

    @property
    def seen(self) -> tuple[list[str], list[str]]:
        """What the last turn was given: the texts of its history and of its input."""
        return texts(self.turns[-1].history), texts(self.turns[-1].input)


def texts(items: Any) -> list[str]:
    """Return the items as short texts: that of a message, or else the type."""
    return [
        text_of(item)
        .removeprefix("Summary of the conversation before this point:\n\n")
        .strip()[:60]
        if item["type"] == "message"
        else item["type"]
        for item in items
    ]


def compacting(*, key: str = "key-alpha", **fields: Any) -> Wire:
    body = {name: value for name, value in {"model": "m", **fields}.items() if value is not None}
    return request("POST", "/v1/responses/compact", body, key=key)


async def compact(app: ASGIApp, **fields: Any) -> dict[str, Any]:
    wire = await compacting(**fields).run(app)
    assert wire.status == 200, wire.body
    compacted: dict[str, Any] = wire.json
    return compacted


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def says(text: str) -> Item:
    return {"role": "assistant", "content": text}


# POST /responses/compact


async def test_a_conversation_becomes_its_users_messages_and_a_compaction() -> None:
    app = hosted(Noting(), clock=lambda: 1_700_000_000.9)

    compacted = await compact(app, input=[user("a"), says("b"), user("c")])

    body = compacted["id"].removeprefix("resp_")
    item = compacted["output"][-1]
    assert compacted == {
        "id": f"resp_{body}",
        "object": "response.compaction",
        "created_at": 1_700_000_000,
        "output": [
            {
                "id": f"msg_{body}{position:04x}",
                "type": "message",
                "status": "completed",
                "role": "user",
                "content": [{"type": "input_text", "text": text}],
            }
            for position, text in ((0, "a"), (2, "c"))
        ]
        + [item],
        "usage": {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 1},
            "output_tokens": 10,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 110,
        },
    }
    assert item == {
        "id": f"cmp_{body}0003",
        "type": "compaction",
        "encrypted_content": item["encrypted_content"],
    }


async def test_the_agent_is_asked_for_the_summary_and_told_to_call_nothing() -> None:
    agent = Noting(accepted_options=frozenset({"prompt_cache_key"}))

    await compact(
        hosted(agent),
        input=[user("a"), says("b"), user("c")],
        instructions="Be brief.",
        prompt_cache_key="p",
        model="some-model",
    )

    (turn,) = agent.summaries
    assert agent.turns == []
    assert texts(turn.history) == ["a", "b", "c"]
    assert texts(turn.input) == [REQUEST[:60].strip()]
    assert (turn.instructions, turn.model, turn.tool_choice) == ("Be brief.", "some-model", "none")
    assert turn.options == {"prompt_cache_key": "p"}
    assert (turn.response_id, turn.previous_response_id) == ("", None)
    assert turn.isolation_keys is not None
    assert turn.isolation_keys.user_key == "alpha"


async def test_a_chain_is_compacted_by_the_id_of_its_last_response() -> None:
    agent = Noting()
    app = hosted(agent)
    first = await create(app, input="a")
    second = await create(app, input="b", previous_response_id=first["id"])

    compacted = await compact(app, previous_response_id=second["id"])
    more = await compact(app, previous_response_id=second["id"], input="c")

    assert texts(compacted["output"]) == ["a", "b", "compaction"]
    assert texts(more["output"]) == ["a", "b", "c", "compaction"]
    assert [texts(turn.history) for turn in agent.summaries] == [
        ["a", "ok", "b", "ok"],
        ["a", "ok", "b", "ok", "c"],
    ]


async def test_nothing_of_a_compaction_is_stored() -> None:
    app = hosted(Noting())

    compacted = await compact(app, input="a")

    got = await get(app, f"/v1/responses/{compacted['id']}")
    continued = await creating(previous_response_id=compacted["id"]).run(app)
    assert got.status == 404
    assert continued.error_body["code"] == "previous_response_not_found"


async def test_no_more_is_kept_than_the_last_messages() -> None:
    long = [user(f"{number} {'word ' * 8000}") for number in range(5)]

    compacted = await compact(hosted(Noting()), input=[*long, user("last")])

    assert [text[:4] for text in texts(compacted["output"])] == ["4 wo", "last", "comp"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None, "input": "a"}, "model", "missing_required_parameter"),
        ({"model": "", "input": "a"}, "model", "missing_required_parameter"),
        ({"model": 5, "input": "a"}, "model", "invalid_type"),
        ({}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": "a", "instructions": 5}, "instructions", "invalid_type"),
        ({"input": "a", "prompt_cache_key": "p" * 65}, "prompt_cache_key", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input", None),
        (
            {"input": [{**F, "type": "function_call", "call_id": "c", "arguments": ""}]},
            "input",
            None,
        ),
        (
            {"previous_response_id": UNKNOWN},
            "previous_response_id",
            "previous_response_not_found",
        ),
    ],
)
async def test_a_bad_request_names_what_is_wrong(
    fields: dict[str, Any], param: str, code: str | None
) -> None:
    agent = Noting()

    wire = await compacting(**fields).run(hosted(agent))

    assert wire.status == 404 if "item_reference" in str(fields) else wire.status == 400
    assert (wire.error_body["param"], wire.error_body["code"]) == (param, code)
    assert agent.summaries == []


async def test_null_is_no_model() -> None:
    wire = await request("POST", "/v1/responses/compact", {"model": None, "input": "a"}).run(
        hosted(Noting())
    )

    assert (wire.status, wire.error_body["param"]) == (400, "model")


async def test_fields_of_other_operations_say_nothing() -> None:
    compacted = await compact(
        hosted(Noting()), input="a", background=True, stream=True, tools=[F], tool_choice="required"
    )

    assert compacted["object"] == "response.compaction"


async def test_a_foreign_response_is_an_unknown_one() -> None:
    app = hosted(Noting())
    mine = await create(app)

    foreign = await compacting(key="key-beta", previous_response_id=mine["id"]).run(app)
    await request("DELETE", f"/v1/responses/{mine['id']}").run(app)
    unknown = await compacting(key="key-beta", previous_response_id=mine["id"]).run(app)

    assert (foreign.status, foreign.body) == (400, unknown.body)


# Who summarises


async def test_an_agents_own_summary_is_taken() -> None:
    turns: list[Turn] = []

    async def compacts(turn: Turn) -> str:
        turns.append(turn)
        return "In short."

    agent = Noting(compact=compacts)
    app = hosted(agent)

    compacted = await compact(app, input=[user("a"), says("b")], instructions="Be brief.")
    await create(app, input=[*compacted["output"], user("c")])

    assert agent.summaries == []
    assert texts(turns[0].items) == ["a", "b"]
    assert turns[0].instructions == "Be brief."
    assert agent.seen == (["a", "In short."], ["c"])
    assert compacted["usage"]["total_tokens"] == 0


async def test_an_agent_that_returns_text_may_have_its_own_summary() -> None:
    async def answers(turn: Turn) -> str:
        return " | ".join(texts(turn.items))

    answers.compact = lambda turn: "In short."  # type: ignore[attr-defined]  # what a user writes
    app = hosted(answers)

    compacted = await compact(app, input="a")
    response = await create(app, input=[*compacted["output"], user("b")])

    assert texts(response["output"]) == ["a | In short. | b"]


async def test_a_summary_is_the_text_of_all_that_the_agent_says() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        if turn.text != REQUEST:
            yield " | ".join(texts(turn.items))
            return
        yield ToolStarted("t", "search")
        yield FunctionCall("f", "{}")
        yield "One. "
        yield OutputItem({"type": "reasoning", "summary": []})
        yield OutputItem({**message("assistant", "Two. ")})
        yield TextDelta("Three.")
        yield Usage(1, 2)
        yield Usage(3, 4)
        yield Finish("max_output_tokens")

    app = hosted(agent)
    compacted = await compact(app, input="a")
    response = await create(app, input=[*compacted["output"], user("b")])

    assert texts(response["output"]) == ["a | One. Two. Three. | b"]
    assert compacted["usage"]["total_tokens"] == 10


@pytest.mark.parametrize("said", ["", " \n", RefusalDelta("No.")])
async def test_an_agent_that_says_nothing_gives_no_compaction(said: AgentEvent) -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield said

    wire = await compacting(input="a").run(hosted(agent))

    assert (wire.status, wire.error_body["code"]) == (500, "server_error")
    assert wire.error_body["message"] == "The agent gave no summary of the conversation."
    assert wire.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("secret"), 500, None),
        (
            TurnError("Slow down.", code="rate_limit_exceeded", status=429),
            429,
            "rate_limit_exceeded",
        ),
        (RequestError("No.", param="input", code="refused", status=422), 422, "refused"),
    ],
)
async def test_an_agent_that_fails_is_told(error: Exception, status: int, code: str | None) -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield "Well, "
        raise error

    wire = await compacting(input="a").run(hosted(agent))

    assert (wire.status, wire.error_body["code"]) == (status, code)
    assert b"secret" not in wire.body


async def test_an_agent_that_fails_late_is_told_too() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        for _ in range(9):  # the grace is over after one of them
            await asyncio.sleep(0)
        raise TurnError("Too much.", code="rate_limit_exceeded", status=429)
        yield

    wire = await compacting(input="a").run(hosted(agent, first_event_grace_s=0))

    assert (wire.status, wire.error_body["code"]) == (500, "rate_limit_exceeded")
    assert wire.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("grace_s", [0, 9])
async def test_a_client_that_goes_away_ends_the_summary(grace_s: float) -> None:
    waits, ended = asyncio.Event(), asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        try:
            for _ in range(9):  # the grace is over after one of them, if it is none
                await asyncio.sleep(0)
            waits.set()
            await asyncio.Event().wait()
            yield ""
        finally:
            ended.set()

    wire = compacting(input="a")
    task = wire.start(hosted(agent, first_event_grace_s=grace_s))
    await waits.wait()
    wire.hang_up()
    await task

    assert ended.is_set()
    assert wire.sent == []


@pytest.mark.parametrize("grace_s", [0, 9])
async def test_a_summary_that_takes_too_long_is_a_504(grace_s: float) -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        await asyncio.Event().wait()
        yield ""

    wire = compacting(input="a")
    wire.scope[DEADLINE] = TimeLeft(0.02, 5.0).since(monotonic())
    await wire.run(hosted(agent, first_event_grace_s=grace_s))

    assert (wire.status, wire.error_body["code"]) == (504, "timeout")
    assert wire.headers["x-should-retry"] == "false"


async def test_hooks_see_a_compaction() -> None:
    seen: list[Any] = []

    def run_hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        seen.append(asked.operation)
        return asked

    def transform(event: AgentEvent) -> AgentEvent | None:
        return None if event == "They said: " else event

    app = hosted(
        agent := Noting(), run_hook=run_hook, stream_transform_hook=transform, keepalive_s=0
    )
    compacted = await compact(app, input="a")
    await create(app, input=[*compacted["output"], user("b")])

    assert seen == ["message.compact", "message.create"]
    assert agent.seen == (["a", "a"], ["b"])


async def test_a_hook_cannot_make_a_compaction_a_turn() -> None:
    def run_hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        return replace(
            asked, operation="message.create", input=[*asked.input, message("user", "b")]
        )

    agent = Noting()

    compacted = await compact(hosted(agent, run_hook=run_hook), input="a")

    assert texts(compacted["output"]) == ["a", "b", "compaction"]
    assert (len(agent.summaries), agent.turns) == (1, [])


async def test_a_hook_may_refuse_a_compaction() -> None:
    def run_hook(asked: ChannelRequest, **_: Any) -> ChannelRequest:
        raise RequestError("Not today.", status=403)

    agent = Noting()

    wire = await compacting(input="a").run(hosted(agent, run_hook=run_hook))

    assert (wire.status, agent.summaries) == (403, [])


async def test_a_compaction_is_measured_like_any_turn() -> None:
    class Measuring:
        def __init__(self) -> None:
            self.facts: list[TurnFacts] = []

        def turn_finished(self, facts: TurnFacts, /) -> None:
            self.facts.append(facts)

    telemetry = Measuring()

    await compact(hosted(Noting(), telemetry=telemetry), input="a")
    await compacting(input="a").run(hosted(Noting(compact=lambda _: ""), telemetry=telemetry))

    assert [(fact.outcome, fact.input_tokens) for fact in telemetry.facts] == [
        ("completed", 100),
        ("failed", 0),
    ]


# A compacted window as input


async def test_an_agent_sees_the_summary_and_what_came_after_it() -> None:
    agent = Noting()
    app = hosted(agent)
    compacted = await compact(app, input=[user("a"), says("b"), user("c")])

    response = await create(app, input=[*compacted["output"], user("d")])
    await create(app, input="e", previous_response_id=response["id"])

    summary = agent.turns[0].history[-1]
    assert texts(agent.turns[0].history) == ["a", "c", "They said: a | b | c"]
    assert texts(agent.turns[0].input) == ["d"]
    assert (summary["type"], summary["role"]) == ("message", "developer")
    assert agent.seen == (["a", "c", "They said: a | b | c", "d", "ok"], ["e"])
    given = [item for turn in (*agent.turns, *agent.summaries) for item in turn.items]
    assert compacted["output"][-1]["encrypted_content"] not in str(given)


async def test_a_window_is_sent_without_a_history_here() -> None:
    agent = Noting()
    app = hosted(agent)
    compacted = await compact(app, input=[user("a"), says("b")], key="key-alpha")

    await create(app, input=[*compacted["output"], user("c")], store=False)

    assert agent.seen == (["a", "They said: a | b"], ["c"])


async def test_history_before_a_compaction_is_not_seen_any_more() -> None:
    agent = Noting()
    app = hosted(agent)
    first = await create(app, input="a")
    compacted = await compact(app, previous_response_id=first["id"])

    await create(
        app,
        input=[compacted["output"][-1], user("b")],
        previous_response_id=first["id"],
    )

    # One message is kept with it, and the client left that out: what stands there is taken.
    assert agent.seen == (["ok", "They said: a | ok"], ["b"])


async def test_a_compacted_window_is_compacted_again() -> None:
    agent = Noting()
    app = hosted(agent)
    first = await compact(app, input=[user("a"), says("b")])

    second = await compact(app, input=[*first["output"], user("c"), says("d")])
    await create(app, input=[*second["output"], user("e")])

    assert texts(second["output"]) == ["a", "c", "compaction"]
    assert texts(agent.summaries[-1].history) == ["a", "They said: a | b", "c", "d"]
    assert agent.seen == (["a", "c", "They said: a | They said: a | b | c | d"], ["e"])


async def test_items_are_listed_as_they_were_given() -> None:
    app = hosted(Noting())
    compacted = await compact(app, input=[user("a"), says("b")])

    response = await create(app, input=[*compacted["output"], user("c")])
    listed = await get(
        app, f"/v1/responses/{response['id']}/input_items", query="order=asc&limit=100"
    )

    assert listed.json["data"][:2] == compacted["output"]
    assert texts(listed.json["data"]) == ["a", "compaction", "c"]


async def test_a_compaction_may_be_referred_to_by_its_id() -> None:
    agent = Noting()
    app = hosted(agent)
    compacted = await compact(app, input=[user("a"), says("b")])
    first = await create(app, input=[*compacted["output"], user("c")])

    (item,) = [
        item
        for item in (
            await get(app, f"/v1/responses/{first['id']}/input_items", query="limit=100")
        ).json["data"]
        if item["type"] == "compaction"
    ]
    # Its id is that of the compaction, whose turn is stored nowhere.
    wire = await creating(input=[{"type": "item_reference", "id": item["id"]}]).run(app)

    assert wire.status == 404


async def test_calls_must_be_paired_across_a_compaction() -> None:
    agent = Noting(FunctionCall("f", "{}", "c1"))
    app = hosted(agent)
    first = await create(app, input="a", tools=[F])

    wire = await compacting(previous_response_id=first["id"]).run(app)

    assert (wire.status, wire.error_body["param"]) == (400, "input")


async def sealed(app: ASGIApp, **fields: Any) -> str:
    compacted = await compact(app, **{"input": "a", **fields})
    content: str = compacted["output"][-1]["encrypted_content"]
    return content


def damaged(content: str) -> str:
    whole = bytearray(urlsafe_b64decode(content))
    whole[-1] ^= 1
    return urlsafe_b64encode(whole).decode()


@pytest.mark.parametrize("ask", [creating, compacting])
async def test_foreign_damaged_and_invented_compactions_are_refused_alike(
    ask: Callable[..., Wire],
) -> None:
    app, elsewhere = hosted(agent := Noting()), hosted(Noting())
    bad = [
        await sealed(app, key="key-beta"),
        await sealed(elsewhere),
        damaged(await sealed(app)),
        "gAAAAABpM0Yj-",
        "",
        "ü",
    ]
    agent.summaries.clear()

    wires = [
        await ask(input=[user("a"), {"type": "compaction", "encrypted_content": content}]).run(app)
        for content in bad
    ]

    assert {wire.status for wire in wires} == {400}
    assert len({wire.body for wire in wires}) == 1
    assert wires[0].error_body["param"] == "input[1].encrypted_content"
    assert wires[0].error_body["code"] == "invalid_value"
    assert (agent.turns, agent.summaries) == ([], [])


async def test_chats_of_one_user_are_kept_apart() -> None:
    app = hosted(Noting())

    def ask(chat: str, path: str, fields: dict[str, Any]) -> Wire:
        headers = {"x-agent-user-isolation-key": "ann", "x-agent-chat-isolation-key": chat}
        return request("POST", path, fields, key="key-agency", headers=headers)

    made = await ask("1", "/v1/responses/compact", {"model": "m", "input": "a"}).run(app)
    item = made.json["output"][-1]

    same = await ask("1", "/v1/responses", {"input": [item, user("b")]}).run(app)
    other = await ask("2", "/v1/responses", {"input": [item, user("b")]}).run(app)

    assert (same.status, other.status) == (200, 400)


async def test_a_compaction_of_the_agents_own_making_reaches_it_in_a_chain() -> None:
    own = {"type": "compaction", "encrypted_content": "of another model"}
    agent = Noting(OutputItem(own), "ok")
    app = hosted(agent)

    first = await create(app, input="a")
    await create(app, input="b", previous_response_id=first["id"])

    assert agent.seen == (["a", "compaction", "ok"], ["b"])
    assert agent.turns[-1].history[1]["encrypted_content"] == "of another model"


async def test_a_seal_outlives_its_process_where_the_secret_does() -> None:
    sealer, store = process_sealer(), InMemoryResponseStore()
    compacted = await compact(hosted(Noting(), store, sealer=sealer), input=[user("a")])

    agent = Noting()
    await create(hosted(agent, store, sealer=sealer), input=[*compacted["output"], user("b")])

    assert agent.seen == (["a", "They said: a"], ["b"])


# context_management


async def test_a_long_conversation_is_compacted_before_the_turn() -> None:
    agent = Noting()
    app = hosted(agent)
    first = await create(app, input=LONG)

    second = await create(app, input="b", previous_response_id=first["id"], **MANAGED)
    third = await create(app, input="c", previous_response_id=second["id"], **MANAGED)

    item, said = second["output"]
    assert (item["type"], item["id"][:4], said["type"]) == ("compaction", "cmp_", "message")
    summary = f"They said: {LONG[:49].strip()}"
    assert texts(agent.turns[1].history)[0][:40] == summary[:40]
    assert texts(agent.turns[1].input) == ["b"]
    assert [text[:9] for text in texts(agent.turns[2].history)] == ["They said", "b", "ok"]
    assert texts(third["output"]) == ["ok"]
    assert len(agent.summaries) == 1
    assert second["usage"]["input_tokens"] == 100


async def test_a_short_conversation_is_left_as_it_is() -> None:
    agent = Noting()
    app = hosted(agent)
    first = await create(app, input="a")

    second = await create(app, input="b", previous_response_id=first["id"], **MANAGED)

    assert texts(second["output"]) == ["ok"]
    assert agent.summaries == []


async def test_a_stream_begins_with_the_compaction() -> None:
    app = hosted(Noting())
    first = await create(app, input=LONG)

    wire = await creating(stream=True, input="b", previous_response_id=first["id"], **MANAGED).run(
        app
    )

    assert wire.types[:6] == [
        *("created", "in_progress", "output_item.added", "output_item.done"),
        *("output_item.added", "content_part.added"),
    ]
    events = wire.events
    assert events[2]["item"] == events[3]["item"] == events[-1]["response"]["output"][0]


async def test_a_client_that_sends_its_whole_history_is_served_too() -> None:
    agent = Noting()
    app = hosted(agent)
    history = [user("a"), says(LONG), user("b")]

    first = await create(app, input=history, store=False, **MANAGED)
    await create(app, input=[*history, *first["output"], user("c")], store=False, **MANAGED)

    assert texts(agent.turns[0].input) == ["b"]
    assert [text[:9] for text in texts(agent.turns[0].history)] == ["They said"]
    assert [text[:9] for text in texts(agent.turns[1].history)] == ["They said"]
    assert texts(agent.turns[1].input) == ["b", "ok", "c"]
    assert len(agent.summaries) == 1


async def test_in_the_middle_of_a_tool_loop_the_call_stays_with_its_output() -> None:
    agent = Noting(FunctionCall("f", "{}", "c1"))
    app = hosted(agent)
    first = await create(app, input=LONG, tools=[F])

    output = {"type": "function_call_output", "call_id": "c1", "output": "18"}
    agent._events = ("ok",)
    second = await create(
        app, input=[output], tools=[F], previous_response_id=first["id"], **MANAGED
    )
    await create(app, input="b", previous_response_id=second["id"])

    assert [text[:9] for text in texts(agent.turns[1].history)] == ["They said", "function_"]
    assert texts(agent.turns[1].input) == ["function_call_output"]
    assert agent.turns[1].history[-1]["call_id"] == "c1"
    assert [text[:13] for text in texts(agent.turns[2].history)] == [
        *("They said: lo", "function_call", "function_call", "ok"),
    ]


async def test_what_no_summary_can_shorten_is_not_compacted() -> None:
    agent = Noting()
    app = hosted(agent)

    first = await create(app, input=LONG, **MANAGED)
    compacted = await compact(app, previous_response_id=first["id"])
    agent.summaries.clear()
    again = await create(app, input=[*compacted["output"], user(LONG)], **MANAGED)

    assert texts(first["output"]) == texts(again["output"]) == ["ok"]
    assert agent.summaries == []


async def test_the_lowest_threshold_counts() -> None:
    app = hosted(Noting())
    first = await create(app, input=LONG)
    entries = [
        {"type": "compaction", "compact_threshold": threshold} for threshold in (99_999, 1000)
    ]

    second = await create(
        app, input="b", previous_response_id=first["id"], context_management=entries
    )

    assert texts(second["output"]) == ["compaction", "ok"]


@pytest.mark.parametrize(("limit", "compacted"), [(None, False), (2700, True), (20_000, False)])
async def test_without_a_threshold_the_agents_limit_gives_one(
    limit: int | None, compacted: bool
) -> None:
    app = hosted(Noting(max_input_tokens=limit))
    first = await create(app, input=LONG)

    second = await create(
        app,
        input="b",
        previous_response_id=first["id"],
        context_management=[{"type": "compaction"}],
    )

    assert (texts(second["output"]) == ["compaction", "ok"]) is compacted


async def test_a_compaction_that_fails_fails_the_turn() -> None:
    app = hosted(Noting(compact=lambda _: ""))
    first = await create(app, input=LONG)

    wire = await creating(input="b", previous_response_id=first["id"], **MANAGED).run(app)

    assert (wire.status, wire.error_body["code"]) == (500, "server_error")


async def test_an_agent_is_closed_when_its_client_goes_away_after_a_compaction() -> None:
    waits, ended = asyncio.Event(), asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        if turn.text != "b":
            yield "ok"
            return
        try:
            yield "well"
            waits.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    app = hosted(agent)
    first = await create(app, input=LONG)
    wire = creating(stream=True, input="b", previous_response_id=first["id"], **MANAGED)
    task = wire.start(app)
    await waits.wait()
    wire.hang_up()
    await task

    assert ended.is_set()


async def test_the_agents_own_count_decides_on_a_compaction() -> None:
    app = hosted(Noting(count_input_tokens=lambda turn: 5000))
    first = await create(app, input="a")

    second = await create(app, input="b", previous_response_id=first["id"], **MANAGED)

    assert texts(second["output"]) == ["compaction", "ok"]


# Conversations


async def test_a_conversation_goes_on_from_its_compaction() -> None:
    agent = Noting()
    app = hosted(agent)
    conversation = (await request("POST", "/v1/conversations", {}).run(app)).json["id"]
    await create(app, input=LONG, conversation=conversation)

    second = await create(app, input="b", conversation=conversation, **MANAGED)
    await create(app, input="c", conversation=conversation, **MANAGED)
    counted = await request(
        "POST", "/v1/responses/input_tokens", {"conversation": conversation, "input": "d"}
    ).run(app)

    assert texts(second["output"]) == ["compaction", "ok"]
    assert [text[:9] for text in texts(agent.turns[2].history)] == ["They said", "b", "ok"]
    assert len(agent.summaries) == 1
    assert counted.json["input_tokens"] < 100


async def test_a_conversation_takes_no_foreign_compaction() -> None:
    app = hosted(Noting())
    items = [user("a"), {"type": "compaction", "encrypted_content": await sealed(app)}]

    own = await request("POST", "/v1/conversations", {"items": items}).run(app)
    foreign = await request("POST", "/v1/conversations", {"items": items}, key="key-beta").run(app)

    assert (own.status, foreign.status) == (200, 400)
    assert foreign.error_body["param"] == "items[1].encrypted_content"


# truncation


async def chained(app: ASGIApp, *given: str) -> str:
    previous: str | None = None
    for text in given:
        previous = (await create(app, input=text, previous_response_id=previous))["id"]
    assert previous is not None
    return previous


def by_items(turn: Turn) -> int:
    return len(turn.items)


@pytest.mark.parametrize(
    ("limit", "seen"),
    [
        (9, ["a", "ok", "b", "ok"]),
        (5, ["a", "ok", "b", "ok"]),
        (4, ["ok", "b", "ok"]),
        (2, ["ok"]),
        (1, []),
    ],
)
async def test_with_auto_the_oldest_items_go_until_it_fits(limit: int, seen: list[str]) -> None:
    agent = Noting(count_input_tokens=by_items)
    app = hosted(agent)
    previous = await chained(app, "a", "b")
    agent.max_input_tokens = limit  # type: ignore[attr-defined]  # set by the test

    response = await create(app, input="c", previous_response_id=previous, truncation="auto")

    assert agent.seen == (seen, ["c"])
    assert response["truncation"] == "auto"


@pytest.mark.parametrize("fields", [{}, {"truncation": "disabled"}])
@pytest.mark.parametrize("stream", [False, True])
async def test_without_auto_a_long_input_is_refused(fields: dict[str, Any], stream: bool) -> None:
    agent = Noting(count_input_tokens=by_items, max_input_tokens=2)
    app = hosted(agent)
    previous = await chained(app, "a")
    agent.turns.clear()

    wire = await creating(stream=stream, previous_response_id=previous, **fields).run(app)

    assert wire.status == 400
    assert wire.error_body == {
        "message": "The input has 3 tokens, but this agent takes 2 at most. Shorten it, compact it, "
        "or set 'truncation' to 'auto'.",
        "type": "invalid_request_error",
        "param": "input",
        "code": "context_length_exceeded",
    }
    assert agent.turns == []


async def test_an_input_that_is_too_long_alone_is_refused_with_auto_too() -> None:
    app = hosted(Noting(count_input_tokens=by_items, max_input_tokens=1))

    wire = await creating(input=[user("a"), user("b")], truncation="auto").run(app)

    assert (wire.status, wire.error_body["code"]) == (400, "context_length_exceeded")


async def test_an_agent_without_a_limit_gets_everything() -> None:
    agent = Noting(count_input_tokens=lambda _: 10**9)
    app = hosted(agent)

    await create(app, input="c", previous_response_id=await chained(app, "a"), truncation="auto")

    assert agent.seen == (["a", "ok"], ["c"])


async def test_a_limit_holds_by_the_estimate_too() -> None:
    agent = Noting(max_input_tokens=100)
    app = hosted(agent)

    long = await creating(input=LONG).run(app)
    short = await creating(input="a").run(app)

    assert (long.status, short.status) == (400, 200)


async def test_a_compaction_comes_before_the_limit() -> None:
    agent = Noting(compact=lambda _: "In short.", max_input_tokens=2600)
    app = hosted(agent)
    previous = await chained(app, LONG)
    fields: dict[str, Any] = {"input": "word " * 500, "previous_response_id": previous}

    refused = await creating(**fields).run(app)
    managed = await create(app, **fields, **MANAGED)

    assert refused.status == 400
    assert texts(managed["output"]) == ["compaction", "ok"]
    assert agent.seen[0] == ["In short."]


async def test_a_count_is_of_what_the_agent_would_see() -> None:
    app = hosted(Noting(compact=lambda _: "In short.", count_input_tokens=by_items))
    compacted = await compact(app, input=[user("a"), says("b"), user("c")])

    wire = await request(
        "POST", "/v1/responses/input_tokens", {"input": [*compacted["output"], user("d")]}
    ).run(app)
    bad = await request(
        "POST",
        "/v1/responses/input_tokens",
        {"input": [{"type": "compaction", "encrypted_content": "x"}]},
    ).run(app)

    assert wire.json["input_tokens"] == 4
    assert (bad.status, bad.error_body["param"]) == (400, "input[0].encrypted_content")


# Background


async def test_a_background_turn_is_compacted_by_its_worker() -> None:
    agent = Noting()
    both = Instances(agent, sealer=process_sealer())
    first = await create(both.a.app, input=LONG)

    begun = await both.a.begin(input="b", previous_response_id=first["id"], **MANAGED)
    await both.working(both.b)
    second = (await both.a.get(begun["id"])).json
    await create(both.a.app, input="c", previous_response_id=second["id"])

    assert begun["output"] == []
    assert texts(second["output"]) == ["compaction", "ok"]
    assert [text[:9] for text in texts(agent.turns[-1].history)] == ["They said", "b", "ok"]


async def test_a_background_turn_that_is_too_long_has_failed() -> None:
    both = Instances(Noting(max_input_tokens=10))

    begun = await both.a.begin(input=LONG)
    await both.working(both.b)
    response = (await both.a.get(begun["id"])).json

    assert (response["status"], response["error"]["code"]) == ("failed", "context_length_exceeded")


async def test_a_background_turn_with_a_foreign_compaction_is_not_begun() -> None:
    both = Instances(Noting())  # each instance with a secret of its own
    content = await sealed(both.b.app)

    item = {"type": "compaction", "encrypted_content": content}
    reply = await both.a.post("/v1/responses", {"input": [item], "background": True})

    assert (reply.status, both.jobs.held) == (400, [])


# What else reaches the agent


async def test_what_an_agent_accepts_reaches_it_and_what_is_said_of_the_caller_does() -> None:
    agent = accepts("include", "max_tool_calls", "prompt_cache_key", "truncation")(Noting())
    fields = {
        "include": ["reasoning.encrypted_content", "acme.anything"],
        "max_tool_calls": 2,
        "prompt_cache_key": "p",
        "truncation": "auto",
    }

    response = await create(hosted(agent), **fields, safety_identifier="ann")

    assert agent.turns[0].options == fields
    assert agent.turns[0].safety_identifier == "ann"
    assert (response["prompt_cache_key"], response["safety_identifier"]) == ("p", "ann")
    assert response["max_tool_calls"] == 2


async def test_an_agent_that_declares_nothing_gets_no_options() -> None:
    agent = Noting()

    response = await create(
        hosted(agent), include=["reasoning.encrypted_content"], prompt_cache_key="p"
    )

    assert agent.turns[0].options == {}
    assert response["prompt_cache_key"] == "p"


async def test_no_more_of_the_agents_tools_appear_than_asked_for() -> None:
    agent = Noting(*(ToolStarted(str(number), "search") for number in range(3)), "ok")

    response = await create(hosted(agent, shows_tools=True), max_tool_calls=2)

    assert texts(response["output"]) == ["mcp_call", "mcp_call", "ok"]
