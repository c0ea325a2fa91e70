from collections.abc import AsyncIterator
from typing import Any

import pytest

from channel.agent import Turn
from channel.ports import StoredTurn
from channel.responses.history import history_of
from channel.responses.paging import Page, list_page
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item
from channel.responses.protocol.response import Response
from tests.channel.asgi import create, creating, get, hosted


ITEMS: list[Item] = [{"id": name, "type": "x"} for name in "abcde"]


def page(**wanted: Any) -> tuple[str, str | None, str | None, bool]:
    listed = list_page(ITEMS, Page(**wanted))
    assert listed.keys() == {"object", "data", "first_id", "last_id", "has_more"}
    names = "".join(item["id"] for item in listed["data"])
    return names, listed["first_id"], listed["last_id"], listed["has_more"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ("edcba", "e", "a", False)),
        ({"order": "asc"}, ("abcde", "a", "e", False)),
        ({"limit": 2}, ("ed", "e", "d", True)),
        ({"limit": 5}, ("edcba", "e", "a", False)),
        ({"limit": 2, "after": "d"}, ("cb", "c", "b", True)),
        ({"limit": 2, "after": "c"}, ("ba", "b", "a", False)),
        ({"after": "a"}, ("", "", "", False)),
        ({"order": "asc", "after": "c"}, ("de", "d", "e", False)),
        ({"order": "asc", "before": "c"}, ("ab", "a", "b", False)),
        ({"order": "asc", "after": "a", "before": "e"}, ("bcd", "b", "d", False)),
        ({"order": "asc", "after": "a", "before": "e", "limit": 2}, ("bc", "b", "c", True)),
        ({"order": "asc", "after": "d", "before": "b"}, ("", "", "", False)),
        ({"before": "e"}, ("", "", "", False)),
    ],
)
def test_pages(wanted: dict[str, Any], found: tuple[str, str, str, bool]) -> None:
    assert page(**wanted) == found


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_following_after_reads_every_item_once(order: str) -> None:
    read: list[str] = []
    after: str | None = None
    has_more = True
    while has_more:
        names, _, after, has_more = page(limit=2, order=order, after=after)
        read += names

    assert "".join(read) == ("abcde" if order == "asc" else "edcba")


@pytest.mark.parametrize("param", ["after", "before"])
def test_a_cursor_that_is_not_in_the_list_is_refused(param: str) -> None:
    with pytest.raises(RequestError) as caught:
        page(**{param: "z"})

    assert (caught.value.status, caught.value.param) == (400, param)


def test_an_empty_list() -> None:
    assert list_page([], Page()) == {
        "object": "list",
        "data": [],
        "first_id": "",
        "last_id": "",
        "has_more": False,
    }


def test_history_is_input_and_output_in_order_without_unfinished_calls() -> None:
    call = {"id": "f", "type": "function_call", "call_id": "c", "status": "completed"}
    unfinished = {**call, "id": "g", "status": "incomplete"}
    partial = {"id": "h", "type": "message", "status": "incomplete"}

    def turn(given: list[Item], said: list[Item]) -> StoredTurn:
        return StoredTurn(given, Response(id="r", created_at=0, model="m", output=said))

    turns = [turn([ITEMS[0]], [ITEMS[1], unfinished, partial]), turn([ITEMS[2]], [call])]

    assert history_of(turns) == [ITEMS[0], ITEMS[1], partial, ITEMS[2], call]


@pytest.mark.anyio
async def test_references_bring_in_no_more_than_a_request_may_hold() -> None:
    app = hosted(_silent)
    large = {"role": "user", "content": "x" * 500_000}
    first = await create(app, input=[large])
    listed = await get(app, f"/v1/responses/{first['id']}/input_items")
    reference = {"type": "item_reference", "id": listed.json["data"][0]["id"]}

    few = await creating(input=[reference] * 12).run(app)
    many = await creating(input=[reference] * 13).run(app)

    assert few.status == 200
    assert (many.status, many.error_body["param"], many.error_body["code"]) == (
        400,
        "input",
        "invalid_value",
    )


async def _silent(_: Turn) -> AsyncIterator[str]:
    yield "a"
