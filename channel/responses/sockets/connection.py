"""`ConnectionState`: what one WebSocket connection knows, and who may run when. No I/O, no clock.

Frames of a lane are served one after the other, in the order they came; lanes are served at the
same time. What a client reads in a lane is in that order, too: a refusal waits for the turns before
it. The state is a value, so that a server may hold it in memory, and invocations in a table.

    arrive ──▶ waiting ──call──▶ in flight ──settle──▶ (gone)
                                  claim, renew: where it runs elsewhere
"""

from collections.abc import Iterable, Iterator
from enum import Enum, auto

from msgspec import Struct, field

from channel.responses.protocol.errors import RequestError
from channel.responses.sockets.endpoint import Limits
from channel.responses.sockets.frames import DEFAULT_LANE, Frame, Refusal, error_message, refusal


class Latest(Struct, frozen=True):
    """The latest response of a lane that only the connection knows; `place` is where it is kept."""

    response_id: str
    place: str


class Entry(Struct):
    """A frame of a lane by its name, or a refusal; in flight until `until`, if `owner` does not renew that."""

    name: str
    number: int
    size: int = 0
    refusal: str = ""
    until: float = 0.0
    owner: str = ""
    has_crashed: bool = False


class Lane(Struct):
    """What was sent with one `stream_id`, and is not over; only the first may be in flight."""

    entries: list[Entry] = field(default_factory=list)
    latest: Latest | None = None


class Arrived(Struct, frozen=True):
    """What became of what a client has sent: a frame that waits, or else what is to be told at once, if any."""

    is_taken: bool = False
    told: bytes | None = None


class Called(Struct, frozen=True):
    """A frame whose turn it is."""

    lane: str
    name: str


class Claim(Enum):
    """What becomes of somebody's claim to run a frame."""

    GRANTED = auto()
    CRASHED = auto()  # another has begun it, and is gone: it is not begun again, but told
    REFUSED = auto()


class Ending(Struct, frozen=True):
    """How a frame ended: whether it failed, whether its response is local, and what it continued."""

    has_failed: bool
    is_local: bool = False
    previous_response_id: str | None = None


