"""Scripts: what a fake model says, whatever the framework, and what it was given to see."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from msgspec import Struct, field


class Say(Struct, frozen=True):
    """The model says text, in these pieces."""

    pieces: tuple[str, ...]


class Think(Struct, frozen=True):
    """The model reasons, in these pieces; `signature` is what it wants back with them."""

    pieces: tuple[str, ...]
    signature: str | None = None


class Call(Struct, frozen=True):
    """The model calls a tool: a client's, or `weather`, which the agent runs itself."""

    name: str
    arguments: Mapping[str, Any]
    call_id: str


class Spend(Struct, frozen=True):
    """What this model call counted."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Stop(Struct, frozen=True):
    """The model stops early: `length` or `content_filter`."""

    reason: str


class Fail(Struct, frozen=True):
    """The model's client raises an exception with this text, which nobody else may read."""

    text: str


class Wait(Struct, frozen=True):
    """The model goes silent for ever: sets `begun`; a cancellation must set `ended`.

    Where a model is out of reach (a server), `ended` is set when its connection goes.
    """

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Meet(Struct, frozen=True):
    """The model waits until as many model calls have come here as the barrier holds."""

    barrier: asyncio.Barrier


Step: TypeAlias = Say | Think | Call | Spend | Stop | Fail | Wait | Meet
Script: TypeAlias = Sequence[Sequence[Step]]
"""The steps of each model call, in their order."""


class Seen(Struct):
    """What one model call was given, in words that all frameworks share."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    """(role, text) of each message that has text: `system`, `user`, `assistant` or `tool`."""
    tools: list[str] = field(default_factory=list)
    """The names of the tools that the model may call."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(call id, name) of the tool calls in the history."""
    signatures: list[str] = field(default_factory=list)
    """What came back with the reasoning in the history."""
    images: list[bytes] = field(default_factory=list)
    schema: Mapping[str, Any] | None = None
    """The JSON schema that the answer must fit."""
    max_tokens: int | None = None
    temperature: float | None = None


class Model(Protocol):
    """A scripted fake model: what the calls so far were given."""

    seen: list[Seen]


class Scripted(Protocol):
    """One framework with a scripted model."""

    unsupported: Mapping[str, str]
    """Behaviours (names of the tests of the matrix) that the framework has not, each with the reason."""

    def agent(self, script: Script) -> tuple[Any, Model]:
        """Return what a user would name by `AGENT`, and its model.

        It is the framework's agent, or a factory, with the instructions `Be kind.` and one tool of
        its own, `weather(city)`, which returns `sunny`, or raises for the city `Nowhere`.
        """
        ...


def own_weather(city: str) -> str:
    """Return the weather of a city."""
    if city == "Nowhere":
        raise LookupError("secret detail")
    return "sunny"


def text_of_steps(steps: Sequence[Step]) -> str:
    """Return what the model says in these steps."""
    return "".join("".join(step.pieces) for step in steps if isinstance(step, Say))
