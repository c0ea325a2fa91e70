"""Channels that only push: to a receiver of webhooks, and to moto's EventBridge and SNS."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, NoCredentialsError
from openai import InvalidWebhookSignatureError, OpenAI

from channel.auth import Caller, Principal
from channel.delivering import may_link
from channel.delivery import (
    ChannelPush,
    Delivery,
    LinkableChannel,
    PushFailedError,
    PushRefusedError,
)
from channel.isolation import IsolationKeys
from channel.ports import StoreError, random_hex
from channel.responses.webhooks import EVENT_TYPES, Endpoint, make_secret
from channel.targets import ChannelIdentity
from infra.dynamodb.client import make_aws_client
from infra.dynamodb.webhooks import WebhookTable
from infra.push_channels.aws import message_of
from infra.push_channels.eventbridge import (
    MAX_ENTRY_BYTES,
    EventBridgePush,
    make_events_client,
)
from infra.push_channels.sns import MAX_MESSAGE_BYTES, SNSPush, make_sns_client
from infra.push_channels.webhook import WebhookPush
from infra.webhook_sender import WebhookSender
from infra.webhook_targets import TargetRefusedError
from tests.channel.asgi import Wire
from tests.infra.conftest import MovableClock
from tests.infra.engines import TABLE
from tests.infra.receivers import Receiver, listening


pytestmark = pytest.mark.anyio

REGION = "eu-west-1"
KEYS = IsolationKeys("acme/ann", "chat-1")
ANN = Caller(Principal("acme", is_delegate=True), KEYS)
EVE = Caller(Principal("evil"), IsolationKeys("evil"))
DELIVERY = Delivery(
    id="dlv_0123456789abcdef0123456789abcdef",
    response_id="resp_1",
    status="completed",
    text='Grüße, "🌍"!\n',
    channel="responses",
    principal="acme",
    keys=KEYS,
    created_at=1_800_000_000,
)
MESSAGE = {
    "id": DELIVERY.id,
    "response_id": "resp_1",
    "status": "completed",
    "text": DELIVERY.text,
    "channel": "responses",
    "principal": "acme",
    "user_key": "acme/ann",
    "chat_key": "chat-1",
    "native_id": "desk-7",
    "attributes": {"floor": 3},
    "created_at": 1_800_000_000,
}
DESK = {"native_id": "desk-7", "attributes": {"floor": 3}}


def saying(text: str, **fields: Any) -> Delivery:
    return msgspec.structs.replace(DELIVERY, text=text, **fields)


# --- webhooks --------------------------------------------------------------------------------------


def endpoint(url: str, **fields: Any) -> Endpoint:
    made: dict[str, Any] = {
        "id": f"we_{random_hex(12)}",
        "principal": "acme",
        "url": url,
        "secret": make_secret(random_hex),
        "event_types": tuple(EVENT_TYPES.values()),
        "created_at": 1,
    }
    return Endpoint(**{**made, **fields})


class Rows:
    """Endpoints in memory."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.listed = endpoints

    async def endpoints(self, principal: str, /) -> Sequence[Endpoint]:
        return [each for each in self.listed if each.principal == principal]


class BrokenRows:
    """A table that does not answer."""

    async def endpoints(self, _principal: str, /) -> Sequence[Endpoint]:
        raise StoreError("DynamoDB could not be reached.")


class Sender:
    """Says one thing to each post: a status, or an exception."""

    def __init__(self, said: int | Exception) -> None:
        self.said = said
        self.posts = 0

    async def post(self, url: str, headers: Any, body: bytes) -> int:
        self.posts += 1
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def to(found: Endpoint) -> ChannelIdentity:
    return ChannelIdentity("webhook", found.id)


async def test_a_delivery_is_posted_once_in_words_that_the_openai_client_verifies() -> None:
    receiver = Receiver()
    async with listening(receiver) as port:
        hook = endpoint(f"http://127.0.0.1:{port}/hook", event_types=("response.failed",))
        push = WebhookPush(Rows(hook), WebhookSender(allow_private=True))
        await push.push(to(hook), DELIVERY)

    (posted,) = receiver.got
    assert posted.headers["webhook-id"] == DELIVERY.id
    assert json.loads(posted.body) == {
        "id": DELIVERY.id,
        "object": "event",
        "type": "response.delivery",
        "created_at": 1_800_000_000,
        "data": {
            "id": "resp_1",
            "status": "completed",
            "text": DELIVERY.text,
            "channel": "responses",
        },
    }
    webhooks = OpenAI(api_key="k").webhooks
    webhooks.verify_signature(posted.body, posted.headers, secret=hook.secret)
    event: Any = webhooks.unwrap(posted.body, posted.headers, secret=hook.secret)
    assert (event.type, event.data.text) == ("response.delivery", DELIVERY.text)
    with pytest.raises(InvalidWebhookSignatureError):
        webhooks.unwrap(posted.body + b" ", posted.headers, secret=hook.secret)


