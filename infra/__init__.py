"""What AWS supplies behind the ports of `channel`: DynamoDB, API keys, telemetry, settings."""
