"""Items as messages of the Converse API: its order of roles and results, and what it refuses to see."""

from base64 import b64encode
from typing import Any

import pytest

from channel.agent import TurnError
from channel.agents.converse.media import DocumentNames
from channel.agents.converse.messages import (
    ATTACHED,
    BEGINNING,
    NO_OUTPUT,
    messages_of,
    reasoning_block,
    redacted,
    signed,
    tool_use_id,
)
from channel.responses.protocol.items import Item, message


def user(text: str) -> Item:
    return message("user", text)


def assistant(text: str) -> Item:
    return message("assistant", text)


def call(call_id: str, arguments: str = "{}", name: str = "clock") -> Item:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def output(call_id: str, said: Any) -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": said}


def reasoning(text: str, encrypted: str | None) -> Item:
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {"type": "reasoning", "summary": summary, "encrypted_content": encrypted}


def parts(*given: dict[str, Any]) -> Item:
    return {"type": "message", "role": "user", "content": [*given]}


def image(media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "input_image", "image_url": f"data:{media_type};base64,aGk="}


def file(filename: str | None, media_type: str = "application/pdf") -> dict[str, Any]:
    data = f"data:{media_type};base64,aGk="
    return {"type": "input_file", "file_data": data, "filename": filename}


def text(said: str) -> dict[str, Any]:
    return {"type": "input_text", "text": said}


def used(call_id: str, given: Any = None, name: str = "clock") -> dict[str, Any]:
    return {"toolUse": {"toolUseId": call_id, "name": name, "input": given or {}}}


def result(call_id: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"toolResult": {"toolUseId": call_id, "content": [*content]}}


def said(role: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": [*content]}


def test_neighbours_of_one_role_are_one_message() -> None:
    items = [user("a"), user("b"), assistant("c"), assistant("d"), user("e")]

    assert messages_of(items) == [
        said("user", {"text": "a"}, {"text": "b"}),
        said("assistant", {"text": "c"}, {"text": "d"}),
        said("user", {"text": "e"}),
    ]


def test_instructions_are_not_among_the_messages() -> None:
    items = [message("system", "Be kind."), user("a"), message("developer", "Be brief.")]

    assert messages_of(items) == [said("user", {"text": "a"})]


def test_blank_texts_and_empty_messages_are_left_out() -> None:
    items = [user(" \n"), user("a"), assistant(""), user("b"), user("")]

    assert messages_of(items) == [said("user", {"text": "a"}, {"text": "b"})]


def test_a_conversation_that_an_assistant_begins_gets_a_beginning() -> None:
    assert messages_of([assistant("a"), user("b")]) == [
        said("user", {"text": BEGINNING}),
        said("assistant", {"text": "a"}),
        said("user", {"text": "b"}),
    ]


def test_a_refusal_is_what_the_assistant_said() -> None:
    refused: Item = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "No."}],
    }

    assert messages_of([user("a"), refused])[1] == said("assistant", {"text": "No."})


def test_the_results_of_parallel_calls_follow_them_in_one_message() -> None:
    items = [
        user("a"),
        call("1", '{"zone": "UTC"}'),
        call("2"),
        output("2", "two"),
        output("1", "one"),
        user("b"),
    ]

    assert messages_of(items) == [
        said("user", {"text": "a"}),
        said("assistant", used("1", {"zone": "UTC"}), used("2")),
        said("user", result("1", {"text": "one"}), result("2", {"text": "two"}), {"text": "b"}),
    ]


def test_calls_one_after_the_other_stay_apart() -> None:
    items = [user("a"), call("1"), output("1", "one"), call("2"), output("2", "two")]

    assert messages_of(items)[1:] == [
        said("assistant", used("1")),
        said("user", result("1", {"text": "one"})),
        said("assistant", used("2")),
        said("user", result("2", {"text": "two"})),
    ]


def test_results_come_first_wherever_they_were() -> None:
    items = [user("a"), assistant("b"), call("1"), user("hurry"), output("1", "one")]

    assert messages_of(items)[1:] == [
        said("assistant", {"text": "b"}, used("1")),
        said("user", result("1", {"text": "one"}), {"text": "hurry"}),
    ]


def test_a_call_id_that_comes_again_has_its_own_result() -> None:
    items = [user("a"), call("1"), output("1", "one"), call("1"), output("1", "again")]

    contents = [message["content"] for message in messages_of(items)]
    assert [contents[2], contents[4]] == [
        [result("1", {"text": "one"})],
        [result("1", {"text": "again"})],
    ]


