"""The trust boundary: a key becomes a `Principal`, and the principal becomes isolation keys."""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from channel.isolation import (
    ISOLATION_HEADER_CHAT,
    ISOLATION_HEADER_USER,
    IsolationKeys,
    reset_current_isolation_keys,
    set_current_isolation_keys,
)
from channel.responses.protocol.errors import RequestError


READINESS_PATH: Final = "/readiness"

_MAX_KEY_LENGTH: Final = 512
_USER_HEADER: Final = ISOLATION_HEADER_USER.encode()
_CHAT_HEADER: Final = ISOLATION_HEADER_CHAT.encode()
_HEADERS: Final = frozenset(
    {b"authorization", b"x-api-key", b"api-key", _USER_HEADER, _CHAT_HEADER}
)
_CALLER: Final = "lambda_responses.caller"


class Principal(Struct, frozen=True, gc=False):
    """Who the key belongs to. A delegate is a backend that speaks for many end users of its own.

    A name holds no slash (`isolation_keys` says why).
    """

    name: str
    is_delegate: bool = False

    def __post_init__(self) -> None:
        if "/" in self.name:
            msg = "A principal's name holds no slash: that is where a delegate's users begin."
            raise ValueError(msg)


class Caller(Struct, frozen=True, gc=False):
    """An authenticated request's principal, and the partition that is theirs."""

    principal: Principal
    keys: IsolationKeys


class Authenticator(Protocol):
    """Turns a presented key into a principal."""

    async def authenticate(self, key: str, /) -> Principal | None:
        """Return whose key it is, or None where it is nobody's; raises `StoreError`."""
        ...


class DenyAll:
    """Nobody gets in: what a host has that was not configured."""

    async def authenticate(self, _key: str, /) -> Principal | None:
        """Return None."""
        return None


class FixedKeys:
    """A fixed set of keys, such as the development keys of the local server."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        """Take the principals by key."""
        self._principals = dict(principals)

    async def authenticate(self, key: str, /) -> Principal | None:
        """Return whose key it is; looked up by a keyed hash, so timing tells nothing of a key."""
        return self._principals.get(key)


def isolation_keys(principal: Principal, user: str | None, chat: str | None) -> IsolationKeys:
    """Return the keys of a principal's request; `user` and `chat` are what the headers named.

    They count for a delegate only, and name users and chats below its own name: a name holds no
    slash, so `acme/ann` is never another principal.
    """
    if not principal.is_delegate:
        return IsolationKeys(principal.name)
    return IsolationKeys(f"{principal.name}/{user}" if user else principal.name, chat or None)


def caller_of(scope: Scope) -> Caller:
    """Return the authenticated caller of a request that passed `Authentication`."""
    caller: Caller = scope[_CALLER]
    return caller


async def authenticated(
    headers: Iterable[tuple[bytes, bytes]], authenticator: Authenticator
) -> Caller:
    """Return who sent these headers, whose names are in lower case; raises `RequestError` (401).

    The key is a bearer token, or `x-api-key`, or `api-key` (for doors that take `Authorization`
    for themselves).
    """
    found = [header for header in headers if header[0] in _HEADERS]
    named = dict(found)
    if len(named) < len(found):
        # Doors differ in which of them they pass on, and the tenant hangs on it.
        said = "A header that says who is calling was sent more than once."
        raise RequestError(said, code="duplicate_header")
    key = _presented_key(named)
    principal = await authenticator.authenticate(key) if key else None
    if principal is None:
        said = "Incorrect API key provided." if key else "No API key provided."
        hint = " Send it as 'Authorization: Bearer KEY'."
        raise RequestError(said + hint, code="invalid_api_key", status=401)
    user, chat = _text(named.get(_USER_HEADER)), _text(named.get(_CHAT_HEADER))
    return Caller(principal, isolation_keys(principal, user, chat))


class Authentication:
    """ASGI middleware: 401 without a good key; with one, binds the caller and the isolation keys.

    A WebSocket is asked once, as it is opened. Only the health check passes without.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        """Guard the app."""
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through as its caller's, or raise `RequestError` (401)."""
        if scope["type"] == "lifespan" or scope["path"] == READINESS_PATH:
            await self._app(scope, receive, send)
            return
        caller = await authenticated(scope["headers"], self._authenticator)
        scope[_CALLER] = caller
        token = set_current_isolation_keys(caller.keys)
        try:
            await self._app(scope, receive, send)
        finally:
            reset_current_isolation_keys(token)


def _presented_key(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        token = headers.get(b"x-api-key") or headers.get(b"api-key") or b""
    token = token.strip()
    return token.decode("latin-1") if 0 < len(token) <= _MAX_KEY_LENGTH else None


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value else None
