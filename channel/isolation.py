"""Whose data this is: isolation keys, their ContextVar, and the headers a delegate key may name them by."""

from contextvars import ContextVar, Token
from typing import Final

from msgspec import Struct


ISOLATION_HEADER_USER: Final = "x-agent-user-isolation-key"
ISOLATION_HEADER_CHAT: Final = "x-agent-chat-isolation-key"


class IsolationKeys(Struct, frozen=True, gc=False):
    """The pair that partitions storage: who, and optionally in which chat.

    A missing chat is a partition of its own, apart from every named one.
    """

    user_key: str | None = None
    chat_key: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether neither key is set."""
        return self.user_key is None and self.chat_key is None


_current: ContextVar[IsolationKeys | None] = ContextVar("isolation_keys", default=None)


def get_current_isolation_keys() -> IsolationKeys | None:
    """Return the keys of the authenticated caller of this request, or None outside of one."""
    return _current.get()


def set_current_isolation_keys(keys: IsolationKeys | None) -> Token[IsolationKeys | None]:
    """Bind the keys; give the token to `reset_current_isolation_keys`."""
    return _current.set(keys)


def reset_current_isolation_keys(token: Token[IsolationKeys | None]) -> None:
    """Undo the binding that returned this token."""
    _current.reset(token)