def test_half_of_a_call_is_left_out() -> None:
    assert messages_of([user("a"), call("1"), output("2", "two"), user("b")]) == [
        said("user", {"text": "a"}, {"text": "b"})
    ]


def test_outputs_may_be_parts_or_nothing() -> None:
    items = [
        user("a"),
        call("1"),
        call("2"),
        output("1", [text("see"), image()]),
        output("2", ""),
    ]

    assert messages_of(items)[2] == said(
        "user",
        result("1", {"text": "see"}, {"image": {"format": "png", "source": {"bytes": b"hi"}}}),
        result("2", {"text": NO_OUTPUT}),
    )


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ("[1]", {"arguments": "[1]"}),
        ('{"a": ', {"arguments": '{"a": '}),
    ],
)
def test_arguments_are_always_an_object(arguments: str, given: dict[str, Any]) -> None:
    messages = messages_of([user("a"), call("1", arguments), output("1", "one")])

    assert messages[1]["content"][0]["toolUse"]["input"] == given


def test_ids_and_names_that_converse_refuses_are_changed_alike() -> None:
    odd = "call|" + "x" * 100
    messages = messages_of([user("a"), call(odd, name="my tool"), output(odd, "one")])

    (use,), (answer,) = messages[1]["content"], messages[2]["content"]
    assert use["toolUse"]["toolUseId"] == answer["toolResult"]["toolUseId"] == tool_use_id(odd)
    assert len(tool_use_id(odd)) <= 64
    assert tool_use_id(odd) != tool_use_id(odd + "x")
    assert use["toolUse"]["name"] == "my_tool"


def test_a_tool_that_the_agent_ran_is_a_call_and_its_result() -> None:
    ran: Item = {
        "type": "mcp_call",
        "id": "mcp_1",
        "server_label": "agent",
        "name": "weather",
        "arguments": '{"city": "Rome"}',
        "output": "sunny",
    }

    assert messages_of([user("a"), ran, assistant("b")])[1:] == [
        said("assistant", used("mcp_1", {"city": "Rome"}, "weather")),
        said("user", result("mcp_1", {"text": "sunny"})),
        said("assistant", {"text": "b"}),
    ]


def test_items_of_other_kinds_are_left_out() -> None:
    items: list[Item] = [user("a"), {"type": "web_search_call", "id": "ws_1"}, user("b")]

    assert messages_of(items) == [said("user", {"text": "a"}, {"text": "b"})]


# --- reasoning -----------------------------------------------------------------------------------


def test_reasoning_goes_back_as_it_was() -> None:
    items = [
        user("a"),
        reasoning("Hm, ", signed("abc")),
        reasoning("", redacted(b"\0\xff")),
        call("1"),
        output("1", "one"),
    ]

    assert messages_of(items)[1] == said(
        "assistant",
        {"reasoningContent": {"reasoningText": {"text": "Hm, ", "signature": "abc"}}},
        {"reasoningContent": {"redactedContent": b"\0\xff"}},
        used("1"),
    )


def test_reasoning_may_have_a_signature_alone() -> None:
    assert reasoning_block(reasoning("", signed("abc"))) == {
        "reasoningContent": {"reasoningText": {"text": "", "signature": "abc"}}
    }


@pytest.mark.parametrize(
    "encrypted", [None, "", "gAAAA of another provider", "converse.redacted:%%%"]
)
def test_reasoning_that_did_not_come_from_here_is_left_out(encrypted: str | None) -> None:
    assert messages_of([user("a"), reasoning("Hm.", encrypted), assistant("b")])[1] == said(
        "assistant", {"text": "b"}
    )


def test_reasoning_never_ends_a_message() -> None:
    items = [user("a"), reasoning("Hm.", signed("abc")), user("b"), assistant("c")]

    assert messages_of(items) == [
        said("user", {"text": "a"}, {"text": "b"}),
        said("assistant", {"text": "c"}),
    ]


def test_reasoning_is_left_out_for_a_model_that_takes_none() -> None:
    items = [user("a"), reasoning("Hm.", signed("abc")), assistant("b")]

    assert messages_of(items, replays_reasoning=False)[1] == said("assistant", {"text": "b"})


