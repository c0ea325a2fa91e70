"""`LocalMemory`: the turns that only one connection knows, of a connection that lives in this process."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from channel.ports import StoredTurn
from channel.responses.sockets.connection import ConnectionState, Latest
from channel.responses.sockets.local_turns import CONTINUABLE, LocalChain, LocalTurns


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredTurn).decode


class LocalMemory:
    """The chains of a connection that lives in this process: the latest of each lane, and no other.

    All of them together have at most `max_bytes`: those that were kept first are forgotten first.
    """

    def __init__(self, state: ConnectionState, max_bytes: int) -> None:
        """Take the state that says which ones are the latest."""
        self._state = state
        self._max_bytes = max_bytes
        self._chains: dict[str, _Kept] = {}

    def of(self, lane: str) -> "LocalTurns":
        """Return what the next turn of a lane sees."""
        return _Seen(self, lane)

    def find(self, response_id: str) -> "_Kept | None":
        """Return the chain that ends with a response."""
        place = self._state.place_of(response_id)
        return None if place is None else self._chains.get(place)

    def keep(self, lane: str, response_id: str, chain: "_Kept") -> None:
        """Take a chain as the latest of a lane."""
        self._state.remember(lane, Latest(response_id, response_id))
        known = {latest.place for latest in self._state.latest}
        self._chains = {place: each for place, each in self._chains.items() if place in known}
        if _size([chain]) > self._max_bytes:
            return
        self._chains[response_id] = chain
        while _size(self._chains.values()) > self._max_bytes:
            del self._chains[next(iter(self._chains))]


class _Kept(Struct, frozen=True):
    """A chain as bytes, since a collector has no work with them."""

    turns: tuple[bytes, ...] = ()
    after: str | None = None


def _size(chains: Iterable[_Kept]) -> int:
    """Return the bytes of some chains; turns that several of them share are there once."""
    return sum({id(turn): len(turn) for chain in chains for turn in chain.turns}.values())


class _Seen:
    def __init__(self, memory: LocalMemory, lane: str) -> None:
        self._memory = memory
        self._lane = lane
        self._before = _Kept()

    async def chain(self, previous_response_id: str, /) -> LocalChain | None:
        found = self._memory.find(previous_response_id)
        # It is held from here on: the lane that it comes from may go on meanwhile.
        self._before = found or _Kept(after=previous_response_id)
        if found is None:
            return None
        return LocalChain(tuple([_decode(turn) for turn in found.turns]), found.after)

    async def keep(self, turn: StoredTurn, /) -> None:
        if turn.response.status in CONTINUABLE:
            chain = _Kept((*self._before.turns, _encode(turn)), self._before.after)
            self._memory.keep(self._lane, turn.response.id, chain)
