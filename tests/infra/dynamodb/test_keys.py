"""The key schema is pure: keys in, keys out."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from channel.isolation import IsolationKeys
from channel.responses.protocol import ids
from infra.dynamodb import keys


SECRET = b"s" * 32


def hexes(count: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=count, max_size=count)


nodes = st.builds(
    keys.Node, hexes(20), hexes(8), st.integers(min_value=1, max_value=9_999_999), hexes(16)
)


@given(nodes)
def test_a_body_and_a_sort_key_say_where_a_turn_is(node: keys.Node) -> None:
    assert ids.response_body(ids.response_id(node.body)) == node.body
    assert keys.parse_body(node.body) == node
    assert keys.node_in(node.thread, node.sort_key) == node


def test_a_body_of_another_version_is_nowhere() -> None:
    assert keys.parse_body("02" + "0" * 50) is None


@given(nodes, st.binary(min_size=32, max_size=32), st.integers(min_value=0, max_value=99))
def test_a_chunk_lies_behind_its_turn_and_is_told_from_it(
    node: keys.Node, checksum: bytes, index: int
) -> None:
    chunk = keys.chunk_key(node.sort_key, checksum, index)
    first, last = keys.chunk_range(node.sort_key, checksum)
    lane_first, lane_last = keys.lane_range(node.lane, node.seq)

    assert lane_first < node.sort_key < first < chunk < last < lane_last
    assert keys.is_chunk_key(chunk)
    assert not keys.is_chunk_key(node.sort_key)


@given(nodes, nodes)
def test_a_range_holds_the_turns_of_its_lane_up_to_its_end_and_no_other(
    node: keys.Node, other: keys.Node
) -> None:
    first, last = keys.lane_range(node.lane, node.seq)

    is_within = first <= other.sort_key <= last
    assert is_within == (other.lane == node.lane and other.seq <= node.seq)


@given(st.lists(nodes, unique=True))
def test_the_rows_of_a_lane_sort_by_their_depth(found: list[keys.Node]) -> None:
    same_lane = sorted(f"R#00000000#{node.seq:07d}#{node.nonce}" for node in found)

    assert all(a.split("#")[2] <= b.split("#")[2] for a, b in pairwise(same_lane))


def test_the_first_child_stays_in_the_lane_and_later_ones_open_lanes_of_their_own() -> None:
    root = keys.root_place(lambda size: "a" * 2 * size).node

    first = keys.child_place(root, (), lambda size: "b" * 2 * size, is_lane_taken=False)
    later = keys.child_place(root, (), lambda size: "c" * 2 * size, is_lane_taken=True)

    assert root == keys.Node("a" * 20, keys.ROOT_LANE, 1, "a" * 16)
    assert first == keys.Place(keys.Node("a" * 20, keys.ROOT_LANE, 2, "b" * 16), root, ())
    assert later == keys.Place(keys.Node("a" * 20, "c" * 8, 2, "c" * 16), root, ("00000000:1",))


def test_the_lineage_of_a_lane_says_what_to_read() -> None:
    assert keys.lineage_ranges(("00000000:50", "cafecafe:60")) == [
        ("R#00000000#", "R#00000000#0000050#~"),
        ("R#cafecafe#", "R#cafecafe#0000060#~"),
    ]


def test_a_tenant_tag_is_made_of_both_keys_and_a_missing_chat_is_its_own() -> None:
    people = [
        IsolationKeys("ann"),
        IsolationKeys("ann", ""),
        IsolationKeys("ann", "null"),
        IsolationKeys("ann", "chat"),
        IsolationKeys("ann,chat"),
        IsolationKeys('ann","chat'),
        IsolationKeys("annchat"),
        IsolationKeys("Ann"),
        IsolationKeys("änn"),
        IsolationKeys("ann\ud800"),
    ]

    tags = {keys.tenant_tag(SECRET, each) for each in people}

    assert len(tags) == len(people)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", tag) for tag in tags)
    assert keys.tenant_tag(b"t" * 32, people[0]) not in tags


def test_a_tenant_tag_is_frozen() -> None:
    assert keys.tenant_tag(SECRET, IsolationKeys("ann", "chat")) == "keYBSw17uAz6wPSUBFiBRg"


@pytest.mark.parametrize("nobody", [IsolationKeys(), IsolationKeys("", "chat")])
def test_nobody_has_no_tenant_tag(nobody: IsolationKeys) -> None:
    with pytest.raises(ValueError, match="name none"):
        keys.tenant_tag(SECRET, nobody)


@given(st.text(st.characters(codec=None)))
def test_any_custom_id_has_a_partition_below_its_tenant(response_id: str) -> None:
    assert re.fullmatch(r"t#T#a#[0-9a-f]{64}", keys.alias_partition("T", response_id))
