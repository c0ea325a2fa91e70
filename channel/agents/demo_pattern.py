"""Strings that match a regular expression: literals, classes, groups, alternatives and repeats.

The expression is read, never run: a client's expression could run for ever.
"""

from collections.abc import Sequence
from typing import Final


MAX_LENGTH: Final = 10_000
MAX_PATTERN: Final = 1_000
FEW_REPEATS: Final = 32
MAX_DEPTH: Final = 50
CANDIDATES: Final = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_ .,:;/@#!?+*=()[]{}"
)
DIGITS: Final = [("0", "9")]
WORD: Final = [("a", "z"), ("A", "Z"), ("0", "9"), ("_", "_")]
SPACE: Final = [(" ", " "), ("\t", "\r")]
CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
CLASSES: Final = {"d": DIGITS, "w": WORD, "s": SPACE}

Ranges = Sequence[tuple[str, str]]


class PatternError(ValueError):
    """The expression is broken, too large, or holds something else than is read here."""


def matching(pattern: str, min_length: int = 0) -> str:
    """Return a string of at least that length which matches, if the pattern leaves room for it."""
    if len(pattern) > MAX_PATTERN:
        raise PatternError(pattern)
    longest = ""
    for extra in (*range(min(min_length, FEW_REPEATS) + 1), min_length):
        text = _Reader(pattern, extra).read()
        longest = max(longest, text, key=len)
        if len(text) >= min_length:
            return text
    return _padded(longest, pattern, min_length)


def _padded(text: str, pattern: str, length: int) -> str:
    if not pattern.endswith("$"):
        return text.ljust(length, "a")
    if not pattern.startswith("^"):
        return text.rjust(length, "a")
    return text


class _Reader:
    """Reads the expression once, from left to right, making the text as it goes."""

    def __init__(self, pattern: str, extra_repeats: int) -> None:
        self._pattern = pattern
        self._extra_repeats = extra_repeats
        self._at = 0
        self._depth = 0

    def read(self) -> str:
        text = self._alternatives()
        if self._at < len(self._pattern):
            raise PatternError(self._pattern)
        return text

    def _alternatives(self) -> str:
        first = self._sequence()
        while self._take("|"):
            self._sequence()
        return first

    def _sequence(self) -> str:
        text = ""
        while self._next() not in {"", "|", ")"}:
            text += self._repeated(self._atom())
            if len(text) > MAX_LENGTH:
                raise PatternError(self._pattern)
        return text

    def _atom(self) -> str:
        match self._pop():
            case "^" | "$":
                return ""
            case ".":
                return "a"
            case "(":
                return self._group()
            case "[":
                return self._class()
            case "\\":
                return self._escaped()
            case "*" | "+" | "?":
                raise PatternError(self._pattern)
            case literal:
                return literal

    def _group(self) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise PatternError(self._pattern)
        if self._take("?") and not self._take(":"):
            self._group_name()
        text = self._alternatives()
        self._expect(")")
        self._depth -= 1
        return text

    def _group_name(self) -> None:
        self._take("P")
        self._expect("<")
        if self._next() in {"=", "!"}:  # looking behind
            raise PatternError(self._pattern)
        while self._pop() != ">":
            pass

    def _escaped(self) -> str:
        char = self._pop()
        if char in "bBAZz":
            return ""
        return _pick(*self._escape(char), self._pattern)

    def _escape(self, char: str) -> tuple[Ranges, bool]:
        if char.lower() in CLASSES:
            return CLASSES[char.lower()], char.isupper()
        if char in "xu":
            start, self._at = self._at, self._at + (2 if char == "x" else 4)
            char = _unescaped(self._pattern[start : self._at])
        elif char in CONTROLS:
            char = CONTROLS[char]
        elif char.isalnum():  # a back-reference, a Unicode property, …
            raise PatternError(self._pattern)
        return [(char, char)], False

    def _class(self) -> str:
        is_negated = self._take("^")
        ranges: list[tuple[str, str]] = []
        while self._next() != "]" or not ranges:
            ranges += self._class_member()
        self._expect("]")
        return _pick(ranges, is_negated, self._pattern)

    def _class_member(self) -> Ranges:
        low = self._class_char()
        if len(low) > 1 or self._next() != "-" or self._pattern[self._at + 1 : self._at + 2] == "]":
            return low
        self._expect("-")
        return [(low[0][0], self._class_char()[0][1])]

    def _class_char(self) -> Ranges:
        char = self._pop()
        if char != "\\":
            return [(char, char)]
        escape = self._pop()
        if escape == "b":
            return [("\b", "\b")]
        ranges, is_negated = self._escape(escape)
        return _inverted(ranges) if is_negated else ranges

    def _repeated(self, text: str) -> str:
        low, high = self._quantifier()
        wanted = min(low + self._extra_repeats, high) if high > low else low
        if len(text) * wanted > MAX_LENGTH:
            raise PatternError(self._pattern)
        return text * wanted

    def _quantifier(self) -> tuple[int, int]:
        bounds = {"*": (0, MAX_LENGTH), "+": (1, MAX_LENGTH), "?": (0, 1)}.get(self._next())
        if bounds:
            self._at += 1
        else:
            bounds = self._counts()
        if bounds != (1, 1) and self._next() in {"?", "+"}:
            self._at += 1  # lazy or possessive: the same strings match
        return bounds

    def _counts(self) -> tuple[int, int]:
        end = self._pattern.find("}", self._at)
        low, comma, high = self._pattern[self._at + 1 : end].partition(",")
        if self._next() != "{" or end < 0 or not low.isdecimal():
            return 1, 1
        self._at = end + 1
        if not comma:
            high = low
        return int(low[:6]), int(high[:6]) if high.isdecimal() else MAX_LENGTH

    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _pop(self) -> str:
        char = self._next()
        if not char:
            raise PatternError(self._pattern)
        self._at += 1
        return char

    def _take(self, char: str) -> bool:
        is_there = self._next() == char
        self._at += is_there
        return is_there

    def _expect(self, char: str) -> None:
        if not self._take(char):
            raise PatternError(self._pattern)


def _pick(ranges: Ranges, is_negated: bool, pattern: str) -> str:
    if not is_negated:
        return ranges[0][0]
    for char in CANDIDATES:
        if not any(low <= char <= high for low, high in ranges):
            return char
    raise PatternError(pattern)


def _inverted(ranges: Ranges) -> Ranges:
    outside = [c for c in CANDIDATES if not any(low <= c <= high for low, high in ranges)]
    return [(char, char) for char in outside]


def _unescaped(digits: str) -> str:
    try:
        return chr(int(digits, 16))
    except ValueError:
        raise PatternError(digits) from None
