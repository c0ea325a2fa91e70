"""Microsoft Agent Framework in the table: for users' own modules; nothing of ours imports this."""

from infra.agent_framework.checkpoints import DynamoDBCheckpointStorage
from infra.agent_framework.history import DynamoDBHistoryProvider, HistoryNotWholeError


__all__ = ["DynamoDBCheckpointStorage", "DynamoDBHistoryProvider", "HistoryNotWholeError"]