async def test_an_attempt_is_signed_at_its_own_time_and_says_the_same() -> None:
    receiver, clock = Receiver(), MovableClock()
    async with listening(receiver) as port:
        hook = endpoint(f"http://127.0.0.1:{port}/")
        push = WebhookPush(Rows(hook), WebhookSender(allow_private=True), clock=clock)
        await push.push(to(hook), DELIVERY)
        clock.now += 3600
        await push.push(to(hook), DELIVERY)

    first, second = receiver.got
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    stamps = [each.headers["webhook-timestamp"] for each in receiver.got]
    assert stamps == ["1800000000", "1800003600"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_a_status_that_may_pass_is_a_failure(status: int) -> None:
    hook, sender = endpoint("https://a.example/"), Sender(status)

    with pytest.raises(PushFailedError, match=f"^HTTP {status}$"):
        await WebhookPush(Rows(hook), sender).push(to(hook), DELIVERY)
    assert sender.posts == 1


@pytest.mark.parametrize("status", [301, 400, 404, 410])
async def test_a_status_that_will_not_pass_is_a_refusal(status: int) -> None:
    hook = endpoint("https://a.example/")

    with pytest.raises(PushRefusedError, match=f"^HTTP {status}$"):
        await WebhookPush(Rows(hook), Sender(status)).push(to(hook), DELIVERY)


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError("10.0.0.1")])
async def test_where_no_status_came_it_is_a_failure_that_names_no_address(error: Exception) -> None:
    hook = endpoint("https://a.example/")

    with pytest.raises(PushFailedError) as raised:
        await WebhookPush(Rows(hook), Sender(error)).push(to(hook), DELIVERY)
    assert str(raised.value) == type(error).__name__
    assert isinstance(raised.value, OSError)


async def test_nothing_is_posted_where_nothing_may_be_sent() -> None:
    hook = endpoint("https://127.0.0.1/")

    with pytest.raises(PushRefusedError) as raised:
        await WebhookPush(Rows(hook), WebhookSender()).push(to(hook), DELIVERY)
    assert isinstance(raised.value.__cause__, TargetRefusedError)


async def test_a_foreign_endpoint_and_a_disabled_one_equal_an_unknown_one() -> None:
    own = endpoint("https://a.example/", is_disabled=True)
    foreign = endpoint("https://b.example/", principal="other")
    sender = Sender(200)
    push = WebhookPush(Rows(own, foreign), sender)

    said = []
    for native_id in (own.id, foreign.id, "we_unknown", "https://c.example/"):
        with pytest.raises(PushRefusedError) as raised:
            await push.push(ChannelIdentity("webhook", native_id), DELIVERY)
        said.append(str(raised.value))
        assert await push.may_link(ANN, native_id) is False
    assert said == ["There is no such webhook endpoint."] * 4
    assert sender.posts == 0


async def test_an_endpoint_is_its_own_principals_to_link() -> None:
    hook = endpoint("https://a.example/")
    push = WebhookPush(Rows(hook), Sender(200))

    assert await push.may_link(ANN, hook.id) is True
    assert await push.may_link(EVE, hook.id) is False


async def test_a_table_that_cannot_be_read_is_no_refusal() -> None:
    push = WebhookPush(BrokenRows(), Sender(200))

    with pytest.raises(StoreError):
        await push.push(ChannelIdentity("webhook", "we_1"), DELIVERY)
    with pytest.raises(StoreError):
        await push.may_link(ANN, "we_1")


async def test_the_endpoints_are_those_of_the_table(moto_client: Any) -> None:
    table = WebhookTable(moto_client, TABLE)
    hook = await table.register("acme", "https://a.example/")
    push = WebhookPush(table, Sender(204))

    await push.push(to(hook), DELIVERY)
    assert await push.may_link(ANN, hook.id)
    await table.disable(hook.id)
    assert not await push.may_link(ANN, hook.id)


# --- EventBridge and SNS ---------------------------------------------------------------------------


