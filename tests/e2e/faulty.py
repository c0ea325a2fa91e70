"""A deployment whose table and whose Lambda fail at a chosen call, and what is true of it afterwards."""

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any, Final, Generic, TypeVar

import msgspec
from botocore.awsrequest import AWSResponse
from moto.core.models import botocore_stubber

from channel.agent import Turn
from channel.host import AgentHost
from channel.isolation import IsolationKeys
from channel.ports import Branch, Job, StoredTurn, StoreError
from channel.responses.channel import ResponsesChannel
from infra.dynamodb.client import create_table, make_aws_client
from infra.dynamodb.conversations import DynamoDBConversationStore
from infra.dynamodb.idempotency import DynamoDBIdempotencyStore
from infra.dynamodb.runs import DynamoDBRunStore
from infra.dynamodb.store import DynamoDBResponseStore
from infra.dynamodb.webhooks import WebhookTable
from infra.invoke import SelfInvoker
from infra.webhook_deliveries import WebhookDeliveries
from tests.channel.asgi import KEYS, Wire
from tests.channel.instances import Instance
from tests.infra.conftest import MovableClock
from tests.infra.hooks import OUTAGE, Died, Fault
from tests.infra.turns import own_secret


STRIKES: Final = ("throttle", "timeout_after_success", "death_after_success", OUTAGE)
"""A call that fails before it does anything, and one that fails after it; and for good, either way."""

INTERNAL: Final = (
    *("dynamo", "boto", "throughput", "lambda", "timeout", "traceback", ".py", "storeerror"),
    *("endpoint", "table", "exception", "127.0.0.1"),
)
"""What no reply says, in lower case."""

_Given = TypeVar("_Given")
_tables = count()


class Invocations:
    """The `http_session` of a Lambda client: takes what is invoked, and holds it as jobs."""

    def __init__(self) -> None:
        self.held: list[Job] = []

    def send(self, request: Any) -> AWSResponse:
        self.held.append(msgspec.json.decode(request.body, type=Job))
        return AWSResponse(request.url, 202, {}, io.BytesIO())

    def close(self) -> None: ...


class Posts:
    """The sender of webhooks: every endpoint takes everything; `types` tells of which events."""

    def __init__(self) -> None:
        self.types: list[str] = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        self.types.append(msgspec.json.decode(body)["type"])
        return 200


@dataclass(frozen=True)
class Clients:
    """Clients of one table engine and one Lambda: healthy ones, and fragile ones, which try once."""

    healthy: Any
    fragile: Any
    healthy_lambda: Any
    fragile_lambda: Any
    invocations: Invocations


@contextmanager
def clients(connect: Callable[..., AbstractContextManager[Any]]) -> Iterator[Clients]:
    invocations = Invocations()
    healthy, fragile = (_lambda_client(invocations) for _ in range(2))
    with connect() as client, connect(attempts=1) as other:
        yield Clients(client, other, healthy, fragile, invocations)


def _lambda_client(invocations: Invocations) -> Any:
    client = make_aws_client("lambda", "eu-west-1", "http://127.0.0.1:9", attempts=1)
    client.meta.events.unregister("before-send", botocore_stubber)
    client._endpoint.http_session.close()
    client._endpoint.http_session = invocations
    return client


@dataclass(frozen=True)
class Struck(Generic[_Given]):
    """What came of something that was done while the call number `at` failed."""

    kind: str
    at: int
    given: _Given
    reply: Any = None
    failure: BaseException | None = None

    @property
    def has_reply(self) -> bool:
        """Whether it came to its end."""
        return self.failure is None

    @property
    def is_for_good(self) -> bool:
        """Whether nothing could be done any more about the failure."""
        return isinstance(self.failure, Died) or self.kind == OUTAGE


