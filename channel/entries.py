"""Entries of conversations: which items each shows, and what of it a later turn goes on with. Pure.

An entry is the stored record of one turn, or of items that were added by themselves. The index of an
item is the one in its id. An item that came with an id of its own gets one of ours wherever it is
shown, so that every id is unique and says where its item is.
"""

from collections.abc import Collection, Sequence
from itertools import count

from msgspec.structs import replace

from channel.ports import StoredTurn
from channel.responses.protocol import ids
from channel.responses.protocol.input import with_ids
from channel.responses.protocol.items import Item
from channel.responses.protocol.response import Response, Status


COUNTED = frozenset({Status.COMPLETED, Status.INCOMPLETE})
"""The statuses of turns whose items are in the conversation."""


def added(body: str, items: Sequence[Item], created_at: int) -> StoredTurn:
    """Return the entry of items that were added by themselves: a turn that nobody can retrieve."""
    response = Response(
        id=ids.response_id(body),
        created_at=created_at,
        status=Status.COMPLETED,
        model="",
        store=False,
    )
    return StoredTurn(with_ids(items, body, set()), response)


def items_of(body: str, turn: StoredTurn) -> dict[int, Item]:
    """Return the items of an entry in order, by index, also those that were deleted since."""
    if turn.response.status not in COUNTED:
        return {}
    items = [*turn.input, *turn.response.output]
    return {
        index: item
        if item.get("id") == _id(item, body, index)
        else {**item, "id": _id(item, body, index)}
        for index, item in zip(_indexes(body, items), items, strict=True)
    }


def visible(
    body: str, turn: StoredTurn, deleted: Collection[int], *, order: str, after: str | None = None
) -> list[Item] | None:
    """Return the items of an entry in the order `asc` or `desc`, those behind the item `after`.

    None where the entry has no such item; one that was deleted still says where it was.
    """
    items = items_of(body, turn)
    ordered = [*items.items()] if order == "asc" else [*reversed(items.items())]
    if after is not None:
        position = next((n for n, (_, item) in enumerate(ordered) if item["id"] == after), None)
        if position is None:
            return None
        ordered = ordered[position + 1 :]
    return [item for index, item in ordered if index not in deleted]


def find(body: str, turn: StoredTurn, deleted: Collection[int], item_id: str) -> Item | None:
    """Return the item of that id, unless it was deleted."""
    place = ids.item_place(item_id)
    if place is None or place.body != body or place.position in deleted:
        return None
    item = items_of(body, turn).get(place.position)
    return item if item and item["id"] == item_id else None


def remaining(body: str, turn: StoredTurn, deleted: Collection[int]) -> StoredTurn:
    """Return what a later turn goes on with: without deleted items, which keep their own ids."""
    if not deleted:
        return turn
    items = [*turn.input, *turn.response.output]
    kept = [index not in deleted for index in _indexes(body, items)]
    given = len(turn.input)
    return replace(
        turn,
        input=[item for item, is_kept in zip(turn.input, kept, strict=False) if is_kept],
        response=replace(
            turn.response,
            output=[
                item
                for item, is_kept in zip(turn.response.output, kept[given:], strict=True)
                if is_kept
            ],
        ),
    )


def _id(item: Item, body: str, index: int) -> str:
    return ids.item_id(item["type"], body, index)


def _indexes(body: str, items: Sequence[Item]) -> list[int]:
    """Return the index of each item: that of its id where it is ours, or else a free one."""
    places = [ids.item_place(str(item.get("id"))) for item in items]
    own = {place.position for place in places if place and place.body == body}
    free = (index for index in count() if index not in own)
    indexes: list[int] = []
    taken: set[int] = set()
    for place in places:
        is_own = place and place.body == body and place.position not in taken
        indexes.append(place.position if place and is_own else next(free))
        taken.add(indexes[-1])
    return indexes
