"""What is told of the updates of an Agent Framework run, kind by kind, without a run."""

from typing import Any, Literal

import pytest
from agent_framework import AgentResponseUpdate, Content

from channel.agent import (
    AgentEvent,
    Annotation,
    FunctionCall,
    FunctionCallDelta,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    ToolFinished,
    ToolStarted,
    TurnError,
    Usage,
)
from channel.agents.agent_framework.calls import CallError
from channel.agents.agent_framework.messages import Thought, messages_of, wanted_back
from channel.agents.agent_framework.telling import ReportedError, Telling
from channel.responses.protocol.items import output_text


REFUSAL = {"model_output_kind": "refusal"}
Mode = Literal["append", "replace"] | None
text = Content.from_text
call = Content.from_function_call


def told(*contents: Content, telling: Telling | None = None) -> list[AgentEvent]:
    """Return what is told of the contents, each in an update of its own, up to the end."""
    telling = telling or Telling({"clock", "other"}, {"weather"})
    events = [each for content in contents for each in telling.take(update(content))]
    return [*events, *telling.end()]


def update(*contents: Content, mode: Mode = None, **fields: Any) -> AgentResponseUpdate:
    return AgentResponseUpdate(
        contents=contents, merge_mode=mode, **{"role": "assistant", **fields}
    )


def anew(words: str) -> OutputItem:
    """Return the message that takes back what was said."""
    return OutputItem({"type": "message", "role": "assistant", "content": [output_text(words)]})


# Text


def test_text_that_replaces_adds_what_is_new() -> None:
    events = told(text("Hel"), text("Hello", merge_mode="replace"), text(" there."))

    assert events == ["Hel", "lo", " there."]


def test_text_that_replaces_the_last_part_with_itself_adds_nothing() -> None:
    events = told(text("One. "), text("Two."), text("Two.", merge_mode="replace"))

    assert events == ["One. ", "Two."]


def test_text_that_takes_something_back_follows_as_a_message_of_its_own() -> None:
    events = told(
        text("It is 5."),
        text("It is 6", merge_mode="replace"),
        text("."),
        text("It is 6.", merge_mode="replace"),
    )

    assert events == ["It is 5.", anew("It is 6"), "."]


def test_text_that_is_taken_back_without_another_is_not_told_again() -> None:
    assert told(text("Hm"), text("", merge_mode="replace")) == ["Hm"]


def test_an_update_that_replaces_is_of_the_whole_message() -> None:
    telling = Telling((), ())
    updates = [
        update(text("Hel"), mode="replace", message_id="m1"),
        update(text("Hello"), text(" there"), mode="replace", message_id="m1"),
        update(text("Next."), mode="replace", message_id="m2"),
    ]

    assert [each for one in updates for each in telling.take(one)] == ["Hel", "lo there", "Next."]


def test_an_update_that_replaces_repeats_nothing_that_went_out() -> None:
    telling = Telling({"clock"}, ())
    updates = [
        update(reasoning("Hm"), text("a"), call("c1", "clock", arguments='{"a"'), mode="replace"),
        update(
            reasoning("Hm"), text("a"), call("c1", "clock", arguments='{"a":1}'), mode="replace"
        ),
    ]

    events = [each for one in updates for each in telling.take(one)] + [*telling.end()]

    assert events == [
        ReasoningDelta("Hm", new_part=True),
        "a",
        FunctionCallDelta("c1", '{"a"', "clock"),
        FunctionCallDelta("c1", ":1}"),
    ]


def test_a_refusal_is_told_as_one() -> None:
    events = told(
        text("I ", additional_properties=REFUSAL),
        text("I can not.", additional_properties=REFUSAL, merge_mode="replace"),
    )

    assert events == [RefusalDelta("I "), RefusalDelta("can not.")]


def test_only_the_assistants_words_are_told() -> None:
    telling = Telling((), ())

    assert [*telling.take(update(text("echo"), role="user"))] == []


