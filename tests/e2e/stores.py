"""The stores of an app, in memory and in a table, as the composition root puts them together."""

from typing import Any

from channel.memory import InMemoryResponseStore
from channel.memory_conversations import InMemoryConversationStore
from channel.memory_runs import InMemoryRunStore
from infra.dynamodb.conversations import DynamoDBConversationStore
from infra.dynamodb.runs import DynamoDBRunStore
from infra.dynamodb.store import DynamoDBResponseStore
from tests.infra import engines
from tests.infra.turns import own_secret


def in_memory() -> dict[str, Any]:
    store = InMemoryResponseStore()
    return {
        "store": store,
        "runs": InMemoryRunStore(),
        "conversations": InMemoryConversationStore(store),
    }


def in_table(client: Any) -> dict[str, Any]:
    secret = own_secret()
    return {
        "store": DynamoDBResponseStore(client, engines.TABLE, secret=secret),
        "runs": DynamoDBRunStore(client, engines.TABLE, secret=secret),
        "conversations": DynamoDBConversationStore(client, engines.TABLE, secret=secret),
    }
