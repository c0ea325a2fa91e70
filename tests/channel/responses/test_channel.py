import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from starlette.types import ASGIApp

from channel.agent import (
    AgentEvent,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    Turn,
    Usage,
    accepts,
)
from channel.host import AgentHost
from channel.isolation import IsolationKeys
from channel.memory import InMemoryResponseStore
from channel.ports import Branch, StoredTurn, StoreError
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.items import text_of
from tests.channel.asgi import KEYS, Wire, create, creating, get, hosted, request


pytestmark = pytest.mark.anyio

F = {"type": "function", "name": "f"}
UNKNOWN = f"resp_{'0' * 52}"


async def recalls(turn: Turn) -> AsyncIterator[AgentEvent]:
    """Say everything that was said so far, so that a test can read what the agent was given."""
    yield " | ".join(text_of(item) for item in turn.items if item["type"] == "message")


def said(response: dict[str, Any]) -> str:
    text: str = response["output"][-1]["content"][0]["text"]
    return text


def noting(turns: list[Turn]) -> Any:
    @accepts("temperature", "text")
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        turns.append(turn)
        yield "ok"

    return agent


# Create and what it echoes


async def test_a_response_echoes_the_request() -> None:
    fields: dict[str, Any] = {
        "model": "m",
        "instructions": "Be brief.",
        "tools": [{**F, "description": None, "parameters": None, "strict": None}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "max_tool_calls": 3,
        "max_output_tokens": 16,
        "temperature": 0.5,
        "top_p": 0.5,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "top_logprobs": 2,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": None},
        "truncation": "auto",
        "metadata": {"k": "v"},
        "service_tier": "flex",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "user": "u",
        "store": False,
    }

    response = await create(hosted(recalls), **fields)

    assert {name: response[name] for name in fields} == fields
    assert response["previous_response_id"] is None
    assert response["background"] is False


async def test_a_bare_response_has_every_field_with_its_default() -> None:
    response = await create(hosted(recalls, clock=lambda: 1_700_000_000.9), store=True)

    body = response["id"].removeprefix("resp_")
    assert response == {
        "id": f"resp_{body}",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "completed_at": 1_700_000_000,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "output": [
            {
                "id": f"msg_{body}0001",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}
                ],
            }
        ],
        "model": "agent",
        "previous_response_id": None,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "max_tool_calls": None,
        "max_output_tokens": None,
        "text": {"format": {"type": "text"}},
        "reasoning": None,
        "truncation": "disabled",
        "temperature": 1.0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "store": True,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


@pytest.mark.parametrize("empty", ["text", "reasoning"])
async def test_empty_objects_are_echoed_with_what_a_reader_requires(empty: str) -> None:
    response = await create(hosted(recalls), **{empty: {}})

    assert response["text"] == {"format": {"type": "text"}}
    assert response["reasoning"] in (None, {"effort": None, "summary": None})


@pytest.mark.parametrize("tier", [None, "auto", ""])
async def test_the_service_tier_is_never_empty(tier: str | None) -> None:
    response = await create(hosted(recalls), service_tier=tier)

    assert response["service_tier"] == "default"


async def test_streaming_is_decided_by_the_body_alone() -> None:
    app = hosted(recalls)
    headers = {"accept": "text/event-stream", "authorization": "Bearer key-alpha"}

    plain = await Wire("POST", "/v1/responses", body=b'{"input":"hi"}', headers=headers).run(app)
    streamed = await creating(stream=True).run(app)

    assert plain.headers["content-type"] == "application/json"
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert streamed.headers["cache-control"] == "no-cache"
    assert "content-length" not in streamed.headers


async def test_the_agent_gets_what_was_declared_and_nothing_else() -> None:
    turns: list[Turn] = []
    app = hosted(noting(turns), allowed_options=["reasoning"])

    await create(
        app,
        temperature=0.5,
        top_p=0.1,
        reasoning={"effort": "low"},
        user="u",
        metadata={"k": "v"},
        instructions="Be brief.",
        tools=[F],
        model="m",
    )

    (turn,) = turns
    assert turn.options == {
        "temperature": 0.5,
        "reasoning": {"effort": "low", "summary": None},
    }
    assert (turn.instructions, turn.model, turn.metadata) == ("Be brief.", "m", {"k": "v"})
    assert (turn.safety_identifier, turn.text, turn.tool_choice) == ("u", "hi", "auto")
    assert turn.principal is not None
    assert (turn.principal.name, turn.isolation_keys) == ("alpha", IsolationKeys("alpha"))