def test_citations_are_annotations_each_once() -> None:
    cited: Any = {
        "type": "citation",
        "title": "A",
        "url": "https://example.com",
        "annotated_regions": [{"type": "text_span", "start_index": 2, "end_index": 4}],
    }
    filed: Any = {"type": "citation", "file_id": "file-1", "title": "a.pdf"}
    odd: Any = {"type": "citation", "title": "nowhere"}

    events = told(text("See it.", annotations=[cited, odd]), text("", annotations=[cited, filed]))

    assert events == [
        "See it.",
        Annotation(
            {
                "type": "url_citation",
                "url": "https://example.com",
                "title": "A",
                "start_index": 2,
                "end_index": 4,
            }
        ),
        Annotation({"type": "file_citation", "file_id": "file-1", "filename": "a.pdf", "index": 0}),
    ]


# Reasoning


def reasoning(words: str | None = None, data: str | None = None, **fields: Any) -> Content:
    return Content.from_text_reasoning(text=words, protected_data=data, **fields)


def test_what_is_wanted_back_comes_last_whatever_the_order_it_came_in() -> None:
    events = told(
        reasoning("", "early", id="rs_1"),
        reasoning("Hm", id="rs_1"),
        reasoning("Hm.", id="rs_1", merge_mode="replace"),
        reasoning("", "late", id="rs_1"),
        text("Hi"),
    )

    assert events == [
        ReasoningDelta("Hm", new_part=True),
        ReasoningDelta("."),
        ReasoningDelta(encrypted_content=wanted_back(Thought("rs_1", "Hm.", "late"))),
        "Hi",
    ]


def test_another_block_of_reasoning_is_told_apart() -> None:
    by_id = told(reasoning("a", id="rs_1"), reasoning("b", "B", id="rs_2"))
    by_data = told(reasoning("a", "A"), reasoning("b", "B"))

    assert by_id == [
        ReasoningDelta("a", new_part=True),
        ReasoningDelta("b", new_part=True),
        ReasoningDelta(encrypted_content=wanted_back(Thought("rs_2", "b", "B"))),
    ]
    assert [event.encrypted_content for event in by_data if isinstance(event, ReasoningDelta)] == [
        *(None, wanted_back(Thought(None, "a", "A"))),
        *(None, wanted_back(Thought(None, "b", "B"))),
    ]


@pytest.mark.parametrize(
    "thought",
    [
        Thought("rs_1", "Hm.", "data"),
        Thought(None, "Hm.", "data", is_raw=True),
        Thought(None, "", "redacted"),
    ],
)
def test_reasoning_comes_back_as_it_was(thought: Thought) -> None:
    parts = [{"type": "summary_text", "text": "of another. "}]
    parts += [{"type": "summary_text", "text": thought.text}] if thought.text else []
    item = {"type": "reasoning", "summary": parts, "encrypted_content": wanted_back(thought)}

    ((content,),) = (message.contents for message in messages_of([item]))

    assert (content.id, content.text, content.protected_data) == (
        *(thought.id, thought.text, "data" if thought.text else "redacted"),
    )
    assert bool(content.additional_properties.get("reasoning_text")) is thought.is_raw


# Calls


def test_calls_that_come_mixed_go_out_one_after_another() -> None:
    events = told(
        call("c1", "clock", arguments='{"a":'),
        call("c2", "other", arguments='{"b":'),
        call("c1", "", arguments="1}"),
        call("c2", "", arguments="2}"),
        call("c3", "clock", arguments={"c": 3}),
    )

    assert events == [
        FunctionCallDelta("c1", '{"a":', "clock"),
        FunctionCallDelta("c1", "1}"),
        FunctionCallDelta("c2", '{"b":2}', "other"),
        FunctionCallDelta("c3", '{"c":3}', "clock"),
    ]


def test_a_call_that_waited_is_told_whole() -> None:
    events = told(
        call("c1", "clock", arguments='{"a":'), call("c2", "other", arguments="{}"), text("Hm")
    )

    assert events[1:] == [FunctionCall("other", "{}", "c2"), "Hm"]


def test_a_call_without_arguments_has_an_empty_object() -> None:
    assert told(call("c1", "clock")) == [
        FunctionCallDelta("c1", "", "clock"),
        FunctionCallDelta("c1", "{}"),
    ]


