"""The webhook event, its signature as OpenAI's client checks it, and when it is tried again."""

import time
from typing import Any

import msgspec
import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from openai.types.webhooks import (
    ResponseCancelledWebhookEvent,
    ResponseCompletedWebhookEvent,
    ResponseFailedWebhookEvent,
    ResponseIncompleteWebhookEvent,
)

from channel.isolation import IsolationKeys
from channel.ports import random_hex
from channel.responses.protocol.response import Response, Status
from channel.responses.webhooks import (
    EVENT_TYPES,
    Endpoint,
    Subject,
    Verdict,
    WebhookEvent,
    event_of,
    judge,
    make_secret,
    pause_after,
    signed_headers,
)


ANN = IsolationKeys("ann")
EVENT = WebhookEvent(
    id="evt_1", created_at=1_800_000_000, type="response.completed", data=Subject("resp_1")
)


def ended(status: Status = Status.COMPLETED, **fields: Any) -> Response:
    made: dict[str, Any] = {"id": "resp_1", "created_at": 1, "model": "m", "background": True}
    return Response(**{**made, "status": status, **fields})


def test_an_event_is_what_openai_posts() -> None:
    event = event_of(ANN, ended(completed_at=1_700_000_000), 1_800_000_000.9)

    assert event is not None
    assert msgspec.json.decode(event.encode()) == {
        "id": event.id,
        "object": "event",
        "created_at": 1_700_000_000,
        "type": "response.completed",
        "data": {"id": "resp_1"},
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.COMPLETED, ResponseCompletedWebhookEvent),
        (Status.FAILED, ResponseFailedWebhookEvent),
        (Status.INCOMPLETE, ResponseIncompleteWebhookEvent),
        (Status.CANCELLED, ResponseCancelledWebhookEvent),
    ],
)
def test_the_openai_client_takes_each_event_by_its_type(status: Status, kind: type) -> None:
    event = event_of(ANN, ended(status), 1_800_000_000.9)
    assert event is not None
    secret, body = make_secret(random_hex), event.encode()
    headers = signed_headers(secret, event.id, int(time.time()), body)

    unwrapped = OpenAI(api_key="k").webhooks.unwrap(body, headers, secret=secret)

    assert type(unwrapped) is kind
    assert unwrapped.id == event.id
    assert unwrapped.created_at == 1_800_000_000
    assert unwrapped.type == f"response.{status}"


@pytest.mark.parametrize("status", [status for status in Status if not status.is_terminal])
def test_a_response_that_has_not_ended_is_no_event(status: Status) -> None:
    assert event_of(ANN, ended(status), 1.0) is None


def test_a_response_of_the_foreground_is_no_event() -> None:
    assert event_of(ANN, ended(background=False), 1.0) is None


def test_every_end_of_a_response_has_an_event() -> None:
    assert set(EVENT_TYPES) == {status for status in Status if status.is_terminal}


def test_the_same_end_told_twice_has_the_same_id_and_no_other_has() -> None:
    def event_id(keys: IsolationKeys, response: Response, now: float) -> str:
        event = event_of(keys, response, now)
        assert event is not None
        return event.id

    first = event_id(ANN, ended(), 1.0)
    others = [
        event_id(ANN, ended(id="resp_2"), 1.0),
        event_id(ANN, ended(Status.FAILED), 1.0),
        event_id(ANN, ended(created_at=2), 1.0),
        event_id(IsolationKeys("ann", "chat"), ended(), 1.0),
        event_id(IsolationKeys("bob"), ended(), 1.0),
    ]

    assert event_id(ANN, ended(), 9.0) == first
    assert first.startswith("evt_")
    assert len({first, *others}) == 6


def test_a_signature_is_of_the_body_the_id_the_time_and_the_secret() -> None:
    client, now, body = OpenAI(api_key="k"), int(time.time()), EVENT.encode()
    secret, other = make_secret(random_hex), make_secret(random_hex)
    headers = signed_headers(secret, EVENT.id, now, body)

    client.webhooks.verify_signature(body, headers, secret=secret)
    for changed_body, changed, its_secret in [
        (body.replace(b"resp_1", b"resp_2"), {}, secret),
        (body, {"webhook-id": "evt_2"}, secret),
        (body, {"webhook-timestamp": str(now + 1)}, secret),
        (body, {}, other),
    ]:
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(changed_body, {**headers, **changed}, secret=its_secret)


def test_an_endpoint_shows_no_secret_and_gets_what_it_wants() -> None:
    endpoint = Endpoint(
        id="we_1",
        principal="acme",
        url="https://example.com/?token=t0k3n",
        secret="whsec_s3cr3t",
        event_types=("response.completed",),
        created_at=1,
    )

    assert repr(endpoint) == "Endpoint('we_1')"
    assert endpoint.wants(EVENT)
    assert not endpoint.wants(msgspec.structs.replace(EVENT, type="response.failed"))
    assert not msgspec.structs.replace(endpoint, is_disabled=True).wants(EVENT)


@pytest.mark.parametrize(
    ("verdict", "statuses"),
    [
        (Verdict.DELIVERED, [200, 201, 202, 204, 299]),
        (Verdict.AGAIN, [408, 425, 429, 500, 502, 503, 504, 599]),
        (Verdict.OVER, [101, 300, 301, 302, 304, 307, 308, 400, 401, 404, 410, 418, 600, 999]),
    ],
)
def test_a_status_says_whether_it_is_tried_again(verdict: Verdict, statuses: list[int]) -> None:
    assert {status: judge(status) for status in statuses} == dict.fromkeys(statuses, verdict)


def test_pauses_grow_and_chance_takes_up_to_half() -> None:
    assert [pause_after(attempt, 1.0) for attempt in range(1, 5)] == [1.0, 3.0, 9.0, 27.0]
    assert [pause_after(attempt, 0.0) for attempt in range(1, 5)] == [0.5, 1.5, 4.5, 13.5]