async def test_structured_output_is_refused_by_an_agent_that_does_not_take_it() -> None:
    wanted = {"format": {"type": "json_object"}}

    refused = await creating(text=wanted).run(hosted(recalls))
    taken = await creating(text=wanted).run(hosted(noting([])))

    assert (refused.status, refused.error_body["param"], refused.error_body["code"]) == (
        400,
        "text.format.type",
        "unsupported_value",
    )
    assert taken.status == 200


def test_an_unknown_option_name_stops_the_start() -> None:
    with pytest.raises(ValueError, match=r"allowed_options has .'temprature'.; the caller options"):
        ResponsesChannel(allowed_options=["temprature"])


# Chains and forks


async def test_a_chain_and_a_fork_each_see_their_own_history() -> None:
    app = hosted(recalls)

    one = await create(app, input="a")
    two = await create(app, input="b", previous_response_id=one["id"])
    three = await create(app, input="c", previous_response_id=two["id"])
    fork = await create(app, input="d", previous_response_id=one["id"])

    assert [said(each) for each in (one, two, three, fork)] == [
        "a",
        "a | a | b",
        "a | a | b | a | a | b | c",
        "a | a | d",
    ]
    assert three["previous_response_id"] == two["id"]


async def test_instructions_are_not_inherited() -> None:
    turns: list[Turn] = []
    app = hosted(noting(turns))

    one = await create(app, instructions="Be brief.")
    two = await create(app, previous_response_id=one["id"])

    assert [turn.instructions for turn in turns] == ["Be brief.", None]
    assert two["instructions"] is None


async def test_a_continuation_needs_no_input() -> None:
    app = hosted(recalls)
    one = await create(app, input="a")

    wire = await request("POST", "/v1/responses", {"previous_response_id": one["id"]}).run(app)

    assert said(wire.json) == "a | a"


async def test_an_incomplete_response_is_a_fork_point_without_its_unfinished_call() -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        if turn.history:
            yield str([item["type"] for item in turn.history])
            return
        yield "Hel"
        yield FunctionCallDelta("c", "{", "f")
        yield Finish("max_output_tokens")

    app = hosted(agent)
    one = await create(app, tools=[F])
    two = await create(app, previous_response_id=one["id"])

    assert one["status"] == "incomplete"
    assert said(two) == "['message', 'message']"


async def test_a_failed_response_is_no_fork_point() -> None:
    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "a"
        raise RuntimeError

    app = hosted(agent)
    one = await create(app)

    wire = await creating(previous_response_id=one["id"]).run(app)

    assert (wire.status, wire.error_body) == (
        400,
        {
            "message": f"Previous response with id '{one['id']}' not found.",
            "type": "invalid_request_error",
            "param": "previous_response_id",
            "code": "previous_response_not_found",
        },
    )


@pytest.mark.parametrize("previous", [UNKNOWN, "", "resp_1", "../../x", "\0", "é😀", "r" * 10_000])
async def test_an_unknown_previous_response_is_a_400(previous: str) -> None:
    wire = await creating(previous_response_id=previous).run(hosted(recalls))

    assert (wire.status, wire.error_body["param"], wire.error_body["code"]) == (
        400,
        "previous_response_id",
        "previous_response_not_found",
    )


async def test_store_false_may_continue_but_cannot_be_continued() -> None:
    app = hosted(recalls)
    one = await create(app, input="a")

    two = await create(app, input="b", previous_response_id=one["id"], store=False)
    wire = await creating(previous_response_id=two["id"]).run(app)

    assert said(two) == "a | a | b"
    assert wire.status == 400


# Tools


