"""From a channel's request to the agent's turn."""

from typing import Any

import msgspec

from channel.agent import Turn
from channel.contract import STATE, ChannelRequest


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def turn_of(request: ChannelRequest) -> Turn:
    """Return the turn of a request.

    It holds copies: what an agent does to its turn must not change what is stored and echoed.
    """
    return Turn(
        input=_copied(request.input),
        history=request.history,
        instructions=request.instructions,
        model=request.model,
        tools=_copied(request.tools),
        tool_choice=_copied(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        options=request.options,
        metadata=_copied(request.metadata),
        response_id=request.attributes.get("response_id", ""),
        previous_response_id=request.attributes.get("previous_response_id"),
        principal=request.caller.principal,
        isolation_keys=request.caller.keys,
        safety_identifier=request.identity.native_id if request.identity else None,
        state=_copied(request.attributes.get(STATE)),
    )


def _copied(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return _decode(_encode(value)) if value else type(value)()
