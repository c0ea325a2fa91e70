"""Runs and their events kept in memory: for tests, first light, and a local server that forgets."""

import time
from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from channel.isolation import IsolationKeys
from channel.ports import Clock, EventBatch, Run


class _Kept(Struct):
    run: Run
    batches: dict[int, EventBatch] = field(default_factory=dict)


class InMemoryRunStore:
    """The `RunStore` of one process; it forgets with its process."""

    def __init__(self, *, clock: Clock = time.time) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._kept: dict[tuple[IsolationKeys, str], _Kept] = {}

    async def begin(self, keys: IsolationKeys, response_id: str, run: Run, /) -> None:
        """Note that a turn was begun."""
        self._drop_expired()
        self._kept[keys, response_id] = _Kept(run)

    async def claim(
        self, keys: IsolationKeys, response_id: str, owner: str, lease_until: float, /
    ) -> Run | None:
        """Become the owner of a run; None where that cannot be."""
        run = await self.look(keys, response_id)
        if run is None or run.is_cancelled or run.lease_until < self._clock():
            return None
        if run.owner not in ("", owner):
            return None
        return self._changed(keys, response_id, replace(run, owner=owner, lease_until=lease_until))

    async def renew(
        self, keys: IsolationKeys, response_id: str, owner: str, lease_until: float, /
    ) -> Run | None:
        """Extend the lease of a run of one's own; None where it is not."""
        run = await self.look(keys, response_id)
        if run is None or run.owner != owner:
            return None
        return self._changed(keys, response_id, replace(run, lease_until=lease_until))

    async def look(
        self, keys: IsolationKeys, response_id: str, /, *, is_strong: bool = True
    ) -> Run | None:
        """Return a run."""
        del is_strong  # memory has one state
        kept = self._kept.get((keys, response_id))
        return kept.run if kept else None

    async def request_cancel(self, keys: IsolationKeys, response_id: str, /) -> Run | None:
        """Ask for a run to be cancelled, and return it; None where there is none."""
        run = await self.look(keys, response_id)
        return run and self._changed(keys, response_id, replace(run, is_cancelled=True))

    async def append(
        self, keys: IsolationKeys, response_id: str, batch: EventBatch, until: float, /
    ) -> None:
        """Keep events; `until` is that of the run."""
        del until
        kept = self._kept.get((keys, response_id))
        if kept is not None:
            kept.batches[batch.last] = batch

    async def events(
        self, keys: IsolationKeys, response_id: str, after: int, /, *, is_strong: bool = False
    ) -> Sequence[EventBatch]:
        """Return the batches that hold events after that number."""
        del is_strong  # memory has one state
        kept = self._kept.get((keys, response_id))
        if kept is None or kept.run.events_until < self._clock():
            return []
        batches: list[EventBatch] = []
        for last, batch in sorted(kept.batches.items()):
            if last > after:
                if batch.first > after + 1:
                    break
                batches.append(batch)
                after = last
        return batches

    async def last_events(self, keys: IsolationKeys, response_id: str, /) -> EventBatch | None:
        """Return the last batch."""
        kept = self._kept.get((keys, response_id))
        if kept is None or not kept.batches or kept.run.events_until < self._clock():
            return None
        return kept.batches[max(kept.batches)]

    async def forget(self, keys: IsolationKeys, response_id: str, /) -> None:
        """Delete a run and its events."""
        self._kept.pop((keys, response_id), None)

    def _changed(self, keys: IsolationKeys, response_id: str, run: Run) -> Run:
        self._kept[keys, response_id].run = run
        return run

    def _drop_expired(self) -> None:
        day_ago = self._clock() - 24 * 3600
        over = [key for key, kept in self._kept.items() if _ends_at(kept.run) < day_ago]
        for key in over:
            del self._kept[key]


def _ends_at(run: Run) -> float:
    return max(run.lease_until, run.events_until)