async def calls_f(turn: Turn) -> AsyncIterator[AgentEvent]:
    outputs = [item for item in turn.items if item["type"] == "function_call_output"]
    if outputs:
        yield f"It is {outputs[-1]['output']}."
    else:
        yield FunctionCall("f", "{}", "call_1")
        yield Usage(1, 1)


async def test_a_tool_round_trip() -> None:
    app = hosted(calls_f)
    output = {"type": "function_call_output", "call_id": "call_1", "output": "22"}

    one = await create(app, tools=[F])
    two = await create(app, previous_response_id=one["id"], input=[output], tools=[F])

    body = one["id"].removeprefix("resp_")
    assert one["output"] == [
        {
            "id": f"fc_{body}0001",
            "type": "function_call",
            "status": "completed",
            "call_id": "call_1",
            "name": "f",
            "arguments": "{}",
        }
    ]
    assert said(two) == "It is 22."


async def test_a_tool_round_trip_without_a_stored_history() -> None:
    app = hosted(calls_f)
    one = await create(app, tools=[F], store=False)
    output = {"type": "function_call_output", "call_id": "call_1", "output": "22"}
    question = {"role": "user", "content": "hi"}

    two = await create(app, input=[question, *one["output"], output], store=False)

    assert said(two) == "It is 22."


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [{"type": "function_call_output", "call_id": "call_2", "output": "22"}],
            "No tool call found for function call output with call_id call_2.",
        ),
        (
            [{"role": "user", "content": "never mind"}],
            "No tool output found for function call call_1.",
        ),
    ],
)
async def test_a_call_needs_its_output_and_an_output_its_call(
    items: Sequence[dict[str, Any]], message: str
) -> None:
    app = hosted(calls_f)
    one = await create(app, tools=[F])

    wire = await creating(previous_response_id=one["id"], input=items).run(app)

    assert (wire.status, wire.error_body) == (
        400,
        {
            "message": message,
            "type": "invalid_request_error",
            "param": "input",
            "code": None,
        },
    )


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "output": "22"},
        {"type": "function_call", "name": "f", "arguments": "{}", "call_id": []},
        {"type": "acme:thing", "id": [1]},
        {"type": "acme:thing", "id": 5},
        {"type": "message", "role": "assistant", "content": ["text"]},
        {"type": "message", "role": "assistant", "content": 5},
        {"type": "item_reference", "id": "x"},
    ],
)
async def test_a_passed_item_never_makes_a_response_that_cannot_be_continued_with_an_answer(
    item: dict[str, Any],
) -> None:
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        yield "ok"
        if not turn.history:
            yield OutputItem(item)

    app = hosted(agent)
    one = await create(app, tools=[F])
    two = await creating(previous_response_id=one["id"]).run(app)

    assert two.status in (200, 400)


async def test_usage_that_is_no_integer_never_makes_a_record_that_cannot_be_read() -> None:
    odd: Any = 1.5

    async def agent(_: Turn) -> AsyncIterator[AgentEvent]:
        yield "ok"
        yield Usage(input_tokens=odd)

    app = hosted(agent)
    one = await create(app)

    assert (await get(app, f"/v1/responses/{one['id']}")).status == 200


# References


async def test_a_reference_to_an_own_item_is_that_item() -> None:
    app = hosted(recalls)
    one = await create(app, input="a")
    reference = {"type": "item_reference", "id": one["output"][0]["id"]}

    two = await create(app, input=[reference, {"role": "user", "content": "b"}])

    assert said(two) == "a | b"


async def test_a_reference_without_a_type_to_an_item_of_the_history() -> None:
    app = hosted(recalls)
    one = await create(app, input="a")

    two = await create(app, input=[{"id": one["output"][0]["id"]}], previous_response_id=one["id"])

    assert said(two) == "a | a | a"
    listed = (await get(app, f"/v1/responses/{two['id']}/input_items")).json["data"]
    assert len({item["id"] for item in listed}) == 3


async def test_a_reference_to_an_item_of_the_same_request() -> None:
    mine = {"type": "message", "role": "user", "content": "a", "id": "mine"}

    response = await create(hosted(recalls), input=[{"id": "mine"}, mine])

    assert said(response) == "a | a"


