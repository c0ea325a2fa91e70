"""Turns' replies on their way to their targets, and what their originators see meanwhile."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace as with_fields
from typing import Any, Final, NamedTuple

from channel.auth import Caller
from channel.commands import COMMAND
from channel.contract import (
    CALLERS_TARGET,
    ChannelRequest,
    ChannelRunHook,
    Delivers,
    OpenedDelivery,
)
from channel.delivery import DeliveryReport, Route, acknowledgement, not_offered, token_of
from channel.faults import hook_error
from channel.hooks import RUN
from channel.responses.observing import Observer
from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.items import Item
from channel.responses.protocol.replay import said_again
from channel.responses.protocol.response import Response, Status
from channel.responses.protocol.stream import ResponseStream
from channel.responses.windows.context import CREATE
from channel.targets import ResponseTarget


_LOG: Final = logging.getLogger(__name__)
_ANSWERED: Final = frozenset({Status.COMPLETED, Status.INCOMPLETE})
_DELIVERED: Final = _ANSWERED | {Status.FAILED}
APPROVAL: Final = "mcp_approval_request"
_ASKS: Final = frozenset(
    {
        "apply_patch_call",
        "computer_call",
        "custom_tool_call",
        "function_call",
        "local_shell_call",
        APPROVAL,
        "shell_call",
    }
)
"""Items that ask their client for something: only the originator can answer."""


class TurnDeliveries:
    """The deliveries of one channel's turns; without `deliveries`, its replies go back."""

    def __init__(self, deliveries: Delivers | None, channel: str) -> None:
        """Take what the host delivers by, and the name of the channel."""
        self._deliveries = deliveries
        self._channel = channel

    async def chosen(self, caller: Caller, given: Any) -> ResponseTarget | None:
        """Return where a body's `response_target` wants the reply; None where there is none.

        Raises `RequestError` where it may not, and `StoreError`.
        """
        if given is None:
            return None
        if self._deliveries is None:
            raise not_offered()
        return await self._deliveries.chosen(caller, given, origin=self._channel)

    def aimed(self, hook: ChannelRunHook, changed: ChannelRequest) -> ChannelRequest:
        """Return a request whose target is the hook's and not its caller's any more."""
        if self._deliveries is None and changed.response_target != ResponseTarget.originating:
            raise hook_error(RUN, hook, "set a response_target where the host delivers nothing")
        attributes = {k: v for k, v in changed.attributes.items() if k != CALLERS_TARGET}
        return with_fields(changed, attributes=attributes)

    def of(self, asked: ChannelRequest) -> "TurnDelivery | None":
        """Return what takes a turn's reply elsewhere, or notes who it is for; None where neither is asked."""
        if self._deliveries is None or asked.operation not in (CREATE, COMMAND):
            return None
        if asked.identity is None and asked.response_target == ResponseTarget.originating:
            return None
        return TurnDelivery(self._deliveries, asked)

    def reopened(self, asked: ChannelRequest, route: Route) -> "TurnDelivery":
        """Return the delivery of a turn that was opened before, by the process that began it."""
        return TurnDelivery(self._deliveries or NoDeliveries(), asked, route)

    async def routed(self, asked: ChannelRequest) -> Route | None:
        """Note who a background turn is for, and return where its reply goes; raises as `opened` does."""
        delivery = self.of(asked)
        if delivery is None:
            return None
        await delivery.open()
        return delivery.route


