"""A model of Amazon Bedrock as an agent, by its Converse API: `AGENT=bedrock:<model id>`."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Protocol

from channel.agent import Agent, AgentEvent, Turn, TurnError, accepts
from channel.agents.blocking import BlockingStream, off_loop
from channel.agents.converse.models import model_of
from channel.agents.converse.reply import Reply
from channel.agents.converse.request import ConverseOptions, count_request_of, request_of
from channel.agents.provider_errors import turn_error_of
from channel.faults import log_fault
from channel.responses.windows.tokens import estimated_input_tokens


class ConverseClient(Protocol):
    """What is used of a boto3 client of `bedrock-runtime`; any number of turns share it.

    `infra.bedrock.make_bedrock_client` makes one whose streams can be shut down by another thread,
    so that a turn that is cancelled ends at once.
    """

    def converse_stream(self, **arguments: Any) -> Mapping[str, Any]:
        """Call the model; the answer's `stream` gives its events, blocking."""
        ...

    def count_tokens(self, **arguments: Any) -> Mapping[str, Any]:
        """Return `{"inputTokens": …}`."""
        ...


def converse_agent(
    model_id: str,
    client: ConverseClient,
    *,
    instructions: str | None = None,
    guardrail: tuple[str, str] | None = None,
    caching: bool | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Agent:
    """Return a model as an agent; its id may be an inference profile's, and an ARN.

    The instructions come before those of a request. `guardrail` is its id, or its ARN, and its
    version. `caching` sets cache points (by default: of models that are known to take them), and
    `fields` are sent with each request as `additionalModelRequestFields`.
    """
    model = model_of(model_id)
    options = ConverseOptions(instructions, guardrail, caching, fields or {})

    @accepts(*model.options)
    async def agent(turn: Turn) -> AsyncIterator[AgentEvent]:
        try:
            async with aclosing(_said(client, request_of(turn, model, options))) as events:
                async for event in events:
                    yield event
        except _ReasoningRefusedError:
            request = request_of(turn, model, options, replays_reasoning=False)
        else:
            return
        async with aclosing(_said(client, request)) as events:
            async for event in events:
                yield event

    async def count_input_tokens(turn: Turn) -> int:
        request = count_request_of(request_of(turn, model, options), model)
        try:
            counted = await asyncio.to_thread(client.count_tokens, **request)
        except Exception as error:
            if _code(error) in _NOT_COUNTED:
                return estimated_input_tokens(turn)
            if known := _known(error):
                raise known from error
            raise
        tokens: int = counted["inputTokens"]
        return tokens

    agent.count_input_tokens = count_input_tokens  # type: ignore[attr-defined]  # as of any function
    return agent


class _ReasoningRefusedError(Exception):
    """The model refused reasoning that it was given back: it is not its own, or what was before it changed."""


async def _said(
    client: ConverseClient, request: Mapping[str, Any]
) -> AsyncGenerator[AgentEvent, None]:
    """Call the model once, and yield what it says."""
    reply = Reply()
    has_begun = False
    try:
        async with aclosing(off_loop(partial(_stream, client, request))) as events:
            async for event in events:
                for said in reply.take(event):
                    has_begun = True
                    yield said
        for said in reply.end():
            yield said
    except Exception as error:
        if not has_begun and _is_about_reasoning(error, request):
            raise _ReasoningRefusedError from error
        if known := _known(error):
            raise known from error
        raise


def _stream(client: ConverseClient, request: Mapping[str, Any]) -> BlockingStream[dict[str, Any]]:
    stream: BlockingStream[dict[str, Any]] = client.converse_stream(**request)["stream"]
    return stream


def _known(error: Exception) -> TurnError | None:
    """Return what a client may know of an error, or None of what stays hidden."""
    if known := turn_error_of(error):
        return known
    if not _is_invalid(error) or _OPERATORS.search(str(error)):
        return None
    log_fault(_LOG, "model refused a request", error)  # why, is for the operator only
    message = "The model refused the request: something in it is not valid for this model."
    return TurnError(message, code="invalid_prompt", status=400)


def _is_about_reasoning(error: Exception, request: Mapping[str, Any]) -> bool:
    blocks = (block for message in request["messages"] for block in message["content"])
    has_reasoning = any("reasoningContent" in block for block in blocks)
    return has_reasoning and _is_invalid(error) and bool(_REASONING.search(str(error)))


def _is_invalid(error: Exception) -> bool:
    return _code(error) in ("ValidationException", "validationException")  # the latter in a stream


def _code(error: Exception) -> str:
    """Return the code of a botocore `ClientError`, which is known here by its shape."""
    response = getattr(error, "response", None)
    found = response.get("Error") if isinstance(response, Mapping) else None
    return str(found.get("Code") or "") if isinstance(found, Mapping) else ""


_LOG: Final = logging.getLogger(__name__)
_NOT_COUNTED: Final = frozenset(
    {"AccessDeniedException", "ResourceNotFoundException", "ValidationException"}
)
"""How CountTokens refuses a model that has no count, or a function that may not ask."""
_REASONING: Final = re.compile("thinking|reasoning|signature", re.IGNORECASE)
_OPERATORS: Final = re.compile(
    "model identifier|inference profile|on-demand|guardrail", re.IGNORECASE
)
"""What is wrong with the settings, and not with the request."""
