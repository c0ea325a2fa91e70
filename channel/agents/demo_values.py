"""Values: what the user's text says a JSON property should hold."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from channel.agents.demo_words import clip


READ_CHARACTERS: Final = 4_000
PLACES: Final = frozenset({"city", "location", "place", "town", "country", "region", "where"})
PLACE: Final = re.compile(r"\b(?:in|at|near|for)\s+(?:the\s+)?(?=([^?!.;,\n]+))")
PLAIN_PLACE: Final = re.compile(r"\bin\s+([\w-]+)")
NAMES: Final = frozenset({"name", "first_name", "full_name", "person", "who"})
NAME: Final = re.compile(
    r"\b(?:name is|named|called|i am|i'm|call me)\s+([^?!.;,\n]+)", re.IGNORECASE
)

NUMBER: Final = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,9})?(?!\w)")
QUOTED: Final = re.compile(r"\"([^\"]+)\"|“([^”]+)”")
FORMATS: Final = {
    "date": (re.compile(r"\b\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])\b"), "2026-01-31"),
    "date-time": (None, "2026-01-31T12:00:00Z"),
    "time": (None, "12:00:00Z"),
    "duration": (None, "P1D"),
    "email": (
        re.compile(r"\b\w+(?:[.+-]\w+)*@\w+(?:[.-]\w+)*\.[a-z]{2,}\b", re.ASCII),
        "demo@example.com",
    ),
    "hostname": (None, "example.com"),
    "ipv4": (None, "192.0.2.1"),
    "ipv6": (None, "2001:db8::1"),
    "uuid": (None, "00000000-0000-4000-8000-000000000000"),
    "uri": (re.compile(r"\bhttps?://[\w./%#?&=~-]*[\w/]", re.ASCII), "https://example.com/"),
}


class SpokenValues:
    """Values found in a text; each of its numbers is given out once."""

    def __init__(self, text: str) -> None:
        self._text = re.sub(r"[^\S\n]+", " ", text[:READ_CHARACTERS])
        self._folded = self._text.casefold()
        self._numbers = [_number(found) for found in NUMBER.findall(self._text)]

    def string(self, name: str) -> str:
        """Return what the text says for a property of this name, or else the text."""
        said = self._assigned(name) or self._named(name) or self._quoted() or self._text
        return clip(said) or name or "text"

    def formatted(self, format_name: str) -> str:
        """Return what the text holds in this format, or else an example of it."""
        pattern, example = FORMATS[format_name]
        found = pattern.search(self._text) if pattern else None
        return found[0] if found else example

    def number(self, fits: Callable[[Any], bool]) -> float | None:
        """Return the next number of the text that fits."""
        for number in self._numbers:
            if fits(number):
                self._numbers.remove(number)
                return number
        return None

    def is_mentioned(self, value: object) -> bool:
        """Tell whether the text holds this value as words of its own."""
        words = str(value).casefold()
        if words not in self._folded:
            return False
        return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", self._folded) is not None

    def choice(self, values: Sequence[Any]) -> Any:
        """Return the first of the values that is mentioned, or else the first."""
        return next(filter(self.is_mentioned, values), values[0])

    def _assigned(self, name: str) -> str:
        words = re.escape(name).replace("_", "[_ ]")
        assigned = rf"\b{words} ?(?:=|:|\bis\b) ?([^,;.?!\n]+)"
        found = re.search(assigned, self._text, re.IGNORECASE) if name else None
        return found[1].strip(" \"'“”") if found else ""

    def _named(self, name: str) -> str:
        if name.lower() in PLACES:
            return _capitalised(PLACE, self._text) or _first(PLAIN_PLACE, self._text)
        if name.lower() in NAMES:
            return _capitalised(NAME, self._text) or _first(NAME, self._text)
        return ""

    def _quoted(self) -> str:
        found = QUOTED.search(self._text)
        return (found[1] or found[2]) if found else ""


def _number(found: str) -> float:
    return float(found) if "." in found else int(found)


def _capitalised(pattern: re.Pattern[str], text: str) -> str:
    """Return the first capitalised words that follow the words of the pattern."""
    for following in pattern.findall(text):
        if words := [*itertools.takewhile(lambda word: word[0].isupper(), following.split())]:
            return " ".join(words)
    return ""


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1].split()[0] if found and found[1].strip() else ""
