"""Deliveries: each endpoint for itself, tried again with pauses, and a dead letter at the end."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from openai.types.webhooks import ResponseCompletedWebhookEvent

from channel.isolation import IsolationKeys
from channel.ports import StoreError, call_limit_s, random_hex
from channel.responses.protocol.response import Response, Status
from channel.responses.webhooks import (
    EVENT_TYPES,
    DeadLetter,
    Endpoint,
    Webhooks,
    event_of,
    make_secret,
)
from infra.webhook_deliveries import WebhookDeliveries
from infra.webhook_sender import WebhookSender
from infra.webhook_targets import TargetRefusedError
from tests.infra.conftest import MovableClock
from tests.infra.receivers import OK, Receiver, listening


pytestmark = pytest.mark.anyio

KEYS = IsolationKeys("acme/ann")
DONE = Response(
    id="resp_1",
    created_at=1_799_999_990,
    completed_at=1_799_999_999,
    status=Status.COMPLETED,
    model="m",
    background=True,
)
EVENT = event_of(KEYS, DONE, 0)
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"


def endpoint(name: str, url: str = "", **fields: Any) -> Endpoint:
    made: dict[str, Any] = {
        "id": f"we_{name}",
        "principal": "acme",
        "url": url or f"https://{name}.example/",
        "secret": make_secret(random_hex),
        "event_types": tuple(EVENT_TYPES.values()),
        "created_at": 1,
    }
    return Endpoint(**{**made, **fields})


class Rows:
    """Endpoints and dead letters in memory; `failure` is raised by whatever is called."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.listed = endpoints
        self.dead: list[DeadLetter] = []
        self.failure: Exception | None = None
        self.limits: list[float | None] = []

    async def endpoints(self, principal: str, /) -> Sequence[Endpoint]:
        if self.failure:
            raise self.failure
        return [each for each in self.listed if each.principal == principal]

    async def bury(self, letter: DeadLetter, /) -> None:
        self.limits.append(call_limit_s.get())
        if self.failure:
            raise self.failure
        self.dead.append(letter)


Reply = int | Exception | Callable[[], Awaitable[int]]


class Sender:
    """Replies to each URL with the next of its replies, or the last."""

    def __init__(self, replies: Mapping[str, list[Reply]]) -> None:
        self.replies = {f"https://{name}.example/": each for name, each in replies.items()}
        self.posts: list[tuple[str, Mapping[str, str], bytes]] = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        self.posts.append((url, headers, body))
        replies = self.replies[url]
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, int) else await reply()


class Pauses:
    """Pauses that take no time but move the clock."""

    def __init__(self, clock: MovableClock) -> None:
        self.clock = clock
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        self.clock.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def pauses(clock: MovableClock) -> Pauses:
    return Pauses(clock)


def deliveries(
    rows: Rows, sender: Sender | WebhookSender, pauses: Pauses, **more: Any
) -> WebhookDeliveries:
    clock = pauses.clock
    return WebhookDeliveries(
        rows, sender, clock=clock, now=clock, pause=pauses, chance=lambda: 1.0, **more
    )


def dead(name: str, reason: str, attempts: int, at: float) -> DeadLetter:
    assert EVENT is not None
    return DeadLetter(
        principal="acme",
        endpoint_id=f"we_{name}",
        event_id=EVENT.id,
        event_type="response.completed",
        body=EVENT.encode().decode(),
        reason=reason,
        attempts=attempts,
        at=at,
    )


async def test_what_arrives_is_taken_by_the_openai_client_and_nothing_else_is() -> None:
    receiver = Receiver()
    async with listening(receiver) as port:
        hook = endpoint("a", f"http://127.0.0.1:{port}/hook")
        webhooks: Webhooks = WebhookDeliveries(Rows(hook), WebhookSender(allow_private=True))
        await webhooks.notify(KEYS, "acme", DONE)

    (posted,) = receiver.got
    client = OpenAI(api_key="k", webhook_secret=hook.secret)
    event = client.webhooks.unwrap(posted.body, posted.headers)
    assert EVENT is not None
    assert isinstance(event, ResponseCompletedWebhookEvent)
    assert (event.id, event.data.id) == (EVENT.id, "resp_1")
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(posted.body.replace(b"resp_1", b"resp_2"), posted.headers)
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(posted.body, posted.headers, secret=make_secret(random_hex))


async def test_a_server_that_comes_back_gets_the_same_event_signed_anew(
    pauses: Pauses,
) -> None:
    receiver = Receiver([UNAVAILABLE, b"", OK])
    async with listening(receiver) as port:
        rows = Rows(hook := endpoint("a", f"http://127.0.0.1:{port}/"))
        await deliveries(rows, WebhookSender(allow_private=True), pauses).notify(KEYS, "acme", DONE)

    assert pauses.taken == [1.0, 3.0]
    assert rows.dead == []
    assert len({posted.body for posted in receiver.got}) == 1
    assert len({posted.headers["webhook-id"] for posted in receiver.got}) == 1
    times = [int(posted.headers["webhook-timestamp"]) for posted in receiver.got]
    assert times == [1_800_000_000, 1_800_000_001, 1_800_000_004]
    for posted in receiver.got:  # whatever the year is
        OpenAI(api_key="k").webhooks.verify_signature(
            posted.body, posted.headers, secret=hook.secret, tolerance=10**10
        )


