"""What a client does with the demo agent, told once and tried at every door; each asserts what it reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tests.e2e.doors import Client


WEATHER: Final[Mapping[str, Any]] = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
PERSON: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
UNKNOWN: Final = f"resp_{'0123456789abc' * 4}"
"""An id that looks like one of ours and was never made."""


# --- creating, and reading back ------------------------------------------------------------------


def a_response_is_created_and_read_back_as_it_was(client: Client) -> None:
    created = client.create(
        model="agent", input="Hello!", metadata={"case": "7"}, temperature=0.5, user="ann"
    )

    reply = client.get(f"/responses/{created['id']}")

    assert text_of(created) == HELLO
    assert kinds_of(created) == ["message"]
    told = ("status", "model", "metadata", "temperature", "user", "error", "previous_response_id")
    assert [created[name] for name in told] == [
        *["completed", "agent", {"case": "7"}, 0.5, "ann", None, None]
    ]
    assert created["usage"]["total_tokens"] == 16
    assert created["completed_at"] >= created["created_at"]
    assert (reply.status, reply.json) == (200, created)


def a_stream_tells_every_event_in_order(client: Client) -> None:
    events = client.stream(input="Hello!")

    words = len(HELLO.split())
    assert types_of(events) == [
        *["created", "in_progress", "output_item.added", "content_part.added"],
        *["output_text.delta"] * words,
        *["output_text.done", "content_part.done", "output_item.done", "completed"],
    ]
    assert [event["sequence_number"] for event in events] == [*range(words + 8)]
    assert joined(events, "output_text") == HELLO
    done = [event for event in events if event["type"] == "response.output_text.done"]
    assert [event["text"] for event in done] == [HELLO]
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert (first["id"], last["status"], text_of(last)) == (last["id"], "completed", HELLO)
    assert client.get(f"/responses/{last['id']}").json == last


def lenient_input_is_understood(client: Client) -> None:
    said: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hello Ada."}]},
        {"type": "acme:note", "anything": [1, None]},
        {"role": "user", "content": [{"type": "input_text", "text": "What is my name?"}]},
    ]

    created = client.create(input=said, a_field_of_next_year={"x": 1}, include=[])

    assert text_of(created).startswith("Your name is Ada.")
    listed = client.get(f"/responses/{created['id']}/input_items?order=asc").json["data"]
    roles = [item.get("role") for item in listed]
    assert roles == ["system", "user", "assistant", None, "user"]
    assert listed[3] == {**said[3], "id": listed[3]["id"]}


# --- history -------------------------------------------------------------------------------------


def three_chained_turns_remember(client: Client) -> None:
    first = client.create(input="My name is Ada.")
    second = client.create(input="My city is Paris.", previous_response_id=first["id"])
    third = client.create(input="What did I tell you?", previous_response_id=second["id"])

    assert text_of(first) == "I will remember that. Your name is Ada."
    assert third["previous_response_id"] == second["id"]
    assert text_of(third) == (
        "Your name is Ada. Your city is Paris. "
        "Before this you said: “My name is Ada.”, “My city is Paris.”."
    )


def a_fork_from_the_first_turn_knows_nothing_of_the_second(client: Client) -> None:
    first = client.create(input="My name is Ada.")
    second = client.create(input="My city is Paris.", previous_response_id=first["id"])

    asked = {"input": "What did I tell you?"}
    fork = client.stream(**asked, previous_response_id=first["id"])[-1]["response"]
    trunk = client.create(**asked, previous_response_id=second["id"])

    assert text_of(fork) == "Your name is Ada. Before this you said: “My name is Ada.”."
    assert "Paris" in text_of(trunk)


def instructions_are_not_inherited(client: Client) -> None:
    loud = client.create(input="Hi", instructions="Answer in upper case.")
    quiet = client.create(input="Hi again", previous_response_id=loud["id"])

    assert text_of(loud).startswith("HELLO! YOU SAID")
    assert loud["instructions"] == "Answer in upper case."
    assert text_of(quiet).startswith("Hello! You said: “Hi again”.")
    assert quiet["instructions"] is None


def input_items_are_listed_page_by_page(client: Client) -> None:
    first = client.create(input="one")
    second = client.create(input="two", previous_response_id=first["id"])
    target = f"/responses/{second['id']}/input_items"

    whole = client.get(target).json
    ids = [item["id"] for item in whole["data"]]
    pages = [
        client.get(f"{target}?limit=2").json,
        client.get(f"{target}?limit=2&after={ids[1]}").json,
        client.get(f"{target}?limit=2&order=asc&include=message.output_text.logprobs").json,
    ]

    assert [said_in(item) for item in whole["data"]] == ["two", text_of(first), "one"]
    assert whole == {
        "object": "list",
        "data": whole["data"],
        "first_id": ids[0],
        "last_id": ids[2],
        "has_more": False,
    }
    assert [[item["id"] for item in page["data"]] for page in pages] == [
        ids[:2],
        ids[2:],
        [ids[2], ids[1]],
    ]
    assert [page["has_more"] for page in pages] == [True, False, True]


def an_item_is_named_instead_of_repeated(client: Client) -> None:
    first = client.create(input="My name is Ada.")
    (asked,) = client.get(f"/responses/{first['id']}/input_items").json["data"]

    reference = {"type": "item_reference", "id": asked["id"]}
    second = client.create(input=[reference, {"role": "user", "content": "What is my name?"}])

    assert text_of(second) == "Your name is Ada."


def a_deleted_response_is_gone_on_every_route(client: Client) -> None:
    first = client.create(input="one")
    second = client.create(input="two", previous_response_id=first["id"])

    deleted = client.delete(f"/responses/{first['id']}")

    assert deleted.status == 200
    assert deleted.json == {"id": first["id"], "object": "response", "deleted": True}
    require_unknown(client, first["id"])
    after = client.post(input="three", previous_response_id=second["id"])
    assert (after.status, after.error["code"]) == (400, "previous_response_not_found")
    assert client.get(f"/responses/{second['id']}").json == second


def what_is_not_stored_is_not_found(client: Client) -> None:
    created = client.create(input="one", store=False)
    streamed = client.stream(input="one", store=False)[-1]["response"]

    assert [created["store"], streamed["store"]] == [False, False]
    require_unknown(client, created["id"])
    require_unknown(client, streamed["id"])


def require_unknown(client: Client, response_id: str) -> None:
    target = f"/responses/{response_id}"
    gone = [client.get(target), client.delete(target), client.get(f"{target}/input_items")]
    said = f"Response with id '{response_id}' not found."
    assert [(reply.status, reply.error["message"]) for reply in gone] == [(404, said)] * 3
    for stream in (False, True):
        refused = client.post(input="on", previous_response_id=response_id, stream=stream)
        assert (refused.status, refused.error) == (
            400,
            {
                "message": f"Previous response with id '{response_id}' not found.",
                "type": "invalid_request_error",
                "param": "previous_response_id",
                "code": "previous_response_not_found",
            },
        )


# --- what an answer can be -----------------------------------------------------------------------


def a_tool_is_called_and_its_output_is_used(client: Client) -> None:
    asked = client.create(input="What is the weather in Paris?", tools=[WEATHER])
    (call,) = asked["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "18 degrees"}
    answered = client.create(input=[output], tools=[WEATHER], previous_response_id=asked["id"])

    assert asked["status"] == "completed"
    told = ("type", "status", "name", "arguments")
    assert [call[name] for name in told] == [
        *["function_call", "completed", "get_weather", '{"city": "Paris"}']
    ]
    assert asked["tools"] == [WEATHER]
    assert text_of(answered) == "The tool get_weather answered: 18 degrees"


def a_call_is_streamed_in_pieces(client: Client) -> None:
    events = client.stream(input="Now!", tools=[WEATHER], tool_choice="required")

    assert types_of(events) == [
        *["created", "in_progress", "output_item.added"],
        *["function_call_arguments.delta"] * 2,
        *["function_call_arguments.done", "output_item.done", "completed"],
    ]
    added, done = events[2]["item"], events[-2]["item"]
    assert (added["arguments"], added["status"]) == ("", "in_progress")
    assert joined(events, "function_call_arguments") == done["arguments"] == '{"city": "Now!"}'
    assert events[-3]["name"] == "get_weather"
    assert events[-1]["response"]["output"] == [done]


def calls_and_outputs_must_belong_together(client: Client) -> None:
    asked = client.create(input="What is the weather in Paris?", tools=[WEATHER])
    call_id = asked["output"][0]["call_id"]

    unanswered = client.post(input="And now?", previous_response_id=asked["id"])
    output = {"type": "function_call_output", "call_id": "call_nobody", "output": "1"}
    uncalled = client.post(input=[output])

    assert [(each.status, each.error["param"]) for each in (unanswered, uncalled)] == [
        (400, "input")
    ] * 2
    assert call_id in unanswered.error["message"]
    assert "call_nobody" in uncalled.error["message"]


def structured_output_follows_the_schema(client: Client) -> None:
    wanted = {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}

    created = client.create(input="name: Ada, age: 36", text={"format": wanted})

    assert text_of(created) == '{"name": "Ada", "age": 36}'
    assert created["text"]["format"] == {**wanted, "description": None}


def reasoning_is_told_as_a_summary(client: Client) -> None:
    asked = {"input": "Hi", "reasoning": {"effort": "high", "summary": "auto"}}

    created = client.create(**asked)
    events = client.stream(**asked)

    thought, said = created["output"]
    parts = ["I look at 1 items; the user last said “Hi”.", "So I will answer."]
    assert (thought["type"], said["type"]) == ("reasoning", "message")
    assert [part["text"] for part in thought["summary"]] == parts
    assert created["reasoning"] == {"effort": "high", "summary": "auto"}
    assert created["usage"]["output_tokens_details"]["reasoning_tokens"] == 14
    assert joined(events, "reasoning_summary_text") == "".join(parts)
    assert [name for name in types_of(events) if "summary_part" in name] == [
        *["reasoning_summary_part.added", "reasoning_summary_part.done"] * 2
    ]


def a_refusal_is_told_as_one(client: Client) -> None:
    created = client.create(input="demo: refuse")
    events = client.stream(input="demo: refuse")

    refusal = {"type": "refusal", "refusal": "I am sorry, but I was told to refuse this."}
    assert created["status"] == "completed"
    assert created["output"][0]["content"] == [refusal]
    assert joined(events, "refusal") == refusal["refusal"]


def an_answer_cites_its_source(client: Client) -> None:
    events = client.stream(input="demo: cite")

    (annotated,) = (e for e in events if e["type"] == "response.output_text.annotation.added")
    (part,) = events[-1]["response"]["output"][0]["content"]
    citation = annotated["annotation"]
    assert part["annotations"] == [citation]
    cited = part["text"][citation["start_index"] : citation["end_index"]]
    assert cited == "this domain is for use in examples"


def an_item_of_the_agents_own_passes_through(client: Client) -> None:
    events = client.stream(input="demo: item")

    assert types_of(events) == [
        *["created", "in_progress", "output_item.added", "output_item.done", "completed"]
    ]
    passed = "This message is an output item that was passed through whole."
    assert text_of(events[-1]["response"]) == passed


def an_image_arrives(client: Client) -> None:
    image = {"type": "input_image", "image_url": PIXEL}

    created = client.create(input=[{"role": "user", "content": [image]}])
    (asked,) = client.get(f"/responses/{created['id']}/input_items").json["data"]

    assert text_of(created).startswith("You sent an image: image/png, 70 bytes, 1 x 1 pixels.")
    assert asked["content"] == [{**image, "detail": "auto"}]


def what_is_cut_short_says_why_and_can_be_continued(client: Client) -> None:
    created = client.create(input="demo: count 40", max_output_tokens=16)
    events = client.stream(input="demo: filter")
    after = client.create(input="What did I say?", previous_response_id=created["id"])

    assert (created["status"], created["completed_at"]) == ("incomplete", None)
    assert created["incomplete_details"] == {"reason": "max_output_tokens"}
    assert created["output"][0]["status"] == "incomplete"
    assert text_of(created) == "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 "
    last = events[-1]
    assert (last["type"], last["response"]["incomplete_details"]) == (
        *("response.incomplete", {"reason": "content_filter"}),
    )
    assert text_of(after) == "Before this you said: “demo: count 40”."


# --- failures and errors -------------------------------------------------------------------------


def a_turn_that_fails_on_the_way_is_a_failed_response(client: Client) -> None:
    replies = [client.post(input="demo: fail", stream=stream) for stream in (False, True)]
    failed = [replies[0].json, replies[1].events[-1]["response"]]

    assert [reply.status for reply in replies] == [200, 200]
    assert replies[1].events[-1]["type"] == "response.failed"
    for reply, response in zip(replies, failed, strict=True):
        request_id = reply.headers["x-request-id"]
        said = f"The agent failed to answer. Request id: {request_id}"
        assert response["status"] == "failed"
        assert response["error"] == {"code": "server_error", "message": said}
        assert text_of(response) == "I will fail in the middle of "
        assert client.get(f"/responses/{response['id']}").json == response
        after = client.post(input="Go on.", previous_response_id=response["id"])
        assert (after.status, after.error["code"]) == (400, "previous_response_not_found")


def a_turn_that_fails_at_once_is_an_error_not_to_be_retried(client: Client) -> None:
    for stream in (False, True):
        reply = client.post(input="demo: fail at once", stream=stream)

        request_id = reply.headers["x-request-id"]
        assert (reply.status, reply.headers["x-should-retry"]) == (500, "false")
        assert reply.error == {
            "message": f"The agent failed to answer. Request id: {request_id}",
            "type": "server_error",
            "param": None,
            "code": None,
        }


def an_agents_own_refusal_of_a_value_names_the_parameter(client: Client) -> None:
    image = {"type": "input_image", "image_url": "file:///etc/passwd"}

    reply = client.post(input=[{"role": "user", "content": [image]}], stream=True)

    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == ("input", "invalid_image_url")


def a_wrong_value_names_its_parameter(client: Client) -> None:
    bad_image = {"type": "input_image", "image_url": 5}
    wrong: Sequence[tuple[Mapping[str, Any], str, str]] = [
        ({}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": "x", "temperature": "hot"}, "temperature", "invalid_type"),
        ({"input": "x", "max_output_tokens": 3}, "max_output_tokens", "invalid_value"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name", MISSING),
        (
            {"input": [{"role": "user", "content": [bad_image]}]},
            "input[0].content[0].image_url",
            "invalid_type",
        ),
        ({"input": "x", "background": True, "store": False}, "background", "unsupported_parameter"),
    ]
    for fields, param, code in wrong:
        for stream in (False, True):
            reply = client.post(**fields, stream=stream)

            assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, code)
            assert reply.error["type"] == "invalid_request_error"


def unknown_ids_are_not_found(client: Client) -> None:
    require_unknown(client, UNKNOWN)
    require_unknown(client, "resp_x")
    reference = {"type": "item_reference", "id": "msg_x"}
    named = client.post(input=[reference])
    assert (named.status, named.error["message"]) == (404, "Item with id 'msg_x' not found.")


def other_routes_and_methods_are_errors_in_the_same_shape(client: Client) -> None:
    unknown, wrong = client.get("/completions"), client.ask("PUT", "/responses", {})

    assert (unknown.status, unknown.error["code"]) == (404, "unknown_url")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert wrong.error["message"] == "Method not allowed on this URL."


def a_body_that_is_no_json_or_too_large_is_refused(client: Client) -> None:
    bodies = [b'{"input": ', b"", b'{"input": "' + b"x" * (6 * 1024 * 1024) + b'"}']
    malformed, empty, large = (client.ask("POST", "/responses", body) for body in bodies)

    assert [each.status for each in (malformed, empty, large)] == [400, 400, 413]
    assert [each.error["code"] for each in (malformed, empty, large)] == [
        *["invalid_json", "invalid_json", "request_too_large"]
    ]


def without_a_good_key_nobody_gets_in(client: Client) -> None:
    created = client.create(input="one")
    for key, said in ((None, "No API key provided."), ("lr_wrong", "Incorrect API key provided.")):
        stranger = Client(client.door, key=key, replies=client.replies)
        refused = [
            stranger.post(input="Hello!", stream=True),
            stranger.get(f"/responses/{created['id']}"),
            stranger.get("/nothing"),
            stranger.ask("POST", "/responses", b"no json"),
        ]

        assert [reply.status for reply in refused] == [401] * 4
        assert [reply.headers["www-authenticate"] for reply in refused] == ["Bearer"] * 4
        assert refused[0].error == {
            "message": f"{said} Send it as 'Authorization: Bearer KEY'.",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        }


def the_models_are_listed(client: Client) -> None:
    listed = client.get("/models").json
    (model,) = listed["data"]
    unknown = client.get("/models/gpt-7")

    assert listed == {"object": "list", "data": [model]}
    assert (model["id"], model["object"]) == ("agent", "model")
    assert client.get("/models/agent").json == model
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")


# --- reading -------------------------------------------------------------------------------------

HELLO: Final = "Hello! You said: “Hello!”. I have heard 1 message from you. Say “help” for more."
MISSING: Final = "missing_required_parameter"


def text_of(response: Mapping[str, Any]) -> str:
    """Return the text of a response's messages, as the SDK's `output_text` does."""
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(said_in(item) for item in messages)


def said_in(item: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in item["content"])


def kinds_of(response: Mapping[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


def types_of(events: Sequence[Mapping[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def joined(events: Sequence[Mapping[str, Any]], of: str) -> str:
    """Return the deltas of one kind as one text."""
    return "".join(e["delta"] for e in events if e["type"] == f"response.{of}.delta")


Scenario = Callable[[Client], None]

# --- Chat Completions ----------------------------------------------------------------------------


def chat_completions_are_the_same_agents_answers(client: Client) -> None:
    messages = [{"role": "user", "content": "Hello!"}]

    whole = client.chat(model="agent", messages=messages).json
    chunks = client.chat(messages=messages, stream=True, stream_options={"include_usage": True})

    assert whole["choices"][0]["message"]["content"] == text_of(client.create(input="Hello!"))
    *deltas, last, usage = chunks.chunks
    assert chunks.body.endswith(b"data: [DONE]\n\n")
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in deltas) == HELLO
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"] == whole["usage"]
    assert whole["usage"]["total_tokens"] == 16


def a_call_goes_through_a_chat_and_back(client: Client) -> None:
    asked = {"role": "user", "content": "What is the weather in Paris?"}
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    tools = [{"type": "function", "function": function}]

    (choice,) = client.chat(messages=[asked], tools=tools).json["choices"]
    (call,) = choice["message"]["tool_calls"]
    output = {"role": "tool", "tool_call_id": call["id"], "content": "18 degrees"}
    answer = client.chat(messages=[asked, choice["message"], output], tools=tools).json

    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    said = answer["choices"][0]["message"]["content"]
    assert said == "The tool get_weather answered: 18 degrees"


def what_goes_wrong_in_a_chat_is_an_error(client: Client) -> None:
    def saying(content: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": content}]}

    wrong = client.chat(**saying(7))
    for stream in (False, True):
        failed = client.chat(**saying("demo: fail at once"), stream=stream)
        assert (failed.status, failed.headers["x-should-retry"]) == (500, "false")
        assert failed.error["type"] == "server_error"
    later = client.chat(**saying("demo: fail"))
    cut = client.chat(**saying("demo: fail"), stream=True)

    assert (wrong.status, wrong.error["param"]) == (400, "messages[0].content")
    assert (later.status, later.error["code"]) == (500, "server_error")
    assert cut.chunks[-1].keys() == {"error"}
    assert b"[DONE]" not in cut.body


SCENARIOS: Final[Sequence[Scenario]] = (
    a_response_is_created_and_read_back_as_it_was,
    a_stream_tells_every_event_in_order,
    lenient_input_is_understood,
    three_chained_turns_remember,
    a_fork_from_the_first_turn_knows_nothing_of_the_second,
    instructions_are_not_inherited,
    input_items_are_listed_page_by_page,
    an_item_is_named_instead_of_repeated,
    a_deleted_response_is_gone_on_every_route,
    what_is_not_stored_is_not_found,
    a_tool_is_called_and_its_output_is_used,
    a_call_is_streamed_in_pieces,
    calls_and_outputs_must_belong_together,
    structured_output_follows_the_schema,
    reasoning_is_told_as_a_summary,
    a_refusal_is_told_as_one,
    an_answer_cites_its_source,
    an_item_of_the_agents_own_passes_through,
    an_image_arrives,
    what_is_cut_short_says_why_and_can_be_continued,
    a_turn_that_fails_on_the_way_is_a_failed_response,
    a_turn_that_fails_at_once_is_an_error_not_to_be_retried,
    an_agents_own_refusal_of_a_value_names_the_parameter,
    a_wrong_value_names_its_parameter,
    unknown_ids_are_not_found,
    other_routes_and_methods_are_errors_in_the_same_shape,
    a_body_that_is_no_json_or_too_large_is_refused,
    without_a_good_key_nobody_gets_in,
    the_models_are_listed,
    chat_completions_are_the_same_agents_answers,
    a_call_goes_through_a_chat_and_back,
    what_goes_wrong_in_a_chat_is_an_error,
)
