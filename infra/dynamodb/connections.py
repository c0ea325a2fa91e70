"""`DynamoDBConnectionStore`: WebSocket connections, each a partition of its own that outlives it by nothing.

A connection's state is one small row, changed by conditional writes; beside it are the frames that
are not over and the turns that only the connection knows. Like the rows of API keys these are outside of
the tenants: a connection's id is made by the gateway, and known to nobody else.

What a frame costs, besides its turn: the state is read and written when it arrives, when its job
claims it, when a `store: false` turn is remembered, and when it has ended (1 RRU and 1 WRU each
while the state is below 1 KB); the frame itself is written, read and deleted; while a turn runs,
half an RRU each time its connection is looked at, and a renewal of its lease every 15 seconds.
"""

import asyncio
import random
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec

from channel.ports import Clock, NewToken, StoredTurn, StoreError, random_hex
from channel.responses.sockets.connection import ConnectionState
from channel.responses.sockets.connections import Connection
from channel.responses.sockets.frames import Frame
from channel.responses.sockets.local_turns import LocalChain
from channel.room import HistoryRoom
from infra.dynamodb import codec, keys, rows
from infra.dynamodb.client import Client, ConditionFailedError, Table, together
from infra.dynamodb.rows import AttributeValues, Refusal, Rows, TurnRow
from infra.dynamodb.turns import room_for_rows


KEPT_S: Final = 2 * 3600.0
"""Seconds that a connection can last (AWS's page "Quotas for a WebSocket API")."""

_ATTEMPTS: Final = 20
_FIRST_PAUSE_S: Final = 0.02  # about as long as one change takes
_LONGEST_PAUSE_S: Final = 0.5
_CHANCE: Final = random.SystemRandom().random
_FASTEST: Final = 1
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Connection).decode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Frame).decode

_Result = TypeVar("_Result")


