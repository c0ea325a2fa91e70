"""`TurnDelivery`: one turn's reply on its way to its target, and what its originator sees meanwhile."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace as with_fields
from time import monotonic
from typing import Final

from channel.contract import ChannelRequest, Delivers, OpenedDelivery
from channel.deadline import Deadline
from channel.delivery import acknowledgement
from channel.faults import log_fault
from channel.ports import StoreError
from channel.responses.observing import Observer
from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.response import Response, Status
from channel.responses.protocol.stream import ResponseStream


_DELIVERED: Final = frozenset({Status.COMPLETED, Status.INCOMPLETE, Status.FAILED})
_ASKS: Final = frozenset(
    {
        "apply_patch_call",
        "computer_call",
        "custom_tool_call",
        "function_call",
        "local_shell_call",
        "mcp_approval_request",
        "shell_call",
    }
)
"""Items that ask their client for something: only the originator can answer."""
_LOG: Final = logging.getLogger(__name__)


class TurnDelivery:
    """`open` it before the turn runs, and `conclude` it when the turn is stored."""

    def __init__(self, deliveries: Delivers, asked: ChannelRequest) -> None:
        """Take what delivers, and the request that says whereto."""
        self._deliveries = deliveries
        self._asked = asked
        self._opened: OpenedDelivery | None = None
        self._withheld: Withheld | None = None

    async def open(self) -> None:
        """Decide where the reply goes; raises `RequestError` and `StoreError`."""
        self._opened = await self._deliveries.opened(self._asked)

    def observed(self, observer: Observer) -> Observer:
        """Return the observer of the originator, who may not be to see the reply."""
        if self._opened is None or self._opened.include_originating:
            return observer
        self._withheld = Withheld(observer)
        return self._withheld

    async def conclude(self, stream: ResponseStream, deadline: Deadline | None) -> None:
        """Deliver what was said, and let the originator see it, or what became of it.

        A turn that asks its client for something, that was cancelled, or that failed before it
        said anything goes to the originator alone.
        """
        opened, response = self._opened, stream.response
        if opened is None:
            return
        text = _said(response)
        if not _is_delivered(response, text):
            if self._withheld is not None:
                self._withheld.release()
            return
        left_s = None if deadline is None else deadline.hook_until(monotonic()) - monotonic()
        report = await opened.deliver(
            response.id, status=str(response.status), text=text, left_s=left_s
        )
        if report.skipped or report.failed:
            facts = {"pushed": len(report.pushed), "skipped": len(report.skipped)}
            _LOG.warning(
                "reply not delivered everywhere", extra=facts | {"failed": len(report.failed)}
            )
        if self._withheld is not None:
            is_answer = response.status is not Status.FAILED
            self._withheld.replace(stream.acknowledge(acknowledgement(report) if is_answer else ""))

    async def hand_over(self, response: Response) -> None:
        """Have jobs deliver what a turn had said when its worker was lost; it is stored as that."""
        text = _said(response)
        if not _is_delivered(response, text):
            return
        try:
            opened = await self._deliveries.opened(with_fields(self._asked, identity=None))
            if opened is not None:
                await opened.deliver(response.id, status=str(response.status), text=text, left_s=0)
        except StoreError as error:  # the turn has ended, whoever cannot be told
            log_fault(_LOG, "reply of a lost worker not delivered", error)


class Withheld:
    """An observer that keeps the events after `start` back, until it is told what becomes of them."""

    def __init__(self, observer: Observer) -> None:
        """Take who is to see them, or not; it has seen the beginning."""
        self._observer = observer
        self._kept: list[StreamEvent] | None = []

    @property
    def on_gone(self) -> Callable[[], None] | None:
        """What is called where nobody reads any more."""
        return self._observer.on_gone

    @on_gone.setter
    def on_gone(self, call: Callable[[], None] | None) -> None:
        self._observer.on_gone = call

    @property
    def ready(self) -> Sequence[object]:
        """What is to be flushed."""
        return self._observer.ready

    def take(self, events: Sequence[StreamEvent], /) -> bool:
        """Keep the events back."""
        if self._kept is None:
            return self._observer.take(events)
        self._kept += events
        return False

    def release(self) -> None:
        """Let all be seen."""
        kept, self._kept = self._kept, None
        self._observer.take(kept or ())

    def replace(self, events: Sequence[StreamEvent]) -> None:
        """Let these be seen in place of what was kept back."""
        self._kept = None
        self._observer.take(events)

    async def flush(self) -> None:
        """Bring out what may be seen."""
        await self._observer.flush()

    async def written(self) -> None:
        """Wait until nothing is on its way out."""
        await self._observer.written()

    async def close(self) -> None:
        """Bring out what may be seen; nothing follows."""
        await self._observer.close()

    def abandon(self) -> None:
        """Stop where it is."""
        self._observer.abandon()


def _is_delivered(response: Response, text: str) -> bool:
    if response.status not in _DELIVERED or (response.status is Status.FAILED and not text):
        return False
    return not any(item.get("type") in _ASKS for item in response.output)


def _said(response: Response) -> str:
    """Return the text of the answer; a refusal is one, too."""
    said: list[str] = []
    for item in response.output:
        if item.get("type") == "message":
            said += [part.get("text") or part.get("refusal") or "" for part in item["content"]]
    return "".join(said)
