"""Words: how the demo agent cuts text into pieces, counts it, quotes it and compares it."""

import re
from typing import Final


APOSTROPHE: Final = "\N{RIGHT SINGLE QUOTATION MARK}"

_STOP_WORDS = """
    a about actually again all also am an and any are as ask asked at be been before but by can could
    did do does earlier far first for from had has have hello hey hi how i i'm if in is it its just
    know last me mine my now of ok on or our please recall remember said say should so tell that
    the their them then there these they this those to told up us use was we were what when where
    which who whose why will with would you your yours
"""
STOP_WORDS: Final = frozenset(_STOP_WORDS.split())


def pieces(text: str) -> list[str]:
    """Cut a text into words with the white space after them; joined they are the text again."""
    return re.findall(r"\S+\s*|\s+", text)


def count(text: str) -> int:
    """Count words: the demo agent's tokens."""
    return len(text.split())


def clip(text: str, limit: int = 200) -> str:
    """Return the text on one line, cut after `limit` characters."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[:limit].rstrip() + "…"


def quote(text: str) -> str:
    """Return the clipped text in quotation marks."""
    return f"“{clip(text)}”"


def straight(text: str) -> str:
    """Return the text with straight apostrophes, as patterns here are written."""
    return text.replace(APOSTROPHE, "'")


def all_words(text: str) -> list[str]:
    """Return the words of a text in one spelling: lower case, singular, American."""
    return [*map(_respelled, _words(text))]


def content_words(text: str) -> set[str]:
    """Return the words that say what a text is about, in that spelling."""
    return {_respelled(word) for word in _words(text) if word not in STOP_WORDS}


def _words(text: str) -> list[str]:
    found = re.findall(r"[^\W_]+(?:'[^\W_]+)?", straight(text).lower())
    return [word.removesuffix("'s") for word in found]


def _respelled(word: str) -> str:
    word = re.sub(r"(?<=[a-z]{2})our", "or", word)
    is_plural = len(word) > len("was") and word.endswith("s") and not word.endswith("ss")
    return word[:-1] if is_plural else word
