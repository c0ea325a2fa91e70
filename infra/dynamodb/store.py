"""`DynamoDBResponseStore`: one Query to continue a thread and one write to keep a turn, at any length.

Everything that decides is in `keys`, `rows` and `codec`; here is the I/O and its order. A turn's own
row is written last, so a turn is there as a whole or not at all.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from channel import entries
from channel.isolation import IsolationKeys
from channel.ports import (
    Branch,
    Clock,
    ConcludedError,
    NewToken,
    StoredTurn,
    StoreError,
    UnfinishedError,
    random_hex,
)
from channel.responses.protocol import ids
from channel.responses.protocol.items import Item
from channel.room import HistoryRoom, newest_reset
from infra.dynamodb import codec, keys, rows, turns
from infra.dynamodb.client import Client, ConditionFailedError, Table, both, together
from infra.dynamodb.entries import Entries, EntryAt, History
from infra.dynamodb.rows import AttributeValues, Refusal, Rows, TurnRow
from infra.dynamodb.secret import TenantSecret


MONTH_S: Final = 30 * 24 * 3600.0
MAX_RENEWALS: Final = 100
MAX_LINEAGE: Final = 8
"""Lanes that are read each by a Query of its own; with more, one Query reads all turns of the thread."""

_logger = logging.getLogger(__name__)


class _Found(Struct, frozen=True):
    partition: str
    node: keys.Node


class _Begun(Struct, frozen=True):
    """The place of a turn that was reopened, and the chunks that its beginning may have left."""

    place: keys.Place | keys.EntryPlace
    chunk_keys: list[str]


class _Chain(Struct, frozen=True):
    """The rows of a chain, and the payloads of the last of them: from the newest that resets on."""

    rows: list[TurnRow]
    payloads: list[bytes]
    is_lane_taken: bool = False
    origin: History = History()
    room: HistoryRoom = field(default_factory=HistoryRoom)

    def decode(self, thread: str) -> tuple[StoredTurn, ...]:
        pairs = zip(self.rows[-len(self.payloads) :], self.payloads, strict=True)
        own = [row.decode(thread, data, self.room) for row, data in pairs]
        return (*self.origin.turns, *own)


class DynamoDBResponseStore:
    """The `ResponseStore` in one table; it works in any number of threads, loops and processes."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
        new_token: NewToken = random_hex,
        retention_s: float = MONTH_S,
        strict_reads: bool = False,
        aliases: bool = False,
    ) -> None:
        """Take a client of `make_client`; without a `secret`, the table's own is used.

        With `strict_reads`, history is read strongly consistent at once, for twice the price. With
        `aliases`, response ids of the caller's making are kept, and looked up by one read more.
        """
        self._table = Table(client, table)
        self._secret = secret or TenantSecret(self._table, new_token=new_token)
        self._clock = clock
        self._new_token = new_token
        self._retention_s = retention_s
        self._entries = Entries(self._table, clock)
        self._strict_reads = strict_reads
        self.takes_custom_ids = aliases

    async def branch(
        self, isolation: IsolationKeys, previous_response_id: str | None, /
    ) -> Branch | None:
        """Mint the place of a new turn; None where the history is not whole."""
        keys.require_user(isolation)
        if previous_response_id is None:
            place = keys.root_place(self._new_token)
            return Branch(place.node.body, (), place)
        found = await self._find(isolation, previous_response_id)
        if isinstance(found, EntryAt):
            return await self._fork(found)
        chain = found and await self._load(found, look_ahead=1)
        if not found or not chain:
            return None
        before = await asyncio.to_thread(chain.decode, found.node.thread)
        await self._renew(found.partition, chain.rows)
        await self._renew(keys.conversation_beside(found.partition), chain.origin.rows)
        place = keys.child_place(
            found.node,
            chain.rows[-1].lineage,
            self._new_token,
            is_lane_taken=chain.is_lane_taken,
        )
        return Branch(place.node.body, before, place)

    async def _fork(self, found: EntryAt) -> Branch | None:
        history = await self._entries.to_continue(found)
        if history is None:
            return None
        await self._renew(found.partition, history.rows)
        place = keys.fork_place(found.entry, self._new_token)
        return Branch(place.node.body, history.turns, place)

    async def save(self, isolation: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        """Keep a finished turn; saving it again changes nothing."""
        begun = branch.place if isinstance(branch.place, _Begun) else None
        place = begun.place if begun else branch.place
        if not isinstance(place, keys.Place | keys.EntryPlace):
            raise StoreError("The branch is not of this store.")
        tenant = await self._tenant(isolation)
        partition = keys.partition_of(tenant, place.node)
        parent = place.before.body if place.before else None
        data = await asyncio.to_thread(codec.encode, turn, place.node.body, parent)
        row = rows.new_row(place, turn, self._expiry())
        if isinstance(place, keys.EntryPlace) and row.status in rows.CONTINUABLE:
            await self._entries.require_lock(partition, place)
        if turn.response.id != ids.response_id(branch.body):
            await self._name(tenant, turn.response.id, branch.body)
        try:
            row = await turns.write(self._table, partition, row, data)
        except ConditionFailedError:
            if begun:
                try:
                    await self._require_same(partition, place.node, turn)
                except ConcludedError:
                    lost, _ = turns.holding(row, data)
                    await self._clean_up(partition, {*lost.chunk_keys()})
                    raise
            return
        if begun:
            await self._clean_up(partition, {*begun.chunk_keys} - {*row.chunk_keys()})

    async def reopen(
        self, isolation: IsolationKeys, response_id: str, /, *, with_history: bool = True
    ) -> tuple[StoredTurn, Branch] | None:
        """Return a turn that was begun and is not finished yet, with its branch."""
        found = await self._find(isolation, response_id)
        read = found and await self._read(found)
        if not found or not read or read[0].status not in rows.UNFINISHED:
            return None
        row, turn = read
        if isinstance(found, EntryAt):
            history = await self._entries.before(found) if with_history else History()
            entry = keys.EntryPlace(found.entry, row.owner, until=0.0)
            begun = _Begun(entry, row.chunk_keys())
            return (turn, Branch(found.entry.body, history.turns, begun)) if history else None
        thread = found.node.thread
        parent = keys.node_in(thread, row.parent) if row.parent else None
        origin = keys.entry_in(thread, row.origin) if row.origin else None
        before: tuple[StoredTurn, ...] = ()
        if parent and with_history:
            chain = await self._load(_Found(found.partition, parent), look_ahead=1)
            if not chain:
                return None
            before = await asyncio.to_thread(chain.decode, thread)
        if origin and with_history:
            history = await self._origin(found, origin, HistoryRoom())
            if not history:
                return None
            before = history.turns
        place = keys.Place(found.node, parent, row.lineage, origin)
        return turn, Branch(found.node.body, before, _Begun(place, row.chunk_keys()))

    async def get(self, isolation: IsolationKeys, response_id: str, /) -> StoredTurn | None:
        """Return one turn of any status, or None."""
        found = await self._find(isolation, response_id)
        read = found and await self._read(found)
        return read[1] if read and not read[0].is_hidden else None

    async def turns(
        self, isolation: IsolationKeys, response_id: str, /
    ) -> Sequence[StoredTurn] | None:
        """Return the turn and all before it, oldest first, or None where any of them is missing."""
        found = await self._find(isolation, response_id)
        if isinstance(found, EntryAt):
            history = await self._entries.up_to(found)
            return history.turns if history else None
        chain = found and await self._load(found, look_ahead=0)
        if not found or not chain:
            return None
        return await asyncio.to_thread(chain.decode, found.node.thread)

    async def item(self, isolation: IsolationKeys, item_id: str, /) -> Item | None:
        """Return one item of a completed or incomplete turn.

        One of a conversation costs a read more, of whether that is there.
        """
        place = ids.item_place(item_id)
        found = place and await self._find(isolation, ids.response_id(place.body))
        if isinstance(found, EntryAt):
            entry, conversation = await both(
                self._read(found), self._table.get(found.partition, keys.META_ROW, "sk")
            )
            if not entry or not conversation:
                return None
            row, turn = entry
            return entries.find(found.entry.body, turn, row.deleted, item_id)
        read = await self._read(found) if found else None
        if not read or read[0].status not in rows.CONTINUABLE:
            return None
        items = (*read[1].input, *read[1].response.output)
        return next((item for item in items if item.get("id") == item_id), None)

    async def delete(self, isolation: IsolationKeys, response_id: str, /) -> bool:
        """Delete a response: what is left is a tombstone, which ends every chain through it."""
        found = await self._find(isolation, response_id)
        if isinstance(found, EntryAt):
            return await self._entries.hide(found)
        if not found:
            return False
        partition, sort_key = found.partition, found.node.sort_key
        item = await self._table.get(partition, sort_key, "sk", "st", "ttl", "nx", "sum")
        if item is None:
            return False
        row = rows.parse_turn(item)
        existed = row.is_readable(self._clock())
        if existed and row.status in rows.UNFINISHED:
            raise UnfinishedError
        if existed:
            await turns.erase(self._table, partition, row)
        else:
            await turns.erase_chunks(self._table, partition, row)
        return existed

    async def _clean_up(self, partition: str, chunk_keys: Iterable[str]) -> None:
        """Delete chunks that no turn has any more; the turn is kept, whatever becomes of them."""
        try:
            await together([self._table.delete(partition, key) for key in chunk_keys])
        except StoreError as error:
            cause = type(error.__cause__ or error).__name__
            _logger.warning("chunks were not deleted", extra={"error": cause})

    async def _require_same(
        self, partition: str, node: keys.Node | keys.Entry, turn: StoredTurn
    ) -> None:
        """Raise `ConcludedError` unless what is stored is this turn, by an attempt before this one."""
        read = await turns.read(self._table, partition, node, self._clock())
        if read and read[1] != turn:
            raise ConcludedError(read[1])

    async def _tenant(self, isolation: IsolationKeys) -> str:
        return keys.tenant_tag(await self._secret(), isolation)

    async def _find(self, isolation: IsolationKeys, response_id: str) -> _Found | EntryAt | None:
        body = ids.response_body(response_id)
        if body is None and not self.takes_custom_ids:
            return None
        tenant = await self._tenant(isolation)
        if body is None:
            body = await self._named(tenant, response_id)
        node = keys.parse_body(body) if body else None
        if node is None:
            return None
        partition = keys.partition_of(tenant, node)
        if isinstance(node, keys.Entry):
            return EntryAt(partition, node)
        return _Found(partition, node)

    async def _read(self, found: _Found | EntryAt) -> tuple[TurnRow, StoredTurn] | None:
        node = found.entry if isinstance(found, EntryAt) else found.node
        return await turns.read(self._table, found.partition, node, self._clock())

    async def _load(self, found: _Found, *, look_ahead: int) -> _Chain | None:
        chain = await self._load_thread(found, look_ahead=look_ahead)
        if chain is None or chain.rows[0].origin is None:
            return chain
        origin = keys.entry_in(found.node.thread, chain.rows[0].origin)
        history = await self._origin(found, origin, chain.room)
        return replace(chain, origin=history) if history else None

    async def _origin(self, found: _Found, origin: keys.Entry, room: HistoryRoom) -> History | None:
        """Return what a fork goes on with that began after an entry of a conversation."""
        partition = keys.conversation_beside(found.partition)
        return await self._entries.through(EntryAt(partition, origin), room)

    async def _load_thread(self, found: _Found, *, look_ahead: int) -> _Chain | None:
        # Rows never change once they are written, so an eventually consistent read that holds the
        # whole chain is right; only one that does not is repeated, once.
        for is_strong in (True,) if self._strict_reads else (False, True):
            read = await self._query(found, look_ahead, is_strong=is_strong)
            chain = self._chain(read, found.node, any_last=not look_ahead)
            if chain is not Refusal.MAYBE_STALE:
                return chain if isinstance(chain, _Chain) else None
        return None

    def _chain(self, read: Rows, node: keys.Node, *, any_last: bool) -> _Chain | Refusal:
        walked = rows.walk(read.turns, node.sort_key, self._clock(), any_last=any_last)
        if isinstance(walked, Refusal):
            return walked
        before = walked[:-1] if any_last else walked  # it is shown what even the last one was given
        remembered = walked[newest_reset([row.resets for row in before]) :]
        payloads = [data for row in remembered if (data := read.payload(row)) is not None]
        if len(payloads) < len(remembered):
            return Refusal.MAYBE_STALE
        return _Chain(walked, payloads, read.is_taken(node))

    async def _query(self, found: _Found, look_ahead: int, *, is_strong: bool) -> Rows:
        room = turns.room_for_rows()

        async def read(between: keys.SortKeys) -> list[AttributeValues]:
            return await self._table.query(found.partition, between, is_strong=is_strong, room=room)

        node = found.node
        items = await read(keys.lane_range(node.lane, node.seq + look_ahead))
        last = next((item for item in items if item["sk"]["S"] == node.sort_key), None)
        lineage = rows.lineage_of(last) if last else ()
        if len(lineage) > MAX_LINEAGE:
            items = await read(keys.all_lanes_range())
        else:
            for more in await together(map(read, keys.lineage_ranges(lineage))):
                items += more
        return Rows.parse(items)

    async def _renew(self, partition: str, chain: Sequence[TurnRow]) -> None:
        half = self._clock() + self._retention_s / 2
        due: list[TurnRow] = []
        updates = 0
        for row in chain:
            if row.expires_at < half:
                updates += 1 + row.chunks
                if updates > MAX_RENEWALS:
                    break
                due.append(row)
        try:
            await together([self._renew_row(partition, row) for row in due])
        except StoreError as error:
            # The next continuation tries again: there is half a lifetime left.
            cause = type(error.__cause__ or error).__name__
            _logger.warning("history was not renewed", extra={"error": cause, "turns": len(due)})

    async def _renew_row(self, partition: str, row: TurnRow) -> None:
        # A row must not outlive its chunks, so it is the last. What is gone stays gone.
        with suppress(ConditionFailedError):
            await together([self._set_expiry(partition, key) for key in row.chunk_keys()])
            await self._set_expiry(partition, row.sort_key)

    async def _set_expiry(self, partition: str, sort_key: str) -> None:
        await self._table.update(
            partition,
            sort_key,
            "SET #ttl = :ttl",
            values={":ttl": {"N": str(self._expiry())}},
            names={"#ttl": "ttl"},
        )

    async def _name(self, tenant: str, response_id: str, body: str) -> None:
        if not self.takes_custom_ids:
            raise StoreError("Custom response ids are not enabled (`aliases`).")
        if ids.response_body(response_id):
            raise StoreError("A custom response id must not look like a minted one.")
        item: AttributeValues = {
            "pk": {"S": keys.alias_partition(tenant, response_id)},
            "sk": {"S": keys.ONLY_ROW},
            "ttl": {"N": str(self._expiry())},
            "b": {"S": body},
        }
        try:
            await self._table.put(
                item,
                "attribute_not_exists(pk) OR b = :body OR #ttl < :now",
                values={":body": {"S": body}, ":now": {"N": str(int(self._clock()))}},
                names={"#ttl": "ttl"},
            )
        except ConditionFailedError as error:
            raise StoreError("The custom response id is taken.") from error

    async def _named(self, tenant: str, response_id: str) -> str | None:
        item = await self._table.get(keys.alias_partition(tenant, response_id), keys.ONLY_ROW)
        if item is None or int(item["ttl"]["N"]) < self._clock():
            return None
        body: str = item["b"]["S"]
        return body

    def _expiry(self) -> int:
        return int(self._clock() + self._retention_s)