@pytest.mark.parametrize("key", ["key-alpha", "key-beta"])
async def test_a_reference_to_an_unknown_or_foreign_item_is_a_404(key: str) -> None:
    app = hosted(recalls)
    one = await create(app, input="a")
    item_id = one["output"][0]["id"] if key == "key-beta" else "msg_unknown"

    wire = await creating(input=[{"type": "item_reference", "id": item_id}], key=key).run(app)

    assert (wire.status, wire.error_body) == (
        404,
        {
            "message": f"Item with id '{item_id}' not found.",
            "type": "invalid_request_error",
            "param": "input",
            "code": None,
        },
    )


async def test_too_many_references_are_refused_before_any_is_read() -> None:
    references = [{"type": "item_reference", "id": f"msg_{n}"} for n in range(129)]

    wire = await creating(input=references).run(hosted(recalls))

    assert (wire.status, wire.error_body["param"]) == (400, "input")


async def test_a_reference_beside_an_item_with_an_odd_id_does_no_harm() -> None:
    odd = {"type": "acme:thing", "id": []}

    wire = await creating(input=[odd, {"id": "msg_1"}]).run(hosted(recalls))

    assert wire.status in (400, 404)


async def test_too_many_items_are_refused() -> None:
    items = [{"role": "user", "content": ""}] * 32_768

    wire = await creating(input=items).run(hosted(recalls))

    assert (wire.status, wire.error_body["param"]) == (400, "input")


# Retrieve and delete


async def test_a_response_can_be_retrieved_until_it_is_deleted() -> None:
    app = hosted(recalls)
    one = await create(app)
    path = f"/v1/responses/{one['id']}"

    found = await get(app, path, query="include[]=x&beta=true&stream=false")
    deleted = await request("DELETE", path).run(app)
    after = await get(app, path)
    again = await request("DELETE", path).run(app)

    assert found.json == one
    assert deleted.json == {"id": one["id"], "object": "response", "deleted": True}
    assert (after.status, again.status) == (404, 404)


async def test_a_deleted_response_cannot_be_continued_nor_can_what_follows_it() -> None:
    app = hosted(recalls)
    one = await create(app)
    two = await create(app, previous_response_id=one["id"])

    await request("DELETE", f"/v1/responses/{one['id']}").run(app)

    for previous in (one, two):
        assert (await creating(previous_response_id=previous["id"]).run(app)).status == 400


@pytest.mark.parametrize("stream", ["true", "1"])
async def test_a_stored_response_is_not_streamed(stream: str) -> None:
    app = hosted(recalls)
    one = await create(app)

    wire = await get(app, f"/v1/responses/{one['id']}", query=f"stream={stream}")

    assert (wire.status, wire.error_body["param"]) == (400, "stream")


# Input items


async def test_input_items_are_the_history_and_then_the_own_input_newest_first() -> None:
    app = hosted(recalls)
    one = await create(app, input="a")
    two = await create(app, input="b", previous_response_id=one["id"])
    path = f"/v1/responses/{two['id']}/input_items"
    first, second = (each["id"].removeprefix("resp_") for each in (one, two))

    listed = (await get(app, path)).json
    upwards = (await get(app, path, query="order=asc")).json

    assert listed == {
        "object": "list",
        "data": [
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "b"}],
                "id": f"msg_{second}0000",
                "status": "completed",
            },
            one["output"][0],
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}],
                "id": f"msg_{first}0000",
                "status": "completed",
            },
        ],
        "first_id": f"msg_{second}0000",
        "last_id": f"msg_{first}0000",
        "has_more": False,
    }
    assert upwards["data"] == [*reversed(listed["data"])]


