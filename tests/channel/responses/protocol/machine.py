"""A `ResponseStream` with literal ids, and its stream events as they are on the wire."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.response import Response
from channel.responses.protocol.stream import ResponseStream, ToolPolicy


BODY = "ab" * 26
MSG_1 = f"msg_{BODY}0001"
MSG_2 = f"msg_{BODY}0002"
FC_1 = f"fc_{BODY}0001"
FC_2 = f"fc_{BODY}0002"
RS_1 = f"rs_{BODY}0001"
MCP_1 = f"mcp_{BODY}0001"
MCP_2 = f"mcp_{BODY}0002"


def initial() -> Response:
    return Response(id=f"resp_{BODY}", created_at=1_700_000_000, model="agent")


def machine(
    *names: str,
    is_parallel: bool = True,
    shows_tools: bool = False,
    position: int = 1,
    max_activities: int | None = None,
) -> ResponseStream:
    """Return a machine after `start`, whose next event has number 2."""
    stream = ResponseStream(
        initial(),
        body=BODY,
        position=position,
        tools=ToolPolicy(frozenset(names), is_parallel, max_activities),
        shows_tools=shows_tools,
    )
    stream.start()
    return stream


def wire(events: Iterable[StreamEvent]) -> list[dict[str, Any]]:
    """Return the events as a client reads them."""
    return [json.loads(msgspec.json.encode(event)) for event in events]


def types(events: Iterable[StreamEvent]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


def numbers(events: Iterable[StreamEvent]) -> list[int]:
    return [event.sequence_number for event in events]
