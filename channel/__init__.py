"""The host, the channel contract, the Responses protocol and agents: runs anywhere, knows no cloud.

What a user needs is importable from here; everything else from where it lives.
"""

from channel.agent import (
    Agent,
    AgentEvent,
    Annotation,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    KeptState,
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    SessionReset,
    TextDelta,
    ToolFinished,
    ToolStarted,
    Turn,
    TurnError,
    Usage,
    accepts,
)
from channel.responses.protocol.errors import RequestError


__all__ = [
    "Agent",
    "AgentEvent",
    "Annotation",
    "Finish",
    "FunctionCall",
    "FunctionCallDelta",
    "KeptState",
    "OutputItem",
    "ReasoningDelta",
    "RefusalDelta",
    "RequestError",
    "SessionReset",
    "TextDelta",
    "ToolFinished",
    "ToolStarted",
    "Turn",
    "TurnError",
    "Usage",
    "accepts",
]
