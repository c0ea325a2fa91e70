"""Turns of sessions: where one goes on that names nothing to continue, and what it moves at its end."""

import logging
from typing import Final

from channel.isolation import IsolationKeys
from channel.ports import StoredTurn
from channel.responses.protocol.requests import CreateResponse
from channel.responses.protocol.response import Response
from channel.responses.run import Save
from channel.responses.sockets.local_turns import CONTINUABLE
from channel.sessions import BeganAt, FoundSession, SessionStore


_LOG: Final = logging.getLogger(__name__)


class SessionTurns:
    """The sessions of one channel: each chat that a delegate names is one.

    Whatever a turn goes on after, it moves the head of its chat, if that is still where it was when
    the turn began.
    """

    def __init__(self, store: SessionStore) -> None:
        """Take the heads."""
        self._store = store

    async def found(self, keys: IsolationKeys, request: CreateResponse) -> FoundSession | None:
        """Return the session of a request; None where it names no chat, or nothing hangs on it."""
        if keys.chat_key is None or request.conversation is not None:
            return None
        if request.store is False and request.previous_response_id is not None:
            return None  # it neither goes on after the head nor moves it
        return FoundSession(keys.chat_key, await self._store.head(keys, keys.chat_key))

    def saving(self, keys: IsolationKeys, found: FoundSession, save: Save) -> Save:
        """Return what saves a turn and then moves the head, before anybody is told of its end.

        Where only the latter fails the turn is told as failed: the chat does not go on after it.
        """

        async def save_and_move(turn: StoredTurn) -> None:
            await save(turn)
            await self.advance(keys, found, turn.response, resets=turn.resets)

        return save_and_move

    async def advance(
        self, keys: IsolationKeys, found: FoundSession, response: Response, *, resets: bool = False
    ) -> None:
        """Make a response that is stored the head; a second time changes nothing.

        One that cannot be continued does not become it. Where another one is the head meanwhile, a
        turn that `resets` has that forgotten; not a second time, when what began since would be
        forgotten, too. Raises `StoreError`.
        """
        if response.status not in CONTINUABLE:
            return
        if await self._store.move(keys, found.key, response.id, after=found.head):
            return
        facts = {"response_id": response.id, "session_head": found.response_id}
        _LOG.info("turn is beside the head of its session, which has moved", extra=facts)
        if resets and not found.forgets_itself:
            await self._store.forget(keys, found.key)

    async def advance_replayed(
        self, keys: IsolationKeys, began_at: BeganAt | None, response: Response
    ) -> None:
        """Make up for a move that a crash has cut off, as its request comes again; raises `StoreError`."""
        if keys.chat_key is not None and began_at is not None:
            await self.advance(keys, FoundSession(keys.chat_key, began_at.head), response)
