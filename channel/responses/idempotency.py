"""`Idempotency-Key`: the first result of a request is replayed to whoever sends it again.

A key is claimed before anything else happens, notes the response before its turn is begun, and is
concluded once that is stored; or released, where nothing was stored. Whoever comes meanwhile is told
to come again. Of a claim that ran out, the response that it noted is looked up: a crash between the
save and the end of the claim runs nothing twice. The port is here too, with what it decides
(`judged`, pure); stores merely do that in one step.
"""

import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum, auto
from hashlib import sha256
from types import TracebackType
from typing import Final, Protocol, Self

from msgspec import Struct
from msgspec.structs import replace

from channel.faults import log_fault
from channel.isolation import IsolationKeys
from channel.ports import Clock, NewToken, StoreError, random_hex
from channel.responses.protocol.errors import RequestError
from channel.responses.protocol.response import Response, Status
from channel.sessions import BeganAt


HEADER: Final = "idempotency-key"
REPLAYED: Final = "idempotent-replayed"
"""The header of a reply that is not the first one; its value is `true`."""

RESULT_S: Final = 24 * 3600.0
"""Seconds that a result is kept under its key."""
LONGEST_S: Final = 900.0
"""Seconds that a request may take where nobody says otherwise: as long as Lambda lets it."""
MARGIN_S: Final = 10.0
"""Seconds that a claim counts beyond that, since the clocks of environments differ."""

Find = Callable[[str], Awaitable[bool]]
"""Says whether the turn of that response is stored; raises `StoreError` where that is not known."""

_KEY = re.compile(r"[ -~]{1,255}\Z")
_TOKEN_BYTES: Final = 8
_IN_CONVERSATION: Final = frozenset({Status.COMPLETED, Status.INCOMPLETE})
_LOG: Final = logging.getLogger(__name__)


class Entry(Struct, frozen=True):
    """What is kept under a key: the request it stands for, who claimed it, and what came of it.

    `until` is in Unix seconds: a claim counts until then, and so does a result. `body_hash` is the
    SHA-256 of the raw body. A key without a `response_id` is one whose request is in progress. With
    `held_until` the id is only noted: the claim counts until then, and afterwards the id is the
    result if there is such a response. `began_at` is where in a session its turn began, if in one.
    """

    body_hash: bytes
    token: str
    until: float
    response_id: str | None = None
    held_until: float | None = None
    began_at: BeganAt | None = None


class Verdict(Enum):
    """What a claim came to."""

    FIRST = auto()
    REPLAY = auto()
    IN_PROGRESS = auto()
    MISMATCH = auto()
    RAN_OUT = auto()
    """Nobody finished the claim in time, and the response that it noted may be stored."""


class Claim(Struct, frozen=True):
    """The answer to a claim; `response_id` is the result, where it is to be replayed.

    Where a claim ran out, `response_id` is what it noted, and `token` its token.
    """

    verdict: Verdict
    response_id: str = ""
    token: str = ""
    began_at: BeganAt | None = None


class IdempotencyStore(Protocol):
    """The keys that were used, below the isolation keys: another tenant's key is an unused one.

    A token names one claim: the same claim made again (a time-out after success) is still the
    first. Every method raises `StoreError` when the storage fails.
    """

    async def claim(self, keys: IsolationKeys, key: str, entry: Entry, /) -> Claim:
        """Keep the entry where the key is unused or its time is over: `judged`, in one step."""
        ...

    async def note(self, keys: IsolationKeys, key: str, entry: Entry, /) -> None:
        """Keep the entry in place of the claim with its token; nothing happens where that is gone."""
        ...

    async def finish(
        self, keys: IsolationKeys, key: str, token: str, response_id: str, until: float, /
    ) -> None:
        """Keep the result of a claim until then; nothing happens where it is not one's own any more."""
        ...

    async def release(self, keys: IsolationKeys, key: str, token: str, /) -> None:
        """Let the key of a claim be used again, unless it is finished or not one's own any more."""
        ...


