"""What a user writes: an agent is any `async def` generator over a `Turn` that yields agent events.

    async def agent(turn: Turn):
        yield "Hello "
        yield "world."

A plain `str` is a text delta. Returning ends the response as completed, `Finish` as incomplete, and
raising as failed.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from msgspec import Struct, field

from channel.auth import Principal
from channel.isolation import IsolationKeys
from channel.responses.protocol.errors import error_status, sayable
from channel.responses.protocol.items import Item, text_of


class TextDelta(Struct, frozen=True):
    """A piece of the answer; a plain `str` means the same."""

    text: str


class RefusalDelta(Struct, frozen=True):
    """A piece of a refusal to answer."""

    text: str


class ReasoningDelta(Struct, frozen=True):
    """A piece of the reasoning summary; `new_part` starts another summary part.

    `encrypted_content` is what the model wants back with this reasoning in later turns (a signature,
    or reasoning that only its maker can read). It ends the reasoning item, which history gives back.
    """

    text: str = ""
    new_part: bool = False
    encrypted_content: str | None = None


class Annotation(Struct, frozen=True):
    """An annotation of the answer's text so far, such as `{"type": "url_citation", …}`."""

    annotation: Mapping[str, Any]


class FunctionCall(Struct, frozen=True):
    """A call of a function tool that the client declared; the client runs it.

    `arguments` is JSON text. Without a `call_id`, one is made.
    """

    name: str
    arguments: str
    call_id: str | None = None


class FunctionCallDelta(Struct, frozen=True):
    """A piece of a call's arguments; the first of a `call_id` names the function.

    Calls do not interleave: a delta of another call ends this one.
    """

    call_id: str
    arguments: str = ""
    name: str | None = None


class ToolStarted(Struct, frozen=True):
    """The agent began to run a tool of its own. Hidden from the client unless the channel shows it."""

    call_id: str
    name: str
    arguments: str = "{}"
    server_label: str = "agent"


class ToolFinished(Struct, frozen=True):
    """The agent's own tool ended, with an output or with an error."""

    call_id: str
    output: str | None = None
    error: str | None = None


class OutputItem(Struct, frozen=True):
    """A whole output item, passed through as it is; without an `id`, one is made."""

    item: Mapping[str, Any]


class Usage(Struct, frozen=True):
    """Tokens used; several of them add up."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


class KeptState(Struct, frozen=True):
    """What the agent wants back in the next turn (`Turn.state`), as JSON; the last one counts.

    It is kept with the response, and shown to nobody: neither a client nor its history sees it.
    """

    state: Mapping[str, Any]


class SessionReset(Struct, frozen=True):
    """Ends what was remembered: no later turn is given anything of this one, or of those before it.

    They stay stored, and a client that continues an older one still has its past.
    """


class Finish(Struct, frozen=True):
    """Ends the response: `stop`, or incomplete by `max_output_tokens` or `content_filter`."""

    reason: str = "stop"


AgentEvent: TypeAlias = (
    str
    | TextDelta
    | RefusalDelta
    | ReasoningDelta
    | Annotation
    | FunctionCall
    | FunctionCallDelta
    | ToolStarted
    | ToolFinished
    | OutputItem
    | Usage
    | KeptState
    | SessionReset
    | Finish
)


class TurnError(Exception):
    """Raised by an agent to tell the client why the turn failed; any other exception stays hidden.

    `code` is one of OpenAI's (`rate_limit_exceeded`, `invalid_image_url`, …) and `message` is shown
    to the client. Before the reply has begun it is an HTTP error with `status` (400 to 599, or else
    500) and `param`.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "server_error",
        status: int = 500,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = sayable(message) or "The agent failed to answer."
        self.code = sayable(code) or "server_error"
        self.status = error_status(status)
        self.param = sayable(param)


class Turn(Struct, frozen=True, kw_only=True):
    """One run of the agent.

    `input` holds this turn's new items and `history` all items before it, oldest first, both in the
    Responses API's item shapes with content as parts. `options` holds those request fields that
    were allowed (`accepts`, or the channel's `allowed_options`); nothing else of the caller's
    choosing arrives. `principal` and `isolation_keys` come from the authenticated key;
    `safety_identifier` is the caller's own text and proves nothing. `state` is what the agent kept
    (`KeptState`) in the newest turn before this one that kept anything; a fork gets that of its own past.
    """

    input: Sequence[Item]
    history: Sequence[Item] = ()
    instructions: str | None = None
    model: str = "agent"
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    response_id: str = ""
    previous_response_id: str | None = None
    principal: Principal | None = None
    isolation_keys: IsolationKeys | None = None
    safety_identifier: str | None = None
    state: Mapping[str, Any] | None = None

    @property
    def items(self) -> list[Item]:
        """History and input as one list: what a model is given."""
        return [*self.history, *self.input]

    @property
    def text(self) -> str:
        """The text of the last user message of the input, or an empty string."""
        for item in reversed(self.input):
            if item.get("type") == "message" and item.get("role") == "user":
                return text_of(item)
        return ""


class Agent(Protocol):
    """Any callable over a `Turn` that returns an async iterator of agent events.

    It may have attributes (of a function: `agent.max_input_tokens = 100_000`):

    - `max_input_tokens`: the longest input that it takes; a longer one is refused, or cut where the
      request says `truncation: auto`
    - `count_input_tokens(turn) -> int`, sync or async: its own count, in place of an estimate
    - `compact(turn) -> str`, sync or async: its own summary of `turn.items`, in place of its answer
      when it is asked for one
    - `aclose()`, async: lets go of what it holds, such as connections, when its server stops
    """

    def __call__(self, turn: Turn, /) -> AsyncIterator[AgentEvent]:
        """Run one turn."""
        ...


_Agent = TypeVar("_Agent", bound=Callable[..., Any])


def accepts(*options: str) -> Callable[[_Agent], _Agent]:
    """Declare the request fields that an agent takes as `turn.options`; no other reaches it.

        @accepts("reasoning", "max_output_tokens")
        async def agent(turn): ...

    Raises `ValueError` for a name that is not a caller option (`OPTION_NAMES`).
    """
    unknown = sorted(set(options) - OPTION_NAMES)
    if unknown:
        msg = f"accepts() got {unknown}; the caller options are {sorted(OPTION_NAMES)}"
        raise ValueError(msg)

    def declare(agent: _Agent) -> _Agent:
        agent.accepted_options = frozenset(options)  # type: ignore[attr-defined]
        return agent

    return declare


def accepted_options(target: object) -> frozenset[str]:
    """Return the request fields that an agent declared to take."""
    declared: frozenset[str] = getattr(target, "accepted_options", frozenset())
    return declared


OPTION_NAMES = frozenset(
    {
        "frequency_penalty",
        "include",
        "max_output_tokens",
        "max_tool_calls",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning",
        "service_tier",
        "temperature",
        "text",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    }
)
