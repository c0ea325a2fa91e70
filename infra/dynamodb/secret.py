"""The secret of the tenant tags: made by whichever environment comes first, the same for all of them."""

from channel.ports import NewToken, StoreError, random_hex
from infra.dynamodb import keys
from infra.dynamodb.client import ConditionFailedError, Table
from infra.dynamodb.rows import AttributeValues


SECRET_BYTES = 32
_VERSION = "1"


class TenantSecret:
    """The row `cfg#tenant`: read once, created if it is missing, never replaced."""

    def __init__(self, table: Table, *, new_token: NewToken = random_hex) -> None:
        """Read nothing yet."""
        self._table = table
        self._new_token = new_token
        self._value: bytes | None = None

    async def __call__(self) -> bytes:
        """Return the secret; raises `StoreError`."""
        if self._value is None:
            self._value = await self._read() or await self._create()
        return self._value

    async def _create(self) -> bytes:
        made = bytes.fromhex(self._new_token(SECRET_BYTES))
        item: AttributeValues = {
            "pk": {"S": keys.TENANT_PARTITION},
            "sk": {"S": keys.ONLY_ROW},
            "v": {"N": _VERSION},
            "d": {"B": made},
        }
        try:
            await self._table.put(item, "attribute_not_exists(pk)")
        except ConditionFailedError:
            # Another environment was first, or an attempt of our own that seemed to fail.
            made = await self._read() or b""
        return _checked(made)

    async def _read(self) -> bytes | None:
        item = await self._table.get(keys.TENANT_PARTITION, keys.ONLY_ROW)
        if item is None:
            return None
        if item["v"]["N"] != _VERSION:
            raise StoreError("The tenant secret has a version that is not known here.")
        return _checked(item["d"]["B"])


def _checked(secret: bytes) -> bytes:
    if len(secret) != SECRET_BYTES:
        raise StoreError("The tenant secret is damaged.")
    return secret
