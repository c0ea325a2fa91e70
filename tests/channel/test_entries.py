"""Entries of conversations are pure: turns in; items, pages of them and history out."""

from typing import Any

import pytest

from channel import entries
from channel.ports import StoredTurn
from channel.responses.protocol import ids
from channel.responses.protocol.items import Item, message, text_of
from channel.responses.protocol.response import Response, Status


BODY = "02" + "a" * 50
OTHER = "02" + "b" * 50


def user(text: str, identifier: str | None = None) -> Item:
    return {**message("user", text), **({"id": identifier} if identifier else {})}


def turn(
    given: list[Item], output: list[Item], status: Status = Status.COMPLETED, **fields: Any
) -> StoredTurn:
    response = Response(id=f"resp_{BODY}", created_at=1, model="m", status=status, output=output)
    return StoredTurn(given, response, **fields)


def own(index: int, body: str = BODY) -> str:
    return ids.item_id("message", body, index)


def test_added_items_are_a_finished_turn_that_is_not_to_be_stored() -> None:
    entry = entries.added(BODY, [user("one"), user("two", "mine")], 7)

    assert entry.response == Response(
        id=f"resp_{BODY}", created_at=7, model="", status=Status.COMPLETED, store=False
    )
    assert [item["id"] for item in entry.input] == [own(0), "mine"]


def test_an_item_has_the_index_of_its_id_and_one_that_is_not_ours_gets_a_free_one() -> None:
    entry = turn(
        [user("a", own(2)), user("b", "mine"), user("c", own(0, OTHER))],
        [user("d", own(0)), user("e", own(0)), user("f", "mine")],
    )

    found = entries.items_of(BODY, entry)

    assert {index: text_of(item) for index, item in found.items()} == {
        2: "a", 1: "b", 3: "c", 0: "d", 4: "e", 5: "f",
    }  # fmt: skip
    assert [item["id"] for item in found.values()] == [own(index) for index in found]
    assert found[2] is entry.input[0]


@pytest.mark.parametrize("status", list(Status))
def test_only_a_turn_that_came_to_something_has_items(status: Status) -> None:
    entry = turn([user("a", own(0))], [user("b", own(1))], status)

    is_shown = status in (Status.COMPLETED, Status.INCOMPLETE)

    assert len(entries.items_of(BODY, entry)) == 2 * is_shown
    assert (entries.find(BODY, entry, (), own(0)) is not None) is is_shown


@pytest.mark.parametrize(
    ("order", "after", "deleted", "expected"),
    [
        ("asc", None, set(), "abc"),
        ("desc", None, set(), "cba"),
        ("asc", own(0), set(), "bc"),
        ("desc", own(1), set(), "a"),
        ("asc", own(2), set(), ""),
        ("asc", own(1), {1}, "c"),
        ("desc", None, {0, 2}, "b"),
        ("asc", own(3), set(), None),
        ("asc", own(0).replace("msg", "fc"), set(), None),
        ("asc", own(0, OTHER), set(), None),
    ],
)
def test_a_page_begins_behind_its_cursor(
    order: str, after: str | None, deleted: set[int], expected: str | None
) -> None:
    entry = turn([user("a", own(0)), user("b", own(1))], [user("c", own(2))])

    found = entries.visible(BODY, entry, deleted, order=order, after=after)

    assert (found and "".join(map(text_of, found))) == (
        expected or (None if expected is None else [])
    )


def test_an_item_is_found_by_its_whole_id() -> None:
    entry = turn([user("a", own(0)), user("b", "mine")], [])

    assert entries.find(BODY, entry, (), own(0)) == user("a", own(0))
    assert entries.find(BODY, entry, (), own(1)) == user("b", own(1))
    assert entries.find(BODY, entry, {0}, own(0)) is None
    for wrong in ("mine", own(2), own(0).replace("msg", "fc"), own(0, OTHER), ""):
        assert entries.find(BODY, entry, (), wrong) is None


def test_what_remains_keeps_its_own_ids_and_everything_else() -> None:
    entry = turn([user("a", own(0)), user("b", "mine")], [user("c", own(2)), user("d", own(3))])

    left = entries.remaining(BODY, entry, {0, 2})

    assert left.input == [user("b", "mine")]
    assert left.response.output == [user("d", own(3))]
    assert left.response.id == entry.response.id
    assert entries.remaining(BODY, entry, ()) is entry
