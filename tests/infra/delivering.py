"""Hosts that deliver: a channel with two ends, destinations that fail as they are told, and ports over each engine."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from starlette.types import Receive, Scope, Send

from channel.auth import Caller, FixedKeys, Principal
from channel.contract import ChannelContext, ChannelContribution, PlainRoute
from channel.delivery import Delivery, DeliveryOptions, IdentityStore, UndeliveredStore
from channel.host import AgentHost
from channel.http import JSONReply, read_body
from channel.memory_delivery import InMemoryIdentityStore, InMemoryUndeliveredStore
from channel.ports import Job, random_hex
from channel.responses.channel import ResponsesChannel
from channel.responses.protocol.items import message
from channel.responses.protocol.requests import CreateResponse
from channel.responses.replies import WholeReply
from channel.responses.stateless import StatelessTurns
from channel.targets import ChannelIdentity
from infra.dynamodb.identities import DynamoDBIdentityStore
from infra.dynamodb.undelivered import DynamoDBUndeliveredStore
from tests.channel.asgi import KEYS, Wire, request
from tests.infra import engines
from tests.infra.turns import own_secret


class Inbox:
    """A destination: what it got, and what it does instead of taking it."""

    def __init__(self, name: str, *, links: Callable[[Caller, str], bool] | None = None) -> None:
        self.name = name
        self.got: list[tuple[ChannelIdentity, Delivery]] = []
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.tried = 0
        self.reached = asyncio.Event()
        self._links = links or (lambda _caller, _native_id: True)

    async def push(self, identity: ChannelIdentity, payload: Delivery, /) -> None:
        self.tried += 1
        self.reached.set()
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.got.append((identity, payload))

    async def may_link(self, caller: Caller, native_id: str, /) -> bool:
        return self._links(caller, native_id)

    @property
    def texts(self) -> list[str]:
        return [payload.text for _, payload in self.got]

    @property
    def ids(self) -> list[str]:
        return [identity.native_id for identity, _ in self.got]


class Chat(Inbox):
    """A channel with two ends, such as a chat app: messages come in at its route, and replies go out."""

    path = "/chat"

    def contribute(self, context: ChannelContext, /) -> ChannelContribution:
        said = _Said(StatelessTurns(context, name=self.name))
        return ChannelContribution(routes=[PlainRoute("", said, ["POST"])])


class _Said:
    def __init__(self, turns: StatelessTurns) -> None:
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        words = (await read_body(scope, receive)).decode()
        who, _, text = words.partition(": ")
        turn = await self._turns.begin(scope, CreateResponse(user=who), [message("user", text)])
        reply = WholeReply(lambda: JSONReply({"text": turn.response.output_text}), send)
        await self._turns.serve(turn, reply, receive, started_at=monotonic())


class Ports:
    """The ports of delivery over one engine; each call of `options` is another instance over them."""

    def __init__(self, client: Any = None) -> None:
        self._client = client
        self._secret = own_secret()
        self.principal = f"alpha-{random_hex(4)}"  # what did not arrive is the principal's
        self._memory = InMemoryIdentityStore(), InMemoryUndeliveredStore()

    @property
    def identities(self) -> IdentityStore:
        if self._client is None:
            return self._memory[0]
        return DynamoDBIdentityStore(self._client, engines.TABLE, secret=self._secret)

    @property
    def undelivered(self) -> UndeliveredStore:
        if self._client is None:
            return self._memory[1]
        return DynamoDBUndeliveredStore(self._client, engines.TABLE)

    def options(self, *inboxes: Inbox, **more: Any) -> DeliveryOptions:
        given = {"authorize": lambda _caller, _destination: True, **more}
        return DeliveryOptions(
            identities=self.identities,
            undelivered=self.undelivered,
            push_channels=inboxes,
            **given,
        )

    @property
    def keys(self) -> FixedKeys:
        return FixedKeys({"key-alpha": Principal(self.principal)})


class KeptJobs:
    """The `Jobs` of a function whose worker has not come yet."""

    def __init__(self) -> None:
        self.started: list[Job] = []
        self.fault: Exception | None = None
        self._has_any = asyncio.Event()

    async def start(self, job: Job, /) -> None:
        if self.fault is not None:
            raise self.fault
        self.started.append(job)
        self._has_any.set()

    async def first(self) -> Job:
        await self._has_any.wait()
        return self.started[0]


def host(
    agent: Any,
    options: DeliveryOptions,
    *channels: Any,
    keys: FixedKeys = KEYS,
    **responses: Any,
) -> AgentHost:
    channel = ResponsesChannel(**{"keepalive_s": 0, **responses})
    return AgentHost(agent, channels=[channel, *channels], authenticator=keys, delivery=options)


async def link(
    app: Any, channel: str, native_id: str, *, key: str = "key-alpha", **more: Any
) -> Wire:
    body = {"native_id": native_id, **more}
    return await request("PUT", f"/v1/identities/{channel}", body, key=key).run(app)
