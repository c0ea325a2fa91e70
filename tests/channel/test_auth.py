from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from channel.auth import (
    Authentication,
    Caller,
    DenyAll,
    FixedKeys,
    Principal,
    caller_of,
    isolation_keys,
)
from channel.isolation import IsolationKeys, get_current_isolation_keys
from channel.responses.protocol.errors import RequestError


pytestmark = pytest.mark.anyio

ACME = Principal("acme")
AGENCY = Principal("agency", is_delegate=True)
KEYS = FixedKeys({"key-acme": ACME, "key-agency": AGENCY})
USER = "x-agent-user-isolation-key"
CHAT = "x-agent-chat-isolation-key"


class App:
    """Notes who came in."""

    def __init__(self) -> None:
        self.callers: list[Caller | None] = []
        self.bound: list[IsolationKeys | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_known = scope["type"] == "http" and scope["path"] != "/readiness"
        self.callers.append(caller_of(scope) if is_known else None)
        self.bound.append(get_current_isolation_keys())


async def never() -> Message:
    raise AssertionError


async def nowhere(_: Message) -> None:
    raise AssertionError


async def enter(
    headers: list[tuple[str, str]], *, path: str = "/v1", kind: str = "http", keys: Any = KEYS
) -> App:
    app = App()
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": kind, "path": path, "headers": raw}
    await Authentication(app, keys)(scope, never, nowhere)
    return app


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer key-acme")],
        [("authorization", "bearer key-acme")],
        [("authorization", "BEARER   key-acme  ")],
        [("x-api-key", "key-acme")],
        [("api-key", " key-acme ")],
        [("authorization", "AWS4-HMAC-SHA256 Credential=x"), ("x-api-key", "key-acme")],
        [("accept", "*/*"), ("x-api-key", "key-acme"), ("api-key", "other")],
    ],
)
async def test_a_good_key_comes_in_as_its_principal(headers: list[tuple[str, str]]) -> None:
    app = await enter(headers)

    assert app.callers == [Caller(ACME, IsolationKeys("acme"))]
    assert app.bound == [IsolationKeys("acme")]
    assert get_current_isolation_keys() is None


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "No API key provided."),
        ([("authorization", "")], "No API key provided."),
        ([("authorization", "Bearer")], "No API key provided."),
        ([("authorization", "Bearer  ")], "No API key provided."),
        ([("authorization", "Basic key-acme")], "No API key provided."),
        ([("authorization", "key-acme")], "No API key provided."),
        ([("x-api-key", "")], "No API key provided."),
        ([("authorization", "Bearer wrong")], "Incorrect API key provided."),
        ([("authorization", "Bearer KEY-ACME")], "Incorrect API key provided."),
        ([("authorization", "Bearer key-acme x")], "Incorrect API key provided."),
        ([("authorization", "Bearer \xff\x00é")], "Incorrect API key provided."),
        ([("x-api-key", "wrong")], "Incorrect API key provided."),
    ],
)
async def test_without_a_good_key_it_is_a_401(headers: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        await enter(headers)

    assert (caught.value.status, caught.value.code, caught.value.message) == (
        401,
        "invalid_api_key",
        f"{message} Send it as 'Authorization: Bearer KEY'.",
    )


async def test_a_key_of_absurd_length_is_not_looked_up() -> None:
    class Noting:
        looked_up = 0

        async def authenticate(self, _key: str, /) -> Principal | None:
            self.looked_up += 1
            return None

    keys = Noting()
    with pytest.raises(RequestError):
        await enter([("authorization", f"Bearer {'k' * 513}")], keys=keys)

    assert keys.looked_up == 0


async def test_a_host_that_was_not_configured_lets_nobody_in() -> None:
    with pytest.raises(RequestError):
        await enter([("authorization", "Bearer key-acme")], keys=DenyAll())


async def test_the_health_check_needs_no_key() -> None:
    app = await enter([], path="/readiness")

    assert app.bound == [None]


@pytest.mark.parametrize("path", ["/readiness/", "/readiness/x", "/READINESS", "/v1/readiness", ""])
async def test_nothing_else_passes_as_the_health_check(path: str) -> None:
    with pytest.raises(RequestError):
        await enter([], path=path)


async def test_the_lifespan_needs_no_key() -> None:
    app = await enter([], kind="lifespan")

    assert app.bound == [None]


async def test_a_websocket_does_not_come_in_without_a_key() -> None:
    app = App()
    scope = {"type": "websocket", "path": "/v1/responses", "headers": []}

    with pytest.raises(RequestError):
        await Authentication(app, KEYS)(scope, never, nowhere)


@pytest.mark.parametrize(
    ("headers", "keys"),
    [
        ([], IsolationKeys("agency")),
        ([(USER, "ann")], IsolationKeys("agency/ann")),
        ([(CHAT, "c1")], IsolationKeys("agency", "c1")),
        ([(USER, "ann"), (CHAT, "c1")], IsolationKeys("agency/ann", "c1")),
        ([(USER, ""), (CHAT, "")], IsolationKeys("agency")),
        ([(USER, "é/../x")], IsolationKeys("agency/é/../x")),
    ],
)
async def test_a_delegate_names_users_and_chats_below_itself(
    headers: list[tuple[str, str]], keys: IsolationKeys
) -> None:
    app = await enter([("authorization", "Bearer key-agency"), *headers])

    assert app.bound == [keys]


async def test_the_headers_of_another_key_mean_nothing() -> None:
    app = await enter([("authorization", "Bearer key-acme"), (USER, "ann"), (CHAT, "c1")])

    assert app.bound == [IsolationKeys("acme")]


def test_a_principal_is_never_a_user_of_a_delegate() -> None:
    with pytest.raises(ValueError, match="slash"):
        isolation_keys(Principal("agency/ann"), None, None)


async def test_the_keys_are_unbound_when_the_app_fails() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError

    scope = {"type": "http", "path": "/", "headers": [(b"x-api-key", b"key-acme")]}
    with pytest.raises(KeyError):
        await Authentication(fails, KEYS)(scope, never, nowhere)

    assert get_current_isolation_keys() is None


@pytest.mark.parametrize(
    "name",
    ["authorization", "x-api-key", "x-agent-user-isolation-key", "x-agent-chat-isolation-key"],
)
async def test_a_header_that_says_who_is_calling_counts_once(name: str) -> None:
    headers = [("authorization", "Bearer key-agency"), (name, "ann"), (name, "bob")]

    with pytest.raises(RequestError) as caught:
        await enter(headers)

    assert (caught.value.status, caught.value.code) == (400, "duplicate_header")