@dataclass
class Account:
    """An AWS account of moto's: its clients, and a queue that hears what is pushed."""

    events: Any
    sns: Any
    sqs: Any
    name: str
    """What no other test calls anything: moto keeps what is there while another fixture uses it."""

    def queue(self, suffix: str = "") -> tuple[str, str]:
        """Make a queue; return its URL and its ARN."""
        fifo = {"FifoQueue": "true"} if suffix else {}
        made = self.sqs.create_queue(QueueName=self.name + suffix, Attributes=fifo)
        url = made["QueueUrl"]
        told = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return url, told["Attributes"]["QueueArn"]

    def heard(self, url: str) -> list[dict[str, Any]]:
        """Return the messages of a queue, with what SQS knows of them."""
        told = self.sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"]
        )
        found: list[dict[str, Any]] = told.get("Messages", [])
        return found


@pytest.fixture
def account() -> Iterator[Account]:
    from moto import mock_aws  # noqa: PLC0415 - slow to import

    with mock_aws():
        clients = [make_aws_client(name, REGION) for name in ("events", "sns", "sqs")]
        events, sns, sqs = clients
        yield Account(events, sns, sqs, f"replies-{random_hex(4)}")
        for client in clients:
            client.close()


class Client:
    """Says one thing to each call: a reply, or an exception."""

    def __init__(self, said: dict[str, Any] | Exception) -> None:
        self.said = said
        self.calls = 0
        self.made = 0

    def make(self) -> "Client":
        self.made += 1
        return self

    def _say(self, **_: Any) -> dict[str, Any]:
        self.calls += 1
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    put_events = publish = _say


Make = Callable[[Client], ChannelPush]


def bus_of(client: Client) -> ChannelPush:
    return EventBridgePush(client.make, "replies")


def topic_of(client: Client) -> ChannelPush:
    return SNSPush(client.make, f"arn:aws:sns:{REGION}:123456789012:replies")


def coded(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "the user's words"}}, "Call")


def desk(name: str) -> ChannelIdentity:
    return ChannelIdentity(name, "desk-7", {"floor": 3})


@pytest.mark.parametrize("is_named_by_its_arn", [True, False])
async def test_a_delivery_is_one_event_that_says_whose_it_is(
    account: Account, is_named_by_its_arn: bool
) -> None:
    bus = account.events.create_event_bus(Name=account.name)["EventBusArn"]
    named = bus if is_named_by_its_arn else account.name
    asked: list[dict[str, Any]] = []

    def make() -> Any:
        client = make_events_client(named, REGION)
        client.meta.events.register("before-send.eventbridge.PutEvents", note)
        return client

    def note(request: Any, **_: Any) -> None:
        asked.append(json.loads(request.body))

    await EventBridgePush(make, named).push(desk("eventbridge"), DELIVERY)

    ((entry,),) = [each["Entries"] for each in asked]
    assert json.loads(entry.pop("Detail")) == MESSAGE
    assert entry == {
        "EventBusName": named,
        "Source": "lambda-responses",
        "DetailType": "response.delivery",
    }


async def test_a_bus_that_the_engine_does_not_find_is_a_refusal(account: Account) -> None:
    push = EventBridgePush(lambda: account.events, "no-such-bus")

    with pytest.raises(PushRefusedError, match=r"^ResourceNotFoundException$"):
        await push.push(desk("eventbridge"), DELIVERY)


async def test_a_delivery_is_a_message_whose_attributes_a_subscription_filters_by(
    account: Account,
) -> None:
    url, arn = account.queue()
    topic = account.sns.create_topic(Name=account.name)["TopicArn"]
    account.sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=arn,
        Attributes={"FilterPolicy": json.dumps({"principal": ["acme"], "status": ["completed"]})},
    )

    push = SNSPush(lambda: make_sns_client(topic), topic)
    await push.push(desk("sns"), DELIVERY)
    await push.push(desk("sns"), saying("filtered", status="failed"))

    (message,) = [json.loads(each["Body"]) for each in account.heard(url)]
    assert json.loads(message["Message"]) == MESSAGE
    values = {name: each["Value"] for name, each in message["MessageAttributes"].items()}
    assert values == {"principal": "acme", "native_id": "desk-7", "status": "completed"}


async def test_a_fifo_topic_takes_a_delivery_once_and_keeps_each_identitys_order(
    account: Account,
) -> None:
    url, arn = account.queue(".fifo")
    fifo = {"FifoTopic": "true"}
    topic = account.sns.create_topic(Name=f"{account.name}.fifo", Attributes=fifo)["TopicArn"]
    account.sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    push = SNSPush(lambda: make_sns_client(topic), topic)

    await push.push(desk("sns"), DELIVERY)
    await push.push(desk("sns"), DELIVERY)
    await push.push(desk("sns"), saying("second", id="dlv_2"))
    await push.push(ChannelIdentity("sns", "desk-8"), saying("other", id="dlv_3"))

    heard = [each["Attributes"] for each in account.heard(url)]
    assert [each["MessageDeduplicationId"] for each in heard] == [DELIVERY.id, "dlv_2", "dlv_3"]
    first, second, other = [each["MessageGroupId"] for each in heard]
    assert first == second != other


