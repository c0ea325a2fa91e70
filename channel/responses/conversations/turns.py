"""Turns of conversations: entered with a lock, which the turn holds until it is stored."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from msgspec import Struct

from channel.conversations import ConversationLockedError, ConversationStore
from channel.isolation import IsolationKeys
from channel.ports import Branch, Clock, NewToken, random_hex
from channel.responses.protocol.errors import (
    RequestError,
    conversation_locked,
    conversation_not_found,
)


_OWNER_BYTES: Final = 8
_PARAM: Final = "conversation"


class Hold(Struct, frozen=True):
    """What a turn holds until it is stored: `release` lets it go, and `job` names it for a worker.

    `extend` keeps it until then (Unix seconds).
    """

    release: Callable[[], Awaitable[None]]
    extend: Callable[[float], Awaitable[bool]]
    job: dict[str, Any]


class ConversationTurns:
    """Where the turns of one channel's conversations go, or the refusal where it has none."""

    def __init__(
        self, store: ConversationStore | None, clock: Clock, *, new_token: NewToken = random_hex
    ) -> None:
        """Take the store; None refuses every conversation."""
        self._store = store
        self._clock = clock
        self._new_token = new_token

    async def enter(
        self, keys: IsolationKeys, conversation_id: str, limit_s: float
    ) -> tuple[Branch, Hold]:
        """Lock a conversation for a turn that takes `limit_s` at most; raises `RequestError`."""
        owner = self._new_token(_OWNER_BYTES)
        try:
            branch = await self._offered.enter(
                keys, conversation_id, owner, self._clock() + limit_s
            )
        except ConversationLockedError:
            raise conversation_locked() from None
        if branch is None:
            raise conversation_not_found(conversation_id, _PARAM)
        job = {"conversation_id": conversation_id, "owner": owner}
        return branch, self.hold(keys, job)

    async def look(self, keys: IsolationKeys, conversation_id: str, branch: Branch) -> Branch:
        """Return the branch with what a turn would go on with; raises `RequestError`."""
        turns = await self._offered.turns(keys, conversation_id)
        if turns is None:
            raise conversation_not_found(conversation_id, _PARAM)
        return Branch(branch.body, tuple(turns), branch.place)

    def hold(self, keys: IsolationKeys, job: dict[str, Any]) -> Hold:
        """Return what a turn holds by the name that a worker was given."""
        held = keys, job["conversation_id"], job["owner"]
        return Hold(partial(self._offered.leave, *held), partial(self._offered.extend, *held), job)

    @property
    def _offered(self) -> ConversationStore:
        if self._store is None:
            msg = "Unsupported parameter: 'conversation' is not offered by this server."
            raise RequestError(msg, param=_PARAM, code="unsupported_parameter")
        return self._store
