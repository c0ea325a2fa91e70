"""When a turn must be over: what a door tells the channel by the scope, and who gets the last seconds.

A turn is ended at its end; the margin after it is shared out among an agent that takes its time to
end, the save, and telling the client. Where all of that is not enough, the app is cancelled.
"""

from typing import Final

from msgspec import Struct


DEADLINE: Final = "lambda_responses.deadline"
"""Scope key of a request's `Deadline`; without it, nothing ends a turn."""

_CALL_S: Final = 1.0


class TimeLeft(Struct, frozen=True):
    """Seconds from the beginning of a request to the end of its turn, and the margin after that."""

    turn_s: float
    margin_s: float

    @classmethod
    def within(cls, limit_s: float, margin_s: float) -> "TimeLeft":
        """Take the margin from the limit, but not more than half of it."""
        margin_s = min(margin_s, limit_s / 2)
        return cls(limit_s - margin_s, margin_s)

    @property
    def app_s(self) -> float:
        """Seconds after which an app is cancelled that did not end by itself."""
        return self.turn_s + 0.65 * self.margin_s

    @property
    def cancelled_s(self) -> float:
        """Seconds that it has then, before its invocation ends without it."""
        return 0.2 * self.margin_s

    @property
    def last_words_s(self) -> float:
        """Seconds that the end of its reply may take to be written after that."""
        return max(0.1, 0.1 * self.margin_s)

    def since(self, begun_at: float) -> "Deadline":
        """Return the deadline of a turn whose request began then (`time.monotonic`)."""
        return Deadline(begun_at + self.turn_s, self.margin_s)


class Deadline(Struct, frozen=True):
    """When a turn is ended (`time.monotonic`, as event loops count), and the seconds after that."""

    ends_at: float
    margin_s: float

    @property
    def patience_s(self) -> float:
        """Seconds that an agent, or a hook, has to end, before its turn is told without it."""
        return 0.2 * self.margin_s

    @property
    def call_s(self) -> float:
        """Seconds that one call of the store may take then; there is time for two."""
        return min(_CALL_S, self.patience_s)

    @property
    def farewell_s(self) -> float:
        """Seconds that a client may take to read how a turn ended, where all its time is over."""
        return 0.05 * self.margin_s

    def hook_until(self, now: float) -> float:
        """Return when a hook that begins now is given up."""
        return max(self.ends_at, now) + 0.1 * self.margin_s

    def save_until(self, now: float) -> float:
        """Return when a save that begins now is given up."""
        return max(self.ends_at + 0.6 * self.margin_s, now + 0.15 * self.margin_s)

    def delivery_until(self, now: float) -> float:
        """Return when a delivery that begins now is given up: there must be time to tell the end."""
        return max(self.ends_at + 0.6 * self.margin_s, now + 0.05 * self.margin_s)

    def delivery_s(self, now: float) -> float:
        """Return the seconds that a destination has from now on; none where the turn is late."""
        return max(self.ends_at - now, 0.0)
