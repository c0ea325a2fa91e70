"""`DynamoDBHistoryProvider`: an agent's own history, one row for each run of a session.

What a model says is watched, since the framework finalises a stream that was left early as if it had
ended.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from logging import getLogger
from typing import Any, Final, Self

import msgspec
from agent_framework import (
    AgentResponse,
    ChatContext,
    ChatMiddleware,
    HistoryProvider,
    Message,
    ResponseStream,
    SessionContext,
)

from channel.isolation import get_current_isolation_keys
from channel.ports import Clock, NewToken, StoreError, random_hex
from channel.room import HistoryRoom
from infra.agent_framework.place import Isolation, Place
from infra.dynamodb import blobs, keys
from infra.dynamodb.client import Client, ConditionFailedError, together
from infra.dynamodb.rows import AttributeValues
from infra.dynamodb.turns import room_for_rows


_ATTEMPTS: Final = 8
_TOKEN_BYTES: Final = 8
_IS_NEW_OR_OWN: Final = "attribute_not_exists(pk) OR tok = :tok"
_LAST: Final = "last"

_logger = getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode


class HistoryNotWholeError(StoreError):
    """Some of what a run continues has expired, or was never kept: there is nothing to go on with."""

    is_passing = False


class DynamoDBHistoryProvider(HistoryProvider):
    """An agent's own history in the table, below the partition of the current isolation keys.

    Those are the authenticated caller's while the host runs an agent; without any, nothing is read
    or written. The messages of a run are appended, in an order that a counter gives them. A run
    continues all of its session; the host's turns (`bind_request_context`) continue what the session's
    state says that they do, which the host keeps with each response: forks do not see each other. A
    history is whole or refused, and a run whose stream was left early is not kept.

    The table, its region and the retention are those of the environment (`TABLE_NAME`, `AWS_REGION`,
    `RETENTION_DAYS`) where they are not given.
    """

    def __init__(
        self,
        source_id: str = "dynamodb",
        *,
        table: str | None = None,
        client: Client | None = None,
        isolation: Isolation = get_current_isolation_keys,
        load_messages: bool = True,
        store_inputs: bool = True,
        store_context_messages: bool = False,
        store_context_from: set[str] | None = None,
        store_outputs: bool = True,
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
        new_token: NewToken = random_hex,
        retention_s: float | None = None,
    ) -> None:
        """Read and write nothing yet. Without `load_messages`, it only writes, and watches no stream."""
        super().__init__(
            source_id,
            load_messages=load_messages,
            store_inputs=store_inputs,
            store_context_messages=store_context_messages,
            store_context_from=store_context_from,
            store_outputs=store_outputs,
        )
        self._place = Place(
            table=table,
            client=client,
            isolation=isolation,
            secret=secret,
            clock=clock,
            retention_s=retention_s,
        )
        self._new_token = new_token
        self._is_bound: ContextVar[bool] = ContextVar(f"is_bound_{source_id}", default=False)

    @contextmanager
    def bind_request_context(self, **_: Any) -> Iterator[None]:
        """Let the runs inside be a host's, which keeps the state of their session with each response."""
        token = self._is_bound.set(True)
        try:
            yield
        finally:
            self._is_bound.reset(token)

    async def get_messages(
        self, session_id: str | None, *, state: dict[str, Any] | None = None, **_: Any
    ) -> list[Message]:
        """Return the messages that a run continues: 1 RRU for each 4 KB of the session.

        What has less than half of its time left is renewed. Raises `HistoryNotWholeError`,
        `HistoryTooLargeError` and other `StoreError`s, and `ValueError` without isolation keys or
        without a session.
        """
        partition = await self._partition(session_id)
        table, now = self._place.table, self._place.clock()
        items = await table.query(
            partition, keys.messages_range(), is_strong=True, room=room_for_rows()
        )
        alive = [item for item in items if blobs.is_alive(item, now)]
        chain = _led_to(alive, _last_of(state)) if self._is_bound.get() else _session(alive)
        payloads = await together([blobs.payload(table, item) for item in chain])
        whole = [data for data in payloads if data is not None]
        if len(whole) < len(chain):
            raise HistoryNotWholeError("The messages of a run are not whole.")
        await blobs.renew(table, chain, now, self._place.retention_s)
        return await asyncio.to_thread(_unpacked, whole)

    async def save_messages(
        self,
        session_id: str | None,
        messages: Sequence[Message],
        *,
        state: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append the messages of a run: 1 WRU for each KB, and the read of the run before.

        Raises as `get_messages` does, and `TurnTooLargeError` for more than 6 MB, compressed.
        """
        partition = await self._partition(session_id)
        if not messages:
            return
        data = await asyncio.to_thread(_packed, messages)
        token = {"S": self._new_token(_TOKEN_BYTES)}
        before = {"N": str(_last_of(state))}
        for _attempt in range(_ATTEMPTS):
            last = await self._place.last(partition, keys.messages_range())
            number = keys.number_in(last["sk"]["S"]) + 1 if last else 1
            # After one that has expired, the session begins anew.
            is_first = last is None or not blobs.is_alive(last, self._place.clock())
            first = {"N": str(number)} if last is None or is_first else last["f"]
            try:
                await blobs.write(
                    self._place.table,
                    partition,
                    keys.messages_key(number),
                    data,
                    self._place.expires_at(),
                    attributes={"tok": token, "f": first, "par": before},
                    condition=_IS_NEW_OR_OWN,
                    values={":tok": token},
                )
            except ConditionFailedError:
                continue  # another run of the session was first
            if state is not None and self._is_bound.get():
                state[_LAST] = number
            return
        raise StoreError("Too many runs of one session are kept at the same time.")

    async def before_run(
        self, *, agent: Any, session: Any, context: SessionContext, state: dict[str, Any]
    ) -> None:
        """Load the history, and watch from now on whether what the model says is heard to its end."""
        await super().before_run(agent=agent, session=session, context=context, state=state)
        watch = _Watch()
        context.metadata[self.source_id] = watch
        context.extend_middleware(self.source_id, watch)

    async def after_run(
        self, *, agent: Any, session: Any, context: SessionContext, state: dict[str, Any]
    ) -> None:
        """Keep the messages of the run, unless it was left early."""
        watch = context.metadata.get(self.source_id)
        is_of_one_call = getattr(agent, "require_per_service_call_history_persistence", False)
        if isinstance(watch, _Watch) and watch.is_cut(context.response, of_one_call=is_of_one_call):
            _logger.warning("the messages of a run that was left early are not kept")
            return
        await super().after_run(agent=agent, session=session, context=context, state=state)

    async def _partition(self, session_id: str | None) -> str:
        if not session_id:
            raise ValueError("History is kept by session, and this run has none.")
        return keys.history_partition(await self._place.tenant(), session_id)


def _last_of(state: dict[str, Any] | None) -> int:
    """Return the number of the last run that a session's state knows of; 0 where it knows none."""
    last = (state or {}).get(_LAST)
    return last if isinstance(last, int) else 0


def _led_to(items: Sequence[AttributeValues], last: int) -> list[AttributeValues]:
    """Return the rows of the runs that led to the last one, and its own; raises `HistoryNotWholeError`."""
    numbered = {keys.number_in(item["sk"]["S"]): item for item in items}
    chain: list[AttributeValues] = []
    while last:
        item = numbered.pop(last, None)  # each is taken once, so that no chain is a ring
        if item is None:
            raise HistoryNotWholeError("Some of the messages of a session have expired.")
        chain.append(item)
        last = int(item["par"]["N"])
    chain.reverse()
    return chain


def _session(items: Sequence[AttributeValues]) -> list[AttributeValues]:
    """Return the rows since the session began, or began anew: the last one says when that was."""
    if not items:
        return []
    first = int(items[-1]["f"]["N"])
    since = [item for item in items if keys.number_in(item["sk"]["S"]) >= first]
    if [keys.number_in(item["sk"]["S"]) for item in since] != [*range(first, first + len(since))]:
        raise HistoryNotWholeError("Some of the messages of a session have expired.")
    return since


def _packed(messages: Sequence[Message]) -> bytes:
    return blobs.pack(_encode([message.to_dict() for message in messages]))


def _unpacked(payloads: Iterable[bytes]) -> list[Message]:
    room = HistoryRoom()
    messages: list[Message] = []
    for data in payloads:
        plain = blobs.unpack(data)
        room.take(len(plain))
        messages += [Message.from_dict(each) for each in _decode(plain)]
    return messages


class _Watch(ChatMiddleware):
    """Watches the streams of a run's model calls: whether each of them was read to its end."""

    def __init__(self) -> None:
        self._streams = 0
        self._is_open = False

    async def process(self, context: ChatContext, call_next: Callable[[], Awaitable[None]]) -> None:
        await call_next()
        if isinstance(context.result, ResponseStream):
            self._streams += 1
            self._is_open = True
            context.result.with_pull_context_manager(lambda: _Pull(self))

    def end(self) -> None:
        """Note that the stream of a call has ended."""
        self._is_open = False

    def is_cut(self, response: AgentResponse | None, *, of_one_call: bool) -> bool:
        """Return whether the run was left before its end.

        One of streams that ends with what a tool returned was left before the model went on. What is
        kept after each single call cannot be watched, and tells by the reason that the model gave.
        """
        if of_one_call:
            return response is not None and response.finish_reason is None
        if not self._streams:
            return False
        messages = response.messages if response else []
        return self._is_open or (bool(messages) and messages[-1].role == "tool")


class _Pull:
    """One pull at a stream, which may be the one that finds its end."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is StopAsyncIteration:
            self._watch.end()
