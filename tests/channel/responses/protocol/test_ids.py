import pytest

from channel.responses.protocol.ids import (
    MAX_ITEMS,
    ItemPlace,
    call_id,
    conversation_id,
    conversation_name,
    item_id,
    item_place,
    response_body,
    response_id,
)
from tests.channel.responses.protocol.machine import BODY


def test_a_response_id_holds_its_body() -> None:
    assert response_id(BODY) == f"resp_{BODY}"
    assert response_body(response_id(BODY)) == BODY


@pytest.mark.parametrize(
    "identifier",
    [
        "",
        "resp_",
        BODY,
        f"resp_{BODY}0",
        f"resp_{BODY[1:]}",
        f"resp_{BODY.upper()}",
        f"resp_{BODY}\n",
        f"RESP_{BODY}",
        f"resp_resp_{BODY}",
        f"msg_{BODY}0000",
        "resp_../../etc/passwd",
        "resp_" + "\0" * 52,
        "resp_" + "٣" * 52,
    ],
)
def test_other_ids_hold_no_body(identifier: str) -> None:
    assert response_body(identifier) is None


@pytest.mark.parametrize(
    ("item_type", "prefix"),
    [
        ("message", "msg"),
        ("function_call", "fc"),
        ("function_call_output", "fco"),
        ("reasoning", "rs"),
        ("compaction", "cmp"),
        ("mcp_call", "mcp"),
        ("web_search_call", "ws"),
        ("acme:thing", "item"),
        ("", "item"),
    ],
)
def test_an_item_id_names_its_place(item_type: str, prefix: str) -> None:
    identifier = item_id(item_type, BODY, 0x1F)

    assert identifier == f"{prefix}_{BODY}001f"
    assert item_place(identifier) == ItemPlace(BODY, 0x1F)


def test_the_last_item_still_has_a_place() -> None:
    assert item_place(item_id("message", BODY, MAX_ITEMS - 1)) == ItemPlace(BODY, MAX_ITEMS - 1)


@pytest.mark.parametrize(
    "identifier",
    [
        "",
        "msg_1",
        f"msg_{BODY}",
        f"msg_{BODY}00001",
        f"msg_{BODY}000g",
        f"_{BODY}0000",
        f"Msg_{BODY}0000",
        f"msg_{BODY}0000\n",
    ],
)
def test_ids_of_others_have_no_place(identifier: str) -> None:
    assert item_place(identifier) is None


def test_a_made_call_id_is_24_digits_and_its_own_in_a_turn() -> None:
    made = [call_id(BODY, index) for index in (0, 1, MAX_ITEMS - 1)]

    assert made == [f"call_{BODY[-20:]}{tail}" for tail in ("0000", "0001", "ffff")]


def test_a_conversation_id_holds_its_name() -> None:
    assert conversation_id("a" * 20) == f"conv_{'a' * 20}"
    assert conversation_name(f"conv_{'a' * 20}") == "a" * 20


@pytest.mark.parametrize(
    "identifier",
    ["", "conv_", "a" * 20, f"conv_{'a' * 21}", f"conv_{'A' * 20}", f"conv_{'a' * 20}\n"],
)
def test_what_is_no_conversation_id_has_no_name(identifier: str) -> None:
    assert conversation_name(identifier) is None
