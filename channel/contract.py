"""The channel contract: what a channel gives the host, and what it gets from it."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from starlette.routing import BaseRoute

from channel.agent import Agent, AgentEvent, TextDelta
from channel.auth import Caller
from channel.faults import HookError
from channel.jobs import JobHandler
from channel.responses.protocol.items import Item


STATE: Final = "state"
"""The attribute of a `ChannelRequest` that holds what the agent kept (`Turn.state`)."""

SessionMode: TypeAlias = Literal["auto", "required", "disabled"]
"""Whether a request uses a session where there is one, must have one (409), or has none."""


@dataclass(frozen=True)
class ChannelSession:
    """What a request continues: a hint, below the caller's own partition."""

    isolation_key: str | None = None


@dataclass(frozen=True)
class ChannelIdentity:
    """Who the caller says to be in a channel's own namespace: text of theirs, which proves nothing."""

    channel: str
    native_id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


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
        """Return the request to run, or raise `RequestError` to refuse it."""
        ...


ChannelStreamTransformHook: TypeAlias = Callable[
    [AgentEvent], AgentEvent | Awaitable[AgentEvent | None] | None
]
"""Called with each agent event before it counts: returns it, another one, or None to drop it."""

ChannelResponseHook: TypeAlias = Callable[
    [HostedRunResult[Any]], HostedRunResult[Any] | Awaitable[HostedRunResult[Any]]
]
"""Called with the finished result before it is stored and sent: returns it, or another one."""


async def apply_run_hook(
    hook: ChannelRunHook, request: ChannelRequest, *, target: Agent, protocol_request: Any
) -> ChannelRequest:
    """Call the hook by its convention, awaiting where needed.

    Raises `HookError` where it returns something else than a `ChannelRequest`; what the hook itself
    raises passes through.
    """
    changed = hook(request, target=target, protocol_request=protocol_request)
    return checked_hook_result(hook, await settled(changed), ChannelRequest)


async def settled(value: Any) -> Any:
    """Return the value, awaited where it can be."""
    return await value if inspect.isawaitable(value) else value


def checked_hook_result(hook: object, result: Any, kind: type[_Result]) -> _Result:
    """Return what a hook returned, or raise a `HookError` that names the hook."""
    if not isinstance(result, kind):
        name = getattr(hook, "__qualname__", type(hook).__qualname__)
        msg = f"the hook {name} returned {type(result).__name__}, not {kind.__name__}"
        raise HookError(msg)
    return result


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

    `sockets` takes the WebSocket connections of a gateway.
    """

    routes: Sequence[BaseRoute | PlainRoute] = ()
    on_startup: Sequence[Callable[[], Awaitable[None]]] = ()
    on_shutdown: Sequence[Callable[[], Awaitable[None]]] = ()
    jobs: Mapping[str, JobHandler] = field(default_factory=dict)
    sockets: Sockets | None = None


class ChannelContext(Protocol):
    """All that a channel ever sees of its host."""

    @property
    def target(self) -> Agent:
        """The hosted agent."""
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


def _text(event: AgentEvent) -> str:
    if isinstance(event, TextDelta):
        return event.text
    return event if isinstance(event, str) else ""