class TurnDelivery:
    """`open` it before the turn runs, and `conclude` it when the turn is stored.

    With a `route`, that was decided before, by the process that began the turn.
    """

    def __init__(
        self, deliveries: Delivers, asked: ChannelRequest, route: Route | None = None
    ) -> None:
        """Take what delivers, and the request that says whereto."""
        self._deliveries = deliveries
        self._asked = asked
        self._opened = None if route is None else deliveries.reopened(asked, route)
        self._withheld: Withheld | None = None

    @property
    def route(self) -> Route | None:
        """Where the reply goes, once it is open; None where that is its origin alone."""
        return None if self._opened is None else self._opened.route

    async def open(self) -> None:
        """Decide where the reply goes; raises `RequestError` and `StoreError`."""
        if self._opened is None:
            self._opened = await self._deliveries.opened(self._asked)

    def observed(self, observer: Observer) -> Observer:
        """Return the observer of the originator, who may not be to see the reply."""
        if self._opened is None or self._opened.include_originating:
            return observer
        self._withheld = Withheld(observer)
        return self._withheld

    async def conclude(self, stream: ResponseStream, *, left_s: float | None) -> None:
        """Deliver what was said, and let the originator see what became of it.

        A turn that asks its client for something goes to the originator, in whole; so does one that
        has no text. One that was cancelled, or failed before it said anything, goes nowhere.
        """
        opened, response = self._opened, stream.response
        if opened is None:
            return
        text = _said(response)
        if not _is_delivered(response, text):
            if response.status in _ANSWERED:
                self._tell(stream)
            else:
                self.withhold(stream)
            return
        report = await opened.deliver(
            response.id, status=str(response.status), text=text, left_s=left_s
        )
        self.withhold(stream, acknowledgement(report, untold=opened.route.untold))

    def withhold(self, stream: ResponseStream, text: str = "") -> None:
        """Let the originator, where it is excluded, see this text and nothing else of the reply.

        Not where it fails, or is to be structured output: that is no text that can be read so.
        """
        withheld, self._withheld = self._withheld, None
        if withheld is not None:
            is_plain = stream.response.status in _ANSWERED and _is_plain(stream.response)
            withheld.replace(stream.acknowledge(text if is_plain else ""))

    async def hand_over(self, response: Response) -> None:
        """Have jobs deliver what a turn had said when its worker was lost; it is stored as that."""
        text = _said(response)
        if self._opened is not None and _is_delivered(response, text):
            await self._opened.deliver(
                response.id, status=str(response.status), text=text, left_s=0.0
            )

    def _tell(self, stream: ResponseStream) -> None:
        """Let the originator see the reply as it is now, which a hook may have changed."""
        withheld, self._withheld = self._withheld, None
        if withheld is not None:
            events = said_again(stream.response, stream.renumber(0))
            stream.renumber(len(events))
            withheld.replace(events)


class NoDeliveries:
    """What delivers in a process that was not told how: nothing, of a turn that another one has begun."""

    async def chosen(self, _caller: Caller, _given: Any, *, origin: str) -> ResponseTarget:
        """Refuse every target."""
        del origin
        raise not_offered()

    async def opened(self, _request: ChannelRequest) -> None:
        """Leave the reply with its origin."""

    def reopened(self, request: ChannelRequest, decided: Route) -> OpenedDelivery:
        """Return what fails to deliver, and says so in the log."""
        del request
        return _Lost(decided)


class _Lost(NamedTuple):
    route: Route

    @property
    def include_originating(self) -> bool:
        return self.route.include_originating

    async def deliver(
        self, response_id: str, *, status: str, text: str, left_s: float | None = None
    ) -> DeliveryReport:
        del status, text, left_s
        failed = [(token_of(each), "NoDeliveries") for each in self.route.pushes]
        if failed:
            _LOG.error("the reply %s is not delivered: this process has no delivery", response_id)
        return DeliveryReport(self.route.include_originating, failed=tuple(failed))


class Withheld:
    """An observer of what is not for its originator: of the events after `start` it sees what it is given."""

    def __init__(self, observer: Observer) -> None:
        """Take who is to see the reply, or not; it has seen the beginning."""
        self._observer = observer
        self._is_open = False

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
        """Drop the events, which nobody is to see."""
        return self._is_open and self._observer.take(events)

    def replace(self, events: Sequence[StreamEvent]) -> None:
        """Let these be seen in place of what was dropped, and all that follow."""
        self._is_open = True
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
    if not text or response.status not in _DELIVERED:
        return False
    return response.status is Status.FAILED or not _asks(response.output)


def _asks(output: Sequence[Item]) -> bool:
    """Whether something waits for the client: a call that is whole, and that the agent has not answered."""
    answered = {item.get("call_id") for item in output if item["type"].endswith("_output")}
    return any(
        item["type"] in _ASKS
        and item.get("status") != "incomplete"
        and (item["type"] == APPROVAL or item.get("call_id") not in answered)
        for item in output
    )


def _is_plain(response: Response) -> bool:
    return bool(response.text["format"]["type"] == "text")


def _said(response: Response) -> str:
    """Return the text of the answer; a refusal is one, too. Items may be whatever an agent makes."""
    said: list[str] = []
    for item in response.output:
        if item.get("type") != "message":
            continue
        content = item.get("content")
        for part in [content] if isinstance(content, str) else content or ():
            text = (part.get("text") or part.get("refusal")) if isinstance(part, dict) else part
            said.append(text if isinstance(text, str) else "")
    return "".join(said)