async def test_characters_that_queues_do_not_take_are_escaped() -> None:
    asked: list[dict[str, Any]] = []

    class Topic:
        def publish(self, **arguments: Any) -> dict[str, Any]:
            asked.append(arguments)
            return {}

    text = "a\uffff\\\ufffe\x00b"
    push = SNSPush(Topic, "arn:aws:sns:eu-west-1:123456789012:replies")
    await push.push(desk("sns"), saying(text))

    message = asked[0]["Message"]
    assert json.loads(message)["text"] == text
    assert not {"\uffff", "\ufffe", "\x00"} & set(message)


@pytest.mark.parametrize("make", [bus_of, topic_of])
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (coded("AccessDeniedException"), PushRefusedError, "AccessDeniedException"),
        (coded("AuthorizationError"), PushRefusedError, "AuthorizationError"),
        (coded("ResourceNotFoundException"), PushRefusedError, "ResourceNotFoundException"),
        (coded("NotFound"), PushRefusedError, "NotFound"),
        (coded("ValidationException"), PushRefusedError, "ValidationException"),
        (coded("KMSAccessDenied"), PushRefusedError, "KMSAccessDenied"),
        (coded("KMSThrottling"), PushFailedError, "KMSThrottling"),
        (coded("ThrottlingException"), PushFailedError, "ThrottlingException"),
        (coded("InternalException"), PushFailedError, "InternalException"),
        (coded("ExpiredTokenException"), PushFailedError, "ExpiredTokenException"),
        (NoCredentialsError(), PushFailedError, "NoCredentialsError"),
        (
            ConnectTimeoutError(endpoint_url="https://sns.example"),
            PushFailedError,
            "ConnectTimeoutError",
        ),
    ],
)
async def test_an_error_of_aws_is_a_failure_or_a_refusal_by_its_code_alone(
    make: Make, error: Exception, kind: type[Exception], said: str
) -> None:
    client = Client(error)

    with pytest.raises(kind) as raised:
        await make(client).push(desk("x"), DELIVERY)
    assert (type(raised.value), str(raised.value)) == (kind, said)
    assert client.calls == 1