@dataclass
class Deployment:
    """A table of its own, with a webhook endpoint, and the processes over it.

    `saved` are the ids of all responses that were, or were to be, stored.
    """

    clients: Clients
    answer: str = "42"
    clock: MovableClock = field(default_factory=MovableClock)
    posts: Posts = field(default_factory=Posts)
    ran: list[Turn] = field(default_factory=list)
    saved: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.table = f"faulty-{next(_tables)}"
        self.secret = own_secret()
        create_table(self.clients.healthy, self.table)
        self.clients.invocations.held.clear()

    @cached_property
    def healthy(self) -> Instance:
        return self.process(self.clients.healthy, self.clients.healthy_lambda)

    @cached_property
    def runs(self) -> DynamoDBRunStore:
        at: Any = {"client": self.clients.healthy, "table": self.table, "clock": self.clock}
        return DynamoDBRunStore(**at, secret=self.secret)

    def process(self, client: Any, lambda_client: Any, **options: Any) -> Instance:
        """Return an instance of the app in a new process."""
        at: Any = {"client": client, "table": self.table, "clock": self.clock}
        stores: dict[str, Any] = {
            "store": _NotingStore(self.saved, **at, secret=self.secret),
            "conversations": DynamoDBConversationStore(**at, secret=self.secret),
            "runs": DynamoDBRunStore(**at, secret=self.secret),
            "idempotency": DynamoDBIdempotencyStore(**at, secret=self.secret),
        }
        channel = ResponsesChannel(
            **stores,
            clock=self.clock,
            keepalive_s=0,
            jobs=SelfInvoker(lambda: lambda_client, "agent:live"),
            webhooks=WebhookDeliveries(WebhookTable(client, self.table), self.posts),
            **options,
        )
        return Instance(AgentHost(self._agent, channels=[channel], authenticator=KEYS))

    async def register_webhook(self) -> None:
        await WebhookTable(self.clients.healthy, self.table).register("alpha", "https://a.example/")

    async def strikes(
        self,
        kind: str,
        act: Callable[[Instance, _Given], Awaitable[Any]],
        given: Callable[[], Awaitable[_Given]],
        *,
        calls: int,
        goes_on: bool = False,
        **options: Any,
    ) -> AsyncIterator[Struck[_Given]]:
        """Do something again and again, each time with the next of its calls struck, to the last one.

        What `goes_on` makes more calls than these, nobody knows how many.
        """
        for at in count():
            made = await given()
            struck, has_struck = await self._strike(kind, at, act, made, options)
            assert has_struck == (at < calls or goes_on), f"it does not make {calls} calls"
            if at == calls:
                return
            if isinstance(struck.reply, Wire) and struck.reply.sent:
                require_no_leak(struck.reply)
            yield struck
            if at == calls - 1 and (goes_on or kind != STRIKES[0]):
                return

    async def _strike(
        self,
        kind: str,
        at: int,
        act: Callable[[Instance, _Given], Awaitable[Any]],
        given: _Given,
        options: Mapping[str, Any],
    ) -> tuple[Struck[_Given], bool]:
        client, lambda_client = self.clients.fragile, self.clients.fragile_lambda
        process = self.process(client, lambda_client, **options)
        with Fault(client, kind, at, lambda_client) as fault:
            try:
                struck = Struck(kind, at, given, await act(process, given))
            except (Died, StoreError) as failure:
                struck = Struck(kind, at, given, failure=failure)
        return struck, fault.has_struck

    async def run_jobs(self) -> None:
        """Run what Lambda holds, as it does, until that is nothing."""
        held = self.clients.invocations.held
        while held:
            await self.healthy.work(held.pop(0))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of this tenant."""
        found = self.clients.healthy.scan(TableName=self.table, ConsistentRead=True)["Items"]
        return [row for row in found if row["pk"]["S"].startswith("t#")]

    async def status(self, response_id: str) -> str | None:
        """Return what a response is, or None where there is none; require that it is whole."""
        got = await self.healthy.get(response_id)
        if got.status == 404:
            return None
        response = got.json
        whole = f"It is: {self.answer}"
        said = "".join(part["text"] for item in response["output"] for part in item["content"])
        assert said == whole if response["status"] == "completed" else whole.startswith(said)
        assert (response["error"] is not None) == (response["status"] == "failed")
        return str(response["status"])

    async def _agent(self, turn: Turn) -> AsyncIterator[str]:
        self.ran.append(turn)
        yield "It is: "
        yield self.answer


class _NotingStore(DynamoDBResponseStore):
    """Notes what it is to save."""

    def __init__(self, saved: set[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._saved = saved

    async def save(self, isolation: IsolationKeys, branch: Branch, turn: StoredTurn, /) -> None:
        self._saved.add(turn.response.id)
        await super().save(isolation, branch, turn)


def require_no_leak(reply: Wire) -> None:
    said = reply.body.decode().lower()
    assert [word for word in INTERNAL if word in said] == []


def require_retry(reply: Wire) -> None:
    """Require that the client is told of a failure before anything ran, in OpenAI's shape."""
    assert (reply.status, reply.headers["x-should-retry"]) == (503, "true")
    require_error(reply)


def require_error(reply: Wire) -> None:
    assert reply.json.keys() == {"error"}
    assert reply.error_body.keys() == {"message", "type", "param", "code"}
    assert reply.error_body["type"] == "server_error"
    assert reply.headers["x-request-id"] in reply.error_body["message"]