async def test_input_items_are_paged() -> None:
    app = hosted(recalls)
    one = await create(app, input=[{"role": "user", "content": word} for word in "abcde"])
    path = f"/v1/responses/{one['id']}/input_items"
    read: list[str] = []
    query = "limit=2&order=asc&include[]=x"

    while True:
        page = (await get(app, path, query=query)).json
        read += [text_of(item) for item in page["data"]]
        if not page["has_more"]:
            break
        query = f"limit=2&order=asc&after={page['last_id']}"

    assert read == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.5", "limit"),
        ("limit=many", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=%D9%A3%00", "limit"),
        ("order=up", "order"),
        ("after=unknown", "after"),
        ("before=unknown", "before"),
        ("after=%00%FF", "after"),
    ],
)
async def test_a_wrong_page_is_refused_by_its_name(query: str, param: str) -> None:
    app = hosted(recalls)
    one = await create(app)

    wire = await get(app, f"/v1/responses/{one['id']}/input_items", query=query)

    assert (wire.status, wire.error_body["param"]) == (400, param)


async def test_empty_page_parameters_are_absent() -> None:
    app = hosted(recalls)
    one = await create(app)

    wire = await get(
        app, f"/v1/responses/{one['id']}/input_items", query="limit=&order=&after=&before="
    )

    assert len(wire.json["data"]) == 1


# Models


async def test_the_model_is_listed_and_retrieved() -> None:
    app = hosted(recalls, model="acme/agent", clock=lambda: 5.5)
    model = {"id": "acme/agent", "object": "model", "created": 5, "owned_by": "owner"}

    listed = await get(app, "/v1/models")
    one = await get(app, "/v1/models/acme/agent")
    other = await get(app, "/v1/models/gpt")

    assert listed.json == {"object": "list", "data": [model]}
    assert one.json == model
    assert (other.status, other.error_body) == (
        404,
        {
            "message": "The model 'gpt' does not exist.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        },
    )


async def test_an_unnamed_model_is_the_channels_own() -> None:
    response = await create(hosted(recalls, model="acme"))

    assert response["model"] == "acme"


# Errors


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1", 404, "unknown_url"),
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/responses", 404, "unknown_url"),
        ("GET", "/v1/responses/a/b", 404, "unknown_url"),
        ("GET", f"/v1/responses/{UNKNOWN}", 404, None),
        ("GET", "/v1/responses/\0", 404, None),
        ("GET", "/v1/responses/..", 404, None),
        ("DELETE", f"/v1/responses/{UNKNOWN}", 404, None),
        ("GET", f"/v1/responses/{UNKNOWN}/input_items", 404, None),
        ("GET", "/v1/responses", 405, None),
        ("PUT", "/v1/responses", 405, None),
        ("POST", f"/v1/responses/{UNKNOWN}", 405, None),
        ("POST", "/v1/models", 405, None),
        ("POST", "/readiness", 405, None),
        ("BREW", "/v1/responses", 405, None),
    ],
)
async def test_every_error_has_openais_shape_and_a_request_id(
    method: str, path: str, status: int, code: str | None
) -> None:
    wire = await request(method, path).run(hosted(recalls))

    assert wire.status == status, wire.headers
    assert wire.json == {
        "error": {
            "message": wire.error_body["message"],
            "type": "invalid_request_error",
            "param": None,
            "code": wire.error_body["code"],
        }
    }
    assert wire.error_body["code"] in (code, "unknown_url")
    assert wire.headers["x-request-id"].startswith("req_")
    assert wire.headers["content-type"] == "application/json"


