"""Messages by the management API, against a stand-in over real HTTP."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from infra.push import ConnectionLostError, ManagementPush, make_management_client
from tests.infra.management import MAX_MESSAGE_BYTES, ManagementApi, management_api


pytestmark = pytest.mark.anyio

ME = "L0SM9cOFvHcCIhw="


@pytest.fixture
def api() -> Iterator[ManagementApi]:
    with management_api() as served:
        yield served


class Pauses:
    """Notes how long somebody would have waited."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def push(api: ManagementApi, pause: Any = None) -> ManagementPush:
    make = partial(make_management_client, None, api.endpoint)
    return ManagementPush(make, pause=pause or Pauses())


async def test_messages_arrive_in_order_and_as_they_are(api: ManagementApi) -> None:
    pushing = push(api)
    for number in range(5):
        await pushing.send(ME, b'{"n":%d,"text":"\xc3\xa4"}' % number)

    assert api.posts == {ME: [b'{"n":%d,"text":"\xc3\xa4"}' % number for number in range(5)]}


async def test_a_client_that_is_gone_is_a_lost_connection(api: ManagementApi) -> None:
    api.gone.add(ME)

    with pytest.raises(ConnectionLostError):
        await push(api).send(ME, b"{}")

    assert api.calls == [f"POST {ME}"], "there is nothing to be closed"


async def test_a_throttled_message_is_sent_again_after_a_while(api: ManagementApi) -> None:
    pauses = Pauses()
    api.answers = [429, 429, 200]

    await push(api, pauses).send(ME, b"{}")

    assert api.posts == {ME: [b"{}"]}
    assert pauses.seconds == [0.1, 0.2]


@pytest.mark.parametrize("answers", [[500], [429] * 5])
async def test_a_message_that_may_not_have_arrived_ends_the_connection(
    api: ManagementApi, answers: list[int]
) -> None:
    api.answers = [*answers]

    with pytest.raises(ConnectionLostError):
        await push(api).send(ME, b"{}")

    assert (api.posts, api.closed) == ({}, [ME])


async def test_a_message_that_is_too_large_is_never_a_part_of_a_stream(api: ManagementApi) -> None:
    pushing = push(api)
    await pushing.send(ME, b"x" * pushing.max_bytes)

    with pytest.raises(ConnectionLostError):
        await pushing.send(ME, b"x" * (pushing.max_bytes + 1))

    assert pushing.max_bytes == MAX_MESSAGE_BYTES
    assert api.closed == [ME]


async def test_a_message_without_an_answer_is_not_sent_twice() -> None:
    class Client:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def post_to_connection(self, **arguments: Any) -> None:
            self.calls.append("post")
            raise ReadTimeoutError(endpoint_url="http://127.0.0.1")

        def delete_connection(self, **arguments: Any) -> None:
            self.calls.append("delete")
            raise ReadTimeoutError(endpoint_url="http://127.0.0.1")

    client = Client()

    with pytest.raises(ConnectionLostError):
        await ManagementPush(lambda: client).send(ME, b"{}")

    assert client.calls == ["post", "delete"]


async def test_a_connection_is_closed_and_one_that_is_gone_is_left_alone(
    api: ManagementApi,
) -> None:
    pushing = push(api)
    await pushing.close(ME)
    await pushing.close(ME)

    assert api.closed == [ME]
