"""`References`: items that a request names by their ids, looked up in the tenant's own data."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from channel.http import MAX_BODY_BYTES
from channel.isolation import IsolationKeys
from channel.ports import ResponseStore
from channel.responses.protocol import input as given_input
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.items import Item
from channel.responses.protocol.window import COMPACTION
from channel.responses.windows.context import ContextWindows


MAX_REFERENCES: Final = 128
"""Item references in one request that are looked up in storage; each costs a read."""


class References:
    """Resolves the references in items, and refuses compactions that are not the tenant's."""

    def __init__(self, store: ResponseStore, windows: ContextWindows) -> None:
        """Take where items are, and who knows compactions."""
        self._store = store
        self._windows = windows

    async def resolved(
        self,
        keys: IsolationKeys,
        items: Sequence[Item],
        history: Sequence[Item] = (),
        *,
        param: str = "input",
    ) -> Sequence[Item]:
        """Return the items with references replaced by what they name, in this tenant's own data.

        Raises `RequestError` for a reference to nothing, and for a compaction that is not the tenant's.
        """
        kinds = {item["type"] for item in items}
        if COMPACTION in kinds:
            await self._windows.require_own(keys, items, param)
        if given_input.REFERENCE not in kinds:
            return items
        references = [item for item in items if item["type"] == given_input.REFERENCE]
        known = {item["id"]: item for item in (*history, *items) if isinstance(item.get("id"), str)}
        known = {key: item for key, item in known.items() if item["type"] != given_input.REFERENCE}
        unknown = dict.fromkeys(item["id"] for item in references if item["id"] not in known)
        if len(unknown) > MAX_REFERENCES:
            msg = f"Too many item references: at most {MAX_REFERENCES} are looked up."
            raise RequestError(msg, param=param, code="invalid_value")
        for item_id in unknown:
            item = await self._store.item(keys, item_id)
            if item is None:
                msg = f"Item with id '{item_id}' not found."
                raise RequestError(msg, param=param, status=404)
            known[item_id] = item
        _require_bounded([item["id"] for item in references], known, param)
        return [
            known[item["id"]] if item["type"] == given_input.REFERENCE else item for item in items
        ]


def _require_bounded(references: Iterable[str], known: Mapping[str, Item], param: str) -> None:
    """Refuse references that bring in more than a request may hold: each may be given many times."""
    sizes: dict[str, int] = {}
    total = 0
    for item_id in references:
        if item_id not in sizes:
            sizes[item_id] = len(msgspec.json.encode(known[item_id]))
        total += sizes[item_id]
        if total > MAX_BODY_BYTES:
            msg = (
                f"The items that are referred to have more than {MAX_BODY_BYTES >> 20} MB together."
            )
            raise RequestError(msg, param=param, code="invalid_value")