async def test_after_the_last_attempt_there_is_a_dead_letter(pauses: Pauses) -> None:
    rows, sender = Rows(endpoint("a")), Sender({"a": [500, TimeoutError(), 429, 503]})

    await deliveries(rows, sender, pauses).notify(KEYS, "acme", DONE)

    assert len(sender.posts) == 5
    assert pauses.taken == [1.0, 3.0, 9.0, 27.0]
    assert rows.dead == [dead("a", "HTTP 503", 5, 1_800_000_040.0)]


@pytest.mark.parametrize(
    ("reply", "reason", "attempts"),
    [
        (301, "HTTP 301", 1),
        (404, "HTTP 404", 1),
        (410, "HTTP 410", 1),
        (
            TargetRefusedError("10.0.0.1 is not public."),
            "TargetRefusedError: 10.0.0.1 is not public.",
            1,
        ),
        (UnicodeError("x"), "UnicodeError", 1),
        (408, "HTTP 408", 5),
        (ConnectionRefusedError("x"), "ConnectionRefusedError", 5),
        (ssl.SSLError("x"), "SSLError", 5),
        (TimeoutError("x"), "TimeoutError", 5),
    ],
)
async def test_what_cannot_pass_is_not_tried_again(
    pauses: Pauses, reply: Reply, reason: str, attempts: int
) -> None:
    rows, sender = Rows(endpoint("a")), Sender({"a": [reply]})

    await deliveries(rows, sender, pauses).notify(KEYS, "acme", DONE)

    assert len(sender.posts) == attempts
    assert rows.dead == [dead("a", reason, attempts, pauses.clock.now)]


async def test_each_endpoint_gets_what_it_wants_and_no_other_principals_do(
    pauses: Pauses,
) -> None:
    rows = Rows(
        endpoint("all"),
        endpoint("failed", event_types=("response.failed",)),
        endpoint("off", is_disabled=True),
        endpoint("theirs", principal="other"),
    )
    sender = Sender({name: [200] for name in ("all", "failed", "off", "theirs")})

    await deliveries(rows, sender, pauses).notify(KEYS, "acme", DONE)
    await deliveries(rows, sender, pauses).notify(KEYS, "nobody", DONE)

    assert [url for url, *_ in sender.posts] == ["https://all.example/"]