def test_arguments_that_replace_add_what_is_new_or_fail() -> None:
    first = call("c1", "clock", arguments='{"a":')
    whole = call("c1", "clock", arguments='{"a":1}', merge_mode="replace")
    other = call("c1", "clock", arguments='{"b":1}', merge_mode="replace")

    assert told(first, whole)[1:] == [FunctionCallDelta("c1", "1}")]
    with pytest.raises(CallError):
        told(first, other)


def test_the_arguments_of_the_agents_own_tool_may_be_taken_back_before_it_runs() -> None:
    events = told(
        call("c1", "weather", arguments='{"a":1}'),
        call("c1", "weather", merge_mode="replace"),
        call("c1", "weather", arguments='{"b":1}', merge_mode="replace"),
        result("c1"),
    )

    assert events[0] == ToolStarted("c1", "weather", '{"b":1}')


def test_a_call_that_goes_on_after_something_else_fails() -> None:
    with pytest.raises(CallError):
        told(call("c1", "clock", arguments="{"), text("Hm"), call("c1", "", arguments="}"))


def result(call_id: str, words: str | None = "sunny", **fields: Any) -> Content:
    return Content.from_function_result(call_id, result=words, **fields)


def test_a_tool_that_runs_at_once_is_told_before_its_result() -> None:
    telling = Telling((), {"weather"})
    begun = [
        *telling.take(update(call("c1", "weather", arguments='{"a":1}', id="af-1"))),
        *telling.take(update(finish_reason="tool_calls")),
    ]

    assert begun == [ToolStarted("af-1", "weather", '{"a":1}')]
    assert [*telling.take(update(result("c1"), role="tool"))] == [ToolFinished("af-1", "sunny")]


def test_a_tool_beside_a_clients_is_told_with_its_result() -> None:
    telling = Telling({"clock"}, {"weather"})
    telling_of = [
        *telling.take(update(call("c1", "weather"), call("c2", "clock", arguments="{}"))),
        *telling.take(update(finish_reason="tool_calls")),
    ]

    assert telling_of == [FunctionCallDelta("c2", "{}", "clock")]
    assert [*telling.take(update(result("c1"), role="tool"))] == [
        ToolStarted("c1", "weather"),
        ToolFinished("c1", "sunny"),
    ]


def test_what_a_tool_raised_is_not_told() -> None:
    events = told(call("c1", "weather"), result("c1", "secret", exception="secret"))

    assert events[-1] == ToolFinished("c1", error="The tool failed.")


def test_call_ids_may_come_again_in_another_turn_of_the_model() -> None:
    once = (call("c1", "weather", id="af-1"), result("c1"))
    again = (call("c1", "weather", id="af-2"), result("c1"))

    started = [event.call_id for event in told(*once, *again) if isinstance(event, ToolStarted)]

    assert started == ["af-1", "af-2"]


def test_a_result_without_a_call_stays_hidden() -> None:
    assert told(result("c1")) == []


def test_calls_that_the_service_runs_are_tools() -> None:
    events = told(call("c1", "search", hosted=True, server_name="docs"), text("Found."))

    assert events == [ToolStarted("c1", "search", "{}", "docs"), "Found."]


def test_servers_tools_are_told_with_their_server() -> None:
    events = told(
        Content.from_mcp_server_tool_call("m1", "search", server_name="docs", arguments='{"q":1}'),
        Content.from_mcp_server_tool_result("m1", output=[text("a"), text("b")]),
        Content.from_mcp_server_tool_call("m2", "search", arguments={"q": 2}),
        Content.from_mcp_server_tool_result("m2"),
    )

    assert events == [
        ToolStarted("m1", "search", '{"q":1}', "docs"),
        ToolFinished("m1", "a\nb"),
        ToolStarted("m2", "search", '{"q":2}'),
        ToolFinished("m2", ""),
    ]


