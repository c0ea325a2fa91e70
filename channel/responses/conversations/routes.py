"""The routes of conversations and their items, each from its HTTP request to the store and back."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request

from channel.auth import Caller, caller_of
from channel.contract import PlainRoute
from channel.conversations import (
    Conversation,
    ConversationLockedError,
    ConversationStore,
    UnknownCursorError,
)
from channel.http import JSONReply, read_body
from channel.ports import TurnTooLargeError
from channel.responses.operations import ResponseOperations
from channel.responses.paging import asked_page, list_object, unknown_cursor
from channel.responses.protocol.errors import (
    RequestError,
    conversation_locked,
    conversation_not_found,
)
from channel.responses.protocol.input import input_items
from channel.responses.protocol.items import Item
from channel.responses.protocol.requests import Metadata
from channel.responses.protocol.shapes import checked, decoded


MAX_ITEMS: Final = 20
"""Items that one request may add, as at OpenAI."""

_Items = Annotated[list[dict[str, Any]], Meta(max_length=MAX_ITEMS)]
_Shape = TypeVar("_Shape")


class _Create(Struct, frozen=True):
    metadata: Metadata | None = None
    items: _Items | None = None


class _Update(Struct, frozen=True):
    metadata: Metadata | None


class _Add(Struct, frozen=True):
    items: _Items


class Conversations:
    """`/conversations` and everything below it; `routes` are relative to the channel's path."""

    def __init__(self, store: ConversationStore, operations: ResponseOperations) -> None:
        """Serve what is in the store; references in items are looked up by the operations."""
        self._store = store
        self._operations = operations

    @property
    def routes(self) -> list[PlainRoute]:
        """The routes."""
        one = "/conversations/{conversation_id}"
        item = one + "/items/{item_id}"
        return [
            PlainRoute("/conversations", self._create, methods=["POST"]),
            PlainRoute(one, self._one, methods=["GET", "POST", "DELETE"]),
            PlainRoute(f"{one}/items", self._items, methods=["GET", "POST"]),
            PlainRoute(item, self._item, methods=["GET", "DELETE"]),
        ]

    async def _create(self, request: Request) -> JSONReply:
        caller = caller_of(request.scope)
        body = await read_body(request.scope, request.receive)
        given = _parsed(body or b"{}", _Create)
        items = await self._taken(caller, given.items or ())
        try:
            made = await self._store.create(caller.keys, given.metadata or {}, items)
        except TurnTooLargeError as error:
            raise _too_large() from error
        return _reply(made)

    async def _one(self, request: Request) -> JSONReply:
        keys, conversation_id = caller_of(request.scope).keys, _conversation_id(request)
        if request.method == "DELETE":
            try:
                existed = await self._store.delete(keys, conversation_id)
            except ConversationLockedError:
                raise conversation_locked() from None
            if not existed:
                raise conversation_not_found(conversation_id)
            deleted = {"object": "conversation.deleted", "deleted": True}
            return JSONReply({"id": conversation_id, **deleted})
        if request.method == "POST":
            body = await read_body(request.scope, request.receive)
            metadata = _parsed(body, _Update).metadata or {}
            found = await self._store.update(keys, conversation_id, metadata)
        else:
            found = await self._store.get(keys, conversation_id)
        if found is None:
            raise conversation_not_found(conversation_id)
        return _reply(found)

    async def _items(self, request: Request) -> JSONReply:
        if request.method == "POST":
            return await self._add(request)
        page, conversation_id = asked_page(request.query_params), _conversation_id(request)
        try:
            found = await self._store.page(
                caller_of(request.scope).keys,
                conversation_id,
                limit=page.limit,
                order=page.order,
                after=page.after,
            )
        except UnknownCursorError:
            raise unknown_cursor("after") from None
        if found is None:
            raise conversation_not_found(conversation_id)
        return JSONReply(list_object(found.items, has_more=found.has_more))

    async def _add(self, request: Request) -> JSONReply:
        caller, conversation_id = caller_of(request.scope), _conversation_id(request)
        body = await read_body(request.scope, request.receive)
        items = await self._taken(caller, _parsed(body, _Add).items)
        try:
            added = await self._store.add(caller.keys, conversation_id, items)
        except ConversationLockedError:
            raise conversation_locked() from None
        except TurnTooLargeError as error:
            raise _too_large() from error
        if added is None:
            raise conversation_not_found(conversation_id)
        return JSONReply(list_object(added, has_more=False))

    async def _item(self, request: Request) -> JSONReply:
        keys, conversation_id = caller_of(request.scope).keys, _conversation_id(request)
        item_id: str = request.path_params["item_id"]
        if request.method == "DELETE":
            conversation = await self._store.delete_item(keys, conversation_id, item_id)
            if conversation is not None:
                return _reply(conversation)
        else:
            item = await self._store.item(keys, conversation_id, item_id)
            if item is not None:
                return JSONReply(item)
        if await self._store.get(keys, conversation_id) is None:
            raise conversation_not_found(conversation_id)
        msg = f"Item with id '{item_id}' not found in conversation '{conversation_id}'."
        raise RequestError(msg, status=404)

    async def _taken(self, caller: Caller, given: Sequence[dict[str, Any]]) -> Sequence[Item]:
        """Return items in normal form, checked like `input`."""
        items = input_items(given, "items")
        return await self._operations.references.resolved(caller.keys, items, param="items")


def _parsed(body: bytes, shape: type[_Shape]) -> _Shape:
    return checked(decoded(body, msgspec.json.decode), shape, "")


def _reply(conversation: Conversation) -> JSONReply:
    return JSONReply(
        {
            "id": conversation.id,
            "object": "conversation",
            "created_at": conversation.created_at,
            "metadata": conversation.metadata,
        }
    )


def _conversation_id(request: Request) -> str:
    identifier: str = request.path_params["conversation_id"]
    return identifier


def _too_large() -> RequestError:
    msg = "The items are too large to be stored."
    return RequestError(msg, param="items", code="request_too_large", status=413)
