"""A function with a worker, which does what its event says; HTTP requests go to the app of `routes`."""

import asyncio
import os
from pathlib import Path
from typing import Any

from handler.mount import LambdaHandler
from infra.settings import Settings
from tests.handler.emulator.apps import routes


_tries = 0


async def work(event: dict[str, Any], context: Any) -> Any:
    global _tries  # noqa: PLW0603 - of this process: what a test asks about
    _tries += 1
    print(f"working on {event.get('name', '')}")  # noqa: T201 - a line for the logs
    if "gate" in event:
        await asyncio.to_thread(_read_byte, event["gate"])
    match event.get("does"):
        case "fail":
            raise LookupError(event["name"])
        case "fail once" if _tries == 1:
            raise LookupError(event["name"])
        case "exit":
            os._exit(3)
        case "block":
            _read_byte(event["blocked by"])
    return {"event": event, "request": context.aws_request_id, "process": os.getpid()}


def _read_byte(pipe: str) -> None:
    with Path(pipe).open("rb", buffering=0) as opened:
        opened.read(1)


handler = LambdaHandler(routes.app, worker=work, settings=Settings())