def test_the_services_other_tools_are_told_once_each() -> None:
    events = told(
        Content.from_code_interpreter_tool_call(call_id="c1", inputs=[text("1")]),
        Content.from_code_interpreter_tool_result(call_id="c1", outputs=[]),
        Content.from_code_interpreter_tool_call(call_id="c1", inputs=[text("+1")]),
        Content.from_code_interpreter_tool_result(call_id="c1", outputs=[text("2")]),
        Content.from_shell_tool_call(call_id="c2", commands=["ls"]),
        Content.from_shell_tool_result(
            call_id="c2", outputs=[Content.from_shell_command_output(stdout="a.txt")]
        ),
        Content.from_search_tool_call("c3", tool_name="web_search"),
    )

    assert events == [
        ToolStarted("c1", "code_interpreter"),
        ToolFinished("c1", "2"),
        ToolStarted("c2", "shell"),
        ToolFinished("c2", "a.txt"),
        ToolStarted("c3", "web_search"),
        ToolFinished("c3", ""),
    ]


def test_a_computer_that_nobody_has_fails_the_turn() -> None:
    wanted = Content("computer_tool_call", id="1", call_id="c1", actions=[{"type": "click"}])

    with pytest.raises(ReportedError):
        told(wanted)


# Requests, media, usage, errors


def test_a_request_of_the_service_names_its_server() -> None:
    asked = call("mcpr_1", "pay", arguments='{"a":1}', hosted=True, server_name="bank")

    assert told(Content.from_function_approval_request("mcpr_1", asked)) == [
        OutputItem(
            {
                "type": "mcp_approval_request",
                "id": "mcpr_1",
                "name": "pay",
                "arguments": '{"a":1}',
                "server_label": "bank",
            }
        )
    ]


def test_a_consent_that_is_needed_is_an_item() -> None:
    (event,) = told(Content.from_oauth_consent_request("https://example.com/consent"))

    assert isinstance(event, OutputItem)
    assert event.item["consent_link"] == "https://example.com/consent"


def test_images_are_items_and_what_has_a_url_is_cited() -> None:
    image = Content.from_data(b"hi", "image/png")
    partial = Content.from_data(b"h", "image/png", additional_properties={"is_partial_image": True})

    events = told(
        Content.from_image_generation_tool_call(image_id="i1"),
        Content.from_image_generation_tool_result(image_id="i1", outputs=partial),
        Content.from_image_generation_tool_result(image_id="i1", outputs=[image]),
        image,
        Content.from_data(b"hi", "application/pdf"),
        Content.from_uri("https://example.com/a.pdf", media_type="application/pdf", name="a.pdf"),
        Content.from_hosted_file("file-1"),
        Content.from_hosted_vector_store("vs-1"),
    )

    assert [event for event in events if not isinstance(event, ToolStarted | ToolFinished)] == [
        OutputItem({"type": "image_generation_call", "status": "completed", "result": "aGk="}),
        Annotation(
            {
                "type": "url_citation",
                "url": "https://example.com/a.pdf",
                "title": "a.pdf",
                "start_index": 0,
                "end_index": 0,
            }
        ),
        Annotation({"type": "file_path", "file_id": "file-1", "index": 0}),
    ]


def test_usage_adds_up_or_replaces_the_sum_so_far() -> None:
    def used(given: int, mode: Mode = None) -> Content:
        return Content.from_usage({"input_token_count": given}, merge_mode=mode)

    events = told(used(1), used(2), used(10, "replace"), used(8, "replace"))

    assert [event.input_tokens for event in events if isinstance(event, Usage)] == [1, 2, 7, -2]


@pytest.mark.parametrize(
    ("code", "status"), [("rate_limit_exceeded", 429), ("context_length_exceeded", 400)]
)
def test_an_error_that_a_client_may_know_of_is_told(code: str, status: int) -> None:
    with pytest.raises(TurnError) as raised:
        told(Content.from_error(message="secret", error_code=code))

    assert (raised.value.code, raised.value.status) == (code, status)
    assert "secret" not in raised.value.message


def test_any_other_error_is_a_failure_that_tells_nothing() -> None:
    with pytest.raises(ReportedError) as raised:
        told(text("Well"), Content.from_error(message="secret"))

    assert "secret" not in str(raised.value)


def test_an_error_that_the_run_got_over_is_none() -> None:
    telling = Telling((), ())

    assert [*telling.take(update(Content.from_error(message="secret")))] == []
    assert telling.has_failed
    assert told(text("Well"), telling=telling) == ["Well"]
    assert not telling.has_failed
