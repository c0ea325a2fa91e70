"""The heads of sessions kept in memory: for tests, first light, and a local server that forgets."""

import time
from collections import OrderedDict
from threading import Lock
from typing import Final

from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.memory import MONTH_S, require_user
from channel.ports import Clock


MAX_SESSIONS: Final = 10_000


class InMemorySessionStore:
    """The `SessionStore` of one process, for any number of threads; it forgets with its process.

    It has at most `max_sessions`: those that were used least recently are forgotten first. Nothing
    like it is in front of a table: it would be wrong as soon as two processes serve one chat.
    """

    def __init__(
        self,
        *,
        clock: Clock = time.time,
        retention_s: float = MONTH_S,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        """Keep a session for `retention_s` after its last move."""
        self._clock = clock
        self._retention_s = retention_s
        self._max_sessions = max_sessions
        self._lock = Lock()
        self._heads: OrderedDict[tuple[IsolationKeys, str], _Head] = OrderedDict()

    async def head(self, keys: IsolationKeys, session_key: str, /) -> str | None:
        """Return the id of the response at the head, or None."""
        require_user(keys)
        with self._lock:
            head = self._found(keys, session_key)
            if head is None:
                return None
            self._heads.move_to_end((keys, session_key))
            return head.response_id

    async def move(
        self, keys: IsolationKeys, session_key: str, response_id: str, /, *, after: str | None
    ) -> bool:
        """Make a response the head where `after` is it still."""
        require_user(keys)
        with self._lock:
            head = self._found(keys, session_key)
            if (head.response_id if head else None) not in (after, response_id):
                return False
            self._heads[keys, session_key] = _Head(response_id, self._clock() + self._retention_s)
            self._heads.move_to_end((keys, session_key))
            while len(self._heads) > self._max_sessions:
                self._heads.popitem(last=False)
            return True

    async def forget(self, keys: IsolationKeys, session_key: str, /) -> bool:
        """Let the session have no head; False where it had none."""
        require_user(keys)
        with self._lock:
            had_one = self._found(keys, session_key) is not None
            self._heads.pop((keys, session_key), None)
            return had_one

    def _found(self, keys: IsolationKeys, session_key: str) -> "_Head | None":
        head = self._heads.get((keys, session_key))
        return None if head is None or head.until < self._clock() else head


class _Head(Struct, frozen=True):
    response_id: str
    until: float