@pytest.mark.parametrize("fields", [{"background": False}, {"status": Status.IN_PROGRESS}])
async def test_nothing_is_read_or_sent_where_there_is_no_event(
    pauses: Pauses, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows, sender = Rows(endpoint("a")), Sender({})
    rows.failure = AssertionError("nobody asked")

    response = msgspec.structs.replace(DONE, **fields)
    await deliveries(rows, sender, pauses).notify(KEYS, "acme", response)

    assert caplog.records == []


async def test_an_endpoint_that_hangs_or_is_wrong_delays_no_other(pauses: Pauses) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def hangs() -> int:
        await release.wait()
        return 200

    async def arrives() -> int:
        arrived.set()
        return 200

    rows = Rows(
        endpoint("slow"),
        endpoint("wrong", secret="whsec_not base64"),
        endpoint("down"),
        endpoint("good"),
    )
    sender = Sender({"slow": [hangs], "wrong": [200], "down": [500], "good": [arrives]})

    telling = asyncio.create_task(deliveries(rows, sender, pauses).notify(KEYS, "acme", DONE))
    async with asyncio.timeout(5):
        await arrived.wait()
        assert not telling.done()
        release.set()
        await telling

    assert {letter.endpoint_id: letter.reason for letter in rows.dead} == {
        "we_wrong": "Error",  # of base64
        "we_down": "HTTP 500",
    }


async def test_an_endpoint_gets_so_many_requests_at_a_time(pauses: Pauses) -> None:
    at_once, most, posted = 0, 0, 0

    async def counts() -> int:
        nonlocal at_once, most, posted
        at_once, posted = at_once + 1, posted + 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return 200

    rows, sender = Rows(endpoint("a")), Sender({"a": [counts]})
    webhooks = deliveries(rows, sender, pauses, at_once=2)

    await asyncio.gather(*[webhooks.notify(KEYS, "acme", DONE) for _ in range(10)])

    assert (posted, most) == (10, 2)
    assert rows.dead == []
    assert webhooks._lines == {}


async def test_what_is_too_frequent_is_a_dead_letter_at_once(pauses: Pauses) -> None:
    release = asyncio.Event()

    async def hangs() -> int:
        await release.wait()
        return 200

    rows = Rows(endpoint("busy"), endpoint("good"))
    sender = Sender({"busy": [hangs], "good": [200]})
    webhooks = deliveries(rows, sender, pauses, at_once=1, under_way=3)

    telling = [asyncio.create_task(webhooks.notify(KEYS, "acme", DONE)) for _ in range(5)]
    async with asyncio.timeout(5):
        await asyncio.wait(telling, return_when=asyncio.FIRST_COMPLETED)
        refused = [*rows.dead]
        release.set()
        await asyncio.gather(*telling)

    assert rows.dead == refused == [dead("busy", "TooManyDeliveries", 0, 1_800_000_000.0)] * 2
    assert [url for url, *_ in sender.posts].count("https://busy.example/") == 3
    assert [url for url, *_ in sender.posts].count("https://good.example/") == 5


@pytest.mark.parametrize(
    ("deadline_s", "taken", "attempts"),
    [
        (None, [1.0, 3.0, 9.0, 27.0], 5),
        (600.0, [1.0, 3.0, 9.0, 27.0], 5),
        (15.0, [1.0, 3.0], 3),  # 13 s, of which the third pause would take the last
        (3.0, [1.0], 2),
        (2.0, [], 1),
        (1.0, [], 1),
    ],
)
async def test_no_pause_goes_beyond_the_deadline(
    pauses: Pauses, deadline_s: float | None, taken: list[float], attempts: int
) -> None:
    rows, sender = Rows(endpoint("a")), Sender({"a": [500]})

    await deliveries(rows, sender, pauses).notify(KEYS, "acme", DONE, deadline_s=deadline_s)

    assert pauses.taken == taken
    assert rows.dead == [dead("a", "HTTP 500", attempts, pauses.clock.now)]


async def test_the_constructors_deadline_is_the_longest(pauses: Pauses) -> None:
    rows, sender = Rows(endpoint("a")), Sender({"a": [500]})

    webhooks = deliveries(rows, sender, pauses, deadline_s=15.0)
    await webhooks.notify(KEYS, "acme", DONE, deadline_s=60.0)

    assert pauses.taken == [1.0, 3.0]


async def test_a_request_that_hangs_ends_in_time_for_its_dead_letter(pauses: Pauses) -> None:
    async def hangs() -> int:
        await asyncio.Event().wait()
        return 200

    rows, sender = Rows(endpoint("a")), Sender({"a": [hangs]})

    async with asyncio.timeout(5):
        await deliveries(rows, sender, pauses).notify(KEYS, "acme", DONE, deadline_s=0.1)

    assert rows.dead == [dead("a", "TimeoutError", 1, 1_800_000_000.0)]
    assert rows.limits == [1.0]
    assert call_limit_s.get() is None


async def test_endpoints_that_cannot_be_read_are_the_callers_to_try_again(pauses: Pauses) -> None:
    rows = Rows(endpoint("a"))
    rows.failure = StoreError("secret words")

    with pytest.raises(StoreError):
        await deliveries(rows, Sender({}), pauses).notify(KEYS, "acme", DONE)


async def test_a_dead_letter_that_cannot_be_kept_is_logged(
    pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows(endpoint("a"))

    async def breaks() -> int:
        rows.failure = StoreError("secret words")
        return 404

    await deliveries(rows, Sender({"a": [breaks]}), pauses).notify(KEYS, "acme", DONE)

    assert caplog.messages == [
        "webhook not delivered",
        "dead letter of a webhook not kept: StoreError",
    ]


async def test_a_log_line_has_the_endpoint_and_why_and_no_url_or_body(
    pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows(endpoint("a"))
    refusal = TargetRefusedError("10.1.2.3 is not public.")

    with caplog.at_level(logging.DEBUG):
        await deliveries(rows, Sender({"a": [refusal]}), pauses).notify(KEYS, "acme", DONE)

    (record,) = [each for each in caplog.records if each.name.startswith("infra")]
    said = vars(record)
    assert (said["endpoint"], said["reason"], said["attempts"]) == ("we_a", "TargetRefusedError", 1)
    for hidden in ("10.1.2.3", "resp_1", "a.example", "whsec_", "acme"):
        assert hidden not in str(said)


async def test_a_cancelled_delivery_is_cancelled(pauses: Pauses) -> None:
    started = asyncio.Event()

    async def hangs() -> int:
        started.set()
        await asyncio.Event().wait()
        return 200

    webhooks = deliveries(Rows(endpoint("a")), Sender({"a": [hangs]}), pauses)
    telling = asyncio.create_task(webhooks.notify(KEYS, "acme", DONE))
    await started.wait()
    telling.cancel()

    with pytest.raises(asyncio.CancelledError):
        await telling
    assert webhooks._lines == {}
