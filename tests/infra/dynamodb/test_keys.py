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

entries = st.builds(keys.Entry, hexes(20), st.integers(min_value=1, max_value=2**48 - 1), hexes(18))


@given(nodes)
def test_a_body_and_a_sort_key_say_where_a_turn_is(node: keys.Node) -> None:
    assert ids.response_body(ids.response_id(node.body)) == node.body
    assert keys.parse_body(node.body) == node
    assert keys.node_in(node.thread, node.sort_key) == node


@given(entries)
def test_a_body_and_a_sort_key_say_where_an_entry_is(entry: keys.Entry) -> None:
    assert ids.response_body(ids.response_id(entry.body)) == entry.body
    assert keys.parse_body(entry.body) == entry
    assert keys.located(entry.thread, entry.sort_key) == entry
    assert keys.entry_in(entry.thread, entry.sort_key) == entry


def test_a_body_of_another_version_is_nowhere() -> None:
    assert keys.parse_body("03" + "0" * 50) is None
    assert keys.parse_body("02" + "0" * 50) is None  # entries are counted from 1


@given(st.lists(entries, unique=True))
def test_the_rows_of_entries_sort_by_their_numbers_and_their_chunks_and_the_lock_lie_apart(
    found: list[keys.Entry],
) -> None:
    first, last = keys.entry_range()

    in_order = sorted(found, key=lambda entry: entry.sort_key)

    assert all(a.number <= b.number for a, b in pairwise(in_order))
    for entry in found:
        chunk = keys.chunk_key(entry.sort_key, b"sum.", 7)
        between = keys.chunk_range(entry.sort_key, b"sum.")
        assert first < entry.sort_key < last
        assert between[0] < chunk < between[1] < first
        assert keys.is_chunk_key(chunk)
        assert not keys.is_chunk_key(entry.sort_key)
    assert last < keys.META_ROW


@given(entries)
def test_a_conversation_and_the_thread_of_its_forks_are_partitions_of_one_tenant(
    entry: keys.Entry,
) -> None:
    fork = keys.fork_place(entry, lambda size: "f" * 2 * size)

    partition = keys.partition_of("T", fork.node)

    assert fork == keys.Place(keys.Node(entry.thread, "f" * 8, 1, "f" * 16), origin=entry)
    assert fork.before == entry
    assert partition == f"t#T#{entry.thread}"
    assert keys.conversation_beside(partition) == keys.partition_of("T", entry)
    assert keys.partition_of("T", entry) == f"t#T#c{entry.thread}"


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


@given(st.text(), st.text(), st.integers(min_value=1, max_value=10**12 - 2))
def test_what_agents_keep_by_themselves_is_below_their_tenant_by_names_that_are_not_stored(
    one: str, other: str, number: int
) -> None:
    for partition in (keys.history_partition, keys.checkpoints_partition):
        assert re.fullmatch(r"t#tenant#[hw]#[0-9a-f]{32}", partition("tenant", one))
        assert (partition("tenant", one) == partition("tenant", other)) is (one == other)
    for sort_key, (first, last) in (
        (keys.messages_key(number), keys.messages_range()),
        (keys.checkpoint_key(one, number), keys.checkpoint_range(one)),
    ):
        assert first < sort_key < last
        assert keys.number_in(sort_key) == number
        chunk = keys.blob_chunk_key(sort_key, b"sum.", 7)
        between = keys.blob_chunk_range(sort_key, b"sum.")
        assert between[0] < chunk < between[1]
        assert not first < chunk < last
    assert keys.messages_key(number) < keys.messages_key(number + 1)
    assert keys.checkpoint_key(one, number) < keys.checkpoint_key(one, number + 1)
