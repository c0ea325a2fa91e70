"""Webhook endpoints in the table, and the dead letters of those that did not take an event.

Endpoints are in `hook#<principal>`, and are made and removed by the owner alone. A signing secret is
stored as it is, since signing needs it: who can read the table can sign. The partition `cfg#hooks`
names the principal of each endpoint. Dead letters have a partition of their own, `dead#<principal>`,
so that a deployment may let the function write these and not the endpoints.
"""

import re
import time
from collections.abc import Iterable, Sequence
from typing import Final

from channel.auth import Principal
from channel.ports import Clock, NewToken, random_hex
from channel.responses.webhooks import EVENT_TYPES, DeadLetter, Endpoint, make_secret
from infra.dynamodb.client import Client, ConditionFailedError, Table
from infra.dynamodb.keys import principal_partition
from infra.dynamodb.rows import AttributeValues
from infra.webhook_targets import parse_target


MAX_ENDPOINTS: Final = 10
"""Endpoints of a principal."""
DEAD_LETTER_S: Final = 7 * 24 * 3600

_ID_BYTES: Final = 12
_ENDPOINT_ID: Final = re.compile(r"we_[0-9a-f]{24}")
_INDEX: Final = "cfg#hooks"
_ALL_TYPES: Final = tuple(EVENT_TYPES.values())
_MAX_PRINCIPAL: Final = 128


class WebhookTable:
    """The endpoints and dead letters of a table; every method raises `StoreError`."""

    def __init__(
        self,
        client: Client,
        table: str,
        *,
        clock: Clock = time.time,
        new_token: NewToken = random_hex,
    ) -> None:
        """Take a client of `make_client`."""
        self._table = Table(client, table)
        self._clock = clock
        self._new_token = new_token

    async def register(
        self,
        principal: str,
        url: str,
        event_types: Iterable[str] = _ALL_TYPES,
        *,
        allow_private: bool = False,
    ) -> Endpoint:
        """Add an endpoint of a principal, with a new secret.

        Raises `ValueError` with its reason for a name, a URL or an event type that is not allowed,
        and where the principal has `MAX_ENDPOINTS` already. Two that register at the same time
        may both be the last.
        """
        _require_principal(principal)
        parse_target(url, allow_private=allow_private)
        wanted = _known_types(event_types)
        if len(await self._query(principal, is_strong=True)) >= MAX_ENDPOINTS:
            msg = f"{principal} has {MAX_ENDPOINTS} webhook endpoints already; delete one of them first."
            raise ValueError(msg)
        endpoint = Endpoint(
            id=f"we_{self._new_token(_ID_BYTES)}",
            principal=principal,
            url=url,
            secret=make_secret(self._new_token),
            event_types=wanted,
            created_at=int(self._clock()),
        )
        # The name first: an endpoint that is told but not listed could not be found and deleted.
        await self._table.put(
            {"pk": {"S": _INDEX}, "sk": {"S": endpoint.id}, "p": {"S": principal}}
        )
        await self._table.put(_endpoint_item(endpoint))
        return endpoint

    async def endpoints(self, principal: str, /) -> list[Endpoint]:
        """Return the endpoints of a principal, the disabled ones too, oldest first."""
        return await self._query(principal, is_strong=False)

    async def all_endpoints(self) -> list[Endpoint]:
        """Return the endpoints of all principals, by principal, oldest first."""
        found: list[Endpoint] = []
        for principal in await self._principals():
            found += await self._query(principal, is_strong=True)
        return found

    async def delete(self, endpoint_id: str) -> bool:
        """Remove an endpoint; False where there is none. Deliveries under way are not stopped."""
        principal = await self._principal_of(endpoint_id)
        if principal is None:
            return False
        await self._table.delete(principal_partition("hook", principal), endpoint_id)
        await self._table.delete(_INDEX, endpoint_id)
        return True

    async def disable(self, endpoint_id: str, *, is_disabled: bool = True) -> bool:
        """Let an endpoint get no events, or get them again; False where there is none."""
        principal = await self._principal_of(endpoint_id)
        if principal is None:
            return False
        try:
            await self._table.update(
                principal_partition("hook", principal),
                endpoint_id,
                "SET #off = :off",
                names={"#off": "off"},
                values={":off": {"BOOL": is_disabled}},
            )
        except ConditionFailedError:
            return False
        return True

    async def bury(self, letter: DeadLetter, /) -> None:
        """Keep a dead letter for a week."""
        await self._table.put(_letter_item(letter))

    async def dead_letters(self, principal: str | None = None) -> list[DeadLetter]:
        """Return the dead letters of a principal, or of all that have endpoints, oldest first."""
        principals = await self._principals() if principal is None else [principal]
        now = self._clock()
        found: list[DeadLetter] = []
        for each in principals:
            items = await self._table.query(principal_partition("dead", each), is_strong=True)
            # DynamoDB removes what has expired days later.
            found += [_letter(each, item) for item in items if int(item["ttl"]["N"]) >= now]
        return sorted(found, key=lambda letter: letter.at)

    async def _query(self, principal: str, *, is_strong: bool) -> list[Endpoint]:
        items = await self._table.query(principal_partition("hook", principal), is_strong=is_strong)
        endpoints = [_endpoint(principal, item) for item in items]
        return sorted(endpoints, key=lambda endpoint: (endpoint.created_at, endpoint.id))

    async def _principals(self) -> list[str]:
        rows = await self._table.query(_INDEX, is_strong=True)
        return sorted({row["p"]["S"] for row in rows})

    async def _principal_of(self, endpoint_id: str) -> str | None:
        if not _ENDPOINT_ID.fullmatch(endpoint_id):
            return None
        row = await self._table.get(_INDEX, endpoint_id)
        return None if row is None else str(row["p"]["S"])