class DynamoDBConnectionStore:
    """The `ConnectionStore` in one table; it works in any number of threads, loops and processes."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        clock: Clock = time.time,
        new_token: NewToken = random_hex,
        pause: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        chance: Callable[[], float] = _CHANCE,
    ) -> None:
        """Take a client of `make_client`.

        `pause` waits that many seconds between two tries of a change, which grow up to half a
        second; `chance` (from 0 to 1) is the part of them that is waited.
        """
        self._table = Table(client, table)
        self._clock = clock
        self._new_token = new_token
        self._pause = pause
        self._chance = chance

    async def open(self, connection_id: str, connection: Connection, /) -> None:
        """Keep a new connection."""
        expiry = rows.seconds(self._clock() + KEPT_S)
        await self._table.put(self._item(connection_id, connection, self._new_token(8), expiry))

    async def load(self, connection_id: str, /, *, is_strong: bool = True) -> Connection | None:
        """Return a connection, or None where it is closed."""
        item = await self._read(connection_id, is_strong=is_strong)
        return None if item is None else _decode(item["d"]["B"])

    async def change(
        self, connection_id: str, change: Callable[[ConnectionState], Awaitable[_Result]], /
    ) -> tuple[Connection, _Result] | None:
        """Change the state; None where the connection is closed.

        It is tried 20 times, with pauses of at most eight seconds together: API Gateway waits 29 s
        for an invocation. Each try costs as much as the first.
        """
        mine, changed = "", None
        for attempt in range(_ATTEMPTS):
            if attempt:
                # Or else all that were too late would be so again, together.
                longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1))
                await self._pause(longest * self._chance())
            item = await self._read(connection_id)
            if item is None:
                return None
            was = item["w"]["S"]
            if changed is not None and was == mine:
                return changed  # the write that seemed to fail
            connection = _decode(item["d"]["B"])
            changed = connection, await change(connection.state)
            mine = self._new_token(8)
            try:
                await self._table.put(
                    self._item(connection_id, connection, mine, item["ttl"]),
                    "w = :was",
                    values={":was": {"S": was}},
                )
            except ConditionFailedError:
                continue
            return changed
        raise StoreError("A connection is changed by too many at once.")

    async def put_frame(self, connection_id: str, name: str, frame: Frame, /) -> None:
        """Keep a frame: 1 WRU for each KB of its compressed text."""
        await self._table.put(
            {
                "pk": {"S": keys.connection_partition(connection_id)},
                "sk": {"S": keys.frame_key(name)},
                "ttl": rows.seconds(self._clock() + KEPT_S),
                "d": {"B": zlib.compress(_pack(frame), _FASTEST)},
            }
        )

    async def frame(self, connection_id: str, name: str, /) -> Frame | None:
        """Return a frame: 1 RRU for each 4 KB."""
        partition = keys.connection_partition(connection_id)
        item = await self._table.get(partition, keys.frame_key(name))
        return None if item is None else _unpack(zlib.decompress(item["d"]["B"]))

    async def drop_frame(self, connection_id: str, name: str, /) -> None:
        """Forget a frame: as dear as to keep it."""
        partition = keys.connection_partition(connection_id)
        await self._table.delete(partition, keys.frame_key(name))

    async def put_turn(
        self, connection_id: str, turn: StoredTurn, before: str | None, after: str | None, /
    ) -> str:
        """Keep a turn that only the connection knows, and return its place: 1 WRU for each KB of it."""
        partition = keys.connection_partition(connection_id)
        place = keys.local_key(turn.response.id, before)
        data = await asyncio.to_thread(codec.encode, turn, "", None)
        chunks = codec.split(data)
        row = TurnRow(
            place,
            rows.STATUS_LETTERS[turn.response.status],
            int(self._clock() + KEPT_S),
            b"" if chunks else data,
            len(chunks),
            codec.checksum(data) if chunks else b"",
            before,
        )
        item = rows.turn_item(partition, row)
        if after is not None:
            item["aft"] = {"S": after}
        await together(map(self._table.put, rows.chunk_items(partition, row, chunks)))
        await self._table.put(item)
        return place

    async def turns(self, connection_id: str, place: str, /) -> LocalChain | None:
        """Return the chain that ends at a place: one Query; None where it is not whole."""
        partition = keys.connection_partition(connection_id)
        for is_strong in (False, True):
            items = await self._table.query(
                partition,
                keys.local_range(place),
                is_strong=is_strong,
                room=room_for_rows(),
            )
            read = Rows.parse(items)
            chain = rows.walk(read.turns, place, self._clock(), any_last=False)
            if isinstance(chain, Refusal):
                continue
            payloads = [data for row in chain if (data := read.payload(row)) is not None]
            if len(payloads) == len(chain):
                first = next(item for item in items if item["sk"]["S"] == chain[0].sort_key)
                after = first["aft"]["S"] if "aft" in first else None
                return LocalChain(await asyncio.to_thread(_decoded, payloads), after)
        return None

    async def close(self, connection_id: str, /) -> None:
        """Forget a connection and all that is its own; its state first, which others look at."""
        partition = keys.connection_partition(connection_id)
        await self._table.delete(partition, keys.ONLY_ROW)
        items = await self._table.query(partition, is_strong=True)
        await together([self._table.delete(partition, item["sk"]["S"]) for item in items])

    async def _read(self, connection_id: str, *, is_strong: bool = True) -> AttributeValues | None:
        partition = keys.connection_partition(connection_id)
        item = await self._table.get(partition, keys.ONLY_ROW, is_strong=is_strong)
        if item is None or int(item["ttl"]["N"]) < self._clock():
            return None
        return item

    def _item(
        self, connection_id: str, connection: Connection, write: str, expiry: AttributeValues
    ) -> AttributeValues:
        return {
            "pk": {"S": keys.connection_partition(connection_id)},
            "sk": {"S": keys.ONLY_ROW},
            "ttl": expiry,
            "w": {"S": write},
            "d": {"B": _encode(connection)},
        }


def _decoded(payloads: list[bytes]) -> tuple[StoredTurn, ...]:
    room = HistoryRoom()
    return tuple([codec.decode(data, "", None, room) for data in payloads])
