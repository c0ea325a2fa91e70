"""Linked identities and undelivered replies kept in memory: for tests, and a server that forgets."""

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Final

from msgspec import Struct

from channel.delivery import NOTHING_LINKED, Linked, Undelivered
from channel.isolation import IsolationKeys
from channel.memory import MONTH_S, require_user
from channel.ports import Clock
from channel.targets import ChannelIdentity


MAX_KEYS: Final = 10_000
"""Isolation keys whose identities are kept; the ones that were used least recently are forgotten."""
MAX_UNDELIVERED: Final = 1_000
"""Deliveries that are kept; the oldest are dropped."""
WEEK_S: Final = 7 * 24 * 3600.0

_logger = logging.getLogger(__name__)


class _Kept(Struct, frozen=True):
    linked: Linked
    until: float


class InMemoryIdentityStore:
    """The `IdentityStore` of one process, for any number of threads; it forgets with its process.

    What is linked is kept for `retention_s` after the last identity was recorded.
    """

    def __init__(
        self,
        *,
        clock: Clock = time.time,
        retention_s: float = MONTH_S,
        max_keys: int = MAX_KEYS,
    ) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._retention_s = retention_s
        self._max_keys = max_keys
        self._lock = Lock()
        self._kept: OrderedDict[IsolationKeys, _Kept] = OrderedDict()

    async def record(self, keys: IsolationKeys, identity: ChannelIdentity, /) -> Linked:
        """Link an identity in place of its channel's, as the active one; return what was before."""
        require_user(keys)
        with self._lock:
            before = self._linked(keys)
            identities = {**before.identities, identity.channel: identity}
            until = self._clock() + self._retention_s
            self._kept[keys] = _Kept(Linked(identities, identity.channel), until)
            self._kept.move_to_end(keys)
            if len(self._kept) > self._max_keys:
                self._kept.popitem(last=False)
        return before

    async def linked(self, keys: IsolationKeys, /) -> Linked:
        """Return what is known."""
        require_user(keys)
        with self._lock:
            return self._linked(keys)

    async def unlink(self, keys: IsolationKeys, channel: str, /) -> bool:
        """Forget the identity of a channel; False where there is none."""
        require_user(keys)
        with self._lock:
            before = self._linked(keys)
            if channel not in before.identities:
                return False
            identities = {name: each for name, each in before.identities.items() if name != channel}
            active = None if before.active == channel else before.active
            self._kept[keys] = _Kept(Linked(identities, active), self._kept[keys].until)
        return True

    def _linked(self, keys: IsolationKeys) -> Linked:
        kept = self._kept.get(keys)
        if kept is None or kept.until < self._clock():
            return NOTHING_LINKED
        self._kept.move_to_end(keys)
        return kept.linked


class InMemoryUndeliveredStore:
    """The `UndeliveredStore` of one process, for any number of threads; it forgets with its process."""

    def __init__(self, *, clock: Clock = time.time, limit: int = MAX_UNDELIVERED) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._limit = limit
        self._lock = Lock()
        self._kept: dict[tuple[str, str], Undelivered] = {}

    async def keep(self, undelivered: Undelivered, /) -> None:
        """Keep it for a week, in place of what is kept of the same delivery id."""
        name = (undelivered.delivery.principal, undelivered.delivery.id)
        with self._lock:
            self._drop_expired()
            self._kept[name] = undelivered
            while len(self._kept) > self._limit:
                oldest = min(self._kept, key=lambda each: self._kept[each].at)
                del self._kept[oldest]
                _logger.warning("an undelivered reply was dropped", extra={"delivery": oldest[1]})

    async def get(self, principal: str, delivery_id: str, /) -> Undelivered | None:
        """Return one."""
        with self._lock:
            self._drop_expired()
            return self._kept.get((principal, delivery_id))

    async def drop(self, principal: str, delivery_id: str, /) -> None:
        """Forget one."""
        with self._lock:
            self._kept.pop((principal, delivery_id), None)

    async def all_of(self, principal: str, /) -> Sequence[Undelivered]:
        """Return those of a principal, oldest first."""
        with self._lock:
            self._drop_expired()
            found = [kept for (owner, _), kept in self._kept.items() if owner == principal]
        return sorted(found, key=lambda undelivered: undelivered.at)

    def _drop_expired(self) -> None:
        week_ago = self._clock() - WEEK_S
        for name in [name for name, kept in self._kept.items() if kept.at < week_ago]:
            del self._kept[name]
