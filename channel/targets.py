"""`ResponseTarget`: where the reply of a request goes, as a value and as a body says it; and identities. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Final
from unicodedata import category

from msgspec import Struct

from channel.responses.protocol.errors import RequestError


MAX_TARGETS: Final = 16
"""Destinations that one request may name."""
MAX_NAME: Final = 64
"""Characters of the name of a channel."""
MAX_NATIVE_ID: Final = 512
"""Characters of an identity's id in its channel."""
FIELD: Final = "response_target"


@dataclass(frozen=True)
class ChannelIdentity:
    """Who the caller says to be in a channel's own namespace: text of theirs, which proves nothing."""

    channel: str
    native_id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


class ResponseTargetKind(StrEnum):
    """To whom a reply goes."""

    ORIGINATING = "originating"
    ACTIVE = "active"
    CHANNELS = "channels"
    ALL_LINKED = "all_linked"
    NONE = "none"


class Destination(Struct, frozen=True):
    """One place that a target names: a channel, and who there; without an id, whoever is linked."""

    channel: str
    native_id: str | None = None

    @classmethod
    def of(cls, token: str) -> "Destination":
        """Return what a token says: `name`, or `name:native_id`, split at the first colon."""
        channel, colon, native_id = token.partition(":")
        return cls(channel, native_id if colon else None)

    @property
    def token(self) -> str:
        """The destination as text."""
        return self.channel if self.native_id is None else f"{self.channel}:{self.native_id}"


class ResponseTarget(Struct, frozen=True):
    """Where a reply goes; two that name the same are equal.

    `targets` are the tokens of `channels`: `originating`, the name of a channel, or `name:native_id`.
    """

    kind: ResponseTargetKind
    targets: tuple[str, ...] = ()

    originating: ClassVar["ResponseTarget"]
    active: ClassVar["ResponseTarget"]
    all_linked: ClassVar["ResponseTarget"]
    none: ClassVar["ResponseTarget"]

    @classmethod
    def channel(cls, token: str) -> "ResponseTarget":
        """Return the target of one channel, or of one identity there."""
        return cls.channels([token])

    @classmethod
    def channels(cls, tokens: "list[str] | tuple[str, ...]") -> "ResponseTarget":
        """Return the target of several channels, each once; raises `ValueError` for a bad token."""
        for token in tokens:
            if (problem := _problem(token)) is not None:
                raise ValueError(problem)
        if not 0 < len(tokens) <= MAX_TARGETS:
            msg = f"A target of channels names 1 to {MAX_TARGETS} of them."
            raise ValueError(msg)
        return cls(ResponseTargetKind.CHANNELS, tuple(dict.fromkeys(tokens)))


ResponseTarget.originating = ResponseTarget(ResponseTargetKind.ORIGINATING)
ResponseTarget.active = ResponseTarget(ResponseTargetKind.ACTIVE)
ResponseTarget.all_linked = ResponseTarget(ResponseTargetKind.ALL_LINKED)
ResponseTarget.none = ResponseTarget(ResponseTargetKind.NONE)

_NO_TEXT: Final = frozenset({"Cc", "Cs"})  # control characters and halves of characters
_KEYWORDS: Final = {
    kind.value: ResponseTarget(kind)
    for kind in ResponseTargetKind
    if kind is not ResponseTargetKind.CHANNELS
}


def parse_target(given: Any, param: str = FIELD) -> ResponseTarget:
    """Return the target that a body asks for; raises `RequestError` (400) naming what is wrong.

    A keyword, a token, a list of tokens, `{"channels": […]}`, or `{"kind": …}` with a keyword.
    """
    match given:
        case str():
            return _KEYWORDS.get(given) or _channels([given], param)
        case [*tokens]:
            return _channels(tokens, param)
        case {"channels": [*tokens], **others} if not others:
            return _channels(tokens, f"{param}.channels")
        case {"kind": str(kind), **others} if not others:
            if kind not in _KEYWORDS:
                raise _bad(f"{param}.kind", f"it is one of {', '.join(_KEYWORDS)}")
            return _KEYWORDS[kind]
    raise _bad(
        param, "it is a keyword, a channel, a list of channels, {channels: […]} or {kind: …}"
    )


def _channels(tokens: list[Any], param: str) -> ResponseTarget:
    if not tokens:
        raise _bad(param, "it names at least one channel")
    if len(tokens) > MAX_TARGETS:
        raise _bad(param, f"it names at most {MAX_TARGETS} channels")
    for index, token in enumerate(tokens):
        where = f"{param}[{index}]" if len(tokens) > 1 or param.endswith("channels") else param
        problem = _problem(token)
        if problem is None and token in _KEYWORDS and token != ResponseTargetKind.ORIGINATING:
            problem = f"{token!r} is a target of its own, and no channel"
        if problem is not None:
            raise _bad(where, problem)
    return ResponseTarget.channels(tokens)


def _problem(token: Any) -> str | None:
    if not isinstance(token, str):
        return "a channel is text"
    destination = Destination.of(token)
    if not 0 < len(destination.channel) <= MAX_NAME:
        return f"the name of a channel has 1 to {MAX_NAME} characters"
    if destination.native_id is not None and not is_native_id(destination.native_id):
        return f"the id after the colon has 1 to {MAX_NATIVE_ID} characters, none of control"
    return None


def is_native_id(text: Any) -> bool:
    """Whether text can be an identity's id in its channel."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_NATIVE_ID:
        return False
    return not any(category(character) in _NO_TEXT for character in text)


def is_channel_name(name: Any) -> bool:
    """Whether a channel can be named so: it must be told from a keyword, and from what is after a colon."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        return False
    return ":" not in name and name not in {kind.value for kind in ResponseTargetKind}


def checked_target(target: Any) -> ResponseTarget:
    """Return a target that was made by hand as one of this module; raises `ValueError` where it is none."""
    if not isinstance(target, ResponseTarget):
        msg = f"{type(target).__qualname__} is no ResponseTarget"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for all that is wrong with it
    kind = ResponseTargetKind(target.kind)
    if kind is not ResponseTargetKind.CHANNELS:
        return ResponseTarget(kind)
    return ResponseTarget.channels(target.targets)


def _bad(param: str, what: str) -> RequestError:
    return RequestError(f"Invalid '{param}': {what}.", param=param, code="invalid_value")
