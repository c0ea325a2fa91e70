"""The channel contract: what a channel gives the host, and what it gets from it."""

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    get_args,
    runtime_checkable,
)

from starlette.routing import BaseRoute

from channel.agent import Agent, AgentEvent, TextDelta
from channel.auth import Caller
from channel.delivery import DeliveryReport, Route
from channel.isolation import IsolationKeys
from channel.jobs import JobHandler
from channel.responses.protocol.items import Item
from channel.sessions import SessionStore
from channel.targets import ChannelIdentity, ResponseTarget


STATE: Final = "state"
"""The attribute of a `ChannelRequest` that holds what the agent kept (`Turn.state`)."""

COMMAND_NAME: Final = "[a-z][a-z0-9_-]{0,31}"
"""What names a command, as a regular expression."""

CALLERS_TARGET: Final = "callers_target"
"""The attribute of a `ChannelRequest` whose `response_target` is what its caller has asked for."""

SessionMode: TypeAlias = Literal["auto", "required", "disabled"]
"""Whether a request uses a session where there is one, must have one (409), or has none."""


def checked_session_mode(mode: SessionMode) -> SessionMode:
    """Return the mode; raises `ValueError` for another one."""
    if mode not in get_args(SessionMode):
        msg = f"session_mode is {mode!r}; it must be one of {', '.join(get_args(SessionMode))}"
        raise ValueError(msg)
    return mode


@dataclass(frozen=True)
class ChannelSession:
    """What a request continues: a hint, below the caller's own partition."""

    isolation_key: str | None = None


@dataclass(kw_only=True, slots=True)  # not frozen: that alone would cost 4 % of a small request
class ChannelRequest:
    """One run of the target, as a channel asks for it; hooks change it by `dataclasses.replace`.

    `input` holds the new items and `history` those before them, in the Responses API's shapes.
    `options` are the request fields that were allowed. `attributes` carries `response_id` and
    `previous_response_id` where the channel has them.
    """

    channel: str
    operation: str
    caller: Caller
    input: Sequence[Item]
    history: Sequence[Item] = ()
    instructions: str | None = None
    model: str = "agent"
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    session: ChannelSession | None = None
    session_mode: SessionMode = "auto"
    metadata: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    identity: ChannelIdentity | None = None
    response_target: ResponseTarget = ResponseTarget.originating

    @property
    def lacks_session(self) -> bool:
        """Whether it requires a session and has none: then it is refused (409), and nothing is run."""
        has_session = self.session is not None and self.session.isolation_key is not None
        return self.session_mode == "required" and not has_session


_Result = TypeVar("_Result")


@dataclass(frozen=True)
class HostedRunResult(Generic[_Result]):
    """What a run gave: the channel's own kind of result, and the session it ran in."""

    result: _Result
    session: ChannelSession | None = None

    @property
    def text(self) -> str:
        """The text of the result: its `output_text`, or its text deltas joined."""
        said = self.result
        if isinstance(said, Sequence):
            return "".join(_text(event) for event in said)
        return str(getattr(said, "output_text", ""))

    def replace(self, result: _Result) -> "HostedRunResult[_Result]":
        """Return the same run with another result."""
        return replace(self, result=result)


class ChannelRunHook(Protocol):
    """Called before the target runs; may be sync or async; should take `**kwargs`."""

    def __call__(
        self, request: ChannelRequest, /, *, target: Agent, protocol_request: Any
    ) -> ChannelRequest | Awaitable[ChannelRequest]:
        """Return the request to run, or raise `RequestError` (or `TurnError`) to refuse it."""
        ...


ChannelStreamTransformHook: TypeAlias = (
    Callable[[AgentEvent], AgentEvent | Awaitable[AgentEvent | None] | None]
    | Callable[[AsyncIterator[AgentEvent]], AsyncIterator[AgentEvent]]
)
"""Called with each agent event before it counts: returns it, another one, or None to drop it.

An async generator function is called once for each turn instead, with all of the turn's events: what
it yields counts. So it can keep something back, and say it at the end.
"""

ChannelResponseHook: TypeAlias = Callable[
    [HostedRunResult[Any]], HostedRunResult[Any] | Awaitable[HostedRunResult[Any]]
]
"""Called with the finished result before it is stored and sent: returns it, or another one."""


async def settled(value: Any) -> Any:
    """Return the value, awaited where it can be."""
    return await value if inspect.isawaitable(value) else value


class ChannelCommandContext(Protocol):
    """What a command is given, and how it answers."""

    @property
    def request(self) -> ChannelRequest:
        """The request whose last input item is the command."""
        ...

    @property
    def arguments(self) -> str:
        """The text after the name, without the space around it."""
        ...

    @property
    def commands(self) -> Mapping[str, "ChannelCommand"]:
        """The channel's commands that this caller may use, by name."""
        ...

    async def reply(self, text: str, /) -> None:
        """Say a piece of the reply, which is streamed at once; several of them add up.

        Returns when it was taken. Once the turn is over (the client is gone, the time is up, or the
        handler has returned), it returns without being said. Raises `TypeError` for what is no text.
        """
        ...

    async def reset_session(self) -> None:
        """End what was remembered: no later turn is given anything of this one, or of those before it.

        The chat that a delegate names begins anew, too, whatever the request goes on after: but not
        from inside of a conversation, nor where the request uses no session. Raises `StoreError`.
        """
        ...


