"""Channels that only push, where a linked identity may be: webhook endpoints, EventBridge and SNS."""