def judged(kept: Entry | None, asked: Entry, now: float) -> Claim:
    """Return what comes of a claim, given what is kept under its key. Pure.

    Another body is refused also while the first is in progress: waiting would not help.
    """
    if kept is None or kept.until < now or kept.token == asked.token:
        return Claim(Verdict.FIRST)
    if kept.body_hash != asked.body_hash:
        return Claim(Verdict.MISMATCH)
    if kept.response_id is None:
        return Claim(Verdict.IN_PROGRESS)
    if kept.held_until is None:
        return Claim(Verdict.REPLAY, kept.response_id, began_at=kept.began_at)
    if kept.held_until >= now:
        return Claim(Verdict.IN_PROGRESS)
    return Claim(Verdict.RAN_OUT, kept.response_id, kept.token, kept.began_at)


def invalid_key() -> RequestError:
    """Return the 400 for a key that is none."""
    return RequestError(
        "Invalid 'Idempotency-Key' header: it must be 1 to 255 printable ASCII characters.",
        code="invalid_idempotency_key",
    )


def key_reused() -> RequestError:
    """Return the 422 for a key that came with another body before."""
    return RequestError(
        "The 'Idempotency-Key' header was used with another request body: "
        "a new request needs a new key.",
        code="idempotency_key_reused",
        status=422,
    )


def in_progress() -> RequestError:
    """Return the 409 for a request that is being served; OpenAI's SDKs retry it by themselves."""
    return RequestError(
        "A request with this 'Idempotency-Key' header is in progress. Please retry in a moment.",
        code="idempotency_key_in_progress",
        status=409,
        headers={"retry-after": "1"},
    )


def result_not_stored() -> RequestError:
    """Return the 404 for a request that was served in a conversation with `store: false`."""
    return RequestError(
        "The request with this 'Idempotency-Key' header was served before: its turn is in the "
        "conversation, and its response was not stored, since 'store' is false.",
        code="idempotency_result_not_stored",
        status=404,
    )


class Replay(Struct, frozen=True):
    """The request was served before: its result is the response of this id, as it is now.

    `began_at` is where in a session its turn began, if it had one.
    """

    response_id: str
    began_at: BeganAt | None = None


