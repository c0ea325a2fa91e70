"""Jobs on Lambda: the function invokes itself, asynchronously, and Lambda keeps the event until it was run."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from channel.ports import Job, StoreError


MAX_PAYLOAD_BYTES: Final = 1024 * 1024
"""What an asynchronous invocation may carry (AWS's page "Lambda quotas")."""

_ACCEPTED: Final = 202


class LambdaClient(Protocol):
    """What is used of a boto3 Lambda client."""

    def invoke(self, **arguments: Any) -> dict[str, Any]: ...


class SelfInvoker:
    """The `Jobs` of a function: each is an event for itself, `{"kind": …, "payload": …}`."""

    def __init__(self, make_client: Callable[[], LambdaClient], function: str) -> None:
        """Take what makes a client, at the first job; and the name of the function with its alias."""
        self._make_client = make_client
        self._function = function
        self._client: LambdaClient | None = None

    async def start(self, job: Job, /) -> None:
        """Hand the job to Lambda; raises `StoreError` where Lambda did not take it, or may not have."""
        payload = msgspec.json.encode(job)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise StoreError("A job is too large for an asynchronous invocation.")
        await asyncio.to_thread(self._invoke, payload)

    def _invoke(self, payload: bytes) -> None:
        # Whoever holds a client has imported botocore already.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            if self._client is None:
                self._client = self._make_client()
            told = self._client.invoke(
                FunctionName=self._function, InvocationType="Event", Payload=payload
            )
            told["Payload"].read()  # it is empty; only then the connection serves the next job
        except ClientError as error:
            raise StoreError("Lambda refused or failed an invocation.") from error
        except BotoCoreError as error:
            raise StoreError("Lambda could not be reached.") from error
        if told["StatusCode"] != _ACCEPTED:
            raise StoreError("Lambda did not take an invocation.")


def make_lambda_client(region: str | None, endpoint: str | None = None) -> Any:
    """Return a Lambda client; an endpoint over plain http is a local engine, which takes any credentials."""
    from infra.dynamodb.client import make_aws_client  # noqa: PLC0415 - botocore comes with it

    return make_aws_client("lambda", region, endpoint)
