"""Secrets of AWS Secrets Manager: read when they are first used, never logged, never in a snapshot."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

import msgspec


MAX_AGE_S: Final = 300.0
"""Seconds after which a secret is read again, since it may have been rotated."""

_LOG: Final = logging.getLogger(__name__)


class SecretError(Exception):
    """A secret cannot be read, or is none that can be used: the fault of whoever set it up."""


class SecretsClient(Protocol):
    """What is used of a boto3 Secrets Manager client."""

    def get_secret_value(self, **arguments: Any) -> dict[str, Any]: ...


class Secret:
    """The text of one secret: `await secret()`.

    The console of Secrets Manager makes JSON objects: of one of those it is the value of `field`, or
    the only value.
    """

    def __init__(
        self,
        name: str,
        make_client: Callable[[], SecretsClient],
        *,
        field: str,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Take its name or ARN, and what makes a client, at the first reading."""
        self._name = name
        self._make_client = make_client
        self._field = field
        self._clock = clock
        self._client: SecretsClient | None = None
        self._text: str | None = None
        self._is_fresh_until = 0.0

    async def __call__(self) -> str:
        """Return the text; raises `SecretError`, unless an older text can be used instead."""
        if self._text is None or self._clock() >= self._is_fresh_until:
            try:
                self._text = await asyncio.to_thread(self._read)
            except SecretError:
                if self._text is None:
                    raise
            self._is_fresh_until = self._clock() + MAX_AGE_S
        return self._text

    def _read(self) -> str:
        # Whoever holds a client has imported botocore already.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            if self._client is None:
                self._client = self._make_client()
            found = self._client.get_secret_value(SecretId=self._name)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            _LOG.error("secret not read", extra={"aws_error": code})
            raise SecretError("A secret could not be read.") from error
        except BotoCoreError as error:
            _LOG.error("secret not read", extra={"aws_error": type(error).__name__})
            raise SecretError("Secrets Manager could not be reached.") from error
        return _text_of(found.get("SecretString"), self._field)


def make_secrets_client(name: str, region: str | None) -> Any:
    """Return a Secrets Manager client for a secret: in the region that its ARN names, if it is one."""
    from infra.dynamodb.client import make_aws_client  # noqa: PLC0415 - botocore comes with it

    is_arn = name.startswith("arn:")
    return make_aws_client("secretsmanager", name.split(":")[3] if is_arn else region)


def _text_of(value: str | None, field: str) -> str:
    text = (value or "").strip()
    if text.startswith("{"):
        text = _field_of(text, field)
    if not text:
        raise SecretError("A secret is empty, or is no text.")
    return text


def _field_of(text: str, field: str) -> str:
    try:
        fields = msgspec.json.decode(text, type=dict[str, str])
    except msgspec.DecodeError:
        raise SecretError("A secret is neither text nor a JSON object of texts.") from None
    if field in fields:
        return fields[field].strip()
    if len(fields) != 1:
        raise SecretError("A secret has several fields, of which none has the name of the setting.")
    return next(iter(fields.values())).strip()
