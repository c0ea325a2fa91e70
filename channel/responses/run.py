"""`TurnRun`: one turn from the agent's first event to the stored record and the terminal event.

It forwards agent events to the state machine and what they cause to an observer; it asks no
protocol questions. Whatever is ready is written before the agent may wait, and nothing is written
before the agent's first event or the end of the grace. An agent that never waits costs no task and
no timer.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import inf
from time import monotonic
from typing import Any, Final

import msgspec
from starlette.types import Receive

from channel.agent import AgentEvent, TurnError
from channel.contract import (
    ChannelResponseHook,
    ChannelStreamTransformHook,
)
from channel.deadline import Deadline
from channel.faults import hook_error, log_fault
from channel.hooks import RESPONSE, apply_response_hook
from channel.http import ClientGoneError
from channel.ports import (
    Clock,
    ConcludedError,
    StoredTurn,
    StoreError,
    TurnFacts,
    TurnTooLargeError,
    call_limit_s,
)
from channel.responses.companion import PATIENCE_S, Companion, Cut
from channel.responses.delivery import TurnDelivery
from channel.responses.observing import Observer
from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.items import Item
from channel.responses.protocol.response import Response, ResponseFailure, Status
from channel.responses.protocol.said import AgentEventError
from channel.responses.protocol.stream import ResponseStream
from channel.responses.saying import say
from channel.responses.stepping import Before, begun
from channel.transforms import is_of_whole_turns, transformed, transforming


_STOPPING_S: Final = 1.0
_LATE: Final = "The server ran out of time."
_STOPPED: Final = "The server was stopped."
_LOG: Final = logging.getLogger(__name__)

Save = Callable[[StoredTurn], Awaitable[None]]
Advance = Callable[[], Awaitable[AgentEvent | None]]


class FailedBeforeReplyError(Exception):
    """The agent failed before anything was said, so the reply can still be an HTTP error."""

    def __init__(self, cause: BaseException) -> None:
        """Wrap what the agent raised."""
        super().__init__()
        self.cause = cause


class TurnHooks(msgspec.Struct, frozen=True):
    """The hooks that see a turn while it runs, and when it is done."""

    transform: ChannelStreamTransformHook | None = None
    response: ChannelResponseHook | None = None


class TurnRun:
    """One turn: `run` it once, then read `response` and what is said of it.

    That is `is_kept`, `is_late`, `is_superseded` and `is_undelivered`.

    `told_error` is what the agent itself raised of a failure that came after the reply had begun.
    `save` is None for `store: false`. `request_id` is what the client reads of a fault that is
    not the client's. A turn that is not done at its `deadline` is ended as failed. Without a
    `grace_s` the reply has begun already: every failure is told inside of it. `release` is called
    once, when the turn is stored or nothing comes of it, and before its end is told. `delivery` takes
    its reply elsewhere, where it is to go there, after it is stored. A background
    turn is nobody's connection: a server that stops has failed it, and not its client.
    """

    def __init__(
        self,
        stream: ResponseStream,
        start_agent: Callable[[], AsyncIterator[AgentEvent]],
        *,
        turn_input: Sequence[Item],
        save: Save | None,
        clock: Clock,
        grace_s: float | None,
        hooks: TurnHooks,
        request_id: str,
        deadline: Deadline | None = None,
        patience_s: float = PATIENCE_S,
        release: Callable[[], Awaitable[None]] | None = None,
        is_background: bool = False,
        delivery: TurnDelivery | None = None,
    ) -> None:
        """Prepare to run what `start_agent` begins through the stream."""
        self._stream = stream
        self._start_agent = start_agent
        self._input = turn_input
        self._save = save
        self._clock = clock
        self._grace_s = grace_s or 0.0
        self._hooks = hooks
        self._request_id = request_id
        self._deadline = deadline
        self._patience_s = patience_s
        self._release = release
        self._is_background = is_background
        self._delivery = delivery
        self._is_committed = grace_s is None
        self._is_abandoned = False
        self._is_bare = False  # stored without what was said
        self._writing: asyncio.Task[None] | None = None
        self.first_event_at: float | None = None
        self.told_error: TurnError | None = None
        self.is_kept = save is None
        self.is_superseded = False
        self.is_late = False
        self.is_undelivered = False

    def on_kept(self, then: Callable[[], Awaitable[None]]) -> None:
        """Have `then` called beside `release`, before it."""
        release = self._release

        async def both() -> None:
            await then()
            if release is not None:
                await release()

        self._release = both

    @property
    def resets(self) -> bool:
        """Whether it ends what was remembered."""
        return self._stream.resets

    @property
    def response(self) -> Response:
        """The resource as it is now."""
        return self._stream.response

    async def run(self, observer: Observer, receive: Receive) -> None:
        """Run the turn to its end; `receive` tells when the client goes away.

        Raises `FailedBeforeReplyError` where the agent fails, or the time runs out, before its
        first event and within the grace, and `ClientGoneError` where the client goes away then:
        nothing was written, and nothing is stored.
        """
        if self._delivery is not None and not await self._open(self._delivery, observer):
            return
        observer.take(self._stream.start())
        if self._delivery is not None:
            observer = self._delivery.observed(observer)
        companion = Companion(
            receive,
            observer,
            lambda: self._end_grace(observer),
            self._grace_s,
            lambda: self._abandon(observer, companion),
            patience_s=self._patience_s,
            deadline=self._deadline,
        )
        observer.on_gone = companion.lose_client
        try:
            await self._run(observer, companion)
            if self._deadline is None:
                await observer.close()
            else:
                with self._short_calls():
                    await observer.close()
        finally:
            # The two know each other; the collector should have no work with what is done.
            observer.on_gone = None
            observer.abandon()
            if self._writing is not None:
                self._writing.cancel()  # it is done but where this run is cancelled
            if self._release is not None:
                await self._released()

    async def _open(self, delivery: TurnDelivery, observer: Observer) -> bool:
        """Decide where the reply goes; False where that failed inside of a reply that has begun."""
        try:
            await delivery.open()
        except BaseException as error:
            if self._is_committed and isinstance(error, Exception):
                self._delivery = None
                observer.take(self._stream.start())
                await self._conclude(observer, Status.FAILED, failure=self._failure(error))
                await observer.close()
                return False
            if self._release is not None:
                await self._released()
            raise
        return True

    async def _run(self, observer: Observer, companion: Companion) -> None:
        is_finished, failure = False, None
        try:
            is_finished = await self._forward_all(observer, companion)
        except BaseException as error:
            if _is_server_stopping(error):
                await self._end_stopped(observer)
                raise
            # Whatever an agent raises is its failure, and ends nobody else: also SystemExit.
            if not (self._is_committed or companion.cut):
                raise FailedBeforeReplyError(error) from error
            if not companion.cut:
                failure = self._failure(error)
        finally:
            if companion.has_begun:
                await companion.dismiss()
        if self._is_abandoned:
            if companion.cut is Cut.CLIENT_GONE:
                raise ClientGoneError
        elif companion.cut and not is_finished:
            await self._end_cut(observer, companion.cut)
        else:
            ending = Status.FAILED if failure else Status.COMPLETED
            await self._conclude(observer, ending, failure=failure)

    async def _end_stopped(self, observer: Observer) -> None:
        """End a turn whose task is being cancelled: what was said so far is kept as what it is."""
        if self._is_committed and not self._is_abandoned:
            cut = self._why_cancelled()
            await self._conclude_cut(observer, cut)
            if cut is Cut.OUT_OF_TIME and self._deadline is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._deadline.farewell_s):
                        await observer.close()

    async def _end_cut(self, observer: Observer, cut: Cut) -> None:
        if self._is_committed or cut is Cut.CANCELLED:
            await self._conclude_cut(observer, cut)
        elif cut is Cut.CLIENT_GONE:
            raise ClientGoneError
        else:
            raise FailedBeforeReplyError(TurnError(_LATE, code="timeout", status=504))

    def _end_grace(self, observer: Observer) -> Coroutine[Any, Any, None] | None:
        """Let the reply begin without the agent: a failure is told inside of it from here on.

        That counts at once; the write, if there is one, is the caller's to run.
        """
        if self._is_committed:
            return None
        self._is_committed = True
        return observer.flush()

    async def _abandon(self, observer: Observer, companion: Companion) -> None:
        """Tell the turn of an agent that does not end although nobody waits for it any more.

        Also of one that has said its last word, and does not end either, or whose hook does not.
        """
        is_settled = self._stream.is_settled
        is_told = self._is_committed or is_settled or companion.cut is Cut.CANCELLED
        if is_told and companion.cut:
            self._is_abandoned = True
            await self._conclude_cut(observer, companion.cut)
            if companion.cut is not Cut.CLIENT_GONE:
                await observer.close()

    async def _forward_all(self, observer: Observer, companion: Companion) -> bool:
        """Forward the agent's events; return whether it finished, rather than was cut off."""
        events, advance, is_filtered = self._begun()
        stream = self._stream
        ends_at = self._deadline.ends_at if self._deadline else None
        is_exhausted = False
        try:
            while not (stream.is_settled or companion.cut or (ends_at and monotonic() >= ends_at)):
                step: Any = advance().__await__()
                try:
                    parked = step.send(None)
                except StopIteration as ready:
                    event = ready.value
                else:
                    event = await companion.wait(step, parked, self._before_wait(observer))
                    if companion.cut:
                        return False
                if event is None and is_filtered:
                    continue
                caused = stream.text_delta(event) if type(event) is str else self._say(event)
                if self.first_event_at is None and caused:
                    # What the client cannot see (usage, a tool that is hidden) begins no reply.
                    self._is_committed = True
                    self.first_event_at = monotonic()
                if observer.take(caused):
                    await observer.flush()
        except StopAsyncIteration:
            is_exhausted = self._is_committed = True
        finally:
            companion.look_at_the_time()
            if not is_exhausted:
                await self._close(events, observer, companion)
        return is_exhausted or stream.is_settled

    def _begun(self) -> tuple[AsyncIterator[AgentEvent], Advance, bool]:
        """Return the agent's events, what gives the next one, and whether None stands for one dropped."""
        events, transform = _checked(self._start_agent()), self._hooks.transform
        if transform is None:
            return events, events.__anext__, False
        if is_of_whole_turns(transform):
            events = transformed(transform, events)
            return events, events.__anext__, False
        return events, transforming(transform, events), True

    async def _close(
        self, events: AsyncIterator[AgentEvent], observer: Observer, companion: Companion
    ) -> None:
        """Close the agent's events; while that waits, the turn can be cut, and told, as before."""
        close = getattr(events, "aclose", None)
        if close is None:
            return
        step: Any = close().__await__()
        try:
            parked = step.send(None)
        except StopIteration:
            return
        await companion.wait(step, parked, self._before_wait(observer))

    def _before_wait(self, observer: Observer) -> Before | None:
        """Return what is to be run before the agent may wait: what is ready is written first."""
        return observer.flush if self._is_committed and observer.ready else None

    def _say(self, event: AgentEvent) -> list[StreamEvent]:
        return say(self._stream, event, self._now)

    def _why_cancelled(self) -> Cut:
        """Return why this task is being cancelled: a server that stops, or a door that closes."""
        if self._deadline is not None and monotonic() >= self._deadline.ends_at:
            return Cut.OUT_OF_TIME
        return Cut.SERVER_STOPPED if self._is_background else Cut.CLIENT_GONE

    async def _conclude_cut(self, observer: Observer, cut: Cut) -> None:
        if self._stream.is_settled:  # nothing was cut off: only its agent's end was not waited for
            await self._conclude(observer, self.response.status)
            return
        if cut in (Cut.CLIENT_GONE, Cut.CANCELLED):
            await self._conclude(observer, Status.CANCELLED)
            return
        said = _STOPPED
        if cut is Cut.OUT_OF_TIME:
            _LOG.warning("turn ran out of time")
            self.is_late = True
            said = _LATE
        failure = ResponseFailure("server_error", f"{said} Request id: {self._request_id}")
        await self._conclude(observer, Status.FAILED, failure=failure)

    async def _conclude(
        self, observer: Observer, status: Status, *, failure: ResponseFailure | None = None
    ) -> None:
        """Settle the response, store it, and only then tell how it ended."""
        stream = self._stream
        if not stream.is_settled or failure is not None:
            observer.take(stream.settle(status, now=self._now(), failure=failure))
        if self._hooks.response is not None:
            try:
                await self._apply_response_hook(self._hooks.response)
            except Exception as error:  # noqa: BLE001 - told as the failure that it is
                self._fail(error)
                # What the hook should have looked at goes nowhere.
                stream.response = msgspec.structs.replace(stream.response, output=[])
        if self._save is not None:
            try:
                await self._kept(self._save, observer)
                self.is_kept = True
            except ConcludedError as concluded:
                # Another instance has told its end already, as cancelled, say: there is one truth.
                stream.response = concluded.turn.response
                self.is_kept = self.is_superseded = True
            except Exception as error:  # noqa: BLE001 - told as the failure that it is
                self._fail(error)
        if self._release is not None:
            await self._released()
        if self._delivery is not None:
            await self._deliver(self._delivery)
        observer.take(stream.end())

    async def _deliver(self, delivery: TurnDelivery) -> None:
        """Take the reply where it goes, if it is stored; whatever becomes of that, its end is told."""
        now, deadline = monotonic(), self._deadline
        if not self.is_kept or self.is_superseded or self._is_bare:
            delivery.withhold(self._stream)
            return
        until = deadline.delivery_until(now) if deadline else None
        left_s = deadline.delivery_s(now) if deadline else None
        try:
            with self._short_calls():
                async with asyncio.timeout_at(until):
                    await delivery.conclude(self._stream, left_s=left_s)
        except Exception as error:  # noqa: BLE001 - the turn is over, whoever cannot be told
            log_fault(_LOG, f"reply of {self.response.id} not delivered", error)
            self.is_undelivered = True
            delivery.withhold(self._stream)

    async def _released(self) -> None:
        release, self._release = self._release, None
        if release is None:
            return
        try:
            with self._short_calls():
                await release()
        except StoreError as error:  # what it holds runs out by itself
            log_fault(_LOG, "turn not released", error)

    def _short_calls(self) -> AbstractContextManager[None]:
        """Let calls of a store be short where the time of the turn is over."""
        deadline = self._deadline
        if deadline is None or monotonic() < deadline.ends_at:
            return _AS_LONG_AS_THEY_TAKE
        return _limited_calls(deadline.call_s)

    def _fail(self, error: Exception) -> None:
        """Let a response that was settled be a failed one; nothing is open that would cause events."""
        self._stream.settle(Status.FAILED, now=self._now(), failure=self._failure(error))

    async def _apply_response_hook(self, hook: ChannelResponseHook) -> None:
        until = self._deadline.hook_until(monotonic()) if self._deadline else None
        try:
            async with asyncio.timeout_at(until):
                changed = await apply_response_hook(hook, self._stream.response, self._input)
        except TimeoutError as error:
            raise hook_error(RESPONSE, hook, "was not done in time") from error
        self._stream.response = changed

    async def _kept(self, save: Save, observer: Observer) -> None:
        """Store the turn; where time is short, with calls that are short, and not for ever."""
        now = monotonic()
        until = self._deadline.save_until(now) if self._deadline else inf
        keeping = self._kept_beside(save, observer, until) if observer.ready else self._keep(save)
        if self._deadline is None:
            await keeping
            return
        try:
            with self._short_calls():
                async with asyncio.timeout_at(until):
                    await keeping
        except TimeoutError as error:
            raise StoreError("The time for a save ran out.") from error

    async def _kept_beside(self, save: Save, observer: Observer, until: float) -> None:
        """Store the turn while what is ready is written: a client that reads slowly delays nothing."""
        saving = begun(self._keep(save))
        if not saving.done():
            await asyncio.sleep(0)  # what is stored at once is told together with its end
        if not saving.done():
            self._writing = begun(observer.flush())
        try:
            await asyncio.shield(saving)
        except asyncio.CancelledError:
            # A server that stops lets a save that has begun be finished; a deadline does not.
            if (left_s := min(_STOPPING_S, until - monotonic())) > 0:
                await asyncio.wait({saving}, timeout=left_s)
            saving.cancel()
            raise

    async def _keep(self, save: Save) -> None:
        """Store the turn; one that is too large is stored as failed, without its payload."""
        try:
            await save(self._stored())
        except TurnTooLargeError:
            failure = ResponseFailure("server_error", "The response is too large to be stored.")
            self._stream.settle(Status.FAILED, now=self._now(), failure=failure)
            self._is_bare = True
            bare = msgspec.structs.replace(self.response, output=[])
            await save(StoredTurn([], bare))
        except StoreError:
            if not self._is_background:
                raise
            # It may have happened all the same, and nobody waits: the second one would meet itself.
            await save(self._stored())

    def _stored(self) -> StoredTurn:
        stream = self._stream
        return StoredTurn([*self._input], stream.response, state=stream.state, resets=stream.resets)

    def _failure(self, error: BaseException) -> ResponseFailure:
        if isinstance(error, TurnError):
            self.told_error = error
            return ResponseFailure(error.code, error.message)
        is_ours = isinstance(error, StoreError)
        log_fault(_LOG, "turn not stored" if is_ours else "agent failed", error)
        said = "The response could not be stored." if is_ours else "The agent failed to answer."
        return ResponseFailure("server_error", f"{said} Request id: {self._request_id}")

    def _now(self) -> int:
        return int(self._clock())


_AS_LONG_AS_THEY_TAKE: Final = nullcontext()


@contextmanager
def _limited_calls(limit_s: float) -> Iterator[None]:
    token = call_limit_s.set(limit_s)
    try:
        yield
    finally:
        call_limit_s.reset(token)


def facts_of(turn: TurnRun, outcome: str, started_at: float, *, is_stream: bool) -> TurnFacts:
    """Return what is measured of a turn whose request came in then (`time.monotonic`)."""
    first, usage = turn.first_event_at, turn.response.usage
    return TurnFacts(
        outcome=outcome,
        duration_ms=(monotonic() - started_at) * 1000,
        first_event_ms=None if first is None else (first - started_at) * 1000,
        input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        stream=is_stream,
    )


def _is_server_stopping(error: BaseException) -> bool:
    """Return whether this task is being cancelled, rather than an agent's own sub-task."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _checked(events: AsyncIterator[AgentEvent]) -> AsyncIterator[AgentEvent]:
    if not hasattr(events, "__anext__"):
        msg = f"an agent returned {type(events).__name__}; it must be an `async def` that yields"
        raise AgentEventError(msg)
    return events
