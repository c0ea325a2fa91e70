"""Sessions: which stored response the next turn of a chat goes on after; the port, and what it tells.

What was said and kept is in the stored turns, which never change: each response id is a snapshot.
A session only names the newest of them, its head. Two turns that begin at one head are forks of it;
the one that ends while the head is still where it began becomes the head, and the other stays
beside it.
"""

from typing import Protocol

from msgspec import Struct

from channel.isolation import IsolationKeys
from channel.responses.protocol.errors import RequestError


class SessionStore(Protocol):
    """The heads of sessions, by the isolation keys and a key of the session's own below them.

    A head is forgotten when the session was not moved for as long as history is kept; then it is as
    if there were none. Every method raises `StoreError` when the storage fails.
    """

    async def head(self, keys: IsolationKeys, session_key: str, /) -> str | None:
        """Return the id of the response at the head, as it is now, or None where there is none."""
        ...

    async def move(
        self, keys: IsolationKeys, session_key: str, response_id: str, /, *, after: str | None
    ) -> bool:
        """Make a response the head where `after` is it still (None: where there is none).

        False where another one is. The same move again changes nothing, and is True as long as its
        response is the head.
        """
        ...

    async def forget(self, keys: IsolationKeys, session_key: str, /) -> bool:
        """Let the session have no head; False where it had none."""
        ...


class FoundSession(Struct, frozen=True):
    """A session as a turn found it when it began: its key, and its head or None."""

    key: str
    head: str | None = None


def session_required() -> RequestError:
    """Return the 409 for a request that must name a session, and names none."""
    msg = "This request needs a session to continue, such as a 'previous_response_id'."
    return RequestError(msg, code="session_required", status=409)
