from collections.abc import Callable
from typing import Any

import pytest

from channel.agent import (
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
from channel.responses.protocol.response import Status
from channel.responses.protocol.said import AgentEventError
from channel.responses.protocol.stream import ResponseStream
from channel.responses.saying import say
from tests.channel.responses.protocol.machine import machine, wire


NOTE = {"type": "url_citation"}


def now() -> int:
    return 9


@pytest.mark.parametrize(
    ("event", "same"),
    [
        ("a", lambda s: s.text_delta("a")),
        (TextDelta("a"), lambda s: s.text_delta("a")),
        (RefusalDelta("a"), lambda s: s.refusal_delta("a")),
        (ReasoningDelta("a"), lambda s: s.reasoning_delta("a")),
        (ReasoningDelta("a", new_part=True), lambda s: s.reasoning_delta("a", new_part=True)),
        (Annotation(NOTE), lambda s: s.annotation(NOTE)),
        (FunctionCall("f", "{}"), lambda s: s.function_call("f", "{}")),
        (FunctionCall("f", "{}", "c"), lambda s: s.function_call("f", "{}", "c")),
        (FunctionCallDelta("c", "{", "f"), lambda s: s.function_call_delta("c", "{", "f")),
        (ToolStarted("t", "n"), lambda s: s.tool_started("t", "n", "{}", "agent")),
        (ToolStarted("t", "n", "1", "l"), lambda s: s.tool_started("t", "n", "1", "l")),
        (OutputItem({"type": "x"}), lambda s: s.output_item({"type": "x"})),
    ],
)
def test_each_agent_event_is_one_method(
    event: Any, same: Callable[[ResponseStream], list[Any]]
) -> None:
    assert wire(say(machine("f", shows_tools=True), event, now)) == wire(
        same(machine("f", shows_tools=True))
    )


def test_a_reset_is_told_to_nobody_and_nothing_is_kept_beside_it() -> None:
    stream = machine()

    for event in (KeptState({"a": 1}), SessionReset(), KeptState({"b": 2})):
        assert say(stream, event, now) == []

    assert (stream.resets, stream.state) == (True, None)


def test_a_reset_after_the_end_is_refused() -> None:
    stream = machine()
    say(stream, Finish(), now)

    with pytest.raises(AgentEventError):
        say(stream, SessionReset(), now)
    assert not stream.resets


def test_a_tool_finishes_with_an_output_or_an_error() -> None:
    stream = machine(shows_tools=True)
    say(stream, ToolStarted("a", "n"), now)
    say(stream, ToolStarted("b", "n"), now)

    say(stream, ToolFinished("a", "found"), now)
    say(stream, ToolFinished("b", error="no net"), now)
    say(stream, Finish(), now)

    found, failed = stream.response.output
    assert (found["status"], found["output"], found["error"]) == ("completed", "found", None)
    assert (failed["status"], failed["output"]) == ("failed", None)
    assert failed["error"]["content"] == [{"type": "text", "text": "no net"}]


def test_usage_is_added_by_its_names() -> None:
    stream = machine()

    say(stream, Usage(1, 2, 3, 4, 5), now)
    say(stream, Finish(), now)

    assert wire(stream.end())[0]["response"]["usage"] == {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 4},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 3,
    }


@pytest.mark.parametrize(
    ("reason", "status", "completed_at"),
    [
        ("stop", Status.COMPLETED, 9),
        ("max_output_tokens", Status.INCOMPLETE, None),
        ("content_filter", Status.INCOMPLETE, None),
    ],
)
def test_finish_settles_the_response(reason: str, status: Status, completed_at: int | None) -> None:
    stream = machine()

    say(stream, Finish(reason), now)

    assert (stream.response.status, stream.response.completed_at) == (status, completed_at)


@pytest.mark.parametrize("event", [Finish("boredom"), 5, None, b"a", ["a"], {"text": "a"}])
def test_anything_else_is_an_error(event: Any) -> None:
    with pytest.raises(AgentEventError):
        say(machine(), event, now)