def _require_principal(name: str) -> None:
    Principal(name)  # raises for a slash
    if not name.isprintable() or " " in name or not 0 < len(name) <= _MAX_PRINCIPAL:
        msg = f"{name!r} cannot be a principal: it takes 1 to {_MAX_PRINCIPAL} printable characters, no space."
        raise ValueError(msg)


def _known_types(event_types: Iterable[str]) -> tuple[str, ...]:
    wanted = frozenset(event_types)
    if not wanted or wanted - frozenset(_ALL_TYPES):
        msg = f"The events of an endpoint are of {', '.join(_ALL_TYPES)}."
        raise ValueError(msg)
    return tuple([event_type for event_type in _ALL_TYPES if event_type in wanted])


def _endpoint_item(endpoint: Endpoint) -> AttributeValues:
    return {
        "pk": {"S": principal_partition("hook", endpoint.principal)},
        "sk": {"S": endpoint.id},
        "u": {"S": endpoint.url},
        "s": {"S": endpoint.secret},
        "ev": {"L": [{"S": event_type} for event_type in endpoint.event_types]},
        "ca": {"N": str(endpoint.created_at)},
        "off": {"BOOL": endpoint.is_disabled},
    }


def _endpoint(principal: str, item: AttributeValues) -> Endpoint:
    return Endpoint(
        id=item["sk"]["S"],
        principal=principal,
        url=item["u"]["S"],
        secret=item["s"]["S"],
        event_types=_strings(item["ev"]["L"]),
        created_at=int(item["ca"]["N"]),
        is_disabled=item["off"]["BOOL"],
    )


def _strings(values: Sequence[dict[str, str]]) -> tuple[str, ...]:
    return tuple([value["S"] for value in values])


def _letter_item(letter: DeadLetter) -> AttributeValues:
    # By time, and then by what makes it another letter: endpoints give up at the same moment.
    sort_key = f"{int(letter.at * 1000):013d}#{letter.event_id}#{letter.endpoint_id}"
    return {
        "pk": {"S": principal_partition("dead", letter.principal)},
        "sk": {"S": sort_key},
        "ty": {"S": letter.event_type},
        "b": {"S": letter.body},
        "why": {"S": letter.reason},
        "n": {"N": str(letter.attempts)},
        "ttl": {"N": str(int(letter.at) + DEAD_LETTER_S)},
    }


def _letter(principal: str, item: AttributeValues) -> DeadLetter:
    at_ms, event_id, endpoint_id = item["sk"]["S"].split("#")
    return DeadLetter(
        principal=principal,
        endpoint_id=endpoint_id,
        event_id=event_id,
        event_type=item["ty"]["S"],
        body=item["b"]["S"],
        reason=item["why"]["S"],
        attempts=int(item["n"]["N"]),
        at=int(at_ms) / 1000,
    )
