"""Windows: what an agent is given where a compaction, or a limit, leaves items out."""

from typing import Any

import pytest

from channel.responses.protocol.items import Item, message
from channel.responses.protocol.window import (
    MAX_KEPT_BYTES,
    MAX_KEPT_TOKENS,
    Compacted,
    Window,
    kept_messages,
    not_ours,
    packed,
    unanswered_from,
    unpacked,
    windowed,
    without_oldest,
)


SEAL: Item = {"id": "cmp_7", "type": "compaction", "encrypted_content": "sealed"}
RULES = {**message("system", "Be brief."), "id": "rules"}


def user(name: str) -> Item:
    return {**message("user", name), "id": name}


def says(name: str) -> Item:
    return {**message("assistant", name), "id": name}


def call(name: str) -> Item:
    return {"id": f"call {name}", "type": "function_call", "call_id": name}


def output(name: str) -> Item:
    return {"id": f"output {name}", "type": "function_call_output", "call_id": name}


THOUGHT: Item = {"id": "thought", "type": "reasoning", "summary": []}


def names(items: list[Item]) -> list[str]:
    return [item["id"] for item in items]


def see(history: list[Item], given: list[Item], **compacted: Any) -> tuple[list[str], list[str]]:
    position = [*history, *given].index(SEAL)
    window = windowed(history, given, position, Compacted("Summed up.", **compacted))
    return names(window.history), names(window.input)


# After a compaction


def test_the_summary_is_a_developer_message() -> None:
    window = windowed([user("a"), SEAL], [user("b")], 1, Compacted("Summed up."))

    assert window == Window(
        [
            {
                "id": "msg_7",
                "status": "completed",
                "type": "message",
                "role": "developer",
                "content": [
                    {
                        "type": "input_text",
                        "text": "Summary of the conversation before this point:\n\nSummed up.",
                    }
                ],
            }
        ],
        [user("b")],
    )


@pytest.mark.parametrize(
    ("history", "given", "compacted", "seen"),
    [
        # A compacted window that a client sends: its kept messages come before the summary.
        (
            [],
            [user("a"), user("b"), SEAL, user("c")],
            {"kept": 2, "covers_kept": True},
            (["a", "b", "msg_7"], ["c"]),
        ),
        (
            [],
            [user("z"), says("y"), user("a"), SEAL, user("c")],
            {"kept": 1, "covers_kept": True},
            (["a", "msg_7"], ["c"]),
        ),
        # One that a response began with: what was asked then follows the summary.
        (
            [user("a"), says("b"), user("c"), SEAL, says("d")],
            [user("e")],
            {"kept": 1},
            (["msg_7", "c", "d"], ["e"]),
        ),
        # The same of a client that keeps no history here.
        (
            [],
            [user("a"), says("b"), user("c"), SEAL, says("d"), user("e")],
            {"kept": 1},
            (["msg_7"], ["c", "d", "e"]),
        ),
        # While that response is being made.
        (
            [user("a"), says("b")],
            [user("c"), SEAL],
            {"kept": 1},
            (["msg_7"], ["c"]),
        ),
        # Calls that were made before, and are answered after it.
        (
            [user("a"), call("1"), call("2"), says("b"), SEAL],
            [output("1")],
            {},
            (["msg_7", "call 1"], ["output 1"]),
        ),
        (
            [user("a"), call("1")],
            [output("1"), SEAL],
            {"kept": 2},
            (["msg_7", "call 1"], ["output 1"]),
        ),
        # Standing orders, wherever they are.
        (
            [RULES, user("a"), SEAL],
            [user("b")],
            {},
            (["rules", "msg_7"], ["b"]),
        ),
        ([RULES], [user("a"), SEAL, user("b")], {}, (["rules", "msg_7"], ["b"])),
        # More kept than there is: a client left some of it out.
        (
            [],
            [user("a"), SEAL, user("b")],
            {"kept": 9, "covers_kept": True},
            (["a", "msg_7"], ["b"]),
        ),
        ([SEAL], [user("b")], {"kept": 9}, (["msg_7"], ["b"])),
        ([user("a"), SEAL], [], {}, (["msg_7"], [])),
    ],
)
def test_what_is_seen_after_a_compaction(
    history: list[Item], given: list[Item], compacted: dict[str, Any], seen: Any
) -> None:
    assert see(history, given, **compacted) == seen


