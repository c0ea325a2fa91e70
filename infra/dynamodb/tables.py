"""Making the table, for tests and the local engine; in the cloud the template does."""

from typing import Any, Protocol


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
