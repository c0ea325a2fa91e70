"""Sessions: which stored response the next turn of a chat goes on after; the port, and what it tells.

What was said and kept is in the stored turns, which never change: each response id is a snapshot.
A session only names the newest of them, its head. Two turns that begin at one head are forks of it;
the one that ends while the head is still where it began becomes the head, and the other stays
beside it. A session that was reset has no head, and knows of that reset: a turn that began before it
does not become the head.
"""

from typing import Protocol, TypeAlias

from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.responses.protocol.errors import RequestError


class Forgotten(Struct, frozen=True):
    """What is at the head of a session that was forgotten: the token is that one time's own."""

    token: str


Head: TypeAlias = str | Forgotten | None
"""The id of the response at the head; or that the session was forgotten, or that there is nothing."""


class SessionStore(Protocol):
    """The heads of sessions, by the isolation keys and a key of the session's own below them.

    A head is gone when the session was not moved for as long as history is kept; then it is as if
    there had never been one. Every method raises `StoreError` when the storage fails.
    """

    async def head(self, keys: IsolationKeys, session_key: str, /) -> Head:
        """Return what is at the head now."""
        ...

    async def move(
        self, keys: IsolationKeys, session_key: str, response_id: str, /, *, after: Head
    ) -> bool:
        """Make a response the head where `after` is it still (None: where there is nothing).

        False where another one is. The same move again changes nothing, and is True as long as its
        response is the head.
        """
        ...

    async def forget(self, keys: IsolationKeys, session_key: str, /) -> bool:
        """Let nothing that began before become the head; False where no response was it."""
        ...


class FoundSession(Struct, frozen=True, omit_defaults=True):
    """A session as a turn found it when it began: its key, and its head.

    `forgets_itself` where the turn is a command, which forgets the session where it resets.
    """

    key: str
    head: Head = None
    forgets_itself: bool = False

    @property
    def response_id(self) -> str | None:
        """The id of the response at the head, if one is."""
        return self.head if isinstance(self.head, str) else None


class BeganAt(Struct, frozen=True):
    """The head at which a turn of a session began."""

    head: Head = None


def session_too_large(*, has_reset: bool) -> RequestError:
    """Return the 400 for a chat that has become too large to go on."""
    cure = "Please begin another chat, or type /reset" if has_reset else "Please begin another chat"
    msg = f"The history of this chat is too large to be continued. {cure}."
    return RequestError(msg, code="context_length_exceeded")


def session_required() -> RequestError:
    """Return the 409 for a request that must name a session, and names none."""
    msg = "This request needs a session to continue, such as a 'previous_response_id'."
    return RequestError(msg, code="session_required", status=409)
