from typing import Any

import pytest

from channel.agent import (
    OPTION_NAMES,
    Turn,
    TurnError,
    accepted_options,
    accepts,
)
from channel.responses.protocol.items import message


pytestmark = pytest.mark.anyio

TURN = Turn(input=[message("user", "hi")])


# Turns


def test_the_text_of_a_turn_is_that_of_its_last_user_message() -> None:
    items = [message("user", "a"), message("user", "b"), message("developer", "c")]

    assert Turn(input=items).text == "b"
    assert Turn(input=[{"type": "x", "role": "user"}]).text == ""
    assert Turn(input=[], history=items).text == ""


def test_the_items_of_a_turn_are_history_and_input() -> None:
    before, now = message("user", "a"), message("user", "b")

    assert Turn(input=[now], history=[before]).items == [before, now]


def test_a_turn_error_is_a_server_error_unless_it_says_otherwise() -> None:
    error = TurnError("No.")

    assert (str(error), error.message, error.code, error.status, error.param) == (
        "No.",
        "No.",
        "server_error",
        500,
        None,
    )


# What is an agent


def test_an_agent_declares_the_options_that_it_takes() -> None:
    @accepts(*OPTION_NAMES)
    async def agent(_: Turn) -> str:
        return ""

    assert accepted_options(agent) == OPTION_NAMES


def test_an_unknown_option_stops_the_start() -> None:
    with pytest.raises(ValueError, match=r"accepts\(\) got \['temprature'\]; the caller options"):
        accepts("top_p", "temprature")


@pytest.mark.parametrize("status", [99, 200, 204, 1000, None, "500"])
def test_a_turn_error_is_an_error_whatever_status_it_is_given(status: Any) -> None:
    assert TurnError("no", status=status).status == 500


def test_a_turn_error_can_always_be_told() -> None:
    error = TurnError(None, code=5, param=object())  # type: ignore[arg-type]

    assert (error.message, error.code, error.param) == (
        "The agent failed to answer.",
        "server_error",
        None,
    )