@dataclass(frozen=True)
class ChannelCommand:
    """A command of a channel's users: what `/name` at the beginning of a message does.

    `handle` answers in place of the agent. For whom `is_for` returns False there is no such command:
    their text is the agent's; it is a plain function, and where it fails so does the request. With
    `resets` the command calls `reset_session` each time, or fails: so it may be typed where a function
    call still waits for its output. Raises `ValueError` for a name that cannot be one, and `TypeError`
    for an `is_for` that is async.
    """

    name: str
    description: str
    handle: Callable[[ChannelCommandContext], Awaitable[None]]
    is_for: Callable[[Caller], bool] | None = None
    resets: bool = False

    def __post_init__(self) -> None:
        """Refuse a name that nobody could type, and an `is_for` that would be true of everybody."""
        if not re.fullmatch(COMMAND_NAME, self.name):
            msg = f"{self.name!r} is no name of a command: it must match {COMMAND_NAME}"
            raise ValueError(msg)
        if _is_async(self.is_for):
            msg = f"is_for of the command /{self.name} is async: it must return a bool at once"
            raise TypeError(msg)


class Sockets(Protocol):
    """Serves WebSocket connections that a gateway holds: what happens to one is told by its id."""

    jobs: Mapping[str, JobHandler]
    """What runs the jobs that they start, by kind."""

    async def open(self, connection_id: str, caller: Caller, /) -> None:
        """Take a new connection of an authenticated caller; raises `StoreError`."""
        ...

    async def receive(self, connection_id: str, data: str | bytes, /) -> None:
        """Take what a client has sent, text or binary; whatever is wrong with it is told to the client."""
        ...

    async def close(self, connection_id: str, /) -> None:
        """Forget a connection that was closed; raises `StoreError`."""
        ...


class PlainRoute(NamedTuple):
    """Starlette's `Route`, before it is compiled: that is done once, when its whole path is known."""

    path: str
    endpoint: Callable[..., Any]
    methods: Sequence[str]


@dataclass(frozen=True)
class ChannelContribution:
    """What a channel adds to the app: routes below its path, lifespan callbacks, and jobs by kind.

    `sockets` takes the WebSocket connections of a gateway. `commands` are what its users may type.
    """

    routes: Sequence[BaseRoute | PlainRoute] = ()
    on_startup: Sequence[Callable[[], Awaitable[None]]] = ()
    on_shutdown: Sequence[Callable[[], Awaitable[None]]] = ()
    jobs: Mapping[str, JobHandler] = field(default_factory=dict)
    sockets: Sockets | None = None
    commands: Sequence[ChannelCommand] = ()


class OpenedDelivery(Protocol):
    """Where the reply of one request goes, decided before its turn runs; `deliver` it once."""

    @property
    def route(self) -> Route:
        """What was decided: with it, another process goes on (`Delivers.reopened`)."""
        ...

    @property
    def include_originating(self) -> bool:
        """Whether the originator reads the reply itself, rather than an acknowledgement."""
        ...

    async def deliver(
        self, response_id: str, *, status: str, text: str, left_s: float | None = None
    ) -> DeliveryReport:
        """Push the text to all destinations within `left_s` seconds; what goes wrong is in the report."""
        ...


class Delivers(Protocol):
    """Sends replies elsewhere than they came from (`channel.delivering.Deliveries`)."""

    async def chosen(self, caller: Caller, given: Any, *, origin: str) -> ResponseTarget:
        """Return the target that the `response_target` of a body asks for; `origin` is its channel.

        Raises `RequestError` (400) where it is malformed, unknown or not the caller's to choose, and
        `StoreError`.
        """
        ...

    async def opened(self, request: ChannelRequest) -> OpenedDelivery | None:
        """Note who is calling, and return where the reply goes; None where that is its origin alone.

        Raises `RequestError` for an identity that is too large, before anything is noted, and
        `StoreError`.
        """
        ...

    def reopened(self, request: ChannelRequest, decided: Route) -> OpenedDelivery:
        """Return what was opened before, by another process."""
        ...


class ChannelContext(Protocol):
    """All that a channel ever sees of its host."""

    @property
    def target(self) -> Agent:
        """The hosted agent."""
        ...

    @property
    def deliveries(self) -> Delivers | None:
        """What sends replies elsewhere than they came from; None where the host does not."""
        ...

    @property
    def sessions(self) -> SessionStore | None:
        """Where a chat goes on whose request names nothing to continue; None where it starts afresh."""
        ...

    async def reset_session(self, keys: IsolationKeys, session_key: str, /) -> bool:
        """Let the next turn of a session start afresh; False where it would have done so anyway.

        What was said stays stored, and can be continued by the id of its response. Raises `StoreError`.
        """
        ...

    def run_stream(self, request: ChannelRequest, /) -> AsyncIterator[AgentEvent]:
        """Run the target and return its events as they come.

        Raises `RequestError` (409) at once where the request requires a session and has none.
        """
        ...

    async def run(self, request: ChannelRequest, /) -> HostedRunResult[Sequence[AgentEvent]]:
        """Run the target to its end."""
        ...


@runtime_checkable
class Channel(Protocol):
    """A wire protocol over the host's target: routes under `path` that ask the context to run."""

    name: str
    path: str

    def contribute(self, context: ChannelContext, /) -> ChannelContribution:
        """Return what the channel adds to the app."""
        ...


def _is_async(function: object) -> bool:
    while isinstance(function, partial):
        function = function.func
    return callable(function) and any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, type(function).__call__)
    )


def _text(event: AgentEvent) -> str:
    if isinstance(event, TextDelta):
        return event.text
    return event if isinstance(event, str) else ""
