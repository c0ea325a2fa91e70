import re

import pytest

from channel.agents.demo_pattern import PatternError, matching


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "^abc$",
        r"^\d{4}-\d{2}$",
        r"^[A-Z]{2,}[0-9]?\.$",
        r"^(foo|ba[rz])+?$",
        "^(?:a|b)*c$",
        "^(?P<year>[0-9]{4})$",
        "^[^a-zA-Z]x$",
        r"^[\w.+-]+@[\w-]+\.[a-z]{2,}$",
        r"^[\D]\W\S\s$",
        r"^\x41\u00e9\n\t$",
        r"^[\x41-\x43\b]$",
        "^[]a]$",
        "^[a-]$",
        "^[a-z-9]{3,5}$",
        r"\bword\B.",
        "^a{x$",
        "a|b",
    ],
)
def test_the_text_matches_its_pattern(pattern: str) -> None:
    assert re.search(pattern, matching(pattern)) is not None


@pytest.mark.parametrize(
    ("pattern", "length"),
    [("^a+$", 7), ("^a", 3), ("a$", 3), ("^[a-z]{2,8}(-x)?$", 9), (r"^(ab)*\d{1,3}$", 20)],
)
def test_the_text_is_as_long_as_asked_for(pattern: str, length: int) -> None:
    text = matching(pattern, length)

    assert len(text) >= length
    assert re.search(pattern, text) is not None


def test_a_pattern_without_room_stays_short() -> None:
    assert matching("^abc$", 9) == "abc"


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "[a",
        "*",
        "a\\",
        "(?=a)",
        "(?<!a)b",
        "(?P<name",
        r"(a)\1",
        r"\p{L}",
        r"\xzz",
        r"[^\s\S]",
        "a{999999999}",
        "((a{999}){999}){999}",
        "a{9999}b{9999}",
        "(" * 60 + ")" * 60,
        "a" * 2_000,
    ],
)
def test_what_cannot_be_read_or_is_too_large_is_an_error(pattern: str) -> None:
    with pytest.raises(PatternError):
        matching(pattern)
