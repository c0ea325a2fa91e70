"""Conversations kept in memory: for tests, first light, and a local server that forgets."""

import time
from collections.abc import Sequence
from math import inf

from msgspec.structs import replace

from channel import entries
from channel.conversations import (
    LOCK_GRACE_S,
    Conversation,
    ConversationLockedError,
    ItemPage,
    UnknownCursorError,
)
from channel.isolation import IsolationKeys
from channel.memory import (
    MONTH_S,
    EntryPlace,
    InMemoryResponseStore,
    KeptConversation,
    require_user,
)
from channel.ports import (
    Branch,
    Clock,
    HistoryTooLargeError,
    NewToken,
    StoredTurn,
    random_hex,
)
from channel.responses.protocol import ids
from channel.responses.protocol.items import Item
from channel.room import HistoryRoom


_NAME_BYTES = 10


class InMemoryConversationStore:
    """The `ConversationStore` of one process, over the turns of its `InMemoryResponseStore`."""

    def __init__(
        self,
        responses: InMemoryResponseStore,
        *,
        new_token: NewToken = random_hex,
        clock: Clock = time.time,
        retention_s: float = MONTH_S,
    ) -> None:
        """Keep what is left of a deleted conversation for `retention_s`."""
        self._responses = responses
        self._new_token = new_token
        self._clock = clock
        self._retention_s = retention_s
        self._kept: dict[tuple[IsolationKeys, str], KeptConversation] = {}

    async def create(
        self, keys: IsolationKeys, metadata: dict[str, str], items: Sequence[Item], /
    ) -> Conversation:
        """Begin a conversation with these items."""
        require_user(keys)
        identifier = ids.conversation_id(self._new_token(_NAME_BYTES))
        conversation = Conversation(identifier, int(self._clock()), metadata)
        self._kept[keys, identifier] = kept = KeptConversation(conversation)
        if items:
            self._responses.add_entry(keys, _next(kept), items)
        return conversation

    async def get(self, keys: IsolationKeys, conversation_id: str, /) -> Conversation | None:
        """Return a conversation."""
        kept = self._find(keys, conversation_id)
        return kept.conversation if kept else None

    async def update(
        self, keys: IsolationKeys, conversation_id: str, metadata: dict[str, str], /
    ) -> Conversation | None:
        """Replace the metadata."""
        kept = self._find(keys, conversation_id)
        if kept is None:
            return None
        kept.conversation = replace(kept.conversation, metadata=metadata)
        return kept.conversation

    async def delete(self, keys: IsolationKeys, conversation_id: str, /) -> bool:
        """Delete a conversation; its turns expire."""
        kept = self._find(keys, conversation_id)
        if kept is None:
            return False
        self._require_free(kept)
        del self._kept[keys, conversation_id]
        kept.owner, kept.is_deleted = "", True
        for node in kept.entries.values():
            node.expires_at = min(node.expires_at, self._clock() + self._retention_s)
        return True

    async def add(
        self, keys: IsolationKeys, conversation_id: str, items: Sequence[Item], /
    ) -> list[Item] | None:
        """Append items."""
        kept = self._find(keys, conversation_id)
        if kept is None:
            return None
        self._require_free(kept)
        node = self._responses.add_entry(keys, _next(kept), items)
        return [*entries.items_of(node.body, node.turn()).values()]

    async def page(
        self,
        keys: IsolationKeys,
        conversation_id: str,
        /,
        *,
        limit: int,
        order: str,
        after: str | None,
    ) -> ItemPage | None:
        """Return items in order."""
        kept = self._find(keys, conversation_id)
        if kept is None:
            return None
        nodes = kept.before(inf)
        if order != "asc":
            nodes.reverse()
        if after is not None:
            place = ids.item_place(after)
            bodies = [node.body for node in nodes]
            if place is None or place.body not in bodies:
                raise UnknownCursorError
            nodes = nodes[bodies.index(place.body) :]
        items: list[Item] = []
        room = HistoryRoom()
        for position, node in enumerate(nodes):
            if not items:
                room = HistoryRoom(takes_first=True)
            try:
                room.take(node.size)
            except HistoryTooLargeError:
                return ItemPage(items[:limit], has_more=True)
            behind = after if position == 0 else None
            shown = entries.visible(node.body, node.turn(), node.deleted, order=order, after=behind)
            if shown is None:
                raise UnknownCursorError
            items += shown
            if len(items) > limit:
                break
        return ItemPage(items[:limit], len(items) > limit)

    async def item(self, keys: IsolationKeys, conversation_id: str, item_id: str, /) -> Item | None:
        """Return one item."""
        kept = self._find(keys, conversation_id)
        place = ids.item_place(item_id)
        node = self._responses.entry(keys, place.body) if place else None
        if node is None or node.entry is None or node.entry.kept is not kept:
            return None
        return entries.find(node.body, node.turn(), node.deleted, item_id)

    async def delete_item(
        self, keys: IsolationKeys, conversation_id: str, item_id: str, /
    ) -> Conversation | None:
        """Delete one item."""
        place = ids.item_place(item_id)
        if place is None or await self.item(keys, conversation_id, item_id) is None:
            return None
        node = self._responses.entry(keys, place.body)
        if node is not None:
            node.deleted |= {place.position}
        return await self.get(keys, conversation_id)

    async def turns(
        self, keys: IsolationKeys, conversation_id: str, /
    ) -> Sequence[StoredTurn] | None:
        """Return all turns."""
        kept = self._find(keys, conversation_id)
        return kept.all_turns() if kept else None

    async def enter(
        self, keys: IsolationKeys, conversation_id: str, owner: str, until: float, /
    ) -> Branch | None:
        """Lock the conversation, and mint the place of a new turn in it."""
        kept = self._find(keys, conversation_id)
        if kept is None:
            return None
        if kept.owner != owner:
            self._require_free(kept)
        turns = kept.turns()
        kept.owner, kept.until = owner, until
        return Branch(self._responses.mint(), turns, replace(_next(kept), owner=owner, until=until))

    async def extend(
        self, keys: IsolationKeys, conversation_id: str, owner: str, until: float, /
    ) -> bool:
        """Keep the lock until then."""
        kept = self._find(keys, conversation_id)
        if kept is None or kept.owner != owner:
            return False
        kept.until = until
        return True

    async def leave(self, keys: IsolationKeys, conversation_id: str, owner: str, /) -> None:
        """Unlock the conversation."""
        kept = self._find(keys, conversation_id)
        if kept is not None and kept.owner == owner:
            kept.owner = ""

    def _find(self, keys: IsolationKeys, conversation_id: str) -> KeptConversation | None:
        require_user(keys)
        return self._kept.get((keys, conversation_id))

    def _require_free(self, kept: KeptConversation) -> None:
        if kept.owner and kept.until >= self._clock() - LOCK_GRACE_S:
            raise ConversationLockedError


def _next(kept: KeptConversation) -> EntryPlace:
    kept.count += 1
    return EntryPlace(kept, kept.count)
