"""Idempotency keys kept in memory: for tests, first light, and a local server that forgets."""

import time
from threading import Lock
from typing import TypeAlias

from msgspec.structs import replace

from channel.isolation import IsolationKeys
from channel.ports import Clock
from channel.responses.idempotency import Claim, Entry, Verdict, judged


_Key: TypeAlias = tuple[IsolationKeys, str]


class InMemoryIdempotencyStore:
    """The `IdempotencyStore` of one process, for any number of threads; it forgets with its process."""

    def __init__(self, *, clock: Clock = time.time) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._lock = Lock()
        self._entries: dict[_Key, Entry] = {}

    async def claim(self, keys: IsolationKeys, key: str, entry: Entry, /) -> Claim:
        """Keep the entry where the key is unused or its time is over."""
        if not keys.user_key:
            raise ValueError("Storage is partitioned by user: the isolation keys name none.")
        with self._lock:
            self._drop_expired()
            claim = judged(self._entries.get((keys, key)), entry, self._clock())
            if claim.verdict is Verdict.FIRST:
                self._entries[keys, key] = entry
        return claim

    async def note(self, keys: IsolationKeys, key: str, entry: Entry, /) -> None:
        """Keep the entry in place of the claim with its token."""
        with self._lock:
            kept = self._entries.get((keys, key))
            if kept is not None and kept.token == entry.token:
                self._entries[keys, key] = entry

    async def finish(
        self, keys: IsolationKeys, key: str, token: str, response_id: str, until: float, /
    ) -> None:
        """Keep the result of a claim until then."""
        with self._lock:
            kept = self._entries.get((keys, key))
            if kept is not None and kept.token == token:
                self._entries[keys, key] = replace(
                    kept, response_id=response_id, until=until, held_until=None
                )

    async def release(self, keys: IsolationKeys, key: str, token: str, /) -> None:
        """Let the key of a claim be used again."""
        with self._lock:
            kept = self._entries.get((keys, key))
            if kept is None or kept.token != token:
                return
            if kept.response_id is None or kept.held_until is not None:
                del self._entries[keys, key]

    def _drop_expired(self) -> None:
        now = self._clock()
        for key in [key for key, entry in self._entries.items() if entry.until < now]:
            del self._entries[key]
