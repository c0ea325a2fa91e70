"""Memory: what the user told the demo agent about themselves, and the questions it can answer from that."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec import Struct

from channel.agents.demo_words import all_words, clip, content_words, quote, straight


LISTED_MESSAGES: Final = 5

# Sentences are matched with single spaces in them, as `_sentences` makes them.
SENTENCE_ENDS: Final = re.compile(
    r"(?<=[.!?;]) |,? (?:and|but) (?=(?:my|i|i'm|what|what's|who|where|when|how)\b)", re.IGNORECASE
)
COURTESY: Final = re.compile(
    r"^(?:(?:please|hi|hello|hey|ok|okay|so|well|actually|also|now|and|thanks)\b[ ,!]*)+",
    re.IGNORECASE,
)
QUESTION: Final = re.compile(
    r"(?:what|who|whose|where|when|which|how|do|does|did|can|could|will|would|is|are|am|have|tell me"
    r"|say|list|repeat|recall)\b",
    re.IGNORECASE,
)
ABOUT_THE_USER: Final = re.compile(r"\b(?:my|i|me)\b", re.IGNORECASE)
ASKS_FOR_EVERYTHING: Final = re.compile(
    r"\b(?:tell|told|say|said|know|remember|ask|asked)\b", re.IGNORECASE
)
WHO_AM_I: Final = re.compile(r"\bwho am i\b|\bam i called\b", re.IGNORECASE)

REMEMBER: Final = re.compile(
    r"\b(?:remember|don't forget|do not forget|keep in mind)\b(?: that)?[ :,]+(.+)",
    re.IGNORECASE,
)
NAME: Final = re.compile(
    r"\b(?i:call me|(?:i am|i'm) called) (\S.*)|\b(?i:i am|i'm) ([A-Z]\w*(?: [A-Z]\w*)*)$"
)
MINE: Final = re.compile(r"\bmy (.{1,60}?) (is|are|was|were) (.+)", re.IGNORECASE)
I_DO: Final = re.compile(
    r"\b(?:i (?:am|live|work|like|love|prefer|hate|study|speak|play|have|own|come|was)|i'm) .+",
    re.IGNORECASE,
)

SECOND_PERSON: Final = {
    "i": "you",
    "i'm": "you are",
    "i've": "you have",
    "am": "are",
    "me": "you",
    "my": "your",
    "mine": "yours",
    "myself": "yourself",
}


class Note(Struct, frozen=True):
    """Something the user told: a later note about the same `subject` replaces it."""

    subject: frozenset[str]
    words: frozenset[str]
    sentence: str


def notes(said: Iterable[str]) -> list[Note]:
    """Collect what the user told, oldest first."""
    found: dict[frozenset[str], Note] = {}
    for sentence in (sentence for text in said for sentence in _sentences(text)):
        note = None if _is_question(sentence) else _note(sentence.strip(" .!;,"))
        if note:
            found.pop(note.subject, None)
            found[note.subject] = note
    return [*found.values()]


def recall(said: Sequence[str]) -> list[str]:
    """Answer the last text from what was told, or say that it was noted; empty if it is about neither."""
    if not said:
        return []
    known = notes(said)
    questions = [sentence for sentence in _sentences(said[-1]) if _is_question(sentence)]
    answers = [answer for question in questions for answer in _answers(question, known, said)]
    if questions:
        return [*dict.fromkeys(answers)]
    told = notes(said[-1:])
    return ["I will remember that.", *(note.sentence for note in told)] if told else []


def _sentences(text: str) -> list[str]:
    lines = (" ".join(line.split()) for line in straight(text).splitlines())
    parts = (part for line in lines for part in SENTENCE_ENDS.split(line))
    plain = (COURTESY.sub("", part.strip()).replace("name's ", "name is ") for part in parts)
    return [sentence for sentence in plain if sentence]


def _is_question(sentence: str) -> bool:
    return sentence.endswith("?") or QUESTION.match(sentence) is not None


def _note(sentence: str) -> Note | None:
    reminder = REMEMBER.search(sentence)
    if reminder is None:
        return _fact(sentence)
    text = _to_you(reminder[1])
    return _fact(reminder[1]) or _new_note(text, f"You asked me to remember: {clip(text)}.")


def _fact(sentence: str) -> Note | None:
    if name := NAME.search(sentence):
        return _new_note("name", f"Your name is {clip(name[1] or name[2])}.")
    if mine := MINE.search(sentence):
        subject, verb, value = mine.groups()
        return _new_note(subject, f"Your {subject} {verb} {clip(_to_you(value))}.")
    if doing := I_DO.search(sentence):
        text = clip(_to_you(doing[0]))
        return _new_note(text, f"{text[0].upper()}{text[1:]}.")
    return None


def _new_note(subject: str, sentence: str) -> Note:
    return Note(
        subject=frozenset(content_words(subject)) or frozenset(all_words(subject)),
        words=frozenset(content_words(sentence)),
        sentence=sentence,
    )


def _answers(question: str, known: Sequence[Note], said: Sequence[str]) -> Iterator[str]:
    words = content_words(WHO_AM_I.sub("my name", question))
    is_about_user = ABOUT_THE_USER.search(question) is not None
    if not words and ASKS_FOR_EVERYTHING.search(question):
        yield from _everything(known, said)
    elif note := _best(words, known, needs_all=not is_about_user):
        yield note.sentence
    elif is_about_user and re.match(r"(?:what|who|where|when|do you)\b", question, re.IGNORECASE):
        yield f"You have not told me that yet, so I cannot answer {quote(question)}."


def _best(words: set[str], known: Sequence[Note], *, needs_all: bool) -> Note | None:
    """Choose the note that shares most words, then the one about the least else, then the latest."""
    best, best_score = None, (0, 0.0)
    for note in known:
        shared = len(words & (note.words | note.subject))
        score = (shared, len(words & note.subject) / len(note.subject))
        if score >= best_score and shared >= (len(words) if needs_all else 1) > 0:
            best, best_score = note, score
    return best


def _everything(known: Sequence[Note], said: Sequence[str]) -> Iterator[str]:
    yield from (note.sentence for note in known)
    if before := [text for text in said[:-1] if text][-LISTED_MESSAGES:]:
        yield f"Before this you said: {', '.join(map(quote, before))}."
    elif not known:
        yield "You have not told me anything yet."


def _to_you(text: str) -> str:
    return re.sub(r"[\w']+", lambda word: SECOND_PERSON.get(word[0].lower(), word[0]), text)
