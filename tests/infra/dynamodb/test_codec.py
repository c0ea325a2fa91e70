"""The codec is pure and exact: what comes out is what went in, or an error."""

import zlib
from secrets import token_hex
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from channel import room
from channel.ports import Branch, HistoryTooLargeError, StoredTurn, TurnTooLargeError
from channel.responses.protocol.response import (
    IncompleteDetails,
    Response,
    ResponseFailure,
    ResponseUsage,
    Status,
)
from infra.dynamodb import codec, dictionary
from tests.infra.turns import noise, turn


BODY = "01" + "ab" * 25
PARENT = "01" + "cd" * 25

plain_text = st.text(st.characters(codec="utf-8"))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(plain_text, json_values, max_size=4)
identifiers = st.sampled_from(["resp_" + BODY, "msg_" + BODY + "0001", "call_" + BODY[-20:]])
items = st.lists(objects | st.fixed_dictionaries({"id": identifiers | plain_text}), max_size=3)
responses = st.builds(
    Response,
    id=identifiers | plain_text,
    created_at=st.integers(0, 2**40),
    model=plain_text,
    status=st.sampled_from(Status),
    completed_at=st.none() | st.integers(0, 2**40),
    error=st.none() | st.builds(ResponseFailure, plain_text, plain_text),
    incomplete_details=st.none() | st.builds(IncompleteDetails, plain_text),
    instructions=st.none() | plain_text,
    output=items,
    previous_response_id=st.none() | st.just("resp_" + PARENT) | plain_text,
    tools=st.lists(objects, max_size=2),
    tool_choice=plain_text | objects,
    text=objects,
    reasoning=st.none() | objects,
    temperature=st.floats(0, 2),
    usage=st.none() | st.builds(ResponseUsage, st.integers(0, 2**40)),
    metadata=st.dictionaries(plain_text, plain_text, max_size=3),
)
turns = st.builds(StoredTurn, items, responses)


@settings(max_examples=60, deadline=None)
@given(turns, st.none() | st.just(PARENT))
def test_a_turn_comes_back_exactly(kept: StoredTurn, parent: str | None) -> None:
    assert codec.decode(codec.encode(kept, BODY, parent), BODY, parent) == kept


@settings(max_examples=60, deadline=None)
@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_byte_is_an_error(position: int, change: int) -> None:
    kept = turn(Branch(BODY), "A text that is long enough to be worth it, and again: a text.")
    data = bytearray(codec.encode(kept, BODY, PARENT))
    data[position % len(data)] ^= change

    try:
        read = codec.decode(bytes(data), BODY, PARENT)
    except codec.CorruptTurnError:
        return
    assert read == kept  # the last bits before the checksum mean nothing


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:1],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"\x02" + data[1:],
        lambda _: codec.VERSION + zlib.compress(b"[]"),
        lambda _: codec.VERSION + deflated(b'{"input": []}'),
        lambda _: codec.VERSION + deflated(b"\xff"),
    ],
)
def test_what_was_not_written_by_us_is_an_error(damage: Any) -> None:
    data = codec.encode(turn(Branch(BODY)), BODY, PARENT)

    with pytest.raises(codec.CorruptTurnError):
        codec.decode(damage(data), BODY, PARENT)


def test_a_payload_under_another_id_is_an_error() -> None:
    data = codec.encode(turn(Branch(BODY)), BODY, PARENT)

    with pytest.raises(codec.CorruptTurnError):
        codec.decode(data, PARENT, BODY)


def test_decompression_is_bounded() -> None:
    bomb = codec.VERSION + deflated(b" " * (codec.MAX_DECODED_BYTES + 1))
    assert len(bomb) < codec.MAX_DECODED_BYTES / 900

    with pytest.raises(codec.CorruptTurnError):
        codec.decode(bomb, BODY, PARENT)


def test_turns_of_one_history_share_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = turn(Branch(BODY), " " * 1_000)
    data, size = codec.encode(kept, BODY, PARENT), len(msgspec.json.encode(kept))
    monkeypatch.setattr(room, "MAX_HISTORY_BYTES", 2 * size)
    left = room.HistoryRoom()

    assert codec.decode(data, BODY, PARENT, left) == kept
    assert codec.decode(data, BODY, PARENT, left) == kept
    with pytest.raises(HistoryTooLargeError):
        codec.decode(data, BODY, PARENT, left)


def test_no_single_turn_is_too_large_for_a_history() -> None:
    assert room.MAX_HISTORY_BYTES >= codec.MAX_DECODED_BYTES


def test_a_turn_that_could_not_be_read_back_is_too_large() -> None:
    with pytest.raises(TurnTooLargeError):
        codec.encode(turn(Branch(BODY), " " * codec.MAX_DECODED_BYTES), BODY, None)


def test_a_turn_beyond_the_limit_is_too_large() -> None:
    with pytest.raises(TurnTooLargeError):
        codec.encode(turn(Branch(BODY), noise(9_000_000)), BODY, None)


def test_the_ids_of_a_turn_cost_next_to_nothing() -> None:
    body, parent = "01" + token_hex(25), "01" + token_hex(25)
    kept = turn(Branch(body), previous_response_id="resp_" + parent)

    assert (
        len(codec.encode(kept, body, parent)) < 120 < len(zlib.compress(msgspec.json.encode(kept)))
    )


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (0, []),
        (codec.CHUNK_BYTES, []),
        (codec.CHUNK_BYTES + 1, [codec.CHUNK_BYTES, 1]),
        (2 * codec.CHUNK_BYTES, [codec.CHUNK_BYTES] * 2),
    ],
)
def test_only_what_exceeds_a_row_is_split(size: int, sizes: list[int]) -> None:
    data = noise(size).encode()

    chunks = codec.split(data)

    assert [len(chunk) for chunk in chunks] == sizes
    assert not chunks or codec.join(chunks, codec.checksum(data)) == data


@pytest.mark.parametrize("chunks", [[], [b"a"], [b"b", b"a"], [b"a", b"b", b"c"]])
def test_chunks_that_do_not_belong_together_are_an_error(chunks: list[bytes]) -> None:
    with pytest.raises(codec.CorruptTurnError):
        codec.join(chunks, codec.checksum(b"ab"))


def test_the_first_dictionary_is_frozen() -> None:
    # What was stored can be read only with the dictionary it was written with: never change it.
    assert (len(dictionary.V1), zlib.crc32(dictionary.V1)) == (5641, 2853512503)


def deflated(plain: bytes) -> bytes:
    deflate = zlib.compressobj(zdict=dictionary.V1 + (PARENT + BODY).encode())
    return deflate.compress(plain) + deflate.flush()
