"""Chains (LangChain's Runnables that are neither graphs nor chat models): what goes in, what comes out."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable

from channel.agent import Turn


ToInput = Callable[[Turn, list[BaseMessage]], Any]
"""From a turn, and its conversation as messages, to what a graph or a chain takes."""


def input_of(chain: Runnable[Any, Any]) -> ToInput:
    """Return how the chain is given a turn, by its input's schema.

    It takes messages, or text (the last user message), or variables: one for messages and one for
    text. With both, the messages are those before that text. Raises `TypeError` for any other.
    """
    schema = chain.get_input_jsonschema()
    if schema.get("type") == "string":
        return lambda turn, _: turn.text
    if schema.get("type") == "array" or "anyOf" in schema:
        return lambda _, messages: messages
    properties: Mapping[str, Any] = schema.get("properties") or {}
    lists = [name for name, of in properties.items() if of.get("type") == "array"]
    texts = [name for name, of in properties.items() if of.get("type") == "string"]
    required = {*schema.get("required", ())}
    if len(lists) > 1 or len(texts) > 1 or not (lists or texts) or required - {*lists, *texts}:
        msg = (
            "it is a chain whose input is not known to be messages or text; "
            "write adapt(chain, to_input=lambda turn, messages: …)"
        )
        raise TypeError(msg)
    if not texts:
        return lambda _, messages: {lists[0]: messages}
    return lambda turn, messages: {
        texts[0]: turn.text,
        **({lists[0]: _before_the_question(messages)} if lists else {}),
    }


def text_of_output(output: Any) -> str:
    """Return the text of a message, text as it is, and anything else as JSON."""
    if isinstance(output, BaseMessage):
        return output.text
    if isinstance(output, str):
        return output
    dump = getattr(output, "model_dump", None)
    value = dump(mode="json") if dump is not None else output
    return json.dumps(value, ensure_ascii=False, default=msgspec.to_builtins)


def _before_the_question(messages: list[BaseMessage]) -> list[BaseMessage]:
    last = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=None)
    return messages if last is None else [*messages[:last], *messages[last + 1 :]]
