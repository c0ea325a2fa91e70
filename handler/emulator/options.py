"""What is emulated: a function as Lambda would be told of it, and faults to inject."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field


class Function(Struct, frozen=True, kw_only=True):
    """A function and its URL. `environ` is what the function has besides the variables that Lambda sets."""

    handler: str
    environ: Mapping[str, str] = {}
    task_root: Path = field(default_factory=Path.cwd)
    name: str = "lambda-responses"
    region: str = "us-east-1"
    memory_mb: int = 512
    """Told to the function; nothing enforces it."""
    timeout_s: float = 300.0
    init_timeout_s: float = 10.0
    streams: bool = True
    """Whether the URL's invoke mode is RESPONSE_STREAM, and not BUFFERED."""
    environments: int = 1
    """Execution environments at the same time: beyond them requests are throttled, and events wait.

    A background response that is streamed takes two: one for its worker, one for who follows it.
    """
    concurrency: int = 1
    """Invocations at a time in one environment: more than one is a Managed Instance."""
    is_snap_start: bool = False
    freezes: bool = False
    """Whether a process is stopped (SIGSTOP) while there is nothing to do for it."""
    logs_json: bool = False
    retry_after_s: Sequence[float] = (60.0, 120.0)
    """Pauses after which the event of an asynchronous invocation that failed is tried again."""


class Faults(Struct, frozen=True, kw_only=True):
    """What goes wrong with an invocation. Bytes are those of the reply, its prelude included."""

    cut_after_bytes: int | None = None
    """The runtime's connection is reset."""
    refuse_after_bytes: int | None = None
    """The reply is answered with `refuse_status` before its end."""
    refuse_status: int = 413
    bytes_per_s: float | None = None
    """No more of the reply is read per second."""
    gate: asyncio.Event | None = None
    """Nothing of the reply is read before this is set."""
    is_gone: bool = False
    """After the reply the Runtime API closes all connections and takes no more."""
    notices_disconnects: bool = False
    """The runtime's connection is reset when the client goes away, which Lambda does not notice."""
    delivers_twice: bool = False
    """The event of an asynchronous invocation is delivered twice, at the same time."""
