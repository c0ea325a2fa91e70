"""The port of conversations: a named, growing list of items that one turn at a time goes on with."""

from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.ports import Branch, StoredTurn, StoreError
from channel.responses.protocol.items import Item


LOCK_GRACE_S: Final = 10.0
"""Seconds after the end of a lock in which nobody else gets it: a save that began in time is done then."""


class Conversation(Struct, frozen=True):
    """A conversation without its items; `created_at` is in whole Unix seconds."""

    id: str
    created_at: int
    metadata: dict[str, str]


class ItemPage(Struct, frozen=True):
    """Items of a conversation in the order that was asked for, and whether there are more."""

    items: list[Item]
    has_more: bool


class ConversationLockedError(Exception):
    """A turn of the conversation is running, so nothing else may be added to it."""


class UnknownCursorError(Exception):
    """A page was asked for after an item that the conversation never had."""


class LockLostError(StoreError):
    """The lock ran out before the turn was saved, and another turn has taken it: it is not kept."""

    is_passing = False


class ConversationStore(Protocol):
    """Conversations, partitioned by the isolation keys like the responses, which it shares.

    The turns of a conversation are saved, read and deleted as responses of the `ResponseStore`
    beside it; their items, and those that were added, are the conversation's. Items of failed and
    cancelled turns are not, and an item is deleted here, not with its response. Every item has an
    id of the store's making here, also one that came with an id of its own.

    None and False stand for what is unknown, foreign, malformed or deleted alike. Every method
    raises `StoreError` when the storage fails; `turns` and `enter` raise `HistoryTooLargeError`.
    """

    async def create(
        self, keys: IsolationKeys, metadata: dict[str, str], items: Sequence[Item], /
    ) -> Conversation:
        """Begin a conversation with these items, in normal form."""
        ...

    async def get(self, keys: IsolationKeys, conversation_id: str, /) -> Conversation | None:
        """Return a conversation."""
        ...

    async def update(
        self, keys: IsolationKeys, conversation_id: str, metadata: dict[str, str], /
    ) -> Conversation | None:
        """Replace the metadata, and return the conversation as it is then."""
        ...

    async def delete(self, keys: IsolationKeys, conversation_id: str, /) -> bool:
        """Delete a conversation; its responses and items expire from then on, like any response.

        Raises `ConversationLockedError`.
        """
        ...

    async def add(
        self, keys: IsolationKeys, conversation_id: str, items: Sequence[Item], /
    ) -> list[Item] | None:
        """Append items, and return them with their ids. Raises `ConversationLockedError`."""
        ...

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
        """Return items in the `order` `asc` or `desc`, those behind the item `after`.

        That item may have been deleted meanwhile. A page of large items ends early, with an item
        at least, and says that there are more. Raises `UnknownCursorError`.
        """
        ...

    async def item(self, keys: IsolationKeys, conversation_id: str, item_id: str, /) -> Item | None:
        """Return one item of a conversation."""
        ...

    async def delete_item(
        self, keys: IsolationKeys, conversation_id: str, item_id: str, /
    ) -> Conversation | None:
        """Delete one item, and return its conversation. The response that it is of keeps it."""
        ...

    async def turns(
        self, keys: IsolationKeys, conversation_id: str, /
    ) -> Sequence[StoredTurn] | None:
        """Return all turns, without entering; those that are older than the newest reset as well."""
        ...

    async def enter(
        self, keys: IsolationKeys, conversation_id: str, owner: str, until: float, /
    ) -> Branch | None:
        """Lock the conversation until then (Unix seconds), and mint the place of a new turn in it.

        The branch holds what the turn goes on with. Saving the turn needs the lock: where it ran
        out and another has it, `ResponseStore.save` raises `LockLostError`. The owner of the lock
        may enter again. Raises `ConversationLockedError`.
        """
        ...

    async def extend(
        self, keys: IsolationKeys, conversation_id: str, owner: str, until: float, /
    ) -> bool:
        """Keep the lock until then; False where it is not the owner's any more."""
        ...

    async def leave(self, keys: IsolationKeys, conversation_id: str, owner: str, /) -> None:
        """Unlock the conversation, where the lock is the owner's."""
        ...
