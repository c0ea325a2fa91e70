"""Pages of lists: which part is asked for by a query string, and that part as OpenAI's list object."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.datastructures import QueryParams

from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item
from channel.responses.protocol.shapes import checked


class Page(Struct, frozen=True):
    """Which part of a list is asked for."""

    limit: int = 20
    order: str = "desc"
    after: str | None = None
    before: str | None = None


class _PageQuery(Struct, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


def asked_page(query: QueryParams) -> Page:
    """Return the page that a query string asks for; raises `RequestError`."""
    given: dict[str, Any] = {key: query[key] for key in ("limit", "order") if query.get(key)}
    if given.get("limit", "").isdecimal():
        given["limit"] = int(given["limit"][:9])
    parsed = checked(given, _PageQuery, "")
    return Page(
        limit=parsed.limit,
        order=parsed.order,
        after=query.get("after") or None,
        before=query.get("before") or None,
    )


def list_page(items: Sequence[Item], page: Page) -> dict[str, Any]:
    """Return the list object of a page; raises `RequestError` for a cursor that is not in the list."""
    ordered = [*items] if page.order == "asc" else [*reversed(items)]
    start = _cursor(ordered, page.after, "after", 1, default=0)
    end = _cursor(ordered, page.before, "before", 0, default=len(ordered))
    data = ordered[start:end][: page.limit]
    return list_object(data, has_more=start + len(data) < end)


def list_object(data: Sequence[Item], *, has_more: bool) -> dict[str, Any]:
    """Return OpenAI's list object, with all five fields."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": has_more,
    }


def unknown_cursor(param: str) -> RequestError:
    """Return the 400 for a cursor that is no item of the list."""
    return RequestError(
        f"Invalid value for '{param}': no item of this list has that id.",
        param=param,
        code="invalid_value",
    )


def _cursor(
    items: Sequence[Item], item_id: str | None, param: str, past: int, *, default: int
) -> int:
    if item_id is None:
        return default
    for position, item in enumerate(items):
        if item["id"] == item_id:
            return position + past
    raise unknown_cursor(param)
