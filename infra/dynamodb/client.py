"""The DynamoDB client: how it and its table are made, what of it is used, and its errors translated, once."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from channel.ports import StoreError, call_limit_s
from channel.room import HistoryRoom
from infra.dynamodb.rows import AttributeValues


MAX_CONNECTIONS: Final = 32
_SHORT_CALLS: Final = 2

_Result = TypeVar("_Result")
_Other = TypeVar("_Other")


class Client(Protocol):
    """What is used of a boto3 DynamoDB client."""

    def get_item(self, **arguments: Any) -> dict[str, Any]: ...

    def put_item(self, **arguments: Any) -> dict[str, Any]: ...

    def update_item(self, **arguments: Any) -> dict[str, Any]: ...

    def delete_item(self, **arguments: Any) -> dict[str, Any]: ...

    def query(self, **arguments: Any) -> dict[str, Any]: ...


class ConditionFailedError(StoreError):
    """A conditional write found another state; nothing was written.

    `found` is the row in the way, where a write asked for it and the engine tells (not all do).
    """

    found: AttributeValues | None = None


def make_client(region: str | None, endpoint: str | None = None, *, attempts: int = 4) -> Any:
    """Return a DynamoDB client (`make_aws_client`)."""
    return make_aws_client("dynamodb", region, endpoint, attempts=attempts)


def make_aws_client(
    service: str, region: str | None, endpoint: str | None = None, *, attempts: int = 4
) -> Any:
    """Return a client tuned for Lambda: short time-outs, few attempts, connections kept alive.

    An endpoint over plain http is a local engine, which takes any credentials, so none are looked
    for; without a region it is given one.
    """
    # Imported here, since it takes longer than everything else together.
    import botocore.session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    is_local = endpoint is not None and endpoint.startswith("http://")
    config = Config(
        connect_timeout=1,
        read_timeout=3,
        retries={"mode": "standard", "total_max_attempts": attempts},
        tcp_keepalive=True,
        max_pool_connections=MAX_CONNECTIONS,
    )
    return botocore.session.Session().create_client(
        service,
        # Engines keep regions apart, and nobody means that of one's own machine.
        region_name="us-east-1" if is_local else region,
        endpoint_url=endpoint,
        aws_access_key_id="local" if is_local else None,
        aws_secret_access_key="local" if is_local else None,
        config=config,
    )


async def call(operation: Callable[..., dict[str, Any]], /, **arguments: Any) -> dict[str, Any]:
    """Call the client in a thread; raises `StoreError`, or `ConditionFailedError`.

    Where time is short (`call_limit_s`) the client's own time-outs are too long: a call that takes
    longer is left to itself, and made once more.
    """
    limit_s = call_limit_s.get()
    if limit_s is None:
        return await asyncio.to_thread(_call, operation, arguments)
    for _ in range(_SHORT_CALLS):
        with suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.to_thread(_call, operation, arguments), limit_s)
    raise StoreError("DynamoDB did not answer in the little time there was.")


def _call(operation: Callable[..., dict[str, Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    # Whoever holds a client has imported botocore already.
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        return operation(**arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
            failed = ConditionFailedError("The condition of a write failed.")
            failed.found = error.response.get("Item")
            raise failed from error
        raise StoreError("DynamoDB refused or failed a call.") from error
    except BotoCoreError as error:
        raise StoreError("DynamoDB could not be reached.") from error


async def together(calls: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Await all of the calls at once, to their ends, and only then raise the first error of any."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    done: list[_Result] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done


async def both(
    first: Coroutine[Any, Any, _Result], second: Coroutine[Any, Any, _Other]
) -> tuple[_Result, _Other]:
    """Await two calls at once, like `together`, of results that differ."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other


