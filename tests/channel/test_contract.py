from dataclasses import replace
from typing import Any, ClassVar

import pytest

from channel.agent import RefusalDelta, TextDelta, Turn
from channel.auth import Caller, Principal
from channel.contract import (
    Channel,
    ChannelContribution,
    ChannelRequest,
    ChannelSession,
    HostedRunResult,
    apply_run_hook,
    checked_hook_result,
    settled,
)
from channel.faults import HookError
from channel.isolation import IsolationKeys
from channel.responses.channel import ResponsesChannel


pytestmark = pytest.mark.anyio

REQUEST = ChannelRequest(
    channel="responses",
    operation="message.create",
    caller=Caller(Principal("acme"), IsolationKeys("acme")),
    input=[],
)


async def agent(_: Turn) -> Any:
    yield ""


async def applied(hook: Any) -> ChannelRequest:
    return await apply_run_hook(hook, REQUEST, target=agent, protocol_request={"a": 1})


async def test_a_run_hook_is_called_by_its_convention() -> None:
    calls: list[tuple[Any, ...]] = []

    def hook(request: ChannelRequest, /, **named: Any) -> ChannelRequest:
        calls.append((request, named))
        return replace(request, model="m")

    changed = await applied(hook)

    assert calls == [(REQUEST, {"target": agent, "protocol_request": {"a": 1}})]
    assert changed == replace(REQUEST, model="m")


async def test_a_run_hook_may_be_async_or_an_object() -> None:
    class Hook:
        async def __call__(self, request: ChannelRequest, /, **_: Any) -> ChannelRequest:
            return replace(request, model="m")

    assert (await applied(Hook())).model == "m"


async def returns_none(_: ChannelRequest, **__: Any) -> None:
    return None


class ReturnsText:
    def __call__(self, _: ChannelRequest, **__: Any) -> str:
        return "text"


@pytest.mark.parametrize(
    ("hook", "sentence"),
    [
        (returns_none, "the hook returns_none returned NoneType, not ChannelRequest"),
        (ReturnsText(), "the hook ReturnsText returned str, not ChannelRequest"),
        (ReturnsText().__call__, "the hook ReturnsText.__call__ returned str, not ChannelRequest"),
    ],
)
async def test_a_run_hook_that_returns_something_else_is_named(hook: Any, sentence: str) -> None:
    with pytest.raises(HookError) as caught:
        await applied(hook)

    assert str(caught.value) == sentence


async def test_what_a_run_hook_raises_passes_through() -> None:
    def hook(*_: Any, **__: Any) -> Any:
        raise KeyError

    with pytest.raises(KeyError):
        await applied(hook)


async def test_a_value_is_awaited_where_it_can_be() -> None:
    async def later() -> int:
        return 2

    assert (await settled(1), await settled(later()), await settled(None)) == (1, 2, None)


def test_a_subclass_is_a_right_result() -> None:
    assert checked_hook_result(None, True, int) is True


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ([], ""),
        (["a", TextDelta("b"), RefusalDelta("no"), 5], "ab"),
        (("a", "b"), "ab"),
        ("ab", "ab"),
        (None, ""),
        (object(), ""),
    ],
)
def test_the_text_of_a_result(result: Any, text: str) -> None:
    assert HostedRunResult(result).text == text


def test_the_text_of_a_result_with_an_output_text() -> None:
    class Result:
        output_text: ClassVar = "said"

    assert HostedRunResult(Result()).text == "said"


def test_a_result_is_replaced_in_the_same_run() -> None:
    run = HostedRunResult(["a"], ChannelSession("s"))

    assert run.replace(["b"]) == HostedRunResult(["b"], ChannelSession("s"))
    assert run.text == "a"


def test_a_channel_is_known_by_its_members() -> None:
    class Mine:
        name = "mine"
        path = ""

        def contribute(self, _context: Any, /) -> ChannelContribution:
            return ChannelContribution()

    assert isinstance(Mine(), Channel)
    assert isinstance(ResponsesChannel(), Channel)
    assert not isinstance(object(), Channel)
    assert Mine().contribute(None) == ChannelContribution((), (), ())