class ConnectionState(Struct):
    """The lanes of a connection; times are in seconds of one clock, whichever it is."""

    connected_at: float
    lanes: dict[str, Lane] = field(default_factory=dict)
    tokens: float = 0.0
    refilled_at: float = 0.0
    last_number: int = 0

    @classmethod
    def opened(cls, now: float, limits: Limits) -> "ConnectionState":
        """Return the state of a connection that was just opened."""
        return cls(now, tokens=float(limits.burst), refilled_at=now)

    def arrive(self, given: Frame | Refusal, name: str, now: float, limits: Limits) -> Arrived:
        """Note what was read of a client, by a name of its own.

        A frame waits then until it is called, and a refusal until the frames before it are over.
        """
        if any(entry.name == name for entry in self._entries()):
            return Arrived(is_taken=isinstance(given, Frame))  # told again, as a write may be
        try:
            self._spend(now, limits)
            self._require_time(now, limits)
            if isinstance(given, Frame):
                self._wait(given, name, limits)
                return Arrived(is_taken=True)
        except RequestError as error:
            given = refusal(error, given.lane)
        return Arrived(told=self._refuse(given, name, limits))

    def call(self, now: float, until: float, limits: Limits) -> list[Called]:
        """Return the frames whose turn it is, oldest first: they are in flight until then.

        A frame is called again where that has passed: it has its place among those in flight still,
        as its job may begin late. Of a connection whose time is over, nothing is called, and what
        waits is dropped.
        """
        if self.is_over(now, limits):
            self._drop_waiting(now)
            return []
        firsts = [(lane.entries[0], name) for name, lane in self.lanes.items() if lane.entries]
        taken = [(entry, name) for entry, name in firsts if entry.until]
        again = [(entry.number, name) for entry, name in taken if entry.until <= now]
        fresh = sorted((entry.number, name) for entry, name in firsts if not entry.until)
        room = max(0, limits.in_flight - len(taken))
        called: list[Called] = []
        for _, name in sorted([*again, *fresh[:room]]):
            entry = self.lanes[name].entries[0]
            entry.until = until
            entry.has_crashed, entry.owner = entry.has_crashed or bool(entry.owner), ""
            called.append(Called(name, entry.name))
        return called

    def claim(self, frame: Called, owner: str, now: float, until: float) -> Claim:
        """Become the owner of a frame that was called."""
        entry = self._first(frame)
        if entry is None or (entry.owner not in ("", owner) and entry.until >= now):
            return Claim.REFUSED
        entry.has_crashed = entry.has_crashed or entry.owner not in ("", owner)
        entry.owner, entry.until = owner, until
        return Claim.CRASHED if entry.has_crashed else Claim.GRANTED

    def renew(self, frame: Called, owner: str, until: float) -> bool:
        """Stay the owner of a frame; False where it is another's."""
        entry = self._first(frame)
        if entry is None or entry.owner != owner:
            return False
        entry.until = until
        return True

    def settle(self, frame: Called, ending: Ending) -> list[bytes]:
        """End a frame whose end was told; return refusals that are to be told first, and then again.

        A continuation that failed evicts what it continued, if that was its own lane's latest.
        """
        if self._first(frame) is None:
            return []
        lane = self.lanes[frame.lane]
        told: list[bytes] = []
        while len(lane.entries) > 1 and lane.entries[1].refusal:
            told.append(lane.entries.pop(1).refusal.encode())
        if told:
            return told
        del lane.entries[0]
        latest = lane.latest
        if ending.has_failed:
            if latest is not None and latest.response_id == ending.previous_response_id:
                lane.latest = None
        elif not ending.is_local:
            lane.latest = None
        return []

    def remember(self, lane: str, latest: Latest) -> None:
        """Take a response as the latest of its lane: what was before it is not known any more."""
        self.lanes[lane].latest = latest

    def place_of(self, response_id: str) -> str | None:
        """Return where a response is kept that is a lane's latest, or None."""
        return next((each.place for each in self.latest if each.response_id == response_id), None)

    @property
    def latest(self) -> Iterable[Latest]:
        """The latest responses of all lanes."""
        return [lane.latest for lane in self.lanes.values() if lane.latest is not None]

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight, and nothing waits."""
        return not any(lane.entries for lane in self.lanes.values())

    def is_over(self, now: float, limits: Limits) -> bool:
        """Whether the connection has lasted for as long as one may."""
        return now - self.connected_at >= limits.connection_s

    def _spend(self, now: float, limits: Limits) -> None:
        gained = max(0.0, now - self.refilled_at) * limits.frames_per_s
        self.tokens, self.refilled_at = min(float(limits.burst), self.tokens + gained), now
        if self.tokens < 1:
            said = f"Too many frames: at most {limits.frames_per_s:g} a second, {limits.burst} at once."
            raise _too_many(said)
        self.tokens -= 1

    def _require_time(self, now: float, limits: Limits) -> None:
        if self.is_over(now, limits):
            raise connection_limit_reached(limits)

    def _wait(self, frame: Frame, name: str, limits: Limits) -> None:
        waiting = [entry for entry in self._entries() if not (entry.until or entry.refusal)]
        size = len(frame.body) + sum(entry.size for entry in waiting)
        if len(waiting) >= limits.waiting or size > limits.waiting_bytes:
            raise _too_many(
                "Too many requests wait on this connection: read their responses first."
            )
        if frame.lane not in self.lanes:
            self._open(frame.lane, limits)
        entry = Entry(name, self._number(), len(frame.body))
        self.lanes[frame.lane].entries.append(entry)

    def _open(self, name: str, limits: Limits) -> None:
        named = len(self.lanes.keys() - {DEFAULT_LANE})
        if name != DEFAULT_LANE and named >= limits.named_lanes:
            said = (
                f"This connection has had {limits.named_lanes} different 'stream_id's, which is the "
                "most: use one of them again, or open another connection."
            )
            raise RequestError(said, param="stream_id", code="websocket_stream_limit_reached")
        self.lanes[name] = Lane()

    def _refuse(self, refused: Refusal, name: str, limits: Limits) -> bytes | None:
        lane = self.lanes.get(refused.lane)
        if lane is None or not lane.entries:
            return refused.message
        if sum(1 for entry in self._entries() if entry.refusal) >= limits.refusals:
            return refused.message
        lane.entries.append(Entry(name, self._number(), refusal=refused.message.decode()))
        return None

    def _drop_waiting(self, now: float) -> None:
        for lane in self.lanes.values():
            first = lane.entries[:1] if _is_flying(lane, now) else []
            refusals = [entry for entry in lane.entries[1:] if first and entry.refusal]
            lane.entries = [*first, *refusals]

    def _entries(self) -> Iterator[Entry]:
        return (entry for lane in self.lanes.values() for entry in lane.entries)

    def _number(self) -> int:
        self.last_number += 1
        return self.last_number

    def _first(self, frame: Called) -> Entry | None:
        lane = self.lanes.get(frame.lane)
        entry = lane.entries[0] if lane and lane.entries else None
        return entry if entry is not None and entry.name == frame.name else None


def connection_limit_reached(limits: Limits) -> RequestError:
    """Return what a connection is told at its end."""
    minutes = f"{limits.connection_s / 60:g}"
    said = f"This connection has reached its limit of {minutes} minutes: open another one to go on."
    return RequestError(said, code="websocket_connection_limit_reached")


def farewell(limits: Limits) -> bytes:
    """Return the message of a connection whose time is over."""
    return error_message(connection_limit_reached(limits))


def _too_many(said: str) -> RequestError:
    return RequestError(said, code="rate_limit_exceeded", status=429)


def _is_flying(lane: Lane, now: float) -> bool:
    return bool(lane.entries) and lane.entries[0].until > now
