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
    OutputItem,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolFinished,
    ToolStarted,
    Turn,
    TurnError,
    Usage,
    accepts,
)


__all__ = [
    "Agent",
    "AgentEvent",
    "Annotation",
    "Finish",
    "FunctionCall",
    "FunctionCallDelta",
    "OutputItem",
    "ReasoningDelta",
    "RefusalDelta",
    "TextDelta",
    "ToolFinished",
    "ToolStarted",
    "Turn",
    "TurnError",
    "Usage",
    "accepts",
]