@pytest.mark.parametrize(
    ("entry", "kind", "said"),
    [
        ({"ErrorCode": "InternalFailure"}, PushFailedError, "InternalFailure"),
        ({"ErrorCode": "ThrottlingException"}, PushFailedError, "ThrottlingException"),
        ({"ErrorCode": "MalformedDetail"}, PushRefusedError, "MalformedDetail"),
        (
            {"ErrorCode": "NotAuthorizedForSourceException"},
            PushRefusedError,
            "NotAuthorizedForSourceException",
        ),
        ({}, PushFailedError, "FailedEntry"),
    ],
)
async def test_an_entry_that_failed_is_an_error_though_the_call_succeeded(
    entry: dict[str, str], kind: type[Exception], said: str
) -> None:
    told = {"FailedEntryCount": 1, "Entries": [{**entry, "ErrorMessage": "the user's words"}]}

    with pytest.raises(kind) as raised:
        await bus_of(Client(told)).push(desk("x"), DELIVERY)
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("make", "most"), [(bus_of, MAX_ENTRY_BYTES), (topic_of, MAX_MESSAGE_BYTES)]
)
async def test_what_is_too_large_is_refused_before_it_is_sent(make: Make, most: int) -> None:
    client = Client({"FailedEntryCount": 0, "Entries": [{}]})
    push = make(client)
    await push.push(desk("x"), saying("x" * (most - 2048)))

    with pytest.raises(PushRefusedError, match="too large"):
        await push.push(desk("x"), saying("ü" * (most // 2)))
    assert client.calls == 1


async def test_what_a_topic_finds_too_large_is_refused(account: Account) -> None:
    topic = account.sns.create_topic(Name=account.name)["TopicArn"]
    push = SNSPush(lambda: make_sns_client(topic), topic)

    with pytest.raises(PushRefusedError, match=r"^InvalidParameter$"):
        await push.push(desk("sns"), saying("x" * 256 * 1024))


async def test_a_client_is_made_at_the_first_push_and_kept() -> None:
    client = Client({"MessageId": "1"})
    push = topic_of(client)
    assert client.made == 0

    await push.push(desk("sns"), DELIVERY)
    await push.push(desk("sns"), DELIVERY)
    assert (client.made, client.calls) == (1, 2)


@pytest.mark.parametrize("make", [bus_of, topic_of])
async def test_any_label_may_be_linked_that_can_be_a_native_id(make: Make) -> None:
    push = make(Client({}))

    assert isinstance(push, LinkableChannel)
    given = ("desk-7", "Büro 7", "", "a\nb", "x" * 513)
    found = [await may_link(push, EVE, each) for each in given]
    assert found == [True, True, False, False, False]


def test_a_client_is_of_the_region_that_the_arn_names() -> None:
    bus = "arn:aws:events:eu-north-1:123456789012:event-bus/replies"
    topic = "arn:aws:sns:us-west-2:123456789012:replies"
    clients = [
        make_events_client(bus, "eu-west-1"),
        make_events_client("replies", "eu-west-1"),
        make_sns_client(topic),
    ]

    regions = [client.meta.region_name for client in clients]
    assert regions == ["eu-north-1", "eu-west-1", "us-west-2"]
    assert {client.meta.config.retries["total_max_attempts"] for client in clients} == {1}
    for client in clients:
        client.close()


# --- what the settings make ------------------------------------------------------------------------

MADE = """
import json, sys
from handler.app import _push_channels
from infra.settings import Settings

channels = _push_channels(Settings.from_env(json.loads(sys.argv[1])), None)
print(json.dumps([[channel.name for channel in channels], sorted(sys.modules)]))
"""


def made(**environ: str) -> tuple[list[str], set[str]]:
    """Return the names of the channels that settings make, and what a fresh process imports for them."""
    command = [sys.executable, "-c", MADE, json.dumps(environ)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names, modules = json.loads(done.stdout)
    return names, set(modules)


async def test_the_channels_are_those_of_the_settings_and_need_no_boto3_until_they_push() -> None:
    topic = "sns:arn:aws:sns:eu-west-1:123456789012:replies"
    every = {"TABLE_NAME": "table", "PUSH_CHANNELS": f"webhook,eventbridge:bus,{topic}"}
    nothing, names = await asyncio.gather(
        asyncio.to_thread(made), asyncio.to_thread(lambda: made(**every))
    )

    assert nothing[0] == []
    assert not {each for each in nothing[1] if each.startswith("infra.push_channels")}
    assert names[0] == ["webhook", "eventbridge", "sns"]
    assert not names[1] & {"boto3", "botocore"}


async def test_without_a_table_there_are_no_endpoints_to_push_to() -> None:
    names, _ = await asyncio.to_thread(lambda: made(PUSH_CHANNELS="webhook"))

    assert names == []


# --- what the documentation says of consumers ------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "delivery.md"


def documented(language: str) -> list[str]:
    """Return the blocks of the section on push channels, in order."""
    section = f"\n{DOCS.read_text()}".partition("\n## Push channels\n")[2]
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    return found


async def test_the_receiver_of_the_documentation_takes_a_delivery_once_and_no_other_post(
    capsys: pytest.CaptureFixture[str],
) -> None:
    receiver, names = Receiver(), dict[str, Any]()
    async with listening(receiver) as port:
        hook = endpoint(f"http://127.0.0.1:{port}/")
        await WebhookPush(Rows(hook), WebhookSender(allow_private=True)).push(to(hook), DELIVERY)
    (posted,) = receiver.got

    exec(documented("python")[0], names)
    names["SECRET"] = hook.secret
    statuses = []
    for body in (posted.body, posted.body, posted.body + b" "):
        wire = Wire("POST", "/replies", body=body, headers=posted.headers)
        statuses.append((await wire.run(names["receiver"])).status)
    names["client"].close()

    assert statuses == [204, 204, 400]
    assert capsys.readouterr().out == f"resp_1 {DELIVERY.text}\n"


async def test_the_consumer_of_the_documentation_takes_events_and_messages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, Any] = {}
    exec(documented("python")[1], names)
    message = message_of(desk("sns"), DELIVERY)

    names["handler"]({"detail-type": "response.delivery", "detail": json.loads(message)}, None)
    names["handler"]({"Records": [{"Sns": {"Message": message}}]}, None)

    assert capsys.readouterr().out == f"acme desk-7 {DELIVERY.text}\n" * 2


def test_the_shapes_of_the_documentation_are_those_of_the_messages() -> None:
    posted, message, rule = [json.loads(block) for block in documented("json")]

    sent = json.loads(message_of(desk("sns"), DELIVERY))
    assert list(message) == list(sent)
    assert [*posted, *posted["data"]] == [
        *("id", "object", "type", "created_at", "data"),
        *("id", "status", "text", "channel"),
    ]
    assert set(rule["detail"]) <= set(sent)
