"""Rows as values, and the walk: what makes a chain and what refuses one."""

import pytest

from channel.ports import Branch
from channel.responses.protocol.response import Status
from infra.dynamodb import keys, rows
from infra.dynamodb.rows import Refusal, TurnRow
from tests.infra.turns import turn


NOW = 1000
ROOT, MIDDLE, LAST = (f"R#00000000#000000{depth}#{'a' * 16}" for depth in (1, 2, 3))


ENTRY = "I#" + "0" * 11 + "1" + "a" * 18


def history(**changed: TurnRow | None) -> dict[str, TurnRow]:
    whole = {
        "root": row(ROOT, None),
        "middle": row(MIDDLE, ROOT),
        "last": row(LAST, MIDDLE),
        "sibling": row(LAST[:-1] + "b", MIDDLE),
        **changed,
    }
    return {each.sort_key: each for each in whole.values() if each}


def row(sort_key: str, parent: str | None, status: str = "c", expires_at: int = NOW) -> TurnRow:
    return TurnRow(sort_key, status, expires_at, parent=parent)


def test_a_chain_follows_the_parents_and_leaves_out_the_rest() -> None:
    walked = rows.walk(history(), LAST, NOW, any_last=False)

    assert walked == [row(ROOT, None), row(MIDDLE, ROOT), row(LAST, MIDDLE)]


@pytest.mark.parametrize(
    ("status", "as_ancestor", "as_parent", "as_last"),
    [
        ("c", None, None, None),
        ("n", None, None, None),
        ("f", Refusal.FINAL, Refusal.FINAL, None),
        ("x", Refusal.FINAL, Refusal.FINAL, None),
        ("q", Refusal.MAYBE_STALE, Refusal.MAYBE_STALE, None),
        ("i", Refusal.MAYBE_STALE, Refusal.MAYBE_STALE, None),
        ("D", Refusal.FINAL, Refusal.FINAL, Refusal.FINAL),
    ],
)
def test_a_status_refuses_a_chain(
    status: str, as_ancestor: Refusal | None, as_parent: Refusal | None, as_last: Refusal | None
) -> None:
    ancestor = history(middle=row(MIDDLE, ROOT, status))
    last = history(last=row(LAST, MIDDLE, status))

    refusals = [
        rows.walk(ancestor, LAST, NOW, any_last=False),
        rows.walk(last, LAST, NOW, any_last=False),
        rows.walk(last, LAST, NOW, any_last=True),
    ]

    found = [each if isinstance(each, Refusal) else None for each in refusals]
    assert found == [as_ancestor, as_parent, as_last]


@pytest.mark.parametrize(
    "gap",
    [
        {"root": None},
        {"middle": None},
        {"last": None},
        {"root": row(ROOT, None, expires_at=NOW - 1)},
        {"last": row(LAST, MIDDLE, expires_at=NOW - 1)},
    ],
)
def test_a_gap_may_be_a_stale_read(gap: dict[str, TurnRow | None]) -> None:
    assert rows.walk(history(**gap), LAST, NOW, any_last=True) is Refusal.MAYBE_STALE


def test_every_status_has_a_letter_of_its_own() -> None:
    letters = [rows.STATUS_LETTERS[status] for status in Status]

    assert len({*letters, rows.DELETED}) == len(Status) + 1


@pytest.mark.parametrize(
    "kept",
    [
        TurnRow(ROOT, "c", NOW, b"data"),
        TurnRow(LAST, "f", NOW, b"data", parent=MIDDLE, lineage=("00000000:1", "cafecafe:2")),
        TurnRow(LAST, "c", NOW, chunks=3, checksum=b"sum", parent=MIDDLE),
        TurnRow(ROOT, "c", NOW, b"data", origin=ENTRY),
        TurnRow(
            ENTRY, "c", rows.NEVER, b"data", is_hidden=True, items=3, deleted=frozenset({0, 2})
        ),
        TurnRow(ENTRY, "q", NOW, b"data", owner="me", items=1),
    ],
)
def test_a_row_comes_back_from_its_item(kept: TurnRow) -> None:
    assert rows.parse_turn(rows.turn_item("t#T#thread", kept)) == kept


def test_a_row_without_an_expiry_has_none_in_the_table() -> None:
    kept = TurnRow(ENTRY, "c", rows.NEVER, chunks=1, checksum=b"sum.", items=1)

    assert "ttl" not in rows.turn_item("t#T#cthread", kept)
    assert all("ttl" not in each for each in rows.chunk_items("t#T#cthread", kept, [b"data"]))


@pytest.mark.parametrize(
    ("status", "is_stored", "expected"),
    [
        (Status.COMPLETED, True, TurnRow(ENTRY, "c", rows.NEVER, items=2)),
        (Status.INCOMPLETE, False, TurnRow(ENTRY, "n", rows.NEVER, items=2, is_hidden=True)),
        (Status.FAILED, True, TurnRow(ENTRY, "f", NOW, items=2)),
        (Status.QUEUED, True, TurnRow(ENTRY, "q", NOW, items=2, owner="me")),
    ],
)
def test_an_entry_expires_unless_its_items_are_in_the_conversation(
    status: Status, is_stored: bool, expected: TurnRow
) -> None:
    place = keys.EntryPlace(keys.Entry("thread", 1, "a" * 18), "me", 2e9)
    kept = turn(Branch(place.node.body), status=status, store=is_stored)

    assert rows.new_row(place, kept, NOW) == expected


def test_a_conversation_is_made_of_what_came_to_something() -> None:
    entries = [row(f"{ENTRY[:-1]}{n}", None, status) for n, status in enumerate("cfnqxDi")]

    assert rows.counted(entries) == [entries[0], entries[2]]
