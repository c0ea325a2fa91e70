from typing import Any

import pytest

from channel.responses.protocol.items import message, output_text, text_of


def test_messages_hold_the_text_part_of_their_role() -> None:
    assert message("developer", "a") == {
        "type": "message",
        "role": "developer",
        "content": [{"type": "input_text", "text": "a"}],
    }
    assert message("assistant", "a") == {
        "type": "message",
        "role": "assistant",
        "content": [output_text("a")],
    }


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({}, ""),
        ({"content": None}, ""),
        ({"content": "plain"}, "plain"),
        ({"content": []}, ""),
        (message("user", "a"), "a"),
        (
            {"content": [{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "r"}]},
            "a",
        ),
        ({"content": [{"text": "a"}, {"text": 5}, {"text": "b"}]}, "ab"),
        ({"content": ["a", 5, {"text": "b"}]}, "b"),
    ],
)
def test_the_text_of_a_message(item: dict[str, Any], text: str) -> None:
    assert text_of(item) == text