# --- images and documents ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        ("image/png", "png"),
        ("image/jpeg", "jpeg"),
        ("image/jpg", "jpeg"),
        ("image/gif", "gif"),
        ("image/webp", "webp"),
    ],
)
def test_an_image_has_the_format_of_its_type(media_type: str, kind: str) -> None:
    (sent,) = messages_of([parts(image(media_type))])

    assert sent["content"] == [{"image": {"format": kind, "source": {"bytes": b"hi"}}}]


@pytest.mark.parametrize(
    ("filename", "media_type", "kind", "name"),
    [
        ("report.pdf", "application/pdf", "pdf", "report"),
        ("Q3 (final)_v2.pdf", "application/pdf", "pdf", "Q3 (final) v2"),
        ("../../etc/passwd", "text/plain", "txt", "passwd"),
        ("notes.md", "text/plain", "txt", "notes"),
        ("notes.md", "application/octet-stream", "md", "notes"),
        ("page.HTM", "application/octet-stream", "html", "page"),
        ("Bericht für Ärzte.docx", "application/octet-stream", "docx", "Bericht fur Arzte"),
        ("報告.csv", "text/csv", "csv", "document"),
        (None, "application/json", "txt", "document"),
        ("main.py", "text/x-python", "txt", "main"),
        ("x" * 300 + ".pdf", "application/pdf", "pdf", "x" * 180),
    ],
)
def test_a_document_has_a_format_and_a_name_that_converse_takes(
    filename: str | None, media_type: str, kind: str, name: str
) -> None:
    (sent,) = messages_of([parts(text("see"), file(filename, media_type))])

    assert sent["content"][1] == {
        "document": {"format": kind, "name": name, "source": {"bytes": b"hi"}}
    }


def test_no_two_documents_of_a_conversation_have_one_name() -> None:
    items = [
        parts(text("a"), file("Report.pdf"), file("report.csv", "text/csv")),
        assistant("b"),
        parts(text("c"), file("REPORT.pdf"), file(None)),
    ]

    names = [
        block["document"]["name"]
        for message in messages_of(items)
        for block in message["content"]
        if "document" in block
    ]
    assert names == ["Report", "report (2)", "REPORT (3)", "document"]


def test_names_stay_as_the_conversation_grows() -> None:
    first, longer = DocumentNames(), DocumentNames()

    assert [first.new("a.pdf"), first.new("a.pdf")] == [longer.new("a.pdf"), longer.new("a.pdf")]
    assert longer.new("a.pdf") == "a (3)"


def test_a_document_without_a_text_gets_one() -> None:
    (sent,) = messages_of([parts(file("a.pdf"))])

    assert sent["content"][1] == {"text": ATTACHED}


def test_an_image_that_comes_as_a_file_is_an_image() -> None:
    (sent,) = messages_of([parts(file("a.png", "image/png"))])

    assert [*sent["content"][0]] == ["image"]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"type": "input_image", "image_url": "https://a.example/b.png"}, "invalid_image_url"),
        ({"type": "input_image", "file_id": "file_1"}, "invalid_image_url"),
        (image("image/tiff"), "unsupported_value"),
        ({"type": "input_file", "file_url": "https://a.example/b.pdf"}, "invalid_value"),
        (file("a.zip", "application/zip"), "unsupported_value"),
        (
            {"type": "input_file", "file_data": b64encode(b"hi").decode()},
            "unsupported_value",
        ),
        ({"type": "input_file", "file_data": "data:text/plain,"}, "unsupported_value"),
        ({"type": "input_audio", "input_audio": {}}, "unsupported_value"),
    ],
)
def test_what_converse_does_not_take_is_the_clients_error(part: dict[str, Any], code: str) -> None:
    with pytest.raises(TurnError) as raised:
        messages_of([parts(text("see"), part)])

    error = raised.value
    assert (error.status, error.code, error.param) == (400, code, "input")


@pytest.mark.parametrize(
    "item",
    [
        {"type": "mcp_call", "server_label": "agent"},
        {"type": "mcp_call", "server_label": "agent", "id": "mcp_1", "name": 5},
        {"type": "mcp_call", "server_label": "agent", "name": "f", "arguments": "{}"},
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": 5}],
            "encrypted_content": signed("s"),
        },
    ],
)
def test_an_item_that_is_not_what_it_should_be_is_the_clients_error(item: dict[str, Any]) -> None:
    with pytest.raises(TurnError) as raised:
        messages_of([user("hi"), item, user("and?")])

    assert (raised.value.status, raised.value.param) == (400, "input")
