"""Checkpoints of Agent Framework's workflows: as bytes, and as what a turn keeps for the next one. Pure.

They hold objects of the workflow's own classes, which the framework pickles. Of which classes stored
bytes may make objects is a list: the framework's own, those of OpenAI's package (`openai.types`),
Python's values, what the application registered (`agent_framework.register_checkpoint_type`), and
`allowed`.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, get_args

from agent_framework import WorkflowCheckpoint, WorkflowCheckpointException

# The framework's other packages take them from here, too: there is no public name for them.
from agent_framework._workflows._checkpoint_encoding import (
    decode_checkpoint_value,
    encode_checkpoint_value,
)
from msgspec import Struct

from channel.agent import Turn


_PICKLED: Final = "__pickled__"
_TYPE: Final = {"__type__": "builtins:tuple"}
_FORMAT: Final = "agent_framework_workflow"


def allowed_names(allowed: Iterable[type | str]) -> frozenset[str]:
    """Return the names of classes as the framework writes them: `module:qualified name`."""
    return frozenset(
        each if isinstance(each, str) else f"{each.__module__}:{each.__qualname__}"
        for each in allowed
    )


def declared_types(workflow: Any) -> set[type]:
    """Return the classes that the handlers of a workflow declare to take, to send and to ask with."""
    found: set[type] = set()
    for executor in getattr(workflow, "executors", {}).values():
        declared = [*executor.input_types, *executor.output_types, *executor.workflow_output_types]
        for asked in getattr(
            executor, "_response_handlers", {}
        ):  # there is no public name for them
            declared += asked
        for each in declared:
            found.update(_classes(each))
        if hasattr(executor, "workflow"):
            found |= declared_types(executor.workflow)
    return found


def checkpoint_bytes(checkpoint: WorkflowCheckpoint, allowed: frozenset[str]) -> bytes:
    """Return the checkpoint as bytes; raises `WorkflowCheckpointException` where it could not be read again.

    All of it is pickled at once, so what it holds several times (the messages, by each agent) is there
    only once.
    """
    try:
        encoded: Any = encode_checkpoint_value((checkpoint.to_dict(),))
    except Exception as error:
        raise WorkflowCheckpointException("A checkpoint cannot be stored.") from error
    data = b64decode(encoded[_PICKLED])
    read_checkpoint(data, allowed)
    return data


def read_checkpoint(data: bytes, allowed: frozenset[str]) -> WorkflowCheckpoint:
    """Return the checkpoint of `checkpoint_bytes`; raises `WorkflowCheckpointException`."""
    encoded = {_PICKLED: b64encode(data).decode(), **_TYPE}
    (values,) = decode_checkpoint_value(encoded, allowed_types=allowed)
    return WorkflowCheckpoint.from_dict(values)


class Kept(Struct, frozen=True, omit_defaults=True):
    """What a turn of a workflow keeps: its checkpoint, packed, and the mark of what it has seen (`seen`).

    `answers` are those that a workflow function was given so far: it runs again from its beginning.
    """

    checkpoint: str
    seen: Mapping[str, Any]
    answers: Mapping[str, Any] = {}


def kept_before(turn: Turn) -> Kept | None:
    """Return what the turns before this one kept; None at the beginning."""
    kept = (turn.state or {}).get(_FORMAT)
    return (
        Kept(kept["checkpoint"], kept.get("seen") or {}, kept.get("answers") or {})
        if kept
        else None
    )


def state_of(kept: Kept | None) -> dict[str, Any]:
    """Return what is to be kept, as JSON; without anything, the next turn begins anew."""
    if kept is None:
        return {}
    named = {"checkpoint": kept.checkpoint, "seen": kept.seen}
    return {_FORMAT: {**named, "answers": kept.answers} if kept.answers else named}


def packed(data: bytes) -> str:
    """Return the bytes, compressed, as text."""
    return b64encode(zlib.compress(data)).decode()


def unpacked(text: str) -> bytes:
    """Return the bytes of `packed`."""
    return zlib.decompress(b64decode(text))


def _classes(declared: Any) -> Iterator[type]:
    if isinstance(declared, type):
        yield declared
    for each in get_args(declared):
        yield from _classes(each)