@pytest.mark.parametrize("covers_kept", [False, True])
def test_an_older_compaction_counts_nothing(covers_kept: bool) -> None:
    older = {**SEAL, "id": "cmp_1"}

    history, given = see([older, user("a"), older, user("b"), SEAL], [user("c")], kept=3)

    assert "cmp_1" not in history
    assert given == ["c"]
    assert see([older, user("a"), SEAL], [], kept=2, covers_kept=covers_kept)[0] == (
        ["a", "msg_7"] if covers_kept else ["msg_7", "a"]
    )


def test_a_compaction_of_an_agents_own_making_stays_where_it_is() -> None:
    own = {**SEAL, "id": "cmp_own"}

    assert see([user("a"), SEAL, own], [user("b")]) == (["msg_7", "cmp_own"], ["b"])


def test_what_is_sealed_is_read_again() -> None:
    compacted = Compacted("Summed up “ü”.", 3, covers_kept=True)

    assert unpacked(packed(compacted)) == compacted


def test_the_refusal_of_a_seal_tells_its_place_and_nothing_else() -> None:
    error = not_ours("input[3]")

    assert (error.status, error.param, error.code) == (
        *(400, "input[3].encrypted_content"),
        "invalid_value",
    )


# What the agent has not answered


@pytest.mark.parametrize(
    ("items", "start"),
    [
        ([], 0),
        ([user("a")], 0),
        ([user("a"), says("b"), user("c")], 2),
        ([user("a"), says("b"), RULES, user("c")], 2),
        ([user("a"), says("b")], 2),
        ([user("a"), call("1"), output("1")], 1),
        ([user("a"), THOUGHT, call("1"), output("1")], 1),
        ([user("a"), call("1"), output("1"), call("2"), output("2")], 3),
        ([user("a"), call("1"), call("2"), output("1"), output("2")], 1),
        ([user("a"), call("1"), says("b"), output("1"), user("c")], 1),
        ([user("a"), {"type": "acme:note"}, user("c")], 2),
        ([user("a"), says("b"), {"type": "mcp_approval_response"}], 2),
    ],
)
def test_what_is_unanswered_comes_after_the_agents_last_word(items: list[Item], start: int) -> None:
    assert unanswered_from(items) == start


# Messages that are kept


def test_a_users_last_messages_are_kept_up_to_a_bound() -> None:
    items = [user("a"), says("b"), user("c"), RULES, user("d"), output("1")]

    assert names(kept_messages(items, lambda _: 1)) == ["a", "c", "d"]
    assert names(kept_messages(items, lambda _: MAX_KEPT_TOKENS // 2)) == ["c", "d"]
    assert names(kept_messages(items, lambda _: MAX_KEPT_TOKENS + 1)) == []


def test_what_is_kept_has_a_size_too() -> None:
    items = [user("a"), user("b" * MAX_KEPT_BYTES), user("c")]

    assert names(kept_messages(items, lambda _: 1)) == ["c"]


# Truncation


CONVERSATION = [RULES, user("a"), call("1"), output("1"), says("b"), user("c"), call("2")]


@pytest.mark.parametrize(
    ("count", "left"),
    [
        (0, ["rules", "a", "call 1", "output 1", "b", "c", "call 2"]),
        (2, ["rules", "call 1", "output 1", "b", "c", "call 2"]),
        (3, ["rules", "b", "c", "call 2"]),
        (4, ["rules", "b", "c", "call 2"]),
        (7, ["rules", "call 2"]),
        (99, ["rules", "call 2"]),
    ],
)
def test_the_oldest_items_go_and_no_call_is_parted_from_its_output(
    count: int, left: list[str]
) -> None:
    window = without_oldest(Window(CONVERSATION, [output("2"), user("d")]), count)

    assert names(window.history) == left
    assert names(window.input) == ["output 2", "d"]
