"""The `Webhooks` port: each event to each endpoint that wants it, tried again with pauses, else a dead letter."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from msgspec import Struct

from channel.faults import log_fault
from channel.isolation import IsolationKeys
from channel.ports import Clock, StoreError, call_limit_s
from channel.responses.protocol.response import Response
from channel.responses.webhooks import (
    ATTEMPTS,
    WINDOW_S,
    DeadLetter,
    Endpoint,
    Verdict,
    WebhookEvent,
    event_of,
    judge,
    pause_after,
    signed_headers,
)
from infra.webhook_targets import TargetRefusedError


AT_ONCE: Final = 4
UNDER_WAY: Final = 100

_BURIAL_S: Final = 2.0
_CALL_S: Final = _BURIAL_S / 2
# Of the system: environments of one snapshot would all draw the same.
_CHANCE: Final = random.SystemRandom().random
_LOG: Final = logging.getLogger(__name__)


class EndpointRows(Protocol):
    """Where endpoints are looked up and dead letters are kept; both raise `StoreError`."""

    async def endpoints(self, principal: str, /) -> Sequence[Endpoint]: ...

    async def bury(self, letter: DeadLetter, /) -> None: ...


class Sender(Protocol):
    """Posts once; `WebhookSender.post` says what it raises."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int: ...


class _Attempt(Struct, frozen=True):
    """What an attempt came to, why in a word (`HTTP 500`, `TimeoutError`), and in a sentence."""

    verdict: Verdict
    kind: str
    said: str = ""

    @property
    def reason(self) -> str:
        return f"{self.kind}: {self.said}" if self.said else self.kind


class _Line:
    """What is under way to one endpoint."""

    def __init__(self, at_once: int) -> None:
        self.free = asyncio.Semaphore(at_once)
        self.under_way = 0


class WebhookDeliveries:
    """Delivers concurrently: an endpoint that is down, slow or wrong delays nobody but itself.

    An endpoint gets at most `at_once` requests at a time from this process; where `under_way`
    deliveries to it have not ended yet, further ones become dead letters at once.
    """

    def __init__(
        self,
        rows: EndpointRows,
        sender: Sender,
        *,
        deadline_s: float = WINDOW_S,
        attempts: int = ATTEMPTS,
        at_once: int = AT_ONCE,
        under_way: int = UNDER_WAY,
        clock: Clock = time.time,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = _CHANCE,
    ) -> None:
        """Take the longest that a `notify` may take, in seconds, where its caller gives it no less."""
        self._rows = rows
        self._sender = sender
        self._deadline_s = deadline_s
        self._attempts = attempts
        self._at_once = at_once
        self._under_way = under_way
        self._clock = clock
        self._now = now
        self._pause = pause
        self._chance = chance
        self._lines: dict[str, _Line] = {}

    async def notify(
        self,
        keys: IsolationKeys,
        principal: str,
        response: Response,
        /,
        *,
        deadline_s: float | None = None,
    ) -> None:
        """Deliver the event of a background response that ended; see `Webhooks`."""
        limit_s = self._deadline_s if deadline_s is None else min(deadline_s, self._deadline_s)
        # What is given up is kept yet, for which there must be time.
        until = self._now() + max(limit_s - _BURIAL_S, limit_s / 2)
        try:
            async with asyncio.timeout(limit_s):
                await self._notify(keys, principal, response, until)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - the turn is over, and nobody else is to blame
            log_fault(_LOG, "webhooks not delivered", error)

    async def _notify(
        self, keys: IsolationKeys, principal: str, response: Response, until: float
    ) -> None:
        event = event_of(keys, response, self._clock())
        if event is None:
            return
        endpoints = await self._rows.endpoints(principal)
        wanted = [endpoint for endpoint in endpoints if endpoint.wants(event)]
        await asyncio.gather(*[self._deliver(endpoint, event, until) for endpoint in wanted])

    async def _deliver(self, endpoint: Endpoint, event: WebhookEvent, until: float) -> None:
        body = event.encode()
        with self._line(endpoint) as line:
            if line.under_way > self._under_way:
                last, attempts = _Attempt(Verdict.OVER, "TooManyDeliveries"), 0
            else:
                last, attempts = await self._try(line, endpoint, event.id, body, until)
        if last.verdict is Verdict.DELIVERED:
            return
        told = {"endpoint": endpoint.id, "reason": last.kind, "attempts": attempts}
        _LOG.warning("webhook not delivered", extra=told)
        letter = DeadLetter(
            principal=endpoint.principal,
            endpoint_id=endpoint.id,
            event_id=event.id,
            event_type=event.type,
            body=body.decode(),
            reason=last.reason,
            attempts=attempts,
            at=self._clock(),
        )
        await self._bury(letter)

    @contextmanager
    def _line(self, endpoint: Endpoint) -> Iterator[_Line]:
        line = self._lines.setdefault(endpoint.id, _Line(self._at_once))
        line.under_way += 1
        try:
            yield line
        finally:
            line.under_way -= 1
            if not line.under_way:
                del self._lines[endpoint.id]

    async def _try(
        self, line: _Line, endpoint: Endpoint, event_id: str, body: bytes, until: float
    ) -> tuple[_Attempt, int]:
        """Try until it is delivered, refused, tried often enough, or out of time."""
        attempt = 1
        while True:
            last = await self._try_once(line, endpoint, event_id, body, until)
            if last.verdict is not Verdict.AGAIN or attempt >= self._attempts:
                return last, attempt
            pause_s = pause_after(attempt, self._chance())
            if self._now() + pause_s >= until:
                return last, attempt
            await self._pause(pause_s)
            attempt += 1

    async def _try_once(
        self, line: _Line, endpoint: Endpoint, event_id: str, body: bytes, until: float
    ) -> _Attempt:
        try:
            async with asyncio.timeout(until - self._now()), line.free:
                headers = signed_headers(endpoint.secret, event_id, int(self._clock()), body)
                status = await self._sender.post(endpoint.url, headers, body)
        except TargetRefusedError as error:
            return _Attempt(Verdict.OVER, type(error).__name__, str(error))
        except OSError as error:
            return _Attempt(Verdict.AGAIN, type(error).__name__)
        except Exception as error:  # noqa: BLE001 - one endpoint's fault is none of the others'
            log_fault(_LOG, "webhook could not be sent", error)
            return _Attempt(Verdict.OVER, type(error).__name__)
        return _Attempt(judge(status), f"HTTP {status}")

    async def _bury(self, letter: DeadLetter) -> None:
        # In a task of its own each (`gather`), so nobody else's calls are limited by this.
        call_limit_s.set(_CALL_S)
        try:
            await self._rows.bury(letter)
        except StoreError as error:
            log_fault(_LOG, "dead letter of a webhook not kept", error)
