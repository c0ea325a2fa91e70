from typing import Any, ClassVar

import pytest

from channel.agent import RefusalDelta, TextDelta
from channel.contract import (
    Channel,
    ChannelContribution,
    ChannelSession,
    HostedRunResult,
    settled,
)
from channel.responses.channel import ResponsesChannel


pytestmark = pytest.mark.anyio


async def test_a_value_is_awaited_where_it_can_be() -> None:
    async def later() -> int:
        return 2

    assert (await settled(1), await settled(later()), await settled(None)) == (1, 2, None)


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