async def test_a_slash_at_the_end_is_no_redirect_to_a_host_of_the_clients_choosing() -> None:
    wire = await request("POST", "/v1/responses/", {"input": "hi"}).run(hosted(recalls))

    assert "location" not in wire.headers


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"\xff"', b'{"input":"' + b"\0" * 9])
async def test_a_malformed_body_is_a_400(body: bytes) -> None:
    wire = await request("POST", "/v1/responses", body).run(hosted(recalls))

    assert (wire.status, wire.error_body["type"]) == (400, "invalid_request_error")


async def test_a_wrong_field_is_a_400_that_names_it_before_anything_happens() -> None:
    turns: list[Turn] = []

    wire = await creating(stream=True, temperature="hot").run(hosted(noting(turns)))

    assert (wire.status, wire.error_body) == (
        400,
        {
            "message": "Invalid type for 'temperature': expected a number or null, got a string.",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_type",
        },
    )
    assert turns == []


async def test_a_body_that_says_to_be_too_large_is_a_413_unread() -> None:
    wire = Wire(
        "POST",
        "/v1/responses",
        body=b'{"input":"hi"}',
        headers={"authorization": "Bearer key-alpha", "content-length": str(7 * 1024 * 1024)},
    )

    await wire.run(hosted(recalls))

    assert (wire.status, wire.error_body["code"]) == (413, "request_too_large")


async def test_a_body_that_turns_out_too_large_is_a_413() -> None:
    wire = Wire(
        "POST",
        "/v1/responses",
        body=[b" " * 1024 * 1024] * 7,
        headers={"authorization": "Bearer key-alpha"},
    )

    await wire.run(hosted(recalls))

    assert (wire.status, wire.error_body["code"]) == (413, "request_too_large")


async def test_a_body_in_pieces_is_put_together() -> None:
    body = json.dumps({"input": "hello"}).encode()
    wire = Wire(
        "POST",
        "/v1/responses",
        body=[body[i : i + 3] for i in range(0, len(body), 3)],
        headers={"authorization": "Bearer key-alpha"},
    )

    await wire.run(hosted(recalls))

    assert said(wire.json) == "hello"


async def test_a_client_that_goes_before_its_request_is_complete_gets_nothing() -> None:
    wire = Wire("POST", "/v1/responses", body=[], headers={"authorization": "Bearer key-alpha"})
    wire.hang_up()

    await wire.run(hosted(recalls))

    assert wire.sent == []


class BrokenStore(InMemoryResponseStore):
    """A store whose reads fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def branch(
        self, keys: IsolationKeys, previous_response_id: str | None, /
    ) -> Branch | None:
        raise self._error

    async def get(self, keys: IsolationKeys, response_id: str, /) -> StoredTurn | None:
        raise self._error


ROUTES = [("POST", "/v1/responses", {"input": "hi"}), ("GET", f"/v1/responses/{UNKNOWN}", None)]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_storage_that_is_down_is_a_503_worth_a_retry(
    method: str, path: str, body: Any
) -> None:
    app = hosted(recalls, BrokenStore(StoreError("secret")))

    wire = await request(method, path, body).run(app)

    assert (wire.status, wire.headers["x-should-retry"]) == (503, "true")
    assert wire.headers["x-request-id"] in wire.error_body["message"]
    assert b"secret" not in wire.body


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_an_unhandled_exception_is_a_500_without_its_text(
    method: str, path: str, body: Any
) -> None:
    app = hosted(recalls, BrokenStore(ZeroDivisionError("secret")))

    wire = await request(method, path, body).run(app)

    assert (wire.status, wire.error_body) == (
        500,
        {
            "message": "The server had an error while processing your request. "
            f"Request id: {wire.headers['x-request-id']}",
            "type": "server_error",
            "param": None,
            "code": None,
        },
    )


# Isolation


def asks(response_id: str, item_id: str) -> list[Wire]:
    path = f"/v1/responses/{response_id}"
    beta: dict[str, Any] = {"key": "key-beta"}
    return [
        request("GET", path, **beta),
        request("GET", f"{path}/input_items", **beta),
        request("GET", path, query="stream=true", **beta),
        request("DELETE", path, **beta),
        request("POST", path, **beta),
        creating(previous_response_id=response_id, **beta),
        creating(previous_response_id=response_id, stream=True, **beta),
        creating(input=[{"type": "item_reference", "id": item_id}], **beta),
    ]


async def answers(app: ASGIApp, wires: Sequence[Wire]) -> list[tuple[int, Any, bytes]]:
    replies = [await wire.run(app) for wire in wires]
    return [
        (
            reply.status,
            sorted((k, v) for k, v in reply.headers.items() if k not in ("x-request-id", "date")),
            reply.body,
        )
        for reply in replies
    ]


async def test_nobody_can_tell_whether_another_tenant_has_a_response() -> None:
    body = "ab" * 26
    store = InMemoryResponseStore(new_token=lambda _: body)
    app = hosted(recalls, store)
    response_id, item_id = f"resp_{body}", f"msg_{body}0001"

    before = await answers(app, asks(response_id, item_id))
    one = await create(app)
    after = await answers(app, asks(response_id, item_id))

    assert (one["id"], one["output"][0]["id"]) == (response_id, item_id)
    assert after == before
    assert (await get(app, f"/v1/responses/{response_id}")).json == one


async def delegated(app: ASGIApp, user: str | None, chat: str | None, **fields: Any) -> Wire:
    named = {"x-agent-user-isolation-key": user, "x-agent-chat-isolation-key": chat}
    headers = {name: value for name, value in named.items() if value is not None}
    body = {"input": "hi", **fields}
    return await request("POST", "/v1/responses", body, key="key-agency", headers=headers).run(app)


async def test_a_delegate_names_users_and_chats_below_itself() -> None:
    app = hosted(recalls)
    mine = [("ann", None), ("bob", None), ("ann", "chat"), (None, None), ("ann", "other")]
    made = [(await delegated(app, *who)).json["id"] for who in mine]

    seen = [
        [(await delegated(app, *who, previous_response_id=each)).status == 200 for each in made]
        for who in mine
    ]

    assert seen == [[i == j for j in range(len(mine))] for i in range(len(mine))]


async def test_the_isolation_headers_of_an_ordinary_key_mean_nothing() -> None:
    turns: list[Turn] = []
    app = hosted(noting(turns))
    headers = {"x-agent-user-isolation-key": "beta", "x-agent-chat-isolation-key": "c"}
    one = await create(app, key="key-beta")

    wire = await request("GET", f"/v1/responses/{one['id']}", key="key-alpha", headers=headers).run(
        app
    )
    await request("POST", "/v1/responses", {"input": "hi"}, headers=headers).run(app)

    assert wire.status == 404
    assert turns[-1].isolation_keys == IsolationKeys("alpha")


async def test_a_caller_text_is_never_a_key() -> None:
    app = hosted(recalls)
    one = await create(app, key="key-beta")

    wire = await creating(
        previous_response_id=one["id"], user="beta", safety_identifier="beta"
    ).run(app)

    assert wire.status == 400


# Where the channel lies, and what its ids are


async def test_the_channel_lies_where_its_path_says() -> None:
    app = AgentHost(recalls, channels=[ResponsesChannel(path="")], authenticator=KEYS).app

    wire = await request("POST", "/responses", {"input": "hi"}).run(app)

    assert wire.status == 200


async def test_a_response_id_factory_names_responses_and_gets_a_hint() -> None:
    hints: list[str | None] = []

    def factory(previous_response_id: str | None) -> str:
        hints.append(previous_response_id)
        return f"resp_mine_{len(hints)}"

    app = hosted(recalls, response_id_factory=factory)

    one = await create(app, input="a")
    two = await create(app, input="b", previous_response_id="resp_mine_1")

    assert (one["id"], two["id"], hints) == ("resp_mine_1", "resp_mine_2", [None, "resp_mine_1"])
    assert said(two) == "a | a | b"
    assert (await get(app, "/v1/responses/resp_mine_1")).json == one


async def test_a_factory_of_ids_needs_a_store_that_keeps_them() -> None:
    class MintedIdsOnly(InMemoryResponseStore):
        takes_custom_ids = False

    with pytest.raises(ValueError, match="aliases=True"):
        ResponsesChannel(store=MintedIdsOnly(), response_id_factory=lambda _hint: "resp_mine")


async def test_a_wrong_method_names_all_that_are_allowed() -> None:
    wire = await request("PUT", "/v1/responses/resp_1").run(hosted(recalls))

    assert wire.status == 405
    assert set(wire.headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"}


async def test_a_head_request_gets_the_head_of_the_reply_alone() -> None:
    app = hosted(recalls)
    response = await create(app)

    wire = await request("HEAD", f"/v1/responses/{response['id']}").run(app)

    assert (wire.status, wire.headers["content-type"]) == (200, "application/json")
    assert wire.body == b""