class Claimed:
    """A key that this request has claimed, as a context manager: leaving it releases the key.

    It is concluded once; what is called after that does nothing. Neither `conclude` nor `release`
    raises `StoreError`: by then the turn is stored and must be told, and a claim runs out by itself.
    """

    def __init__(
        self,
        store: IdempotencyStore,
        keys: IsolationKeys,
        key: str | None,
        entry: Entry,
        *,
        clock: Clock,
        find: Find,
    ) -> None:
        """Take what was claimed; without a key all of this does nothing."""
        self._store = store
        self._keys = keys
        self._key = key
        self._entry = entry
        self._clock = clock
        self._find = find

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Release the key, unless it was concluded."""
        await self.release()

    async def note(self, response_id: str, began_at: BeganAt | None = None) -> None:
        """Name the response that is about to be made, so that a crash after its save is no loss.

        To be called where its turn is kept, before that is begun. Raises `StoreError`.
        """
        if self._key is None:
            return
        held = self._entry
        until = self._clock() + RESULT_S
        noted = replace(
            held,
            until=until,
            response_id=response_id,
            held_until=held.until,
            began_at=began_at,
        )
        await self._store.note(self._keys, self._key, noted)
        self._entry = noted

    async def conclude(self, response: Response, *, is_kept: bool) -> None:
        """Let the key stand for this response, where its turn is kept; release the key where not.

        `is_kept` says whether it was stored, whatever its status. With `store: false` only the
        items that are in a conversation from then on are kept. A save that failed, or was cut off,
        may have happened all the same: what was noted is looked up then.
        """
        if self._key is None:
            return
        try:
            if _stays(response) and (is_kept or await self._is_kept_after_all(response)):
                key, self._key = self._key, None
                until = self._clock() + RESULT_S
                await self._store.finish(self._keys, key, self._entry.token, response.id, until)
        except StoreError as error:
            self._key = None
            log_fault(_LOG, "idempotency key not concluded", error)
        await self.release()

    async def _is_kept_after_all(self, response: Response) -> bool:
        is_noted = self._entry.response_id == response.id
        return is_noted and response.status.is_terminal and await self._find(response.id)

    async def release(self) -> None:
        """Let the key be used again."""
        key, self._key = self._key, None
        if key is None:
            return
        try:
            await self._store.release(self._keys, key, self._entry.token)
        except StoreError as error:
            log_fault(_LOG, "idempotency key not released", error)


def _stays(response: Response) -> bool:
    """Return whether the turn of a response is to be found again, once it is stored."""
    return response.store or (bool(response.conversation) and response.status in _IN_CONVERSATION)


class Idempotency:
    """What `POST /responses` calls around a create; a request without the header costs nothing.

    ::

        begun = await idempotency.begin(keys, headers.get(HEADER), body, find=…, limit_s=…)
        if isinstance(begun, Replay):
            …  # retrieve it as GET does; a stream is `replayed` of it once it has ended
        async with begun:  # leaving releases the key of whatever was not concluded
            …  # prepare
            await begun.note(response.id)  # where its turn is kept
            # In the foreground, JSON and stream alike: once the turn is stored, or nothing comes of
            # it, and before its end is told (where `TurnRun` calls its `release`).
            await begun.conclude(turn.response, is_kept=turn.is_kept)
            # In the background: once the turn is stored as queued and its job started.
            await begun.conclude(response, is_kept=True)
    """

    def __init__(
        self, store: IdempotencyStore, *, clock: Clock = time.time, new_token: NewToken = random_hex
    ) -> None:
        """Keep the keys in a store."""
        self._store = store
        self._clock = clock
        self._new_token = new_token

    async def begin(
        self,
        keys: IsolationKeys,
        header: str | None,
        body: bytes,
        *,
        find: Find,
        limit_s: float | None = None,
    ) -> Claimed | Replay:
        """Claim the key of a request, or say what it came to before.

        `header` is the value of `HEADER`, or None where it is absent. `limit_s` are the seconds
        that this request can take from now on (default: `LONGEST_S`): a claim that nobody concludes
        counts a little longer. `find` looks for the response of a claim of the same body that ran
        out: what is stored is the result. Raises `RequestError` (400 for what is no key, 422 for
        another body, 409 while the first is in progress), and `StoreError`.
        """
        until = self._clock() + (LONGEST_S if limit_s is None else limit_s) + MARGIN_S
        entry = Entry(sha256(body).digest(), self._new_token(_TOKEN_BYTES), until)
        claimed = Claimed(self._store, keys, header, entry, clock=self._clock, find=find)
        if header is None:
            return claimed
        if not _KEY.match(header):
            raise invalid_key()
        try:
            claim = await self._store.claim(keys, header, entry)
            if claim.verdict is Verdict.RAN_OUT:
                if await find(claim.response_id):
                    until = self._clock() + RESULT_S
                    await self._store.finish(keys, header, claim.token, claim.response_id, until)
                    return Replay(claim.response_id, claim.began_at)
                await self._store.release(keys, header, claim.token)
                claim = await self._store.claim(keys, header, entry)
        except BaseException:
            # It may have been made all the same, and would be in the way of the client's retry.
            with suppress(StoreError):
                await self._store.release(keys, header, entry.token)
            raise
        match claim.verdict:
            case Verdict.FIRST:
                return claimed
            case Verdict.REPLAY:
                return Replay(claim.response_id, claim.began_at)
            case Verdict.IN_PROGRESS | Verdict.RAN_OUT:
                raise in_progress()
            case Verdict.MISMATCH:
                raise key_reused()