class Table:
    """One table: its reads and writes, each a call or, for a Query, as many as there are pages."""

    def __init__(self, client: Client, name: str) -> None:
        """Take a client; every call of it is made in a thread."""
        self._client = client
        self._name = name

    async def get(
        self, partition: str, sort_key: str, *attributes: str, is_strong: bool = True
    ) -> AttributeValues | None:
        """Read one row, strongly consistent by default; `attributes` names those wanted, or all."""
        wanted: dict[str, Any] = {}
        if attributes:
            names = {f"#{index}": name for index, name in enumerate(attributes)}
            wanted = {
                "ProjectionExpression": ", ".join(names),
                "ExpressionAttributeNames": names,
            }
        found = await self._call(
            self._client.get_item, partition, sort_key, ConsistentRead=is_strong, **wanted
        )
        item: AttributeValues | None = found.get("Item")
        return item

    async def query(
        self,
        partition: str,
        between: tuple[str, str] | None = None,
        *,
        is_strong: bool = False,
        last: int | None = None,
        room: HistoryRoom | None = None,
    ) -> list[AttributeValues]:
        """Read the rows of a range of sort keys, or of the whole partition, page by page.

        With `last`, only that many, the last ones first. Payloads take of the room, where there is
        one: raises `HistoryTooLargeError`.
        """
        values = {":pk": {"S": partition}}
        condition = "pk = :pk"
        if between:
            condition += " AND sk BETWEEN :first AND :last"
            values |= {":first": {"S": between[0]}, ":last": {"S": between[1]}}
        items: list[AttributeValues] = []
        page: dict[str, Any] = {}
        while True:
            found = await call(
                self._client.query,
                TableName=self._name,
                KeyConditionExpression=condition,
                ExpressionAttributeValues=values,
                ConsistentRead=is_strong,
                **page,
                **({"ScanIndexForward": False, "Limit": last} if last else {}),
            )
            items += found["Items"]
            if room:
                room.take(sum(len(item["d"]["B"]) for item in found["Items"] if "d" in item))
            if "LastEvaluatedKey" not in found or last:
                return items
            page = {"ExclusiveStartKey": found["LastEvaluatedKey"]}

    async def page(
        self,
        partition: str,
        between: tuple[str, str],
        limit: int,
        *,
        after: str | None = None,
        is_forward: bool = True,
    ) -> tuple[list[AttributeValues], str | None]:
        """Read up to `limit` rows of a range of sort keys, strongly consistent, those behind `after`.

        Also return behind which sort key there may be more, or None where there are none.
        """
        start = {"pk": {"S": partition}, "sk": {"S": after or ""}}
        found = await call(
            self._client.query,
            TableName=self._name,
            KeyConditionExpression="pk = :pk AND sk BETWEEN :first AND :last",
            ExpressionAttributeValues={
                ":pk": {"S": partition},
                ":first": {"S": between[0]},
                ":last": {"S": between[1]},
            },
            Limit=limit,
            ScanIndexForward=is_forward,
            ConsistentRead=True,
            **({"ExclusiveStartKey": start} if after else {}),
        )
        last = found.get("LastEvaluatedKey")
        return found["Items"], last["sk"]["S"] if last else None

    async def put(
        self,
        item: AttributeValues,
        condition: str | None = None,
        *,
        values: AttributeValues | None = None,
        names: dict[str, str] | None = None,
        returns: bool = False,
    ) -> None:
        """Write a row, where the condition holds; raises `ConditionFailedError` where it does not.

        With `returns` the error has the row that was found, where the engine tells.
        """
        arguments: dict[str, Any] = {"ConditionExpression": condition} if condition else {}
        if values:
            arguments["ExpressionAttributeValues"] = values
        if names:
            arguments["ExpressionAttributeNames"] = names
        if returns:
            arguments["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        await call(self._client.put_item, TableName=self._name, Item=item, **arguments)

    async def replace(self, item: AttributeValues) -> AttributeValues:
        """Write a row; return the one that it replaces, or nothing."""
        put = await call(
            self._client.put_item, TableName=self._name, Item=item, ReturnValues="ALL_OLD"
        )
        before: AttributeValues = put.get("Attributes", {})
        return before

    async def take(self, partition: str, sort_key: str) -> AttributeValues:
        """Remove a row, and return it, or nothing where there was none."""
        deleted = await self._call(
            self._client.delete_item, partition, sort_key, ReturnValues="ALL_OLD"
        )
        before: AttributeValues = deleted.get("Attributes", {})
        return before

    async def update(
        self,
        partition: str,
        sort_key: str,
        expression: str,
        *,
        values: AttributeValues,
        names: dict[str, str] | None = None,
        condition: str = "",
        returns: bool = False,
    ) -> AttributeValues:
        """Change a row that exists; return it as it is then, or nothing unless `returns`.

        Raises `ConditionFailedError` where there is none, or where the condition does not hold.
        """
        changed = await self._call(
            self._client.update_item,
            partition,
            sort_key,
            UpdateExpression=expression,
            ConditionExpression="attribute_exists(pk)" + (condition and f" AND {condition}"),
            ExpressionAttributeValues=values,
            **({"ExpressionAttributeNames": names} if names else {}),
            **({"ReturnValues": "ALL_NEW"} if returns else {}),
        )
        item: AttributeValues = changed.get("Attributes", {})
        return item

    async def upsert(
        self,
        partition: str,
        sort_key: str,
        expression: str,
        *,
        values: AttributeValues,
        names: dict[str, str],
        condition: str,
    ) -> AttributeValues:
        """Change a row, or make it; return it as it was before, or nothing where there was none.

        Raises `ConditionFailedError` where the condition does not hold.
        """
        changed = await self._call(
            self._client.update_item,
            partition,
            sort_key,
            UpdateExpression=expression,
            ConditionExpression=condition,
            ExpressionAttributeValues=values,
            ExpressionAttributeNames=names,
            ReturnValues="ALL_OLD",
        )
        item: AttributeValues = changed.get("Attributes", {})
        return item

    async def delete(
        self,
        partition: str,
        sort_key: str,
        *,
        condition: str | None = None,
        values: AttributeValues | None = None,
        names: dict[str, str] | None = None,
    ) -> None:
        """Remove a row, if it is there; raises `ConditionFailedError` where a condition does not hold."""
        arguments: dict[str, Any] = {"ConditionExpression": condition} if condition else {}
        if values:
            arguments["ExpressionAttributeValues"] = values
        if names:
            arguments["ExpressionAttributeNames"] = names
        await self._call(self._client.delete_item, partition, sort_key, **arguments)

    async def _call(
        self,
        operation: Callable[..., dict[str, Any]],
        partition: str,
        sort_key: str,
        **arguments: Any,
    ) -> dict[str, Any]:
        key = {"pk": {"S": partition}, "sk": {"S": sort_key}}
        return await call(operation, TableName=self._name, Key=key, **arguments)


class AdminClient(Protocol):
    """What is used of a boto3 DynamoDB client to make a table."""

    def create_table(self, **arguments: Any) -> dict[str, Any]: ...

    def update_time_to_live(self, **arguments: Any) -> dict[str, Any]: ...

    def get_waiter(self, waiter_name: str, /) -> Any: ...


def create_table(client: AdminClient, name: str) -> None:
    """Make the table with its expiry attribute, and wait for it; one that is there is left alone."""
    # Whoever holds a client has imported botocore already.
    from botocore.exceptions import ClientError  # noqa: PLC0415

    try:
        client.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "S"},
            ],
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceInUseException":
            raise
        return
    client.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1})
    try:
        client.update_time_to_live(
            TableName=name,
            TimeToLiveSpecification={"Enabled": True, "AttributeName": "ttl"},
        )
    except ClientError as error:
        # Not every engine has it; the store does not rely on it.
        if error.response["Error"]["Code"] != "UnknownOperationException":
            raise
