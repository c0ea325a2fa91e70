"""`DynamoDBCheckpointStorage`: checkpoints of workflows that the user runs, by scope and by a counter.

A checkpoint is a row, and another one that leads to it from its id.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from agent_framework import WorkflowCheckpoint, WorkflowCheckpointException

from channel.agents.agent_framework.checkpoints import (
    allowed_names,
    checkpoint_bytes,
    read_checkpoint,
)
from channel.isolation import get_current_isolation_keys
from channel.ports import Clock, StoreError
from infra.agent_framework.place import Isolation, Place
from infra.dynamodb import blobs, keys
from infra.dynamodb.client import Client, ConditionFailedError, together
from infra.dynamodb.rows import AttributeValues
from infra.dynamodb.turns import room_for_rows


_ATTEMPTS: Final = 8
_IS_NEW_OR_OWN: Final = "attribute_not_exists(pk) OR ckpt = :ckpt"


class DynamoDBCheckpointStorage:
    """The framework's `CheckpointStorage` in the table, below the partition of the current isolation keys.

    Those are the authenticated caller's while the host runs an agent; without any, nothing is read
    or written. `scope` is what the checkpoints belong to below that, such as a session: the latest
    checkpoint of a workflow is the latest of its scope. The turns of a workflow that the host runs
    need none of this: their checkpoints go by the response that left them.

    `allowed_types` are the classes, besides the framework's and Python's own and those registered
    with the framework, of which a checkpoint may hold objects. The table, its region and the
    retention are those of the environment where they are not given.

    Every method raises `StoreError` when the storage fails. (A workflow that saves only logs that,
    and goes on.)
    """

    def __init__(
        self,
        scope: str,
        *,
        table: str | None = None,
        client: Client | None = None,
        isolation: Isolation = get_current_isolation_keys,
        allowed_types: Iterable[type | str] = (),
        secret: Callable[[], Awaitable[bytes]] | None = None,
        clock: Clock = time.time,
        retention_s: float | None = None,
    ) -> None:
        """Read and write nothing yet; raises `ValueError` for an empty scope."""
        if not scope:
            raise ValueError("Checkpoints are kept by scope: name one, such as a session.")
        self._scope = scope
        self._allowed = allowed_names(allowed_types)
        self._place = Place(
            table=table,
            client=client,
            isolation=isolation,
            secret=secret,
            clock=clock,
            retention_s=retention_s,
        )

    async def save(self, checkpoint: WorkflowCheckpoint) -> str:
        """Keep a checkpoint, and return its id: 1 WRU, 1 for each KB, and the read of the one before.

        Raises `WorkflowCheckpointException` for one that could not be read again, and
        `TurnTooLargeError` for more than 6 MB, compressed.
        """
        partition = await self._partition()
        data = await asyncio.to_thread(_packed, checkpoint, self._allowed)
        named = {"S": checkpoint.checkpoint_id}
        for _attempt in range(_ATTEMPTS):
            sort_key = await self._free_key(partition, checkpoint)
            # What leads to a row comes before it, so that every row that is there can be found.
            await self._place.table.put(
                {
                    "pk": {"S": partition},
                    "sk": {"S": keys.checkpoint_id_key(checkpoint.checkpoint_id)},
                    "ttl": {"N": str(self._place.expires_at())},
                    "at": {"S": sort_key},
                }
            )
            try:
                await blobs.write(
                    self._place.table,
                    partition,
                    sort_key,
                    data,
                    self._place.expires_at(),
                    attributes={"ckpt": named},
                    condition=_IS_NEW_OR_OWN,
                    values={":ckpt": named},
                )
            except ConditionFailedError:
                continue  # another checkpoint was first
            return checkpoint.checkpoint_id
        raise StoreError("Too many checkpoints of one scope are kept at the same time.")

    async def load(self, checkpoint_id: str) -> WorkflowCheckpoint:
        """Return a checkpoint by its id: 1 RRU, and 1 for each 4 KB.

        Raises `WorkflowCheckpointException` where the scope has none of that id.
        """
        item = await self._find(await self._partition(), checkpoint_id)
        if item is None:
            raise WorkflowCheckpointException("There is no checkpoint of that id.")
        return await self._read(item)

    async def list_checkpoints(self, *, workflow_name: str) -> list[WorkflowCheckpoint]:
        """Return all checkpoints of a workflow of that name, oldest first."""
        return await together([self._read(item) for item in await self._all(workflow_name)])

    async def list_checkpoint_ids(self, *, workflow_name: str) -> list[str]:
        """Return the ids of all checkpoints of a workflow of that name, oldest first."""
        return [item["ckpt"]["S"] for item in await self._all(workflow_name)]

    async def get_latest(self, *, workflow_name: str) -> WorkflowCheckpoint | None:
        """Return the checkpoint that was saved last: 1 RRU for each 4 KB."""
        partition = await self._partition()
        item = await self._place.last(partition, keys.checkpoint_range(workflow_name))
        if item is None or not blobs.is_alive(item, self._place.clock()):
            return None
        return await self._read(item)

    async def delete(self, checkpoint_id: str) -> bool:
        """Delete a checkpoint; False where there was none. A deletion that failed can be repeated."""
        partition, table = await self._partition(), self._place.table
        item = await self._find(partition, checkpoint_id)
        if item is not None:
            await blobs.erase(table, item)
        await table.delete(partition, keys.checkpoint_id_key(checkpoint_id))
        return item is not None

    async def _partition(self) -> str:
        return keys.checkpoints_partition(await self._place.tenant(), self._scope)

    async def _free_key(self, partition: str, checkpoint: WorkflowCheckpoint) -> str:
        """Return the sort key of a new checkpoint, or of one that is saved again."""
        item = await self._find(partition, checkpoint.checkpoint_id)
        if item is not None:
            sort_key: str = item["sk"]["S"]
            return sort_key
        name = checkpoint.workflow_name
        last = await self._place.last(partition, keys.checkpoint_range(name))
        return keys.checkpoint_key(name, keys.number_in(last["sk"]["S"]) + 1 if last else 1)

    async def _find(self, partition: str, checkpoint_id: str) -> AttributeValues | None:
        table = self._place.table
        named = await table.get(partition, keys.checkpoint_id_key(checkpoint_id))
        item = await table.get(partition, named["at"]["S"]) if named else None
        # The row may be another checkpoint's, where this one was never wholly saved.
        if item is None or item["ckpt"]["S"] != checkpoint_id:
            return None
        return item if blobs.is_alive(item, self._place.clock()) else None

    async def _all(self, workflow_name: str) -> list[AttributeValues]:
        items = await self._place.table.query(
            await self._partition(),
            keys.checkpoint_range(workflow_name),
            is_strong=True,
            room=room_for_rows(),
        )
        return [item for item in items if blobs.is_alive(item, self._place.clock())]

    async def _read(self, item: AttributeValues) -> WorkflowCheckpoint:
        data = await blobs.payload(self._place.table, item)
        if data is None:
            raise StoreError("A checkpoint is not whole.")
        return await asyncio.to_thread(_unpacked, data, self._allowed)


def _packed(checkpoint: WorkflowCheckpoint, allowed: frozenset[str]) -> bytes:
    return blobs.pack(checkpoint_bytes(checkpoint, allowed))


def _unpacked(data: bytes, allowed: frozenset[str]) -> WorkflowCheckpoint:
    return read_checkpoint(blobs.unpack(data), allowed)
