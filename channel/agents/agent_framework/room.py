"""How much a turn may keep of what an agent or a workflow remembers: pure.

It is stored with each turn, and loaded for each turn before, so what one turn keeps counts many times.
"""

import zlib
from typing import Any, Final

import msgspec

from channel.agent import TurnError


STATE_BYTES: Final = 2**20
"""The most that is kept with one turn, compressed."""


def require_room(size: int) -> None:
    """Raise `TurnError` (400, `context_length_exceeded`) for a state of more bytes, compressed."""
    if size > STATE_BYTES:
        msg = (
            "What the agent would have to keep of this conversation is larger than 1 MB. Please begin a "
            "new one, with less content."
        )
        raise TurnError(msg, code="context_length_exceeded", status=400, param="input")


def require_room_for(state: Any) -> None:
    """Raise `TurnError` for a state as JSON that is too large to be kept."""
    data = msgspec.json.encode(state)
    if len(data) > STATE_BYTES:
        require_room(len(zlib.compress(data)))
