"""From what an agent says to what the state machine does: one method for each agent event."""

from collections.abc import Callable

from channel.agent import (
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
    Usage,
)
from channel.responses.protocol.events import StreamEvent
from channel.responses.protocol.response import Status
from channel.responses.protocol.said import AgentEventError
from channel.responses.protocol.stream import ResponseStream


def say(  # noqa: C901, PLR0911, PLR0912 - one case for each agent event
    stream: ResponseStream, event: AgentEvent, now: Callable[[], int]
) -> list[StreamEvent]:
    """Return the stream events that the agent event causes; raises `AgentEventError`."""
    match event:
        case str():
            return stream.text_delta(event)
        case TextDelta(text):
            return stream.text_delta(text)
        case RefusalDelta(text):
            return stream.refusal_delta(text)
        case ReasoningDelta(text, new_part, encrypted):
            return stream.reasoning_delta(text, new_part=new_part, encrypted_content=encrypted)
        case Annotation(annotation):
            return stream.annotation(annotation)
        case FunctionCall(name, arguments, call_id):
            return stream.function_call(name, arguments, call_id)
        case FunctionCallDelta(call_id, arguments, name):
            return stream.function_call_delta(call_id, arguments, name)
        case ToolStarted(call_id, name, arguments, server_label):
            return stream.tool_started(call_id, name, arguments, server_label)
        case ToolFinished(call_id, output, error):
            return stream.tool_finished(call_id, output, error)
        case OutputItem(item):
            return stream.output_item(item)
        case Usage():
            return stream.usage(
                input_tokens=event.input_tokens,
                output_tokens=event.output_tokens,
                cached_tokens=event.cached_tokens,
                cache_write_tokens=event.cache_write_tokens,
                reasoning_tokens=event.reasoning_tokens,
            )
        case KeptState(state):
            return stream.keep_state(state)
        case SessionReset():
            return stream.reset_session()
        case Finish(reason):
            return _finish(stream, reason, now())
    msg = f"an agent yielded {type(event).__name__}, which is no agent event"
    raise AgentEventError(msg)


def _finish(stream: ResponseStream, reason: str, now: int) -> list[StreamEvent]:
    if reason == "stop":
        return stream.settle(Status.COMPLETED, now=now)
    if reason not in ("max_output_tokens", "content_filter"):
        msg = "an agent finished for a reason that clients do not know"
        raise AgentEventError(msg)
    return stream.settle(Status.INCOMPLETE, now=now, reason=reason)
