"""The embedded DynamoDB engine: moto's, one call at a time, as a server of this process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, Final


_CALLS: Final = RLock()


@contextmanager
def embedded_engine(host: str) -> Iterator[str]:
    """Run the engine on a free port of `host`, and yield its URL; it forgets everything at the end."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - only where it is needed: it is slow

    make_atomic()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(host, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_atomic() -> None:
    """Let moto serve one DynamoDB call at a time: it looks at a condition first, and writes later.

    Between threads, two writes of which only one may happen would both happen otherwise.
    """
    from moto.dynamodb.responses import DynamoHandler  # noqa: PLC0415 - as above

    call_action = DynamoHandler.call_action
    if call_action.__module__ == __name__:
        return  # once is enough

    def call_one(handler: Any) -> Any:
        with _CALLS:
            return call_action(handler)

    DynamoHandler.call_action = call_one  # type: ignore[method-assign]  # moto has no setting for it
