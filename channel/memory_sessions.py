"""The heads of sessions kept in memory: for tests, first light, and a local server that forgets."""

import time
from collections import OrderedDict
from threading import Lock
from typing import Final

from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.memory import MONTH_S, require_user
from channel.ports import Clock, NewToken, random_hex
from channel.sessions import Forgotten, Head


MAX_SESSIONS: Final = 10_000

_TOKEN_BYTES: Final = 8


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
        new_token: NewToken = random_hex,
    ) -> None:
        """Keep a session for `retention_s` after its last move."""
        self._clock = clock
        self._retention_s = retention_s
        self._max_sessions = max_sessions
        self._new_token = new_token
        self._lock = Lock()
        self._heads: OrderedDict[tuple[IsolationKeys, str], _Kept] = OrderedDict()

    async def head(self, keys: IsolationKeys, session_key: str, /) -> Head:
        """Return what is at the head."""
        require_user(keys)
        with self._lock:
            head = self._found(keys, session_key)
            if head is not None:
                self._heads.move_to_end((keys, session_key))
            return head

    async def move(
        self, keys: IsolationKeys, session_key: str, response_id: str, /, *, after: Head
    ) -> bool:
        """Make a response the head where `after` is it still."""
        require_user(keys)
        with self._lock:
            if self._found(keys, session_key) not in (after, response_id):
                return False
            self._keep(keys, session_key, response_id)
            return True

    async def forget(self, keys: IsolationKeys, session_key: str, /) -> bool:
        """Let nothing that began before become the head; False where no response was it."""
        require_user(keys)
        with self._lock:
            had_one = isinstance(self._found(keys, session_key), str)
            self._keep(keys, session_key, Forgotten(self._new_token(_TOKEN_BYTES)))
            return had_one

    def _keep(self, keys: IsolationKeys, session_key: str, head: str | Forgotten) -> None:
        self._heads[keys, session_key] = _Kept(head, self._clock() + self._retention_s)
        self._heads.move_to_end((keys, session_key))
        while len(self._heads) > self._max_sessions:
            self._heads.popitem(last=False)

    def _found(self, keys: IsolationKeys, session_key: str) -> Head:
        kept = self._heads.get((keys, session_key))
        return None if kept is None or kept.until < self._clock() else kept.head


class _Kept(Struct, frozen=True):
    head: str | Forgotten
    until: float
