"""Response targets: as values, and as a body says them."""

from typing import Any

import pytest

from channel.responses.protocol.errors import RequestError
from channel.targets import (
    MAX_NATIVE_ID,
    MAX_TARGETS,
    Destination,
    ResponseTarget,
    ResponseTargetKind,
    parse_target,
)


KEYWORDS = {
    "originating": ResponseTarget.originating,
    "active": ResponseTarget.active,
    "all_linked": ResponseTarget.all_linked,
    "none": ResponseTarget.none,
}


def test_targets_that_name_the_same_are_equal_and_hash_alike() -> None:
    one, other = ResponseTarget.channels(["a", "b:1"]), ResponseTarget.channels(("a", "b:1"))
    assert one == other
    assert {one: 1}[other] == 1
    assert one != ResponseTarget.channels(["b:1", "a"])
    assert ResponseTarget.channel("a") == ResponseTarget.channels(["a"])
    assert ResponseTarget.active != ResponseTarget.all_linked
    assert ResponseTarget(ResponseTargetKind.ACTIVE) == ResponseTarget.active


def test_a_channel_that_is_named_twice_counts_once() -> None:
    assert ResponseTarget.channels(["a", "b", "a"]).targets == ("a", "b")


@pytest.mark.parametrize("tokens", [[], [""], [":id"], ["a:"], ["a" * 65], ["a:\n"]])
def test_a_builder_refuses_what_is_no_destination(tokens: list[str]) -> None:
    with pytest.raises(ValueError, match=r"channel|id"):
        ResponseTarget.channels(tokens)


@pytest.mark.parametrize(
    ("token", "channel", "native_id"),
    [("a", "a", None), ("a:1", "a", "1"), ("a:b:c", "a", "b:c"), ("a:http://x", "a", "http://x")],
)
def test_a_token_is_split_at_the_first_colon(
    token: str, channel: str, native_id: str | None
) -> None:
    destination = Destination.of(token)
    assert destination == Destination(channel, native_id)
    assert destination.token == token


@pytest.mark.parametrize(
    ("given", "target"),
    [
        *KEYWORDS.items(),
        *[({"kind": word}, target) for word, target in KEYWORDS.items()],
        ("slack", ResponseTarget.channel("slack")),
        ("slack:U1", ResponseTarget.channel("slack:U1")),
        (["slack", "originating"], ResponseTarget.channels(["slack", "originating"])),
        ({"channels": ["slack"]}, ResponseTarget.channel("slack")),
        (["originating"], ResponseTarget.channel("originating")),
    ],
)
def test_a_body_says_a_target_in_four_ways(given: Any, target: ResponseTarget) -> None:
    assert parse_target(given) == target


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("", "response_target"),
        ([], "response_target"),
        (7, "response_target"),
        (True, "response_target"),
        ({}, "response_target"),
        ({"kind": "channels"}, "response_target.kind"),
        ({"kind": "Active"}, "response_target.kind"),
        ({"kind": None}, "response_target"),
        ({"kind": "active", "channels": ["a"]}, "response_target"),
        ({"channels": "a"}, "response_target"),
        ({"channels": []}, "response_target.channels"),
        ({"channels": [1]}, "response_target.channels[0]"),
        (["a", None], "response_target[1]"),
        (["a", ["b"]], "response_target[1]"),
        (["a", "active"], "response_target[1]"),
        (["a", "b:"], "response_target[1]"),
        ("a:" + "x" * (MAX_NATIVE_ID + 1), "response_target"),
        ("x" * 65, "response_target"),
        (["a"] * (MAX_TARGETS + 1), "response_target"),
    ],
)
def test_a_malformed_target_is_a_400_that_names_the_field(given: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_target(given)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.code == "invalid_value"
