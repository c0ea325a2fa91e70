import pytest

from channel.isolation import (
    ISOLATION_HEADER_CHAT,
    ISOLATION_HEADER_USER,
    IsolationKeys,
    get_current_isolation_keys,
    reset_current_isolation_keys,
    set_current_isolation_keys,
)


@pytest.mark.parametrize(
    ("keys", "is_empty"),
    [
        (IsolationKeys(), True),
        (IsolationKeys("u"), False),
        (IsolationKeys(None, "c"), False),
        (IsolationKeys("u", "c"), False),
    ],
)
def test_keys_are_empty_when_neither_is_set(keys: IsolationKeys, is_empty: bool) -> None:
    assert keys.is_empty is is_empty


def test_keys_are_values() -> None:
    assert IsolationKeys("u") == IsolationKeys("u", None) != IsolationKeys("u", "")
    assert len({IsolationKeys("u"), IsolationKeys("u"), IsolationKeys("u", "c")}) == 2


def test_a_binding_ends_with_its_reset() -> None:
    outer = set_current_isolation_keys(IsolationKeys("a"))
    inner = set_current_isolation_keys(IsolationKeys("b"))

    within = get_current_isolation_keys()
    reset_current_isolation_keys(inner)
    after = get_current_isolation_keys()
    reset_current_isolation_keys(outer)

    assert (within, after, get_current_isolation_keys()) == (
        IsolationKeys("b"),
        IsolationKeys("a"),
        None,
    )


def test_the_header_names() -> None:
    assert (ISOLATION_HEADER_USER, ISOLATION_HEADER_CHAT) == (
        "x-agent-user-isolation-key",
        "x-agent-chat-isolation-key",
    )
